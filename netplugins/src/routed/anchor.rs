//! The anchor: one link of the node that has the gateway addresses.
//!
//! Pods' links have no addresses on the node's side. Their gateway, and the source address of a node that has no better
//! one, sits on `<prefix>gw`: a bridge that never has a port. It belongs to this driver alone, so that removing it cannot
//! take an address from somebody else.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::plan::{Private, prepared};
use super::{Routed, State};
use crate::cidr::{Cidr, width};
use crate::error::Error;
use crate::netlink::route::{self, Op};

/// What makes the anchor have these addresses.
fn plan(link: &str, gateways: &BTreeSet<IpAddr>, quiet: bool) -> Vec<Op> {
    let link = link.to_owned();
    let mut ops = vec![Op::Bridge { name: link.clone(), mac: None, mtu: None }];
    ops.extend(prepared(&link, quiet, false));
    ops.push(Op::Up(link.clone()));
    ops.extend(gateways.iter().map(|gateway| Op::Address {
        link: link.clone(),
        address: *gateway,
        prefix: width(*gateway),
    }));
    ops
}

impl Routed {
    /// Makes the anchor carry the gateways of all pod CIDRs and of all live pods.
    pub(super) fn anchor(&self, state: &State) -> Result<(), Error> {
        let mut gateways: BTreeSet<IpAddr> = state.ledger.cidrs().map(Cidr::gateway).collect();
        for attachment in state.live.values() {
            gateways.extend(Private::of(attachment)?.gateways);
        }
        gateways.retain(|gateway| gateway.is_ipv4() || state.ipv6);
        let ops = plan(&self.anchor_link(), &gateways, state.ipv6);
        self.with_route(|socket| route::run(socket, &ops, None))
    }

    pub(super) fn anchor_link(&self) -> String {
        format!("{}gw", self.config.link_prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gateway_is_there_once() {
        let gateways = BTreeSet::from(["fd00::1".parse().unwrap(), [10, 0, 0, 1].into()]);
        let lines: Vec<String> = plan("ntgw", &gateways, true).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "add link ntgw type bridge",
                "set ntgw addrgenmode none",
                "set ntgw up",
                "add address 10.0.0.1/32 to ntgw",
                "add address fd00::1/128 to ntgw",
            ]
        );
    }
}
