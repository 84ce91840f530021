//! The one table: static chains, and sets and maps that hold everything about pods.
//!
//! In nft's own words, with `P` for the link prefix (`type` lines shortened):
//!
//! ```text
//! table inet P {
//!   map hpip4 { addr . proto . port : addr . port }  map hp4 { proto . port : addr . port }     # hostPorts, and hpip6, hp6
//!   set self4 { addr . addr }                        # hairpin: a pod that reaches itself through a hostPort; self6
//!   set pods4 { addr }                               # our pods; pods6
//!   set nomasq4 { addr; interval }                   # pod CIDRs and multicast; nomasq6
//!   chain guard       { filter prerouting -300; iifname "P*" ip daddr 127.0.0.0/8 drop }
//!   chain prerouting  { nat prerouting -95;     fib daddr type local goto hostports }
//!   chain output      { nat output -95;         fib daddr type local goto hostports }
//!   chain hostports   { dnat ip to ip daddr . meta l4proto . th dport map @hpip4
//!                       meta nfproto ipv4 dnat ip to meta l4proto . th dport map @hp4            # then the same for ip6 }
//!   chain postrouting { nat postrouting 105
//!                       ct status dnat ip saddr . ip daddr @self4 masquerade   # and ip6
//!                       ct status dnat ip saddr 127.0.0.0/8 oifname "P*" masquerade
//!                       ip saddr @pods4 ip daddr != @nomasq4 fib daddr type != local masquerade   # and ip6 }
//! }
//! ```
//!
//! Priorities follow kube-proxy's (−100, 100), so that a service wins over a hostPort of the same number. `guard` runs
//! before connection tracking: replies to a node process that used 127.0.0.1 still carry the masquerade address there,
//! and only what a pod itself addressed to 127/8 is dropped (CVE-2020-8558). Work per packet and per pod is constant.

use std::net::IpAddr;

use super::element::Element;
use super::expr::{Base, Expr, Meta, Verdict};
use super::{Hook, Shape, Transaction};

const PRE_ROUTING: u32 = 0;
const LOCAL_OUT: u32 = 3;
const POST_ROUTING: u32 = 4;
/// `NFPROTO_*`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `RTN_LOCAL` of rtnetlink(7).
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`.
const DESTINATION_NAT: u32 = 0x20;

/// nft's data types: number and length in bytes. A concatenation shifts six bits per part and pads each to a word.
const ADDR4: (u32, u32) = (7, 4);
const ADDR6: (u32, u32) = (8, 16);
const PROTO: (u32, u32) = (12, 4);
const PORT: (u32, u32) = (13, 4);

/// All sets and maps, IPv4 then IPv6.
pub(crate) const SETS: [&str; 10] =
    ["hpip4", "hp4", "self4", "pods4", "nomasq4", "hpip6", "hp6", "self6", "pods6", "nomasq6"];

/// Replaces the whole table, with these entries, in one step. Established connections do not notice.
pub(crate) fn install(
    prefix: &str,
    elements: &[Element],
    socket: &mut crate::netlink::Socket,
) -> Result<(), crate::netlink::Failure> {
    let mut transaction = Transaction::new(prefix);
    // Adding first makes deleting safe when there is none.
    transaction.add_table().delete_table().add_table();
    sets(&mut transaction);
    chains(&mut transaction, prefix);
    transaction.add_elements(elements);
    transaction.commit(socket).map_err(|r| r.failure)
}

/// States sets, chains and rules for host ports alone, for pods whose links have no common prefix; see `plugins::portmap`.
/// Repeating it changes nothing.
pub(crate) fn publishing(t: &mut Transaction<'_>) {
    port_sets(t);
    for (set, address) in EVERYTHING {
        t.add_set(set, Shape { key: concat(&[address]), data: None, interval: false });
    }
    port_chains(t);
    for chain in ["guard", "prerouting", "output", "hostports", "postrouting"] {
        t.flush_chain(chain);
    }
    port_rules(t, &Links::AllButLo);
    for (ip, (set, _)) in [IPV4, IPV6].into_iter().zip(EVERYTHING) {
        t.add_rule("postrouting", &everything(ip, set));
    }
}

/// Pods whose host ports hide every client's address (`masqAll`).
const EVERYTHING: [(&str, (u32, u32)); 2] = [("all4", ADDR4), ("all6", ADDR6)];

/// `ct status dnat ip daddr @all4 masquerade`
fn everything(ip: u8, set: &'static str) -> Vec<Expr> {
    let (destination, length) = if ip == IPV4 { (16, 4) } else { (24, 16) };
    let mut rule = rewritten().to_vec();
    rule.extend(family(ip));
    rule.extend([Expr::Payload(Base::Network, destination, length, 1), Expr::In(set, 1), Expr::Masquerade]);
    rule
}

/// Which links lead to pods.
#[derive(Debug)]
enum Links<'a> {
    Prefix(&'a str),
    AllButLo,
}

impl Links<'_> {
    /// `iifname "P*"` or `iifname != "lo"`, and the same of the output.
    fn through(&self, key: Meta) -> [Expr; 2] {
        let condition = match self {
            Self::Prefix(prefix) => Expr::Equal(1, (*prefix).into()),
            Self::AllButLo => Expr::NotEqual(1, b"lo\0".to_vec()),
        };
        [Expr::Meta(key, 1), condition]
    }
}

/// Entries of `nomasq4` and `nomasq6`: the pod CIDRs and multicast.
pub(crate) fn unmasqueraded(cidrs: impl IntoIterator<Item = (IpAddr, u8)>) -> Vec<Element> {
    let mut all: Vec<(IpAddr, u8)> = cidrs.into_iter().chain(multicast()).collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().flat_map(|(base, prefix)| Element::interval(base, prefix)).collect()
}

/// Multicast, IPv4 and IPv6: never masqueraded.
pub(crate) fn multicast() -> [(IpAddr, u8); 2] {
    [(IpAddr::from([224, 0, 0, 0]), 4), (IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8)]
}

/// States the sets and the one chain of a table that only masquerades; see `plugins::masquerade`.
pub(crate) fn masquerading(t: &mut Transaction<'_>, pods: [&'static str; 2], near: [&'static str; 2]) {
    for (index, (ip, address)) in [(IPV4, ADDR4), (IPV6, ADDR6)].into_iter().enumerate() {
        let (pods, near) = if index == 0 { (pods[0], near[0]) } else { (pods[1], near[1]) };
        t.add_set(pods, Shape { key: concat(&[address]), data: None, interval: false });
        t.add_set(near, Shape { key: concat(&[address]), data: None, interval: true });
        if index == 0 {
            t.add_chain("postrouting", Some(Hook { kind: "nat", number: POST_ROUTING, priority: 105 }));
            t.flush_chain("postrouting");
        }
        let (source, destination, length) = if ip == IPV4 { (12, 16, 4) } else { (8, 24, 16) };
        let mut rule = family(ip).to_vec();
        rule.extend([
            Expr::Payload(Base::Network, source, length, 1),
            Expr::In(pods, 1),
            Expr::Payload(Base::Network, destination, length, 1),
            Expr::NotIn(near, 1),
            Expr::Masquerade,
        ]);
        t.add_rule("postrouting", &rule);
    }
}

/// States the sets and the one chain of a table that leaves alone what goes from some subnets to others; see `mesh::nat`.
pub(crate) fn keeping_sources(t: &mut Transaction<'_>, from: [&'static str; 2], to: [&'static str; 2]) {
    t.add_chain("postrouting", Some(Hook { kind: "nat", number: POST_ROUTING, priority: 104 }));
    for ((ip, address), (from, to)) in
        [(IPV4, ADDR4), (IPV6, ADDR6)].into_iter().zip(from.into_iter().zip(to))
    {
        for set in [from, to] {
            t.add_set(set, Shape { key: concat(&[address]), data: None, interval: true });
        }
        let (source, destination, length) = if ip == IPV4 { (12, 16, 4) } else { (8, 24, 16) };
        let mut rule = family(ip).to_vec();
        rule.extend([
            Expr::Payload(Base::Network, source, length, 1),
            Expr::In(from, 1),
            Expr::Payload(Base::Network, destination, length, 2),
            Expr::In(to, 2),
            Expr::SourceNat(ip, 1),
        ]);
        t.add_rule("postrouting", &rule);
    }
}

fn sets(t: &mut Transaction<'_>) {
    port_sets(t);
    for (pods, nomasq, address) in [("pods4", "nomasq4", ADDR4), ("pods6", "nomasq6", ADDR6)] {
        t.add_set(pods, Shape { key: concat(&[address]), data: None, interval: false });
        t.add_set(nomasq, Shape { key: concat(&[address]), data: None, interval: true });
    }
}

fn port_sets(t: &mut Transaction<'_>) {
    for (by_address, by_port, hairpin, address) in
        [("hpip4", "hp4", "self4", ADDR4), ("hpip6", "hp6", "self6", ADDR6)]
    {
        let map = |key: &[(u32, u32)]| Shape {
            key: concat(key),
            data: Some(concat(&[address, PORT])),
            interval: false,
        };
        t.add_set(by_address, map(&[address, PROTO, PORT]));
        t.add_set(by_port, map(&[PROTO, PORT]));
        t.add_set(hairpin, Shape { key: concat(&[address, address]), data: None, interval: false });
    }
}

fn concat(parts: &[(u32, u32)]) -> (u32, u32) {
    parts.iter().fold((0, 0), |(kind, length), part| (kind << 6 | part.0, length + part.1))
}

fn chains(t: &mut Transaction<'_>, prefix: &str) {
    port_chains(t);
    port_rules(t, &Links::Prefix(prefix));
    for rule in [outbound(IPV4, "pods4", "nomasq4"), outbound(IPV6, "pods6", "nomasq6")] {
        t.add_rule("postrouting", &rule);
    }
}

fn port_chains(t: &mut Transaction<'_>) {
    t.add_chain("guard", Some(Hook { kind: "filter", number: PRE_ROUTING, priority: -300 }));
    t.add_chain("hostports", None);
    t.add_chain("prerouting", Some(Hook { kind: "nat", number: PRE_ROUTING, priority: -95 }));
    t.add_chain("output", Some(Hook { kind: "nat", number: LOCAL_OUT, priority: -95 }));
    t.add_chain("postrouting", Some(Hook { kind: "nat", number: POST_ROUTING, priority: 105 }));
}

fn port_rules(t: &mut Transaction<'_>, links: &Links<'_>) {
    t.add_rule("guard", &guard(links));
    for rule in
        [by_address(IPV4, "hpip4"), by_port(IPV4, "hp4"), by_address(IPV6, "hpip6"), by_port(IPV6, "hp6")]
    {
        t.add_rule("hostports", &rule);
    }
    for chain in ["prerouting", "output"] {
        t.add_rule(chain, &to_node());
    }
    for rule in [hairpin(IPV4, "self4"), hairpin(IPV6, "self6"), loopback(links)] {
        t.add_rule("postrouting", &rule);
    }
}

/// `iifname "P*" ip daddr 127.0.0.0/8 drop`
fn guard(links: &Links<'_>) -> Vec<Expr> {
    let mut rule = links.through(Meta::InputName).to_vec();
    rule.extend(family(IPV4));
    rule.extend([
        Expr::Payload(Base::Network, 16, 1, 1),
        Expr::Equal(1, vec![127]),
        Expr::Verdict(Verdict::Drop),
    ]);
    rule
}

/// `fib daddr type local goto hostports`
fn to_node() -> Vec<Expr> {
    vec![
        Expr::FibDestinationType(1),
        Expr::Equal(1, LOCAL.to_ne_bytes().to_vec()),
        Expr::Verdict(Verdict::Goto("hostports")),
    ]
}

/// `dnat ip to ip daddr . meta l4proto . th dport map @hpip4`
fn by_address(ip: u8, map: &'static str) -> Vec<Expr> {
    let (destination, length, after) = if ip == IPV4 { (16, 4, 9) } else { (24, 16, 12) };
    let mut rule = family(ip).to_vec();
    rule.extend([
        Expr::Payload(Base::Network, destination, length, 1),
        Expr::Meta(Meta::Transport, after),
        Expr::Payload(Base::Transport, 2, 2, after + 1),
    ]);
    rule.extend(rewrite(ip, map));
    rule
}

/// `dnat ip to meta l4proto . th dport map @hp4`
fn by_port(ip: u8, map: &'static str) -> Vec<Expr> {
    let mut rule = family(ip).to_vec();
    rule.extend([Expr::Meta(Meta::Transport, 1), Expr::Payload(Base::Transport, 2, 2, 9)]);
    rule.extend(rewrite(ip, map));
    rule
}

fn rewrite(ip: u8, map: &'static str) -> [Expr; 2] {
    let port = if ip == IPV4 { 9 } else { 2 };
    [Expr::Map(map, 1, 1), Expr::DestinationNat(ip, 1, port)]
}

/// `ct status dnat ip saddr . ip daddr @self4 masquerade`
fn hairpin(ip: u8, set: &'static str) -> Vec<Expr> {
    let (source, destination, length, second) = if ip == IPV4 { (12, 16, 4, 9) } else { (8, 24, 16, 2) };
    let mut rule = rewritten().to_vec();
    rule.extend(family(ip));
    rule.extend([
        Expr::Payload(Base::Network, source, length, 1),
        Expr::Payload(Base::Network, destination, length, second),
        Expr::In(set, 1),
        Expr::Masquerade,
    ]);
    rule
}

/// `ct status dnat ip saddr 127.0.0.0/8 oifname "P*" masquerade`
fn loopback(links: &Links<'_>) -> Vec<Expr> {
    let mut rule = rewritten().to_vec();
    rule.extend(family(IPV4));
    rule.extend([Expr::Payload(Base::Network, 12, 1, 1), Expr::Equal(1, vec![127])]);
    rule.extend(links.through(Meta::OutputName));
    rule.push(Expr::Masquerade);
    rule
}

/// `ip saddr @pods4 ip daddr != @nomasq4 fib daddr type != local masquerade`
fn outbound(ip: u8, pods: &'static str, near: &'static str) -> Vec<Expr> {
    let (source, destination, length) = if ip == IPV4 { (12, 16, 4) } else { (8, 24, 16) };
    let mut rule = family(ip).to_vec();
    rule.extend([
        Expr::Payload(Base::Network, source, length, 1),
        Expr::In(pods, 1),
        Expr::Payload(Base::Network, destination, length, 1),
        Expr::NotIn(near, 1),
        Expr::FibDestinationType(1),
        Expr::NotEqual(1, LOCAL.to_ne_bytes().to_vec()),
        Expr::Masquerade,
    ]);
    rule
}

fn family(ip: u8) -> [Expr; 2] {
    [Expr::Meta(Meta::Family, 1), Expr::Equal(1, vec![ip])]
}

/// `ct status dnat`
fn rewritten() -> [Expr; 3] {
    [Expr::ConntrackStatus(1), Expr::Mask(1, DESTINATION_NAT), Expr::NotEqual(1, vec![0; 4])]
}
