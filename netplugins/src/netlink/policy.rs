//! Rules that choose a routing table by source address, and routes as they are found: ip-rule(8), ip-route(8).

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::op::Path;
use super::{Failure, Socket, flag, route};
use crate::cidr::width;

const RTM_GETRULE: u16 = 34;
const RTM_GETROUTE: u16 = 26;
/// Table of the kernel's own addresses.
pub(crate) const LOCAL_TABLE: u32 = 255;
/// `RTPROT_KERNEL`.
const KERNEL: u8 = 2;

/// Packets from that address, or from anywhere, use that table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) from: Option<(IpAddr, u8)>,
    pub(crate) table: u32,
    /// Order among the rules; given by the kernel when absent.
    pub(crate) priority: Option<u32>,
}

/// A change of rules or the end of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Adds a rule.
    Add(Rule),
    /// Removes a rule.
    Drop(Rule),
    /// Removes a route.
    DropPath {
        /// The link.
        link: String,
        /// The route.
        path: Path,
    },
    /// Adds a route, or replaces the one like it.
    ReplacePath {
        /// The link.
        link: String,
        /// The route.
        path: Path,
    },
}

/// A route that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Index of its link.
    pub(crate) link: u32,
    pub(crate) path: Path,
    /// The kernel made it for an address of its own.
    pub(crate) by_kernel: bool,
}

impl Rule {
    /// Packets from one address.
    pub(crate) fn from(address: IpAddr, table: u32) -> Self {
        Self { from: Some((address, width(address))), table, priority: None }
    }
}

/// All rules of the socket's namespace, both families.
pub(crate) fn rules(socket: &mut Socket) -> Result<Vec<Rule>, Failure> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let found =
            socket.dump(RTM_GETRULE, &route::body(&Message::GetRule(request)), |frame| match route::decode(
                &frame,
            )? {
                Message::NewRule(message) => Some(decode_rule(&message)),
                _ => None,
            });
        match found {
            Ok(found) => all.extend(found),
            // A kernel without IPv6.
            Err(e) if e.errno() == Some(rustix::io::Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// All unicast routes of the socket's namespace, in every table but the kernel's own.
pub(crate) fn paths(socket: &mut Socket) -> Result<Vec<Held>, Failure> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let body = route::body(&Message::GetRoute(request));
        all.extend(socket.dump(RTM_GETROUTE, &body, |frame| match route::decode(&frame)? {
            Message::NewRoute(message) => decode_path(&message),
            _ => None,
        })?);
    }
    all.retain(|held| held.path.table != Some(LOCAL_TABLE));
    Ok(all)
}

/// Request flags and message, or the link name whose index is needed first.
pub(super) fn message(policy: &Policy, index: &HashMap<String, u32>) -> Result<(u16, Message), String> {
    let known = |link: &String| index.get(link).copied().ok_or_else(|| link.clone());
    Ok(match policy {
        Policy::Add(rule) => (flag::CREATE | flag::EXCL, Message::NewRule(encode_rule(rule))),
        Policy::Drop(rule) => (0, Message::DelRule(encode_rule(rule))),
        Policy::DropPath { link, path } => {
            let mut message = route::detailed(known(link)?, path);
            // Any scope, any protocol: the route is told by what remains.
            message.header.scope = 255.into();
            message.header.protocol = 0.into();
            (0, Message::DelRoute(message))
        }
        Policy::ReplacePath { link, path } => {
            (flag::CREATE | flag::REPLACE, Message::NewRoute(route::detailed(known(link)?, path)))
        }
    })
}

fn encode_rule(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.action = RuleAction::ToTable;
    header.table = u8::try_from(rule.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.family = AddressFamily::Inet;
    if let Some((address, length)) = rule.from {
        header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        header.src_len = length;
        message.attributes.push(RuleAttribute::Source(address));
    }
    message.attributes.push(RuleAttribute::Table(rule.table));
    message.attributes.extend(rule.priority.map(RuleAttribute::Priority));
    message
}

fn decode_rule(message: &RuleMessage) -> Rule {
    let mut rule = Rule { from: None, table: message.header.table.into(), priority: None };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => rule.from = Some((*address, message.header.src_len)),
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Priority(priority) => rule.priority = Some(*priority),
            _ => {}
        }
    }
    rule
}

fn decode_path(message: &RouteMessage) -> Option<Held> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let anywhere: IpAddr =
        if header.address_family == AddressFamily::Inet { [0; 4].into() } else { [0u8; 16].into() };
    let mut path = Path::new((anywhere, header.destination_prefix_length));
    path.table = Some(header.table.into());
    path.scope = Some(header.scope.into()).filter(|scope| *scope != 0);
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Destination(to) => path.to.0 = address(to)?,
            RouteAttribute::Gateway(via) => path.via = address(via),
            RouteAttribute::PrefSource(source) => path.source = address(source),
            RouteAttribute::Priority(priority) => path.priority = Some(*priority),
            RouteAttribute::Table(table) => path.table = Some(*table),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => path.mtu = Some(*mtu),
                        RouteMetric::Advmss(advmss) => path.advmss = Some(*advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Held { link: link?, path, by_kernel: u8::from(header.protocol) == KERNEL })
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Some((address, length)) => write!(f, "rule from {address}/{length} lookup {}", self.table),
            None => write!(f, "rule from all lookup {}", self.table),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(rule) => write!(f, "add {rule}"),
            Self::Drop(rule) => write!(f, "delete {rule}"),
            Self::DropPath { link, path } => write!(f, "delete {path} dev {link}"),
            Self::ReplacePath { link, path } => write!(f, "replace {path} dev {link}"),
        }
    }
}
