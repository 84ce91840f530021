//! `loopback`: sets `lo` up. It ignores the interface name it is given.

use std::os::fd::AsFd;

use super::interface::internal;
use super::{Answer, Command, Refusal, Request, code};
use crate::cni::result::{Interface, Ip, Success};
use crate::netlink::route::{self, Op};
use crate::netns::socket_in;

const LO: &str = "lo";

pub(super) fn run(request: &Request) -> Answer {
    match request.command {
        Command::Add => add(request).map(Some),
        Command::Del => {
            if let Some(ns) = request.netns_if_there() {
                route::run(&mut socket_in(ns.as_fd())?, &[Op::Down(LO.into())], None)?;
            }
            Ok(None)
        }
        Command::Check => {
            let ns = request.open_netns()?;
            let lo = route::link(&mut socket_in(ns.as_fd())?, LO).map_err(internal)?;
            match lo {
                Some(link) if link.up => Ok(None),
                _ => Err(Refusal::new(code::INTERNAL, "loopback interface is down")),
            }
        }
        Command::Gc | Command::Status => Ok(None),
    }
}

fn add(request: &Request) -> Result<Success, Refusal> {
    let ns = request.open_netns()?;
    let mut socket = socket_in(ns.as_fd())?;
    route::run(&mut socket, &[Op::Up(LO.into())], None)?;
    if let Some(previous) = request.previous()? {
        return Ok(previous);
    }
    let lo = route::link(&mut socket, LO)
        .map_err(internal)?
        .ok_or_else(|| Refusal::new(code::INTERNAL, "no lo"))?;
    let addresses = route::addresses(&mut socket).map_err(internal)?;
    let own = addresses.iter().filter(|a| a.link == lo.index);
    let sandbox = request.netns.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    Ok(Success {
        interfaces: vec![Interface { name: LO.into(), mac: lo.mac, sandbox, ..Interface::default() }],
        ips: own.map(|a| Ip { interface: Some(0), address: a.address, gateway: None }).collect(),
        ..Success::default()
    })
}
