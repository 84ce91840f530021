//! What the configurations of the one-link plugins mean.

use serde_json::{Value, json};

use super::*;
use crate::plugins::testing::request;

fn read(kind: &str, conf: Value) -> Result<Settings, Refusal> {
    settings(kind, &request("ADD", conf))
}

#[test]
fn every_mode_is_the_kernels_number() {
    for (kind, mode, wanted) in [
        ("macvlan", "", Kind::Macvlan { mode: 4, queue: 0 }),
        ("macvlan", "bridge", Kind::Macvlan { mode: 4, queue: 0 }),
        ("macvlan", "private", Kind::Macvlan { mode: 1, queue: 0 }),
        ("macvlan", "vepa", Kind::Macvlan { mode: 2, queue: 0 }),
        ("macvlan", "passthru", Kind::Macvlan { mode: 8, queue: 0 }),
        ("ipvlan", "", Kind::Ipvlan(0)),
        ("ipvlan", "l2", Kind::Ipvlan(0)),
        ("ipvlan", "l3", Kind::Ipvlan(1)),
        ("ipvlan", "l3s", Kind::Ipvlan(2)),
    ] {
        let settings = read(kind, json!({"master": "up0", "MODE": mode})).unwrap();
        assert_eq!((settings.kind, settings.parent), (wanted, Parent::Named("up0".into())), "{kind} {mode}");
        let refusal = read(kind, json!({"mode": "l4"})).unwrap_err();
        assert_eq!(refusal.msg, format!("unknown {kind} mode: \"l4\""));
    }
}

#[test]
fn a_parent_is_named_or_the_default_routes_or_the_chains() {
    assert_eq!(read("macvlan", json!({})).unwrap().parent, Parent::Default);
    assert_eq!(read("dummy", json!({"master": "x"})).unwrap().parent, Parent::None);
    assert!(read("vlan", json!({"vlanId": 5})).unwrap_err().msg.contains("\"master\" field is required"));
    let chained = json!({"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "bond0"}],
        "ips": [{"address": "10.0.0.5/24"}]}});
    let settings = read("ipvlan", chained).unwrap();
    assert!(settings.chained && settings.parent == Parent::Named("bond0".into()));
    let own = json!({"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.5/24"}]}});
    assert_eq!(
        super::settings("ipvlan", &request("CHECK", own)).unwrap().parent,
        Parent::Default,
        "its own result"
    );
    let two = json!({"prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "a"}, {"name": "b"}]}});
    assert!(read("ipvlan", two).unwrap_err().msg.contains("lacks a single named interface"));
}

#[test]
fn numbers_outside_their_range_are_refused() {
    for id in [json!(4095), json!(70_000), json!(-1)] {
        assert!(read("vlan", json!({"master": "x", "vlanId": id})).is_err(), "{id}");
    }
    let settings = read("macvlan", json!({"mtu": 1600, "master": "x"})).unwrap();
    let parent = Details { name: "x".into(), mtu: 1500, ..Details::default() };
    let refusal = plan(&request("ADD", json!({})), &settings, Some(&parent)).unwrap_err();
    assert_eq!(refusal.msg, "invalid MTU 1600, must be [0, master MTU(1500)]");
}

#[test]
fn the_plan_is_one_link_in_the_pod_under_its_final_name() {
    for (kind, conf, wanted) in [
        (
            "macvlan",
            json!({"master": "x", "mac": "c2:11:22:33:44:55", "bcqueuelen": 200, "mtu": 1400}),
            "add link eth0 link x address c2:11:22:33:44:55 mtu 1400 type macvlan mode 4 bcqueuelen 200 in the pod",
        ),
        ("vlan", json!({"master": "x", "vlanId": 7}), "add link eth0 link x type vlan id 7 in the pod"),
        (
            "ipvlan",
            json!({"master": "x", "linkInContainer": true}),
            "add link eth0 link x type ipvlan mode 0",
        ),
    ] {
        let request = request("ADD", conf);
        let parent = Details { name: "x".into(), mtu: 1500, ..Details::default() };
        let create = plan(&request, &settings(kind, &request).unwrap(), Some(&parent)).unwrap();
        assert_eq!(create.to_string(), wanted);
    }
}
