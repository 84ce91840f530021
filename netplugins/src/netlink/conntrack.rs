//! Connection tracking (ctnetlink): forgetting flows that a changed host port has made wrong.
//!
//! A UDP client that keeps sending to a port holds its entry alive, and with it the decision made before the port was
//! published, or the address of the pod that had it: the flow is a black hole until the entry goes.

use std::net::IpAddr;

use rustix::io::Errno;

use super::wire::{Frame, attribute, nest, put};
use super::{Batch, Failure, Socket};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// Deletions per datagram: their acknowledgements must fit the receive buffer.
const PER_BATCH: usize = 64;

/// One direction of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) source: Option<IpAddr>,
    pub(crate) destination: Option<IpAddr>,
    pub(crate) protocol: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

/// A tracked flow: as it came in, and as its replies are expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) original: Tuple,
    pub(crate) reply: Tuple,
}

/// Forgets the flows that are chosen; how many there were.
pub(crate) fn forget(socket: &mut Socket, chosen: impl Fn(&Flow) -> bool) -> Result<usize, Failure> {
    let all = socket.dump(GET, &[0, 0, 0, 0], |frame| decode(&frame))?;
    let doomed: Vec<Flow> = all.into_iter().filter(|flow| chosen(flow)).collect();
    for chunk in doomed.chunks(PER_BATCH) {
        let mut batch = Batch::default();
        for flow in chunk {
            let family = if flow.original.source.is_some_and(|ip| ip.is_ipv6()) { AF_INET6 } else { AF_INET };
            batch.push(DELETE, 0, |out| {
                out.extend_from_slice(&[family, 0, 0, 0]);
                nest(out, CTA_TUPLE_ORIG, |out| encode(out, &flow.original));
            });
        }
        match socket.transact(&mut batch, |_, _| {}) {
            // It ended by itself meanwhile; the others of the datagram are done nevertheless.
            Err(r) if r.failure.errno() != Some(Errno::NOENT) => return Err(r.failure),
            _ => {}
        }
    }
    Ok(doomed.len())
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
// enum ctattr_type, ctattr_tuple, ctattr_ip, ctattr_l4proto of linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

pub(crate) fn decode(frame: &Frame<'_>) -> Option<Flow> {
    let body = frame.payload.get(4..)?;
    let tuple = |kind| attribute(body, kind).map(decode_tuple);
    Some(Flow { original: tuple(CTA_TUPLE_ORIG)?, reply: tuple(CTA_TUPLE_REPLY)? })
}

fn decode_tuple(tuple: &[u8]) -> Tuple {
    let (ip, proto) = (attribute(tuple, CTA_TUPLE_IP), attribute(tuple, CTA_TUPLE_PROTO));
    let (ip, proto) = (ip.unwrap_or_default(), proto.unwrap_or_default());
    let address = |four, six| {
        let v4 = attribute(ip, four).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(IpAddr::from);
        v4.or_else(|| attribute(ip, six).and_then(|b| <[u8; 16]>::try_from(b).ok()).map(IpAddr::from))
    };
    let port =
        |kind| attribute(proto, kind).and_then(|b| <[u8; 2]>::try_from(b).ok()).map_or(0, u16::from_be_bytes);
    Tuple {
        source: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC),
        destination: address(CTA_IP_V4_DST, CTA_IP_V6_DST),
        protocol: attribute(proto, CTA_PROTO_NUM).and_then(|b| b.first().copied()).unwrap_or_default(),
        source_port: port(CTA_PROTO_SRC_PORT),
        destination_port: port(CTA_PROTO_DST_PORT),
    }
}

fn encode(out: &mut Vec<u8>, tuple: &Tuple) {
    nest(out, CTA_TUPLE_IP, |out| {
        for (address, four, six) in
            [(tuple.source, CTA_IP_V4_SRC, CTA_IP_V6_SRC), (tuple.destination, CTA_IP_V4_DST, CTA_IP_V6_DST)]
        {
            match address {
                Some(IpAddr::V4(ip)) => put(out, four, &ip.octets()),
                Some(IpAddr::V6(ip)) => put(out, six, &ip.octets()),
                None => {}
            }
        }
    });
    nest(out, CTA_TUPLE_PROTO, |out| {
        put(out, CTA_PROTO_NUM, &[tuple.protocol]);
        put(out, CTA_PROTO_SRC_PORT, &tuple.source_port.to_be_bytes());
        put(out, CTA_PROTO_DST_PORT, &tuple.destination_port.to_be_bytes());
    });
}
