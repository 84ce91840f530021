//! Entries of the sets and maps: what one pod adds to the ruleset.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{NFTA_DATA_VALUE, NFTA_LIST_ELEM};
use crate::Protocol;
use crate::netlink::wire::{attribute, attributes, nest, put, put_be32};

/// `NFTA_SET_ELEM_USERDATA`, and in it libnftnl's first kind of field.
const USERDATA: u16 = 6;
const USER_COMMENT: u8 = 0;
/// nft's own limit.
const COMMENT_BYTES: usize = 127;

/// One entry. Keys and data are the kernel's bytes: every part in network order, padded to a word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Element {
    /// Name of the set or map.
    pub(crate) set: &'static str,
    pub(crate) key: Vec<u8>,
    /// Of maps.
    pub(crate) data: Option<Vec<u8>>,
    /// The first address behind an interval.
    pub(crate) end: bool,
    /// nft's `comment`, which here names an owner.
    pub(crate) comment: Option<String>,
}

impl Element {
    /// Membership of a pod address: `pods4` and `self4`, or their IPv6 twins.
    pub(crate) fn pod(address: IpAddr) -> [Self; 2] {
        let (pods, hairpin) = if address.is_ipv4() { ("pods4", "self4") } else { ("pods6", "self6") };
        let key = octets(address);
        [Self::plain(pods, key.clone()), Self::plain(hairpin, key.repeat(2))]
    }

    /// A host port that leads to `target`; `on`: one node address only.
    pub(crate) fn port(protocol: Protocol, on: Option<IpAddr>, port: u16, target: (IpAddr, u16)) -> Self {
        let set = match (target.0.is_ipv4(), on.is_some()) {
            (true, true) => "hpip4",
            (true, false) => "hp4",
            (false, true) => "hpip6",
            (false, false) => "hp6",
        };
        let mut key = on.map(octets).unwrap_or_default();
        key.extend([protocol.number(), 0, 0, 0]);
        key.extend(word(port));
        let mut data = octets(target.0);
        data.extend(word(target.1));
        Self { set, key, data: Some(data), end: false, comment: None }
    }

    /// An address range as its first address and, unless it runs to the end of the space, the first one behind.
    pub(crate) fn interval(base: IpAddr, prefix: u8) -> Vec<Self> {
        Self::interval_in(if base.is_ipv4() { "nomasq4" } else { "nomasq6" }, base, prefix)
    }

    /// The same in any set, of the subnet that an address is in.
    pub(crate) fn interval_in(set: &'static str, address: IpAddr, prefix: u8) -> Vec<Self> {
        let base = crate::cidr::network(address, prefix);
        let behind = match base {
            IpAddr::V4(a) => (1u64 << (32 - u32::from(prefix.min(32))))
                .checked_add(u64::from(u32::from(a)))
                .and_then(|n| u32::try_from(n).ok())
                .map(|n| IpAddr::V4(Ipv4Addr::from(n))),
            IpAddr::V6(a) => 1u128
                .checked_shl(128 - u32::from(prefix.min(128)))
                .and_then(|size| u128::from(a).checked_add(size))
                .map(|n| IpAddr::V6(Ipv6Addr::from(n))),
        };
        let first = Self::plain(set, octets(base));
        let last = behind.map(|a| Self { end: true, ..Self::plain(set, octets(a)) });
        std::iter::once(first).chain(last).collect()
    }

    /// An address with an owner.
    pub(crate) fn owned(set: &'static str, address: IpAddr, owner: &str) -> Self {
        Self { comment: Some(owner.to_owned()), ..Self::plain(set, octets(address)) }
    }

    /// A key that is no address, with an owner. [`fmt::Display`] cannot tell its parts.
    pub(crate) fn keyed(set: &'static str, key: Vec<u8>, owner: &str) -> Self {
        Self { comment: Some(owner.to_owned()), ..Self::plain(set, key) }
    }

    fn plain(set: &'static str, key: Vec<u8>) -> Self {
        Self { set, key, data: None, end: false, comment: None }
    }

    /// The pod that a host port leads to.
    pub(crate) fn target(&self) -> Option<IpAddr> {
        let data = self.data.as_ref()?;
        let four = data.first_chunk::<4>().filter(|_| data.len() == 8).map(|b| IpAddr::from(*b));
        four.or_else(|| data.first_chunk::<16>().map(|b| IpAddr::from(*b)))
    }

    /// Appends the entry's attributes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        const INTERVAL_END: u32 = 1;
        if self.end {
            put_be32(out, 3, INTERVAL_END);
        }
        nest(out, 1, |out| put(out, NFTA_DATA_VALUE, &self.key));
        if let Some(data) = &self.data {
            nest(out, 2, |out| put(out, NFTA_DATA_VALUE, data));
        }
        if let Some(text) = &self.comment {
            put(out, USERDATA, &comment(text));
        }
    }
}

/// A comment as libnftnl keeps it in the user data of entries and rules.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let mut text = text.as_bytes().get(..COMMENT_BYTES).unwrap_or(text.as_bytes()).to_vec();
    text.push(0);
    let mut user = vec![USER_COMMENT, u8::try_from(text.len()).unwrap_or(u8::MAX)];
    user.extend(text);
    user
}

/// nft's way to write an entry: `tcp . 80 : 10.88.0.5 . 8080`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.set)?;
        let six = self.set.ends_with('6');
        let leading = match self.set {
            "hp4" | "hp6" => 0,
            "self4" | "self6" => 2,
            _ => 1,
        };
        write_parts(f, &self.key, leading, six)?;
        if let Some(data) = &self.data {
            f.write_str(" : ")?;
            write_parts(f, data, 1, six)?;
        }
        Ok(())
    }
}

/// Entries in one message of a dump.
pub(crate) fn decode(set: &'static str, body: &[u8]) -> Vec<Element> {
    let value = |entry: &[u8], kind| {
        attribute(entry, kind).and_then(|v| attribute(v, NFTA_DATA_VALUE)).map(<[u8]>::to_vec)
    };
    let list = attribute(body, 3).unwrap_or_default();
    attributes(list)
        .filter(|a| a.kind == NFTA_LIST_ELEM)
        .filter_map(|a| {
            let end = attribute(a.value, 3).and_then(|f| f.last()).is_some_and(|bits| bits & 1 != 0);
            let comment = attribute(a.value, USERDATA).and_then(decode_comment);
            Some(Element { set, key: value(a.value, 1)?, data: value(a.value, 2), end, comment })
        })
        .collect()
}

pub(super) fn decode_comment(user: &[u8]) -> Option<String> {
    let [USER_COMMENT, length, rest @ ..] = user else { return None };
    let text = rest.get(..usize::from(*length))?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

/// `addresses` addresses, then (protocol and) port.
fn write_parts(f: &mut fmt::Formatter<'_>, bytes: &[u8], addresses: usize, six: bool) -> fmt::Result {
    let width = if six { 16 } else { 4 };
    let (head, tail) = bytes.split_at_checked(addresses * width).unwrap_or((bytes, &[]));
    let mut separator = "";
    for address in head.chunks(width) {
        let text = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
            (Ok(four), _) => Ipv4Addr::from(four).to_string(),
            (_, Ok(sixteen)) => Ipv6Addr::from(sixteen).to_string(),
            _ => format!("{address:02x?}"),
        };
        write!(f, "{separator}{text}")?;
        separator = " . ";
    }
    let words: Vec<&[u8]> = tail.chunks(4).collect();
    for (position, w) in words.iter().enumerate() {
        let port = position + 1 == words.len();
        match (port, w) {
            (false, [number, ..]) => write!(f, "{separator}{}", Protocol::name_of(*number))?,
            (true, [high, low, ..]) => write!(f, "{separator}{}", u16::from_be_bytes([*high, *low]))?,
            _ => {}
        }
        separator = " . ";
    }
    Ok(())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// A port, padded to a word.
fn word(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}
