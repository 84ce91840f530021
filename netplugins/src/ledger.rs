//! Who holds which address and port: computed from live pods, never stored.
//!
//! The engine journals each pod's [`Attachment`](crate::Attachment); at start it hands all live ones to `restore`, and
//! from then on the ledger in memory is exact. No pod record, no allocation: an address cannot leak.
//!
//! ```text
//!   free ──take──▶ held ──release──▶ leaving ──link gone──▶ free
//!                    └────abandon───────────────────────────▲
//! ```
//!
//! A released address is *leaving* until the pod's link has vanished from the node, else a new pod could meet the old
//! one's route. Nobody waits for that: whether the link is gone is asked when the address's turn comes again, and
//! allocation goes round the subnet before it comes back.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::cidr::Cidr;
use crate::error::Error;
use crate::{HostPort, Protocol};

/// How many holders an exhaustion error names.
const NAMED: usize = 5;
/// As much of an id as crictl shows.
const SHORT_ID: usize = 13;

/// A published port: protocol, IPv4 or IPv6, node address (`None`: all of the family), port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Publication {
    pub(crate) protocol: Protocol,
    pub(crate) ipv4: bool,
    pub(crate) on: Option<IpAddr>,
    pub(crate) port: u16,
}

#[derive(Debug)]
struct Pool {
    cidr: Cidr,
    /// Offset tried first next time.
    next: u128,
}

/// One pod's share. A leaving pod's share stays under its link until that is gone.
#[derive(Debug, Default)]
struct Share {
    pod: String,
    addresses: Vec<IpAddr>,
    leaving: bool,
}

/// Addresses, ports and links in use. All questions that a pod asks cost the same however many there are.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pools: Vec<Pool>,
    /// Link of the holder.
    addresses: HashMap<IpAddr, String>,
    /// By link.
    shares: HashMap<String, Share>,
    /// Link of each pod that is not leaving.
    links: HashMap<String, String>,
    /// Owners of a port, by node address.
    ports: HashMap<Slot, Vec<(Option<IpAddr>, String)>>,
    /// Ports of each pod.
    published: HashMap<String, Vec<Publication>>,
    /// What people call a pod, where that is known.
    names: HashMap<String, String>,
}

/// Protocol, IPv4 or not, port.
type Slot = (Protocol, bool, u16);

impl Ledger {
    /// Allocates from these subnets from now on; what is held elsewhere stays held.
    pub(crate) fn set_cidrs(&mut self, cidrs: &[Cidr]) {
        let old = std::mem::take(&mut self.pools);
        self.pools = cidrs
            .iter()
            .map(|cidr| {
                let next =
                    old.iter().find(|p| p.cidr == *cidr).map_or(*cidr.pod_offsets().start(), |p| p.next);
                Pool { cidr: *cidr, next }
            })
            .collect();
    }

    pub(crate) fn cidrs(&self) -> impl Iterator<Item = Cidr> + '_ {
        self.pools.iter().map(|p| p.cidr)
    }

    /// Whether a subnet of that family is there.
    pub(crate) fn has_family(&self, ipv4: bool) -> bool {
        self.pools.iter().any(|p| p.cidr.is_ipv4() == ipv4)
    }

    /// Whether a pod or one that is leaving has that link.
    pub(crate) fn has_link(&self, link: &str) -> bool {
        self.shares.contains_key(link)
    }

    /// Addresses the pod holds.
    pub(crate) fn addresses_of(&self, pod: &str) -> &[IpAddr] {
        self.links.get(pod).and_then(|link| self.shares.get(link)).map_or(&[], |share| &share.addresses)
    }

    /// Number of held and of leaving addresses.
    pub(crate) fn count(&self) -> (usize, usize) {
        let of =
            |leaving| self.shares.values().filter(|s| s.leaving == leaving).map(|s| s.addresses.len()).sum();
        (of(false), of(true))
    }

    /// Takes the next free address of a family, and the subnet it is from. `gone` tells whether a link has vanished.
    pub(crate) fn take(
        &mut self,
        pod: &str,
        link: &str,
        ipv4: bool,
        mut gone: impl FnMut(&str) -> bool,
    ) -> Result<(IpAddr, Cidr), Error> {
        for index in 0..self.pools.len() {
            let Some(pool) = self.pools.get(index).filter(|p| p.cidr.is_ipv4() == ipv4) else { continue };
            let (cidr, from) = (pool.cidr, pool.next);
            let offsets = cidr.pod_offsets();
            let (first, last) = (*offsets.start(), *offsets.end());
            // Round once, from where the last search ended. Longer than the number of holdings it never takes.
            for offset in (from..=last).chain(first..from) {
                let address = cidr.at(offset);
                if !self.is_free(address, &mut gone) {
                    continue;
                }
                self.hold(address, pod, link);
                if let Some(pool) = self.pools.get_mut(index) {
                    pool.next = if offset < last { offset + 1 } else { first };
                }
                return Ok((address, cidr));
            }
        }
        Err(self.exhausted(ipv4))
    }

    fn is_free(&mut self, address: IpAddr, gone: &mut impl FnMut(&str) -> bool) -> bool {
        let Some(link) = self.addresses.get(&address) else { return true };
        if !self.shares.get(link).is_some_and(|share| share.leaving) || !gone(link) {
            return false;
        }
        let link = link.clone();
        self.forget_link(&link);
        true
    }

    /// Records that a pod has an address.
    pub(crate) fn hold(&mut self, address: IpAddr, pod: &str, link: &str) {
        self.addresses.insert(address, link.to_owned());
        self.links.insert(pod.to_owned(), link.to_owned());
        let share = self.shares.entry(link.to_owned()).or_default();
        pod.clone_into(&mut share.pod);
        if !share.addresses.contains(&address) {
            share.addresses.push(address);
        }
    }

    /// Says what people call a pod, for errors; until it gives up what it holds.
    pub(crate) fn name(&mut self, pod: &str, name: &str) {
        if !name.is_empty() {
            self.names.insert(pod.to_owned(), name.to_owned());
        }
    }

    /// A pod in an error: its name and enough of its id to find it, or its id.
    fn called(&self, pod: &str) -> String {
        let short = pod.get(..SHORT_ID).unwrap_or(pod);
        self.names.get(pod).map_or_else(|| pod.to_owned(), |name| format!("{name} ({short})"))
    }

    /// Publishes a pod's ports, all or none. What the pod has already it may publish again.
    pub(crate) fn publish(&mut self, pod: &str, ports: &[Publication]) -> Result<(), Error> {
        for (position, port) in ports.iter().enumerate() {
            if ports.iter().take(position).any(|other| other.slot() == port.slot() && port.collides(other.on))
            {
                return Err(Error::Port { port: port.text(), why: "the pod publishes it twice" });
            }
            let owners = self.ports.get(&port.slot()).map_or(&[][..], Vec::as_slice);
            if let Some((on, owner)) = owners.iter().find(|(on, owner)| owner != pod && port.collides(*on)) {
                return Err(Error::PortTaken {
                    port: Publication { on: *on, ..*port }.text(),
                    owner: self.called(owner),
                });
            }
        }
        self.unpublish(pod);
        for port in ports {
            self.ports.entry(port.slot()).or_default().push((port.on, pod.to_owned()));
        }
        self.published.insert(pod.to_owned(), ports.to_vec());
        Ok(())
    }

    /// Gives up what a pod holds, at once: nothing was made in the kernel.
    pub(crate) fn abandon(&mut self, pod: &str) {
        self.unpublish(pod);
        self.names.remove(pod);
        if let Some(link) = self.links.remove(pod) {
            self.forget_link(&link);
        }
    }

    /// Gives up what a pod holds; its addresses are leaving until its link is gone.
    pub(crate) fn release(&mut self, pod: &str) {
        self.unpublish(pod);
        self.names.remove(pod);
        if let Some(share) = self.links.remove(pod).and_then(|link| self.shares.get_mut(&link)) {
            share.leaving = true;
        }
    }

    /// Frees what was leaving by way of links that are gone.
    pub(crate) fn settle(&mut self, mut gone: impl FnMut(&str) -> bool) {
        let leaving = self.shares.iter().filter(|(_, share)| share.leaving).map(|(link, _)| link.clone());
        for link in leaving.collect::<Vec<_>>() {
            if gone(&link) {
                self.forget_link(&link);
            }
        }
    }

    fn forget_link(&mut self, link: &str) {
        for address in self.shares.remove(link).unwrap_or_default().addresses {
            self.addresses.remove(&address);
        }
    }

    fn unpublish(&mut self, pod: &str) {
        for port in self.published.remove(pod).unwrap_or_default() {
            if let Some(owners) = self.ports.get_mut(&port.slot()) {
                owners.retain(|(_, owner)| owner != pod);
            }
        }
    }

    fn exhausted(&self, ipv4: bool) -> Error {
        let pools: Vec<&Pool> = self.pools.iter().filter(|p| p.cidr.is_ipv4() == ipv4).collect();
        let inside = |share: &Share| {
            share.addresses.iter().filter(|a| pools.iter().any(|p| p.cidr.offset(**a).is_some())).count()
        };
        let held = self.shares.values().filter(|share| !share.leaving && inside(share) > 0);
        let mut pods: Vec<String> = held.map(|share| self.called(&share.pod)).collect();
        pods.sort_unstable();
        let mut holders = pods.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if pods.len() > NAMED {
            holders.push_str(&format!(" and {} more", pods.len() - NAMED));
        }
        Error::Exhausted {
            family: if ipv4 { "IPv4" } else { "IPv6" },
            cidrs: pools.iter().map(|p| p.cidr.to_string()).collect::<Vec<_>>().join(", "),
            held: pods.len(),
            leaving: self.shares.values().filter(|share| share.leaving).map(inside).sum(),
            holders: if pods.is_empty() {
                "no pod holds one".into()
            } else {
                format!("held by pods {holders}")
            },
        }
    }
}

impl Publication {
    /// What a host port means for a pod with these families. `0.0.0.0` and `::` stand for every address of theirs.
    pub(crate) fn of(port: &HostPort, ipv4: bool, ipv6: bool) -> Result<Vec<Self>, Error> {
        let on = port.host_ip.map(|ip| ip.to_canonical());
        let make = |ipv4, on| Self { protocol: port.protocol, ipv4, on, port: port.host_port };
        let refuse = |why| Err(Error::Port { port: make(true, on).text(), why });
        if port.host_port == 0 || port.container_port == 0 {
            return refuse("port 0 cannot be published");
        }
        match on {
            None => Ok([ipv4.then(|| make(true, None)), ipv6.then(|| make(false, None))]
                .into_iter()
                .flatten()
                .collect()),
            Some(ip) if (ip.is_ipv4() && !ipv4) || (ip.is_ipv6() && !ipv6) => {
                refuse("the pod has no address of the host IP's family")
            }
            Some(ip) if ip.is_unspecified() => Ok(vec![make(ip.is_ipv4(), None)]),
            Some(ip) if ip.is_multicast() => refuse("the host IP is a multicast address"),
            Some(IpAddr::V6(ip)) if ip.is_loopback() => {
                refuse("::1 cannot lead to a pod: IPv6 has no route_localnet")
            }
            Some(ip) => Ok(vec![make(ip.is_ipv4(), Some(ip))]),
        }
    }

    fn slot(&self) -> Slot {
        (self.protocol, self.ipv4, self.port)
    }

    /// Whether it cannot be had beside one of the same slot on that node address: the scheduler's rule, by which "every
    /// address" collides with each one.
    fn collides(&self, on: Option<IpAddr>) -> bool {
        self.on.is_none() || on.is_none() || self.on == on
    }

    /// `10.0.0.1:80/tcp`, or `80/tcp`.
    pub(crate) fn text(&self) -> String {
        let protocol = self.protocol.name();
        match self.on {
            Some(IpAddr::V6(ip)) => format!("[{ip}]:{}/{protocol}", self.port),
            Some(ip) => format!("{ip}:{}/{protocol}", self.port),
            None => format!("{}/{protocol}", self.port),
        }
    }
}

#[cfg(test)]
mod tests;
