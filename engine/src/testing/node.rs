//! A node to test on: a temporary root, a world, and one engine after the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::fakes::{FakeExec, FakeImages, FakeNetwork, FakeVolumes, World};
use super::{Failing, Script};
use crate::drivers::Drivers;
use crate::spec::{ContainerSpec, ImageSpec, PodSpec};
use crate::{Config, Engine, Error, Kind};

/// Directories of one test; removed when dropped.
#[derive(Debug)]
pub struct Node {
    /// What exists outside of the daemon.
    pub world: Arc<World>,
    /// What the drivers do.
    pub script: Script,
    /// Configuration of the engines.
    pub config: Config,
    root: PathBuf,
    boots: AtomicU64,
}

impl Node {
    /// A fresh node.
    pub fn new() -> Self {
        let id = crate::engine::new_id().unwrap_or_else(|_| "x".into());
        let root = std::env::temp_dir().join(format!("berth-node-{id:.16}"));
        let config = Config {
            root: root.join("lib"),
            state: root.join("run"),
            kill_wait: Duration::from_secs(5),
            exec_drain: Duration::from_millis(50),
            ..Config::default()
        };
        Self { world: Arc::default(), script: Script::default(), config, root, boots: AtomicU64::new(0) }
    }

    /// The power fails and comes back.
    pub fn reboot(&self) {
        self.world.reboot();
        let _ = std::fs::remove_dir_all(&self.config.state);
        self.boots.fetch_add(1, Ordering::Relaxed);
    }

    /// Opens an engine on the node, as a daemon would.
    pub async fn engine(&self) -> Result<Arc<Engine>, Error> {
        let broken = |e| Error::with(Kind::Internal, "node", e);
        let images = FakeImages::new(self.world.clone(), &self.root.join("images")).map_err(broken)?;
        let drivers = Drivers {
            images: Failing::new(images, self.script.clone()),
            network: Failing::new(FakeNetwork::new(self.world.clone()), self.script.clone()),
            exec: vec![Failing::new(FakeExec::new(self.world.clone()), self.script.clone())],
            volumes: Failing::new(Arc::new(FakeVolumes), self.script.clone()),
        };
        let boot_id = self.boots.load(Ordering::Relaxed).to_string();
        Engine::compose(self.config.clone(), drivers, boot_id).await
    }

    /// Everything left on the node: in the world, in the journal, in the state directory.
    pub fn left(&self) -> Vec<String> {
        let mut left = self.world.left();
        for dir in [self.config.root.join("pods"), self.config.state.join("pods")] {
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        left
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.script.release();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A pod to ask for.
pub fn pod(name: &str) -> PodSpec {
    PodSpec {
        name: name.into(),
        namespace: "default".into(),
        uid: format!("uid-{name}"),
        hostname: name.into(),
        ..PodSpec::default()
    }
}

/// A container to ask for.
pub fn container(name: &str) -> ContainerSpec {
    let image = ImageSpec { image: super::fakes::IMAGE.into(), ..ImageSpec::default() };
    ContainerSpec { name: name.into(), image, ..ContainerSpec::default() }
}
