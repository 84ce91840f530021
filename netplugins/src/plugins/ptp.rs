//! `ptp`: a pair, routed. The node's end has the gateways' addresses and a route to each pod address.

use std::os::fd::AsFd;

use super::interface::{self, Pair, describe, find};
use super::{Answer, Command, Refusal, Request, delegate, masquerade};
use crate::cidr::width;
use crate::cni::result::Success;
use crate::netlink::op::Path;
use crate::netlink::policy::Policy;
use crate::netlink::route::{self, Op};
use crate::netns::socket_in;
use crate::sysctl;

const DEFAULT_MTU: u32 = 1500;
/// `RT_SCOPE_HOST`, as the reference plugin has it.
const HOST_SCOPE: u8 = 254;

pub(super) fn run(request: &Request) -> Answer {
    masquerade::check_backend(request)?;
    match request.command {
        Command::Add => add(request).map(Some),
        Command::Del => {
            delegate::forward(request)?;
            interface::delete(request)?;
            masquerade::release(request).map(|()| None)
        }
        Command::Check => {
            delegate::forward(request)?;
            interface::check(request).map(|()| None)
        }
        Command::Gc => {
            delegate::forward(request)?;
            masquerade::collect(request).map(|()| None)
        }
        Command::Status => delegate::forward(request).map(|()| None),
    }
}

/// What the node needs to reach the pod.
fn on_node(pair: &Pair, request: &Request, result: &Success) -> Vec<Op> {
    let link = pair.host.clone();
    let mut ops = vec![pair.create(request), Op::Up(link.clone())];
    for ip in &result.ips {
        let (address, _) = ip.address;
        if let Some(gateway) = ip.gateway {
            ops.push(Op::Address { link: link.clone(), address: gateway, prefix: width(gateway) });
        }
        ops.push(Op::Neighbour { link: link.clone(), address, mac: pair.pod_mac });
        let path = Path { scope: Some(HOST_SCOPE), ..Path::new((address, width(address))) };
        ops.push(Op::Policy(Policy::ReplacePath { link: link.clone(), path }));
    }
    ops
}

fn add(request: &Request) -> Result<Success, Refusal> {
    let ns = request.open_netns()?;
    let mtu = request.conf.number("mtu")?.filter(|mtu| *mtu > 0).unwrap_or(DEFAULT_MTU);
    let pair = Pair::of(request, None, mtu);
    let masquerades = request.conf.flag("ipMasq")?;
    let mut result = delegate::allocate(request)?;
    let made = (|| {
        if result.ips.iter().any(|ip| ip.gateway.is_none()) {
            return Err(Refusal::config("ptp needs a gateway for every address"));
        }
        let ipv6 = result.ips.iter().any(|ip| ip.address.0.is_ipv6());
        sysctl::forward(ipv6)?;
        let mut node = interface::node()?;
        interface::run(&mut node, &on_node(&pair, request, &result), ns.as_fd())?;
        interface::quiet(&pair.host, ipv6)?;
        let mut pod = socket_in(ns.as_fd())?;
        route::run(&mut pod, &interface::configure(&request.interface, &result, false)?, None)?;
        if masquerades {
            masquerade::add(request, &result)?;
        }
        let host = describe(&find(&mut node, &pair.host)?, "");
        let inside = describe(&find(&mut pod, &request.interface)?, &interface::sandbox(request));
        Ok([host, inside])
    })();
    interface::undo_if_failed(request, &made);
    result.interfaces = made?.into();
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(1));
    interface::set_dns(request, &mut result)?;
    Ok(result)
}
