//! Changes of the network stack as data.
//!
//! An [`Op`] names links by name. Its `Display` is the verb phrase of errors and golden tests.

use std::fmt;
use std::net::IpAddr;

use super::device::Device;
use super::policy::Policy;
use crate::bandwidth::Bucket;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// One change of the network stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A bridge; existing is fine.
    Bridge {
        /// Its name.
        name: String,
        /// Ethernet address; without one it follows its ports, and pods' neighbour tables go stale when one leaves.
        mac: Option<Mac>,
        /// MTU until a port has a smaller one.
        mtu: Option<u32>,
    },
    /// A veth pair: this end here, the other end under its final name in the target namespace; both down.
    Veth {
        /// Name here.
        name: String,
        /// Ethernet address here.
        mac: Mac,
        /// MTU of both ends.
        mtu: u32,
        /// Name there.
        peer: String,
        /// Ethernet address there.
        peer_mac: Mac,
    },
    /// A link that only hands on what is sent by it, so that it can be shaped.
    Ifb {
        /// Its name.
        name: String,
        /// Its MTU.
        mtu: u32,
    },
    /// Shapes what leaves a link.
    Limit {
        /// The link.
        link: String,
        /// To what.
        bucket: Bucket,
    },
    /// Lets a link have filters of what comes in by it.
    Ingress(String),
    /// Sends everything that comes in by a link through another one first. Needs [`Op::Ingress`].
    Divert {
        /// The link.
        link: String,
        /// The other one.
        to: String,
    },
    /// Takes such filters off again.
    NoIngress(String),
    /// Sets a link up.
    Up(String),
    /// What a link of the node has to know before it is set up: to have no IPv6 link-local address of its own (`quiet`), and to deliver
    /// packets to 127/8 that come in by it (`localnet`: route_localnet of ip-sysctl). Told to one that is up but has no carrier yet, the
    /// kernel looks at each IPv6 route of the node for those that lead there.
    Prepare {
        /// The link.
        link: String,
        /// No IPv6 address generation; for kernels with IPv6.
        quiet: bool,
        /// route_localnet.
        localnet: bool,
    },
    /// Sets a link down.
    Down(String),
    /// Receives every packet.
    Promiscuous(String),
    /// Adds an address with its subnet, usable at once. Unless `connected`, the subnet is not taken to be on the link.
    Subnet {
        /// The link.
        link: String,
        /// The address.
        address: IpAddr,
        /// Prefix length.
        prefix: u8,
        /// Whether the kernel adds the subnet's route.
        connected: bool,
    },
    /// Adds an IPv6 address with its subnet, usable when nobody else on the link has it.
    Checked {
        /// The link.
        link: String,
        /// The address.
        address: IpAddr,
        /// Prefix length.
        prefix: u8,
    },
    /// Removes an address.
    DropAddress {
        /// The link.
        link: String,
        /// The address.
        address: IpAddr,
        /// Prefix length.
        prefix: u8,
    },
    /// Adds a route with everything a plugin may say about it.
    Path {
        /// The link.
        link: String,
        /// The route.
        path: Path,
    },
    /// Adds an address that is usable at once: no duplicate address detection.
    Address {
        /// The link.
        link: String,
        /// The address.
        address: IpAddr,
        /// Prefix length.
        prefix: u8,
    },
    /// Adds a neighbour that is never asked for and never forgotten.
    Neighbour {
        /// The link.
        link: String,
        /// Its address.
        address: IpAddr,
        /// Its Ethernet address.
        mac: Mac,
    },
    /// Adds a unicast route to the main table.
    Route {
        /// The link.
        link: String,
        /// Destination; `/0`: default route.
        to: (IpAddr, u8),
        /// Next hop; taken to be on the link.
        via: Option<IpAddr>,
    },
    /// A link of another kind, or a change of one.
    Device(Device),
    /// A rule, or a route's end.
    Policy(Policy),
}

/// A route as plugins describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) to: (IpAddr, u8),
    pub(crate) via: Option<IpAddr>,
    /// Preferred source address.
    pub(crate) source: Option<IpAddr>,
    pub(crate) mtu: Option<u32>,
    pub(crate) advmss: Option<u32>,
    pub(crate) priority: Option<u32>,
    /// Main, unless given.
    pub(crate) table: Option<u32>,
    /// `RT_SCOPE_*`.
    pub(crate) scope: Option<u8>,
}

impl Path {
    /// A plain route.
    pub(crate) fn new(to: (IpAddr, u8)) -> Self {
        Self {
            to,
            via: None,
            source: None,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "{device}"),
            Self::Policy(policy) => write!(f, "{policy}"),
            Self::Bridge { name, mac, mtu } => {
                let mac = mac.map(|mac| format!(" address {}", mac_text(mac))).unwrap_or_default();
                let mtu = mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
                write!(f, "add link {name}{mac}{mtu} type bridge")
            }
            Self::Ifb { name, mtu } => write!(f, "add link {name} mtu {mtu} type ifb"),
            Self::Limit { link, bucket } => write!(
                f,
                "add qdisc dev {link} root tbf rate {}bps burst {} limit {}",
                bucket.rate, bucket.burst, bucket.limit
            ),
            Self::Ingress(link) => write!(f, "add qdisc dev {link} ingress"),
            Self::NoIngress(link) => write!(f, "delete qdisc dev {link} ingress"),
            Self::Divert { link, to } => write!(f, "add filter dev {link} ingress redirect to {to}"),
            Self::Prepare { link, quiet, localnet } => {
                let quiet = if *quiet { " addrgenmode none" } else { "" };
                let localnet = if *localnet { " route_localnet" } else { "" };
                write!(f, "set {link}{quiet}{localnet}")
            }
            Self::Veth { name, mac, mtu, peer, peer_mac } => write!(
                f,
                "add link {name} address {} mtu {mtu} type veth peer {peer} address {}",
                mac_text(*mac),
                mac_text(*peer_mac)
            ),
            Self::Up(link) => write!(f, "set {link} up"),
            Self::Down(link) => write!(f, "set {link} down"),
            Self::Promiscuous(link) => write!(f, "set {link} promisc on"),
            Self::Subnet { link, address, prefix, connected } => {
                write!(
                    f,
                    "add address {address}/{prefix} to {link}{}",
                    if *connected { "" } else { " noprefixroute" }
                )
            }
            Self::Checked { link, address, prefix } => {
                write!(f, "add address {address}/{prefix} to {link} after checking")
            }
            Self::DropAddress { link, address, prefix } => {
                write!(f, "delete address {address}/{prefix} of {link}")
            }
            Self::Path { link, path } => write!(f, "add {path} dev {link}"),
            Self::Address { link, address, prefix } => write!(f, "add address {address}/{prefix} to {link}"),
            Self::Neighbour { link, address, mac } => {
                write!(f, "add neighbour {address} at {} on {link}", mac_text(*mac))
            }
            Self::Route { link, to: (to, prefix), via: None } => {
                write!(f, "add route {to}/{prefix} dev {link}")
            }
            Self::Route { link, to: (to, prefix), via: Some(via) } => {
                write!(f, "add route {to}/{prefix} via {via} dev {link}")
            }
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}/{}", self.to.0, self.to.1)?;
        let mut word = |name: &str, value: Option<String>| value.map_or(Ok(()), |v| write!(f, " {name} {v}"));
        word("via", self.via.map(|v| v.to_string()))?;
        word("src", self.source.map(|v| v.to_string()))?;
        word("mtu", self.mtu.map(|v| v.to_string()))?;
        word("advmss", self.advmss.map(|v| v.to_string()))?;
        word("metric", self.priority.map(|v| v.to_string()))?;
        word("table", self.table.map(|v| v.to_string()))?;
        word("scope", self.scope.map(|v| v.to_string()))
    }
}

/// `0a:58:0a:58:00:05` and the like.
pub(crate) fn mac_text(mac: Mac) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
