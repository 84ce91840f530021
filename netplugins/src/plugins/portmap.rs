//! `portmap`: ports of the node that lead to the pod, after the plugins that made the pod's interface.
//!
//! The table `berth_ports` is the built-in network's without its masquerade ([`ruleset`](crate::nft::ruleset)), stated whole
//! by every ADD. An entry's comment names its owner; a port that another pod has is refused, and the owner named.

use std::net::IpAddr;

use rustix::io::Errno;

use super::conf::Conf;
use super::interface::internal;
use super::{Answer, Command, Refusal, Request, code, owner};
use crate::cni::result::Success;
use crate::netlink::{NETLINK_NETFILTER, Socket, conntrack, route};
use crate::nft::element::Element;
use crate::nft::{self, Transaction, ruleset};
use crate::{HostPort, Protocol, sysctl};

const TABLE: &str = "berth_ports";
const SETS: [&str; 8] = ["hpip4", "hp4", "self4", "all4", "hpip6", "hp6", "self6", "all6"];
/// What only rules per pod, or iptables, could do.
const NOT_BUILT: [&str; 3] = ["conditionsV4", "conditionsV6", "externalSetMarkChain"];
/// Bits of a packet's mark.
const MARK_BITS: u32 = 32;
/// UDP, whose flows have no end that the kernel could see.
const UDP: u8 = 17;

pub(super) fn run(request: &Request) -> Answer {
    NOT_BUILT.iter().try_for_each(|key| request.conf.refuse(key))?;
    if let Some(other) = request.conf.text("backend")?.filter(|b| !matches!(*b, "" | "nftables")) {
        return Err(Refusal::new(code::UNSUPPORTED, format!("backend \"{other}\" is not supported")));
    }
    // Which mark tells the packets to masquerade: here it is the packet's own connection, so that any bit will do.
    if request.conf.number("markMasqBit")?.is_some_and(|bit| bit >= MARK_BITS) {
        return Err(Refusal::config("MasqMarkBit must be between 0 and 31"));
    }
    let own = owner::own(request);
    match request.command {
        Command::Add => add(request, &own).map(Some),
        Command::Del => remove(|comment| comment == own).map(|()| None),
        Command::Check => check(request, &own).map(|()| None),
        Command::Gc => remove(owner::gone(request)).map(|()| None),
        Command::Status => Ok(None),
    }
}

fn add(request: &Request, own: &str) -> Result<Success, Refusal> {
    let previous = request.previous()?.ok_or_else(|| Refusal::config("must be called as chained plugin"))?;
    let ports = ports(&request.conf)?;
    if ports.is_empty() {
        return Ok(previous);
    }
    let elements = elements(request, &previous, &ports, own)?;
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    let mut transaction = Transaction::new(TABLE);
    transaction.add_table();
    ruleset::publishing(&mut transaction);
    transaction.add_elements(&elements);
    transaction.commit(&mut socket).map_err(|r| match r.failure.errno() {
        Some(Errno::EXIST) => taken(&mut socket, &elements),
        _ => internal(r.failure),
    })?;
    forget(|flow| {
        ports.iter().any(|p| p.protocol == Protocol::Udp && flow.original.destination_port == p.host_port)
    });
    // 127.0.0.1 of the node leads to the pod as well: its replies come back by the pod's link.
    if let Some(ip) = first(&previous, true) {
        let mut node = Socket::open(crate::netlink::NETLINK_ROUTE).map_err(internal)?;
        if let Some(link) = route::output(&mut node, ip).map_err(internal)? {
            sysctl::set(&format!("ipv4/conf/{link}/route_localnet"), "1")?;
        }
    }
    Ok(previous)
}

/// Names the owner of the first entry that is taken.
fn taken(socket: &mut Socket, wanted: &[Element]) -> Refusal {
    for set in SETS {
        let held = nft::dump(socket, TABLE, set).unwrap_or_default();
        let clash =
            held.iter().find(|h| wanted.iter().any(|w| w.set == h.set && w.key == h.key && w.data != h.data));
        if let Some(clash) = clash {
            let owner = clash.comment.as_deref().unwrap_or("somebody else");
            return Refusal::new(
                code::INTERNAL,
                format!("host port is published by {owner} already: {clash}"),
            );
        }
    }
    Refusal::new(code::INTERNAL, "a host port is published already")
}

fn check(request: &Request, own: &str) -> Result<(), Refusal> {
    let previous = request.previous()?.ok_or_else(|| Refusal::config("required prevResult missing"))?;
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    let ports = ports(&request.conf)?;
    if ports.is_empty() {
        return Ok(());
    }
    let wanted = elements(request, &previous, &ports, own)?;
    let mut held = Vec::new();
    for set in SETS {
        held.extend(nft::dump(&mut socket, TABLE, set).map_err(internal)?);
    }
    match wanted.iter().find(|w| !held.contains(w)) {
        None => Ok(()),
        Some(missing) => Err(Refusal::new(code::INTERNAL, format!("nft entry {missing} is gone"))),
    }
}

fn remove(chosen: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    let mut doomed = Vec::new();
    for set in SETS {
        let held = nft::dump(&mut socket, TABLE, set).map_err(internal)?;
        doomed.extend(held.into_iter().filter(|e| e.comment.as_deref().is_some_and(&chosen)));
    }
    if doomed.is_empty() {
        return Ok(());
    }
    let mut transaction = Transaction::new(TABLE);
    transaction.delete_elements(&doomed);
    match transaction.commit(&mut socket) {
        Err(r) if r.failure.errno() != Some(Errno::NOENT) => return Err(internal(r.failure)),
        _ => {}
    }
    let pods: Vec<IpAddr> = doomed.iter().filter_map(Element::target).collect();
    forget(|flow| flow.reply.source.is_some_and(|ip| pods.contains(&ip)));
    Ok(())
}

/// Ends UDP flows whose way has changed: a client that keeps sending would keep them on the old one. That it cannot be
/// done does not make the ports any worse.
fn forget(chosen: impl Fn(&conntrack::Flow) -> bool) {
    let forgotten = Socket::open(NETLINK_NETFILTER)
        .and_then(|mut socket| conntrack::forget(&mut socket, |f| f.original.protocol == UDP && chosen(f)));
    if let Err(e) = forgotten {
        tracing::warn!("stale flows of host ports are kept: {}", crate::error::chain(&e));
    }
}

/// What the pod adds to the table.
fn elements(
    request: &Request,
    previous: &Success,
    ports: &[HostPort],
    own: &str,
) -> Result<Vec<Element>, Refusal> {
    let mut all = Vec::new();
    let everything = request.conf.flag("masqAll")?;
    let snat = request.conf.get("snat").is_none() || request.conf.flag("snat")?;
    for ip in [true, false].into_iter().filter_map(|ipv4| first(previous, ipv4)) {
        for port in ports {
            let on = port.host_ip.map(|on| on.to_canonical());
            if on.is_some_and(|on| on.is_ipv4() != ip.is_ipv4()) {
                continue;
            }
            let on = on.filter(|on| !on.is_unspecified());
            all.push(Element::port(port.protocol, on, port.host_port, (ip, port.container_port)));
        }
        if snat {
            let [_, hairpin] = Element::pod(ip);
            all.push(hairpin);
        }
        if snat && everything {
            all.push(Element::owned(if ip.is_ipv4() { "all4" } else { "all6" }, ip, own));
        }
    }
    all.iter_mut().for_each(|e| e.comment = Some(own.to_owned()));
    Ok(all)
}

/// The pod's first address of a family.
fn first(previous: &Success, ipv4: bool) -> Option<IpAddr> {
    previous.pod_addresses().into_iter().map(|(ip, _)| ip).find(|ip| ip.is_ipv4() == ipv4)
}

fn ports(conf: &Conf) -> Result<Vec<HostPort>, Refusal> {
    let Some(runtime) = conf.object("runtimeConfig")? else { return Ok(Vec::new()) };
    runtime.objects("portMappings")?.iter().map(port).collect()
}

fn port(entry: &Conf) -> Result<HostPort, Refusal> {
    let number = |key: &str| {
        let value = entry.number(key)?.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        value.ok_or_else(|| Refusal::config(format!("invalid {key} number")))
    };
    let protocol = entry.text("protocol")?.unwrap_or_default().to_ascii_lowercase();
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.name() == protocol);
    Ok(HostPort {
        protocol: protocol.ok_or_else(|| Refusal::config("invalid protocol of a port mapping"))?,
        host_port: number("hostPort")?,
        container_port: number("containerPort")?,
        host_ip: entry.address("hostIP")?,
    })
}
