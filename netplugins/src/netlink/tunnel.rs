//! VXLAN links, and what leads through them: neighbours, forwarding entries, routes of a protocol of one's own.

use std::net::IpAddr;

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rustix::io::Errno;

use super::op::Mac;
use super::route::{body, by_name, decode, family, push, route_address};
use super::{Batch, Failure, Socket, flag};

const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
/// Marks our routes among those of the node (`rtm_protocol`, one of the numbers nobody has taken).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(190);

/// A VXLAN link whose forwarding is all told, never learned (ip-link(8)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) name: String,
    /// Network identifier.
    pub(crate) id: u32,
    /// UDP port.
    pub(crate) port: u16,
    /// The node's own end.
    pub(crate) local: IpAddr,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
}

/// Where a packet goes next on a VXLAN link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hop {
    /// This next hop has that Ethernet address.
    Neighbour(IpAddr, Mac),
    /// That Ethernet address is behind this node.
    Forward(Mac, IpAddr),
}

/// A route to a subnet; with a link, the next hop is on it by decree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    pub(crate) to: (IpAddr, u8),
    pub(crate) via: IpAddr,
    /// Index of the link.
    pub(crate) link: Option<u32>,
}

/// The VXLAN link of that name and its index.
pub(crate) fn find(socket: &mut Socket, name: &str) -> Result<Option<(u32, Vxlan)>, Failure> {
    let request = Message::GetLink(LinkMessage::default());
    let all = socket.dump(RTM_GETLINK, &body(&request), |frame| match decode(&frame)? {
        Message::NewLink(message) => decode_vxlan(&message),
        _ => None,
    })?;
    Ok(all.into_iter().find(|(_, vxlan)| vxlan.name == name))
}

/// Makes it, up.
pub(crate) fn create(socket: &mut Socket, vxlan: &Vxlan) -> Result<(), Failure> {
    let mut message = by_name(&vxlan.name);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    let local = match vxlan.local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    let data = vec![
        InfoVxlan::Id(vxlan.id),
        local,
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(false),
        InfoVxlan::UDPZeroCsumRX(true),
    ];
    message.attributes.extend([
        LinkAttribute::Address(vxlan.mac.to_vec()),
        LinkAttribute::Mtu(vxlan.mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ]);
    one(socket, flag::CREATE | flag::EXCL, &Message::NewLink(message))
}

/// All permanent neighbours and forwarding entries of a link.
pub(crate) fn hops(socket: &mut Socket, link: u32) -> Result<Vec<Hop>, Failure> {
    let mut all = Vec::new();
    for kind in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
        let mut request = NeighbourMessage::default();
        request.header.family = kind;
        let request = Message::GetNeighbour(request);
        all.extend(socket.dump(RTM_GETNEIGH, &body(&request), |frame| match decode(&frame)? {
            Message::NewNeighbour(m) if m.header.ifindex == link => decode_hop(&m),
            _ => None,
        })?);
    }
    Ok(all)
}

/// Adds an entry; an existing one for the same address changes.
pub(crate) fn add_hop(socket: &mut Socket, link: u32, hop: &Hop) -> Result<(), Failure> {
    one(socket, flag::CREATE | flag::REPLACE, &Message::NewNeighbour(hop_message(link, hop)))
}

/// Removes an entry; absent is fine.
pub(crate) fn drop_hop(socket: &mut Socket, link: u32, hop: &Hop) -> Result<(), Failure> {
    absent_is_fine(one(socket, 0, &Message::DelNeighbour(hop_message(link, hop))))
}

/// All routes of ours.
pub(crate) fn ways(socket: &mut Socket) -> Result<Vec<Way>, Failure> {
    let mut all = Vec::new();
    for kind in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = kind;
        let request = Message::GetRoute(request);
        all.extend(socket.dump(RTM_GETROUTE, &body(&request), |frame| match decode(&frame)? {
            Message::NewRoute(message) if message.header.protocol == PROTOCOL => decode_way(&message),
            _ => None,
        })?);
    }
    Ok(all)
}

/// Adds a route; an existing one to the same subnet changes.
pub(crate) fn add_way(socket: &mut Socket, way: &Way) -> Result<(), Failure> {
    one(socket, flag::CREATE | flag::REPLACE, &Message::NewRoute(way_message(way)))
}

/// Removes a route; absent is fine.
pub(crate) fn drop_way(socket: &mut Socket, way: &Way) -> Result<(), Failure> {
    absent_is_fine(one(socket, 0, &Message::DelRoute(way_message(way))))
}

fn one(socket: &mut Socket, flags: u16, message: &Message) -> Result<(), Failure> {
    let mut batch = Batch::default();
    push(&mut batch, flags, message);
    socket.transact(&mut batch, |_, _| {}).map_err(|r| r.failure)
}

fn absent_is_fine(outcome: Result<(), Failure>) -> Result<(), Failure> {
    match outcome {
        Err(e) if matches!(e.errno(), Some(Errno::NOENT | Errno::SRCH)) => Ok(()),
        other => other,
    }
}

fn hop_message(link: u32, hop: &Hop) -> NeighbourMessage {
    let destination = |ip: IpAddr| {
        NeighbourAttribute::Destination(match ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        })
    };
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    let (address, mac) = match hop {
        Hop::Neighbour(ip, mac) => {
            message.header.family = family(*ip);
            (ip, mac)
        }
        Hop::Forward(mac, node) => {
            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            (node, mac)
        }
    };
    message.attributes = vec![destination(*address), NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

fn decode_hop(message: &NeighbourMessage) -> Option<Hop> {
    let mac = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => Mac::try_from(bytes.as_slice()).ok(),
        _ => None,
    })?;
    let address = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        // The codec knows addresses of forwarding entries by their bytes only.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => octets(bytes),
        _ => None,
    })?;
    if message.header.family == AddressFamily::Bridge {
        return Some(Hop::Forward(mac, address));
    }
    (message.header.state == NeighbourState::Permanent).then_some(Hop::Neighbour(address, mac))
}

fn octets(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    four.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

fn way_message(way: &Way) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(way.to.0),
        destination_prefix_length: way.to.1,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: PROTOCOL,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        flags: if way.link.is_some() { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(route_address(way.to.0)),
        RouteAttribute::Gateway(route_address(way.via)),
    ];
    message.attributes.extend(way.link.map(RouteAttribute::Oif));
    message
}

/// The link is told only where it was asked for.
fn decode_way(message: &RouteMessage) -> Option<Way> {
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let (mut to, mut via, mut link) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address),
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) if message.header.flags.contains(RouteFlags::Onlink) => {
                link = Some(*index);
            }
            _ => {}
        }
    }
    Some(Way { to: (to?, message.header.destination_prefix_length), via: via?, link })
}

fn decode_vxlan(message: &LinkMessage) -> Option<(u32, Vxlan)> {
    let (mut name, mut mac, mut mtu, mut data) = (None, None, 0, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = Mac::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::LinkInfo(infos) => {
                data = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let (mut id, mut port, mut local) = (0, 0, None);
    for info in data? {
        match info {
            InfoVxlan::Id(number) => id = *number,
            InfoVxlan::Port(number) => port = *number,
            InfoVxlan::Local(ip) => local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => local = Some(IpAddr::V6(*ip)),
            _ => {}
        }
    }
    Some((message.header.index, Vxlan { name: name?, id, port, local: local?, mac: mac?, mtu }))
}
