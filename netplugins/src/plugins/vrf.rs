//! `vrf`: puts the pod's interface into a routing domain, which is made with the first interface and ends with the last.
//!
//! Joining a domain costs an interface its IPv6 addresses and the routes through gateways; both are given back.

use std::os::fd::AsFd;

use super::interface::internal;
use super::{Answer, Command, Refusal, Request, code};
use crate::cni::result::Success;
use crate::netlink::device::{Change, Create, Details, Device, Kind};
use crate::netlink::op::{Op, Path};
use crate::netlink::policy::{self, Held, Policy};
use crate::netlink::route::{self, LinkAddress};
use crate::netns::socket_in;

const MAIN_TABLE: u32 = 254;

/// Name and table; 0: any table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    name: String,
    table: u32,
}

pub(super) fn run(request: &Request) -> Answer {
    let settings = settings(request)?;
    match request.command {
        Command::Add => add(request, &settings).map(Some),
        Command::Del => delete(request, &settings).map(|()| None),
        Command::Check => check(request, &settings).map(|()| None),
        // The domain lives and dies with the pod's namespace.
        Command::Gc | Command::Status => Ok(None),
    }
}

fn settings(request: &Request) -> Result<Settings, Refusal> {
    let name = request.conf.text("vrfname")?.filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Refusal::config("configuration is expected to have a valid vrf name"))?;
    Ok(Settings { name: name.into(), table: request.conf.number("table")?.unwrap_or_default() })
}

fn add(request: &Request, settings: &Settings) -> Result<Success, Refusal> {
    let previous =
        request.previous()?.ok_or_else(|| Refusal::config("missing prevResult from earlier plugin"))?;
    let ns = request.open_netns()?;
    let mut pod = socket_in(ns.as_fd())?;
    let links = route::all_details(&mut pod).map_err(internal)?;
    let addresses = route::addresses(&mut pod).map_err(internal)?;
    let paths = policy::paths(&mut pod).map_err(internal)?;
    let (ops, made) = plan(&request.interface, settings, &links, &addresses, &paths)?;
    route::run(&mut pod, &ops, None).inspect_err(|_| {
        if made {
            let _ = route::delete(&mut pod, &settings.name);
        }
    })?;
    Ok(previous)
}

/// The steps, and whether the domain is new; pure.
fn plan(
    interface: &str,
    settings: &Settings,
    links: &[Details],
    addresses: &[LinkAddress],
    paths: &[Held],
) -> Result<(Vec<Op>, bool), Refusal> {
    let name = &settings.name;
    let refuse = |msg: String| Err(Refusal::new(code::INTERNAL, msg));
    let Some(own) = links.iter().find(|link| link.name == interface) else {
        return refuse(format!("could not get link by name {interface}"));
    };
    if let Some(index) = own.controller {
        let controller = links.iter().find(|l| l.index == index).map_or("", |l| l.name.as_str());
        return refuse(format!("interface {interface} has already a master set: {controller}"));
    }
    let there = links.iter().find(|link| link.name == *name);
    let table = match there.map(|link| link.kind) {
        Some(Some(Kind::Vrf(table))) if settings.table == 0 || settings.table == table => table,
        Some(Some(Kind::Vrf(table))) => {
            return refuse(format!("VRF {name} already exist with different routing table {table}"));
        }
        Some(_) => return refuse(format!("Netlink {name} is not a VRF")),
        None if settings.table > 0 => settings.table,
        None => {
            let taken = |table: u32| links.iter().any(|link| link.kind == Some(Kind::Vrf(table)));
            (1..).find(|table| !taken(*table)).unwrap_or(1)
        }
    };
    let mut ops = Vec::new();
    if there.is_none() {
        let create = Create {
            name: name.clone(),
            kind: Kind::Vrf(table),
            parent: None,
            mtu: None,
            mac: None,
            away: false,
        };
        ops.extend([Op::Device(Device::Create(create)), Op::Up(name.clone())]);
    }
    let join = Change::Controller(Some(name.clone()));
    ops.push(Op::Device(Device::Set { link: interface.into(), change: join }));
    let lost = addresses.iter().filter(|a| a.link == own.index && !a.link_local);
    for (address, prefix) in lost.map(|a| a.address).filter(|(ip, _)| ip.is_ipv6()) {
        ops.push(Op::Subnet { link: interface.into(), address, prefix, connected: true });
    }
    let mut routes: Vec<&Path> = paths
        .iter()
        .filter(|h| h.link == own.index && !h.by_kernel && h.path.table == Some(MAIN_TABLE))
        .map(|h| &h.path)
        .collect();
    routes.sort_by_key(|path| path.via.is_some());
    for path in routes {
        let path = Path { table: Some(table), ..path.clone() };
        ops.push(Op::Policy(Policy::ReplacePath { link: interface.into(), path }));
    }
    Ok((ops, there.is_none()))
}

fn delete(request: &Request, settings: &Settings) -> Result<(), Refusal> {
    let Some(ns) = request.netns_if_there() else { return Ok(()) };
    let mut pod = socket_in(ns.as_fd())?;
    let links = route::all_details(&mut pod).map_err(internal)?;
    let Some(domain) = links.iter().find(|link| link.name == settings.name) else { return Ok(()) };
    if !matches!(domain.kind, Some(Kind::Vrf(_))) {
        return Err(Refusal::new(code::INTERNAL, format!("Netlink {} is not a VRF", settings.name)));
    }
    let members: Vec<&Details> = links.iter().filter(|l| l.controller == Some(domain.index)).collect();
    if members.iter().any(|l| l.name == request.interface) {
        let leave = Device::Set { link: request.interface.clone(), change: Change::Controller(None) };
        route::run(&mut pod, &[Op::Device(leave)], None)?;
    }
    if members.iter().all(|l| l.name == request.interface) {
        route::delete(&mut pod, &settings.name).map_err(internal)?;
    }
    Ok(())
}

fn check(request: &Request, settings: &Settings) -> Result<(), Refusal> {
    request.previous()?.ok_or_else(|| Refusal::config("missing prevResult from earlier plugin"))?;
    let ns = request.open_netns()?;
    let links = route::all_details(&mut socket_in(ns.as_fd())?).map_err(internal)?;
    let domain = links.iter().find(|l| l.name == settings.name && matches!(l.kind, Some(Kind::Vrf(_))));
    let own = links.iter().find(|l| l.name == request.interface);
    match (domain, own) {
        (Some(domain), Some(own)) if own.controller == Some(domain.index) => Ok(()),
        _ => {
            let msg = format!("failed to find {} associated to vrf {}", request.interface, settings.name);
            Err(Refusal::new(code::INTERNAL, msg))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<Kind>) -> Details {
        Details { index, name: name.into(), kind, ..Details::default() }
    }

    fn words(table: u32, links: &[Details]) -> Result<Vec<String>, String> {
        let settings = Settings { name: "blue".into(), table };
        let address = ("fd00::5".parse().unwrap(), 64);
        let addresses = [LinkAddress { link: 2, address, link_local: false, permanent: true }];
        let mut default = Path::new(([0; 4].into(), 0));
        (default.via, default.table) = (Some([10, 0, 0, 1].into()), Some(MAIN_TABLE));
        let paths = [Held { link: 2, path: default, by_kernel: false }];
        let planned = plan("eth0", &settings, links, &addresses, &paths).map_err(|r| r.msg)?;
        Ok(planned.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_domain_is_made_joined_and_given_what_joining_costs() {
        let links = [link(2, "eth0", None), link(3, "red", Some(Kind::Vrf(1)))];
        assert_eq!(
            words(0, &links).unwrap(),
            [
                "add link blue type vrf table 2",
                "set blue up",
                "set eth0 master blue",
                "add address fd00::5/64 to eth0",
                "replace route 0.0.0.0/0 via 10.0.0.1 table 2 dev eth0",
            ]
        );
    }

    #[test]
    fn a_domain_that_is_there_must_be_the_one_meant() {
        let there = |kind| [link(2, "eth0", None), link(3, "blue", kind)];
        assert_eq!(words(0, &there(Some(Kind::Vrf(9)))).unwrap()[0], "set eth0 master blue");
        let other = words(5, &there(Some(Kind::Vrf(9)))).unwrap_err();
        assert_eq!(other, "VRF blue already exist with different routing table 9");
        assert_eq!(words(0, &there(None)).unwrap_err(), "Netlink blue is not a VRF");
        let member = Details { controller: Some(3), ..link(2, "eth0", None) };
        let links = [member, link(3, "br", None)];
        assert_eq!(words(0, &links).unwrap_err(), "interface eth0 has already a master set: br");
    }
}
