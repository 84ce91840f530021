//! The network of a node: the CNI directory's whenever it configures one, else the built-in one.
//!
//! Which of the two made an attachment is written in its record, so that a pod is taken down by whoever set it up, whatever
//! the directory says by then. Namespaces are the same for both.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::bandwidth::Limits;
use crate::cni::config::Broken;
use crate::cni::keeper::Keeper;
use crate::cni::{Cni, Networks};
use crate::error::Error;
use crate::routed::Routed;
use crate::{Attachment, Config, Driver, Endpoint, InterfaceStats, Inventory, NetNs, devices, name};

/// Both drivers behind one face.
#[derive(Debug)]
pub(crate) struct Network {
    routed: Routed,
    cni: Arc<Cni>,
    /// Runs from the first time that the directory configures a network.
    keeper: OnceLock<Keeper>,
}

impl Network {
    pub(crate) fn open(config: Config) -> Result<Self, Error> {
        let cni = Arc::new(Cni::new(&config));
        Ok(Self { routed: Routed::open(config)?, cni, keeper: OnceLock::new() })
    }

    /// The networks of the CNI directory, if it configures any.
    fn configured(&self) -> Option<Result<Networks, Broken>> {
        let networks = self.cni.networks();
        if let Some(Ok(_)) = networks {
            self.keeper.get_or_init(|| Keeper::start(&self.cni));
        }
        networks
    }
}

impl Driver for Network {
    fn status(&self) -> Result<(), String> {
        match self.configured() {
            Some(Ok(networks)) => self.cni.status(&networks),
            Some(Err(broken)) => Err(format!("no network configuration can be used: {broken}")),
            None => self.routed.ready().map_err(|e| e.to_string()),
        }
    }

    fn notice(&self) -> Option<String> {
        self.cni.notice()
    }

    fn set_pod_cidrs(&self, cidrs: &[String]) -> Result<(), Error> {
        self.routed.set_pod_cidrs(cidrs)
    }

    fn create_namespace(&self, id: &str) -> Result<NetNs, Error> {
        self.routed.create_namespace(id)
    }

    fn adopt_namespace(&self, id: &str, made: OwnedFd) -> Result<NetNs, Error> {
        self.routed.adopt_namespace(id, made)
    }

    fn open_namespace(&self, id: &str) -> Result<Option<NetNs>, Error> {
        self.routed.open_namespace(id)
    }

    fn remove_namespace(&self, id: &str) -> Result<(), Error> {
        self.routed.remove_namespace(id)
    }

    fn give_device(&self, ns: &NetNs, device: &str, name: &str) -> Result<(), Error> {
        devices::give(ns.as_fd(), device, name)
    }

    fn reserve(&self, endpoint: &Endpoint) -> Result<Attachment, Error> {
        name::check_id(&endpoint.id, "a pod")?;
        let _ = Limits::of(&endpoint.annotations)?; // whichever network will keep them
        match self.configured() {
            Some(Ok(networks)) => Ok(self.cni.reserve(&networks, endpoint, &self.routed.boot_id())),
            Some(Err(broken)) => {
                Err(Error::NotReady(format!("no network configuration can be used: {broken}")))
            }
            None => self.routed.reserve(endpoint),
        }
    }

    fn abandon(&self, attachment: &Attachment) {
        if !Cni::owns(attachment) {
            self.routed.abandon(attachment);
        }
    }

    fn attach(&self, ns: &NetNs, endpoint: &Endpoint, reserved: Attachment) -> Result<Attachment, Error> {
        if Cni::owns(&reserved) {
            self.routed.forget_fresh(&reserved.id);
            return self.cni.attach(ns, reserved);
        }
        self.routed.attach(ns, endpoint, reserved)
    }

    fn detach(&self, ns: Option<&NetNs>, attachment: &Attachment) -> Result<(), Error> {
        if Cni::owns(attachment) {
            return self.cni.detach(ns.map(|ns| ns.path.as_path()), attachment);
        }
        self.routed.detach(attachment)
    }

    fn check(&self, ns: &NetNs, attachment: &Attachment) -> Result<(), Error> {
        if Cni::owns(attachment) {
            return self.cni.check(ns, attachment);
        }
        self.routed.check(attachment)
    }

    fn restore(&self, live: &[Attachment]) -> Result<Vec<String>, Error> {
        let ids: HashSet<&str> = live.iter().map(|a| a.id.as_str()).collect();
        let boot_id = self.routed.boot_id();
        let current = live.iter().filter(|a| a.boot_id == boot_id);
        let (foreign, routed): (Vec<&Attachment>, Vec<&Attachment>) = current.partition(|a| Cni::owns(a));
        let mut found = self.cni.restore(&foreign)?;
        self.routed.sweep_namespaces(&ids, &mut found)?;
        found.extend(self.routed.restore(&routed, self.configured().is_none())?);
        Ok(found)
    }

    fn stats(&self, ids: &[&str]) -> Result<Vec<Result<Vec<InterfaceStats>, Error>>, Error> {
        self.routed.stats(ids)
    }

    fn wait_gone(&self, links: &[String], deadline: Instant) -> Result<Vec<String>, Error> {
        self.routed.wait_gone(links, deadline)
    }

    fn inventory(&self) -> Result<Inventory, Error> {
        self.routed.inventory()
    }

    fn retire(&self) -> Result<(), Error> {
        self.routed.retire()
    }
}
