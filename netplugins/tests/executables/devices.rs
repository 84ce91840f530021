//! What pods notice of the plugins behind the one that made their interface, and of links of other kinds.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Test;
use crate::lab::{Lab, Site, lacks, versioned};

pub(crate) const TESTS: &[Test] = &[
    ("bridges_with_an_ingress_policy_are_closed_to_each_other", policies),
    ("a_node_that_drops_forwards_for_pods_of_the_firewall_plugin", forwarding),
    ("a_port_that_poses_as_another_is_silent", spoofing),
    ("a_pod_sends_and_receives_no_faster_than_it_may", bandwidth),
    ("pods_reach_each_other_in_their_vlan_only", vlans),
    ("pods_on_one_parent_reach_each_other", parents),
];

fn bridge(lab: &Lab, name: &str, subnet: &str, more: &Value) -> Value {
    let mut conf = json!({"type": "bridge", "bridge": name, "isGateway": true, "ipam": {"type": "host-local",
        "dataDir": lab.data(&format!("dev-{name}")), "subnet": subnet, "routes": [{"dst": "0.0.0.0/0"}]}});
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    versioned(&conf, "1.1.0")
}

/// Whether a connection to a listener in `to` comes about.
fn reaches(from: &Site<'_>, to: &Site<'_>, address: &str) -> bool {
    let listener = to.pod.inside(|| TcpListener::bind("0.0.0.0:0").unwrap());
    let at = (address.parse::<std::net::IpAddr>().unwrap(), listener.local_addr().unwrap().port());
    from.pod
        .inside(move || std::net::TcpStream::connect_timeout(&at.into(), Duration::from_millis(700)).is_ok())
}

fn policies(lab: &Lab) -> Option<String> {
    let firewall = |policy: &str| versioned(&json!({"type": "firewall", "ingressPolicy": policy}), "1.1.0");
    for (policy, neighbours) in [("open", true), ("same-bridge", false), ("isolated", false)] {
        let one = Site::new(&lab.ours);
        // Bridged packets pass the IP hooks: else a bridge forwards by itself, and nothing could isolate its ports.
        one.node.sh("echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables");
        let (two, other) = (one.beside("c2"), one.beside("c3"));
        let (left, right) = (json!({}), json!({}));
        let left = [bridge(lab, &format!("{}a", &policy[..4]), "10.81.0.0/24", &left), firewall(policy)];
        let right = [bridge(lab, &format!("{}b", &policy[..4]), "10.82.0.0/24", &right), firewall(policy)];
        let results = [one.add_all(&left), two.add_all(&left), other.add_all(&right)].map(Result::unwrap);
        assert_eq!(reaches(&one, &two, "10.81.0.3"), policy != "isolated", "{policy}");
        assert_eq!(reaches(&one, &other, "10.82.0.2"), neighbours, "{policy}");
        assert_eq!(reaches(&other, &one, "10.81.0.2"), neighbours, "{policy}");
        one.all("CHECK", &left, &results[0]);
        for (site, chain, result) in
            [(&one, &left, &results[0]), (&two, &left, &results[1]), (&other, &right, &results[2])]
        {
            site.all("DEL", chain, result);
        }
        assert!(!one.node.sh("nft list ruleset").contains("10.81.0."), "{policy}");
    }
    None
}

fn forwarding(lab: &Lab) -> Option<String> {
    let one = Site::new(&lab.ours);
    let two = one.beside("c2");
    // What a container engine leaves on a node.
    one.node.sh("nft add table ip filter && nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'");
    let plain = [bridge(lab, "fwa", "10.83.0.0/24", &json!({}))];
    let open =
        [bridge(lab, "fwb", "10.84.0.0/24", &json!({})), versioned(&json!({"type": "firewall"}), "1.1.0")];
    let first = one.add_all(&plain).unwrap();
    let second = two.add_all(&open).unwrap();
    assert!(reaches(&two, &one, "10.83.0.2"), "its own traffic is accepted, and the answers");
    assert!(!reaches(&one, &two, "10.84.0.2"), "nobody asked for the other direction");
    assert!(
        one.node.sh("nft list chain ip filter FORWARD").contains("policy drop"),
        "the policy is not ours to change"
    );
    let listed = one.node.try_sh("iptables -w -S CNI-FORWARD").unwrap();
    assert!(listed.contains("-A CNI-FORWARD -s 10.84.0.2/32"), "iptables can list what was added: {listed}");
    two.all("DEL", &open, &second);
    assert!(!one.node.sh("iptables -w -S CNI-FORWARD").contains("10.84.0.2"));
    one.all("DEL", &plain, &first);
    None
}

fn spoofing(lab: &Lab) -> Option<String> {
    for check in [false, true] {
        let one = Site::new(&lab.ours);
        let two = one.beside("c2");
        let chain = [bridge(lab, &format!("sp{check}"), "10.85.0.0/24", &json!({"macspoofchk": check}))];
        let results = [one.add_all(&chain).unwrap(), two.add_all(&chain).unwrap()];
        assert!(reaches(&one, &two, "10.85.0.3"));
        one.pod.sh("ip link set eth0 address 02:11:22:33:44:55");
        assert_eq!(reaches(&one, &two, "10.85.0.3"), !check);
        one.all("DEL", &chain, &results[0]);
        two.all("DEL", &chain, &results[1]);
        assert!(!one.node.sh("nft list ruleset").contains("c1/eth0"));
    }
    None
}

fn bandwidth(lab: &Lab) -> Option<String> {
    use std::io::Write;
    // In bits and bits a second.
    const RATE: u32 = 16_000_000;
    const BURST: u32 = 400_000;
    const SENT: usize = 2_000_000;
    let least = (SENT as f64 * 8.0 - f64::from(BURST)) / f64::from(RATE);
    let one = Site::new(&lab.ours);
    let limits = json!({"type": "bandwidth", "runtimeConfig": {"bandwidth": {"ingressRate": RATE, "ingressBurst": BURST,
        "egressRate": RATE, "egressBurst": BURST}}});
    let chain = [bridge(lab, "bwa", "10.86.0.0/24", &json!({})), versioned(&limits, "1.1.0")];
    let result = one.add_all(&chain).unwrap();
    let queues = one.node.sh("tc qdisc show");
    assert_eq!(queues.matches("rate 16Mbit burst 50000b").count(), 2, "{queues}");
    for into_pod in [true, false] {
        let (from, to, at) =
            if into_pod { (&one.node, &one.pod, "10.86.0.2") } else { (&one.pod, &one.node, "10.86.0.1") };
        let listener = to.inside(|| TcpListener::bind("0.0.0.0:0").unwrap());
        let at = (at.parse::<std::net::IpAddr>().unwrap(), listener.local_addr().unwrap().port());
        let mut sender = from.inside(move || std::net::TcpStream::connect(at).unwrap());
        let mut receiver = listener.accept().unwrap().0;
        // However slow this machine is: only what is not held back is too fast.
        let start = Instant::now();
        let sending = std::thread::spawn(move || sender.write_all(&[0; SENT]).unwrap());
        assert_eq!(std::io::copy(&mut receiver, &mut std::io::sink()).unwrap(), SENT as u64);
        let took = start.elapsed().as_secs_f64();
        sending.join().unwrap();
        assert!(took > 0.95 * least, "into the pod {into_pod}: {took} s of at least {least}");
    }
    one.all("DEL", &chain, &result);
    None
}

fn vlans(lab: &Lab) -> Option<String> {
    if let Some(why) = lacks("bridge vlans") {
        return Some(why);
    }
    let one = Site::new(&lab.ours);
    let (two, other) = (one.beside("c2"), one.beside("c3"));
    let red = [bridge(lab, "vl0", "10.87.0.0/24", &json!({"vlan": 100}))];
    let blue = [bridge(lab, "vl0", "10.87.0.0/24", &json!({"vlan": 200, "isGateway": false}))];
    one.add_all(&red).unwrap();
    two.add_all(&red).unwrap();
    other.add_all(&blue).unwrap();
    assert!(reaches(&one, &two, "10.87.0.3"));
    assert!(!reaches(&other, &one, "10.87.0.2"));
    assert_eq!(one.pod.reach(&one.node, "10.87.0.1"), "10.87.0.2", "the gateway is in the first one's");
    None
}

fn parents(lab: &Lab) -> Option<String> {
    let kinds = [("macvlan", "macvlan"), ("ipvlan", "ipvlan"), ("vlan", "vlan")];
    for (kind, word) in kinds {
        if kind != "macvlan" && lacks(word).is_some() {
            continue;
        }
        let one = Site::new(&lab.ours);
        let two = one.beside("c2");
        // A link of the pod's name on the node was in the way of older kernels.
        one.node.sh("ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up && ip link add eth0 type veth peer name e1");
        let conf = |id: u32| {
            versioned(
                &json!({"type": kind, "master": if id == 0 { "up0" } else { "up1" }, "vlanId": 9,
            "ipam": {"type": "host-local", "dataDir": lab.data(&format!("dev-{kind}")), "subnet": "10.88.0.0/24"}}),
                "1.1.0",
            )
        };
        // Two VLAN links of one id stand on the two ends of the cable.
        let (left, right) = (conf(0), conf(u32::from(kind == "vlan")));
        one.done("STATUS", &left);
        one.done("ADD", &left);
        two.done("ADD", &right);
        assert!(reaches(&one, &two, "10.88.0.3"), "{kind}");
        one.done("DEL", &left);
        two.done("DEL", &right);
        one.node.sh("ip link delete up0");
        assert!(!one.call("STATUS", &left).0, "{kind}: without its parent there is no ADD");
    }
    None
}
