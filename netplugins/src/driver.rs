//! The driver's contract: what the engine asks of pod networking, in nouns and verbs.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{Error, MakeTap, cidr, name};

/// How pods are connected.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pod subnets used until UpdateRuntimeConfig says otherwise (`10.88.0.0/16`, `fd00:10:88::/64`), one per family.
    pub pod_cidrs: Vec<String>,
    /// Directory of CNI configurations; wins when it holds one.
    pub conf_dir: PathBuf,
    /// How many of its files count, by name: a pod gets an interface for each, `eth0` first.
    pub max_networks: usize,
    /// Directories of CNI executables.
    pub bin_dirs: Vec<PathBuf>,
    /// Where namespaces are bind-mounted (`/run/netns`).
    pub netns_dir: PathBuf,
    /// Persistent state: pod CIDRs given by the kubelet (`<root>/network.json`).
    pub state_dir: PathBuf,
    /// Prefix of host link names and name of the nft table; tests use their own. At most 6 characters.
    pub link_prefix: String,
    /// Makes tap links, for the plugin of that name.
    pub tap: MakeTap,
}

impl Config {
    /// What of it could never be: the field and why.
    pub fn check(&self) -> Result<(), (&'static str, Error)> {
        name::check_prefix(&self.link_prefix).map_err(|e| ("link_prefix", e))?;
        cidr::parse(&self.pod_cidrs).map_err(|e| ("pod_cidrs", e)).map(drop)
    }
}

/// A pod's network namespace: an open fd and the one bind mount by which CNI can name it.
#[derive(Debug)]
pub struct NetNs {
    /// Namespace file.
    pub fd: OwnedFd,
    /// Where it is bind-mounted.
    pub path: PathBuf,
}
impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Transport protocol, IANA number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP, 6.
    Tcp,
    /// UDP, 17.
    Udp,
    /// SCTP, 132.
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// `tcp`, `udp` or `sctp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The name of a protocol number, or the number.
    pub(crate) fn name_of(number: u8) -> String {
        let known = [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|p| p.number() == number);
        known.map_or_else(|| number.to_string(), |p| p.name().to_owned())
    }
}

/// A port of the node that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Node address; `None`: all of the pod's families.
    pub host_ip: Option<IpAddr>,
}

/// What a pod asks of the network.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Endpoint {
    /// Pod id: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
    pub id: String,
    /// Kubernetes pod name, namespace, UID (K8S_* CNI arguments).
    pub pod: (String, String, String),
    /// Published ports.
    pub host_ports: Vec<HostPort>,
    /// Pod annotations (bandwidth and the CNI annotations capability).
    pub annotations: std::collections::BTreeMap<String, String>,
    /// resolv.conf as servers, searches, options (CNI `dns` capability).
    pub dns: (Vec<String>, Vec<String>, Vec<String>),
    /// Pod cgroup (CNI `cgroupPath` capability).
    pub cgroup: String,
}

/// A decided attachment: addresses held, nothing made in the kernel yet. The engine journals it before `attach`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// Pod id.
    pub id: String,
    /// Interface in the pod (`eth0`).
    pub interface: String,
    /// Interface on the node; empty for foreign plugins.
    pub host_interface: String,
    /// Addresses with prefix length, primary first.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Boot id of the kernel the attachment lives in.
    pub boot_id: String,
    /// Whatever `detach` needs (ports, conflist, results), private to this crate.
    pub private: serde_json::Value,
}

/// Counters of one interface.
#[derive(Clone, Debug, Default)]
pub struct InterfaceStats {
    /// Interface name.
    pub name: String,
    /// Received bytes, packets, errors, drops.
    pub rx: [u64; 4],
    /// Sent bytes, packets, errors, drops.
    pub tx: [u64; 4],
}

/// The network driver. Implementations: the built-in routed network and the CNI chain.
///
/// Contract: `reserve` decides and holds addresses in memory; the engine journals the result; `attach` makes it real and is
/// all-or-nothing; `detach` never fails because something is gone and may be repeated; `restore` is called once at start with
/// every live attachment: what is in it is held, everything else of ours in the kernel (links, nft elements, namespaces) is removed
/// and reported.
pub trait Driver: Send + Sync + std::fmt::Debug {
    /// Ready, or a sentence that says what to do.
    fn status(&self) -> Result<(), String>;
    /// A sentence about something that is wrong although pods can be attached, for Status.
    fn notice(&self) -> Option<String> {
        None
    }
    /// New pod CIDRs from UpdateRuntimeConfig; persisted.
    fn set_pod_cidrs(&self, cidrs: &[String]) -> Result<(), Error>;
    /// A fresh namespace bind-mounted as `<netns_dir>/<id>`, with `lo` up.
    fn create_namespace(&self, id: &str) -> Result<NetNs, Error>;
    /// As [`create_namespace`](Self::create_namespace), of a fresh namespace somebody else has made: one that must belong to a pod's user
    /// namespace.
    fn adopt_namespace(&self, id: &str, made: OwnedFd) -> Result<NetNs, Error>;
    /// Opens a namespace made earlier.
    fn open_namespace(&self, id: &str) -> Result<Option<NetNs>, Error>;
    /// Unmounts and unlinks it; absent is fine.
    fn remove_namespace(&self, id: &str) -> Result<(), Error>;
    /// Moves a device of the node into a pod's namespace, under a name in which `%d` stands for the first free number, with its permanent
    /// global addresses, and sets it up. One that was moved before is fine. It leaves with the namespace only.
    fn give_device(&self, ns: &NetNs, device: &str, name: &str) -> Result<(), Error>;
    /// Decides addresses and ports.
    fn reserve(&self, endpoint: &Endpoint) -> Result<Attachment, Error>;
    /// Gives up a reservation that was never attached.
    fn abandon(&self, attachment: &Attachment);
    /// Makes it real. A foreign plugin may change the addresses: the returned attachment is the true one.
    fn attach(&self, ns: &NetNs, endpoint: &Endpoint, reserved: Attachment) -> Result<Attachment, Error>;
    /// Takes it down.
    fn detach(&self, ns: Option<&NetNs>, attachment: &Attachment) -> Result<(), Error>;
    /// Whether the attachment is still as it was made; an error says what is missing.
    fn check(&self, ns: &NetNs, attachment: &Attachment) -> Result<(), Error>;
    /// Start-up reconciliation; returns what was found and removed, one line each.
    fn restore(&self, live: &[Attachment]) -> Result<Vec<String>, Error>;
    /// Counters of the interfaces in the namespaces of these ids, whoever made them, as the kernel has them now; none where there is
    /// no such namespace. Waits for no lock that a change of some pod's links holds.
    fn stats(&self, ids: &[&str]) -> Result<Vec<Result<Vec<InterfaceStats>, Error>>, Error>;

    /// Waits until these links of the node are gone (RTM_DELLINK events) and returns those that are still there at the
    /// deadline. `detach` does not wait: the kernel dismantles a pod's link some 30 ms after its namespace has died.
    fn wait_gone(&self, links: &[String], deadline: Instant) -> Result<Vec<String>, Error> {
        let _ = deadline;
        Ok(links.to_vec())
    }
    /// What of ours exists now, measured in the kernel and on disk: for leak counts.
    fn inventory(&self) -> Result<Inventory, Error>;
    /// Removes what the driver itself keeps on the node (the nft table and the gateway link). Refused while a pod is attached.
    fn retire(&self) -> Result<(), Error>;
}

/// Objects that exist because of this driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Links on the node with our prefix.
    pub links: Vec<String>,
    /// nft entries of pods, in nft's words.
    pub elements: Vec<String>,
    /// Namespaces made and not removed.
    pub namespaces: Vec<String>,
    /// Addresses held by pods.
    pub addresses: usize,
    /// Addresses not free yet, because the link of a pod that was detached still exists.
    pub leaving: usize,
}
