//! Plugins that come after the one that made the pod's interface.

use serde_json::{Value, json};

use super::{Case, case, dual};

/// After a bridge.
fn chain(name: &'static str, meta: Value) -> Case {
    let bridge = json!({"type": "bridge", "bridge": "cnx0", "isGateway": true, "ipam": dual()});
    Case { since: "0.3.0", ..case(name, Value::Array(vec![bridge, meta])) }
}

/// Without a plugin before.
fn alone(name: &'static str, conf: Value) -> Case {
    Case { since: "0.3.0", ..case(name, Value::Array(vec![conf])) }
}

/// `bandwidth`.
pub(super) fn bandwidth() -> Vec<Case> {
    let both = json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000, "EgressRate": 16_000_000, "EgressBurst": 8_000_000}});
    vec![
        chain("bandwidth both ways", json!({"type": "bandwidth", "runtimeConfig": both})),
        chain(
            "bandwidth one way",
            json!({"type": "bandwidth", "ingressRate": 123_456_789, "ingressBurst": 1_000_000}),
        ),
        chain("bandwidth of nothing", json!({"type": "bandwidth"})),
        chain("bandwidth half said", json!({"type": "bandwidth", "ingressRate": 5})),
        chain(
            "bandwidth burst over 4 GB",
            json!({"type": "bandwidth", "egressRate": 5_000_000, "egressBurst": 34_359_738_361_u64}),
        ),
        alone(
            "bandwidth unchained",
            json!({"type": "bandwidth", "ingressRate": 5_000_000, "ingressBurst": 5_000_000}),
        ),
    ]
}

/// `tuning`.
pub(super) fn tuning() -> Vec<Case> {
    vec![
        chain(
            "tuning settings and link",
            json!({"type": "tuning", "dataDir": "{DATA}-t", "mac": "c2:b0:57:49:47:f9", "mtu": 1454, "promisc": true,
            "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "500"}}),
        ),
        chain(
            "tuning multicast and queue",
            json!({"type": "tuning", "dataDir": "{DATA}-t", "allmulti": true, "txQLen": 777}),
        ),
        chain(
            "tuning by args",
            json!({"type": "tuning", "dataDir": "{DATA}-t", "mtu": 1400, "args": {"cni": {"mtu": 1300, "promisc": true}}}),
        ),
        chain("tuning outside of net", json!({"type": "tuning", "sysctl": {"kernel.panic": "1"}})),
        chain("tuning out of net by dots", json!({"type": "tuning", "sysctl": {"net/../kernel/panic": "1"}})),
        alone("tuning unchained", json!({"type": "tuning", "mtu": 1400})),
    ]
}

/// `sbr` and `vrf`.
pub(super) fn routing() -> Vec<Case> {
    vec![
        chain("sbr", json!({"type": "sbr"})),
        chain("sbr with a table", json!({"type": "sbr", "table": 77})),
        alone("sbr unchained", json!({"type": "sbr"})),
        Case { needs: &["vrf"], since: "0.3.1", ..chain("vrf", json!({"type": "vrf", "vrfname": "blue"})) },
        Case {
            needs: &["vrf"],
            since: "0.3.1",
            ..chain("vrf with a table", json!({"type": "vrf", "vrfname": "blue", "table": 100}))
        },
        Case { since: "0.3.1", ..chain("vrf without name", json!({"type": "vrf"})) },
    ]
}

/// `portmap` and `firewall`; `loopback` is nobody's.
pub(super) fn filters() -> Vec<Case> {
    let mapped = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"HostPort": 8081, "ContainerPort": 81, "Protocol": "udp", "HostIP": "127.0.0.1"}]});
    vec![
        chain("portmap", json!({"type": "portmap", "backend": "nftables", "runtimeConfig": mapped})),
        chain(
            "portmap without masquerade",
            json!({"type": "portmap", "backend": "nftables", "snat": false, "markMasqBit": 5, "runtimeConfig": mapped}),
        ),
        chain(
            "portmap of nothing",
            json!({"type": "portmap", "backend": "nftables", "runtimeConfig": {"portMappings": null}}),
        ),
        chain(
            "portmap impossible port",
            json!({"type": "portmap", "backend": "nftables", "runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 80, "protocol": "tcp"}]}}),
        ),
        chain(
            "portmap impossible mark",
            json!({"type": "portmap", "backend": "nftables", "markMasqBit": 40, "runtimeConfig": mapped}),
        ),
        Case { since: "0.4.0", ..chain("firewall", json!({"type": "firewall", "backend": "iptables"})) },
        Case {
            since: "0.4.0",
            state_differs: true,
            ..chain("firewall same bridge", json!({"type": "firewall", "ingressPolicy": "same-bridge"}))
        },
        Case {
            since: "0.4.0",
            ..chain("firewall unknown policy", json!({"type": "firewall", "ingressPolicy": "shut"}))
        },
        Case {
            since: "0.4.0",
            ..chain(
                "firewall unknown version of nothing",
                json!({"type": "firewall", "iptablesAdminChainName": "OPS-ADMIN"}),
            )
        },
        alone("loopback", json!({"type": "loopback"})),
    ]
}
