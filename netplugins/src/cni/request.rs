//! What Kubernetes tells plugins: `CNI_ARGS` and capability arguments (CONVENTIONS.md of the specification).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::Endpoint;
use crate::bandwidth::Limits;

/// `CNI_ARGS`: the names that plugins for Kubernetes decode.
pub(super) fn arguments(endpoint: &Endpoint) -> String {
    let (name, namespace, uid) = &endpoint.pod;
    let id = &endpoint.id;
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
    )
}

/// Capability arguments by capability. What the pod does not ask for is absent.
pub(super) fn capabilities(endpoint: &Endpoint) -> Map<String, Value> {
    let mut all = Map::new();
    let ports: Vec<Value> = endpoint
        .host_ports
        .iter()
        .map(|p| {
            let host_ip = p.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            json!({
                "hostPort": p.host_port,
                "containerPort": p.container_port,
                "protocol": p.protocol.name(),
                "hostIP": host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), Value::Array(ports));
    }
    let (servers, searches, options) = &endpoint.dns;
    if !(servers.is_empty() && searches.is_empty() && options.is_empty()) {
        all.insert("dns".into(), json!({ "servers": servers, "searches": searches, "options": options }));
    }
    if !endpoint.cgroup.is_empty() {
        all.insert("cgroupPath".into(), json!(endpoint.cgroup));
    }
    if !endpoint.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".into(), json!(endpoint.annotations));
    }
    let limits = bandwidth(&endpoint.annotations);
    if !limits.is_empty() {
        all.insert("bandwidth".into(), Value::Object(limits));
    }
    all
}

/// Rates in bits per second; bursts as large as a plugin accepts, as other runtimes do. Bad ones never come this far.
fn bandwidth(annotations: &BTreeMap<String, String>) -> Map<String, Value> {
    let limits = Limits::of(annotations).unwrap_or_default();
    let words =
        [("ingressRate", "ingressBurst", limits.ingress), ("egressRate", "egressBurst", limits.egress)];
    let given = words.into_iter().filter_map(|(rate, burst, bits)| Some((rate, burst, bits?)));
    given
        .flat_map(|(rate, burst, bits)| [(rate.into(), json!(bits)), (burst.into(), json!(u32::MAX))])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostPort, Protocol};

    #[test]
    fn a_pod_is_described_in_kubernetes_words() {
        let mut endpoint = Endpoint {
            id: "abc".into(),
            pod: ("web".into(), "shop".into(), "u-1".into()),
            cgroup: "/kubepods/pod1".into(),
            dns: (vec!["10.0.0.10".into()], vec![], vec![]),
            host_ports: vec![HostPort {
                protocol: Protocol::Udp,
                host_port: 1,
                container_port: 2,
                host_ip: None,
            }],
            ..Endpoint::default()
        };
        endpoint.annotations.insert(crate::bandwidth::EGRESS.into(), "10M".into());
        assert_eq!(
            arguments(&endpoint),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
        );
        let all = capabilities(&endpoint);
        assert_eq!(
            all["portMappings"],
            json!([{"hostPort":1,"containerPort":2,"protocol":"udp","hostIP":""}])
        );
        assert_eq!(all["bandwidth"], json!({"egressRate": 10_000_000, "egressBurst": u32::MAX}));
        assert_eq!(all["dns"]["servers"], json!(["10.0.0.10"]));
        assert_eq!(all["cgroupPath"], json!("/kubepods/pod1"));
        assert!(capabilities(&Endpoint::default()).is_empty());
    }
}
