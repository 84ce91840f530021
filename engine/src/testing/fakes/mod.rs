//! The four drivers in memory, over one [`World`].

mod exec;
mod images;
mod network;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use netplugins::Attachment;
use storage::Image;
use tokio::sync::mpsc::UnboundedSender;

pub use exec::FakeExec;
pub use images::{FakeImages, IMAGE};
pub use network::FakeNetwork;
pub use volumes::FakeVolumes;

use crate::exec::{Event, Exit, nanos};

/// What exists outside of the daemon: it survives an engine and says what is left in it.
#[derive(Debug, Default)]
pub struct World {
    things: Mutex<Things>,
}

/// Everything in the world.
#[derive(Debug, Default)]
pub(super) struct Things {
    pub(super) next: u64,
    pub(super) images: BTreeMap<String, std::sync::Arc<Image>>,
    /// Container to image.
    pub(super) layers: BTreeMap<String, String>,
    pub(super) namespaces: BTreeSet<String>,
    /// Addresses held, by pod.
    pub(super) held: BTreeMap<String, Attachment>,
    /// Links, by pod.
    pub(super) links: BTreeSet<String>,
    /// Live supervisors and their connections.
    pub(super) supervisors: BTreeMap<String, Option<UnboundedSender<Event>>>,
    /// First processes of containers.
    pub(super) processes: BTreeMap<String, Process>,
    pub(super) cgroups: BTreeSet<String>,
    /// Exits on tmpfs, by directory.
    pub(super) records: BTreeMap<PathBuf, BTreeMap<String, Exit>>,
    /// Signals sent: container, number.
    pub(super) signals: Vec<(String, i32)>,
    /// Endings of running execs.
    pub(super) execs: BTreeMap<u64, tokio::sync::oneshot::Sender<Exit>>,
    /// Containers that ignore everything but SIGKILL.
    pub(super) stubborn: bool,
}

/// The first process of a container.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pod: String,
    pub(super) dir: PathBuf,
    pub(super) cgroup: String,
    pub(super) pid: i32,
    pub(super) started: i64,
    pub(super) exit: Option<Exit>,
}

impl World {
    /// What is there, one line each; empty: nothing leaked.
    pub fn left(&self) -> Vec<String> {
        let things = self.things();
        let mut left = Vec::new();
        left.extend(things.namespaces.iter().map(|id| format!("namespace {id}")));
        left.extend(things.held.keys().map(|id| format!("addresses of {id}")));
        left.extend(things.links.iter().map(|id| format!("link of {id}")));
        left.extend(things.layers.keys().map(|id| format!("layer of {id}")));
        left.extend(things.supervisors.keys().map(|id| format!("supervisor of {id}")));
        left.extend(things.cgroups.iter().map(|path| format!("cgroup {path}")));
        let alive = things.processes.iter().filter(|(_, p)| p.exit.is_none());
        left.extend(alive.map(|(id, _)| format!("process of {id}")));
        left.extend(things.execs.keys().map(|id| format!("exec {id}")));
        left
    }

    /// The first process of a container ends by itself.
    pub fn end(&self, container: &str, code: i32) {
        self.things().end(container, Exit { code, oom: false, at: now() });
    }

    /// The first process of a container is killed for its memory.
    pub fn end_by_oom(&self, container: &str) {
        self.things().end(container, Exit { code: 137, oom: true, at: now() });
    }

    /// Kills a pod's supervisor; its processes go on.
    pub fn kill_supervisor(&self, pod: &str) {
        if let Some(Some(events)) = self.things().supervisors.remove(pod) {
            let _ = events.send(Event::Gone);
        }
    }

    /// The power fails: nothing but the disk is left.
    pub fn reboot(&self) {
        let mut things = self.things();
        let (images, layers) = (things.images.clone(), things.layers.clone());
        *things = Things { images, layers, ..Things::default() };
    }

    /// From now on processes ignore their stop signal.
    pub fn be_stubborn(&self) {
        self.things().stubborn = true;
    }

    /// Signals sent so far.
    pub fn signals(&self) -> Vec<(String, i32)> {
        self.things().signals.clone()
    }

    /// Containers whose first process runs.
    pub fn running(&self) -> Vec<String> {
        let things = self.things();
        things.processes.iter().filter(|(_, p)| p.exit.is_none()).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn things(&self) -> MutexGuard<'_, Things> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Things {
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Records an end and reports it, once.
    pub(super) fn end(&mut self, container: &str, exit: Exit) {
        let Some(process) = self.processes.get_mut(container).filter(|p| p.exit.is_none()) else { return };
        process.exit = Some(exit.clone());
        // Without its supervisor nobody sees the end.
        let Some(connection) = self.supervisors.get(&process.pod) else { return };
        self.records.entry(process.dir.clone()).or_default().insert(container.to_owned(), exit.clone());
        if let Some(events) = connection {
            let _ = events.send(Event::Exited { container: container.to_owned(), exit });
        }
    }
}

pub(super) fn now() -> i64 {
    nanos(SystemTime::now())
}
