//! What runtimes and pods notice of the built-in plugins.

use serde_json::{Value, json};

use crate::Test;
use crate::lab::{Lab, Namespace, Site, VERSIONS, versioned};

pub(crate) const TESTS: &[Test] = &[
    ("versions_and_environment_are_told_as_the_specification_wants", versions_and_environment),
    ("addresses_are_given_in_turn_and_once", addresses_in_turn),
    ("pods_on_a_bridge_reach_each_other_and_the_outside_is_masqueraded", pods_talk),
    ("host_ports_lead_to_the_pod_and_have_one_owner", host_ports),
    ("garbage_collection_frees_what_no_attachment_owns", garbage),
];

fn versions_and_environment(lab: &Lab) -> Option<String> {
    let site = Site::new(&lab.ours);
    let conf = versioned(&json!({"type": "bridge"}), "1.0.0");
    let (ok, printed) = site.call("VERSION", &conf);
    assert!(ok);
    assert_eq!(printed, json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}));
    for (command, more, conf, code) in [
        ("ADD", vec![("CNI_NETNS", "")], conf.clone(), 4),
        ("ADD", vec![("CNI_IFNAME", "a/b")], conf.clone(), 4),
        ("ADD", vec![("CNI_CONTAINERID", "../x")], conf.clone(), 4),
        ("SUB", vec![], conf.clone(), 4),
        ("ADD", vec![], versioned(&json!({"type": "bridge"}), "3.0.0"), 1),
        ("ADD", vec![], json!({"type": "bridge", "cniVersion": "1.0.0"}), 7),
        ("ADD", vec![], versioned(&json!({"type": "portmap", "conditionsV4": ["-i", "eth0"]}), "1.0.0"), 2),
        ("ADD", vec![("CNI_NETNS", "/proc/self/ns/net")], conf, 8),
    ] {
        let (ok, printed) = site.call_with(command, &conf, &more);
        assert!(!ok && printed["code"] == code, "{command} {more:?} {conf}: {printed}");
    }
    None
}

fn addresses_in_turn(lab: &Lab) -> Option<String> {
    let site = Site::new(&lab.ours);
    let data = lab.data("turn");
    let conf = versioned(
        &json!({"type": "host-local", "ipam": {"type": "host-local", "dataDir": data,
            "ranges": [[{"subnet": "10.70.0.0/29"}]]}}),
        "1.0.0",
    );
    let add = |container: &str| site.call_with("ADD", &conf, &[("CNI_CONTAINERID", container)]);
    let given: Vec<Value> = (0..5).map(|i| add(&format!("c{i}")).1["ips"][0]["address"].clone()).collect();
    assert_eq!(given, ["10.70.0.2/29", "10.70.0.3/29", "10.70.0.4/29", "10.70.0.5/29", "10.70.0.6/29"]);
    let (ok, full) = add("c9");
    assert!(!ok && full["msg"] == "no IP addresses available in range set 0", "{full}");
    assert!(full["details"].as_str().unwrap().starts_with("5 are held, by 5 containers"), "{full}");
    let (ok, twice) = add("c1");
    assert!(!ok && twice["msg"].as_str().unwrap().contains("duplicate allocation"), "{twice}");
    for container in ["c1", "c3"] {
        let (ok, _) = site.call_with("DEL", &conf, &[("CNI_CONTAINERID", container)]);
        assert!(ok);
    }
    assert_eq!(add("d0").1["ips"][0]["address"], "10.70.0.3/29");
    assert_eq!(add("d1").1["ips"][0]["address"], "10.70.0.5/29");
    let named = site.call_with("ADD", &conf, &[("CNI_CONTAINERID", "e"), ("CNI_ARGS", "IP=10.70.0.2")]);
    assert!(!named.0, "somebody has it: {}", named.1);
    let text = std::fs::read_to_string(data.join("testnet/10.70.0.2")).unwrap();
    assert_eq!(text, "c0\r\neth0", "the reference plugin's format");
    None
}

fn pods_talk(lab: &Lab) -> Option<String> {
    for kind in ["bridge", "ptp"] {
        let conf = versioned(
            &json!({"type": kind, "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local",
                "dataDir": lab.data(&format!("talk-{kind}")), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "ranges": [[{"subnet": "10.71.0.0/24"}], [{"subnet": "fd71::/64"}]]}}),
            "1.0.0",
        );
        let one = Site::new(&lab.ours);
        let two = one.beside("c2");
        let outside = Namespace::new();
        one.node.sh(&format!(
            "ip link add up0 type veth peer name out0 && ip link set up0 up && ip addr add 192.0.2.1/24 dev up0 &&
             ip link set out0 netns {}",
            outside.path.split('/').nth(4).unwrap()
        ));
        outside.sh("ip addr add 192.0.2.9/24 dev out0 && ip link set out0 up");
        one.done("ADD", &conf);
        two.done("ADD", &conf);
        assert_eq!(one.pod.reach(&two.pod, "10.71.0.3"), "10.71.0.2");
        assert_eq!(one.pod.reach(&two.pod, "fd71::3"), "fd71::2");
        assert_eq!(two.pod.reach(&one.node, "10.71.0.1"), "10.71.0.3");
        assert_eq!(one.node.reach(&two.pod, "10.71.0.3"), "10.71.0.1");
        assert_eq!(two.pod.reach(&outside, "192.0.2.9"), "192.0.2.1");
        let mac = |site: &Site<'_>| {
            site.node.sh("ip -o link show type bridge | grep -o 'link/ether [0-9a-f:]*' || true")
        };
        let before = mac(&one);
        one.done("DEL", &conf);
        assert_eq!(before.is_empty(), kind == "ptp");
        assert_eq!(mac(&two), before, "the bridge keeps its address when a port leaves");
        two.done("DEL", &conf);
    }
    None
}

fn host_ports(lab: &Lab) -> Option<String> {
    for kind in ["bridge", "ptp"] {
        let site = Site::new(&lab.ours);
        let conf = versioned(
            &json!({"type": kind, "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local",
                "dataDir": lab.data(&format!("port-{kind}")), "routes": [{"dst": "0.0.0.0/0"}],
                "ranges": [[{"subnet": "10.73.0.0/24"}]]}}),
            "1.0.0",
        );
        // keys as Go runtimes write them
        let mut ports = versioned(
            &json!({"type": "portmap", "runtimeConfig": {"portMappings": [
            {"HostPort": 8000, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}]}}),
            "1.0.0",
        );
        ports["prevResult"] = site.done("ADD", &conf);
        assert_eq!(site.done("ADD", &ports), ports["prevResult"]);
        site.done("CHECK", &ports);
        site.node.sh("ip addr add 192.0.2.1/32 dev lo");
        // Where bridged packets pass the IP hooks, a bridge's port does not get its own packets back.
        site.node.sh("echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables");
        for (who, from, to) in [
            ("node", &site.node, "127.0.0.1"),
            ("node", &site.node, "192.0.2.1"),
            ("pod", &site.pod, "192.0.2.1"),
        ] {
            let listener = site.pod.inside(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap());
            let to: std::net::SocketAddr = format!("{to}:8000").parse().unwrap();
            from.inside(move || {
                std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_secs(5))
                    .unwrap_or_else(|e| panic!("{who} to {to}: {e}"));
            });
            listener.accept().unwrap();
        }
        let mut other = ports.clone();
        other["prevResult"]["ips"][0]["address"] = json!("10.73.0.99/24");
        let (ok, printed) = site.call_with("ADD", &other, &[("CNI_CONTAINERID", "c9")]);
        assert!(
            !ok && printed["msg"].as_str().unwrap().contains("published by testnet/c1/eth0 already"),
            "{printed}"
        );
        site.done("DEL", &ports);
        site.done("DEL", &ports);
        assert!(!site.node.sh("nft list ruleset").contains("10.73.0.2"));
        assert!(!site.call("CHECK", &ports).0);
        site.done("DEL", &conf);
    }
    None
}

fn garbage(lab: &Lab) -> Option<String> {
    let site = Site::new(&lab.ours);
    let conf = versioned(
        &json!({"type": "bridge", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local",
            "dataDir": lab.data("gc"), "ranges": [[{"subnet": "10.72.0.0/24"}]]}}),
        "1.1.0",
    );
    site.done("ADD", &conf);
    site.done("STATUS", &conf);
    let mut collect = conf;
    collect["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    site.done("GC", &collect);
    assert!(site.node.sh("nft list ruleset").contains("10.72.0.2 comment \"testnet/c1/eth0\""));
    collect["cni.dev/valid-attachments"] = json!([]);
    // Another network of the node has no attachments: that says nothing about this one's.
    let mut other = collect.clone();
    other["name"] = json!("othernet");
    site.done("GC", &other);
    assert!(site.node.sh("nft list ruleset").contains("10.72.0.2 comment \"testnet/c1/eth0\""));
    site.done("GC", &collect);
    assert!(!site.node.sh("nft list ruleset").contains("10.72.0.2"));
    assert!(!lab.data("gc").join("testnet/10.72.0.2").exists());
    None
}
