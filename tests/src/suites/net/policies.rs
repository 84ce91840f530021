//! Who may reach whom where the network's list has the `firewall` plugin: pods of two bridges, under each of its policies.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::pods::{self, Pod, config};
use super::space::Space;
use crate::node::Node;
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// Policy; whether pods of one bridge reach each other; whether those of two do.
const POLICIES: [(&str, bool, bool); 3] =
    [("open", true, true), ("same-bridge", true, false), ("isolated", false, false)];
/// What a policy lets pass, passes at once.
const PATIENCE: Duration = Duration::from_millis(700);

/// The case.
pub(super) fn run(world: &World, report: &mut Report) {
    report.case("firewall policies: open, same-bridge and isolated, between pods of two bridges", || {
        let space = Space::make("policies")?;
        let conf = world.dir.join("policies.d");
        fs::create_dir_all(&conf)?;
        let none = world.dir.join("no-plugins");
        let network =
            format!("[network]\nconf_dir = '{}'\nbin_dirs = ['{}']\n", conf.display(), none.display());
        let node = Node::inside(world, "policies", &network, Some("policies"))?;
        for (number, policy) in POLICIES.iter().enumerate() {
            one(&node, &space, &conf, number, *policy)?;
        }
        drop(node);
        shell::run(10, "ip", &["netns", "del", "policies"]).map(drop)
    });
}

fn one(
    node: &Node,
    space: &Space,
    conf: &Path,
    number: usize,
    (policy, siblings, neighbours): (&str, bool, bool),
) -> Result<()> {
    let mut members = Vec::new();
    for (name, bridge) in [("one", 'a'), ("two", 'a'), ("other", 'b')] {
        configure(conf, number, bridge, policy)?;
        members.push(pods::run(node, &config(node, &format!("{policy}-{name}"), &[]))?);
    }
    // A bridge forwards by itself unless its packets pass the node's filter; only there can its own pods be kept apart.
    space.sh("echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables")?;
    let [one, two, other] = [&members[0], &members[1], &members[2]];
    for (from, to, wanted) in [(one, two, siblings), (one, other, neighbours), (other, one, neighbours)] {
        let what = format!("{policy}: from {:?} to {:?}", from.addresses, to.addresses);
        ensure!(reaches(&from.space, to)? == wanted, "{what}: {}", !wanted);
    }
    ensure!(reaches(space, one)?, "{policy}: the node does not reach its pod");
    pods::remove(node, &members)
}

fn configure(conf: &Path, number: usize, bridge: char, policy: &str) -> Result<()> {
    let name = format!("fw{number}{bridge}");
    let subnet = format!("10.{}.{number}.0/24", if bridge == 'a' { 96 } else { 97 });
    let list = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [
        { "type": "bridge", "bridge": name, "isGateway": true, "ipam": { "type": "host-local",
            "ranges": [[{ "subnet": subnet }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
        { "type": "firewall", "ingressPolicy": policy },
    ] });
    let staged = conf.join("staged");
    fs::write(&staged, list.to_string())?;
    Ok(fs::rename(staged, conf.join("10-pods.conflist"))?)
}

/// Whether a connection to a listener in the pod comes about.
fn reaches(from: &Space, to: &Pod) -> Result<bool> {
    let listener = to.space.inside(|| Ok(TcpListener::bind("0.0.0.0:0")?))?;
    let at = SocketAddr::from((to.v4()?, listener.local_addr()?.port()));
    from.inside(move || Ok(TcpStream::connect_timeout(&at, PATIENCE).is_ok()))
}
