//! `bandwidth`: limits what the pod receives and sends, after the plugin that made its pair.
//!
//! Both limits are on the node's side, where a pod cannot remove them: what the node's end of the pair sends is what the
//! pod receives; what it receives is redirected to an `ifb` link whose sending is limited. Rates are bits per second.

use std::os::fd::AsFd;

use sha2::{Digest, Sha512};

use super::conf::Conf;
use super::interface::{self, internal};
use super::{Answer, Command, Refusal, Request, code};
use crate::bandwidth::Bucket;
use crate::cni::config::at_least;
use crate::cni::result::{Interface, Success};
use crate::netlink::device::{Change, Details, Device, Kind};
use crate::netlink::op::Op;
use crate::netlink::tc;
use crate::netlink::{Socket, route};
use crate::netns::socket_in;

const PREFIX: &str = "bwp";
const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// What may wait, as time.
const LATENCY_MS: u64 = 25;

/// Both directions, as the pod sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Limits {
    ingress: Option<Bucket>,
    egress: Option<Bucket>,
}

pub(super) fn run(request: &Request) -> Answer {
    if !at_least(&request.version, "0.3.0") {
        let details = format!("config is \"{}\", plugin supports 0.3.0 and newer", request.version);
        return Err(Refusal { code: code::VERSION, msg: "incompatible CNI versions".into(), details });
    }
    let limits = limits(&request.conf)?;
    match request.command {
        Command::Add => add(request, limits).map(Some),
        Command::Del => {
            let mut node = interface::node()?;
            route::delete(&mut node, &ifb(request)).map_err(internal).map(|()| None)
        }
        Command::Check => check(request, limits).map(|()| None),
        Command::Gc => collect(request).map(|()| None),
        Command::Status => Ok(None),
    }
}

/// What is written wins over `runtimeConfig.bandwidth`.
fn limits(conf: &Conf) -> Result<Limits, Refusal> {
    let runtime = conf.object("runtimeConfig")?.map(|r| r.object("bandwidth")).transpose()?.flatten();
    let written = KEYS.iter().any(|key| conf.get(key).is_some());
    let source = if written { Some(conf.clone()) } else { runtime };
    let Some(source) = source else { return Ok(Limits::default()) };
    let [ingress, ingress_burst, egress, egress_burst] = KEYS.map(|key| source.wide_number(key));
    Ok(Limits {
        ingress: bucket(ingress?.unwrap_or_default(), ingress_burst?.unwrap_or_default())?,
        egress: bucket(egress?.unwrap_or_default(), egress_burst?.unwrap_or_default())?,
    })
}

/// Bits to bytes.
fn bucket(rate: u64, burst: u64) -> Result<Option<Bucket>, Refusal> {
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => Err(Refusal::config("if rate is set, burst must also be set")),
        (0, _) => Err(Refusal::config("if burst is set, rate must also be set")),
        (rate, burst) => match u32::try_from(burst / 8).ok().filter(|b| *b < u32::MAX) {
            Some(burst) => {
                let rate = rate / 8;
                let waiting = rate.saturating_mul(LATENCY_MS) / 1000;
                let limit = u32::try_from(waiting.saturating_add(burst.into())).unwrap_or(u32::MAX);
                Ok(Some(Bucket { rate, burst, limit }))
            }
            None => Err(Refusal::config("burst cannot be more than 4GB")),
        },
    }
}

/// Name of the attachment's `ifb` link; the reference plugin's, so that either can remove the other's.
fn ifb(request: &Request) -> String {
    let network = request.conf.text("name").ok().flatten().unwrap_or_default();
    let digest = Sha512::digest(format!("{network}{}", request.container));
    let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let room = crate::name::LINK_NAME_BYTES - PREFIX.len();
    format!("{PREFIX}{}", text.get(..room).unwrap_or_default())
}

/// What the `ifb` link's alias says of its owner.
fn alias(request: &Request, container: &str, interface: &str) -> String {
    let network = request.conf.text("name").ok().flatten().unwrap_or_default();
    format!("cni {network} {container}/{interface}")
}

/// The steps on the node; pure.
fn plan(host: &Details, ifb: &str, alias: &str, limits: Limits) -> Vec<Op> {
    let mut ops = Vec::new();
    if let Some(bucket) = limits.ingress {
        ops.push(Op::Limit { link: host.name.clone(), bucket });
    }
    if let Some(bucket) = limits.egress {
        ops.extend([
            Op::Ifb { name: ifb.into(), mtu: host.mtu },
            Op::Device(Device::Set { link: ifb.into(), change: Change::Alias(alias.into()) }),
            Op::Up(ifb.into()),
            Op::Ingress(host.name.clone()),
            Op::Divert { link: host.name.clone(), to: ifb.into() },
            Op::Limit { link: ifb.into(), bucket },
        ]);
    }
    ops
}

fn add(request: &Request, limits: Limits) -> Result<Success, Refusal> {
    let mut previous =
        request.previous()?.ok_or_else(|| Refusal::config("must be called as chained plugin"))?;
    if limits == Limits::default() {
        return Ok(previous);
    }
    let mut node = interface::node()?;
    let host = host_end(request, &mut node, &previous)?;
    let (ifb, alias) = (ifb(request), alias(request, &request.container, &request.interface));
    route::run(&mut node, &plan(&host, &ifb, &alias, limits), None).inspect_err(|_| {
        let _ = route::delete(&mut node, &ifb);
    })?;
    if limits.egress.is_some() {
        let mac = interface::find(&mut node, &ifb)?.mac;
        previous.interfaces.push(Interface { name: ifb, mac, ..Interface::default() });
    }
    Ok(previous)
}

/// The node's end of the pod's pair; it must be in the result.
fn host_end(request: &Request, node: &mut Socket, previous: &Success) -> Result<Details, Refusal> {
    let refuse = |msg: String| Refusal::new(code::INTERNAL, msg);
    if previous.interfaces.is_empty() {
        return Err(refuse("no interfaces provided".into()));
    }
    let ns = request.open_netns()?;
    let inside = route::details(&mut socket_in(ns.as_fd())?, &request.interface).map_err(internal)?;
    let peer = inside.filter(|link| link.word == "veth").and_then(|link| link.link);
    let peer =
        peer.ok_or_else(|| refuse(format!("container interface {} has no veth peer", request.interface)))?;
    let links = route::all_details(node).map_err(internal)?;
    let host = links.into_iter().find(|link| link.index == peer);
    let host = host.ok_or_else(|| refuse(format!("veth peer with index {peer} is not in host ns")))?;
    if previous.interfaces.iter().any(|i| i.sandbox.is_empty() && i.name == host.name) {
        return Ok(host);
    }
    Err(refuse("no veth peer of container interface found in host ns".into()))
}

fn check(request: &Request, limits: Limits) -> Result<(), Refusal> {
    let previous =
        request.previous()?.ok_or_else(|| Refusal::config("must be called as a chained plugin"))?;
    if limits == Limits::default() {
        return Ok(());
    }
    let mut node = interface::node()?;
    let host = host_end(request, &mut node, &previous)?;
    let mut wanted = Vec::new();
    wanted.extend(limits.ingress.map(|bucket| (host.index, host.name, bucket)));
    if let Some(bucket) = limits.egress {
        let ifb = interface::find(&mut node, &ifb(request))?;
        wanted.push((ifb.index, ifb.name, bucket));
    }
    for (index, name, bucket) in wanted {
        let found = tc::found(&mut node, index).map_err(internal)?;
        if found != Some((bucket.rate, bucket.limit)) {
            let msg = format!("{name} is limited to {found:?}, not to {:?}", (bucket.rate, bucket.limit));
            return Err(Refusal::new(code::INTERNAL, msg));
        }
    }
    Ok(())
}

/// Removes the `ifb` links of this network that belong to no valid attachment; their alias tells.
fn collect(request: &Request) -> Result<(), Refusal> {
    let mut node = interface::node()?;
    let network = alias(request, "", "");
    let network = network.trim_end_matches('/');
    let valid: Vec<String> = request.valid().iter().map(|(c, i)| alias(request, c, i)).collect();
    for link in route::all_details(&mut node).map_err(internal)? {
        let ours = link.kind == Some(Kind::Ifb) && link.alias.starts_with(network);
        if ours && !valid.contains(&link.alias) {
            route::delete(&mut node, &link.name).map_err(internal)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{conf, request};

    #[test]
    fn what_is_written_wins_and_halves_are_refused() {
        let runtime = json!({"bandwidth": {"IngressRate": 8000, "ingressBurst": 800}});
        let read = limits(&conf(json!({"runtimeConfig": &runtime}))).unwrap();
        assert_eq!(
            read,
            Limits { ingress: Some(Bucket { rate: 1000, burst: 100, limit: 125 }), egress: None }
        );
        let both = json!({"runtimeConfig": runtime, "egressRate": 16, "egressBurst": 8});
        let read = limits(&conf(both)).unwrap();
        assert_eq!(read, Limits { ingress: None, egress: Some(Bucket { rate: 2, burst: 1, limit: 1 }) });
        for (value, why) in [
            (json!({"ingressRate": 5}), "burst must also be set"),
            (json!({"egressBurst": 5}), "rate must also be set"),
            (json!({"egressRate": 5, "egressBurst": u64::from(u32::MAX) * 8}), "more than 4GB"),
            (json!({"egressRate": "5"}), "is not a number"),
        ] {
            assert!(limits(&conf(value.clone())).unwrap_err().msg.contains(why), "{value}");
        }
    }

    #[test]
    fn the_plan_is_a_bucket_each_way() {
        let host = Details { name: "veth1".into(), mtu: 1400, ..Details::default() };
        let bucket = Some(Bucket { rate: 1000, burst: 100, limit: 125 });
        let ops = plan(&host, "bwpx", "cni n c1/eth0", Limits { ingress: bucket, egress: bucket });
        let words: Vec<String> = ops.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "add qdisc dev veth1 root tbf rate 1000bps burst 100 limit 125",
                "add link bwpx mtu 1400 type ifb",
                "set bwpx alias \"cni n c1/eth0\"",
                "set bwpx up",
                "add qdisc dev veth1 ingress",
                "add filter dev veth1 ingress redirect to bwpx",
                "add qdisc dev bwpx root tbf rate 1000bps burst 100 limit 125",
            ]
        );
        let most = super::bucket(u64::MAX, 800).unwrap().unwrap();
        assert_eq!((most.rate, most.limit), (u64::MAX / 8, u32::MAX));
    }

    #[test]
    fn the_ifb_links_name_follows_from_network_and_container() {
        let name = ifb(&request("ADD", json!({"name": "n"})));
        assert!(name.starts_with("bwp") && name.len() == 15, "{name}");
        assert_ne!(name, ifb(&request("ADD", json!({"name": "m"}))));
    }
}
