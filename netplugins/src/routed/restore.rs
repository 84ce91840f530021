//! Start-up: the kernel is made to agree with the live pods, and what nobody owns is removed and reported.
//!
//! Only objects that are recognisably ours are touched: links named by [`name::host_link`] with our prefix, the nft table
//! of our prefix, and namespaces with a marker.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::plan::Private;
use super::{DEFAULT_MTU, Routed, State};
use crate::error::Error;
use crate::netlink::route;
use crate::nft::element::Element;
use crate::nft::{self, ruleset};
use crate::{Attachment, name, sysctl};

impl Routed {
    pub(super) fn reconcile(&self, live: &[&Attachment]) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        let ipv6 = sysctl::ipv6_enabled();
        sysctl::forward(ipv6)?;
        let mtu =
            self.with_route(|s| route::uplink_mtu(s).map_err(Error::kernel("find the node's uplink")))?;

        let mut state = self.state();
        state.ipv6 = ipv6;
        state.hears_routers = sysctl::hears_routers();
        state.mtu = mtu.unwrap_or(DEFAULT_MTU);
        if !ipv6 && state.ledger.has_family(false) {
            tracing::warn!(
                "IPv6 is off on this node (net.ipv6.conf.*.disable_ipv6): pods get IPv4 addresses only"
            );
        }
        self.hold(&mut state, live, &mut found);
        self.sweep_links(&state, &mut found)?;
        self.sweep_elements(&state, &mut found)?;
        self.anchor(&state)?;
        self.restored.store(true, Ordering::Release);
        Ok(found)
    }

    /// Takes the live pods into the ledger.
    fn hold(&self, state: &mut State, live: &[&Attachment], found: &mut Vec<String>) {
        for attachment in live {
            let private = match Private::of(attachment) {
                Ok(private) => private,
                Err(e) => {
                    found.push(format!(
                        "network record of pod {} cannot be used: {}",
                        attachment.id,
                        e.chain()
                    ));
                    continue;
                }
            };
            for (address, _) in &attachment.addresses {
                state.ledger.hold(*address, &attachment.id, &attachment.host_interface);
            }
            state.ledger.name(&attachment.id, &private.name);
            let published = private
                .publications(attachment)
                .and_then(|ports| state.ledger.publish(&attachment.id, &ports));
            if let Err(e) = published {
                found.push(format!("host ports of pod {} cannot be kept: {}", attachment.id, e.chain()));
                continue;
            }
            state.live.insert(attachment.id.clone(), (*attachment).clone());
        }
    }

    /// Removes the namespaces of pods that are not live.
    pub(crate) fn sweep_namespaces(
        &self,
        live: &HashSet<&str>,
        found: &mut Vec<String>,
    ) -> Result<(), Error> {
        for id in self.namespaces.marked()? {
            if live.contains(id.as_str()) {
                continue;
            }
            let mounted = self.namespaces.open(&id)?.is_some();
            self.namespaces.remove(&id)?;
            if mounted {
                found.push(format!("network namespace {} of no pod", self.namespaces.path(&id).display()));
            }
        }
        Ok(())
    }

    fn sweep_links(&self, state: &State, found: &mut Vec<String>) -> Result<(), Error> {
        let shapers = state.live.values().map(|a| Ok(Private::of(a)?.shaper));
        let shapers: HashSet<String> = shapers.collect::<Result<_, Error>>()?;
        for link in self.our_links()? {
            if state.ledger.has_link(&link) || shapers.contains(&link) {
                continue;
            }
            self.with_route(|s| {
                route::delete(s, &link).map_err(Error::kernel(format!("delete link {link}")))
            })?;
            found.push(format!("link {link} of no pod"));
        }
        Ok(())
    }

    /// Reports entries of no pod, and puts the table in order with one transaction.
    fn sweep_elements(&self, state: &State, found: &mut Vec<String>) -> Result<(), Error> {
        let mut wanted = HashSet::new();
        for attachment in state.live.values() {
            wanted.extend(super::plan::elements(attachment, &Private::of(attachment)?)?);
        }
        let stale = self.our_elements()?.into_iter().filter(|e| !wanted.contains(e));
        found.extend(stale.map(|e| format!("nft entry {e} of no pod")));
        self.install(state)
    }

    /// Links of the node that were named by this driver.
    pub(super) fn our_links(&self) -> Result<Vec<String>, Error> {
        let prefix = &self.config.link_prefix;
        let all = self.with_route(|s| route::links(s).map_err(Error::kernel("list links")))?;
        Ok(all.into_iter().map(|l| l.name).filter(|n| name::is_host_link(prefix, n)).collect())
    }

    /// nft entries that belong to pods.
    pub(super) fn our_elements(&self) -> Result<Vec<Element>, Error> {
        let prefix = &self.config.link_prefix;
        let mut all = Vec::new();
        for set in ruleset::SETS.into_iter().filter(|s| !s.starts_with("nomasq")) {
            let entries = self.with_nft(|s| {
                nft::dump(s, prefix, set).map_err(Error::kernel(format!("list nft set {prefix} {set}")))
            })?;
            all.extend(entries);
        }
        Ok(all)
    }
}
