//! Address managers.

use serde_json::{Value, json};

use super::{Case, case};

/// `host-local`.
pub(super) fn local() -> Vec<Case> {
    let local = |extra: Value| {
        let mut ipam = json!({"type": "host-local", "dataDir": "{DATA}"});
        ipam.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!([{"type": "ptp", "ipam": ipam}])
    };
    vec![
        case(
            "host-local old form",
            local(json!({"subnet": "10.51.0.0/24", "rangeStart": "10.51.0.20",
            "rangeEnd": "10.51.0.30", "gateway": "10.51.0.9", "routes": [{"dst": "10.99.0.0/16"}]})),
        ),
        case(
            "host-local several ranges in one pool",
            local(json!({"ranges": [[
            {"subnet": "10.51.0.0/29", "rangeStart": "10.51.0.6"}, {"subnet": "10.51.1.0/24"}]]})),
        ),
        case(
            "host-local resolver file",
            local(json!({"subnet": "10.51.0.0/24", "resolvConf": "{FILES}/resolv.conf"})),
        ),
        Case {
            args: "IgnoreUnknown=1;IP=10.51.0.77",
            ..case("host-local address by CNI_ARGS", local(json!({"subnet": "10.51.0.0/24"})))
        },
        Case {
            args: "IgnoreUnknown=1;IP=10.52.0.77",
            ..case("host-local address of no range", local(json!({"subnet": "10.51.0.0/24"})))
        },
        Case {
            args: "IgnoreUnknown=1;IP=10.51.0.1",
            ..case("host-local address is the gateway", local(json!({"subnet": "10.51.0.0/24"})))
        },
        case(
            "host-local overlapping ranges",
            local(json!({"ranges": [[{"subnet": "10.51.0.0/24"}], [{"subnet": "10.51.0.0/25"}]]})),
        ),
        case("host-local host bits", local(json!({"subnet": "10.51.0.5/24"}))),
        case("host-local too small", local(json!({"subnet": "10.51.0.0/31"}))),
        case(
            "host-local mixed families",
            local(json!({"ranges": [[{"subnet": "10.51.0.0/24"}, {"subnet": "fd51::/64"}]]})),
        ),
        case(
            "host-local ranges by runtimeConfig",
            json!([{"type": "ptp", "ipam": {"type": "host-local", "dataDir": "{DATA}"},
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.53.0.0/24"}], [{"subnet": "fd53::/64"}]]}}]),
        ),
    ]
}

/// `static`, and what both may say of routes.
pub(super) fn fixed() -> Vec<Case> {
    let fixed = |extra: Value| {
        let mut conf =
            json!({"type": "bridge", "bridge": "cnx0", "isGateway": true, "ipam": {"type": "static"}});
        conf["ipam"].as_object_mut().unwrap().extend(extra["ipam"].as_object().cloned().unwrap_or_default());
        if let Some(runtime) = extra.get("runtimeConfig") {
            conf["runtimeConfig"] = runtime.clone();
        }
        json!([conf])
    };
    vec![
        case(
            "static addresses routes dns",
            fixed(json!({"ipam": {
            "addresses": [{"address": "10.52.0.5/24", "gateway": "10.52.0.1"}, {"address": "fd52::5/64", "gateway": "fd52::1"}],
            "routes": [{"dst": "10.60.0.0/16", "gw": "10.52.0.1"}], "dns": {"nameservers": ["10.52.0.53"], "domain": "x.example"}}})),
        ),
        Case {
            args: "IgnoreUnknown=1;IP=10.54.0.7/24;GATEWAY=10.54.0.1",
            ..case("static address by CNI_ARGS", fixed(json!({})))
        },
        case("static address by runtimeConfig", fixed(json!({"runtimeConfig": {"ips": ["10.55.0.7/24"]}}))),
        case(
            "static address without prefix",
            fixed(json!({"ipam": {"addresses": [{"address": "10.52.0.5"}]}})),
        ),
        Case {
            since: "1.1.0",
            ..case(
                "routes with metric and table",
                json!([{"type": "bridge", "bridge": "cnx0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": "{DATA}", "subnet": "10.51.0.0/24", "routes": [
                {"dst": "10.60.0.0/16", "priority": 50}, {"dst": "10.62.0.0/16", "table": 77}]}}]),
            )
        },
        Case {
            since: "1.1.0",
            // The reference hands them on and does not set them.
            state_differs: true,
            ..case(
                "routes with mtu",
                json!([{"type": "bridge", "bridge": "cnx0", "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": "{DATA}", "subnet": "10.51.0.0/24", "routes": [
                {"dst": "10.60.0.0/16", "mtu": 1300, "advmss": 1200}]}}]),
            )
        },
    ]
}
