//! What leads to the pods of other nodes, decided from what the nodes say of themselves.
//!
//! A node on the same wire is a next hop. Everybody else is reached through one VXLAN link: a route to the subnet by the other
//! node's end, that end's Ethernet address, and the node behind that address. An end's addresses are the first of the
//! node's pod subnets, which no pod has, and its Ethernet address is derived from those: a Node object says everything.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::cidr::{Cidr, network, width};
use crate::error::Error;
use crate::netlink::op::Mac;
use crate::netlink::tunnel::Hop;

/// A node, as the cluster knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its addresses, best first (`InternalIP` of the Node's status).
    pub addresses: Vec<IpAddr>,
    /// Subnets of its pods (`podCIDRs` of the Node's specification).
    pub cidrs: Vec<String>,
}

/// A route: to which subnet, by which next hop.
pub(crate) type Route = ((IpAddr, u8), IpAddr);

/// Everything that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// By the wires the node is on.
    pub(crate) direct: BTreeSet<Route>,
    /// By the tunnel.
    pub(crate) tunnelled: BTreeSet<Route>,
    /// On the tunnel's link.
    pub(crate) hops: BTreeSet<Hop>,
    /// Pod subnets of this node.
    pub(crate) own: BTreeSet<(IpAddr, u8)>,
    /// Pod subnets of the others.
    pub(crate) others: BTreeSet<(IpAddr, u8)>,
    /// Nodes that cannot be reached, and why.
    pub(crate) trouble: Vec<String>,
}

/// The subnets of a node.
pub(crate) fn subnets(peer: &Peer) -> Result<Vec<Cidr>, Error> {
    peer.cidrs.iter().map(|cidr| Cidr::parse(cidr)).collect()
}

/// Ethernet address of a node's end of the tunnel, from its first pod subnet.
pub(crate) fn mac(first: IpAddr) -> Mac {
    let [a, b, c, d] = match first {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let digest = Sha256::digest(ip.octets());
            [digest[0], digest[1], digest[2], digest[3]]
        }
    };
    [0x0a, 0x56, a, b, c, d]
}

/// Decides. `wires` are the subnets that this node has an address in, `local` is its end of the tunnel.
pub(crate) fn plan(own: &[Cidr], local: IpAddr, wires: &[(IpAddr, u8)], peers: &[Peer]) -> Plan {
    let mut plan = Plan { own: own.iter().map(|c| c.parts()).collect(), ..Plan::default() };
    let mut taken = own.to_vec();
    for peer in peers {
        if let Err(why) = add(&mut plan, &mut taken, local, wires, peer) {
            plan.trouble.push(format!("the pods of node {} cannot be reached: {why}", peer.name));
        }
    }
    plan
}

fn add(
    plan: &mut Plan,
    taken: &mut Vec<Cidr>,
    local: IpAddr,
    wires: &[(IpAddr, u8)],
    peer: &Peer,
) -> Result<(), String> {
    let cidrs = subnets(peer).map_err(|e| e.to_string())?;
    let Some(first) = cidrs.first() else { return Ok(()) }; // none given to it yet
    if let Some(clash) = cidrs.iter().find(|c| taken.iter().any(|t| t.overlaps(**c))) {
        return Err(format!("{clash} overlaps the subnet of another node"));
    }
    let near = |ip: &&IpAddr| wires.iter().any(|(base, length)| same(*base, *length, **ip));
    let mac = mac(first.parts().0);
    for cidr in &cidrs {
        let to = cidr.parts();
        if let Some(next) = peer.addresses.iter().filter(|ip| ip.is_ipv4() == cidr.is_ipv4()).find(near) {
            plan.direct.insert((to, *next));
        } else {
            let far = peer.addresses.iter().find(|ip| ip.is_ipv4() == local.is_ipv4());
            let far = far.ok_or("it has no address of this node's family")?;
            plan.tunnelled.insert((to, to.0));
            plan.hops.extend([Hop::Neighbour(to.0, mac), Hop::Forward(mac, *far)]);
        }
        plan.others.insert(to);
    }
    taken.extend(cidrs);
    Ok(())
}

/// Whether an address is in a subnet.
pub(crate) fn same(base: IpAddr, length: u8, ip: IpAddr) -> bool {
    base.is_ipv4() == ip.is_ipv4() && length < width(ip) && network(base, length) == network(ip, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, addresses: &[&str], cidrs: &[&str]) -> Peer {
        Peer {
            name: name.into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            cidrs: cidrs.iter().map(|c| (*c).to_owned()).collect(),
        }
    }

    fn decide(peers: &[Peer]) -> Plan {
        let own = [Cidr::parse("10.1.0.0/24").unwrap(), Cidr::parse("fd00:1::/64").unwrap()];
        let wires = [("192.0.2.1".parse().unwrap(), 24), ("10.1.0.1".parse().unwrap(), 32)];
        plan(&own, "192.0.2.1".parse().unwrap(), &wires, peers)
    }

    #[test]
    fn a_node_on_the_wire_is_a_next_hop_and_what_it_cannot_carry_goes_by_the_tunnel() {
        let plan = decide(&[peer("b", &["192.0.2.2"], &["10.2.0.0/24", "fd00:2::/64"])]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(plan.direct, BTreeSet::from([((ip("10.2.0.0"), 24), ip("192.0.2.2"))]));
        assert_eq!(plan.tunnelled, BTreeSet::from([((ip("fd00:2::"), 64), ip("fd00:2::"))]));
        let mac = [0x0a, 0x56, 10, 2, 0, 0];
        assert_eq!(
            plan.hops,
            BTreeSet::from([Hop::Neighbour(ip("fd00:2::"), mac), Hop::Forward(mac, ip("192.0.2.2"))])
        );
    }

    #[test]
    fn a_node_elsewhere_is_behind_the_tunnel() {
        let plan = decide(&[peer("c", &["198.51.100.3"], &["10.3.0.0/24"])]);
        assert!(plan.direct.is_empty());
        assert_eq!((plan.tunnelled.len(), plan.hops.len(), plan.others.len()), (1, 2, 1));
    }

    #[test]
    fn nodes_that_cannot_be_are_named_and_the_others_are_served() {
        let plan = decide(&[
            peer("early", &["192.0.2.4"], &[]),
            peer("thief", &["192.0.2.5"], &["10.1.0.0/25"]),
            peer("odd", &["192.0.2.6"], &["10.6.0.1/24"]),
            peer("six", &["2001:db8::7"], &["10.7.0.0/24"]),
            peer("good", &["192.0.2.8"], &["10.8.0.0/24"]),
        ]);
        assert_eq!(plan.direct.len() + plan.tunnelled.len(), 1);
        let named = ["thief", "odd", "six"].map(|name| plan.trouble.iter().any(|t| t.contains(name)));
        assert_eq!((named, plan.trouble.len()), ([true; 3], 3), "{:?}", plan.trouble);
    }

    #[test]
    fn ends_of_the_tunnel_differ_from_node_to_node() {
        let all = ["10.1.0.0", "10.1.1.0", "fd00:1:0:1::", "fd00:1:0:2::", "fd00:2:0:1::"];
        let macs: BTreeSet<Mac> = all.iter().map(|a| mac(a.parse().unwrap())).collect();
        assert_eq!(macs.len(), all.len());
    }
}
