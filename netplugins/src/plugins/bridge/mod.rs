//! `bridge`: a pair whose node end is a port of a bridge, which may have the gateways' addresses.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use serde_json::Map;

use self::settings::Settings;
use super::interface::{self, Pair, describe, find, internal};
use super::{Answer, Command, Refusal, Request, code, delegate, masquerade, spoof};
use crate::cidr::{network, next};
use crate::cni::result::{Interface, Route, Success};
use crate::netlink::device::{Change, Device};
use crate::netlink::route::{self, LinkAddress, Op};
use crate::netlink::{Socket, dad};
use crate::netns::{self, inside, socket_in};
use crate::sysctl;

mod settings;

pub(super) fn run(request: &Request) -> Answer {
    let settings = settings::read(request)?;
    match request.command {
        Command::Add => add(request, &settings).map(Some),
        Command::Del => {
            delegate::forward(request)?;
            interface::delete(request)?;
            spoof::release(request)?;
            masquerade::release(request).map(|()| None)
        }
        Command::Check => {
            delegate::forward(request)?;
            let bridge = find(&mut interface::node()?, &settings.bridge)?;
            if bridge.kind != "bridge" {
                return Err(not_a_bridge(&settings.bridge));
            }
            interface::check_state(request, !settings.leave_down).map(|()| None)
        }
        Command::Gc => {
            delegate::forward(request)?;
            spoof::collect(request)?;
            masquerade::collect(request).map(|()| None)
        }
        Command::Status => delegate::forward(request).map(|()| None),
    }
}

fn add(request: &Request, settings: &Settings) -> Result<Success, Refusal> {
    let ns = request.open_netns()?;
    let mac = interface::wanted_mac(request)?;
    let mut node = interface::node()?;
    make_bridge(&mut node, settings)?;
    let mut result = if settings.layer3 { delegate::allocate(request)? } else { Success::default() };
    route_by_gateway(&mut result, settings);
    let pair = Pair::of(request, mac, settings.mtu);
    let made = attach(request, settings, &mut node, &result, &pair, ns.as_fd());
    if made.is_err() {
        let _ = spoof::release(request);
    }
    interface::undo_if_failed(request, &made);
    result.interfaces = made?;
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
    ns: BorrowedFd<'_>,
) -> Result<Vec<Interface>, Refusal> {
    interface::run(node, &[pair.create(request)], ns)?;
    if settings.spoof_check {
        // Before the port is up: no frame passes unchecked.
        spoof::add(request, &pair.host, pair.pod_mac)?;
    }
    let mut ops = settings.port(&pair.host, settings.hairpin, &settings.trunk);
    ops.push(Op::Up(pair.host.clone()));
    interface::run(node, &ops, ns)?;
    let ipv6 = result.ips.iter().any(|ip| ip.address.0.is_ipv6());
    interface::quiet(&pair.host, ipv6)?;
    let mut pod = socket_in(ns)?;
    let mut extra = None;
    if settings.gateway && settings.layer3 {
        extra = make_gateway(node, settings, result, ns)?;
        sysctl::forward(ipv6)?;
    }
    in_pod(request, settings, &mut pod, result, ns)?;
    if settings.masquerade && settings.layer3 {
        masquerade::add(request, result)?;
    }
    let mut all = vec![
        describe(&find(node, &settings.bridge)?, ""),
        describe(&find(node, &pair.host)?, ""),
        describe(&find(&mut pod, &request.interface)?, &interface::sandbox(request)),
    ];
    all.extend(extra);
    Ok(all)
}

/// The pod's side.
fn in_pod(
    request: &Request,
    settings: &Settings,
    pod: &mut Socket,
    result: &Success,
    ns: BorrowedFd<'_>,
) -> Result<(), Refusal> {
    let link = &request.interface;
    if result.ips.is_empty() {
        let ops = if settings.leave_down { vec![] } else { vec![Op::Up(link.clone())] };
        return Ok(route::run(pod, &ops, None)?);
    }
    // The bridge may know the address of an earlier owner.
    let announce = Op::Device(Device::Set { link: link.clone(), change: Change::ArpNotify });
    let mut ops = vec![announce];
    ops.extend(interface::configure(link, result, true)?);
    let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.0).filter(IpAddr::is_ipv6).collect();
    if !settings.duplicate_check || addresses.is_empty() {
        return Ok(netns::apply(pod, &ops, ns)?);
    }
    inside(ns, || {
        ["enhanced_dad", "accept_dad"]
            .iter()
            .try_for_each(|s| sysctl::set(&format!("ipv6/conf/{link}/{s}"), "1"))
    })??;
    let (first, routes) = dad::split(ops);
    let mut watch = inside(ns, dad::Watch::open)?.map_err(internal)?;
    netns::apply(pod, &first, ns)?;
    watch.settle(pod, &addresses).map_err(internal)?;
    Ok(route::run(pod, &routes, None)?)
}

fn make_bridge(node: &mut Socket, settings: &Settings) -> Result<(), Refusal> {
    let name = &settings.bridge;
    match route::link(node, name).map_err(internal)? {
        Some(link) if link.kind != "bridge" => return Err(not_a_bridge(name)),
        Some(_) => {}
        None => {
            let mac = Some(interface::random_mac()?);
            let ops = [Op::Bridge { name: name.clone(), mac, mtu: Some(settings.mtu) }];
            route::run(node, &ops, None)?;
        }
    }
    route::run(node, &settings.bridge(), None)?;
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
///
/// In a VLAN the bridge has none of its own: a pair is made, one end a port in the VLAN, the other the gateway. It stays,
/// as the bridge does, and is told in the result.
fn make_gateway(
    node: &mut Socket,
    settings: &Settings,
    result: &Success,
    ns: BorrowedFd<'_>,
) -> Result<Option<Interface>, Refusal> {
    let name = settings.gateway_link();
    if settings.vlan.is_some() && route::link(node, &name).map_err(internal)?.is_none() {
        let pair = Pair::named(&name, settings.mtu);
        let ends = Op::Veth {
            name: pair.host.clone(),
            mac: pair.host_mac,
            mtu: pair.mtu,
            peer: name.clone(),
            peer_mac: pair.pod_mac,
        };
        route::run(node, &[ends], None)?;
        let mut ops = settings.port(&pair.host, false, &[]);
        ops.extend([Op::Up(pair.host), Op::Up(name.clone())]);
        interface::run(node, &ops, ns)?;
    }
    let bridge = find(node, &name)?;
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
                let msg =
                    format!("\"{name}\" already has an IP address different from {gateway}/{}", wanted.1);
                return Err(Refusal::new(code::INTERNAL, msg));
            }
            ops.push(Op::DropAddress { link: name.clone(), address, prefix });
        }
        ops.push(Op::Subnet { link: name.clone(), address: gateway, prefix: wanted.1, connected: true });
    }
    route::run(node, &ops, None)?;
    Ok(settings.vlan.map(|_| describe(&bridge, "")))
}

fn not_a_bridge(name: &str) -> Refusal {
    Refusal::new(code::INTERNAL, format!("\"{name}\" already exists but is not a bridge"))
}
