//! What one pod needs in the kernel, decided before anything is touched.
//!
//! The pod has `/32` and `/128` addresses and no subnet. Its default route leads to the gateway address, which the node
//! has once, on the [anchor](super::anchor); a host route leads back. Both ends know each other as permanent neighbours
//! with addresses derived from the pod's IP, so there is no ARP, no neighbour discovery and no duplicate address
//! detection to wait for, and nobody can claim the other's address.
//!
//! The node's end has no address at all, not even a link-local one: the kernel walks every IPv6 address of the node each
//! time one is added, which would make the thousandth pod dearer than the first.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::bandwidth::{Bucket, Limits};
use crate::cidr::width;
use crate::error::Error;
use crate::ledger::Publication;
use crate::netlink::route::{Mac, Op};
use crate::nft::element::Element;
use crate::{Attachment, HostPort};

/// The part of an [`Attachment`] that only this driver reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Private {
    /// Version of this format.
    pub(crate) version: u32,
    /// Ethernet address of the pod's end.
    pub(crate) mac: Mac,
    /// Ethernet address of the node's end.
    pub(crate) host_mac: Mac,
    /// MTU of both ends.
    pub(crate) mtu: u32,
    /// Whether the node's end must be kept from making an IPv6 link-local address.
    pub(crate) quiet: bool,
    /// One per family, in the order of the addresses.
    pub(crate) gateways: Vec<IpAddr>,
    /// Published ports.
    pub(crate) ports: Vec<HostPort>,
    /// What people call the pod, `namespace/name`; empty if that is not known.
    #[serde(default)]
    pub(crate) name: String,
    /// How much traffic the pod may have.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// The link through which what the pod sends is shaped; empty where that has no limit.
    #[serde(default)]
    pub(crate) shaper: String,
}

/// Everything one pod adds to the node, in the order in which it is done: the node's end is set up when the pod's is, and so has a carrier
/// at once. For one without, the kernel looks at each IPv6 route of the node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// In the node's namespace: the links.
    pub(crate) links: Vec<Op>,
    /// In the pod's.
    pub(crate) pod: Vec<Op>,
    /// In the node's namespace: the way to the pod.
    pub(crate) host: Vec<Op>,
    /// In the nft table.
    pub(crate) elements: Vec<Element>,
}

impl Private {
    pub(crate) const VERSION: u32 = 1;

    /// Reads it back.
    pub(crate) fn of(attachment: &Attachment) -> Result<Self, Error> {
        let refuse = |why: String| Error::Format {
            path: format!("network record of pod {}", attachment.id).into(),
            why,
        };
        let private: Self =
            serde_json::from_value(attachment.private.clone()).map_err(|e| refuse(e.to_string()))?;
        if private.version != Self::VERSION {
            return Err(refuse(format!("version {}", private.version)));
        }
        Ok(private)
    }

    /// The pod's publications.
    pub(crate) fn publications(&self, attachment: &Attachment) -> Result<Vec<Publication>, Error> {
        let has = |ipv4: bool| attachment.addresses.iter().any(|(a, _)| a.is_ipv4() == ipv4);
        let mut all = Vec::new();
        for port in &self.ports {
            all.extend(Publication::of(port, has(true), has(false))?);
        }
        Ok(all)
    }
}

/// Ethernet addresses of pod and node end. The same IP has the same ones again: no stale neighbour anywhere.
pub(crate) fn macs(primary: IpAddr) -> (Mac, Mac) {
    let [a, b, c, d] = match primary {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let o = ip.octets();
            [o[12] ^ o[8], o[13] ^ o[9], o[14] ^ o[10], o[15] ^ o[11]]
        }
    };
    ([0x0a, 0x58, a, b, c, d], [0x0e, 0x58, a, b, c, d])
}

/// Decides.
pub(crate) fn plan(attachment: &Attachment, private: &Private) -> Result<Plan, Error> {
    let (host, pod) = (&attachment.host_interface, &attachment.interface);
    let pair = Op::Veth {
        name: host.clone(),
        mac: private.host_mac,
        mtu: private.mtu,
        peer: pod.clone(),
        peer_mac: private.mac,
    };
    // Replies to a node process that used 127.0.0.1 come back by this link; the guard chain drops every other packet to
    // 127/8 from it.
    let localnet = !private.ports.is_empty();
    let mut links = vec![pair];
    links.extend(prepared(host, private.quiet, localnet));
    let (mut on_host, mut in_pod) = (vec![Op::Up(host.clone())], Vec::new());
    for (address, prefix) in &attachment.addresses {
        links.push(Op::Neighbour { link: host.clone(), address: *address, mac: private.mac });
        on_host.push(Op::Route { link: host.clone(), to: (*address, width(*address)), via: None });
        in_pod.push(Op::Address { link: pod.clone(), address: *address, prefix: *prefix });
    }
    on_host.extend(shaping(host, private));
    in_pod.push(Op::Up(pod.clone()));
    for gateway in &private.gateways {
        let everywhere: IpAddr = if gateway.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
        in_pod.push(Op::Neighbour { link: pod.clone(), address: *gateway, mac: private.host_mac });
        in_pod.push(Op::Route { link: pod.clone(), to: (everywhere, 0), via: Some(*gateway) });
    }
    Ok(Plan { links, pod: in_pod, host: on_host, elements: elements(attachment, private)? })
}

/// [`Op::Prepare`], if there is something to say.
pub(super) fn prepared(link: &str, quiet: bool, localnet: bool) -> Option<Op> {
    (quiet || localnet).then(|| Op::Prepare { link: link.to_owned(), quiet, localnet })
}

/// Keeps the pod's traffic within its limits. Nothing of it is in the pod, where it could be taken off again.
fn shaping(host: &str, private: &Private) -> Vec<Op> {
    let mut ops = Vec::new();
    if let Some(bits) = private.limits.ingress {
        ops.push(Op::Limit { link: host.to_owned(), bucket: Bucket::of(bits) });
    }
    if let Some(bits) = private.limits.egress {
        let shaper = || private.shaper.clone();
        ops.push(Op::Ifb { name: shaper(), mtu: private.mtu });
        ops.extend(prepared(&private.shaper, private.quiet, false));
        ops.extend([
            Op::Up(shaper()),
            Op::Limit { link: shaper(), bucket: Bucket::of(bits) },
            Op::Ingress(host.to_owned()),
            Op::Divert { link: host.to_owned(), to: shaper() },
        ]);
    }
    ops
}

/// The nft entries of a pod.
pub(crate) fn elements(attachment: &Attachment, private: &Private) -> Result<Vec<Element>, Error> {
    let mut all: Vec<Element> = attachment.addresses.iter().flat_map(|(a, _)| Element::pod(*a)).collect();
    let target = |ipv4: bool| attachment.addresses.iter().map(|(a, _)| *a).find(|a| a.is_ipv4() == ipv4);
    for port in &private.ports {
        for publication in Publication::of(port, target(true).is_some(), target(false).is_some())? {
            let Some(address) = target(publication.ipv4) else { continue };
            let to = (address, port.container_port);
            all.push(Element::port(publication.protocol, publication.on, publication.port, to));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
