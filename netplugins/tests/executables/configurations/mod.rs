//! Configurations that are given to the built-in plugins and to the reference plugins.
//!
//! `{DATA}` stands for a directory that no other run uses, `{FILES}` for one with the files of [`files`].

mod addresses;
mod links;
mod metas;

use std::path::Path;

use serde_json::{Value, json};

/// A chain of plugins, and what it is to be tried on.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The chain.
    pub(crate) plugins: Vec<Value>,
    /// Oldest version that makes sense.
    pub(crate) since: &'static str,
    /// What the node is like before: a shell script.
    pub(crate) node: &'static str,
    /// What the pod is like before.
    pub(crate) pod: &'static str,
    /// `CNI_ARGS`.
    pub(crate) args: &'static str,
    /// Kinds of links it takes.
    pub(crate) needs: &'static [&'static str],
    /// The reference plugin does something else in the kernel on purpose, or by mistake; results are compared.
    pub(crate) state_differs: bool,
}

/// A link for others to stand on, with the node's default route.
const UPLINK: &str = "ip link add up0 type veth peer name up1 && ip link set up1 up && ip link set up0 up &&
    ip addr add 192.0.2.1/24 dev up0 && ip route add default via 192.0.2.254";

/// The same in the pod.
const UPLINK_INSIDE: &str =
    "ip link add up0 type veth peer name up1 && ip link set up1 up && ip link set up0 up";

fn case(name: &'static str, plugins: Value) -> Case {
    let Value::Array(plugins) = plugins else { panic!("{name}: no chain") };
    let since = "0.1.0";
    Case { name, plugins, since, node: "", pod: "", args: "", needs: &[], state_differs: false }
}

/// `host-local` with these ranges and a default route per family.
fn ranges(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|s| json!([{ "subnet": s }])).collect();
    let route = |s: &&str| json!({"dst": if s.contains(':') { "::/0" } else { "0.0.0.0/0" }});
    let routes: Vec<Value> = subnets.iter().map(route).collect();
    json!({"type": "host-local", "dataDir": "{DATA}", "ranges": ranges, "routes": routes})
}

fn dual() -> Value {
    ranges(&["10.50.0.0/24", "fd50::/64"])
}

fn four() -> Value {
    ranges(&["10.51.0.0/24"])
}

/// Files that configurations name.
pub(crate) fn files(directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let resolver = "# a comment\nnameserver 10.0.0.53\nnameserver fd00::53\nsearch a.example b.example\noptions ndots:5\n";
    std::fs::write(directory.join("resolv.conf"), resolver).unwrap();
}

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    let chained = [metas::bandwidth(), metas::tuning(), metas::routing(), metas::filters()];
    let alone = [links::bridges(), links::vlans(), links::pairs(), links::parents(), links::devices()];
    let managers = [addresses::local(), addresses::fixed()];
    alone.into_iter().chain(managers).chain(chained).flatten().collect()
}
