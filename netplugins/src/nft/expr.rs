//! Expressions of nf_tables rules: the ten kinds the ruleset needs.
//!
//! Registers: `1` to `4` hold 16 bytes each; `8` to `23` are the same space in words of 4, so that `9` is the second
//! word of register 1. A concatenated key is laid out over consecutive words.

use crate::netlink::wire::{nest, put, put_be32, put_text};

use super::NFTA_DATA_VALUE;

/// A register number.
pub(crate) type Register = u32;

/// The verdict register.
const VERDICT: Register = 0;

/// Packet metadata (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    /// Input interface name.
    InputName = 6,
    /// Output interface name.
    OutputName = 7,
    /// Family: 2 or 10.
    Family = 15,
    /// Transport protocol.
    Transport = 16,
}

/// Start of payload offsets (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    /// Link layer header.
    Link = 0,
    /// Network header.
    Network = 1,
    /// Transport header.
    Transport = 2,
}

/// End of a rule.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// Drops the packet.
    Drop,
    /// Lets the packet pass this table.
    Accept,
    /// Continues in another chain, and comes back.
    Jump(String),
    /// Continues in another chain, for good.
    Goto(&'static str),
}

/// One expression.
#[derive(Clone, Debug)]
pub(crate) enum Expr {
    /// Loads metadata.
    Meta(Meta, Register),
    /// Loads packet bytes: base, offset, length.
    Payload(Base, u32, u32, Register),
    /// Goes on if the register begins with these bytes.
    Equal(Register, Vec<u8>),
    /// Goes on unless the register begins with these bytes.
    NotEqual(Register, Vec<u8>),
    /// Loads the connection's status bits (`enum ip_conntrack_status`).
    ConntrackStatus(Register),
    /// Keeps these bits of a 4-byte register.
    Mask(Register, u32),
    /// Loads the type of the destination address (`RTN_*`).
    FibDestinationType(Register),
    /// Goes on if the set holds the key.
    In(&'static str, Register),
    /// Goes on unless the set holds the key.
    NotIn(&'static str, Register),
    /// Goes on if the map holds the key, whose data it loads.
    Map(&'static str, Register, Register),
    /// Rewrites the destination from registers: family, address, port.
    DestinationNat(u8, Register, Register),
    /// Settles the source on an address from a register: family, address.
    SourceNat(u8, Register),
    /// Rewrites the source to the output interface's address.
    Masquerade,
    /// Goes on if the connection is established, or related to one that is. Written the way iptables writes it, so that
    /// iptables can list the table.
    Established,
    /// Counts.
    Counter,
    /// Ends the rule.
    Verdict(Verdict),
}

impl Expr {
    /// Appends name and data attributes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Meta(key, to) => expression(out, "meta", |out| {
                put_be32(out, 1, *to);
                put_be32(out, 2, *key as u32);
            }),
            Self::Payload(base, offset, length, to) => expression(out, "payload", |out| {
                put_be32(out, 1, *to);
                put_be32(out, 2, *base as u32);
                put_be32(out, 3, *offset);
                put_be32(out, 4, *length);
            }),
            Self::Equal(from, value) => compare(out, 0, *from, value),
            Self::NotEqual(from, value) => compare(out, 1, *from, value),
            Self::ConntrackStatus(to) => expression(out, "ct", |out| {
                const STATUS: u32 = 2;
                put_be32(out, 1, *to);
                put_be32(out, 2, STATUS);
            }),
            Self::Mask(register, bits) => expression(out, "bitwise", |out| {
                put_be32(out, 1, *register);
                put_be32(out, 2, *register);
                put_be32(out, 3, 4);
                nest(out, 4, |out| put(out, NFTA_DATA_VALUE, &bits.to_ne_bytes()));
                nest(out, 5, |out| put(out, NFTA_DATA_VALUE, &[0; 4]));
            }),
            Self::FibDestinationType(to) => expression(out, "fib", |out| {
                const ADDRESS_TYPE: u32 = 3;
                const DESTINATION: u32 = 2;
                put_be32(out, 1, *to);
                put_be32(out, 2, ADDRESS_TYPE);
                put_be32(out, 3, DESTINATION);
            }),
            Self::In(set, from) => lookup(out, set, *from, None, 0),
            Self::NotIn(set, from) => lookup(out, set, *from, None, 1),
            Self::Map(set, from, to) => lookup(out, set, *from, Some(*to), 0),
            Self::DestinationNat(family, address, port) => expression(out, "nat", |out| {
                put_be32(out, 1, 1);
                put_be32(out, 2, u32::from(*family));
                put_be32(out, 3, *address);
                put_be32(out, 5, *port);
            }),
            Self::SourceNat(family, address) => expression(out, "nat", |out| {
                put_be32(out, 1, 0);
                put_be32(out, 2, u32::from(*family));
                put_be32(out, 3, *address);
            }),
            Self::Masquerade => expression(out, "masq", |_| {}),
            Self::Counter => expression(out, "counter", |_| {}),
            Self::Established => expression(out, "match", |out| {
                put_text(out, 1, "conntrack");
                put_be32(out, 2, CONNTRACK_REVISION);
                put(out, 3, &conntrack_state(STATE_ESTABLISHED | STATE_RELATED));
            }),
            Self::Verdict(verdict) => expression(out, "immediate", |out| {
                put_be32(out, 1, VERDICT);
                nest(out, 2, |out| nest(out, 2, |out| verdict.encode(out)));
            }),
        }
    }
}

impl Verdict {
    fn encode(&self, out: &mut Vec<u8>) {
        const NF_DROP: i32 = 0;
        const NF_ACCEPT: i32 = 1;
        const NFT_JUMP: i32 = -3;
        const NFT_GOTO: i32 = -4;
        match self {
            Self::Drop => put(out, 1, &NF_DROP.to_be_bytes()),
            Self::Accept => put(out, 1, &NF_ACCEPT.to_be_bytes()),
            Self::Jump(chain) => {
                put(out, 1, &NFT_JUMP.to_be_bytes());
                put_text(out, 2, chain);
            }
            Self::Goto(chain) => {
                put(out, 1, &NFT_GOTO.to_be_bytes());
                put_text(out, 2, chain);
            }
        }
    }
}

/// `xt_conntrack` of `linux/netfilter/xt_conntrack.h`.
const CONNTRACK_REVISION: u32 = 3;
const STATE_ESTABLISHED: u16 = 1 << 1;
const STATE_RELATED: u16 = 1 << 2;

/// `struct xt_conntrack_mtinfo3` that looks at the state only: eight addresses, two times, six ports, flags, masks, six
/// upper ports, padded to eight bytes.
fn conntrack_state(states: u16) -> Vec<u8> {
    const BYTES: usize = 168;
    const MATCH_FLAGS_AT: usize = 146;
    const STATE_MASK_AT: usize = 150;
    const STATE: u16 = 1;
    let mut info = vec![0; BYTES];
    for (at, value) in [(MATCH_FLAGS_AT, STATE), (STATE_MASK_AT, states)] {
        if let Some(field) = info.get_mut(at..at + 2) {
            field.copy_from_slice(&value.to_ne_bytes());
        }
    }
    info
}

fn expression(out: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    put_text(out, 1, name);
    nest(out, 2, write);
}

fn compare(out: &mut Vec<u8>, operator: u32, from: Register, value: &[u8]) {
    expression(out, "cmp", |out| {
        put_be32(out, 1, from);
        put_be32(out, 2, operator);
        nest(out, 3, |out| put(out, NFTA_DATA_VALUE, value));
    });
}

fn lookup(out: &mut Vec<u8>, set: &str, from: Register, to: Option<Register>, flags: u32) {
    expression(out, "lookup", |out| {
        put_text(out, 1, set);
        put_be32(out, 2, from);
        if let Some(to) = to {
            put_be32(out, 3, to);
        }
        if flags != 0 {
            put_be32(out, 5, flags);
        }
    });
}
