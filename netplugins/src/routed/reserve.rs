//! Which links, addresses and ports a pod gets: decided and held, nothing made yet.

use std::time::{Duration, Instant};

use super::plan::{self, Private};
use super::{Routed, State};
use crate::bandwidth::Limits;
use crate::cidr::width;
use crate::error::Error;
use crate::netlink::route;
use crate::netlink::watch::LinkWatch;
use crate::{Attachment, Endpoint, mesh, name};

/// Interface name in the pod.
const POD_LINK: &str = "eth0";
/// How long a reservation waits for addresses of pods that are being taken down.
const LEAVING: Duration = Duration::from_secs(2);

impl Routed {
    pub(crate) fn reserve(&self, endpoint: &Endpoint) -> Result<Attachment, Error> {
        if let Err(e) = self.ready() {
            // The other network's configuration went away: this one has not been needed so far.
            if self.state().held_back {
                self.reconcile(&[])?
            } else {
                return Err(e);
            };
        }
        match self.try_reserve(endpoint) {
            // Pods come and go faster than the kernel dismantles links: the next one is about to be gone.
            Err(Error::Exhausted { leaving: 1.., .. }) => {
                let mut watch = LinkWatch::open().map_err(Error::kernel("watch links"))?;
                let deadline = Instant::now() + LEAVING;
                loop {
                    match self.try_reserve(endpoint) {
                        Err(Error::Exhausted { leaving: 1.., .. })
                            if watch.changed(deadline).map_err(Error::kernel("watch links"))? => {}
                        other => return other,
                    }
                }
            }
            other => other,
        }
    }

    /// Reserves, or leaves everything as it was.
    fn try_reserve(&self, endpoint: &Endpoint) -> Result<Attachment, Error> {
        let tunnel = self.tunnel_mtu()?;
        let mut state = self.state();
        let reserved = self.decide(&mut state, endpoint, tunnel);
        if matches!(&reserved, Err(e) if !matches!(e, Error::Held { .. })) {
            state.ledger.abandon(&endpoint.id);
        }
        reserved
    }

    pub(crate) fn abandon(&self, attachment: &Attachment) {
        let mut state = self.state();
        state.live.remove(&attachment.id);
        state.ledger.abandon(&attachment.id);
    }

    /// What the tunnel to distant nodes carries, if there is one; no more may a pod send in one packet. Pods that came before it
    /// learn that by what the kernel answers to packets that are too big.
    fn tunnel_mtu(&self) -> Result<Option<u32>, Error> {
        let tunnel = mesh::tunnel_link(&self.config.link_prefix);
        let found = self.with_route(|socket| {
            route::link(socket, &tunnel).map_err(Error::kernel(format!("look for link {tunnel}")))
        })?;
        Ok(found.map(|link| link.mtu))
    }

    /// Decides links, addresses and ports of a pod, and holds them. Asks the kernel only for addresses that come round again.
    fn decide(
        &self,
        state: &mut State,
        endpoint: &Endpoint,
        tunnel: Option<u32>,
    ) -> Result<Attachment, Error> {
        let held = state.ledger.addresses_of(&endpoint.id);
        if !held.is_empty() {
            let addresses = held.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Error::Held { id: endpoint.id.clone(), addresses });
        }
        let prefix = &self.config.link_prefix;
        let host_interface = (0..).map(|salt| name::host_link(prefix, &endpoint.id, salt));
        let host_interface =
            host_interface.into_iter().find(|l| !state.ledger.has_link(l)).unwrap_or_default();

        let mut addresses = Vec::new();
        let mut gateways = Vec::new();
        for ipv4 in [true, false] {
            if !state.ledger.has_family(ipv4) || (!ipv4 && !state.ipv6) {
                continue;
            }
            let (address, from) =
                state.ledger.take(&endpoint.id, &host_interface, ipv4, |link| self.is_gone(link))?;
            addresses.push((address, width(address)));
            gateways.push(from.gateway());
        }
        let Some((primary, _)) = addresses.first().copied() else {
            return Err(Error::NotReady("the only pod CIDRs are IPv6, and IPv6 is off on this node".into()));
        };
        let (mac, host_mac) = plan::macs(primary);
        let limits = Limits::of(&endpoint.annotations)?;
        let shaper = limits.egress.map(|_| name::shaper_link(prefix, &host_interface));
        let private = Private {
            version: Private::VERSION,
            mac,
            host_mac,
            mtu: tunnel.map_or(state.mtu, |tunnel| tunnel.min(state.mtu)),
            quiet: state.ipv6,
            gateways,
            ports: endpoint.host_ports.clone(),
            name: called(endpoint),
            limits,
            shaper: shaper.unwrap_or_default(),
        };
        let attachment = Attachment {
            id: endpoint.id.clone(),
            interface: POD_LINK.to_owned(),
            host_interface,
            addresses,
            boot_id: state.boot_id.clone(),
            private: serde_json::to_value(&private)
                .map_err(|e| Error::Format { path: "network record".into(), why: e.to_string() })?,
        };
        state.ledger.name(&endpoint.id, &private.name);
        state.ledger.publish(&endpoint.id, &private.publications(&attachment)?)?;
        Ok(attachment)
    }
}

/// `namespace/name`, or nothing.
fn called(endpoint: &Endpoint) -> String {
    let (name, namespace, _) = &endpoint.pod;
    if name.is_empty() { String::new() } else { format!("{namespace}/{name}") }
}
