//! `tap`: a link whose other end is a file descriptor, for a virtual machine in the pod.
//!
//! It is made by an ioctl and not by netlink. This crate has no unsafe code, so whoever uses it hands in the function that does
//! it ([`MakeTap`]).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::interface::{self, describe, find};
use super::{Answer, Command, Refusal, Request, code, delegate};
use crate::cni::result::Success;
use crate::netlink::device::{Change, Device};
use crate::netlink::op::{Mac, Op};
use crate::netlink::route;
use crate::netns::{self, inside, socket_in};

/// What is opened to make one.
const CONTROL: &str = "/dev/net/tun";

/// Makes a tap link that stays, down, in the calling thread's network namespace.
pub type MakeTap = fn(&Tap) -> io::Result<()>;

/// A tap link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// Whether several descriptors may share it.
    pub multi_queue: bool,
    /// The user who may open it.
    pub owner: Option<u32>,
    /// The group that may open it.
    pub group: Option<u32>,
}

/// Makes none, for callers whose pods have no virtual machines.
///
/// # Errors
/// Always, with [`io::ErrorKind::Unsupported`].
pub fn no_tap(_: &Tap) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// What a configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    tap: Tap,
    mtu: Option<u32>,
    mac: Option<Mac>,
    /// A bridge in the pod that the link is a port of.
    bridge: Option<String>,
}

pub(super) fn run(request: &Request) -> Answer {
    let settings = settings(request)?;
    match request.command {
        Command::Add => add(request, &settings).map(Some),
        Command::Del => {
            delegate::forward(request)?;
            interface::delete(request).map(|()| None)
        }
        Command::Check => {
            delegate::forward(request)?;
            interface::check(request).map(|()| None)
        }
        Command::Gc => delegate::forward(request).map(|()| None),
        Command::Status => {
            delegate::forward(request)?;
            std::fs::metadata(CONTROL)
                .map(|_| None)
                .map_err(|e| Refusal::new(code::NOT_AVAILABLE, format!("{CONTROL}: {e}")))
        }
    }
}

/// Reads the configuration; pure.
fn settings(request: &Request) -> Result<Settings, Refusal> {
    let conf = &request.conf;
    conf.refuse("selinuxContext")?;
    let text = |key: &str| Ok::<_, Refusal>(conf.text(key)?.filter(|text| !text.is_empty()));
    let written = text("mac")?.map(interface::parse_mac).transpose()?;
    Ok(Settings {
        tap: Tap {
            name: request.interface.clone(),
            multi_queue: conf.flag("multiQueue")?,
            owner: conf.number("owner")?,
            group: conf.number("group")?,
        },
        mtu: conf.number("mtu")?.filter(|mtu| *mtu > 0),
        mac: interface::wanted_mac(request)?.or(written),
        bridge: text("bridge")?.map(str::to_owned),
    })
}

/// What is set on the link before it is up; pure.
fn plan(settings: &Settings) -> Vec<Op> {
    let link = &settings.tap.name;
    let changes = [
        settings.mac.map(Change::Mac),
        settings.mtu.map(Change::Mtu),
        settings.bridge.clone().map(|bridge| Change::Controller(Some(bridge))),
    ];
    let set = |change| Op::Device(Device::Set { link: link.clone(), change });
    changes.into_iter().flatten().map(set).chain([Op::Up(link.clone())]).collect()
}

fn add(request: &Request, settings: &Settings) -> Result<Success, Refusal> {
    let ns = request.open_netns()?;
    let link = &request.interface;
    let make = request.tap;
    inside(ns.as_fd(), || make(&settings.tap))?
        .map_err(|e| Refusal::new(code::INTERNAL, format!("failed to create tap {link}: {e}")))?;
    let made = configure(request, settings, ns.as_fd());
    if made.is_err() {
        let _ = interface::delete(request);
        delegate::give_back(request);
    }
    made
}

/// Sets the link up and gives it the addresses, if there are any.
fn configure(request: &Request, settings: &Settings, ns: BorrowedFd<'_>) -> Result<Success, Refusal> {
    let link = &request.interface;
    let mut pod = socket_in(ns)?;
    route::run(&mut pod, &plan(settings), None)?;
    let mut result = delegate::allocate_if_asked(request)?;
    if !result.ips.is_empty() {
        let announce = Op::Device(Device::Set { link: link.clone(), change: Change::ArpNotify });
        let ops = [vec![announce], interface::configure(link, &result, true)?].concat();
        netns::apply(&mut pod, &ops, ns)?;
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
    }
    result.interfaces = vec![describe(&find(&mut pod, link)?, &interface::sandbox(request))];
    // The network's `dns`, also where it is empty: this plugin never passed on the address manager's.
    result.dns.clear();
    interface::set_dns(request, &mut result)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::request;

    #[test]
    fn the_link_is_complete_before_it_is_up() {
        let conf = json!({ "multiQueue": true, "owner": 107, "group": 0, "mtu": 1400, "mac": "c2:b0:57:00:00:01", "bridge": "br0" });
        let read = settings(&request("ADD", conf)).unwrap();
        let tap = Tap { name: "eth0".into(), multi_queue: true, owner: Some(107), group: Some(0) };
        assert_eq!(read.tap, tap);
        let words: Vec<String> = plan(&read).iter().map(ToString::to_string).collect();
        let wanted =
            ["set eth0 address c2:b0:57:00:00:01", "set eth0 mtu 1400", "set eth0 master br0", "set eth0 up"];
        assert_eq!(words, wanted);
        let refused = settings(&request("ADD", json!({ "selinuxContext": "x" }))).unwrap_err();
        assert!(refused.msg.contains("selinuxContext"), "{refused}");
    }
}
