//! What Kubernetes tells plugins: `CNI_ARGS` and capability arguments (CONVENTIONS.md of the specification).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::Endpoint;

/// kubernetes.io annotations that limit a pod's traffic.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// The kubelet's bounds, bits per second.
const LEAST: u64 = 1_000;
const MOST: u64 = 1_000_000_000_000_000;

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

/// Rates in bits per second; bursts as large as a plugin accepts, as other runtimes do.
fn bandwidth(annotations: &BTreeMap<String, String>) -> Map<String, Value> {
    let mut limits = Map::new();
    for (annotation, rate, burst) in
        [(INGRESS, "ingressRate", "ingressBurst"), (EGRESS, "egressRate", "egressBurst")]
    {
        let Some(text) = annotations.get(annotation) else { continue };
        match quantity(text).filter(|bits| (LEAST..=MOST).contains(bits)) {
            Some(bits) => {
                limits.insert(rate.into(), json!(bits));
                limits.insert(burst.into(), json!(u32::MAX));
            }
            None => {
                tracing::warn!("annotation {annotation} is ignored: \"{text}\" is no rate between 1k and 1P");
            }
        }
    }
    limits
}

/// A Kubernetes quantity as a whole number, fractions cut off: `10M`, `1.5Gi`, `1e6`.
pub(crate) fn quantity(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let (multiplier, divisor): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            (10u128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|e| *e < 20)?)?, 1)
        }
    };
    if whole.len() + fraction.len() > 18 {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    u64::try_from(digits.checked_mul(multiplier)? / divisor / scale).ok()
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
        endpoint.annotations.insert(EGRESS.into(), "10M".into());
        endpoint.annotations.insert(INGRESS.into(), "5".into());
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

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, value) in [
            ("1", Some(1)),
            ("10M", Some(10_000_000)),
            ("1.5Gi", Some(1_610_612_736)),
            ("1e6", Some(1_000_000)),
            ("2500m", Some(2)),
            ("0.5k", Some(500)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1X", None),
            ("99E", None),
            ("1.2.3", None),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
    }
}
