//! `macspoofchk` of `bridge`: a port may send from the pod's Ethernet address only.
//!
//! ```text
//! table bridge berth_spoof {
//!   set checked { ifname }  set allowed { ifname . ether_addr }
//!   chain prerouting { filter prerouting -300
//!                      iifname @checked iifname . ether saddr != @allowed drop }
//! }
//! ```

use rustix::io::Errno;

use super::interface::internal;
use super::{Refusal, Request, owner};
use crate::name::LINK_NAME_BYTES;
use crate::netlink::op::Mac;
use crate::netlink::{NETLINK_NETFILTER, Socket};
use crate::nft::element::Element;
use crate::nft::expr::{Base, Expr, Meta, Verdict};
use crate::nft::{self, Hook, NFPROTO_BRIDGE, Shape, Transaction};

const TABLE: &str = "berth_spoof";
const CHAIN: &str = "prerouting";
const SETS: [&str; 2] = ["checked", "allowed"];
/// nft's numbers of these types, and their bytes; an address is padded to a word.
const IFNAME: (u32, u32) = (41, 16);
const ETHER: (u32, u32) = (9, 8);

/// Guards a port.
pub(super) fn add(request: &Request, port: &str, mac: Mac) -> Result<(), Refusal> {
    let mut t = Transaction::of(NFPROTO_BRIDGE, TABLE);
    t.add_table();
    t.add_set(SETS[0], Shape { key: IFNAME, data: None, interval: false });
    let both = (IFNAME.0 << 6 | ETHER.0, IFNAME.1 + ETHER.1);
    t.add_set(SETS[1], Shape { key: both, data: None, interval: false });
    t.add_chain(CHAIN, Some(Hook { kind: "filter", number: 0, priority: -300 }));
    t.flush_chain(CHAIN).add_rule(CHAIN, &rule());
    t.add_elements(&elements(port, mac, &owner::own(request)));
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    t.commit(&mut socket).map_err(|r| internal(r.failure))
}

/// `iifname @checked iifname . ether saddr != @allowed drop`
fn rule() -> Vec<Expr> {
    /// Register 1 holds the name in four words, and the next word begins register 2.
    const AFTER_NAME: u32 = 12;
    vec![
        Expr::Meta(Meta::InputName, 1),
        Expr::In(SETS[0], 1),
        Expr::Payload(Base::Link, 6, 6, AFTER_NAME),
        Expr::NotIn(SETS[1], 1),
        Expr::Verdict(Verdict::Drop),
    ]
}

fn elements(port: &str, mac: Mac, owner: &str) -> [Element; 2] {
    let mut name = port.as_bytes().to_vec();
    name.resize(LINK_NAME_BYTES + 1, 0);
    let mut both = name.clone();
    both.extend(mac);
    both.extend([0; 2]);
    [Element::keyed(SETS[0], name, owner), Element::keyed(SETS[1], both, owner)]
}

/// Removes the entries of the request's attachment.
pub(super) fn release(request: &Request) -> Result<(), Refusal> {
    let own = owner::own(request);
    remove(|comment| comment == own)
}

/// Removes what belongs to no valid attachment of the network.
pub(super) fn collect(request: &Request) -> Result<(), Refusal> {
    remove(owner::gone(request))
}

fn remove(chosen: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    let mut socket = Socket::open(NETLINK_NETFILTER).map_err(internal)?;
    let mut doomed = Vec::new();
    for set in SETS {
        let held = nft::dump_of(NFPROTO_BRIDGE, &mut socket, TABLE, set).map_err(internal)?;
        doomed.extend(held.into_iter().filter(|e| e.comment.as_deref().is_some_and(&chosen)));
    }
    if doomed.is_empty() {
        return Ok(());
    }
    let mut t = Transaction::of(NFPROTO_BRIDGE, TABLE);
    t.delete_elements(&doomed);
    match t.commit(&mut socket) {
        Err(r) if r.failure.errno() != Some(Errno::NOENT) => Err(internal(r.failure)),
        _ => Ok(()),
    }
}
