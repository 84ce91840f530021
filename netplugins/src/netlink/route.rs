//! rtnetlink(7): carries out operations, and asks what there is.
//!
//! [`run`] resolves names to indices on the way: a lookup rides in the same datagram as the operation that creates the link.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, NetlinkSerializable};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use rustix::io::Errno;

pub(crate) use super::op::{Mac, Op, Path, mac_text};
use super::tc;
use super::wire::{self, Frame};
use super::{Batch, Failure, Socket, device, flag, policy};
use crate::error::Error;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;

/// One address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkAddress {
    /// Index of the link.
    pub(crate) link: u32,
    pub(crate) address: (IpAddr, u8),
    /// Made by the kernel for its own use (`fe80::/64`, `127.0.0.1` has host scope instead).
    pub(crate) link_local: bool,
    /// Of global scope, and nobody's but an administrator's to remove (`IFA_F_PERMANENT`).
    pub(crate) permanent: bool,
}

/// What a link dump tells about one link.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// Operational state is "up", or the kind of link does not tell.
    pub(crate) operational: bool,
    pub(crate) loopback: bool,
    pub(crate) up: bool,
    pub(crate) mac: String,
    /// `veth`, `bridge`…; empty for hardware.
    pub(crate) kind: String,
}

/// Index of each link whose name has been asked for.
pub(crate) type Known = HashMap<String, u32>;

/// Carries out the operations in order through `socket`. `target` is the namespace a veth's other end is born in.
///
/// Everything up to an unknown link name goes in one datagram, which ends with the question for that name.
pub(crate) fn run(socket: &mut Socket, ops: &[Op], target: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    go_on(socket, ops, target, &mut Known::new())
}

/// As [`run`], where links may be known from operations before.
pub(crate) fn go_on(
    socket: &mut Socket,
    ops: &[Op],
    target: Option<BorrowedFd<'_>>,
    index: &mut Known,
) -> Result<(), Error> {
    let mut next = 0;
    while next < ops.len() {
        let mut batch = Batch::default();
        let begin = next;
        let mut wanted = None;
        while let Some(op) = ops.get(next) {
            match message(op, index, target) {
                Ok((flags, message)) => push(&mut batch, flags, &message),
                Err(link) => {
                    wanted = Some(link);
                    break;
                }
            }
            next += 1;
        }
        if let Some(link) = &wanted {
            push(&mut batch, 0, &Message::GetLink(by_name(link)));
        }
        let outcome = socket.transact(&mut batch, |_, frame| {
            if let Some(link) = decode_link(&frame) {
                index.insert(link.name, link.index);
            }
        });
        outcome.map_err(|r| {
            let at = begin + r.index.unwrap_or_default();
            let doing = match ops.get(at) {
                Some(op) if at < next => op.to_string(),
                _ => format!("find link {}", wanted.as_deref().unwrap_or_default()),
            };
            Error::Kernel { doing, source: r.failure }
        })?;
        if let Some(link) = wanted.filter(|l| !index.contains_key(l)) {
            return Err(Error::Kernel {
                doing: format!("find link {link}"),
                source: Failure::Malformed("no answer"),
            });
        }
    }
    Ok(())
}

/// All links of the socket's namespace.
pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>, Failure> {
    let request = Message::GetLink(LinkMessage::default());
    socket.dump(RTM_GETLINK, &body(&request), |frame| decode_link(&frame))
}

/// All addresses of the socket's namespace.
pub(crate) fn addresses(socket: &mut Socket) -> Result<Vec<LinkAddress>, Failure> {
    let request = Message::GetAddress(AddressMessage::default());
    socket.dump(RTM_GETADDR, &body(&request), |frame| decode_address(&frame))
}

/// One link, or `None`.
pub(crate) fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>, Failure> {
    let mut batch = Batch::default();
    push(&mut batch, 0, &Message::GetLink(by_name(name)));
    let mut found = None;
    match socket.transact(&mut batch, |_, frame| found = decode_link(&frame)) {
        Ok(()) => Ok(found),
        Err(r) if r.failure.errno() == Some(Errno::NODEV) => Ok(None),
        Err(r) => Err(r.failure),
    }
}

/// Everything about all links of the socket's namespace.
pub(crate) fn all_details(socket: &mut Socket) -> Result<Vec<device::Details>, Failure> {
    let request = Message::GetLink(LinkMessage::default());
    socket.dump(RTM_GETLINK, &body(&request), |frame| details_of(&frame))
}

/// What one message tells of a link.
pub(crate) fn details_of(frame: &Frame<'_>) -> Option<device::Details> {
    match decode(frame)? {
        Message::NewLink(message) => Some(device::decode(message)),
        _ => None,
    }
}

/// Everything about one link, or `None`.
pub(crate) fn details(socket: &mut Socket, name: &str) -> Result<Option<device::Details>, Failure> {
    let mut batch = Batch::default();
    push(&mut batch, 0, &Message::GetLink(by_name(name)));
    let mut found = None;
    match socket.transact(&mut batch, |_, frame| found = details_of(&frame)) {
        Ok(()) => Ok(found),
        Err(r) if r.failure.errno() == Some(Errno::NODEV) => Ok(None),
        Err(r) => Err(r.failure),
    }
}

/// Deletes a link; absent is fine. Waits for RCU grace periods, some 30 ms: never in a pod's way.
pub(crate) fn delete(socket: &mut Socket, name: &str) -> Result<(), Failure> {
    let mut batch = Batch::default();
    push(&mut batch, 0, &Message::DelLink(by_name(name)));
    match socket.transact(&mut batch, |_, _| {}) {
        Ok(()) => Ok(()),
        Err(r) if r.failure.errno() == Some(Errno::NODEV) => Ok(()),
        Err(r) => Err(r.failure),
    }
}

/// Name of the link by which the node reaches an address.
pub(crate) fn output(socket: &mut Socket, address: IpAddr) -> Result<Option<String>, Failure> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(address);
    request.header.destination_prefix_length = crate::cidr::width(address);
    request.attributes.push(RouteAttribute::Destination(route_address(address)));
    let mut batch = Batch::default();
    push(&mut batch, 0, &Message::GetRoute(request));
    let mut index = None;
    match socket.transact(&mut batch, |_, frame| index = index.or(decode_output(&frame))) {
        Ok(()) => {}
        Err(r) if r.failure.errno() == Some(Errno::NETUNREACH) => return Ok(None),
        Err(r) => return Err(r.failure),
    }
    Ok(links(socket)?.into_iter().find(|l| Some(l.index) == index).map(|l| l.name))
}

/// Smallest MTU among the links that default routes lead to; `None` without a default route.
pub(crate) fn uplink_mtu(socket: &mut Socket) -> Result<Option<u32>, Failure> {
    let mut uplinks = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let request = Message::GetRoute(request);
        uplinks.extend(socket.dump(RTM_GETROUTE, &body(&request), |frame| decode_default_route(&frame))?);
    }
    let links = links(socket)?;
    Ok(links.iter().filter(|l| uplinks.contains(&l.index)).map(|l| l.mtu).min())
}

/// Request flags and message of an operation, or the link name whose index is needed first.
fn message(
    op: &Op,
    index: &HashMap<String, u32>,
    target: Option<BorrowedFd<'_>>,
) -> Result<(u16, Message), String> {
    let known = |link: &String| index.get(link).copied().ok_or_else(|| link.clone());
    let new = flag::CREATE | flag::EXCL;
    Ok(match op {
        Op::Bridge { name, mac, mtu } => {
            let mut message = by_name(name);
            message.attributes.extend(mtu.map(LinkAttribute::Mtu));
            message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
            message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
            (flag::CREATE, Message::NewLink(message))
        }
        Op::Veth { .. } => (new, Message::NewLink(veth(op, target))),
        Op::Ifb { name, mtu } => {
            let mut message = by_name(name);
            message.attributes.push(LinkAttribute::Mtu(*mtu));
            message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]));
            (new, Message::NewLink(message))
        }
        Op::Limit { link, bucket } => {
            (flag::CREATE | flag::REPLACE, Message::NewQueueDiscipline(tc::bucket(known(link)?, *bucket)))
        }
        Op::Ingress(link) => (new, Message::NewQueueDiscipline(tc::ingress(known(link)?))),
        Op::NoIngress(link) => (0, Message::DelQueueDiscipline(tc::ingress(known(link)?))),
        Op::Divert { link, to } => (new, Message::NewTrafficFilter(tc::divert(known(link)?, known(to)?))),
        Op::Prepare { link, quiet, localnet } => (0, Message::SetLink(prepare(link, *quiet, *localnet))),
        Op::Up(link) => {
            let mut message = by_name(link);
            set_up(&mut message);
            (0, Message::SetLink(message))
        }
        Op::Down(link) => {
            let mut message = by_name(link);
            message.header.change_mask = LinkFlags::Up;
            (0, Message::SetLink(message))
        }
        Op::Promiscuous(link) => {
            let mut message = by_name(link);
            message.header.flags = LinkFlags::Promisc;
            message.header.change_mask = LinkFlags::Promisc;
            (0, Message::SetLink(message))
        }
        Op::Address { link, address, prefix } | Op::Subnet { link, address, prefix, connected: true } => {
            let message = address_message(known(link)?, *address, *prefix, AddressFlags::Nodad);
            (flag::CREATE | flag::REPLACE, Message::NewAddress(message))
        }
        Op::Subnet { link, address, prefix, connected: false } => {
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            let message = address_message(known(link)?, *address, *prefix, flags);
            (flag::CREATE | flag::REPLACE, Message::NewAddress(message))
        }
        Op::Checked { link, address, prefix } => {
            let message = address_message(known(link)?, *address, *prefix, AddressFlags::empty());
            (flag::CREATE | flag::REPLACE, Message::NewAddress(message))
        }
        Op::DropAddress { link, address, prefix } => {
            let message = address_message(known(link)?, *address, *prefix, AddressFlags::empty());
            (0, Message::DelAddress(message))
        }
        Op::Path { link, path } => {
            (flag::CREATE | flag::APPEND, Message::NewRoute(detailed(known(link)?, path)))
        }
        Op::Neighbour { link, address, mac } => {
            (flag::CREATE | flag::REPLACE, Message::NewNeighbour(neighbour(known(link)?, *address, *mac)))
        }
        Op::Route { link, to, via } => {
            (flag::CREATE | flag::REPLACE, Message::NewRoute(route(known(link)?, *to, *via)))
        }
        Op::Device(device) => return device::message(device, index, target),
        Op::Policy(policy) => return policy::message(policy, index),
    })
}

fn veth(op: &Op, target: Option<BorrowedFd<'_>>) -> LinkMessage {
    let mut message = LinkMessage::default();
    let Op::Veth { name, mac, mtu, peer, peer_mac } = op else { return message };
    let mut other = by_name(peer);
    other.attributes.push(LinkAttribute::Address(peer_mac.to_vec()));
    other.attributes.push(LinkAttribute::Mtu(*mtu));
    if let Some(fd) = target {
        other.attributes.push(LinkAttribute::NetNsFd(fd.as_raw_fd()));
    }
    message.attributes = vec![
        LinkAttribute::IfName(name.clone()),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(*mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    message
}

fn prepare(link: &str, quiet: bool, localnet: bool) -> LinkMessage {
    /// `IFLA_INET_CONF`, which holds one attribute per setting to change.
    const CONF: u16 = 1;
    /// `IPV4_DEVCONF_ROUTE_LOCALNET` of `linux/ip.h`.
    const ROUTE_LOCALNET: u16 = 26;
    let mut message = by_name(link);
    let mut families = Vec::new();
    if localnet {
        let mut settings = Vec::new();
        wire::put(&mut settings, ROUTE_LOCALNET, &1u32.to_ne_bytes());
        families.push(AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(CONF, settings))]));
    }
    if quiet {
        families.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]));
    }
    message.attributes.push(LinkAttribute::AfSpecUnspec(families));
    message
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

pub(super) fn by_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn address_message(index: u32, address: IpAddr, prefix: u8, flags: AddressFlags) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Flags(flags),
    ];
    message
}

fn neighbour(index: u32, address: IpAddr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(a) => NeighbourAddress::Inet(a),
            IpAddr::V6(a) => NeighbourAddress::Inet6(a),
        }),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    message
}

fn route(index: u32, to: (IpAddr, u8), via: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(to.0),
        destination_prefix_length: to.1,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: if via.is_none() && to.0.is_ipv4() { RouteScope::Link } else { RouteScope::Universe },
        kind: RouteType::Unicast,
        // The next hop is on the link by decree: its own route need not exist.
        flags: if via.is_some() { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Oif(index));
    if to.1 > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(to.0)));
    }
    if let Some(via) = via {
        message.attributes.push(RouteAttribute::Gateway(route_address(via)));
    }
    message
}

pub(super) fn detailed(index: u32, path: &Path) -> RouteMessage {
    let mut message = route(index, path.to, path.via);
    message.header.flags = RouteFlags::empty();
    message.header.protocol = RouteProtocol::Boot;
    if let Some(scope) = path.scope {
        message.header.scope = RouteScope::from(scope);
    }
    if let Some(table) = path.table {
        message.header.table = u8::try_from(table).unwrap_or_default();
        message.attributes.push(RouteAttribute::Table(table));
    }
    message.attributes.extend(path.source.map(|s| RouteAttribute::PrefSource(route_address(s))));
    message.attributes.extend(path.priority.map(RouteAttribute::Priority));
    let metrics: Vec<RouteMetric> =
        path.mtu.map(RouteMetric::Mtu).into_iter().chain(path.advmss.map(RouteMetric::Advmss)).collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

pub(super) fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(crate) fn decode(frame: &Frame<'_>) -> Option<Message> {
    use netlink_packet_core::ParseableParametrized;
    Message::parse_with_param(frame.payload, frame.kind).ok()
}

fn decode_link(frame: &Frame<'_>) -> Option<Link> {
    if frame.kind != RTM_NEWLINK {
        return None;
    }
    let Message::NewLink(message) = decode(frame)? else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        operational: true,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        up: message.header.flags.contains(LinkFlags::Up),
        mac: String::new(),
        kind: String::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => {
                link.mac = Mac::try_from(bytes).map(mac_text).unwrap_or_default();
            }
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(info_kind).unwrap_or_default();
            }
            LinkAttribute::OperState(state) => link.operational = matches!(state, State::Up | State::Unknown),
            _ => {}
        }
    }
    Some(link)
}

fn info_kind(info: &LinkInfo) -> Option<String> {
    match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

fn decode_address(frame: &Frame<'_>) -> Option<LinkAddress> {
    let Message::NewAddress(message) = decode(frame)? else { return None };
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(ip) if local => Some(*ip),
            AddressAttribute::Address(ip) if !local => Some(*ip),
            _ => None,
        })
    };
    let address = find(true).or_else(|| find(false))?;
    Some(LinkAddress {
        link: message.header.index,
        address: (address, message.header.prefix_len),
        link_local: address.is_ipv6() && message.header.scope == AddressScope::Link,
        permanent: message.header.flags.contains(AddressHeaderFlags::Permanent)
            && message.header.scope == AddressScope::Universe,
    })
}

fn decode_default_route(frame: &Frame<'_>) -> Option<u32> {
    let Message::NewRoute(message) = decode(frame)? else { return None };
    let header = &message.header;
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return None;
    }
    oif(&message)
}

fn decode_output(frame: &Frame<'_>) -> Option<u32> {
    let Message::NewRoute(message) = decode(frame)? else { return None };
    oif(&message)
}

fn oif(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

pub(super) fn push(batch: &mut Batch, flags: u16, message: &Message) {
    batch.push(message.message_type(), flags, |out| out.extend_from_slice(&body(message)));
}

pub(super) fn body(message: &Message) -> Vec<u8> {
    let mut bytes = vec![0; NetlinkSerializable::buffer_len(message)];
    message.serialize(&mut bytes);
    bytes
}
