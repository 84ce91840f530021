//! The way to pods of other nodes: routes on the same wire, VXLAN where there is a router between.
//!
//! Whoever knows the nodes calls [`Mesh::apply`] with all of them, as often as it likes: what is missing is added, what is
//! nobody's is removed, and what is right is not touched. Nodes do not talk to each other about it. What of it is in the
//! kernel is recognised by its marks (the name of the link, the protocol number of the routes, the nft table), so
//! that the next process finds and continues it; when none runs, everything keeps working as it was.
//!
//! | object | what |
//! |---|---|
//! | link `<prefix>vx` | VXLAN, only while a node needs it |
//! | routes of protocol 190 | one per pod subnet of another node |
//! | nft table `<prefix>mesh` | pods meet other nodes' pods under their own address |

mod nat;
mod plan;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cidr::width;
use crate::error::Error;
use crate::name;
use crate::netlink::op::Op;
use crate::netlink::tunnel::{self, Hop, Vxlan, Way};
use crate::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, Socket, route};
use crate::sysctl;

pub use plan::Peer;
use plan::Plan;

/// Not Linux's old default 8472, which other overlays use: two on one node must not meet.
const PORT: u16 = 4789;
const NETWORK: u32 = 0xb347;
/// Ethernet, IP and UDP around each packet, and VXLAN's own header.
const OVERHEAD: (u32, u32) = (50, 70);
const DEFAULT_MTU: u32 = 1500;

type Subnets = BTreeSet<(IpAddr, u8)>;

/// The ways from one node to the pods of the others.
#[derive(Debug)]
pub struct Mesh {
    prefix: String,
    /// What the nft table was last made of; unknown at first.
    filtered: Option<[Subnets; 2]>,
}

impl Mesh {
    /// For a node whose links begin with `prefix`. Nothing in the kernel is touched yet.
    ///
    /// # Errors
    /// The prefix is no link prefix.
    pub fn new(prefix: &str) -> Result<Self, Error> {
        name::check_prefix(prefix)?;
        Ok(Self { prefix: prefix.to_owned(), filtered: None })
    }

    /// Makes the kernel agree with the nodes: `own` is this one, `peers` are all others. Returns what was changed and which nodes
    /// cannot be reached, one line each. Works in the calling thread's network namespace.
    ///
    /// # Errors
    /// This node has no address or an unusable pod subnet; the kernel refused a change. What was done stays, and the next
    /// call goes on from there.
    pub fn apply(&mut self, own: &Peer, peers: &[Peer]) -> Result<Vec<String>, Error> {
        let cidrs = plan::subnets(own)?;
        let (Some(first), Some(local)) = (cidrs.first(), own.addresses.first().copied()) else {
            return Err(Error::NotReady(format!("node {} has no pod subnet or no address yet", own.name)));
        };
        let mut socket = Socket::open(NETLINK_ROUTE).map_err(Error::kernel("open a netlink socket"))?;
        let wires = self.wires(&mut socket)?;
        let plan = plan::plan(&cidrs, local, &wires, peers);
        let mut changes = plan.trouble.clone();
        sysctl::forward(sysctl::ipv6_enabled())?;
        self.filter(&plan, &mut changes)?;
        let tunnel = Vxlan {
            name: self.link(),
            id: NETWORK,
            port: PORT,
            local,
            mac: plan::mac(first.parts().0),
            mtu: mtu(&mut socket, local)?,
        };
        let link = self.tunnel(&mut socket, &plan, &tunnel, &mut changes)?;
        if let Some(link) = link {
            hops(&mut socket, link, &plan.hops, &mut changes)?;
        }
        ways(&mut socket, &plan, link, &mut changes)?;
        Ok(changes)
    }

    /// Removes everything that [`Mesh::apply`] has made.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn clear(&mut self) -> Result<(), Error> {
        let mut socket = Socket::open(NETLINK_ROUTE).map_err(Error::kernel("open a netlink socket"))?;
        ways(&mut socket, &Plan::default(), None, &mut Vec::new())?;
        route::delete(&mut socket, &self.link()).map_err(Error::kernel("delete the tunnel"))?;
        let mut filter = Socket::open(NETLINK_NETFILTER).map_err(Error::kernel("open a netlink socket"))?;
        self.filtered = None;
        nat::remove(&self.table(), &mut filter).map_err(Error::kernel("delete the nft table of the mesh"))
    }

    fn link(&self) -> String {
        tunnel_link(&self.prefix)
    }

    fn table(&self) -> String {
        format!("{}mesh", self.prefix)
    }

    /// Subnets that the node has addresses in: not the tunnel's, not the pods'.
    fn wires(&self, socket: &mut Socket) -> Result<Vec<(IpAddr, u8)>, Error> {
        let links = route::links(socket).map_err(Error::kernel("list links"))?;
        let ours: Vec<u32> = links
            .iter()
            .filter(|l| l.loopback || l.name.starts_with(&self.prefix))
            .map(|l| l.index)
            .collect();
        let all = route::addresses(socket).map_err(Error::kernel("list addresses"))?;
        let outer = all.into_iter().filter(|a| !a.link_local && !ours.contains(&a.link));
        Ok(outer.map(|a| a.address).filter(|(ip, length)| *length < width(*ip)).collect())
    }

    fn filter(&mut self, plan: &Plan, changes: &mut Vec<String>) -> Result<(), Error> {
        let wanted = [plan.own.clone(), plan.others.clone()];
        if self.filtered.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let mut socket = Socket::open(NETLINK_NETFILTER).map_err(Error::kernel("open a netlink socket"))?;
        let table = self.table();
        nat::install(&table, &plan.own, &plan.others, &mut socket)
            .map_err(Error::kernel(format!("install the nft table {table}")))?;
        changes.push(format!("nft table {table} exempts {} subnets", plan.others.len()));
        self.filtered = Some(wanted);
        Ok(())
    }

    /// The tunnel's link as it should be, or none; its index.
    fn tunnel(
        &self,
        socket: &mut Socket,
        plan: &Plan,
        wanted: &Vxlan,
        changes: &mut Vec<String>,
    ) -> Result<Option<u32>, Error> {
        let name = &wanted.name;
        let find =
            |socket: &mut Socket| tunnel::find(socket, name).map_err(Error::kernel("look for the tunnel"));
        let there = find(socket)?;
        if let Some((index, found)) = &there
            && found == wanted
            && !plan.hops.is_empty()
        {
            return Ok(Some(*index));
        }
        if there.is_some() {
            route::delete(socket, name).map_err(Error::kernel(format!("delete link {name}")))?;
            changes.push(format!("link {name} deleted"));
        }
        if plan.hops.is_empty() {
            return Ok(None);
        }
        tunnel::create(socket, wanted).map_err(Error::kernel(format!("add link {name} type vxlan")))?;
        let addresses: Vec<Op> = plan
            .own
            .iter()
            .map(|(base, _)| Op::Address { link: name.clone(), address: *base, prefix: width(*base) })
            .collect();
        route::run(socket, &addresses, None)?;
        changes.push(format!("link {name} added, local {}", wanted.local));
        Ok(find(socket)?.map(|(index, _)| index))
    }
}

/// The tunnel's name, for links that begin with `prefix`.
pub(crate) fn tunnel_link(prefix: &str) -> String {
    format!("{prefix}vx")
}

/// The tunnel's MTU: what the wire to the other nodes carries, less what is put around each packet.
fn mtu(socket: &mut Socket, local: IpAddr) -> Result<u32, Error> {
    let around = if local.is_ipv4() { OVERHEAD.0 } else { OVERHEAD.1 };
    let addresses = route::addresses(socket).map_err(Error::kernel("list addresses"))?;
    let wire = addresses.iter().find(|a| a.address.0 == local).map(|a| a.link);
    let links = route::links(socket).map_err(Error::kernel("list links"))?;
    let mtu = links.iter().find(|l| Some(l.index) == wire).map_or(DEFAULT_MTU, |l| l.mtu);
    Ok(mtu.saturating_sub(around))
}

fn hops(
    socket: &mut Socket,
    link: u32,
    wanted: &BTreeSet<Hop>,
    changes: &mut Vec<String>,
) -> Result<(), Error> {
    let found = tunnel::hops(socket, link).map_err(Error::kernel("list neighbours of the tunnel"))?;
    for hop in wanted.iter().filter(|hop| !found.contains(hop)) {
        let doing = format!("add {hop:?} to the tunnel");
        tunnel::add_hop(socket, link, hop).map_err(Error::kernel(doing.clone()))?;
        changes.push(doing);
    }
    // The kernel's own entries, for multicast, name no node.
    for hop in found.iter().filter(|hop| !wanted.contains(hop)) {
        let replaced = wanted.iter().any(|w| match (w, hop) {
            (Hop::Neighbour(new, _), Hop::Neighbour(old, _)) => new == old,
            _ => false,
        });
        if !replaced {
            let doing = format!("remove {hop:?} from the tunnel");
            tunnel::drop_hop(socket, link, hop).map_err(Error::kernel(doing.clone()))?;
            changes.push(doing);
        }
    }
    Ok(())
}

fn ways(socket: &mut Socket, plan: &Plan, link: Option<u32>, changes: &mut Vec<String>) -> Result<(), Error> {
    let direct = plan.direct.iter().map(|(to, via)| Way { to: *to, via: *via, link: None });
    let tunnelled = plan.tunnelled.iter().map(|(to, via)| Way { to: *to, via: *via, link });
    let wanted: BTreeSet<Way> = direct.chain(tunnelled).collect();
    let found = tunnel::ways(socket).map_err(Error::kernel("list routes"))?;
    for way in found.iter().filter(|way| !wanted.contains(way)) {
        let doing = format!("delete route {}/{} via {}", way.to.0, way.to.1, way.via);
        tunnel::drop_way(socket, way).map_err(Error::kernel(doing.clone()))?;
        changes.push(doing);
    }
    for way in wanted.iter().filter(|way| !found.contains(way)) {
        let doing = format!("add route {}/{} via {}", way.to.0, way.to.1, way.via);
        tunnel::add_way(socket, way).map_err(Error::kernel(doing.clone()))?;
        changes.push(doing);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
