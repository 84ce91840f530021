//! `bridge`: a pair whose node end is a port of a bridge, which may have the gateways' addresses.

use std::net::IpAddr;
use std::os::fd::AsFd;

use serde_json::Map;

use super::interface::{self, Pair, describe, find, internal};
use super::{Answer, Command, Refusal, Request, code, delegate, masquerade};
use crate::cidr::{network, next};
use crate::cni::result::{Interface, Route, Success};
use crate::netlink::Socket;
use crate::netlink::route::{self, LinkAddress, Op};
use crate::netns::socket_in;
use crate::sysctl;

const DEFAULT_BRIDGE: &str = "cni0";
const DEFAULT_MTU: u32 = 1500;
/// What needs bridge VLAN filtering or the bridge family of nf_tables.
const NOT_BUILT: [&str; 4] = ["vlan", "vlanTrunk", "macspoofchk", "disableContainerInterface"];

/// The plugin's own keys.
#[derive(Debug)]
struct Settings {
    bridge: String,
    gateway: bool,
    default_gateway: bool,
    force_address: bool,
    masquerade: bool,
    mtu: u32,
    hairpin: bool,
    promiscuous: bool,
    isolated: bool,
}

pub(super) fn run(request: &Request) -> Answer {
    let settings = settings(request)?;
    match request.command {
        Command::Add => add(request, &settings).map(Some),
        Command::Del => {
            delegate::forward(request)?;
            interface::delete(request)?;
            masquerade::release(request).map(|()| None)
        }
        Command::Check => {
            delegate::forward(request)?;
            let bridge = find(&mut interface::node()?, &settings.bridge)?;
            if bridge.kind != "bridge" {
                return Err(not_a_bridge(&settings.bridge));
            }
            interface::check(request).map(|()| None)
        }
        Command::Gc => {
            delegate::forward(request)?;
            masquerade::collect(request).map(|()| None)
        }
        Command::Status => delegate::forward(request).map(|()| None),
    }
}

fn settings(request: &Request) -> Result<Settings, Refusal> {
    let conf = &request.conf;
    NOT_BUILT.iter().try_for_each(|key| conf.refuse(key))?;
    masquerade::check_backend(request)?;
    let default_gateway = conf.flag("isDefaultGateway")?;
    let settings = Settings {
        bridge: conf.text("bridge")?.filter(|b| !b.is_empty()).unwrap_or(DEFAULT_BRIDGE).to_owned(),
        gateway: conf.flag("isGateway")? || default_gateway,
        default_gateway,
        force_address: conf.flag("forceAddress")?,
        masquerade: conf.flag("ipMasq")?,
        mtu: conf.number("mtu")?.filter(|mtu| *mtu > 0).unwrap_or(DEFAULT_MTU),
        hairpin: conf.flag("hairpinMode")?,
        promiscuous: conf.flag("promiscMode")?,
        isolated: conf.flag("portIsolation")?,
    };
    if settings.hairpin && settings.promiscuous {
        return Err(Refusal::config("cannot set hairpin mode and promiscuous mode at the same time"));
    }
    Ok(settings)
}

fn add(request: &Request, settings: &Settings) -> Result<Success, Refusal> {
    let ns = request.open_netns()?;
    let layer3 = request.conf.object("ipam")?.is_some_and(|i| i.get("type").is_some());
    if settings.default_gateway && !layer3 {
        return Err(Refusal::config("isDefaultGateway needs an ipam plugin"));
    }
    let mac = interface::wanted_mac(request)?;
    let mut node = interface::node()?;
    make_bridge(&mut node, settings)?;
    let mut result = if layer3 { delegate::allocate(request)? } else { Success::default() };
    route_by_gateway(&mut result, settings);
    let made =
        attach(request, settings, &mut node, &result, &Pair::of(request, mac, settings.mtu), ns.as_fd());
    interface::undo_if_failed(request, &made);
    result.interfaces = made?.into();
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
    interface::set_dns(request, &mut result)?;
    Ok(result)
}

/// Pair, pod, gateway, masquerade: what the pod has afterwards.
fn attach(
    request: &Request,
    settings: &Settings,
    node: &mut Socket,
    result: &Success,
    pair: &Pair,
    ns: std::os::fd::BorrowedFd<'_>,
) -> Result<[Interface; 3], Refusal> {
    let port = Op::Port {
        link: pair.host.clone(),
        bridge: settings.bridge.clone(),
        hairpin: settings.hairpin,
        isolated: settings.isolated,
    };
    interface::run(node, &[pair.create(request), port, Op::Up(pair.host.clone())], ns)?;
    let ipv6 = result.ips.iter().any(|ip| ip.address.0.is_ipv6());
    interface::quiet(&pair.host, ipv6)?;
    let mut pod = socket_in(ns)?;
    let mut inside = interface::configure(&request.interface, result, true)?;
    if result.ips.is_empty() {
        inside = vec![Op::Up(request.interface.clone())];
    }
    if settings.gateway {
        make_gateway(node, settings, result)?;
        sysctl::forward(ipv6)?;
    }
    route::run(&mut pod, &inside, None)?;
    if settings.masquerade {
        masquerade::add(request, result)?;
    }
    Ok([
        describe(&find(node, &settings.bridge)?, ""),
        describe(&find(node, &pair.host)?, ""),
        describe(&find(&mut pod, &request.interface)?, &interface::sandbox(request)),
    ])
}

fn make_bridge(node: &mut Socket, settings: &Settings) -> Result<(), Refusal> {
    let name = &settings.bridge;
    match route::link(node, name).map_err(internal)? {
        Some(link) if link.kind != "bridge" => return Err(not_a_bridge(name)),
        Some(_) => {}
        None => {
            route::run(
                node,
                &[Op::Bridge { name: name.clone(), mac: Some(interface::random_mac()?) }],
                None,
            )?;
        }
    }
    let mut ops = Vec::new();
    if settings.promiscuous {
        ops.push(Op::Promiscuous(name.clone()));
    }
    ops.push(Op::Up(name.clone()));
    route::run(node, &ops, None)?;
    interface::quiet(name, sysctl::ipv6_enabled())
}

/// Gateways that nobody named are the first address of the subnet; with `isDefaultGateway` they get the default route.
fn route_by_gateway(result: &mut Success, settings: &Settings) {
    if !settings.gateway {
        return;
    }
    for ip in &mut result.ips {
        let (address, prefix) = ip.address;
        let gateway = *ip.gateway.get_or_insert_with(|| next(network(address, prefix)));
        let everywhere: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
        let to = (everywhere, 0);
        if settings.default_gateway && !result.routes.iter().any(|r| r.to == to) {
            result.routes.push(Route { to, via: Some(gateway), details: Map::new() });
        }
    }
}

/// Gives the bridge the gateways' addresses. Another address of the subnet's family is refused, or removed if told so.
fn make_gateway(node: &mut Socket, settings: &Settings, result: &Success) -> Result<(), Refusal> {
    let bridge = find(node, &settings.bridge)?;
    let all = route::addresses(node).map_err(internal)?;
    let present: Vec<LinkAddress> =
        all.into_iter().filter(|a| a.link == bridge.index && !a.link_local).collect();
    let mut ops = Vec::new();
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let wanted = (gateway, ip.address.1);
        if present.iter().any(|a| a.address == wanted) {
            continue;
        }
        // IPv6 allows several, as long as their subnets are apart.
        let clashes = |a: &&LinkAddress| {
            let (other, length) = a.address;
            let common = length.min(wanted.1);
            other.is_ipv4() == gateway.is_ipv4()
                && (gateway.is_ipv4() || network(other, common) == network(gateway, common))
        };
        for clash in present.iter().filter(clashes) {
            let (address, prefix) = clash.address;
            if !settings.force_address {
                let msg = format!(
                    "\"{}\" already has an IP address different from {gateway}/{}",
                    settings.bridge, wanted.1
                );
                return Err(Refusal::new(code::INTERNAL, msg));
            }
            ops.push(Op::DropAddress { link: settings.bridge.clone(), address, prefix });
        }
        ops.push(Op::Subnet {
            link: settings.bridge.clone(),
            address: gateway,
            prefix: wanted.1,
            connected: true,
        });
    }
    Ok(route::run(node, &ops, None)?)
}

fn not_a_bridge(name: &str) -> Refusal {
    Refusal::new(code::INTERNAL, format!("\"{name}\" already exists but is not a bridge"))
}
