//! `flannel`: writes the configuration of another plugin, `bridge` unless told otherwise, from the node's subnet file, and
//! hands everything over to it.
//!
//! The configuration is kept until DEL under `dataDir`, by container: the node's subnet may have changed by then.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::conf::Conf;
use super::{Answer, Command, Refusal, Request, code, delegate};
use crate::cidr::network;
use crate::cni::result::parse_subnet;

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";
const MAX_BYTES: u64 = 1 << 20;

/// The node's subnet file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    networks: Vec<(IpAddr, u8)>,
    subnets: Vec<(IpAddr, u8)>,
    mtu: Option<u64>,
    masquerades: Option<bool>,
}

pub(super) fn run(request: &Request) -> Answer {
    match request.command {
        Command::Add => {
            let written = written(request)?;
            let file = scratch(request)?;
            keep(&file, &written)?;
            let answer = hand_over(request, written);
            if answer.is_err() {
                let _ = fs::remove_file(&file);
            }
            answer
        }
        Command::Del => delete(request).map(|()| None),
        Command::Check => {
            let mut kept = read(&scratch(request)?)?.ok_or_else(|| {
                Refusal::new(
                    code::INTERNAL,
                    format!("no configuration is kept of container {}", request.container),
                )
            })?;
            if let (Some(object), Some(previous)) = (kept.as_object_mut(), request.conf.get("prevResult")) {
                object.insert("prevResult".into(), previous.clone());
            }
            hand_over(request, kept)
        }
        Command::Gc => collect(request).map(|()| None),
        Command::Status => {
            // Until flannel has written the file no pod can be attached.
            let written =
                written(request).map_err(|refusal| Refusal { code: code::NOT_AVAILABLE, ..refusal })?;
            hand_over(request, written)
        }
    }
}

fn written(request: &Request) -> Result<Value, Refusal> {
    let file = request.conf.text("subnetFile")?.filter(|f| !f.is_empty()).unwrap_or(SUBNET_FILE);
    let text =
        bounded(Path::new(file)).map_err(|e| Refusal::new(code::IO, format!("cannot read {file}: {e}")))?;
    delegation(request, &parse(&text).map_err(|why| Refusal::config(format!("{file}: {why}")))?)
}

/// `KEY=VALUE` lines; lists are separated by commas.
fn parse(text: &str) -> Result<Node, String> {
    let mut node = Node::default();
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once('=') else { continue };
        let subnets = || {
            let parse =
                |t: &str| parse_subnet(t.trim()).ok_or(format!("{key}: \"{t}\" is not address/length"));
            value.split(',').filter(|t| !t.trim().is_empty()).map(parse).collect::<Result<Vec<_>, _>>()
        };
        match key.trim() {
            "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => node.networks.extend(subnets()?),
            "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET" => node.subnets.extend(subnets()?),
            "FLANNEL_MTU" => {
                node.mtu =
                    Some(value.trim().parse().map_err(|_| format!("{key}: \"{value}\" is not a number"))?);
            }
            "FLANNEL_IPMASQ" => node.masquerades = Some(value.trim() == "true"),
            _ => {}
        }
    }
    let missing = [
        ("FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK", node.networks.is_empty()),
        ("FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET", node.subnets.is_empty()),
        ("FLANNEL_MTU", node.mtu.is_none()),
        ("FLANNEL_IPMASQ", node.masquerades.is_none()),
    ];
    match missing.iter().find(|(_, missing)| *missing) {
        Some((key, _)) => Err(format!("{key} is missing")),
        None => Ok(node),
    }
}

/// The configuration that is handed over; pure.
fn delegation(request: &Request, node: &Node) -> Result<Value, Refusal> {
    let conf = &request.conf;
    let given = conf.object("delegate")?.map(|d| d.value());
    let mut delegate = given.and_then(|v| v.as_object().cloned()).unwrap_or_default();
    for key in ["name", "ipam"] {
        if delegate.contains_key(key) {
            let msg = format!("'delegate' dictionary must not have '{key}' field, it'll be set by flannel");
            return Err(Refusal::config(msg));
        }
    }
    if delegate.get("type").is_some_and(|t| !t.is_string()) {
        return Err(Refusal::config("'delegate' dictionary, if present, must have (string) 'type' field"));
    }
    delegate.insert("name".into(), conf.get("name").cloned().unwrap_or_default());
    delegate.insert("cniVersion".into(), json!(request.version));
    let mut default = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    default("type", json!("bridge"));
    // Who masquerades is one of the two: flannel itself, or the plugin.
    default("ipMasq", json!(node.masquerades == Some(false)));
    default("mtu", json!(node.mtu));
    if delegate.get("type") == Some(&json!("bridge")) {
        delegate.entry("isGateway").or_insert(json!(true));
    }
    if let Some(runtime) = conf.get("runtimeConfig") {
        delegate.insert("runtimeConfig".into(), runtime.clone());
    }
    delegate.insert("ipam".into(), ipam(conf, node)?);
    Ok(Value::Object(delegate))
}

/// What is written of `ipam`, with the node's subnets and the routes to flannel's networks.
fn ipam(conf: &Conf, node: &Node) -> Result<Value, Refusal> {
    let text = |(address, prefix): (IpAddr, u8)| format!("{}/{prefix}", network(address, prefix));
    let given = conf.object("ipam")?.map(|i| i.value()).and_then(|v| v.as_object().cloned());
    let mut ipam: Map<String, Value> = given.unwrap_or_default();
    ipam.entry("type").or_insert(json!("host-local"));
    let ranges: Vec<Value> = node.subnets.iter().map(|s| json!([{ "subnet": text(*s) }])).collect();
    ipam.insert("ranges".into(), Value::Array(ranges));
    let mut routes = match ipam.get("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(routes)) => routes.clone(),
        Some(_) => return Err(Refusal::config("'ipam' routes is not a list")),
    };
    routes.extend(node.networks.iter().map(|n| json!({ "dst": text(*n) })));
    ipam.insert("routes".into(), Value::Array(routes));
    Ok(Value::Object(ipam))
}

fn hand_over(request: &Request, conf: Value) -> Answer {
    let conf = Conf::new(conf)?;
    let kind = conf.text("type")?.unwrap_or_default().to_owned();
    if kind == "flannel" {
        return Err(Refusal::config("flannel cannot hand over to itself"));
    }
    delegate::call(&kind, &Request { conf, ..request.clone() })
}

/// Without a kept configuration there was no ADD, or its DEL is done.
fn delete(request: &Request) -> Result<(), Refusal> {
    let file = scratch(request)?;
    let Some(kept) = read(&file)? else { return Ok(()) };
    hand_over(request, kept)?;
    remove(&file)
}

/// GC of the plugin behind, then the configurations of containers that are gone.
fn collect(request: &Request) -> Result<(), Refusal> {
    let valid: Vec<String> = request.valid().into_iter().map(|(container, _)| container).collect();
    let network = request.conf.text("name")?.unwrap_or_default();
    for entry in fs::read_dir(data_dir(request)?).into_iter().flatten().flatten() {
        let container = entry.file_name().to_string_lossy().into_owned();
        let kept = read(&entry.path()).ok().flatten();
        let ours = kept.is_some_and(|k| k.get("name").and_then(Value::as_str) == Some(network));
        if ours && !valid.contains(&container) {
            let gone = Request {
                command: Command::Del,
                container,
                netns: None,
                interface: "eth0".into(),
                ..request.clone()
            };
            delete(&gone)?;
        }
    }
    // A node without flannel's file has nothing to hand over.
    let Ok(mut conf) = written(request) else { return Ok(()) };
    if let (Some(object), Some(valid)) = (conf.as_object_mut(), request.conf.get("cni.dev/valid-attachments"))
    {
        object.insert("cni.dev/valid-attachments".into(), valid.clone());
    }
    hand_over(request, conf).map(drop)
}

fn data_dir(request: &Request) -> Result<PathBuf, Refusal> {
    Ok(request.conf.text("dataDir")?.filter(|d| !d.is_empty()).unwrap_or(DATA_DIR).into())
}

fn scratch(request: &Request) -> Result<PathBuf, Refusal> {
    Ok(data_dir(request)?.join(&request.container))
}

fn keep(file: &Path, conf: &Value) -> Result<(), Refusal> {
    let write = || {
        let directory = file.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
        serde_json::to_writer(file, conf).map_err(io::Error::from)
    };
    write().map_err(|e: io::Error| Refusal::new(code::IO, format!("cannot write {}: {e}", file.display())))
}

fn read(file: &Path) -> Result<Option<Value>, Refusal> {
    let unreadable =
        |e: &dyn std::fmt::Display| Refusal::new(code::IO, format!("cannot read {}: {e}", file.display()));
    let text = match bounded(file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(&e)),
    };
    serde_json::from_str(&text).map(Some).map_err(|e| unreadable(&e))
}

fn bounded(file: &Path) -> io::Result<String> {
    if fs::metadata(file)?.len() > MAX_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    fs::read_to_string(file)
}

fn remove(file: &Path) -> Result<(), Refusal> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Refusal::new(code::IO, format!("cannot remove {}: {e}", file.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::testing::request;

    const FILE: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn the_bridge_is_written_from_the_nodes_subnet() {
        let wanted = json!({
            "name": "n", "cniVersion": "1.0.0", "type": "bridge", "isGateway": true, "ipMasq": false, "mtu": 1450,
            "hairpinMode": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}]],
                "routes": [{"dst": "10.244.0.0/16"}]},
        });
        let request = request("ADD", json!({"delegate": {"hairpinMode": true}}));
        assert_eq!(delegation(&request, &parse(FILE).unwrap()).unwrap(), wanted);
    }

    #[test]
    fn what_is_written_is_kept_and_both_families_are_served() {
        let text = format!("{FILE}FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n")
            .replace("IPMASQ=true", "IPMASQ=false");
        let conf = json!({"delegate": {"type": "ptp", "mtu": 1300}, "runtimeConfig": {"mac": "x"},
            "ipam": {"type": "other", "routes": [{"dst": "10.96.0.0/12"}]}});
        let made = delegation(&request("ADD", conf), &parse(&text).unwrap()).unwrap();
        assert_eq!(
            (&made["type"], &made["mtu"], &made["ipMasq"]),
            (&json!("ptp"), &json!(1300), &json!(true))
        );
        assert_eq!(made.get("isGateway"), None);
        assert_eq!(made["runtimeConfig"]["mac"], "x");
        assert_eq!(made["ipam"]["type"], "other");
        assert_eq!(
            made["ipam"]["ranges"],
            json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:0:0:1::/64"}]])
        );
        let routes = json!([{"dst": "10.96.0.0/12"}, {"dst": "10.244.0.0/16"}, {"dst": "fd00::/48"}]);
        assert_eq!(made["ipam"]["routes"], routes);
    }

    #[test]
    fn half_a_file_and_a_delegate_that_says_too_much_are_refused() {
        for (line, why) in [
            ("FLANNEL_NETWORK", "FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK is missing"),
            ("FLANNEL_SUBNET", "FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET is missing"),
            ("FLANNEL_MTU", "FLANNEL_MTU is missing"),
            ("FLANNEL_IPMASQ", "FLANNEL_IPMASQ is missing"),
        ] {
            let text: Vec<&str> = FILE.lines().filter(|l| !l.starts_with(line)).collect();
            assert_eq!(parse(&text.join("\n")).unwrap_err(), why);
        }
        assert!(parse("FLANNEL_MTU=x").unwrap_err().contains("is not a number"));
        assert!(parse("FLANNEL_SUBNET=10.0.0.0/99").unwrap_err().contains("is not address/length"));
        let node = parse(FILE).unwrap();
        for delegate in [json!({"name": "x"}), json!({"ipam": {}}), json!({"type": 5})] {
            assert!(delegation(&request("ADD", json!({"delegate": delegate})), &node).is_err(), "{delegate}");
        }
    }
}
