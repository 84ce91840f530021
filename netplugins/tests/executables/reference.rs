//! The same configurations for the built-in plugins and for the reference plugins: results field by field, and what both
//! made of the kernel's links, addresses, routes, rules, queues and packet filters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use regex_lite::Regex;
use serde_json::{Value, json};

use crate::Test;
use crate::chains::{chain, each, site};
use crate::lab::{Lab, Namespace, Site, VERSIONS};

pub(crate) const TESTS: &[Test] =
    &[("results_and_kernel_are_those_of_the_reference_plugins", like_the_reference)];

fn like_the_reference(lab: &Lab) -> Option<String> {
    let Some(reference) = std::env::var_os("CNI_REFERENCE_PATH").map(PathBuf::from) else {
        return Some("CNI_REFERENCE_PATH does not name the reference plugins".into());
    };
    assert!(reference.join("bridge").exists(), "{} holds no reference plugins", reference.display());
    let names = std::sync::Mutex::new(BTreeSet::new());
    let count = each(lab, &VERSIONS, |case, version, label| {
        let ours = chain(case, version, lab, &format!("ours-{label}"));
        let theirs = chain(case, version, lab, &format!("theirs-{label}"));
        let (here, there) = (site(case, &lab.ours), site(case, &reference));
        let (mine, other) = (here.add_all(&ours), there.add_all(&theirs));
        let name = format!("{} {version}", case.name);
        match (&mine, &other) {
            (Ok(mine), Ok(other)) => {
                assert_eq!(normal(mine.clone()), normal(other.clone()), "{name}");
                if !case.state_differs {
                    compare(&here, &there, &name);
                }
                if version >= "0.4.0" {
                    here.all("CHECK", &ours, mine);
                }
            }
            (Err(_), Err(_)) => {}
            _ => panic!("{name}: {mine:?} {other:?}"),
        }
        if let (Ok(mine), Ok(other)) = (&mine, &other) {
            here.all("DEL", &ours, mine);
            there.all("DEL", &theirs, other);
            if !case.state_differs {
                compare(&here, &there, &format!("{name} after DEL"));
            }
        } else {
            for (site, plugins) in [(&here, &ours), (&there, &theirs)] {
                plugins.iter().rev().for_each(|plugin| drop(site.call("DEL", plugin)));
            }
        }
        names.lock().unwrap().insert(case.name);
    });
    let names = names.into_inner().unwrap().len();
    crate::say(&format!(
        "    {names} configurations, {count} with their versions, agree with the reference plugins"
    ));
    assert!(names >= 40 || (names > 0 && std::env::var_os("CNI_CASE").is_some()), "{names}");
    None
}

/// Hides what both choose at random.
fn normal(mut result: Value) -> Value {
    let interfaces = result.get_mut("interfaces").and_then(Value::as_array_mut);
    for interface in interfaces.into_iter().flatten() {
        if interface["name"].as_str().is_some_and(|n| n.starts_with("veth")) {
            interface["name"] = json!("veth");
        }
        // Addresses that a configuration gives begin like this.
        if interface["mac"].as_str().is_some_and(|mac| !mac.starts_with("c2:b0:57")) {
            interface["mac"] = json!("mac");
        }
        if interface.get("sandbox").is_some() {
            interface["sandbox"] = json!("sandbox");
        }
    }
    // The reference's loopback prints the newest form whatever the version.
    if result["interfaces"][0]["name"] == "lo" {
        result = json!({"interfaces": result["interfaces"], "addresses":
            result["ips"].as_array().into_iter().flatten().map(|ip| ip["address"].clone()).collect::<Vec<_>>()});
    }
    result
}

fn compare(here: &Site<'_>, there: &Site<'_>, name: &str) {
    for (what, mine, other) in [("pod", &here.pod, &there.pod), ("node", &here.node, &there.node)] {
        let (mine, other) = (state(mine), state(other));
        for (part, text) in &mine {
            assert_eq!(*text, other[part], "{name}: {part} of the {what}");
        }
    }
}

/// What the kernel says of a namespace, without what is chosen at random or has another spelling.
fn state(ns: &Namespace) -> BTreeMap<&'static str, String> {
    let links: Vec<Value> = serde_json::from_str(&ns.sh("ip -j -d link")).unwrap();
    let mut links: Vec<String> = links.iter().map(|l| link(l, &links)).collect();
    links.sort();
    let addresses = "ip -o addr show | sed 's/valid_lft.*//; s/brd [0-9.]*//; s/^[0-9]*: //'";
    let routes = "ip route show table all | grep -v 'table local'
        ip -6 route show table all | grep -vE 'table local|multicast|^local|^anycast' | sed 's/proto [a-z]*//; s/pref medium//'";
    BTreeMap::from([
        ("links", links.join("\n")),
        ("addresses", lines(&ns.sh(addresses))),
        ("routes", lines(&ns.sh(routes))),
        ("rules", lines(&ns.sh("ip rule; ip -6 rule"))),
        ("queues", lines(&ns.sh("tc qdisc show | grep -vE 'noqueue|pfifo|fq_codel|mq ' | sed 's/burst [0-9a-zA-Z]*//; s/lat [0-9.a-z]*//'"))),
        ("vlans", lines(&ns.sh("bridge -c=never vlan 2>/dev/null || true"))),
        ("filters", filters(&ns.sh("nft list ruleset"))),
        ("accepted", lines(&ns.sh("for t in iptables ip6tables; do $t -w -S CNI-FORWARD 2>/dev/null | sed 's/-m comment --comment \"[^\"]*\" //'; done; true"))),
    ])
}

/// One link: kind and settings, its bridge and port, flags, MTU, queue, alias.
fn link(link: &Value, all: &[Value]) -> String {
    let name = |n: &Value| veth(n.as_str().unwrap_or_default());
    let flags: Vec<&str> = link["flags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let flags: Vec<&&str> =
        flags.iter().filter(|f| matches!(**f, "UP" | "PROMISC" | "ALLMULTI" | "NOARP")).collect();
    let info = &link["linkinfo"];
    let data = |key: &str| info["info_data"].get(key).map(|v| format!(" {key}={v}")).unwrap_or_default();
    let data: String = ["mode", "id", "table", "bcqueuelen", "vlan_filtering"].map(data).concat();
    let port =
        |key: &str| info["info_slave_data"].get(key).map(|v| format!(" {key}={v}")).unwrap_or_default();
    let port: String = ["hairpin", "isolated"].map(port).concat();
    let given = link["address"].as_str().filter(|a| a.starts_with("c2:b0:57")).unwrap_or_default();
    let known = all.iter().any(|other| other["ifname"] == link["master"]);
    format!(
        "{} {}{data}{port} mtu {} {flags:?} txqlen {} master {} alias {} {given}",
        name(&link["ifname"]),
        info["info_kind"].as_str().unwrap_or("plain"),
        link["mtu"],
        // The reference leaves some links of the node without a queue length; the usual one is told by saying nothing.
        link["txqlen"].as_u64().filter(|n| !matches!(n, 0 | 32 | 1000)).unwrap_or_default(),
        if known { name(&link["master"]) } else { String::new() },
        if info["info_kind"] == "ifb" { "" } else { link["ifalias"].as_str().unwrap_or_default() },
    )
}

fn veth(text: &str) -> String {
    Regex::new("veth[0-9a-f]{8}").unwrap().replace_all(text, "veth").into_owned()
}

/// Lines without words that say the same in another way, sorted.
fn lines(text: &str) -> String {
    const SILENT: [&str; 8] =
        ["noprefixroute", "nodad", "tentative", "dynamic", "static", "onlink", "kernel", "boot"];
    let text = veth(text);
    let index = Regex::new("@if[0-9]+|refcnt [0-9]+|^[0-9]+:").unwrap();
    let line = |l: &str| {
        let l = index.replace_all(l, "");
        let words = l
            .split_whitespace()
            .filter(|w| !SILENT.contains(w) && !["proto", "metric", "1024", "linkdown"].contains(w));
        words.collect::<Vec<_>>().join(" ")
    };
    let mut lines: Vec<String> = text
        .lines()
        .map(line)
        .filter(|l| !l.is_empty() && !l.contains("fe80::") && !l.contains("ff00::/8"))
        .collect();
    lines.sort();
    lines.dedup();
    lines.join("\n")
}

/// The pods' addresses and the ports that the packet filters name: the rules themselves are another matter, because the
/// reference adds rules where the built-in plugins add entries to sets.
fn filters(ruleset: &str) -> String {
    let address =
        Regex::new(r"\b10\.5[0-9]\.0\.[0-9]+(:[0-9]+)?\b|\bfd5[0-9]::[0-9a-f]+\b|\b808[0-9]\b").unwrap();
    let network = |text: &str| text.ends_with(".0");
    let found: BTreeSet<&str> =
        address.find_iter(ruleset).map(|m| m.as_str()).filter(|t| !network(t)).collect();
    let bare: BTreeSet<&str> =
        found.iter().map(|t| t.split_once(':').filter(|_| t.contains('.')).map_or(*t, |(a, _)| a)).collect();
    bare.into_iter().collect::<Vec<_>>().join(" ")
}
