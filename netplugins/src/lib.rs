//! Pod networking: built-in plugins in process, other people's CNI binaries by exec.
//!
//! All calls block; the engine runs them on its blocking threads. Nothing here knows pods beyond their ids, nor jobs.
//!
//! # Map
//!
//! | module | what |
//! |---|---|
//! | [`driver`](Driver) | the contract: `Driver`, `NetNs`, `Endpoint`, `Attachment` |
//! | `network` | the driver: the CNI directory's network when it configures one, else the built-in one |
//! | `routed` | the built-in network: a plan per pod (pure), and its execution |
//! | [`mesh`](Mesh) | the way to the pods of other nodes |
//! | `ledger`, `cidr` | who holds which address and port; computed from live pods, never stored |
//! | `bandwidth` | limits of a pod's traffic, from its annotations |
//! | `cni` | the runtime side of CNI 1.1: configurations, execution of plugins, cache, GC, STATUS |
//! | `plugins` | built-in CNI plugins, as executables by their name |
//! | `devices` | devices of the node that containers are given |
//! | `netns` | namespaces: the only place that enters one, on a thread of its own |
//! | `netlink` | blocking transport, rtnetlink operations, link events |
//! | `nft` | nf_tables encoder, the one static table, and its entries |
//! | `fuzz` | decoders under bytes of any kind; for tests only |
//! | `sysctl`, `state`, `name`, `error` | node settings, kept CIDRs, names, errors |
//!
//! # Threads
//!
//! `netns` lives for the length of one visit to a pod's namespace, or of one round through several to read counters, `netns-pool` while pods keep coming: it makes namespaces ahead
//! and ends within two seconds of the last one. `cni` exists where the CNI directory configures a network:
//! it asks STATUS, repeats failed DELs and runs GC, and ends with the driver.
//!
//! # Files
//!
//! | file | owner | what |
//! |---|---|---|
//! | `<state_dir>/network.json` | `state` | pod CIDRs given by the kubelet |
//! | `<state_dir>/netns/<id>` | `netns` | marker of a namespace that was made and not removed |
//! | `<state_dir>/cni/results/*` | `cni::cache` | results of ADD in libcni's format |
//! | `<state_dir>/cni/pending/<id>` | `cni::cache` | attachments whose DEL has to be repeated |
//! | `<netns_dir>/<id>` | `netns` | the namespace, bind-mounted |

#![forbid(unsafe_code)]

mod bandwidth;
mod cidr;
mod cni;
mod devices;
mod driver;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod ledger;
mod mesh;
mod name;
mod netlink;
mod netns;
mod network;
mod nft;
mod plugins;
mod routed;
mod state;
mod sysctl;
#[cfg(test)]
mod testing;

use std::sync::Arc;

pub use driver::{
    Attachment, Config, Driver, Endpoint, HostPort, InterfaceStats, Inventory, NetNs, Protocol,
};
pub use error::{Error, Kind};
pub use mesh::{Mesh, Peer};
pub use netlink::Failure;
pub use plugins::{MakeTap, NAMES as CNI_PLUGINS, Tap, cni_main, install as install_cni, no_tap};

/// Opens the network of this node. Nothing in the kernel is touched before [`Driver::restore`].
///
/// # Errors
///
/// A configuration that cannot work (prefix, CIDRs), or a state file that is damaged.
pub fn open(config: Config) -> Result<Arc<dyn Driver>, Error> {
    Ok(Arc::new(network::Network::open(config)?))
}
