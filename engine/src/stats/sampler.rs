//! The thread that takes readings for lists.
//!
//! A node asks for the same numbers from several sides (kubelet, crictl, a metrics agent), and asks again and again. What was read for
//! one call is shared with those that come within a second ([`Board`]). When calls come fast one after the other, everything is read in the
//! background twice in that time, and a pod that changes is read at once ([`super::News`]), so that a call finds it there; for what is
//! missing all the same nobody waits. The thread is there while somebody asks, and a node that asks every ten seconds never has it read
//! ahead.
//!
//! Nothing it waits for is held by a job for longer than a lookup: what a writable layer takes is measured by another thread.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::running;
use crate::Engine;
use crate::api::{ContainerStats, ContainerView, Detail, PodState, PodStats, Reading, Rendering};
use crate::pod::Snapshot;
use crate::sys::thread;

/// A reading younger than this is given to the next caller as well.
pub(super) const FRESH: Duration = Duration::from_millis(1000);
/// How often everything is read while calls come fast.
const ROUND: Duration = Duration::from_millis(400);
/// A reading younger than this is not repeated: CPU use would be that of an instant.
const YOUNG: Duration = Duration::from_millis(200);
/// Pods whose interfaces are read together; those who wait for a reading wait for that long.
const TOGETHER: usize = 16;
/// The thread goes before containers and jobs, and far behind the one that answers calls: what it reads takes milliseconds in the kernel,
/// where nobody interrupts it.
const NICE: i32 = -10;

/// Something to read, and whom to tell.
pub(super) type Ask = Box<dyn FnOnce(&mut Sampler, &Arc<Engine>) + Send>;

/// The last readings of all pods and containers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board {
    containers: HashMap<Arc<str>, Kept<ContainerStats>>,
    pods: HashMap<Arc<str>, Kept<PodStats>>,
}

#[derive(Debug)]
struct Kept<T> {
    taken: Instant,
    stats: Arc<T>,
}

/// What goes on with the sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// Calls come fast: read ahead.
    Fast,
    /// The last readings may be wanted once more.
    Slow,
    /// Nobody asks.
    None,
}

/// The thread's own.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    board: Board,
    /// What was shared before: the last one who drops it frees thousands of pieces of memory, and that is not to be a caller.
    before: Option<Arc<Board>>,
    /// Writable layers are measured elsewhere: what is read first is read for somebody who may not come again soon.
    settled: bool,
}

/// Starts the thread. It ends when nobody asks any more, or with the engine.
pub(super) fn start(engine: Weak<Engine>) -> io::Result<Sender<Ask>> {
    let (asks, waiting) = channel();
    let run = move || {
        // As prompt as all others where that is not allowed.
        let _ = thread::go_ahead(NICE);
        Sampler::default().run(&engine, &waiting);
    };
    std::thread::Builder::new().name("stats".into()).spawn(run)?;
    Ok(asks)
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self { taken: self.taken, stats: self.stats.clone() }
    }
}

// === impl Board ===

impl Board {
    /// A reading of the container as it is now, if there is a fresh one.
    pub(super) fn container(
        &self,
        id: &str,
        now: &ContainerView,
        at: Instant,
        detail: Detail,
    ) -> Option<&Arc<ContainerStats>> {
        self.container_since(id, now, at, FRESH, detail)
    }

    fn container_since(
        &self,
        id: &str,
        now: &ContainerView,
        at: Instant,
        age: Duration,
        detail: Detail,
    ) -> Option<&Arc<ContainerStats>> {
        let kept = self.containers.get(id)?;
        let fresh = at.saturating_duration_since(kept.taken) < age && kept.stats.cgroup.detail >= detail;
        (fresh && same(&kept.stats.container, now)).then_some(&kept.stats)
    }

    /// The last reading of the container, however old, and whether it is of the container as it is now.
    pub(super) fn last_of_container(
        &self,
        id: &str,
        now: &ContainerView,
    ) -> Option<(&Arc<ContainerStats>, bool)> {
        self.containers.get(id).map(|kept| (&kept.stats, same(&kept.stats.container, now)))
    }

    /// The last reading of the pod, however old, and whether it is one with the containers that run in it now.
    pub(super) fn last_of_pod(&self, now: &Snapshot) -> Option<(&Arc<PodStats>, bool)> {
        self.pods.get(&now.state.record.id).map(|kept| (&kept.stats, kept.stats.complete(now)))
    }

    /// A reading of the pod with the containers that run in it now, if there is a fresh one.
    pub(super) fn pod(&self, now: &Snapshot, at: Instant, detail: Detail) -> Option<&Arc<PodStats>> {
        self.pod_since(now, at, FRESH, detail)
    }

    /// What was read of the pod's own cgroup and interfaces just now, and when.
    fn just_read(&self, id: &str, at: Instant, detail: Detail) -> Option<(Instant, &Arc<PodStats>)> {
        let kept = self.pods.get(id)?;
        let fresh = at.saturating_duration_since(kept.taken) < YOUNG && kept.stats.cgroup.detail >= detail;
        fresh.then_some((kept.taken, &kept.stats))
    }

    fn pod_since(
        &self,
        now: &Snapshot,
        at: Instant,
        age: Duration,
        detail: Detail,
    ) -> Option<&Arc<PodStats>> {
        let kept = self.pods.get(&now.state.record.id)?;
        let fresh = at.saturating_duration_since(kept.taken) < age && kept.stats.detail() >= detail;
        (fresh && kept.stats.complete(now)).then_some(&kept.stats)
    }
}

/// Whether a reading of `then` is one of `now`.
fn same(then: &ContainerView, now: &ContainerView) -> bool {
    then.state == now.state && then.started_at == now.started_at && then.id == now.id
}

// === impl Sampler ===

impl Sampler {
    fn run(&mut self, engine: &Weak<Engine>, asks: &Receiver<Ask>) {
        let mut round = Instant::now() + ROUND;
        loop {
            let first = match asks.recv_timeout(round.saturating_duration_since(Instant::now())) {
                Ok(ask) => Some(ask),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let Some(engine) = engine.upgrade() else { return };
            match first {
                Some(ask) => {
                    ask(self, &engine);
                    self.serve(&engine, asks);
                }
                None => {
                    let demand = engine.meter.demand();
                    engine.meter.listen(demand == Demand::Fast);
                    match demand {
                        Demand::Fast => {
                            round = Instant::now() + ROUND;
                            self.round(&engine, asks);
                        }
                        Demand::Slow => round = Instant::now() + ROUND,
                        Demand::None => return self.end(&engine, asks),
                    }
                }
            }
            self.settled = true;
            self.share(&engine);
        }
    }

    /// Nobody asks any more; who has asked meanwhile is answered still.
    fn end(&mut self, engine: &Arc<Engine>, asks: &Receiver<Ask>) {
        engine.meter.listen(false);
        engine.meter.share(Arc::default());
        engine.meter.no_sampler();
        self.serve(engine, asks);
    }

    /// Those who wait.
    fn serve(&mut self, engine: &Arc<Engine>, asks: &Receiver<Ask>) {
        while let Ok(ask) = asks.try_recv() {
            ask(self, engine);
        }
    }

    /// Reads everything that was not read just now.
    fn round(&mut self, engine: &Arc<Engine>, asks: &Receiver<Ask>) {
        let detail = engine.meter.detail();
        let snapshots: Vec<Arc<Snapshot>> = engine.all_pods().iter().map(|pod| pod.snapshot()).collect();
        for some in snapshots.chunks(TOGETHER) {
            let networks = self.networks(engine, some, detail);
            for (snapshot, network) in some.iter().zip(networks) {
                for (id, container) in &snapshot.containers {
                    self.container(engine, snapshot, id, container, detail);
                }
                if snapshot.pod.state == PodState::Ready {
                    self.pod(engine, snapshot, network, detail);
                }
                self.serve(engine, asks);
            }
        }
        let pods: HashSet<&str> = snapshots.iter().map(|s| &*s.state.record.id).collect();
        let containers: HashSet<&str> =
            snapshots.iter().flat_map(|s| s.containers.keys()).map(|id| &**id).collect();
        self.board.pods.retain(|id, _| pods.contains(&**id));
        self.board.containers.retain(|id, _| containers.contains(&**id));
        engine.meter.keep(|id| containers.contains(id));
        engine.meter.measure_layers(engine, snapshots.iter().flat_map(|s| s.containers.keys()));
    }

    /// Readings of these.
    pub(super) fn containers(
        &mut self,
        engine: &Arc<Engine>,
        wanted: &[(Arc<Snapshot>, Arc<str>)],
        detail: Detail,
    ) -> Vec<Arc<ContainerStats>> {
        let one = |(snapshot, id): &(Arc<Snapshot>, Arc<str>)| {
            self.container(engine, snapshot, id, snapshot.containers.get(id)?, detail)
        };
        wanted.iter().filter_map(one).collect()
    }

    /// Readings of these.
    pub(super) fn pods(
        &mut self,
        engine: &Arc<Engine>,
        wanted: &[Arc<Snapshot>],
        detail: Detail,
    ) -> Vec<Arc<PodStats>> {
        let mut all = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(TOGETHER) {
            let networks = self.networks(engine, some, detail);
            let read = some
                .iter()
                .zip(networks)
                .filter_map(|(snapshot, network)| self.pod(engine, snapshot, network, detail));
            all.extend(read);
        }
        all
    }

    fn container(
        &mut self,
        engine: &Arc<Engine>,
        snapshot: &Snapshot,
        id: &Arc<str>,
        container: &Arc<ContainerView>,
        detail: Detail,
    ) -> Option<Arc<ContainerStats>> {
        let taken = Instant::now();
        if let Some(stats) = self.board.container_since(id, container, taken, YOUNG, detail) {
            return Some(stats.clone());
        }
        let stats = match self.settled {
            true => engine.reading(snapshot, container, detail, engine.meter.known_layer(id).flatten()),
            false => engine.measure(snapshot, container, detail),
        };
        let stats = Arc::new(stats.ok()?);
        engine.meter.render(Reading::Container(&stats));
        self.board.containers.insert(id.clone(), Kept { taken, stats: stats.clone() });
        Some(stats)
    }

    /// Of a pod whose interfaces were read, with readings of its containers.
    fn pod(
        &mut self,
        engine: &Arc<Engine>,
        snapshot: &Snapshot,
        network: Option<Vec<netplugins::InterfaceStats>>,
        detail: Detail,
    ) -> Option<Arc<PodStats>> {
        let taken = Instant::now();
        if let Some(stats) = self.board.pod_since(snapshot, taken, YOUNG, detail) {
            return Some(stats.clone());
        }
        let containers =
            running(snapshot).filter_map(|(id, c)| self.container(engine, snapshot, id, c, detail)).collect();
        let (taken, stats) = match self.board.just_read(&snapshot.state.record.id, taken, detail) {
            Some((then, stats)) => (then, stats.with(snapshot, containers)),
            None => (taken, engine.compose_stats(snapshot, network?, containers, detail).ok()?),
        };
        let stats = Arc::new(stats);
        engine.meter.render(Reading::Pod(&stats));
        let kept = Kept { taken, stats: stats.clone() };
        self.board.pods.insert(snapshot.state.record.id.clone(), kept);
        Some(stats)
    }

    fn share(&mut self, engine: &Engine) {
        let shared = engine.meter.share(Arc::new(self.board.clone()));
        self.before = Some(shared);
    }

    /// The interfaces of each of these pods; `None`: they cannot be read, or they were just now.
    fn networks(
        &self,
        engine: &Engine,
        pods: &[Arc<Snapshot>],
        detail: Detail,
    ) -> Vec<Option<Vec<netplugins::InterfaceStats>>> {
        let now = Instant::now();
        let due: Vec<bool> = pods
            .iter()
            .map(|s| {
                let has = s.pod.state == PodState::Ready && s.state.status.holds.namespace;
                has && self.board.just_read(&s.state.record.id, now, detail).is_none()
            })
            .collect();
        let ids: Vec<&str> =
            pods.iter().zip(&due).filter(|(_, due)| **due).map(|(s, _)| &*s.state.record.id).collect();
        let read = if ids.is_empty() { Ok(Vec::new()) } else { engine.network.stats(&ids) };
        let mut read = read.unwrap_or_default().into_iter();
        due.iter().map(|due| if *due { read.next().and_then(Result::ok) } else { Some(Vec::new()) }).collect()
    }
}

impl PodStats {
    /// Whether these are the containers that run in the pod now.
    fn complete(&self, now: &Snapshot) -> bool {
        let mut those = self.containers.iter();
        let all = running(now).all(|(_, c)| those.next().is_some_and(|s| same(&s.container, c)));
        all && those.next().is_none()
    }

    /// How much of it was read of all cgroups.
    fn detail(&self) -> Detail {
        self.containers.iter().map(|container| container.cgroup.detail).fold(self.cgroup.detail, Ord::min)
    }

    /// The same reading of the pod itself, with other containers.
    pub(super) fn with(&self, snapshot: &Snapshot, containers: Vec<Arc<ContainerStats>>) -> Self {
        let (pod, rendering) = (snapshot.pod.clone(), Rendering::default());
        Self { pod, containers, rendering, cgroup: self.cgroup.clone(), network: self.network.clone() }
    }
}
