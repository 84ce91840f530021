//! What `bridge` and `ptp` share: a pair whose far end is the pod's interface, and that interface's configuration.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use sha2::{Digest, Sha256};

use super::{Refusal, Request, code, delegate, masquerade};
use crate::cidr::{network, width};
use crate::cni::result::{Interface, Route, Success};
use crate::netlink::route::{self, Link, Mac, Op};
use crate::netlink::{NETLINK_ROUTE, Socket, policy};
use crate::netns::socket_in;
use crate::sysctl;

/// `RT_SCOPE_LINK`.
const LINK_SCOPE: u8 = 253;

/// The pair of one attachment.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) host: String,
    pub(super) host_mac: Mac,
    pub(super) pod_mac: Mac,
    pub(super) mtu: u32,
}

impl Pair {
    /// Names and addresses follow from the attachment: the same again after DEL.
    pub(super) fn of(request: &Request, mac: Option<Mac>, mtu: u32) -> Self {
        let pair = Self::named(&format!("{}/{}", request.container, request.interface), mtu);
        Self { pod_mac: mac.unwrap_or(pair.pod_mac), ..pair }
    }

    /// A pair whose names and addresses follow from a text.
    pub(super) fn named(text: &str, mtu: u32) -> Self {
        let digest = Sha256::digest(text);
        let byte = |at: usize| digest.get(at).copied().unwrap_or_default();
        let name: String = (0..4).map(|at| format!("{:02x}", byte(at))).collect();
        // Locally administered, unicast.
        let address = |at: usize| {
            [0x02 | byte(at) & 0xfc, byte(at + 1), byte(at + 2), byte(at + 3), byte(at + 4), byte(at + 5)]
        };
        Self { host: format!("veth{name}"), host_mac: address(4), pod_mac: address(10), mtu }
    }

    pub(super) fn create(&self, request: &Request) -> Op {
        Op::Veth {
            name: self.host.clone(),
            mac: self.host_mac,
            mtu: self.mtu,
            peer: request.interface.clone(),
            peer_mac: self.pod_mac,
        }
    }
}

/// Addresses and routes of the pod's interface (decided), in the order that the kernel needs.
pub(super) fn configure(link: &str, result: &Success, connected: bool) -> Result<Vec<Op>, Refusal> {
    let mut ops = Vec::new();
    for ip in &result.ips {
        let (address, prefix) = ip.address;
        ops.push(Op::Subnet { link: link.into(), address, prefix, connected });
    }
    ops.push(Op::Up(link.into()));
    if !connected {
        // The next hop first, then the rest of the subnet through it.
        for ip in &result.ips {
            let (Some(gateway), (address, prefix)) = (ip.gateway, ip.address) else { continue };
            let scope = gateway.is_ipv4().then_some(LINK_SCOPE);
            let hop =
                route::Path { source: Some(address), scope, ..route::Path::new((gateway, width(gateway))) };
            ops.push(Op::Path { link: link.into(), path: hop });
            if prefix < width(address) {
                let subnet = route::Path::new((network(address, prefix), prefix));
                let subnet = route::Path { via: Some(gateway), source: Some(address), ..subnet };
                ops.push(Op::Path { link: link.into(), path: subnet });
            }
        }
    }
    for route in &result.routes {
        ops.push(Op::Path { link: link.into(), path: path(route, result)? });
    }
    Ok(ops)
}

/// A route without a next hop goes to the gateway of its family.
fn path(route: &Route, result: &Success) -> Result<route::Path, Refusal> {
    let ipv4 = route.to.0.is_ipv4();
    let gateway = result.ips.iter().filter_map(|ip| ip.gateway).find(|g| g.is_ipv4() == ipv4);
    let number = |key: &str| {
        let value = route.details.get(key).filter(|v| !v.is_null());
        let read = value.map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok()));
        read.map(|n| n.ok_or_else(|| Refusal::config(format!("route {key} is not a number")))).transpose()
    };
    let scope = number("scope")?.map(u8::try_from).transpose();
    let scope = scope.map_err(|_| Refusal::config("route scope is larger than 255"))?;
    // A route of link scope has no next hop.
    let via = if scope == Some(LINK_SCOPE) { route.via } else { route.via.or(gateway) };
    Ok(route::Path {
        to: route.to,
        via,
        source: None,
        mtu: number("mtu")?.filter(|n| *n > 0),
        advmss: number("advmss")?.filter(|n| *n > 0),
        priority: number("priority")?.filter(|n| *n > 0),
        table: number("table")?,
        scope,
    })
}

/// A socket of the node.
pub(super) fn node() -> Result<Socket, Refusal> {
    Socket::open(NETLINK_ROUTE).map_err(internal)
}

/// A link that must exist.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Link, Refusal> {
    let found = route::link(socket, name).map_err(internal)?;
    found.ok_or_else(|| Refusal::new(code::INTERNAL, format!("failed to find link \"{name}\"")))
}

/// How a link shows in a result.
pub(super) fn describe(link: &Link, sandbox: &str) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.clone(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}

/// Keeps pods from posing as routers to the node (CVE-2020-13401).
pub(super) fn quiet(link: &str, ipv6: bool) -> Result<(), Refusal> {
    if ipv6 {
        sysctl::set(&format!("ipv6/conf/{link}/accept_ra"), "0")?;
    }
    Ok(())
}

/// After a failure nothing is left: no pair, no address, no masquerade.
pub(super) fn undo_if_failed<T>(request: &Request, made: &Result<T, Refusal>) {
    if made.is_err() {
        // What fails here fails again in the DEL that follows a failed ADD.
        let _ = delete(request);
        let _ = masquerade::release(request);
        delegate::give_back(request);
    }
}

/// The namespace's path, as results name it.
pub(super) fn sandbox(request: &Request) -> String {
    request.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default()
}

/// The network's `dns`, where it has one, replaces the address manager's.
pub(super) fn set_dns(request: &Request, result: &mut Success) -> Result<(), Refusal> {
    let given = request.conf.object("dns")?.map(|dns| dns.value());
    if let Some(serde_json::Value::Object(dns)) =
        given.filter(|v| v.as_object().is_some_and(|o| !o.is_empty()))
    {
        result.dns = dns;
    }
    Ok(())
}

/// Deletes the pod's interface, which takes the other end along; gone already is fine.
pub(super) fn delete(request: &Request) -> Result<(), Refusal> {
    let Some(ns) = request.netns_if_there() else { return Ok(()) };
    route::delete(&mut socket_in(ns.as_fd())?, &request.interface).map_err(internal)
}

/// The pod's interface has the addresses and is up, and the routes are there, as the kept result says.
pub(super) fn check(request: &Request) -> Result<(), Refusal> {
    check_state(request, true)
}

/// The same, of an interface that need not be up.
pub(super) fn check_state(request: &Request, up: bool) -> Result<(), Refusal> {
    let previous = request.previous()?.ok_or_else(|| Refusal::config("required prevResult missing"))?;
    let ns = request.open_netns()?;
    let mut socket = socket_in(ns.as_fd())?;
    let link = find(&mut socket, &request.interface)?;
    if up && !link.up {
        return Err(Refusal::new(code::INTERNAL, format!("interface {} is down", request.interface)));
    }
    let present = route::addresses(&mut socket).map_err(internal)?;
    let own: Vec<(IpAddr, u8)> = present.iter().filter(|a| a.link == link.index).map(|a| a.address).collect();
    if let Some((ip, length)) = previous.pod_addresses().iter().find(|wanted| !own.contains(wanted)) {
        let msg = format!("interface {} does not have address {ip}/{length}", request.interface);
        return Err(Refusal::new(code::INTERNAL, msg));
    }
    let held = policy::paths(&mut socket).map_err(internal)?;
    let there = |route: &&Route| {
        let to = (network(route.to.0, route.to.1), route.to.1);
        held.iter().any(|h| h.path.to == to && (route.via.is_none() || h.path.via == route.via))
    };
    match previous.routes.iter().find(|route| !there(route)) {
        None => Ok(()),
        Some(route) => {
            let msg = format!("expected route {}/{} not found", route.to.0, route.to.1);
            Err(Refusal::new(code::INTERNAL, msg))
        }
    }
}

/// Carries out a plan on the node; the far end of a pair is born in `ns`.
pub(super) fn run(socket: &mut Socket, ops: &[Op], ns: BorrowedFd<'_>) -> Result<(), Refusal> {
    Ok(route::run(socket, ops, Some(ns))?)
}

/// An address that nobody else has.
pub(super) fn random_mac() -> Result<Mac, Refusal> {
    const SOURCE: &str = "/proc/sys/kernel/random/uuid";
    let text = std::fs::read_to_string(SOURCE)
        .map_err(|e| Refusal::new(code::IO, format!("cannot read {SOURCE}: {e}")))?;
    let digest = Sha256::digest(text.as_bytes());
    let mut mac = Mac::default();
    mac.iter_mut().zip(digest.iter()).for_each(|(to, from)| *to = *from);
    // Locally administered, unicast.
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

/// `aa:bb:cc:dd:ee:ff`
pub(super) fn parse_mac(text: &str) -> Result<Mac, Refusal> {
    let parsed: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok()).collect();
    let parsed = parsed.and_then(|bytes| Mac::try_from(bytes).ok());
    parsed.ok_or_else(|| Refusal::config(format!("invalid MAC address \"{text}\"")))
}

/// The address asked for: `MAC` of CNI_ARGS, then `args.cni.mac`, then `runtimeConfig.mac`, the last one wins.
pub(super) fn wanted_mac(request: &Request) -> Result<Option<Mac>, Refusal> {
    let mut wanted = request.args.get("MAC").cloned();
    if let Some(cni) = request.conf.object("args")?.map(|a| a.object("cni")).transpose()?.flatten() {
        wanted = cni.text("mac")?.map(str::to_owned).or(wanted);
    }
    if let Some(runtime) = request.conf.object("runtimeConfig")? {
        wanted = runtime.text("mac")?.map(str::to_owned).or(wanted);
    }
    wanted.filter(|m| !m.is_empty()).map(|m| parse_mac(&m)).transpose()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn internal(failure: crate::netlink::Failure) -> Refusal {
    Refusal::new(code::INTERNAL, crate::error::chain(&failure))
}
