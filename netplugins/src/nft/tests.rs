//! The encoder against the kernel, with `nft` as the judge.

use std::process::{Command, Stdio};

use super::element::Element;
use super::*;
use crate::Protocol;
use crate::netlink::NETLINK_NETFILTER;
use crate::testing::on_a_node;

/// The documented ruleset, in the words of a person.
const WRITTEN: &str = r#"
table inet nt {
  map hpip4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; elements = { 192.0.2.1 . tcp . 80 : 10.0.0.2 . 8080 }; }
  map hp4 { type inet_proto . inet_service : ipv4_addr . inet_service; elements = { udp . 53 : 10.0.0.2 . 5353 }; }
  set self4 { type ipv4_addr . ipv4_addr; elements = { 10.0.0.2 . 10.0.0.2 }; }
  map hpip6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; elements = { 2001:db8::1 . tcp . 80 : fd00::2 . 8080 }; }
  map hp6 { type inet_proto . inet_service : ipv6_addr . inet_service; elements = { sctp . 53 : fd00::2 . 5353 }; }
  set self6 { type ipv6_addr . ipv6_addr; elements = { fd00::2 . fd00::2 }; }
  set pods4 { type ipv4_addr; elements = { 10.0.0.2 }; }
  set nomasq4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/24, 224.0.0.0/4 }; }
  set pods6 { type ipv6_addr; elements = { fd00::2 }; }
  set nomasq6 { type ipv6_addr; flags interval; elements = { fd00::/64, ff00::/8 }; }
  chain guard { type filter hook prerouting priority -300; iifname "nt*" ip daddr 127.0.0.0/8 drop; }
  chain hostports {
    dnat ip to ip daddr . meta l4proto . th dport map @hpip4
    meta nfproto ipv4 dnat ip to meta l4proto . th dport map @hp4
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @hpip6
    meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @hp6
  }
  chain prerouting { type nat hook prerouting priority -95; fib daddr type local goto hostports; }
  chain output { type nat hook output priority -95; fib daddr type local goto hostports; }
  chain postrouting { type nat hook postrouting priority 105;
    ct status dnat ip saddr . ip daddr @self4 masquerade
    ct status dnat ip6 saddr . ip6 daddr @self6 masquerade
    ct status dnat ip saddr 127.0.0.0/8 oifname "nt*" masquerade
    ip saddr @pods4 ip daddr != @nomasq4 fib daddr type != local masquerade
    ip6 saddr @pods6 ip6 daddr != @nomasq6 fib daddr type != local masquerade
  }
}
"#;

fn nft(arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn elements() -> Vec<Element> {
    let (four, six) = ("10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap());
    let mut all = ruleset::unmasqueraded([([10, 0, 0, 0].into(), 24), ("fd00::".parse().unwrap(), 64)]);
    all.extend(Element::pod(four));
    all.extend(Element::pod(six));
    all.extend([
        Element::port(Protocol::Tcp, Some("192.0.2.1".parse().unwrap()), 80, (four, 8080)),
        Element::port(Protocol::Udp, None, 53, (four, 5353)),
        Element::port(Protocol::Tcp, Some("2001:db8::1".parse().unwrap()), 80, (six, 8080)),
        Element::port(Protocol::Sctp, None, 53, (six, 5353)),
    ]);
    all
}

#[test]
fn the_table_is_the_one_that_is_documented() {
    let ours = on_a_node(|| {
        let mut socket = Socket::open(NETLINK_NETFILTER).unwrap();
        ruleset::install("nt", &elements(), &mut socket).unwrap();
        nft(&["list", "ruleset"], "")
    });
    let written = on_a_node(|| {
        nft(&["-f", "-"], WRITTEN);
        nft(&["list", "ruleset"], "")
    });
    assert_eq!(ours, written);
}

#[test]
fn a_dump_gives_back_what_was_added() {
    on_a_node(|| {
        let mut socket = Socket::open(NETLINK_NETFILTER).unwrap();
        assert_eq!(dump(&mut socket, "nt", "hp4").unwrap(), []);
        ruleset::install("nt", &elements(), &mut socket).unwrap();
        let mut found: Vec<Element> =
            ruleset::SETS.iter().flat_map(|set| dump(&mut socket, "nt", set).unwrap()).collect();
        let mut wanted = elements();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
    });
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    on_a_node(|| {
        let mut socket = Socket::open(NETLINK_NETFILTER).unwrap();
        ruleset::install("nt", &[], &mut socket).unwrap();
        let port = |target: [u8; 4]| Element::port(Protocol::Tcp, None, 80, (target.into(), 80));
        let add = |socket: &mut Socket, elements: &[Element]| {
            let mut transaction = Transaction::new("nt");
            transaction.add_elements(elements);
            transaction.commit(socket)
        };
        add(&mut socket, &[port([10, 0, 0, 2])]).unwrap();
        // the same key with other data is somebody else's
        let pod = Element::pod([10, 0, 0, 3].into());
        let refusal = add(&mut socket, &[pod[0].clone(), port([10, 0, 0, 3])]).unwrap_err();
        assert_eq!(refusal.failure.errno(), Some(rustix::io::Errno::EXIST));
        assert_eq!(dump(&mut socket, "nt", "pods4").unwrap(), []);
        // and the socket still works
        add(&mut socket, &pod).unwrap();
        assert_eq!(dump(&mut socket, "nt", "pods4").unwrap(), [pod[0].clone()]);
    });
}

#[test]
fn five_thousand_pods_fit_one_transaction() {
    on_a_node(|| {
        let mut socket = Socket::open(NETLINK_NETFILTER).unwrap();
        socket.widen().unwrap();
        let many: Vec<Element> = (0..5000u32)
            .flat_map(|i| Element::pod(std::net::Ipv4Addr::from(0x0a00_0000 + i).into()))
            .collect();
        ruleset::install("nt", &many, &mut socket).unwrap();
        assert_eq!(dump(&mut socket, "nt", "self4").unwrap().len(), 5000);
    });
}

#[test]
fn entries_read_like_nfts_own() {
    let text: Vec<String> = elements().iter().map(ToString::to_string).collect();
    assert!(text.contains(&"hpip6 2001:db8::1 . tcp . 80 : fd00::2 . 8080".to_owned()), "{text:?}");
    assert!(text.contains(&"hp6 sctp . 53 : fd00::2 . 5353".to_owned()), "{text:?}");
    assert!(text.contains(&"self4 10.0.0.2 . 10.0.0.2".to_owned()), "{text:?}");
}
