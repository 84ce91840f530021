//! Duplicate address detection (RFC 4862): waiting for it by the kernel's events instead of by sleeping.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::op::Op;
use super::watch::LinkWatch;
use super::{Failure, Socket, route};

const RTM_GETADDR: u16 = 22;
/// The kernel takes two seconds at most; the reference plugins wait for five.
const LIMIT: Duration = Duration::from_secs(5);

/// A subscription to changes of IPv6 addresses in the namespace of the thread that made it.
#[derive(Debug)]
pub(crate) struct Watch(LinkWatch);

/// Divides a plan: everything up to the link being up, with addresses to be checked; and the routes, which need them.
pub(crate) fn split(ops: Vec<Op>) -> (Vec<Op>, Vec<Op>) {
    let (routes, first): (Vec<Op>, Vec<Op>) = ops.into_iter().partition(|op| matches!(op, Op::Path { .. }));
    let checked = first.into_iter().map(|op| match op {
        Op::Subnet { link, address, prefix, .. } if address.is_ipv6() => {
            Op::Checked { link, address, prefix }
        }
        other => other,
    });
    (checked.collect(), routes)
}

impl Watch {
    pub(crate) fn open() -> Result<Self, Failure> {
        LinkWatch::addresses().map(Self)
    }

    /// Waits until none of these addresses is tentative any more; a duplicate is an error.
    pub(crate) fn settle(&mut self, socket: &mut Socket, addresses: &[IpAddr]) -> Result<(), Failure> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let flags = flags(socket)?;
            let all = || flags.iter().filter(|(address, _)| addresses.contains(address));
            if all().any(|(_, flags)| flags.contains(AddressFlags::Dadfailed)) {
                return Err(Failure::Duplicate);
            }
            if !all().any(|(_, flags)| flags.contains(AddressFlags::Tentative)) {
                return Ok(());
            }
            if !self.0.changed(deadline)? {
                return Err(Failure::Tentative);
            }
        }
    }
}

fn flags(socket: &mut Socket) -> Result<Vec<(IpAddr, AddressFlags)>, Failure> {
    let request = Message::GetAddress(AddressMessage::default());
    socket.dump(RTM_GETADDR, &route::body(&request), |frame| {
        let Message::NewAddress(message) = route::decode(&frame)? else { return None };
        let address = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        let flags = message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        });
        Some((address?, flags?))
    })
}
