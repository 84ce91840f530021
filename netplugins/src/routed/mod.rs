//! The built-in network: routed, dual stack, one veth per pod, no bridge and no process ever executed.
//!
//! [`reserve`] decides ([`Ledger`] and [`plan`]), `attach` executes: the veth is born in place under its final names, the
//! pod's side is configured by one datagram, its nft entries by one transaction. `detach` removes the entries; the kernel
//! dismantles the link when the namespace dies. [`restore`] makes the kernel agree with the live pods.

mod anchor;
mod attach;
mod plan;
mod reserve;
mod restore;

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::cidr::{self, Cidr};
use crate::error::Error;
use crate::ledger::Ledger;
use crate::netlink::watch::LinkWatch;
use crate::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, Socket, route};
use crate::netns::{Namespaces, socket_in};
use crate::nft::{self, ruleset};
use crate::{Attachment, Config, Endpoint, InterfaceStats, Inventory, NetNs, name, state};

use plan::Private;

/// Ethernet's, where the node has no default route to learn from.
const DEFAULT_MTU: u32 = 1500;

/// The built-in driver.
#[derive(Debug)]
pub(crate) struct Routed {
    config: Config,
    namespaces: Namespaces,
    state: Mutex<State>,
    /// `restore` was called. Beside the state, as the next one: Status asks for them and never waits for a kernel call.
    restored: AtomicBool,
    /// A pod CIDR is known.
    subnets: AtomicBool,
    /// Idle sockets of the node's namespace.
    route_sockets: Mutex<Vec<Socket>>,
    nft_sockets: Mutex<Vec<Socket>>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    /// Attached pods, by id.
    live: HashMap<String, Attachment>,
    /// Sockets inside namespaces that were just made; the first `attach` takes them.
    fresh: HashMap<String, Socket>,
    /// `restore` was called and left the node alone.
    held_back: bool,
    ipv6: bool,
    hears_routers: bool,
    mtu: u32,
    boot_id: String,
}

impl Routed {
    pub(crate) fn open(config: Config) -> Result<Self, Error> {
        name::check_prefix(&config.link_prefix)?;
        let cidrs = state::load(&config.state_dir)?.unwrap_or_else(|| config.pod_cidrs.clone());
        let cidrs = cidr::parse(&cidrs)?;
        let mut ledger = Ledger::default();
        ledger.set_cidrs(&cidrs);
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(Error::file("read", "/proc/sys/kernel/random/boot_id"))?;
        let state = State {
            ledger,
            live: HashMap::new(),
            fresh: HashMap::new(),
            held_back: false,
            ipv6: false,
            hears_routers: false,
            mtu: DEFAULT_MTU,
            boot_id: boot_id.trim().to_owned(),
        };
        Ok(Self {
            namespaces: Namespaces::new(&config.netns_dir, &config.state_dir),
            config,
            restored: AtomicBool::new(false),
            subnets: AtomicBool::new(!cidrs.is_empty()),
            state: Mutex::new(state),
            route_sockets: Mutex::default(),
            nft_sockets: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works with a socket of the node's namespace; it is kept only after success.
    fn with_route<T>(&self, work: impl FnOnce(&mut Socket) -> Result<T, Error>) -> Result<T, Error> {
        with(&self.route_sockets, NETLINK_ROUTE, work)
    }

    fn with_nft<T>(&self, work: impl FnOnce(&mut Socket) -> Result<T, Error>) -> Result<T, Error> {
        with(&self.nft_sockets, NETLINK_NETFILTER, work)
    }

    /// Refuses work before `restore`, and without subnets.
    pub(crate) fn ready(&self) -> Result<(), Error> {
        if !self.restored.load(Ordering::Acquire) {
            return Err(Error::NotReady("the network is still being restored; try again shortly".into()));
        }
        if !self.subnets.load(Ordering::Acquire) {
            return Err(Error::NotReady(
                "no pod CIDR is known; set network.pod_cidrs, or let the kubelet send one (node.spec.podCIDR)".into(),
            ));
        }
        Ok(())
    }

    /// Whether a link of the node is gone.
    fn is_gone(&self, link: &str) -> bool {
        self.with_route(|socket| {
            route::link(socket, link).map_err(Error::kernel(format!("look for link {link}")))
        })
        .is_ok_and(|found| found.is_none())
    }

    /// Replaces the nft table by one that holds exactly the live pods.
    fn install(&self, state: &State) -> Result<(), Error> {
        let mut elements = ruleset::unmasqueraded(state.ledger.cidrs().map(Cidr::parts));
        for attachment in state.live.values() {
            elements.extend(plan::elements(attachment, &Private::of(attachment)?)?);
        }
        let prefix = &self.config.link_prefix;
        self.with_nft(|socket| {
            socket.widen().map_err(Error::kernel("widen a netlink socket"))?;
            ruleset::install(prefix, &elements, socket)
                .map_err(Error::kernel(format!("install the nft table {prefix}")))
        })
    }
}

/// The driver's verbs; [`Network`](crate::network::Network) is the face.
impl Routed {
    pub(crate) fn boot_id(&self) -> String {
        self.state().boot_id.clone()
    }

    /// Drops the socket that a new namespace came with: it would keep the namespace alive.
    pub(crate) fn forget_fresh(&self, id: &str) {
        self.state().fresh.remove(id);
    }

    pub(crate) fn set_pod_cidrs(&self, cidrs: &[String]) -> Result<(), Error> {
        let cidrs: Vec<String> =
            cidrs.iter().flat_map(|c| c.split(',')).map(|c| c.trim().to_owned()).collect();
        let parsed = cidr::parse(&cidrs)?;
        if self.state().ledger.cidrs().eq(parsed.iter().copied()) {
            return Ok(());
        }
        state::store(&self.config.state_dir, &cidrs)?;
        let mut state = self.state();
        state.ledger.set_cidrs(&parsed);
        self.subnets.store(!parsed.is_empty(), Ordering::Release);
        if !self.restored.load(Ordering::Acquire) {
            return Ok(());
        }
        self.anchor(&state)?;
        self.install(&state)
    }

    pub(crate) fn create_namespace(&self, id: &str) -> Result<NetNs, Error> {
        let (ns, socket) = self.namespaces.create(id)?;
        self.state().fresh.insert(id.to_owned(), socket);
        Ok(ns)
    }

    pub(crate) fn adopt_namespace(&self, id: &str, made: OwnedFd) -> Result<NetNs, Error> {
        let (ns, socket) = self.namespaces.adopt(id, made)?;
        self.state().fresh.insert(id.to_owned(), socket);
        Ok(ns)
    }

    pub(crate) fn open_namespace(&self, id: &str) -> Result<Option<NetNs>, Error> {
        self.namespaces.open(id)
    }

    pub(crate) fn remove_namespace(&self, id: &str) -> Result<(), Error> {
        self.state().fresh.remove(id);
        self.namespaces.remove(id)
    }

    pub(crate) fn attach(
        &self,
        ns: &NetNs,
        endpoint: &Endpoint,
        reserved: Attachment,
    ) -> Result<Attachment, Error> {
        let private = Private::of(&reserved)?;
        let fresh = self.state().fresh.remove(&endpoint.id);
        let mut pod = fresh.map_or_else(|| socket_in(ns.as_fd()), Ok)?;
        self.execute(ns, &mut pod, &reserved, &private)?;
        self.state().live.insert(reserved.id.clone(), reserved.clone());
        Ok(reserved)
    }

    pub(crate) fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        self.state().fresh.remove(&attachment.id);
        if attachment.boot_id == self.state().boot_id {
            let private = Private::of(attachment)?;
            self.remove_elements(attachment)?;
            self.forget_flows(attachment, &private);
            self.delete_shaper(attachment, &private)?;
        }
        let mut state = self.state();
        state.live.remove(&attachment.id);
        state.ledger.release(&attachment.id);
        Ok(())
    }

    /// Takes the live pods over and removes what belongs to nobody. Without pods, and while another network is configured
    /// (`wanted` is false), the node is left as it is.
    pub(crate) fn restore(&self, live: &[&Attachment], wanted: bool) -> Result<Vec<String>, Error> {
        if wanted || !live.is_empty() || !self.our_links()?.is_empty() || !self.our_elements()?.is_empty() {
            return self.reconcile(live);
        }
        self.state().held_back = true;
        Ok(Vec::new())
    }

    pub(crate) fn stats(&self, ids: &[&str]) -> Result<Vec<Result<Vec<InterfaceStats>, Error>>, Error> {
        self.namespaces.counters(ids)
    }

    pub(crate) fn wait_gone(&self, links: &[String], deadline: Instant) -> Result<Vec<String>, Error> {
        let mut watch = LinkWatch::open().map_err(Error::kernel("watch links"))?;
        loop {
            let left: Vec<String> = links.iter().filter(|l| !self.is_gone(l)).cloned().collect();
            if left.is_empty() || !watch.changed(deadline).map_err(Error::kernel("watch links"))? {
                return Ok(left);
            }
        }
    }

    pub(crate) fn inventory(&self) -> Result<Inventory, Error> {
        let links = self.our_links()?;
        let elements = self.our_elements()?.iter().map(ToString::to_string).collect();
        let mut state = self.state();
        state.ledger.settle(|link| !links.iter().any(|l| l == link));
        let (addresses, leaving) = state.ledger.count();
        drop(state);
        let namespaces = self.namespaces.marked()?.into_iter().collect();
        Ok(Inventory { links, elements, namespaces, addresses, leaving })
    }

    pub(crate) fn retire(&self) -> Result<(), Error> {
        let state = self.state();
        if let Some(id) = state.live.keys().next() {
            return Err(Error::NotReady(format!("pod {id} is still attached")));
        }
        self.restored.store(false, Ordering::Release);
        self.delete_link(&self.anchor_link())?;
        let prefix = &self.config.link_prefix;
        self.with_nft(|socket| {
            let mut transaction = nft::Transaction::new(prefix);
            transaction.add_table().delete_table();
            transaction
                .commit(socket)
                .map_err(|r| Error::kernel(format!("delete the nft table {prefix}"))(r.failure))
        })
    }
}

impl Routed {
    /// Whether link and nft entries of a pod are there.
    pub(crate) fn check(&self, attachment: &Attachment) -> Result<(), Error> {
        let damaged = |missing| Err(Error::Damaged { id: attachment.id.clone(), missing });
        if self.is_gone(&attachment.host_interface) {
            return damaged(format!("link {} is gone", attachment.host_interface));
        }
        let private = Private::of(attachment)?;
        if !private.shaper.is_empty() && self.is_gone(&private.shaper) {
            return damaged(format!("link {} is gone", private.shaper));
        }
        let present = self.our_elements()?;
        match plan::elements(attachment, &private)?.iter().find(|e| !present.contains(e)) {
            Some(element) => damaged(format!("nft entry {element} is gone")),
            None => Ok(()),
        }
    }
}

fn with<T>(
    idle: &Mutex<Vec<Socket>>,
    protocol: isize,
    work: impl FnOnce(&mut Socket) -> Result<T, Error>,
) -> Result<T, Error> {
    let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut socket = match kept {
        Some(socket) => socket,
        None => Socket::open(protocol).map_err(Error::kernel("open a netlink socket"))?,
    };
    let done = work(&mut socket)?;
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
    Ok(done)
}

#[cfg(test)]
mod tests;
