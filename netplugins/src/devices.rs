//! Devices of the node that containers are given (config-linux.md of the OCI runtime specification, "Network Devices").
//!
//! They are not moved back: at the end of their namespace the kernel returns hardware to the node, under the name it has by
//! then, and destroys all else (network_namespaces(7)).

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;
use crate::name::check_link;
use crate::netlink::device::Device;
use crate::netlink::op::Op;
use crate::netlink::{NETLINK_ROUTE, Socket, route};
use crate::netns::{self, socket_in};

/// One at a time, or two containers of a pod could move the same device.
static TURN: Mutex<()> = Mutex::new(());

/// Moves a device into a namespace, with its permanent global addresses, and sets it up there. See
/// [`Driver::give_device`](crate::Driver::give_device).
pub(crate) fn give(ns: BorrowedFd<'_>, device: &str, name: &str) -> Result<(), Error> {
    check_link(device)?;
    check_link(name)?;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut pod = socket_in(ns)?;
    let mut node = Socket::open(NETLINK_ROUTE).map_err(Error::kernel("open a socket"))?;
    let there = route::links(&mut pod).map_err(Error::kernel("list the pod's devices"))?;
    let there: Vec<String> = there.into_iter().map(|link| link.name).collect();
    let finding = || Error::kernel(format!("find network device {device}"));
    let Some(found) = route::details(&mut node, device).map_err(finding())? else {
        return match there.iter().any(|one| follows(one, name)) {
            true => Ok(()),
            false => {
                Err(Error::Device { device: device.into(), why: "the node has none of that name".into() })
            }
        };
    };
    let name = free(name, &there).ok_or_else(|| Error::Device {
        device: device.into(),
        why: format!("the pod has another one that is called \"{name}\""),
    })?;
    let addresses = route::addresses(&mut node).map_err(finding())?;
    let addresses = addresses.into_iter().filter(|address| address.link == found.index && address.permanent);
    let addresses: Vec<(IpAddr, u8)> = addresses.map(|address| address.address).collect();

    let entering = Op::Device(Device::moved(device, &name, &found.alias));
    route::run(&mut node, &[entering], Some(ns))?;
    netns::apply(&mut pod, &outfit(&name, &addresses, true), ns).inspect_err(|_| {
        let leaving = Op::Device(Device::moved(&name, device, &found.alias));
        if let Ok(home) = netns::current()
            && route::run(&mut pod, &[leaving], Some(home.as_fd())).is_ok()
        {
            let _ = route::run(&mut node, &outfit(device, &addresses, found.up), None);
        }
    })
}

/// What a device loses when it is moved.
fn outfit(link: &str, addresses: &[(IpAddr, u8)], up: bool) -> Vec<Op> {
    let subnet = |&(address, prefix): &_| Op::Subnet { link: link.into(), address, prefix, connected: true };
    addresses.iter().map(subnet).chain(up.then(|| Op::Up(link.into()))).collect()
}

/// A name like this that none of these has.
fn free(name: &str, there: &[String]) -> Option<String> {
    let unused = |name: &String| !there.contains(name);
    match name.contains("%d") {
        true => (0..=there.len()).map(|number| name.replacen("%d", &number.to_string(), 1)).find(unused),
        false => Some(name.to_owned()).filter(unused),
    }
}

/// Whether a device may have been given this name.
fn follows(device: &str, name: &str) -> bool {
    let Some((begin, end)) = name.split_once("%d") else { return device == name };
    let number = device.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetNs;
    use crate::netlink::device::{Change, Create, Kind};
    use crate::netns::Namespaces;
    use crate::testing::{TempDir, on_a_node};

    /// A node, and a pod on it with its namespace.
    fn with_a_pod(test: impl FnOnce(&mut Socket, &mut Socket, &NetNs) + Send + 'static) {
        on_a_node(|| {
            let dir = TempDir::new("devices");
            let all = Namespaces::new(&dir.path().join("netns"), &dir.path().join("state"));
            let (ns, mut pod) = all.create("pod").unwrap();
            test(&mut Socket::open(NETLINK_ROUTE).unwrap(), &mut pod, &ns);
            all.remove("pod").unwrap();
        });
    }

    /// Makes a device, on a parent if it has one, with addresses.
    fn make(node: &mut Socket, name: &str, kind: Kind, parent: Option<&str>, addresses: &[(&str, u8)]) {
        let parent = parent.map(str::to_owned);
        let create = Create { name: name.into(), kind, parent, mtu: None, mac: None, away: false };
        let addresses: Vec<_> = addresses.iter().map(|(a, prefix)| (a.parse().unwrap(), *prefix)).collect();
        let ops = [vec![Op::Device(Device::Create(create))], outfit(name, &addresses, false)].concat();
        route::run(node, &ops, None).unwrap();
    }

    /// Name, whether it is up, and the permanent addresses of each device but the loopback.
    fn devices(socket: &mut Socket) -> Vec<(String, bool, Vec<String>)> {
        let addresses = route::addresses(socket).unwrap();
        let all = route::links(socket).unwrap();
        let show = |index| {
            let of = addresses.iter().filter(move |address| address.link == index && address.permanent);
            let mut all: Vec<_> = of.map(|a| format!("{}/{}", a.address.0, a.address.1)).collect();
            all.sort();
            all
        };
        all.iter().filter(|l| !l.loopback).map(|l| (l.name.clone(), l.up, show(l.index))).collect()
    }

    #[test]
    fn a_device_comes_to_the_pod_with_its_addresses_and_stays() {
        with_a_pod(|node, pod, ns| {
            make(node, "nic0", Kind::Ifb, None, &[("192.0.2.7", 24), ("2001:db8::7", 64)]);
            make(node, "nic1", Kind::Ifb, None, &[]);
            give(ns.as_fd(), "nic0", "data").unwrap();
            let data =
                ("data".to_owned(), true, vec!["192.0.2.7/24".to_owned(), "2001:db8::7/64".to_owned()]);
            let first = std::slice::from_ref(&data);
            assert_eq!(devices(pod), first);
            // Another container of the pod, or the same once more.
            give(ns.as_fd(), "nic0", "data").unwrap();
            assert_eq!(devices(pod), first);

            for (device, name, why) in [
                ("nic1", "data", "\"nic1\": the pod has another one that is called \"data\""),
                ("nic2", "other", "\"nic2\": the node has none of that name"),
                ("nic2", "data%d", "\"nic2\": the node has none of that name"),
                ("nic1", "a/b", "\"a/b\" cannot name a network device"),
                ("", "x", "\"\" cannot name a network device"),
            ] {
                let error = give(ns.as_fd(), device, name).unwrap_err().chain();
                assert!(error.contains(why), "{error}");
            }
            assert_eq!(devices(node), [("nic1".to_owned(), false, vec![])], "what is refused stays");

            for _ in 0..2 {
                give(ns.as_fd(), "nic1", "data%d").unwrap();
                assert_eq!(devices(pod), [data.clone(), ("data0".to_owned(), true, vec![])]);
            }
        });
    }

    #[test]
    fn a_device_that_cannot_be_used_in_the_pod_stays_on_the_node_as_it_was() {
        with_a_pod(|node, pod, ns| {
            let (mac, peer_mac) = ([2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 8]);
            let pair = Op::Veth { name: "nic0".into(), mac, mtu: 1500, peer: "far".into(), peer_mac };
            route::run(node, &[pair], None).unwrap();
            let above = Kind::Macvlan { mode: 4, queue: 0 };
            make(node, "above", above, Some("nic0"), &[("192.0.2.7", 24)]);
            // It cannot be up with the Ethernet address of what it is on.
            let same = |link: &str| {
                Op::Device(Device::Set { link: link.into(), change: Change::Mac([2, 0, 0, 0, 0, 9]) })
            };
            route::run(node, &[same("above"), same("nic0")], None).unwrap();
            let before = devices(node);
            let error = give(ns.as_fd(), "above", "data").unwrap_err().chain();
            assert!(error.contains("set data up"), "{error}");
            assert_eq!((devices(node), devices(pod)), (before, vec![]));
        });
    }
}
