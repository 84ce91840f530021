//! The mesh against the kernel, on a node of its own.

use super::*;
use crate::testing::on_a_node;

fn peer(name: &str, address: &str, cidrs: &[&str]) -> Peer {
    Peer {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        cidrs: cidrs.iter().map(|c| (*c).to_owned()).collect(),
    }
}

fn sh(command: &str) -> String {
    let output = std::process::Command::new("sh").arg("-c").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn nodes_come_and_go_and_a_second_look_changes_nothing() {
    on_a_node(|| {
        sh("ip link set lo up; ip link add wire type veth peer name other; ip link set wire up; ip link set other up
            ip address add 192.0.2.1/24 dev wire");
        let own = peer("a", "192.0.2.1", &["10.1.0.0/24", "fd00:1::/64"]);
        let near = peer("b", "192.0.2.2", &["10.2.0.0/24"]);
        let far = peer("c", "198.51.100.3", &["10.3.0.0/24", "fd00:3::/64"]);
        let mut mesh = Mesh::new("nt").unwrap();
        assert!(!mesh.apply(&own, &[near.clone(), far.clone()]).unwrap().is_empty());
        assert_eq!(mesh.apply(&own, &[near.clone(), far.clone()]).unwrap(), Vec::<String>::new());
        // Another process finds all of it; only of the table it cannot know.
        let mut again = Mesh::new("nt").unwrap();
        assert_eq!(again.apply(&own, &[near.clone(), far.clone()]).unwrap().len(), 1);

        let routes = sh("ip route show proto 190; ip -6 route show proto 190");
        assert!(routes.contains("10.2.0.0/24 via 192.0.2.2 dev wire"), "{routes}");
        assert!(routes.contains("10.3.0.0/24 via 10.3.0.0 dev ntvx onlink"), "{routes}");
        assert!(routes.contains("fd00:3::/64 via fd00:3:: dev ntvx"), "{routes}");
        let forwarding = sh("bridge fdb show dev ntvx");
        assert!(forwarding.contains("0a:56:0a:03:00:00 dst 198.51.100.3 self permanent"), "{forwarding}");
        let rules = sh("nft list table inet ntmesh");
        assert!(rules.contains("ip saddr @own4 ip daddr @others4 snat ip to ip saddr"), "{rules}");

        // The far node moves, and the near one leaves.
        let moved = Peer { addresses: vec!["198.51.100.9".parse().unwrap()], ..far };
        mesh.apply(&own, std::slice::from_ref(&moved)).unwrap();
        let forwarding = sh("bridge fdb show dev ntvx");
        assert!(forwarding.contains("198.51.100.9") && !forwarding.contains("198.51.100.3"), "{forwarding}");
        assert!(!sh("ip route show proto 190").contains("10.2.0.0"));
        assert_eq!(mesh.apply(&own, std::slice::from_ref(&moved)).unwrap(), Vec::<String>::new());

        // Without anybody far there is no tunnel, and in the end nothing at all.
        mesh.apply(&own, &[near]).unwrap();
        assert!(!sh("ip link").contains("ntvx"));
        mesh.clear().unwrap();
        assert_eq!(sh("ip route show proto 190; ip -6 route show proto 190; nft list ruleset"), "");
    });
}

#[test]
fn a_node_that_is_not_complete_yet_is_told_to_wait() {
    let own = Peer { name: "a".into(), ..Peer::default() };
    let error = Mesh::new("nt").unwrap().apply(&own, &[]).unwrap_err();
    assert_eq!(error.kind(), crate::Kind::NotReady);
}
