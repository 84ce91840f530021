//! Who reaches whom, under which address, through which port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::Protocol::{Sctp, Tcp, Udp};

use super::pods::{self, Pod, config};
use super::space::Space::{self, Node as Here};
use super::traffic::{sctp, tcp, udp};
use crate::node::Node;
use crate::report::Report;
use crate::shell;

/// The node's addresses: on the wire of the private machine, on that to the outside, and pods' gateways.
const NODE: [&str; 3] = ["192.0.2.2", "198.51.100.1", "10.88.0.1"];
const NODE6: [&str; 2] = ["2001:db8:9::1", "fd00:10:88::1"];

/// The cases.
pub(super) fn run(report: &mut Report, node: &Node, outside: &Space) {
    report.case("pods, the node and the outside reach each other, IPv4 and IPv6", || plain(node, outside));
    report.case(
        "host ports, TCP and UDP: by every address and 127.0.0.1, from everywhere, also the pod itself",
        || published(node, outside),
    );
    report.case("a host port for SCTP", || stream_control(node, outside));
    report.case("a host port on one address is on that one alone", || one_address(node, outside));
    report.case("a service on the same port wins over the host port", || services_win(node, outside));
    report.case("a UDP client follows its port from pod to pod", || conntrack(node, outside));
}

fn seen(got: Result<IpAddr>, wanted: impl Into<IpAddr>, who: &str) -> Result<()> {
    let (got, wanted) = (got.with_context(|| who.to_owned())?, wanted.into());
    ensure!(got == wanted, "{who} comes as {got} instead of {wanted}");
    Ok(())
}

fn ip(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| text.to_owned())
}

fn plain(node: &Node, outside: &Space) -> Result<()> {
    let a = pods::run(node, &config(node, "a", &[]))?;
    let b = pods::run(node, &config(node, "b", &[]))?;
    ensure!(a.addresses.len() == 2 && b.addresses.len() == 2, "{a:?} {b:?}");
    let outer = [ip("198.51.100.9")?, ip("2001:db8:9::9")?];
    let inner = [ip("198.51.100.1")?, ip("2001:db8:9::1")?];
    for (index, (of_a, of_b)) in a.addresses.iter().zip(&b.addresses).enumerate() {
        for exchange in [tcp, udp] {
            let to = |ip: &IpAddr| SocketAddr::from((*ip, 7000));
            seen(exchange(&a.space, to(of_b), &b.space, 7000), *of_a, "a pod at another")?;
            seen(exchange(&a.space, to(&inner[index]), &Here, 7000), *of_a, "a pod at the node")?;
            exchange(&Here, to(of_b), &b.space, 7000).context("the node at a pod")?;
            seen(exchange(&a.space, to(&outer[index]), outside, 7000), inner[index], "a pod outside")?;
        }
    }
    pods::remove(node, [&a, &b])
}

fn published(node: &Node, outside: &Space) -> Result<()> {
    let ports = [(Tcp, 8080, 80, ""), (Udp, 5353, 53, "")];
    let pod = pods::run(node, &config(node, "published", &ports))?;
    let other = pods::run(node, &config(node, "other", &[]))?;
    type Exchange = fn(&Space, SocketAddr, &Space, u16) -> Result<IpAddr>;
    let both: [(Exchange, u16, u16); 2] = [(tcp, 8080, 80), (udp, 5353, 53)];
    for (exchange, on_node, in_pod) in both {
        for address in NODE.iter().chain(&NODE6) {
            let to = SocketAddr::from((ip(address)?, on_node));
            exchange(&Here, to, &pod.space, in_pod).with_context(|| format!("the node by {to}"))?;
            let of_other: IpAddr = if to.is_ipv4() { other.v4()?.into() } else { other.v6()?.into() };
            seen(exchange(&other.space, to, &pod.space, in_pod), of_other, "another pod")?;
            exchange(&pod.space, to, &pod.space, in_pod)
                .with_context(|| format!("the pod itself by {to}"))?;
        }
        for (address, client) in [("198.51.100.1", "198.51.100.9"), ("2001:db8:9::1", "2001:db8:9::9")] {
            let to = SocketAddr::from((ip(address)?, on_node));
            seen(exchange(outside, to, &pod.space, in_pod), ip(client)?, "the outside")?;
        }
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, on_node));
        exchange(&Here, local, &pod.space, in_pod).context("the node by 127.0.0.1")?;
    }
    pods::remove(node, [&pod, &other])
}

fn stream_control(node: &Node, outside: &Space) -> Result<()> {
    let pod = pods::run(node, &config(node, "sctp", &[(Sctp, 3868, 38, "")]))?;
    sctp(outside, SocketAddrV4::new([198, 51, 100, 1].into(), 3868), &pod.space, 38)?;
    sctp(&Here, SocketAddrV4::new([192, 0, 2, 2].into(), 3868), &pod.space, 38)?;
    pods::remove(node, [&pod])
}

fn one_address(node: &Node, outside: &Space) -> Result<()> {
    let pod = pods::run(node, &config(node, "bound", &[(Tcp, 8081, 80, "198.51.100.1")]))?;
    tcp(outside, SocketAddr::from(([198, 51, 100, 1], 8081)), &pod.space, 80)?;
    tcp(&Here, SocketAddr::from(([198, 51, 100, 1], 8081)), &pod.space, 80)?;
    for address in ["192.0.2.2", "127.0.0.1"] {
        let to = SocketAddr::from((ip(address)?, 8081));
        ensure!(tcp(&Here, to, &pod.space, 80).is_err(), "{to} leads to the pod as well");
    }
    pods::remove(node, [&pod])
}

/// A service by kube-proxy's ways, nf_tables and iptables: port 30080 of the node leads to another pod.
fn services_win(node: &Node, outside: &Space) -> Result<()> {
    let own = pods::run(node, &config(node, "hostport", &[(Tcp, 30080, 80, "")]))?;
    let backend = pods::run(node, &config(node, "backend", &[]))?;
    let to = SocketAddr::from(([198, 51, 100, 1], 30080));
    tcp(outside, to, &own.space, 80).context("without a service")?;
    let target = format!("{}:80", backend.v4()?);
    let nft = format!(
        "nft -f - <<'X'
table ip kube-proxy {{
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; fib daddr type local tcp dport 30080 dnat to {target}; }}
  chain nat-output {{ type nat hook output priority -100; fib daddr type local tcp dport 30080 dnat to {target}; }}
}}
X"
    );
    Here.sh(&nft)?;
    let outcome = tcp(outside, to, &backend.space, 80).and_then(|_| tcp(&Here, to, &backend.space, 80));
    Here.sh("nft delete table ip kube-proxy")?;
    outcome.context("an nf_tables service")?;
    if shell::installed("iptables-legacy") {
        let rule = |verb: &str| {
            ["PREROUTING", "OUTPUT"].map(|chain| {
                format!(
                    "iptables-legacy -t nat {verb} {chain} -m addrtype --dst-type LOCAL -p tcp --dport 30080 -j DNAT --to {target}"
                )
            })
        };
        Here.sh(&rule("-A").join(";"))?;
        let outcome = tcp(outside, to, &backend.space, 80).and_then(|_| tcp(&Here, to, &backend.space, 80));
        Here.sh(&rule("-D").join(";"))?;
        outcome.context("an iptables service")?;
    }
    tcp(outside, to, &own.space, 80).context("after the service")?;
    pods::remove(node, [&own, &backend])
}

/// A client that never pauses keeps its flow in connection tracking alive, and with it where the flow once went.
fn conntrack(node: &Node, outside: &Space) -> Result<()> {
    for (from, to) in [("0.0.0.0:7777", "198.51.100.1:5300"), ("[::]:7777", "[2001:db8:9::1]:5300")] {
        let client = outside.inside(|| Ok(UdpSocket::bind(from)?))?;
        client.connect(to)?;
        let _ = client.send(b"nobody there");
        for name in ["first", "second"] {
            let pod: Pod = pods::run(node, &config(node, name, &[(Udp, 5300, 53, "")]))?;
            let server = pod.space.inside(|| Ok(UdpSocket::bind(("::", 53))?))?;
            server.set_read_timeout(Some(Duration::from_secs(3)))?;
            let _ = client.take_error();
            client.send(b"again")?;
            server
                .recv(&mut [0; 16])
                .with_context(|| format!("a black hole before the {name} pod, by {to}"))?;
            drop(server);
            pods::remove(node, [&pod])?;
        }
    }
    Ok(())
}
