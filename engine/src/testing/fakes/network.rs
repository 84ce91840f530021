//! A network of names.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use netplugins::{Attachment, Driver, Endpoint, Error, InterfaceStats, Inventory, NetNs};

use super::World;

/// Pods get 10.0.0.0/8 addresses that nobody routes.
#[derive(Debug)]
pub struct FakeNetwork {
    world: Arc<World>,
}

impl FakeNetwork {
    /// A network in this world.
    pub fn new(world: Arc<World>) -> Arc<Self> {
        Arc::new(Self { world })
    }
}

fn open(id: &str) -> Result<NetNs, Error> {
    let file = std::fs::File::open("/dev/null").map_err(|e| Error::NotReady(e.to_string()))?;
    Ok(NetNs { fd: file.into(), path: PathBuf::from("/run/netns").join(id) })
}

impl Driver for FakeNetwork {
    fn status(&self) -> Result<(), String> {
        Ok(())
    }

    fn set_pod_cidrs(&self, _: &[String]) -> Result<(), Error> {
        Ok(())
    }

    fn create_namespace(&self, id: &str) -> Result<NetNs, Error> {
        self.world.things().namespaces.insert(id.to_owned());
        open(id)
    }

    fn adopt_namespace(&self, id: &str, _: std::os::fd::OwnedFd) -> Result<NetNs, Error> {
        self.create_namespace(id)
    }

    fn open_namespace(&self, id: &str) -> Result<Option<NetNs>, Error> {
        self.world.things().namespaces.contains(id).then(|| open(id)).transpose()
    }

    fn remove_namespace(&self, id: &str) -> Result<(), Error> {
        self.world.things().namespaces.remove(id);
        Ok(())
    }

    fn give_device(&self, _: &NetNs, _: &str, _: &str) -> Result<(), Error> {
        Ok(())
    }

    fn reserve(&self, endpoint: &Endpoint) -> Result<Attachment, Error> {
        let mut things = self.world.things();
        let [.., a, b, c] = things.number().to_be_bytes();
        let attachment = Attachment {
            id: endpoint.id.clone(),
            interface: "eth0".into(),
            addresses: vec![(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), 32)],
            ..Attachment::default()
        };
        things.held.insert(endpoint.id.clone(), attachment.clone());
        Ok(attachment)
    }

    fn abandon(&self, attachment: &Attachment) {
        self.world.things().held.remove(&attachment.id);
    }

    fn attach(&self, _: &NetNs, endpoint: &Endpoint, reserved: Attachment) -> Result<Attachment, Error> {
        self.world.things().links.insert(endpoint.id.clone());
        Ok(reserved)
    }

    fn detach(&self, _: Option<&NetNs>, attachment: &Attachment) -> Result<(), Error> {
        let mut things = self.world.things();
        things.links.remove(&attachment.id);
        things.held.remove(&attachment.id);
        Ok(())
    }

    fn restore(&self, live: &[Attachment]) -> Result<Vec<String>, Error> {
        let mut things = self.world.things();
        let owned = |id: &String| live.iter().any(|attachment| attachment.id == *id);
        let removed =
            things.namespaces.iter().filter(|id| !owned(id)).map(|id| format!("namespace {id}")).collect();
        things.namespaces.retain(owned);
        things.links.retain(owned);
        things.held = live.iter().map(|attachment| (attachment.id.clone(), attachment.clone())).collect();
        Ok(removed)
    }

    fn stats(&self, ids: &[&str]) -> Result<Vec<Result<Vec<InterfaceStats>, Error>>, Error> {
        let eth0 = InterfaceStats { name: "eth0".into(), rx: [1, 2, 3, 4], tx: [5, 6, 7, 8] };
        Ok(ids.iter().map(|_| Ok(vec![eth0.clone()])).collect())
    }

    fn check(&self, _: &NetNs, attachment: &Attachment) -> Result<(), Error> {
        let there = self.world.things().links.contains(&attachment.id);
        if there { Ok(()) } else { Err(Error::NotReady(format!("pod {} is not attached", attachment.id))) }
    }

    fn inventory(&self) -> Result<Inventory, Error> {
        let things = self.world.things();
        Ok(Inventory {
            links: things.links.iter().cloned().collect(),
            namespaces: things.namespaces.iter().cloned().collect(),
            addresses: things.held.len(),
            ..Inventory::default()
        })
    }

    fn retire(&self) -> Result<(), Error> {
        Ok(())
    }
}
