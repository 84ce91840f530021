//! `sbr`: source based routing. Packets from each of the interface's addresses go by a table of their own.
//!
//! Without it, answers to what came in by a pod's second interface would leave by the first. The interface's routes move
//! from the main table to the addresses' tables; with `table` only the rules are made, and the routes are another's.

use std::net::IpAddr;
use std::os::fd::AsFd;

use super::interface::{find, internal};
use super::{Answer, Command, Refusal, Request, code};
use crate::cidr::network;
use crate::cni::result::{Ip, Success};
use crate::netlink::op::{Op, Path};
use crate::netlink::policy::{self, Held, Policy, Rule};
use crate::netlink::route;
use crate::netns::socket_in;

/// Where free tables are looked for.
const FIRST_TABLE: u32 = 100;
const MAIN_TABLE: u32 = 254;

pub(super) fn run(request: &Request) -> Answer {
    match request.command {
        Command::Add => add(request).map(Some),
        Command::Del => delete(request).map(|()| None),
        Command::Check => check(request).map(|()| None),
        // Rules live and die with the pod's namespace.
        Command::Gc => Ok(None),
        Command::Status => table(request).map(|_| None),
    }
}

fn table(request: &Request) -> Result<Option<u32>, Refusal> {
    request.conf.number("table")
}

/// The addresses of the interface; one that names no interface counts.
fn own<'r>(request: &Request, result: &'r Success) -> Vec<&'r Ip> {
    let named = |index: usize| result.interfaces.get(index).is_none_or(|i| i.name == request.interface);
    result.ips.iter().filter(|ip| ip.interface.is_none_or(named)).collect()
}

fn add(request: &Request) -> Result<Success, Refusal> {
    let previous =
        request.previous()?.ok_or_else(|| Refusal::config("This plugin must be called as chained plugin"))?;
    if previous.ips.is_empty() {
        let msg = format!("No IP addresses supplied on interface: {}", request.interface);
        return Err(Refusal::config(msg));
    }
    let ips = own(request, &previous);
    let ns = request.open_netns()?;
    let mut pod = socket_in(ns.as_fd())?;
    let ops = match table(request)? {
        Some(table) => {
            ips.iter().map(|ip| Op::Policy(Policy::Add(Rule::from(ip.address.0, table)))).collect()
        }
        None => {
            let index = find(&mut pod, &request.interface)?.index;
            let rules = policy::rules(&mut pod).map_err(internal)?;
            let paths = policy::paths(&mut pod).map_err(internal)?;
            let hints = request.conf.flag("addSourceHints")?;
            plan(&request.interface, index, &ips, &rules, &paths, hints)
        }
    };
    route::run(&mut pod, &ops, None)?;
    Ok(previous)
}

/// A rule and a table per address, then the end of the interface's routes in the main table; pure.
///
/// Nothing is taken away before everything is copied: a route through a gateway needs the way to the gateway.
fn plan(interface: &str, index: u32, ips: &[&Ip], rules: &[Rule], paths: &[Held], hints: bool) -> Vec<Op> {
    let taken = |table: u32| {
        rules.iter().any(|r| r.table == table) || paths.iter().any(|h| h.path.table == Some(table))
    };
    let mut free = (FIRST_TABLE..).filter(|table| !taken(*table));
    let main: Vec<&Path> = paths
        .iter()
        .filter(|held| held.link == index && held.path.table == Some(MAIN_TABLE))
        .map(|held| &held.path)
        .collect();
    let mut ops = Vec::new();
    for ip in ips {
        let Some(table) = free.next() else { break };
        let (address, prefix) = ip.address;
        ops.push(Op::Policy(Policy::Add(Rule::from(address, table))));
        let hint =
            |path: &Path| path.source.or_else(|| Some(address).filter(|a| hints && alike(*a, path.to.0)));
        let mut replace = |path: Path| {
            let path = Path { table: Some(table), source: hint(&path), ..path };
            ops.push(Op::Policy(Policy::ReplacePath { link: interface.into(), path }));
        };
        let mut routes: Vec<Path> = Vec::new();
        let inside = |other: Option<IpAddr>| {
            other.is_some_and(|o| alike(o, address) && network(o, prefix) == network(address, prefix))
        };
        for path in &main {
            if inside(path.source) || inside(path.via) || (path.source.is_none() && path.via.is_none()) {
                routes.push(Path { scope: path.scope, ..(*path).clone() });
            }
        }
        // What is on the link comes first, then what goes through a gateway.
        routes.sort_by_key(|path| path.via.is_some());
        if let Some(gateway) = ip.gateway {
            let everywhere: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
            let default = Path { via: Some(gateway), ..Path::new((everywhere, 0)) };
            if !routes.iter().any(|path| path.to == default.to && path.via == default.via) {
                routes.push(default);
            }
        }
        routes.into_iter().for_each(&mut replace);
    }
    let gone = main
        .iter()
        .map(|path| Op::Policy(Policy::DropPath { link: interface.into(), path: (*path).clone() }));
    ops.extend(gone);
    ops
}

fn alike(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

/// Removes the rules of the interface's addresses; without the namespace or the interface there are none.
fn delete(request: &Request) -> Result<(), Refusal> {
    let Some(ns) = request.netns_if_there() else { return Ok(()) };
    let mut pod = socket_in(ns.as_fd())?;
    let Some(link) = route::link(&mut pod, &request.interface).map_err(internal)? else { return Ok(()) };
    let addresses = route::addresses(&mut pod).map_err(internal)?;
    let addresses: Vec<IpAddr> =
        addresses.iter().filter(|a| a.link == link.index).map(|a| a.address.0).collect();
    let wanted = table(request)?;
    let rules = policy::rules(&mut pod).map_err(internal)?;
    let doomed = rules.into_iter().filter(|rule| {
        rule.from.is_some_and(|(from, _)| addresses.contains(&from))
            && wanted.is_none_or(|table| table == rule.table)
    });
    let ops: Vec<Op> = doomed.map(|rule| Op::Policy(Policy::Drop(rule))).collect();
    Ok(route::run(&mut pod, &ops, None)?)
}

/// Every address has a rule.
fn check(request: &Request) -> Result<(), Refusal> {
    let previous = request.previous()?.ok_or_else(|| Refusal::config("required prevResult missing"))?;
    let wanted = table(request)?;
    let ns = request.open_netns()?;
    let rules = policy::rules(&mut socket_in(ns.as_fd())?).map_err(internal)?;
    for ip in own(request, &previous) {
        let from = Rule::from(ip.address.0, 0).from;
        if !rules.iter().any(|rule| rule.from == from && wanted.is_none_or(|table| table == rule.table)) {
            return Err(Refusal::new(code::INTERNAL, format!("no rule for packets from {}", ip.address.0)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str, gateway: Option<&str>) -> Ip {
        let address = crate::cni::result::parse_subnet(address).unwrap();
        Ip { interface: Some(0), address, gateway: gateway.map(|g| g.parse().unwrap()) }
    }

    fn held(to: &str, via: Option<&str>, source: Option<&str>) -> Held {
        let mut path = Path::new(crate::cni::result::parse_subnet(to).unwrap());
        path.table = Some(MAIN_TABLE);
        path.via = via.map(|v| v.parse().unwrap());
        path.source = source.map(|s| s.parse().unwrap());
        Held { link: 7, path, by_kernel: false }
    }

    fn words(ips: &[&Ip], rules: &[Rule], paths: &[Held], hints: bool) -> Vec<String> {
        plan("net1", 7, ips, rules, paths, hints).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn routes_move_to_the_addresss_table() {
        let paths = [
            held("0.0.0.0/0", Some("10.1.0.1"), None),
            held("10.1.0.0/24", None, Some("10.1.0.5")),
            Held { link: 8, ..held("10.9.0.0/24", None, None) },
        ];
        assert_eq!(
            words(&[&ip("10.1.0.5/24", Some("10.1.0.1"))], &[], &paths, false),
            [
                "add rule from 10.1.0.5/32 lookup 100",
                "replace route 10.1.0.0/24 src 10.1.0.5 table 100 dev net1",
                "replace route 0.0.0.0/0 via 10.1.0.1 table 100 dev net1",
                "delete route 0.0.0.0/0 via 10.1.0.1 table 254 dev net1",
                "delete route 10.1.0.0/24 src 10.1.0.5 table 254 dev net1",
            ]
        );
    }

    #[test]
    fn each_address_has_a_table_that_nobody_uses() {
        let taken = Rule { from: None, table: 100, priority: None };
        let mut other = held("10.9.0.0/24", None, None);
        (other.link, other.path.table) = (9, Some(102));
        let ips = [ip("10.1.0.5/24", None), ip("fd01::5/64", Some("fd01::1"))];
        assert_eq!(
            words(&[&ips[0], &ips[1]], &[taken], &[other], true),
            [
                "add rule from 10.1.0.5/32 lookup 101",
                "add rule from fd01::5/128 lookup 103",
                "replace route ::/0 via fd01::1 src fd01::5 table 103 dev net1",
            ]
        );
    }
}
