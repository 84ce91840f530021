//! Making an attachment real, and unmaking it: one recipe each.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::plan::{self, Private};
use super::{Routed, State};
use crate::error::Error;
use crate::netlink::conntrack::{self, Flow};
use crate::netlink::op::Op;
use crate::netlink::route::Known;
use crate::netlink::watch::LinkWatch;
use crate::netlink::{Failure, Refusal, Socket, route};
use crate::netns::socket_in;
use crate::nft::Transaction;
use crate::nft::element::Element;
use crate::{Attachment, HostPort, NetNs, Protocol, sysctl};

/// The kernel brings the pod's end up within a millisecond of the node's; a second means that it never will.
const CARRIER: Duration = Duration::from_secs(1);

impl Routed {
    /// Carries out the plan; on failure nothing of it is left.
    pub(super) fn execute(
        &self,
        ns: &NetNs,
        pod: &mut Socket,
        attachment: &Attachment,
        private: &Private,
    ) -> Result<(), Error> {
        let plan = plan::plan(attachment, private)?;
        let link = &attachment.host_interface;
        let made = self.make_links(&plan, ns, pod, attachment);
        // Masquerade, hairpin, host ports: all or none of them.
        let made = made.and_then(|()| self.add_elements(attachment, &plan.elements));
        let Err(error) = made else {
            self.forget_flows(attachment, private);
            // Until the kernel has noticed the carrier, the pod's end drops what is sent.
            return await_carrier(ns, pod, &attachment.interface).inspect_err(|_| {
                self.report(attachment, self.remove_elements(attachment));
                self.report(attachment, self.delete_link(link));
                self.report(attachment, self.delete_shaper(attachment, private));
            });
        };
        // Deleting the link takes its other end, addresses, routes and neighbours along.
        self.report(attachment, self.delete_link(link));
        self.report(attachment, self.delete_shaper(attachment, private));
        Err(error)
    }

    fn make_links(
        &self,
        plan: &plan::Plan,
        ns: &NetNs,
        pod: &mut Socket,
        attachment: &Attachment,
    ) -> Result<(), Error> {
        let link = &attachment.host_interface;
        let mut known = Known::new();
        self.with_route(|socket| route::go_on(socket, &plan.links, Some(ns.as_fd()), &mut known))?;
        // A pod must not announce itself as the node's router (CVE-2020-13401). A forwarding node does not listen,
        // unless it was told to do so on every link.
        if self.state().hears_routers {
            sysctl::set(&format!("ipv6/conf/{link}/accept_ra"), "0")?;
        }
        // Addresses, link, default routes inside.
        route::run(pod, &plan.pod, None)?;
        self.with_route(|socket| route::go_on(socket, &plan.host, None, &mut known))
    }

    pub(super) fn delete_link(&self, link: &str) -> Result<(), Error> {
        self.with_route(|socket| {
            route::delete(socket, link).map_err(Error::kernel(format!("delete link {link}")))
        })
    }

    /// The link that shaped what the pod sent lives on the node: it does not go with the pod's namespace.
    pub(super) fn delete_shaper(&self, attachment: &Attachment, private: &Private) -> Result<(), Error> {
        if private.shaper.is_empty() {
            return Ok(());
        }
        // Connections that the pod left open must still be able to end, else they keep its namespace for minutes.
        let direct = [Op::NoIngress(attachment.host_interface.clone())];
        if let Err(error) = self.with_route(|socket| route::run(socket, &direct, None)) {
            tracing::debug!(pod = attachment.id, "its link is gone already: {}", error.chain());
        }
        self.delete_link(&private.shaper)
    }

    /// A roll-back that fails changes nothing about the error; the next start removes what is left.
    fn report(&self, attachment: &Attachment, outcome: Result<(), Error>) {
        if let Err(error) = outcome {
            tracing::warn!(pod = attachment.id, "left behind: {}", error.chain());
        }
    }

    /// Forgets UDP flows to the pod's host ports: before it was attached they went elsewhere, and afterwards nowhere.
    /// Whatever fails here ends by itself when the clients pause, so it is logged.
    pub(super) fn forget_flows(&self, attachment: &Attachment, private: &Private) {
        let udp = |p: &HostPort| p.protocol == Protocol::Udp;
        if !private.ports.iter().any(udp) {
            return;
        }
        let stale = |flow: &Flow| {
            let to_port = |p: &HostPort| udp(p) && p.host_port == flow.original.destination_port;
            let ours = attachment.addresses.iter().any(|(ip, _)| Some(*ip) == flow.reply.source);
            let untouched = flow.original.destination == flow.reply.source;
            flow.original.protocol == Protocol::Udp.number()
                && private.ports.iter().any(to_port)
                && (ours || untouched)
        };
        self.report(
            attachment,
            self.with_nft(|socket| {
                conntrack::forget(socket, stale)
                    .map(drop)
                    .map_err(Error::kernel("forget UDP flows to host ports"))
            }),
        );
    }

    /// Adds a pod's nft entries. If somebody flushed the ruleset, all of it is put back.
    fn add_elements(&self, attachment: &Attachment, elements: &[Element]) -> Result<(), Error> {
        let prefix = &self.config.link_prefix;
        let added = self.with_nft(|socket| {
            let mut transaction = Transaction::new(prefix);
            transaction.add_elements(elements);
            Ok(transaction.commit(socket))
        })?;
        match added {
            Ok(()) => Ok(()),
            Err(r) if r.failure.errno() == Some(Errno::NOENT) => {
                tracing::warn!(table = prefix, "the nft table was gone; installing it again");
                let mut state = self.state();
                state.live.insert(attachment.id.clone(), attachment.clone());
                let installed = self.install(&state);
                forget_if_failed(&mut state, attachment, &installed);
                installed
            }
            Err(r) => Err(Error::kernel(format!("add nft entries of pod {}", attachment.id))(r.failure)),
        }
    }

    /// Deletes a pod's nft entries; absent ones are fine.
    pub(super) fn remove_elements(&self, attachment: &Attachment) -> Result<(), Error> {
        let elements = plan::elements(attachment, &Private::of(attachment)?)?;
        self.with_nft(|socket| {
            let doing = || Error::kernel(format!("delete nft entries of pod {}", attachment.id));
            match self.delete(socket, &elements) {
                Err(r) if r.failure.errno() == Some(Errno::NOENT) => {}
                other => return other.map_err(|r| doing()(r.failure)),
            }
            // Some are gone already, so each for itself.
            for element in &elements {
                match self.delete(socket, std::slice::from_ref(element)) {
                    Err(r) if r.failure.errno() != Some(Errno::NOENT) => return Err(doing()(r.failure)),
                    _ => {}
                }
            }
            Ok(())
        })
    }

    fn delete(&self, socket: &mut Socket, elements: &[Element]) -> Result<(), Refusal> {
        let mut transaction = Transaction::new(&self.config.link_prefix);
        transaction.delete_elements(elements);
        transaction.commit(socket)
    }
}

/// Waits until a link that is up, and whose other end is, can send; asking makes the kernel look at once.
fn await_carrier(ns: &NetNs, socket: &mut Socket, link: &str) -> Result<(), Error> {
    let doing = || Error::kernel(format!("wait for link {link} to come up"));
    let up = |socket: &mut Socket| {
        Ok(route::link(socket, link).map_err(doing())?.is_some_and(|link| link.operational))
    };
    if up(socket)? {
        return Ok(());
    }
    let deadline = Instant::now() + CARRIER;
    let mut watch = LinkWatch::on(socket_in(ns.as_fd())?).map_err(doing())?;
    while !up(socket)? {
        if !watch.changed(deadline).map_err(doing())? {
            return Err(doing()(Failure::Refused {
                errno: Errno::TIMEDOUT.into(),
                text: "no carrier".into(),
            }));
        }
    }
    Ok(())
}

fn forget_if_failed(state: &mut State, attachment: &Attachment, outcome: &Result<(), Error>) {
    if outcome.is_err() {
        state.live.remove(&attachment.id);
    }
}
