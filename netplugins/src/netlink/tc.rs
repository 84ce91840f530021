//! Traffic control (tc(8)): token buckets, and sending what comes in by one link through another.
//!
//! A queue shapes what *leaves* a link. What leaves the node's end of a pod's link is what the pod receives; what the pod
//! sends comes in there, and is sent through an `ifb` link to be shaped on its way out of that.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::wire::{attribute, nest, put, put_text, u32_at};
use super::{Failure, Socket, route};
use crate::bandwidth::Bucket;

const TCA_OPTIONS: u16 = 2;
/// The ingress queue: the handle it always has, and where it hangs.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// A token bucket as the root queue of a link.
pub(super) fn bucket(link: u32, bucket: Bucket) -> TcMessage {
    queue(link, "tbf", TcHandle { major: 1, minor: 0 }, TcHandle::ROOT, &bucket_options(bucket))
}

/// The place where filters of incoming packets hang.
pub(super) fn ingress(link: u32) -> TcMessage {
    queue(link, "ingress", INGRESS, TcHandle::INGRESS, &[])
}

/// A filter that sends every incoming packet of `link` out by `to`.
pub(super) fn divert(link: u32, to: u32) -> TcMessage {
    const EVERY_PROTOCOL: u16 = 3; // ETH_P_ALL
    const PRIORITY: u32 = 1;
    let mut message = queue(link, "u32", TcHandle::UNSPEC, INGRESS, &divert_options(to));
    message.header.info = PRIORITY << 16 | u32::from(EVERY_PROTOCOL.to_be());
    message
}

/// Rate in bytes per second and limit in bytes of a link's token bucket; `None`: it has none.
pub(crate) fn found(socket: &mut Socket, link: u32) -> Result<Option<(u64, u32)>, Failure> {
    const RTM_NEWQDISC: u16 = 36;
    const RTM_GETQDISC: u16 = 38;
    /// Of the link in `struct tcmsg`.
    const LINK_AT: usize = 4;
    let body = route::body(&Message::GetQueueDiscipline(TcMessage::with_index(link.cast_signed())));
    // The kernel lists the queues of every link.
    let found = socket.dump(RTM_GETQDISC, &body, |frame| {
        let own = frame.kind == RTM_NEWQDISC && u32_at(frame.payload, LINK_AT)? == link;
        own.then(|| decode_bucket(frame.payload)).flatten()
    })?;
    Ok(found.first().copied())
}

fn decode_bucket(payload: &[u8]) -> Option<(u64, u32)> {
    const HEADER: usize = 20;
    const KIND: u16 = 1;
    const PARMS: u16 = 1;
    const RATE64: u16 = 4;
    /// In `struct tc_tbf_qopt`.
    const RATE_AT: usize = 8;
    const LIMIT_AT: usize = 24;
    let attributes = payload.get(HEADER..)?;
    if attribute(attributes, KIND)? != b"tbf\0" {
        return None;
    }
    let options = attribute(attributes, TCA_OPTIONS)?;
    let parameters = attribute(options, PARMS)?;
    let wide = attribute(options, RATE64).and_then(|b| <[u8; 8]>::try_from(b).ok()).map(u64::from_ne_bytes);
    let rate = wide.or_else(|| u32_at(parameters, RATE_AT).map(u64::from))?;
    Some((rate, u32_at(parameters, LIMIT_AT)?))
}

fn queue(link: u32, kind: &str, handle: TcHandle, parent: TcHandle, options: &[u8]) -> TcMessage {
    let mut message = TcMessage::with_index(link.cast_signed());
    message.header.handle = handle;
    message.header.parent = parent;
    message.attributes = vec![
        TcAttribute::Kind(kind.to_owned()),
        TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options.to_vec())),
    ];
    message
}

/// `struct tc_tbf_qopt`, then rate and burst in full width: the kernel computes its own tables and ticks from those.
fn bucket_options(bucket: Bucket) -> Vec<u8> {
    const PARMS: u16 = 1;
    const RATE64: u16 = 4;
    const BURST: u16 = 6;
    const ETHERNET: u8 = 1;
    let mut parameters = Vec::new();
    // rate: struct tc_ratespec, the link layer named so that no table is needed; then no peak rate.
    for rate in [u32::try_from(bucket.rate).unwrap_or(u32::MAX), 0] {
        parameters.extend([0, ETHERNET, 0, 0, 0, 0, 0, 0]);
        parameters.extend(rate.to_ne_bytes());
    }
    for number in [bucket.limit, 0, 0] {
        parameters.extend(number.to_ne_bytes());
    }
    let mut out = Vec::new();
    put(&mut out, PARMS, &parameters);
    put(&mut out, RATE64, &bucket.rate.to_ne_bytes());
    put(&mut out, BURST, &bucket.burst.to_ne_bytes());
    out
}

/// A `u32` filter whose one key matches whatever there is, with the action `mirred egress redirect`.
fn divert_options(to: u32) -> Vec<u8> {
    const SELECTOR: u16 = 5;
    const ACTIONS: u16 = 7;
    const TERMINAL: u8 = 1;
    const PARMS: u16 = 2;
    const STOLEN: u32 = 4;
    const EGRESS_REDIRECT: u32 = 1;
    let mut selector = vec![TERMINAL, 0, 1, 0];
    selector.resize(32, 0); // struct tc_u32_sel, and one struct tc_u32_key with mask 0
    let mut mirror = Vec::new(); // struct tc_mirred
    for number in [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to] {
        mirror.extend(number.to_ne_bytes());
    }
    let mut out = Vec::new();
    put(&mut out, SELECTOR, &selector);
    nest(&mut out, ACTIONS, |out| {
        nest(out, 1, |out| {
            put_text(out, 1, "mirred");
            nest(out, 2, |out| put(out, PARMS, &mirror));
        });
    });
    out
}
