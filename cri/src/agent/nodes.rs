//! What a Node says (`v1.Node` of the Kubernetes API), as little as is needed.

use std::collections::BTreeMap;

use netplugins::Peer;
use serde::Deserialize;

/// `v1.Node`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Node {
    /// Name and version.
    pub metadata: Metadata,
    /// Subnets of its pods.
    pub spec: Spec,
    /// Its addresses.
    pub status: Status,
}

/// `ObjectMeta`, or `ListMeta`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    /// Name of the object.
    pub name: String,
    /// Version of the object or the list.
    pub resource_version: String,
    /// Where the next page of a list begins; empty on the last.
    #[serde(rename = "continue")]
    pub next: String,
}

/// `NodeSpec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// The first subnet; all that old servers have.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// One per family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// `NodeStatus`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// All kinds of addresses.
    pub addresses: Vec<Address>,
}

/// `NodeAddress`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Address {
    /// `InternalIP`, `Hostname`…
    #[serde(rename = "type")]
    pub kind: String,
    /// The address.
    pub address: String,
}

/// `NodeList`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct List {
    /// Version and next page.
    pub metadata: Metadata,
    /// The nodes of this page.
    pub items: Vec<Node>,
}

/// A change that a watch tells.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node is there, new or changed.
    Present(Box<Node>),
    /// A node is gone.
    Gone(String),
}

impl Node {
    /// The node as the mesh wants it: what is no IP address is left out.
    #[must_use]
    pub fn peer(&self) -> Peer {
        let internal = self.status.addresses.iter().filter(|a| a.kind == "InternalIP");
        let cidrs = if self.spec.pod_cidrs.is_empty() && !self.spec.pod_cidr.is_empty() {
            vec![self.spec.pod_cidr.clone()]
        } else {
            self.spec.pod_cidrs.clone()
        };
        Peer {
            name: self.metadata.name.clone(),
            addresses: internal.filter_map(|a| a.address.parse().ok()).collect(),
            cidrs,
        }
    }
}

impl Event {
    /// Carries the change out; whether it made a difference.
    pub fn apply(self, nodes: &mut BTreeMap<String, Peer>) -> bool {
        match self {
            Self::Present(node) => {
                let peer = node.peer();
                nodes.insert(peer.name.clone(), peer.clone()) != Some(peer)
            }
            Self::Gone(name) => nodes.remove(&name).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_its_internal_addresses_and_pod_subnets() {
        let node: Node = serde_json::from_str(
            r#"{"kind":"Node","metadata":{"name":"a","resourceVersion":"7","labels":{}},
                "spec":{"podCIDR":"10.1.0.0/24","podCIDRs":["10.1.0.0/24","fd00:1::/64"],"taints":null},
                "status":{"addresses":[{"type":"Hostname","address":"a"},{"type":"InternalIP","address":"192.0.2.1"},
                          {"type":"ExternalIP","address":"203.0.113.1"},{"type":"InternalIP","address":"x"}]}}"#,
        )
        .unwrap();
        let peer = node.peer();
        assert_eq!((peer.name.as_str(), peer.cidrs.len()), ("a", 2));
        assert_eq!(peer.addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    }

    #[test]
    fn heartbeats_make_no_difference() {
        let mut nodes = BTreeMap::new();
        let node = Node { metadata: Metadata { name: "a".into(), ..Metadata::default() }, ..Node::default() };
        assert!(Event::Present(Box::new(node.clone())).apply(&mut nodes));
        assert!(!Event::Present(Box::new(node)).apply(&mut nodes));
        assert!(Event::Gone("a".into()).apply(&mut nodes));
        assert!(!Event::Gone("a".into()).apply(&mut nodes));
    }
}
