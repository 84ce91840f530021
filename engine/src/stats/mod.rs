//! Statistics: one pass per cgroup, through readers that stay open; [`meter`] says when a reading may be shared.

mod meter;

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

pub(crate) use meter::Meter;
use meter::{FRESH, NEWCOMERS, SAMPLE};
use tokio::sync::oneshot;

use crate::api::{CgroupStats, ContainerState, ContainerStats, ContainerView, PodState, PodStats};
use crate::engine::{blocking, network_error};
use crate::pod::Snapshot;
use crate::sys::thread;
use crate::{Engine, Error};

impl Engine {
    /// Statistics of one container, read now.
    pub async fn container_stats(self: &Arc<Self>, id: &str) -> Result<ContainerStats, Error> {
        let container = self.container(id)?;
        let engine = self.clone();
        blocking(move || engine.measure(container, Duration::ZERO)).await
    }

    /// Statistics of all containers, none older than a second; one that vanishes meanwhile is left out.
    pub async fn all_container_stats(self: &Arc<Self>) -> Vec<ContainerStats> {
        self.note_demand();
        let known = self.containers().into_iter().map(|container| (self.young(&container), container));
        let measure = |engine: &Self, container| engine.measure(container, FRESH).ok();
        self.completed(known.collect(), measure).await
    }

    /// Statistics of one pod, read now.
    pub async fn pod_stats(self: &Arc<Self>, id: &str) -> Result<PodStats, Error> {
        let snapshot = self.find_pod(id)?.snapshot();
        let engine = self.clone();
        blocking(move || engine.measure_pod(&snapshot, Duration::ZERO)).await
    }

    /// Statistics of all ready pods, none older than a second; one that vanishes meanwhile is left out.
    pub async fn all_pod_stats(self: &Arc<Self>) -> Vec<PodStats> {
        self.note_demand();
        let known = self.ready_pods().into_iter().map(|snapshot| (self.young_pod(&snapshot), snapshot));
        let measure = |engine: &Self, snapshot: Arc<Snapshot>| engine.measure_pod(&snapshot, FRESH).ok();
        self.completed(known.collect(), measure).await
    }

    /// What is known, with what is not known yet measured; nothing is measured where all is known.
    async fn completed<S: Send + 'static, T: Send + 'static>(
        self: &Arc<Self>,
        known: Vec<(Option<S>, T)>,
        measure: impl Fn(&Self, T) -> Option<S> + Send + 'static,
    ) -> Vec<S> {
        if known.iter().all(|(stats, _)| stats.is_some()) {
            return known.into_iter().filter_map(|(stats, _)| stats).collect();
        }
        let engine = self.clone();
        let (done, all) = oneshot::channel();
        let run = move || {
            let one = |(stats, of): (Option<S>, T)| stats.or_else(|| measure(&engine, of));
            let _ = done.send(known.into_iter().filter_map(one).collect());
        };
        match prompt(run) {
            Ok(()) => all.await.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "no statistics: no thread to read them");
                Vec::new()
            }
        }
    }

    fn ready_pods(&self) -> Vec<Arc<Snapshot>> {
        let snapshots = self.all_pods().into_iter().map(|pod| pod.snapshot());
        snapshots.filter(|snapshot| snapshot.pod.state == PodState::Ready).collect()
    }

    /// Starts the sampler when callers come often.
    fn note_demand(self: &Arc<Self>) {
        if self.meter.asked() {
            let engine = Arc::downgrade(self);
            if prompt(move || sample(&engine)).is_err() {
                self.meter.no_sampler();
            }
        }
    }

    fn measure(&self, container: Arc<ContainerView>, age: Duration) -> Result<ContainerStats, Error> {
        let writable = self.meter.layer(&container.id, || self.images.container_usage(&container.id));
        let cgroup = match self.cgroup_of(&container) {
            Some(cgroup) => self.meter.read(&cgroup, age)?,
            None => None,
        };
        Ok(ContainerStats { cgroup: cgroup.unwrap_or_else(nothing), container, writable })
    }

    /// The same from readings that exist; `None` when one is missing or old.
    fn young(&self, container: &Arc<ContainerView>) -> Option<ContainerStats> {
        let writable = self.meter.known_layer(&container.id)?;
        let cgroup = match self.cgroup_of(container) {
            Some(cgroup) => self.meter.young(&cgroup)?,
            None => nothing(),
        };
        Some(ContainerStats { cgroup, container: container.clone(), writable })
    }

    /// The cgroup of a container that runs.
    fn cgroup_of(&self, container: &ContainerView) -> Option<String> {
        if container.state != ContainerState::Running {
            return None;
        }
        let (pod, id) = self.find_container(&container.id).ok()?;
        let snapshot = pod.snapshot();
        Some(snapshot.state.containers.get(&id)?.record.cgroup.clone())
    }

    fn measure_pod(&self, snapshot: &Snapshot, age: Duration) -> Result<PodStats, Error> {
        let state = &snapshot.state;
        let containers = running(snapshot).filter_map(|c| self.measure(c.clone(), age).ok()).collect();
        let read = || match self.network.open_namespace(&state.record.id).map_err(network_error)? {
            Some(namespace) => self.network.stats(&namespace).map_err(network_error),
            None => Ok(Vec::new()),
        };
        let network = match state.status.holds.namespace {
            true => self.meter.network(&state.record.id, age, read)?,
            false => Vec::new(),
        };
        let cgroup = self.meter.read(&state.record.cgroup, age)?.unwrap_or_else(nothing);
        Ok(PodStats { pod: snapshot.pod.clone(), cgroup, network, containers })
    }

    /// The same from readings that exist; `None` when one is missing or old.
    fn young_pod(&self, snapshot: &Snapshot) -> Option<PodStats> {
        let state = &snapshot.state;
        let network = match state.status.holds.namespace {
            true => self.meter.young_network(&state.record.id)?,
            false => Vec::new(),
        };
        let containers = running(snapshot).map(|c| self.young(c)).collect::<Option<_>>()?;
        let cgroup = self.meter.young(&state.record.cgroup)?;
        Some(PodStats { pod: snapshot.pod.clone(), cgroup, network, containers })
    }

    /// Takes every reading of which there is none, or only one older than `age`.
    fn refresh(&self, age: Duration) {
        let containers = self.containers();
        for container in &containers {
            let _ = self.measure(container.clone(), age);
        }
        let pods = self.ready_pods();
        for pod in &pods {
            let _ = self.measure_pod(pod, age);
        }
        let containers: HashSet<&str> = containers.iter().map(|c| c.id.as_str()).collect();
        let pods: HashSet<&str> = pods.iter().map(|p| p.pod.id.as_str()).collect();
        self.meter.keep(|id| containers.contains(id), |id| pods.contains(id));
    }
}

fn running(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<ContainerView>> {
    snapshot.containers.values().filter(|c| c.state == ContainerState::Running)
}

/// The sampler: ends when nobody asks any more, or with the engine. Between two rounds it looks for newcomers.
fn sample(engine: &Weak<Engine>) {
    let mut round: Option<Instant> = None;
    while let Some(engine) = engine.upgrade().filter(|engine| engine.meter.wanted()) {
        if round.is_some_and(|last| last.elapsed() < SAMPLE) {
            engine.refresh(FRESH);
        } else {
            engine.refresh(SAMPLE / 2);
            round = Some(Instant::now());
        }
        drop(engine);
        std::thread::sleep(NEWCOMERS);
    }
}

/// Runs readings on a thread that, with all it starts, gets the processor soon though for a short time: with many pods in the making
/// a reading would stand in line with dozens of threads of long slices, and a caller with dozens of readings.
fn prompt(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let run = move || {
        // As prompt as all others where the kernel does not know how.
        let _ = thread::short_slices();
        work();
    };
    std::thread::Builder::new().name("stats".into()).spawn(run).map(drop)
}

/// A reading of nothing: it has a time and no values.
fn nothing() -> CgroupStats {
    CgroupStats { at: crate::exec::nanos(std::time::SystemTime::now()), ..CgroupStats::default() }
}
