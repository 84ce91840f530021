//! Addresses are handed out once and come back.

use super::*;

fn ledger(cidrs: &[&str]) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.set_cidrs(&cidrs.iter().map(|c| Cidr::parse(c).unwrap()).collect::<Vec<_>>());
    ledger
}

fn take(ledger: &mut Ledger, pod: &str, gone: bool) -> Result<String, Error> {
    ledger.take(pod, &format!("l{pod}"), true, |_| gone).map(|(a, _)| a.to_string())
}

fn port(on: Option<&str>, number: u16) -> Publication {
    let on: Option<IpAddr> = on.map(|ip| ip.parse().unwrap());
    Publication { protocol: Protocol::Tcp, ipv4: on.is_none_or(|ip| ip.is_ipv4()), on, port: number }
}

#[test]
fn a_freed_address_is_used_last() {
    let mut l = ledger(&["10.0.0.0/29"]);
    assert_eq!(take(&mut l, "a", true).unwrap(), "10.0.0.2");
    l.abandon("a");
    for want in ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"] {
        assert_eq!(take(&mut l, want, true).unwrap(), want);
    }
}

#[test]
fn an_address_stays_away_until_its_link_is_gone() {
    let mut l = ledger(&["10.0.0.0/30"]);
    assert_eq!(take(&mut l, "a", false).unwrap(), "10.0.0.2");
    l.release("a");
    assert_eq!(l.count(), (0, 1));
    assert!(take(&mut l, "b", false).is_err());
    assert!(l.has_link("la"));
    assert_eq!(take(&mut l, "b", true).unwrap(), "10.0.0.2");
    assert!(!l.has_link("la"));
    assert_eq!(l.count(), (1, 0));
}

#[test]
fn a_full_subnet_says_by_whom() {
    let mut l = ledger(&["10.0.0.0/29", "fd00::/126"]);
    for pod in ["a", "b", "c", "d"] {
        take(&mut l, pod, false).unwrap();
    }
    take(&mut l, "z", false).unwrap();
    l.release("z");
    let error = take(&mut l, "e", false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no IPv4 address left in 10.0.0.0/29: 4 held by pods, 1 by pods that are being taken down; held by pods a, b, c, d"
    );
    assert!(l.take("e", "le", false, |_| false).is_ok(), "IPv6 has room");
}

#[test]
fn the_next_subnet_serves_when_one_is_full() {
    let mut l = ledger(&["10.0.0.0/30", "10.0.1.0/30"]);
    assert_eq!(take(&mut l, "a", false).unwrap(), "10.0.0.2");
    let (address, from) = l.take("b", "lb", true, |_| false).unwrap();
    assert_eq!((address.to_string(), from.gateway().to_string()), ("10.0.1.2".into(), "10.0.1.1".into()));
}

#[test]
fn new_subnets_leave_old_pods_alone() {
    let mut l = ledger(&["10.0.0.0/24"]);
    take(&mut l, "a", false).unwrap();
    l.set_cidrs(&[Cidr::parse("10.9.0.0/24").unwrap()]);
    assert_eq!(l.addresses_of("a"), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    assert_eq!(take(&mut l, "b", false).unwrap(), "10.9.0.2");
}

#[test]
fn a_port_has_one_owner_and_the_error_names_it() {
    let mut l = ledger(&["10.0.0.0/24"]);
    l.publish("a", &[port(Some("192.0.2.1"), 80), port(None, 81)]).unwrap();
    l.publish("b", &[port(Some("192.0.2.2"), 80)]).unwrap();
    let error = l.publish("c", &[port(None, 82), port(None, 80)]).unwrap_err();
    assert!(error.to_string().contains("80/tcp is published by pod"), "{error}");
    let error = l.publish("c", &[port(Some("192.0.2.9"), 81)]).unwrap_err();
    assert_eq!(error.to_string(), "host port 81/tcp is published by pod a already");
    l.publish("c", &[port(None, 82)]).unwrap();
    l.release("a");
    l.publish("d", &[port(None, 81)]).unwrap();
    assert!(l.publish("e", &[port(None, 90), port(Some("192.0.2.2"), 90)]).is_err(), "twice in one pod");
}

#[test]
fn host_ips_are_matched_with_the_pods_families() {
    let hp = |ip: Option<&str>| HostPort {
        protocol: Protocol::Udp,
        host_port: 53,
        container_port: 5353,
        host_ip: ip.map(|ip| ip.parse().unwrap()),
    };
    assert_eq!(Publication::of(&hp(None), true, true).unwrap().len(), 2);
    assert_eq!(Publication::of(&hp(None), true, false).unwrap().len(), 1);
    assert_eq!(Publication::of(&hp(Some("0.0.0.0")), true, true).unwrap()[0].on, None);
    assert_eq!(Publication::of(&hp(Some("::ffff:1.2.3.4")), true, true).unwrap()[0].text(), "1.2.3.4:53/udp");
    for bad in ["::1", "224.0.0.1", "ff02::1"] {
        assert!(Publication::of(&hp(Some(bad)), true, true).is_err(), "{bad}");
    }
    assert!(Publication::of(&hp(Some("::")), true, false).is_err());
    let zero = HostPort { container_port: 0, ..hp(None) };
    assert!(Publication::of(&zero, true, true).is_err());
}
