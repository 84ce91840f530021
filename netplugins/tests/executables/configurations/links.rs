//! Plugins that make the pod's interface.

use serde_json::{Value, json};

use super::{Case, UPLINK, UPLINK_INSIDE, case, dual, four, ranges};

/// A bridge plugin's configuration with more keys.
#[allow(clippy::needless_pass_by_value)] // literals read better without a borrow
fn bridge(extra: Value, ipam: Value) -> Value {
    let mut conf = json!({"type": "bridge", "bridge": "cnx0", "ipam": ipam});
    conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    json!([conf])
}

pub(super) fn bridges() -> Vec<Case> {
    let occupied =
        "ip link add cnx0 type bridge && ip addr add 10.51.0.77/24 dev cnx0 && ip link set cnx0 up";
    vec![
        case("bridge dual stack", bridge(json!({"isGateway": true}), dual())),
        case(
            "bridge default gateway",
            json!([{"type": "bridge", "isDefaultGateway": true,
            "ipam": {"type": "host-local", "dataDir": "{DATA}", "subnet": "10.51.0.0/24"}}]),
        ),
        case(
            "bridge default gateway over a written route",
            bridge(
                json!({"isDefaultGateway": true, "hairpinMode": true}),
                json!({"type": "host-local", "dataDir": "{DATA}", "ranges": [[{"subnet": "10.51.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.51.0.9"}]}),
            ),
        ),
        case(
            "bridge masquerade promiscuous mtu",
            bridge(
                json!({"isGateway": true, "ipMasq": true,
            "ipMasqBackend": "nftables", "promiscMode": true, "mtu": 1400}),
                four(),
            ),
        ),
        case(
            "bridge keys in another case",
            json!([{"Type": "x", "type": "bridge", "BRIDGE": "cnx0", "ISGATEWAY": true,
            "HairpinMode": true, "ipam": four()}]),
        ),
        case("bridge ipv6 only", bridge(json!({"isGateway": true}), ranges(&["fd51::/64"]))),
        case("bridge isolated port", bridge(json!({"isGateway": true, "portIsolation": true}), four())),
        Case { since: "0.3.0", ..case("bridge layer 2", bridge(json!({}), json!({}))) },
        Case {
            since: "0.3.0",
            ..case(
                "bridge interface left down",
                bridge(json!({"disableContainerInterface": true}), json!({})),
            )
        },
        case("bridge left down with addresses", bridge(json!({"disableContainerInterface": true}), four())),
        Case {
            node: occupied,
            ..case("bridge with another address", bridge(json!({"isGateway": true}), four()))
        },
        Case {
            node: occupied,
            ..case(
                "bridge forces its address",
                bridge(json!({"isGateway": true, "forceAddress": true}), four()),
            )
        },
        Case {
            args: "IgnoreUnknown=1;MAC=c2:b0:57:49:47:f1",
            ..case("bridge address by CNI_ARGS", bridge(json!({"isGateway": true}), four()))
        },
        case(
            "bridge address by runtimeConfig",
            bridge(
                json!({"isGateway": true, "args": {"cni": {"mac": "c2:b0:57:49:47:f2"}},
            "runtimeConfig": {"mac": "c2:b0:57:49:47:f3"}}),
                four(),
            ),
        ),
        case(
            "bridge hairpin and promiscuous",
            bridge(json!({"hairpinMode": true, "promiscMode": true}), four()),
        ),
        case("bridge checks for duplicates", bridge(json!({"isGateway": true, "enabledad": true}), dual())),
        case("bridge spoof check", bridge(json!({"isGateway": true, "macspoofchk": true}), four())),
        Case {
            node: "ip link add cnx0 type veth peer name other",
            ..case("bridge name taken by another kind", bridge(json!({"isGateway": true}), four()))
        },
    ]
}

pub(super) fn vlans() -> Vec<Case> {
    let bridge = |extra: Value, ipam: Value| {
        let mut conf = json!({"type": "bridge", "bridge": "cnx0", "ipam": ipam});
        conf.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let case = case("", json!([conf]));
        Case { needs: &["bridge vlans"], since: "0.3.0", ..case }
    };
    vec![
        Case { name: "bridge vlan", ..bridge(json!({"vlan": 100}), json!({})) },
        Case { name: "bridge vlan with gateway", ..bridge(json!({"vlan": 100, "isGateway": true}), four()) },
        Case {
            name: "bridge vlan beside the default",
            ..bridge(json!({"vlan": 100, "preserveDefaultVlan": true}), json!({}))
        },
        Case {
            name: "bridge trunk",
            ..bridge(json!({"vlanTrunk": [{"minID": 100, "maxID": 103}, {"id": 200}]}), json!({}))
        },
        Case {
            name: "bridge vlan and trunk",
            ..bridge(json!({"vlan": 7, "vlanTrunk": [{"id": 200}]}), json!({}))
        },
        Case {
            needs: &[],
            ..Case { name: "bridge vlan out of range", ..bridge(json!({"vlan": 5000}), json!({})) }
        },
        Case {
            needs: &[],
            ..Case {
                name: "bridge trunk upside down",
                ..bridge(json!({"vlanTrunk": [{"minID": 5, "maxID": 4}]}), json!({}))
            }
        },
    ]
}

pub(super) fn pairs() -> Vec<Case> {
    vec![
        case("ptp dual stack", json!([{"type": "ptp", "ipam": dual()}])),
        case(
            "ptp masquerade mtu dns",
            json!([{"type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1450,
            "dns": {"nameservers": ["10.0.0.9"], "search": ["x.example"]}, "ipam": four()}]),
        ),
        case("ptp ipv6 only", json!([{"type": "ptp", "ipam": ranges(&["fd51::/64"])}])),
        case("ptp without addresses", json!([{"type": "ptp"}])),
        case(
            "ptp two addresses of a family",
            json!([{"type": "ptp", "ipam": ranges(&["10.51.0.0/24", "10.52.0.0/24"])}]),
        ),
    ]
}

pub(super) fn parents() -> Vec<Case> {
    let on = |name, conf: Value| Case { node: UPLINK, ..case(name, json!([conf])) };
    let inside = |name, conf: Value| Case { pod: UPLINK_INSIDE, ..case(name, json!([conf])) };
    vec![
        on("macvlan dual stack", json!({"type": "macvlan", "master": "up0", "ipam": dual()})),
        on(
            "macvlan by default route",
            json!({"type": "macvlan", "mode": "vepa", "mtu": 1400, "mac": "c2:b0:57:49:47:f1", "ipam": four()}),
        ),
        Case {
            since: "0.3.0",
            ..on(
                "macvlan private layer 2",
                json!({"type": "macvlan", "master": "up0", "mode": "private", "bcqueuelen": 200}),
            )
        },
        Case {
            since: "0.3.0",
            ..on("macvlan passthru", json!({"type": "macvlan", "master": "up0", "mode": "passthru"}))
        },
        inside(
            "macvlan of a link in the pod",
            json!({"type": "macvlan", "master": "up0", "linkInContainer": true, "ipam": four()}),
        ),
        on(
            "macvlan mtu over the parent's",
            json!({"type": "macvlan", "master": "up0", "mtu": 9000, "ipam": four()}),
        ),
        on(
            "macvlan unknown mode",
            json!({"type": "macvlan", "master": "up0", "mode": "hub", "ipam": four()}),
        ),
        case("macvlan without parent", json!([{"type": "macvlan", "master": "nope", "ipam": four()}])),
        on(
            "macvlan with the address manager's dns",
            json!({"type": "macvlan", "master": "up0", "dns": {"nameservers": ["10.0.0.9"]},
            "ipam": {"type": "static", "addresses": [{"address": "10.52.0.5/24"}], "dns": {"nameservers": ["10.52.0.53"]}}}),
        ),
        Case {
            needs: &["ipvlan"],
            ..on("ipvlan layer 2", json!({"type": "ipvlan", "master": "up0", "ipam": dual()}))
        },
        Case {
            needs: &["ipvlan"],
            ..on("ipvlan layer 3", json!({"type": "ipvlan", "mode": "l3", "mtu": 1400, "ipam": four()}))
        },
        Case {
            needs: &["ipvlan"],
            ..on(
                "ipvlan layer 3 symmetric",
                json!({"type": "ipvlan", "master": "up0", "mode": "l3s", "ipam": four()}),
            )
        },
        Case {
            needs: &["ipvlan"],
            ..inside(
                "ipvlan of a link in the pod",
                json!({"type": "ipvlan", "master": "up0", "linkInContainer": true, "ipam": four()}),
            )
        },
        on("ipvlan without addresses", json!({"type": "ipvlan", "master": "up0"})),
        Case {
            needs: &["vlan"],
            ..on(
                "vlan dual stack",
                json!({"type": "vlan", "master": "up0", "vlanId": 100, "mtu": 1400, "ipam": dual()}),
            )
        },
        Case {
            needs: &["vlan"],
            ..inside(
                "vlan of a link in the pod",
                json!({"type": "vlan", "master": "up0", "vlanId": 5, "linkInContainer": true, "ipam": four()}),
            )
        },
        on("vlan without parent", json!({"type": "vlan", "vlanId": 5, "ipam": four()})),
        on("vlan out of range", json!({"type": "vlan", "master": "up0", "vlanId": 4095, "ipam": four()})),
    ]
}

pub(super) fn devices() -> Vec<Case> {
    let with = "ip link add dev0 type veth peer name dev1 && ip link set dev0 address c2:b0:57:49:47:f5 up && ip link set dev1 up";
    let device = |name, conf: Value| Case { node: with, ..case(name, json!([conf])) };
    vec![
        Case { needs: &["dummy"], ..case("dummy dual stack", json!([{"type": "dummy", "ipam": dual()}])) },
        case("dummy without addresses", json!([{"type": "dummy"}])),
        Case {
            needs: &["tap"],
            ..case("tap", json!([{"type": "tap", "mtu": 1400, "mac": "c2:b0:57:49:47:f6", "ipam": four()}]))
        },
        Case {
            needs: &["tap"],
            since: "0.3.0",
            ..case(
                "tap with an owner, layer 2",
                json!([{"type": "tap", "multiQueue": true, "owner": 0, "group": 0}]),
            )
        },
        Case {
            needs: &["tap"],
            since: "0.3.0",
            pod: "ip link add br0 type bridge",
            ..case("tap as a port of a bridge in the pod", json!([{"type": "tap", "bridge": "br0"}]))
        },
        device("host-device by name", json!({"type": "host-device", "device": "dev0", "ipam": dual()})),
        Case {
            since: "0.3.0",
            ..device(
                "host-device by address, layer 2",
                json!({"type": "host-device", "hwaddr": "C2:B0:57:49:47:F5"}),
            )
        },
        device(
            "host-device that is not there",
            json!({"type": "host-device", "device": "nope", "ipam": four()}),
        ),
        device("host-device told by nothing", json!({"type": "host-device", "ipam": four()})),
        device(
            "host-device told by a path elsewhere",
            json!({"type": "host-device", "kernelpath": "/etc", "ipam": four()}),
        ),
    ]
}
