//! The driver against the kernel: every test runs on a node of its own, a fresh network namespace.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::Driver;
use crate::netns;
use crate::testing::{TempDir, on_a_node};
use crate::{HostPort, Kind, Protocol, sysctl};

/// A node with a daemon: its own namespace is the calling thread's.
struct Node {
    driver: Arc<dyn Driver>,
    dir: TempDir,
}

/// An attached pod.
struct Pod {
    ns: NetNs,
    attachment: Attachment,
}

fn config(dir: &TempDir) -> Config {
    Config {
        pod_cidrs: vec!["10.88.0.0/16".into(), "fd00:10:88::/64".into()],
        conf_dir: dir.path().join("net.d"),
        max_networks: 1,
        bin_dirs: vec![],
        netns_dir: dir.path().join("netns"),
        state_dir: dir.path().join("state"),
        link_prefix: "nt".into(),
        tap: crate::no_tap,
    }
}

fn endpoint(id: &str, host_ports: Vec<HostPort>) -> Endpoint {
    Endpoint { id: id.into(), host_ports, annotations: BTreeMap::new(), ..Endpoint::default() }
}

fn port(protocol: Protocol, host_port: u16, container_port: u16, host_ip: Option<&str>) -> HostPort {
    HostPort { protocol, host_port, container_port, host_ip: host_ip.map(|ip| ip.parse().unwrap()) }
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Node {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        sh("ip link set lo up");
        let dir = TempDir::new("routed");
        let mut config = config(&dir);
        change(&mut config);
        let driver = crate::open(config).unwrap();
        assert_eq!(driver.restore(&[]).unwrap(), Vec::<String>::new());
        Self { driver, dir }
    }

    fn pod(&self, id: &str, ports: Vec<HostPort>) -> Pod {
        let endpoint = endpoint(id, ports);
        let reserved = self.driver.reserve(&endpoint).unwrap();
        let ns = self.driver.create_namespace(id).unwrap();
        let attachment = self.driver.attach(&ns, &endpoint, reserved).unwrap();
        Pod { ns, attachment }
    }

    fn remove(&self, pod: Pod) {
        self.driver.detach(Some(&pod.ns), &pod.attachment).unwrap();
        let Pod { ns, attachment } = pod;
        drop(ns);
        self.driver.remove_namespace(&attachment.id).unwrap();
    }

    /// Nothing may be left once the kernel has dismantled the links.
    fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let links = self.driver.inventory().unwrap().links;
        assert_eq!(self.driver.wait_gone(&links, deadline).unwrap(), Vec::<String>::new());
        assert_eq!(self.driver.inventory().unwrap(), Inventory::default());
        self.driver.retire().unwrap();
        assert_eq!(sh("nft list ruleset"), "");
        assert_eq!(std::fs::read_dir(self.dir.path().join("netns")).map_or(0, Iterator::count), 0);
    }
}

impl Pod {
    fn ip(&self, ipv4: bool) -> IpAddr {
        self.attachment.addresses.iter().map(|(a, _)| *a).find(|a| a.is_ipv4() == ipv4).unwrap()
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::inside(self.ns.as_fd(), work).unwrap()
    }

    /// Listens in the pod, answers one connection with the peer's address and everything it sent, upper case.
    fn serve(&self, port: u16) -> std::thread::JoinHandle<()> {
        let listener = self.inside(|| TcpListener::bind(("::", port)).unwrap());
        std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            let mut sent = Vec::new();
            stream.read_to_end(&mut sent).unwrap();
            write!(stream, "{} ", peer.ip().to_canonical()).unwrap();
            stream.write_all(&sent.to_ascii_uppercase()).unwrap();
        })
    }
}

/// Sends a megabyte; what the server saw as peer address. Every byte is compared.
fn talk(to: impl Into<SocketAddr>) -> String {
    let mut stream = TcpStream::connect_timeout(&to.into(), Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let sent: Vec<u8> = (0..1 << 20).map(|i: u32| b'a' + u8::try_from(i % 26).unwrap()).collect();
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let split = answer.iter().position(|b| *b == b' ').unwrap();
    assert!(answer[split + 1..] == sent.to_ascii_uppercase()[..], "the payload was damaged");
    String::from_utf8(answer[..split].to_vec()).unwrap()
}

#[test]
fn pods_reach_each_other_and_the_node_and_the_node_reaches_pods() {
    on_a_node(|| {
        let node = Node::new();
        let (a, b) = (node.pod("a", vec![]), node.pod("b", vec![]));
        for ipv4 in [true, false] {
            // pod to pod: the source address is the pod's own
            let server = b.serve(8080);
            assert_eq!(a.inside(|| talk((b.ip(ipv4), 8080))), a.ip(ipv4).to_string());
            server.join().unwrap();
            // node to pod, with no other address on the node than the gateway's
            let server = a.serve(8080);
            let gateway = Private::of(&a.attachment).unwrap().gateways[usize::from(!ipv4)];
            assert_eq!(talk((a.ip(ipv4), 8080)), gateway.to_string());
            server.join().unwrap();
            // pod to node
            let listener = TcpListener::bind((gateway, 0)).unwrap();
            let to = listener.local_addr().unwrap();
            a.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap());
            assert_eq!(listener.accept().unwrap().1.ip(), a.ip(ipv4));
        }
        node.remove(a);
        node.remove(b);
        node.assert_clean();
    });
}

/// Another host on the node's wire, 192.0.2.9 and 2001:db8::9; the node is .1. It knows no route to pods.
fn outside() -> OwnedFd {
    let ns = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        netns::current().unwrap()
    });
    let ns = ns.join().unwrap();
    let mac = |last| [0x0a, 0, 0, 0, 0, last];
    let wire =
        route::Op::Veth { name: "up0".into(), mac: mac(1), mtu: 1400, peer: "out0".into(), peer_mac: mac(9) };
    route::run(&mut Socket::open(NETLINK_ROUTE).unwrap(), &[wire], Some(ns.as_fd())).unwrap();
    sh(
        "ip link set up0 up && ip addr add 192.0.2.1/24 dev up0 && ip -6 addr add 2001:db8::1/64 dev up0 nodad",
    );
    in_outside(&ns, || {
        sh(
            "ip link set lo up && ip addr add 192.0.2.9/24 dev out0 && ip -6 addr add 2001:db8::9/64 dev out0 nodad",
        );
        sh("ip link set out0 up");
    });
    ns
}

fn in_outside<T: Send>(ns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    netns::inside(ns.as_fd(), work).unwrap()
}

#[test]
fn pods_reach_the_outside_under_the_nodes_address() {
    on_a_node(|| {
        let node = Node::new();
        let out = outside();
        let pod = node.pod("a", vec![]);
        for (ipv4, there, here) in [(true, "192.0.2.9", "192.0.2.1"), (false, "2001:db8::9", "2001:db8::1")] {
            let listener =
                in_outside(&out, || TcpListener::bind((there.parse::<IpAddr>().unwrap(), 0)).unwrap());
            let to = listener.local_addr().unwrap();
            pod.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap());
            let peer = listener.accept().unwrap().1.ip();
            assert_eq!(peer.to_string(), here, "ipv4: {ipv4}");
        }
        node.remove(pod);
        drop(out);
        node.assert_clean();
    });
}

#[test]
fn a_host_port_leads_to_the_pod_from_everywhere() {
    on_a_node(|| {
        let node = Node::new();
        let out = outside();
        let pod = node.pod(
            "a",
            vec![port(Protocol::Tcp, 8000, 80, None), port(Protocol::Tcp, 8001, 80, Some("192.0.2.1"))],
        );
        let other = node.pod("b", vec![]);
        let gateway = Private::of(&pod.attachment).unwrap().gateways[0];
        let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        let reach = |from: &dyn Fn(SocketAddr) -> String, to: SocketAddr, seen: &str| {
            let server = pod.serve(80);
            assert_eq!(from(to), seen, "by {to}");
            server.join().unwrap();
        };
        let (here, there) = (|to| talk(to), |to| in_outside(&out, || talk(to)));
        let (itself, neighbour) = (|to| pod.inside(|| talk(to)), |to| other.inside(|| talk(to)));
        // the client's address is preserved
        reach(&there, at("192.0.2.1", 8000), "192.0.2.9");
        reach(&there, at("192.0.2.1", 8001), "192.0.2.9");
        reach(&there, at("2001:db8::1", 8000), "2001:db8::9");
        reach(&neighbour, at("192.0.2.1", 8000), &other.ip(true).to_string());
        // from the node, by its address and by 127.0.0.1
        reach(&here, at("192.0.2.1", 8000), "192.0.2.1");
        reach(&here, at("127.0.0.1", 8000), &gateway.to_string());
        // hairpin: the pod itself, IPv4 and IPv6
        reach(&itself, at("192.0.2.1", 8000), &gateway.to_string());
        reach(&itself, at("2001:db8::1", 8000), "fd00:10:88::1");
        // 8001 is published on one address only
        let refused = TcpStream::connect_timeout(&at("127.0.0.1", 8001), Duration::from_secs(5)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        node.remove(pod);
        node.remove(other);
        drop(out);
        node.assert_clean();
    });
}

#[test]
fn udp_host_ports_work_both_ways() {
    on_a_node(|| {
        let node = Node::new();
        let pod =
            node.pod("a", vec![port(Protocol::Udp, 5300, 53, None), port(Protocol::Sctp, 5300, 53, None)]);
        let server = pod.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        client.connect("127.0.0.1:5300").unwrap();
        client.send(b"ask").unwrap();
        let mut buffer = [0; 16];
        let (n, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..n], from).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 3);
        let listed = sh("nft list map inet nt hp4");
        assert!(listed.contains("sctp . 5300 : 10.88.0.2 . 53"), "{listed}");
        drop(server); // a socket keeps its namespace
        node.remove(pod);
        node.assert_clean();
    });
}

#[test]
fn a_udp_client_follows_its_port_to_the_next_pod() {
    on_a_node(|| {
        let node = Node::new();
        let out = outside();
        let client = in_outside(&out, || UdpSocket::bind("192.0.2.9:7777").unwrap());
        client.connect("192.0.2.1:5300").unwrap();
        // the client keeps one flow alive before, while and after pods publish the port
        let arrives = |pod: &Pod| {
            let server = pod.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            client.send(b"again").unwrap();
            server.recv(&mut [0; 16]).is_ok()
        };
        let _ = client.send(b"nobody");
        for id in ["a", "b"] {
            let pod = node.pod(id, vec![port(Protocol::Udp, 5300, 53, None)]);
            let _ = client.take_error();
            assert!(arrives(&pod), "{id}: black hole");
            node.remove(pod);
        }
        drop(out);
        node.assert_clean();
    });
}

#[test]
fn a_pod_cannot_reach_the_nodes_loopback_services() {
    // CVE-2020-8558: with route_localnet on, a pod may send to 127/8 by its default route.
    on_a_node(|| {
        let node = Node::new();
        let secret = UdpSocket::bind("127.0.0.1:0").unwrap();
        secret.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let to = secret.local_addr().unwrap();
        for (id, ports) in [("plain", vec![]), ("published", vec![port(Protocol::Tcp, 8000, 80, None)])] {
            let pod = node.pod(id, ports);
            let gateway = Private::of(&pod.attachment).unwrap().gateways[0];
            pod.inside(|| {
                sysctl::set("ipv4/conf/eth0/route_localnet", "1").unwrap();
                sysctl::set("ipv4/conf/all/rp_filter", "0").unwrap();
                sh(&format!(
                    "ip route del local 127.0.0.0/8 dev lo table local; ip route del local 127.0.0.1 dev lo table local;
                     ip route add 127.0.0.1 via {gateway} dev eth0 onlink"
                ));
                let attacker = UdpSocket::bind((pod.ip(true), 0)).unwrap();
                attacker.send_to(b"attack", to).unwrap();
            });
            let mut buffer = [0; 16];
            assert!(secret.recv(&mut buffer).is_err(), "{id}: the packet arrived");
            node.remove(pod);
        }
        node.assert_clean();
    });
}

#[test]
fn a_restart_keeps_live_pods_and_removes_the_rest() {
    on_a_node(|| {
        let node = Node::new();
        let live = node.pod("live", vec![port(Protocol::Tcp, 8000, 80, None)]);
        let dead = node.pod("dead", vec![port(Protocol::Tcp, 8001, 80, None)]);
        let Pod { ns, attachment: dead } = dead;
        drop(ns);
        sh("ip link add ntother type bridge"); // not ours, in spite of its name
        // the daemon dies; its successor knows of one pod only
        let again = crate::open(config(&node.dir)).unwrap();
        assert!(again.status().unwrap_err().contains("being restored"));
        let found = again.restore(std::slice::from_ref(&live.attachment)).unwrap();
        let path = node.dir.path().join("netns/dead");
        assert_eq!(found[0], format!("network namespace {} of no pod", path.display()));
        assert!(found.iter().any(|l| l.contains("nft entry hp4 tcp . 8001")), "{found:?}");
        assert!(found.iter().all(|l| !l.contains("live") && !l.contains("8000")), "{found:?}");
        assert_eq!(again.status(), Ok(()));
        assert!(again.open_namespace("dead").unwrap().is_none());
        let inventory = again.inventory().unwrap();
        assert_eq!((inventory.addresses, inventory.namespaces), (2, vec!["live".to_owned()]));
        // the survivor still works, and its port is still its own
        let server = live.serve(80);
        talk(SocketAddr::from(([127, 0, 0, 1], 8000)));
        server.join().unwrap();
        let error = again.reserve(&endpoint("new", vec![port(Protocol::Tcp, 8000, 80, None)])).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.to_string().contains("pod live"), "{error}");
        assert_eq!(again.restore(std::slice::from_ref(&live.attachment)).unwrap(), Vec::<String>::new());
        again.detach(None, &dead).unwrap();
        sh("ip link del ntother");
        let node = Node { driver: again, dir: node.dir };
        node.remove(live);
        node.assert_clean();
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    on_a_node(|| {
        let node = Node::new();
        let endpoint = endpoint("a", vec![port(Protocol::Tcp, 8000, 80, None)]);
        let reserved = node.driver.reserve(&endpoint).unwrap();
        let ns = node.driver.create_namespace("a").unwrap();
        // something else has the port's entry: the last step of the recipe fails
        sh("nft add element inet nt hp4 '{ tcp . 8000 : 10.9.9.9 . 80 }'");
        let error = node.driver.attach(&ns, &endpoint, reserved.clone()).unwrap_err();
        assert!(error.chain().contains("cannot add nft entries of pod a: File exists"), "{}", error.chain());
        assert_eq!(node.driver.inventory().unwrap().links, Vec::<String>::new());
        node.driver.abandon(&reserved);
        drop(ns);
        node.driver.remove_namespace("a").unwrap();
        sh("nft delete element inet nt hp4 '{ tcp . 8000 }'");
        node.assert_clean();
    });
}

#[test]
fn a_flushed_ruleset_is_put_back_by_the_next_pod() {
    on_a_node(|| {
        let node = Node::new();
        let a = node.pod("a", vec![port(Protocol::Tcp, 8000, 80, None)]);
        sh("nft flush ruleset");
        let b = node.pod("b", vec![]);
        let server = a.serve(80);
        talk(SocketAddr::from(([127, 0, 0, 1], 8000)));
        server.join().unwrap();
        sh("nft flush ruleset");
        node.remove(a);
        node.remove(b);
        node.driver.detach(None, &Attachment::default()).unwrap();
        node.assert_clean();
    });
}

#[test]
fn addresses_come_back_only_when_the_link_is_gone() {
    on_a_node(|| {
        let node = Node::with(|c| c.pod_cidrs = vec!["10.88.0.0/30".into()]);
        let a = node.pod("a", vec![]);
        let error = node.driver.reserve(&endpoint("b", vec![])).unwrap_err();
        assert_eq!(error.kind(), Kind::Exhausted);
        assert!(error.to_string().contains("held by pods a"), "{error}");
        // the pod is detached, but something still sits in its namespace
        let Pod { ns, attachment } = a;
        node.driver.detach(Some(&ns), &attachment).unwrap();
        node.driver.remove_namespace("a").unwrap();
        assert_eq!(node.driver.inventory().unwrap().leaving, 1);
        assert_eq!(node.driver.reserve(&endpoint("b", vec![])).unwrap_err().kind(), Kind::Exhausted);
        drop(ns);
        let deadline = Instant::now() + Duration::from_secs(20);
        node.driver.wait_gone(std::slice::from_ref(&attachment.host_interface), deadline).unwrap();
        let b = node.pod("b", vec![]);
        assert_eq!(b.attachment.addresses, attachment.addresses);
        node.remove(b);
        node.assert_clean();
    });
}

#[test]
fn pods_may_come_and_go_faster_than_links() {
    on_a_node(|| {
        let node = Node::with(|c| c.pod_cidrs = vec!["10.88.0.0/29".into()]);
        for cycle in 0..60 {
            let pod = node.pod(&format!("p{cycle}"), vec![port(Protocol::Tcp, 8000, 80, None)]);
            node.remove(pod);
        }
        node.assert_clean();
    });
}

#[test]
fn without_ipv6_pods_have_ipv4() {
    on_a_node(|| {
        sh("ip link set lo up");
        sysctl::set("ipv6/conf/all/disable_ipv6", "1").unwrap();
        let node = Node::new();
        let pod = node.pod("a", vec![port(Protocol::Tcp, 8000, 80, None)]);
        assert_eq!(pod.attachment.addresses.len(), 1);
        let server = std::thread::spawn({
            let listener = pod.inside(|| TcpListener::bind("0.0.0.0:80").unwrap());
            move || listener.accept().map(drop)
        });
        TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], 8000)), Duration::from_secs(5))
            .unwrap();
        server.join().unwrap().unwrap();
        node.remove(pod);
        node.assert_clean();
    });
}

#[test]
fn the_kubelets_cidrs_survive_a_restart() {
    on_a_node(|| {
        let node = Node::new();
        let old = node.pod("old", vec![]);
        node.driver.set_pod_cidrs(&["10.99.0.0/24,fd99::/64".into()]).unwrap();
        let new = node.pod("new", vec![]);
        assert_eq!(new.ip(true).to_string(), "10.99.0.2");
        assert!(node.driver.set_pod_cidrs(&["10.0.0.0/24".into(), "10.0.0.0/25".into()]).is_err());
        let again = crate::open(config(&node.dir)).unwrap();
        again.restore(&[old.attachment.clone(), new.attachment.clone()]).unwrap();
        assert_eq!(again.reserve(&endpoint("x", vec![])).unwrap().addresses[0].0.to_string(), "10.99.0.3");
        let node = Node { driver: again, dir: node.dir };
        node.driver.abandon(&Attachment { id: "x".into(), ..Attachment::default() });
        node.remove(old);
        node.remove(new);
        node.assert_clean();
    });
}

#[test]
fn a_damaged_attachment_is_told() {
    on_a_node(|| {
        let node = Node::new();
        let pod = node.pod("a", vec![port(Protocol::Tcp, 8000, 80, None)]);
        node.driver.check(&pod.ns, &pod.attachment).unwrap();
        sh("nft delete element inet nt hp4 '{ tcp . 8000 }'");
        let error = node.driver.check(&pod.ns, &pod.attachment).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the network of pod a is damaged: nft entry hp4 tcp . 8000 : 10.88.0.2 . 80 is gone"
        );
        sh(&format!("ip link del {}", pod.attachment.host_interface));
        assert!(node.driver.check(&pod.ns, &pod.attachment).unwrap_err().to_string().contains("link nt"));
        node.remove(pod);
        node.assert_clean();
    });
}

#[test]
fn counters_show_the_pods_traffic() {
    on_a_node(|| {
        let node = Node::new();
        let pod = node.pod("a", vec![]);
        let server = pod.serve(80);
        talk((pod.ip(true), 80));
        server.join().unwrap();
        let both = node.driver.stats(&["nobody", &pod.attachment.id]).unwrap();
        let [nobody, stats] = both.try_into().unwrap();
        assert!(nobody.unwrap().is_empty());
        let stats = stats.unwrap();
        assert_eq!(stats.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
        assert!(stats[0].rx[0] > 1 << 20 && stats[0].tx[0] > 1 << 20, "{stats:?}");
        assert_eq!((stats[0].rx[2], stats[0].tx[2]), (0, 0));
        node.remove(pod);
        node.assert_clean();
    });
}

/// Bytes per second that pass from one thread to the other, over two seconds after the first half second.
fn throughput(sender: &(impl Fn() -> TcpStream + Sync), listener: &TcpListener) -> f64 {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = sender();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                stream.write_all(&[0; 16 << 10]).unwrap();
            }
        });
        let mut stream = listener.accept().unwrap().0;
        let mut buffer = vec![0; 64 << 10];
        let mut count = |during: Duration| {
            let (start, mut bytes) = (Instant::now(), 0);
            while start.elapsed() < during {
                bytes += stream.read(&mut buffer).unwrap();
            }
            f64::from(u32::try_from(bytes).unwrap()) / start.elapsed().as_secs_f64()
        };
        count(Duration::from_millis(500));
        let rate = count(Duration::from_secs(2));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        while stream.read(&mut buffer).unwrap() > 0 {}
        rate
    })
}

#[test]
fn a_pods_traffic_keeps_within_its_limits_in_both_directions() {
    on_a_node(|| {
        let node = Node::new();
        let mut endpoint = endpoint("a", vec![]);
        endpoint.annotations = BTreeMap::from([
            (crate::bandwidth::INGRESS.into(), "40M".into()),
            (crate::bandwidth::EGRESS.into(), "16M".into()),
        ]);
        let reserved = node.driver.reserve(&endpoint).unwrap();
        let ns = node.driver.create_namespace("a").unwrap();
        let pod = Pod { attachment: node.driver.attach(&ns, &endpoint, reserved).unwrap(), ns };
        for (ipv4, any) in [(true, "0.0.0.0"), (false, "::")] {
            let inside = pod.inside(|| TcpListener::bind((any, 5001)).unwrap());
            let rate = throughput(&|| TcpStream::connect((pod.ip(ipv4), 5001)).unwrap(), &inside) * 8.0;
            assert!((34e6..46e6).contains(&rate), "into the pod: {rate} bits/s");
            let gateway = Private::of(&pod.attachment).unwrap().gateways[usize::from(!ipv4)];
            let here = TcpListener::bind((gateway, 5001)).unwrap();
            let rate =
                throughput(&|| pod.inside(|| TcpStream::connect((gateway, 5001)).unwrap()), &here) * 8.0;
            assert!((13.6e6..18.4e6).contains(&rate), "out of the pod: {rate} bits/s");
        }
        // A restart leaves the limits alone, and nothing of them outlives the pod.
        let again = crate::open(config(&node.dir)).unwrap();
        assert_eq!(again.restore(std::slice::from_ref(&pod.attachment)).unwrap(), Vec::<String>::new());
        again.check(&pod.ns, &pod.attachment).unwrap();
        sh(&format!("ip link del {}", Private::of(&pod.attachment).unwrap().shaper));
        assert!(again.check(&pod.ns, &pod.attachment).is_err());
        let node = Node { driver: again, dir: node.dir };
        node.remove(pod);
        node.assert_clean();
    });
}

#[test]
fn a_pod_sends_no_more_at_once_than_the_tunnel_to_other_nodes_carries() {
    on_a_node(|| {
        let node = Node::new();
        let mtu = |pod: &Pod| pod.inside(|| sh("ip -o link show eth0")).contains(" mtu 1450 ");
        let early = node.pod("early", vec![]);
        sh("ip link add ntvx mtu 1450 type veth peer name far");
        let late = node.pod("late", vec![]);
        assert_eq!((mtu(&early), mtu(&late)), (false, true));
        sh("ip link delete ntvx");
        let later = node.pod("later", vec![]);
        assert!(!mtu(&later));
        [early, late, later].into_iter().for_each(|pod| node.remove(pod));
        node.assert_clean();
    });
}
