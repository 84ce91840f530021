//! Pods as the cases of this suite want them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use k8s_cri::v1 as api;
use tonic::Status;

use super::space::Space;
use crate::client;
use crate::node::Node;
use crate::suites::wait;

/// A running pod.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    /// CRI id.
    pub(super) id: String,
    /// What the kubelet would be told.
    pub(super) addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub(super) space: Space,
}

/// A pod's configuration with published ports: protocol, node port, pod port, node address (may be empty).
pub(super) fn config(
    node: &Node,
    name: &str,
    ports: &[(api::Protocol, u16, u16, &str)],
) -> api::PodSandboxConfig {
    let mut config = client::pod(name, &node.dir.join("logs"));
    config.port_mappings = ports
        .iter()
        .map(|(protocol, host, container, ip)| api::PortMapping {
            protocol: (*protocol).into(),
            host_port: i32::from(*host),
            container_port: i32::from(*container),
            host_ip: (*ip).to_owned(),
        })
        .collect();
    config
}

/// Asks for a pod; the server's refusal is an answer too.
///
/// # Errors
/// Nobody serves.
pub(super) fn ask(node: &Node, config: &api::PodSandboxConfig) -> Result<Result<String, Status>> {
    wait(async { Ok(node.client().await?.run_pod(config).await) })
}

/// Runs a pod.
///
/// # Errors
/// It is refused, or has no address.
pub(super) fn run(node: &Node, config: &api::PodSandboxConfig) -> Result<Pod> {
    wait(async {
        let mut client = node.client().await?;
        let id = client.run_pod(config).await?;
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let answer = client.runtime.pod_sandbox_status(request).await?.into_inner();
        let network = answer.status.and_then(|status| status.network).context("no network in the status")?;
        let more = network.additional_ips.into_iter().map(|other| other.ip);
        let addresses: Result<Vec<IpAddr>, _> =
            std::iter::once(network.ip).chain(more).map(|ip| ip.parse()).collect();
        Ok(Pod { space: Space::Named(id.clone()), id, addresses: addresses.context("the pod's addresses")? })
    })
}

/// Stops and removes pods.
///
/// # Errors
/// The server's.
pub(super) fn remove<'a>(node: &Node, pods: impl IntoIterator<Item = &'a Pod>) -> Result<()> {
    wait(async {
        let mut client = node.client().await?;
        for pod in pods {
            client.remove_pod(&pod.id).await?;
        }
        Ok(())
    })
}

impl Pod {
    /// Its IPv4 address.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn v4(&self) -> Result<Ipv4Addr> {
        let four = |ip: &IpAddr| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None };
        self.addresses.iter().find_map(four).context("the pod has no IPv4 address")
    }

    /// Its IPv6 address.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn v6(&self) -> Result<Ipv6Addr> {
        let six = |ip: &IpAddr| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None };
        self.addresses.iter().find_map(six).context("the pod has no IPv6 address")
    }
}
