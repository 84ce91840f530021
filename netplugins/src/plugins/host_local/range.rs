//! Ranges of addresses, checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::conf::Conf;
use crate::cidr::width;
use crate::cni::result::parse_subnet;

use super::Refusal;

/// Consecutive addresses of one subnet.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Range {
    subnet: (IpAddr, u8),
    first: u128,
    last: u128,
    pub(super) gateway: Option<IpAddr>,
}

/// Ranges that one address is taken from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pool(pub(super) Vec<Range>);

impl Pool {
    /// The old form: one range, written into `ipam` itself.
    pub(super) fn single(conf: &Conf) -> Result<Self, Refusal> {
        Ok(Self(vec![Range::read(conf)?]))
    }

    /// A list of lists of ranges.
    pub(super) fn list(conf: &Conf, key: &str) -> Result<Vec<Self>, Refusal> {
        let mut pools = Vec::new();
        for inner in conf.list(key)? {
            let wrapped = Conf::new(serde_json::json!({ "ranges": inner }))?;
            let ranges: Vec<Range> =
                wrapped.objects("ranges")?.iter().map(Range::read).collect::<Result<_, _>>()?;
            let Some(first) = ranges.first() else { return Err(Refusal::config("empty range set")) };
            if ranges.iter().any(|r| r.is_ipv4() != first.is_ipv4()) {
                return Err(Refusal::config("mixed address families"));
            }
            pools.push(Self(ranges));
        }
        Ok(pools)
    }

    /// Whether an address is in one of the ranges.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some()
    }

    pub(super) fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|r| r.holds(address))
    }

    /// All addresses once, beginning behind the one that was given last.
    pub(super) fn turn(&self, last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Range)> {
        let all = move || self.0.iter().flat_map(|r| (r.first..=r.last).map(move |n| (r.address(n), r)));
        // Without walking there: a range may have 2^64 addresses.
        let at = last.and_then(|ip| Some((self.0.iter().position(|r| r.holds(ip))?, number(ip))));
        let (index, next) = at.map_or((0, None), |(index, n)| (index, n.checked_add(1)));
        let current = self
            .0
            .get(index)
            .into_iter()
            .flat_map(move |r| (next.unwrap_or(r.first)..=r.last).map(move |n| (r.address(n), r)));
        let behind =
            self.0.iter().skip(index + 1).flat_map(|r| (r.first..=r.last).map(move |n| (r.address(n), r)));
        let stop = last;
        current
            .chain(behind)
            .chain(all().take_while(move |(ip, _)| stop.is_some_and(|s| number(*ip) <= number(s))))
    }
}

impl Range {
    fn read(conf: &Conf) -> Result<Self, Refusal> {
        let text = conf.text("subnet")?.unwrap_or_default();
        let subnet =
            parse_subnet(text).ok_or_else(|| Refusal::config(format!("invalid CIDR address: {text}")))?;
        let (base, length) = subnet;
        let bits = width(base);
        if length > bits - 2 {
            return Err(Refusal::config(format!("Network {text} too small to allocate from")));
        }
        let host =
            if length == 0 { u128::MAX >> (128 - u32::from(bits)) } else { (1u128 << (bits - length)) - 1 };
        let network = number(base);
        if network & host != 0 {
            return Err(Refusal::config(format!(
                "Network has host bits set. For a subnet mask of length {length} the network address is {}",
                back(network & !host, base.is_ipv4())
            )));
        }
        // The IPv4 broadcast address is nobody's.
        let (lowest, highest) = (network + 1, (network | host) - u128::from(base.is_ipv4()));
        let inside = |key: &str, default: u128| match conf.address(key)? {
            None => Ok(default),
            Some(ip) if ip.is_ipv4() == base.is_ipv4() && number(ip) & !host == network => Ok(number(ip)),
            Some(ip) => Err(Refusal::config(format!("{key} {ip} not in network {text}"))),
        };
        let (first, last) = (inside("rangeStart", lowest)?, inside("rangeEnd", highest)?);
        if first > last {
            return Err(Refusal::config(format!("rangeStart is behind rangeEnd in network {text}")));
        }
        let gateway = conf.address("gateway")?.unwrap_or_else(|| back(lowest, base.is_ipv4()));
        Ok(Self { subnet, first, last, gateway: Some(gateway) })
    }

    pub(super) fn length(&self) -> u8 {
        self.subnet.1
    }

    fn is_ipv4(&self) -> bool {
        self.subnet.0.is_ipv4()
    }

    fn holds(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && (self.first..=self.last).contains(&number(address))
    }

    fn address(&self, n: u128) -> IpAddr {
        back(n, self.is_ipv4())
    }
}

/// Refuses ranges that share an address.
pub(super) fn check_overlap(pools: &[Pool]) -> Result<(), Refusal> {
    let all: Vec<&Range> = pools.iter().flat_map(|p| &p.0).collect();
    for (position, a) in all.iter().enumerate() {
        let shared = |b: &&&Range| a.is_ipv4() == b.is_ipv4() && a.first <= b.last && b.first <= a.last;
        if let Some(b) = all.iter().take(position).find(shared) {
            let text = |r: &Range| format!("{}-{}", r.address(r.first), r.address(r.last));
            return Err(Refusal::config(format!("subnets {} and {} overlap", text(b), text(a))));
        }
    }
    Ok(())
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

fn back(n: u128, ipv4: bool) -> IpAddr {
    if ipv4 {
        IpAddr::V4(Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX)))
    } else {
        IpAddr::V6(Ipv6Addr::from(n))
    }
}
