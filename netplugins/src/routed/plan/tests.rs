//! Plans of the routed network, without a kernel.

use serde_json::json;

use super::*;
use crate::Protocol;

fn attachment(addresses: &[&str], ports: Vec<HostPort>) -> (Attachment, Private) {
    let addresses: Vec<(IpAddr, u8)> =
        addresses.iter().map(|a| a.parse::<IpAddr>().unwrap()).map(|a| (a, width(a))).collect();
    let (mac, host_mac) = macs(addresses[0].0);
    let gateways = addresses
        .iter()
        .map(|(a, _)| if a.is_ipv4() { [10, 88, 0, 1].into() } else { "fd00:10:88::1".parse().unwrap() })
        .collect();
    let private = Private {
        version: 1,
        mac,
        host_mac,
        mtu: 1400,
        quiet: true,
        gateways,
        ports,
        name: String::new(),
        limits: Limits::default(),
        shaper: String::new(),
    };
    let attachment = Attachment {
        id: "pod".into(),
        interface: "eth0".into(),
        host_interface: "ntabc".into(),
        addresses,
        boot_id: "boot".into(),
        private: serde_json::to_value(&private).unwrap(),
    };
    (attachment, private)
}

fn lines<T: ToString>(ops: &[T]) -> Vec<String> {
    ops.iter().map(ToString::to_string).collect()
}

#[test]
fn a_dual_stack_pod_is_one_veth_two_addresses_and_two_default_routes() {
    let port = |host_ip: Option<&str>, number| HostPort {
        protocol: Protocol::Tcp,
        host_port: number,
        container_port: 8080,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    };
    let (a, p) =
        attachment(&["10.88.0.5", "fd00:10:88::5"], vec![port(None, 80), port(Some("192.0.2.2"), 81)]);
    let plan = plan(&a, &p).unwrap();
    assert_eq!(
        lines(&plan.links),
        [
            "add link ntabc address 0e:58:0a:58:00:05 mtu 1400 type veth peer eth0 address 0a:58:0a:58:00:05",
            "set ntabc addrgenmode none route_localnet",
            "add neighbour 10.88.0.5 at 0a:58:0a:58:00:05 on ntabc",
            "add neighbour fd00:10:88::5 at 0a:58:0a:58:00:05 on ntabc",
        ]
    );
    assert_eq!(
        lines(&plan.host),
        ["set ntabc up", "add route 10.88.0.5/32 dev ntabc", "add route fd00:10:88::5/128 dev ntabc"]
    );
    assert_eq!(
        lines(&plan.pod),
        [
            "add address 10.88.0.5/32 to eth0",
            "add address fd00:10:88::5/128 to eth0",
            "set eth0 up",
            "add neighbour 10.88.0.1 at 0e:58:0a:58:00:05 on eth0",
            "add route 0.0.0.0/0 via 10.88.0.1 dev eth0",
            "add neighbour fd00:10:88::1 at 0e:58:0a:58:00:05 on eth0",
            "add route ::/0 via fd00:10:88::1 dev eth0",
        ]
    );
    assert_eq!(
        lines(&plan.elements),
        [
            "pods4 10.88.0.5",
            "self4 10.88.0.5 . 10.88.0.5",
            "pods6 fd00:10:88::5",
            "self6 fd00:10:88::5 . fd00:10:88::5",
            "hp4 tcp . 80 : 10.88.0.5 . 8080",
            "hp6 tcp . 80 : fd00:10:88::5 . 8080",
            "hpip4 192.0.2.2 . tcp . 81 : 10.88.0.5 . 8080",
        ]
    );
}

#[test]
fn limits_are_kept_on_the_node_and_only_where_there_are_any() {
    let (a, p) = attachment(&["10.88.0.5"], vec![]);
    let limits = Limits { ingress: Some(8_000_000), egress: Some(80_000_000) };
    let limited = Private { limits, shaper: "ntifb".into(), ..p.clone() };
    let plain = plan(&a, &p).unwrap();
    let shaped = plan(&a, &limited).unwrap();
    assert_eq!((&shaped.pod, &shaped.elements), (&plain.pod, &plain.elements));
    assert_eq!(lines(&shaped.host)[..plain.host.len()], lines(&plain.host));
    assert_eq!(
        lines(&shaped.host)[plain.host.len()..],
        [
            "add qdisc dev ntabc root tbf rate 1000000bps burst 50000 limit 150000",
            "add link ntifb mtu 1400 type ifb",
            "set ntifb addrgenmode none",
            "set ntifb up",
            "add qdisc dev ntifb root tbf rate 10000000bps burst 500000 limit 1500000",
            "add qdisc dev ntabc ingress",
            "add filter dev ntabc ingress redirect to ntifb",
        ]
    );
}

#[test]
fn a_pod_without_ipv6_has_no_trace_of_it() {
    let (a, p) = attachment(&["10.88.0.5"], vec![]);
    let plan = plan(&a, &Private { quiet: false, ..p }).unwrap();
    let all = [lines(&plan.links), lines(&plan.host), lines(&plan.pod), lines(&plan.elements)].concat();
    assert!(all.iter().all(|line| !line.contains("::") && !line.contains("localnet")), "{all:?}");
}

#[test]
fn a_record_of_another_version_is_refused_by_name() {
    let (mut a, _) = attachment(&["10.88.0.5"], vec![]);
    a.private["version"] = json!(7);
    assert!(Private::of(&a).unwrap_err().chain().contains("network record of pod pod"));
    a.private = json!(null);
    assert!(Private::of(&a).is_err());
}
