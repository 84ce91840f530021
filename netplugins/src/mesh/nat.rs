//! The mesh's nft table: pods meet other nodes' pods under their own address.
//!
//! ```text
//! table inet <prefix>mesh {
//!   set own4 { addr; interval }  set others4 { addr; interval }          # and own6, others6
//!   chain postrouting { nat postrouting 104
//!                       ip saddr @own4 ip daddr @others4 snat to ip saddr }   # and ip6
//! }
//! ```
//!
//! The daemon masquerades what its pods send elsewhere, at priority 105. A connection whose source address is settled
//! before, here to what it is already, is not asked again; neither is one that a service has settled at 100. So this
//! process and the daemon need not know of each other's tables.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::netlink::{Failure, Socket};
use crate::nft::element::Element;
use crate::nft::{Transaction, ruleset};

/// Replaces the table.
pub(super) fn install(
    table: &str,
    own: &BTreeSet<(IpAddr, u8)>,
    others: &BTreeSet<(IpAddr, u8)>,
    socket: &mut Socket,
) -> Result<(), Failure> {
    let mut transaction = Transaction::new(table);
    transaction.add_table().delete_table().add_table();
    ruleset::keeping_sources(&mut transaction, ["own4", "own6"], ["others4", "others6"]);
    let entries = |subnets: &BTreeSet<(IpAddr, u8)>, names: [&'static str; 2]| -> Vec<Element> {
        let name = |ip: &IpAddr| if ip.is_ipv4() { names[0] } else { names[1] };
        subnets.iter().flat_map(|(ip, length)| Element::interval_in(name(ip), *ip, *length)).collect()
    };
    transaction.add_elements(&entries(own, ["own4", "own6"]));
    transaction.add_elements(&entries(others, ["others4", "others6"]));
    transaction.commit(socket).map_err(|r| r.failure)
}

/// Removes the table; absent is fine.
pub(super) fn remove(table: &str, socket: &mut Socket) -> Result<(), Failure> {
    let mut transaction = Transaction::new(table);
    transaction.add_table().delete_table();
    transaction.commit(socket).map_err(|r| r.failure)
}
