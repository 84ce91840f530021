//! `ipMasq`: pods leave the node under its address, except towards the pods' own subnets.
//!
//! ```text
//! table inet berth_cni {
//!   set masq4 { addr }  set near4 { addr; interval }                    # and masq6, near6
//!   chain postrouting { nat postrouting 105
//!                       ip saddr @masq4 ip daddr != @near4 masquerade } # and ip6
//! }
//! ```
//!
//! Every ADD states the whole table, which changes nothing where it is there already, so that executables need not agree on
//! who makes it. An entry's comment names its owner; DEL and GC go by that, whatever else has been forgotten.

use std::net::IpAddr;

use rustix::io::Errno;

use super::interface::internal;
use super::{Refusal, Request, code, owner};
use crate::cni::result::Success;
use crate::netlink::{NETLINK_NETFILTER, Socket};
use crate::nft::element::Element;
use crate::nft::{self, Transaction, ruleset};

const TABLE: &str = "berth_cni";
const MASQUERADED: [&str; 2] = ["masq4", "masq6"];

/// Masquerades the addresses of a result.
pub(super) fn add(request: &Request, result: &Success) -> Result<(), Refusal> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    let owner = owner::own(request);
    let pods =
        result.ips.iter().map(|ip| Element::owned(set(MASQUERADED, ip.address.0), ip.address.0, &owner));
    let pods: Vec<Element> = pods.collect();
    let near = ruleset::multicast().into_iter().chain(result.ips.iter().map(|ip| ip.address));
    let near: Vec<Element> = near.flat_map(|(ip, length)| interval(ip, length)).collect();
    match commit(&mut socket, &pods, &near) {
        // A wider subnet is there already.
        Err(e) if e.errno() == Some(Errno::EXIST) => commit(&mut socket, &pods, &[]),
        other => other,
    }
    .map_err(internal)
}

/// Refuses another way to masquerade than this one.
pub(super) fn check_backend(request: &Request) -> Result<(), Refusal> {
    match request.conf.text("ipMasqBackend")? {
        None | Some("" | "nftables") => Ok(()),
        Some(other) => {
            Err(Refusal::new(code::UNSUPPORTED, format!("ipMasqBackend \"{other}\" is not supported")))
        }
    }
}

/// Removes the entries of the request's attachment.
pub(super) fn release(request: &Request) -> Result<(), Refusal> {
    let own = owner::own(request);
    remove(|comment| comment == own)
}

/// Removes the entries of the owners that are chosen; without the table there are none.
pub(super) fn remove(chosen: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    for set in MASQUERADED {
        let held = nft::dump(&mut socket, TABLE, set).map_err(internal)?;
        let doomed: Vec<Element> =
            held.into_iter().filter(|e| e.comment.as_deref().is_some_and(&chosen)).collect();
        if doomed.is_empty() {
            continue;
        }
        let mut transaction = Transaction::new(TABLE);
        transaction.delete_elements(&doomed);
        match transaction.commit(&mut socket) {
            Err(r) if r.failure.errno() != Some(Errno::NOENT) => return Err(internal(r.failure)),
            _ => {}
        }
    }
    Ok(())
}

/// Removes what belongs to no valid attachment of the network.
pub(super) fn collect(request: &Request) -> Result<(), Refusal> {
    remove(owner::gone(request))
}

fn commit(socket: &mut Socket, pods: &[Element], near: &[Element]) -> Result<(), crate::netlink::Failure> {
    let mut transaction = Transaction::new(TABLE);
    transaction.add_table();
    ruleset::masquerading(&mut transaction, MASQUERADED, ["near4", "near6"]);
    transaction.add_elements(near).add_elements(pods);
    transaction.commit(socket).map_err(|r| r.failure)
}

fn interval(address: IpAddr, length: u8) -> Vec<Element> {
    Element::interval_in(set(["near4", "near6"], address), address, length)
}

fn set(names: [&'static str; 2], address: IpAddr) -> &'static str {
    if address.is_ipv4() { names[0] } else { names[1] }
}
