//! `firewall`: lets the pod's traffic pass a node that forwards nothing by default, and keeps bridges apart.
//!
//! Only a rule in the chain that drops can save a packet from it, so the accepting rules go where iptables keeps its own,
//! under the names the reference plugin uses, and in a form that iptables can list:
//!
//! ```text
//! table ip filter {                                    # and ip6
//!   chain FORWARD     { jump CNI-FORWARD … }
//!   chain CNI-FORWARD { jump CNI-ADMIN                 # the administrator's rules come first
//!                       ip daddr POD ct state established,related accept
//!                       ip saddr POD accept }
//! }
//! table inet berth_firewall {
//!   set bridges { ifname }  set closed { ifname }  set same { ifname . ifname }
//!   chain forward { filter forward -10
//!                   iifname @closed iifname . oifname @same drop                       # ingressPolicy isolated
//!                   iifname @bridges oifname @bridges iifname . oifname != @same drop } # and same-bridge
//! }
//! ```
//!
//! No program is run. A node whose iptables is the old kind (x_tables) is refused by name.

use std::fs;
use std::net::IpAddr;

use rustix::io::Errno;

use super::interface::internal;
use super::{Answer, Command, Refusal, Request, code, owner};
use crate::cni::config::at_least;
use crate::cni::result::Success;
use crate::name::LINK_NAME_BYTES;
use crate::netlink::{NETLINK_NETFILTER, Socket, route};
use crate::nft::element::Element;
use crate::nft::expr::{Base, Expr, Meta, Verdict};
use crate::nft::rules::{self, Place};
use crate::nft::{self, Hook, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, Shape, Transaction};

const FILTER: &str = "filter";
const FORWARD: &str = "FORWARD";
const OWN: &str = "CNI-FORWARD";
const ADMIN: &str = "CNI-ADMIN";
const POLICIES: &str = "berth_firewall";
const SETS: [&str; 3] = ["bridges", "closed", "same"];
const FAMILIES: [u8; 2] = [NFPROTO_IPV4, NFPROTO_IPV6];
/// `NF_INET_FORWARD`.
const HOOK: u32 = 2;
const IFNAME: (u32, u32) = (41, 16);
/// Comment of the rules that belong to nobody in particular.
const COMMON: &str = "CNI firewall plugin";

/// Who may reach a pod from other links of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Open,
    /// Pods of the same bridge; other bridges with a policy may not.
    SameBridge,
    /// Not even those.
    Isolated,
}

/// The plugin's own keys.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    admin: String,
    policy: Policy,
}

pub(super) fn run(request: &Request) -> Answer {
    if !at_least(&request.version, "0.4.0") {
        let details = format!("config is \"{}\", plugin supports 0.4.0 and newer", request.version);
        return Err(Refusal { code: code::VERSION, msg: "incompatible CNI versions".into(), details });
    }
    let settings = settings(request)?;
    let own = owner::own(request);
    match request.command {
        Command::Add => add(request, &settings, &own).map(Some),
        Command::Del => remove(|comment| comment == own).map(|()| None),
        Command::Check => check(request, &own).map(|()| None),
        Command::Gc => {
            remove(owner::gone(request))?;
            sweep().map(|()| None)
        }
        Command::Status => old_kind().map(|()| None),
    }
}

fn settings(request: &Request) -> Result<Settings, Refusal> {
    let conf = &request.conf;
    if let Some(other) = conf.text("backend")?.filter(|b| !matches!(*b, "" | "iptables" | "nftables")) {
        return Err(Refusal::new(code::UNSUPPORTED, format!("backend \"{other}\" is not supported")));
    }
    let policy = match conf.text("ingressPolicy")?.unwrap_or_default() {
        "" | "open" => Policy::Open,
        "same-bridge" => Policy::SameBridge,
        "isolated" => Policy::Isolated,
        other => return Err(Refusal::config(format!("unknown ingress policy: \"{other}\""))),
    };
    // `firewalldZone` has a meaning for firewalld only, which is refused above.
    let admin = conf.text("iptablesAdminChainName")?.filter(|n| !n.is_empty()).unwrap_or(ADMIN);
    Ok(Settings { admin: admin.into(), policy })
}

/// Refuses a node where nf_tables cannot reach the chain that drops.
fn old_kind() -> Result<(), Refusal> {
    for file in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
        if fs::read_to_string(file).unwrap_or_default().lines().any(|table| table == FILTER) {
            let msg =
                "the node's iptables is the legacy kind, whose rules only the iptables program can change";
            return Err(Refusal { code: code::NOT_AVAILABLE, msg: msg.into(), details: file.into() });
        }
    }
    Ok(())
}

fn add(request: &Request, settings: &Settings, own: &str) -> Result<Success, Refusal> {
    let previous =
        request.previous()?.ok_or_else(|| Refusal::config("missing prevResult from earlier plugin"))?;
    old_kind()?;
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    for family in FAMILIES {
        let addresses = addresses(&previous, family);
        if !addresses.is_empty() {
            open(&mut socket, family, &addresses, &settings.admin, own).inspect_err(|_| {
                let _ = remove(|comment| comment == own);
            })?;
        }
    }
    if settings.policy != Policy::Open {
        let bridge = previous.interfaces.first().map(|i| i.name.as_str()).filter(|name| !name.is_empty());
        let bridge = bridge.ok_or_else(|| {
            Refusal::config(
                "an ingress policy needs an interface, make sure to chain \"firewall\" with \"bridge\"",
            )
        })?;
        close(&mut socket, bridge, settings.policy)?;
    }
    Ok(previous)
}

fn addresses(previous: &Success, family: u8) -> Vec<IpAddr> {
    let all = previous.ips.iter().map(|ip| ip.address.0);
    all.filter(|ip| ip.is_ipv4() == (family == NFPROTO_IPV4)).collect()
}

/// The two rules of an address, as iptables writes them.
fn accepting(address: IpAddr) -> [Vec<Expr>; 2] {
    let (source, destination, bytes) = match address {
        IpAddr::V4(ip) => (12, 16, ip.octets().to_vec()),
        IpAddr::V6(ip) => (8, 24, ip.octets().to_vec()),
    };
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    let about = |offset| [Expr::Payload(Base::Network, offset, length, 1), Expr::Equal(1, bytes.clone())];
    let accept = [Expr::Counter, Expr::Verdict(Verdict::Accept)];
    let [to, from] = [about(destination), about(source)];
    [
        to.into_iter().chain([Expr::Established]).chain(accept.clone()).collect(),
        from.into_iter().chain(accept).collect(),
    ]
}

fn jump(chain: &str) -> [Expr; 2] {
    [Expr::Counter, Expr::Verdict(Verdict::Jump(chain.into()))]
}

/// States chains and jumps, and adds the pod's rules unless they are there.
fn open(
    socket: &mut Socket,
    family: u8,
    addresses: &[IpAddr],
    admin: &str,
    own: &str,
) -> Result<(), Refusal> {
    let chains = rules::chains(family, socket, FILTER).map_err(internal)?;
    let jumps = |socket: &mut Socket, chain: &str, to: &str| -> Result<bool, Refusal> {
        let found = rules::of_chain(family, socket, FILTER, chain).map_err(internal)?;
        Ok(found.iter().any(|rule| rule.jump.as_deref() == Some(to)))
    };
    let (jumped, administered) = (jumps(socket, FORWARD, OWN)?, jumps(socket, OWN, admin)?);
    let held = rules::of_chain(family, socket, FILTER, OWN).map_err(internal)?;
    let mut t = Transaction::of(family, FILTER);
    t.add_table();
    // Stating a base chain would also state its policy, which is not ours.
    if !chains.iter().any(|chain| chain == FORWARD) {
        t.add_chain(FORWARD, Some(Hook { kind: "filter", number: HOOK, priority: 0 }));
    }
    t.add_chain(OWN, None).add_chain(admin, None);
    if !jumped {
        t.owned_rule(FORWARD, Place::First, COMMON, &jump(OWN));
    }
    if !administered {
        t.owned_rule(OWN, Place::First, COMMON, &jump(admin));
    }
    if !held.iter().any(|rule| rule.comment.as_deref() == Some(own)) {
        for rule in addresses.iter().flat_map(|ip| accepting(*ip)) {
            t.owned_rule(OWN, Place::Last, own, &rule);
        }
    }
    t.commit(socket).map_err(|r| internal(r.failure))
}

/// Closes a bridge towards the others, and itself if isolated.
fn close(socket: &mut Socket, bridge: &str, policy: Policy) -> Result<(), Refusal> {
    let mut t = Transaction::new(POLICIES);
    t.add_table();
    for set in [SETS[0], SETS[1]] {
        t.add_set(set, Shape { key: IFNAME, data: None, interval: false });
    }
    let both = (IFNAME.0 << 6 | IFNAME.0, 2 * IFNAME.1);
    t.add_set(SETS[2], Shape { key: both, data: None, interval: false });
    t.add_chain("forward", Some(Hook { kind: "filter", number: HOOK, priority: -10 })).flush_chain("forward");
    for rule in policies() {
        t.add_rule("forward", &rule);
    }
    t.add_elements(&elements(bridge, policy));
    t.commit(socket).map_err(|r| internal(r.failure))
}

fn policies() -> [Vec<Expr>; 2] {
    // Both names side by side fill registers 1 and 2.
    let names = [Expr::Meta(Meta::InputName, 1), Expr::Meta(Meta::OutputName, 2)];
    let [input, output] = names;
    [
        vec![
            input.clone(),
            Expr::In(SETS[1], 1),
            output.clone(),
            Expr::In(SETS[2], 1),
            Expr::Verdict(Verdict::Drop),
        ],
        vec![
            input,
            Expr::In(SETS[0], 1),
            output,
            Expr::In(SETS[0], 2),
            Expr::NotIn(SETS[2], 1),
            Expr::Verdict(Verdict::Drop),
        ],
    ]
}

fn elements(bridge: &str, policy: Policy) -> Vec<Element> {
    let mut name = bridge.as_bytes().to_vec();
    name.resize(LINK_NAME_BYTES + 1, 0);
    let mut all =
        vec![Element::keyed(SETS[0], name.clone(), bridge), Element::keyed(SETS[2], name.repeat(2), bridge)];
    if policy == Policy::Isolated {
        all.push(Element::keyed(SETS[1], name, bridge));
    }
    all
}

/// Removes the accepting rules of the owners that are chosen.
fn remove(chosen: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    for family in FAMILIES {
        let held = rules::of_chain(family, &mut socket, FILTER, OWN).map_err(internal)?;
        // A rule that iptables added has no comment of ours and is left alone.
        let doomed = held.iter().filter(|rule| rule.comment.as_deref().is_some_and(&chosen));
        let mut t = Transaction::of(family, FILTER);
        let mut count = 0;
        for rule in doomed {
            t.delete_rule(rule);
            count += 1;
        }
        if count == 0 {
            continue;
        }
        match t.commit(&mut socket) {
            Err(r) if r.failure.errno() != Some(Errno::NOENT) => return Err(internal(r.failure)),
            _ => {}
        }
    }
    Ok(())
}

/// Removes the policies of bridges that no longer exist.
fn sweep() -> Result<(), Refusal> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    let links = route::links(&mut super::interface::node()?).map_err(internal)?;
    let mut doomed = Vec::new();
    for set in SETS {
        let held = nft::dump_of(NFPROTO_INET, &mut socket, POLICIES, set).map_err(internal)?;
        let there = |e: &Element| links.iter().any(|link| Some(&link.name) == e.comment.as_ref());
        doomed.extend(held.into_iter().filter(|e| !there(e)));
    }
    if doomed.is_empty() {
        return Ok(());
    }
    let mut t = Transaction::new(POLICIES);
    t.delete_elements(&doomed);
    t.commit(&mut socket).map_err(|r| internal(r.failure))
}

/// The jump and the pod's rules are there.
fn check(request: &Request, own: &str) -> Result<(), Refusal> {
    let previous =
        request.previous()?.ok_or_else(|| Refusal::config("missing prevResult from earlier plugin"))?;
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    for family in FAMILIES {
        let wanted = 2 * addresses(&previous, family).len();
        if wanted == 0 {
            continue;
        }
        let forward = rules::of_chain(family, &mut socket, FILTER, FORWARD).map_err(internal)?;
        if !forward.iter().any(|rule| rule.jump.as_deref() == Some(OWN)) {
            let msg = format!("expected {FORWARD} rule that jumps to {OWN} not found");
            return Err(Refusal::new(code::INTERNAL, msg));
        }
        let held = rules::of_chain(family, &mut socket, FILTER, OWN).map_err(internal)?;
        let found = held.iter().filter(|rule| rule.comment.as_deref() == Some(own)).count();
        if found != wanted {
            let msg = format!("{found} of {wanted} rules of {own} found in {OWN}");
            return Err(Refusal::new(code::INTERNAL, msg));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::request;

    #[test]
    fn policies_and_backends_are_known_or_refused_by_name() {
        for (conf, policy) in [
            (json!({}), Policy::Open),
            (json!({"ingressPolicy": "open", "backend": "iptables"}), Policy::Open),
            (json!({"IngressPolicy": "same-bridge"}), Policy::SameBridge),
            (json!({"ingressPolicy": "isolated", "backend": "nftables"}), Policy::Isolated),
        ] {
            let read = settings(&request("ADD", conf.clone())).unwrap();
            assert_eq!(read, Settings { admin: ADMIN.into(), policy }, "{conf}");
        }
        for (conf, why) in [
            (json!({"backend": "firewalld"}), "backend \"firewalld\" is not supported"),
            (json!({"ingressPolicy": "shut"}), "unknown ingress policy: \"shut\""),
        ] {
            assert_eq!(settings(&request("ADD", conf)).unwrap_err().msg, why);
        }
        let old = run(&request("ADD", json!({"cniVersion": "0.3.1"}))).unwrap_err();
        assert_eq!(old.code, code::VERSION);
    }

    #[test]
    fn an_isolated_bridge_is_closed_to_itself_as_well() {
        let sets = |policy| elements("br0", policy).iter().map(|e| e.set).collect::<Vec<_>>();
        assert_eq!(sets(Policy::SameBridge), ["bridges", "same"]);
        assert_eq!(sets(Policy::Isolated), ["bridges", "same", "closed"]);
    }
}
