//! One file per suite; each is one function that reports its cases.

pub mod badinput;
pub mod cluster;
pub mod cni;
pub mod compat;
pub mod crictl;
pub mod critest;
pub mod deploy;
pub mod differential;
pub mod fields;
pub mod handlers;
pub mod image;
pub mod kubelet;
pub mod net;
pub mod oci;
pub mod restart;
pub mod streams;
pub mod tidy;
pub mod trial;
pub mod verbs;

use anyhow::Result;

use crate::census::Census;
use crate::node::Node;
use crate::report::Report;
use crate::world::World;

/// A suite by its name on the command line.
pub type Suite = fn(&World, &mut Report) -> Result<()>;

/// Every suite, in the order in which a full run takes them.
pub const ALL: [(&str, Suite); 21] = [
    ("tidy", tidy::run),
    ("compat", compat::run),
    ("deploy", deploy::run),
    ("crictl", crictl::run),
    ("badinput", badinput::run),
    ("fields", fields::run),
    ("streams", streams::run),
    ("restart", restart::run),
    ("image", image::run),
    ("oci", oci::run),
    ("handlers", handlers::run),
    ("try", trial::run),
    ("net", net::run),
    ("cni", cni::run),
    ("critest", critest::focused),
    ("verbs", verbs::run),
    ("kubelet", kubelet::run),
    ("cluster", cluster::run),
    ("critest-full", critest::full),
    ("critest-rival", critest::rival),
    ("differential", differential::run),
];

/// The suites that run only when they are asked for.
pub const EXTRA: [&str; 8] =
    ["critest-full", "critest-rival", "differential", "image", "oci", "handlers", "cni", "streams"];

/// A node for a suite, and what exists once it is up.
///
/// # Errors
/// The daemon does not start.
pub fn node(world: &World, name: &str) -> Result<(Node, Census)> {
    let node = Node::start(world, name)?;
    let census = Census::take(node.pid())?;
    Ok((node, census))
}

/// Lets async code of a suite run to its end.
///
/// # Errors
/// The code's own.
pub fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
