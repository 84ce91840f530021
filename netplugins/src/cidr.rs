//! Pod CIDRs: parsing, and arithmetic on the addresses inside.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::Error;

/// A subnet for pods: no host bits, and room for a gateway and at least one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Parses `address/length`.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |why| Error::Cidr { cidr: text.into(), why };
        let (address, prefix) = text.trim().split_once('/').ok_or(refuse("it is not address/length"))?;
        let base: IpAddr = address.parse().map_err(|_| refuse("the address cannot be read"))?;
        let prefix: u8 = prefix.parse().map_err(|_| refuse("the length cannot be read"))?;
        let width = width(base);
        if prefix > width {
            return Err(refuse("the length is larger than the address"));
        }
        if prefix > width - 2 {
            return Err(refuse("it is too small: a gateway and a pod need a /30 (IPv4) or a /126 (IPv6)"));
        }
        if prefix < 4 {
            return Err(refuse("it is larger than any pod network can be"));
        }
        let cidr = Self { base, prefix };
        if number(base) & (cidr.size() - 1) != 0 {
            return Err(refuse("bits are set behind the length"));
        }
        Ok(cidr)
    }

    /// First address and prefix length.
    pub(crate) fn parts(self) -> (IpAddr, u8) {
        (self.base, self.prefix)
    }

    pub(crate) fn is_ipv4(self) -> bool {
        self.base.is_ipv4()
    }

    /// The address of the node's end of every pod's link: the first one.
    pub(crate) fn gateway(self) -> IpAddr {
        self.at(1)
    }

    /// Offsets that pods may have: behind the gateway, and before the IPv4 broadcast address.
    pub(crate) fn pod_offsets(self) -> std::ops::RangeInclusive<u128> {
        let last = if self.is_ipv4() { self.size() - 2 } else { self.size() - 1 };
        2..=last
    }

    /// The address at that offset from the first.
    pub(crate) fn at(self, offset: u128) -> IpAddr {
        let sum = number(self.base).wrapping_add(offset);
        match self.base {
            IpAddr::V4(_) => {
                IpAddr::V4(Ipv4Addr::from(u32::try_from(sum & u128::from(u32::MAX)).unwrap_or(u32::MAX)))
            }
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(sum)),
        }
    }

    /// Offset of an address inside; `None`: it is outside.
    pub(crate) fn offset(self, address: IpAddr) -> Option<u128> {
        (address.is_ipv4() == self.is_ipv4())
            .then(|| number(address).checked_sub(number(self.base)))
            .flatten()
            .filter(|offset| *offset < self.size())
    }

    /// Whether the two share an address.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.offset(other.base).is_some() || other.offset(self.base).is_some()
    }

    fn size(self) -> u128 {
        // `prefix` is at least 4, so this does not overflow.
        1 << (width(self.base) - self.prefix)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// Bits of an address of that family.
pub(crate) fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first address of the subnet that an address is in.
pub(crate) fn network(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(a) & mask))
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(a) & mask))
        }
    }
}

/// The address behind another one.
pub(crate) fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from(u32::from(a).wrapping_add(1))),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from(u128::from(a).wrapping_add(1))),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// Parses pod CIDRs and refuses overlaps.
pub(crate) fn parse(cidrs: &[String]) -> Result<Vec<Cidr>, Error> {
    let parsed: Vec<Cidr> = cidrs.iter().map(|c| Cidr::parse(c)).collect::<Result<_, _>>()?;
    for (position, cidr) in parsed.iter().enumerate() {
        if parsed.iter().take(position).any(|other| other.overlaps(*cidr)) {
            return Err(Error::Cidr { cidr: cidr.to_string(), why: "it overlaps another one" });
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_without_room_for_a_pod_are_refused() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0.0/31",
            "10.0.0.0/33",
            "10.0.0.1/24",
            "fd00::/127",
            "::/0",
            "x/8",
            "0.0.0.0/0",
        ] {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pods_get_neither_the_gateway_nor_the_broadcast_address() {
        let small = Cidr::parse("10.0.0.0/30").unwrap();
        assert_eq!(small.pod_offsets(), 2..=2);
        assert_eq!(small.gateway(), IpAddr::from([10, 0, 0, 1]));
        assert_eq!(small.at(2), IpAddr::from([10, 0, 0, 2]));
        let six = Cidr::parse("fd00:10:88::/64").unwrap();
        assert_eq!(six.pod_offsets(), 2..=u128::from(u64::MAX));
        assert_eq!(six.at(0x10).to_string(), "fd00:10:88::10");
        assert_eq!(six.offset("fd00:10:88::10".parse().unwrap()), Some(16));
        assert_eq!(six.offset("fd00:10:89::10".parse().unwrap()), None);
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        let wide = Cidr::parse("10.0.0.0/8").unwrap();
        let narrow = Cidr::parse("10.9.0.0/16").unwrap();
        assert!(wide.overlaps(narrow) && narrow.overlaps(wide));
        assert!(!narrow.overlaps(Cidr::parse("10.10.0.0/16").unwrap()));
    }
}
