//! Statistics: one pass per cgroup, through readers that stay open.
//!
//! A call for one pod or container takes its readings itself. A call for all of them is answered from the last readings that were shared;
//! what is missing there the [`sampler`] reads first. [`meter`] holds what both read with.

mod meter;
mod sampler;

use std::sync::Arc;
use std::time::Instant;

pub(crate) use meter::Meter;
use sampler::Sampler;
use tokio::sync::oneshot;

use crate::api::{
    CgroupStats, ContainerState, ContainerStats, ContainerView, PodState, PodStats, Reading, Rendering,
};
use crate::engine::{blocking, network_error};
use crate::pod::Snapshot;
use crate::{Engine, Error};

impl Engine {
    /// Statistics of one container, read now.
    pub async fn container_stats(self: &Arc<Self>, id: &str) -> Result<ContainerStats, Error> {
        let (pod, id) = self.find_container(id)?;
        let (engine, snapshot) = (self.clone(), pod.snapshot());
        blocking(move || {
            let container = snapshot.containers.get(&id).ok_or_else(|| Error::not_found("container", &id))?;
            engine.measure(&snapshot, container)
        })
        .await
    }

    /// Statistics of all containers, none older than a second; one that vanishes meanwhile is left out.
    pub async fn all_container_stats(self: &Arc<Self>) -> Vec<Arc<ContainerStats>> {
        self.meter.called();
        let (board, now) = (self.meter.board(), Instant::now());
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for pod in self.all_pods() {
            let snapshot = pod.snapshot();
            for (id, container) in &snapshot.containers {
                match board.container(id, container, now) {
                    Some(stats) => found.push(stats.clone()),
                    None => missing.push((snapshot.clone(), id.clone())),
                }
            }
        }
        found.extend(self.sampled(missing, Sampler::containers).await);
        found
    }

    /// Statistics of one pod, read now.
    pub async fn pod_stats(self: &Arc<Self>, id: &str) -> Result<PodStats, Error> {
        let snapshot = self.find_pod(id)?.snapshot();
        let engine = self.clone();
        blocking(move || {
            let network = match snapshot.state.status.holds.namespace {
                true => engine.network.stats(&[&snapshot.state.record.id]).map_err(network_error)?.pop(),
                false => None,
            };
            let network = network.unwrap_or_else(|| Ok(Vec::new())).map_err(network_error)?;
            let measured = running(&snapshot).filter_map(|(_, c)| engine.measure(&snapshot, c).ok());
            engine.compose_stats(&snapshot, network, measured.map(Arc::new).collect())
        })
        .await
    }

    /// Statistics of all ready pods, none older than a second; one that vanishes meanwhile is left out.
    pub async fn all_pod_stats(self: &Arc<Self>) -> Vec<Arc<PodStats>> {
        self.meter.called();
        let (board, now) = (self.meter.board(), Instant::now());
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for pod in self.all_pods() {
            let snapshot = pod.snapshot();
            if snapshot.pod.state == PodState::Ready {
                match board.pod(&snapshot, now) {
                    Some(stats) => found.push(stats.clone()),
                    None => missing.push(snapshot),
                }
            }
        }
        found.extend(self.sampled(missing, Sampler::pods).await);
        found
    }

    /// Has every reading that is taken for lists shown to `render` before it is given to anybody: what is made there of its
    /// [`Rendering`] no caller has to wait for. Only the first call counts.
    pub fn render_readings(&self, render: impl Fn(Reading<'_>) + Send + Sync + 'static) {
        self.meter.render_with(Box::new(render));
    }

    /// What the sampler makes of these, at once.
    async fn sampled<T: Send + 'static, S: Send + 'static>(
        self: &Arc<Self>,
        missing: Vec<T>,
        measure: fn(&mut Sampler, &Arc<Self>, &[T]) -> Vec<S>,
    ) -> Vec<S> {
        if missing.is_empty() {
            return Vec::new();
        }
        let (done, all) = oneshot::channel();
        let ask = move |sampler: &mut Sampler, engine: &Arc<Self>| {
            let _ = done.send(measure(sampler, engine, &missing));
        };
        match self.meter.ask(Box::new(ask), || sampler::start(Arc::downgrade(self))) {
            Ok(()) => all.await.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "no statistics: no thread to read them");
                Vec::new()
            }
        }
    }

    /// A reading of a container, and its writable layer as it was measured last or, if that was never or long ago, now.
    fn measure(&self, snapshot: &Snapshot, container: &Arc<ContainerView>) -> Result<ContainerStats, Error> {
        let writable = self.meter.layer(&container.id, || self.images.container_usage(&container.id));
        self.reading(snapshot, container, writable)
    }

    fn reading(
        &self,
        snapshot: &Snapshot,
        container: &Arc<ContainerView>,
        writable: Option<storage::Usage>,
    ) -> Result<ContainerStats, Error> {
        let runs = container.state == ContainerState::Running;
        let cgroup = match snapshot.state.containers.get(container.id.as_str()).filter(|_| runs) {
            Some(running) => self.meter.read(&running.record.cgroup)?,
            None => None,
        };
        let cgroup = cgroup.unwrap_or_else(nothing);
        Ok(ContainerStats { cgroup, container: container.clone(), writable, rendering: Rendering::default() })
    }

    fn compose_stats(
        &self,
        snapshot: &Snapshot,
        network: Vec<netplugins::InterfaceStats>,
        containers: Vec<Arc<ContainerStats>>,
    ) -> Result<PodStats, Error> {
        let cgroup = self.meter.read(&snapshot.state.record.cgroup)?.unwrap_or_else(nothing);
        let (pod, rendering) = (snapshot.pod.clone(), Rendering::default());
        Ok(PodStats { pod, cgroup, network, containers, rendering })
    }
}

fn running(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<str>, &Arc<ContainerView>)> {
    snapshot.containers.iter().filter(|(_, c)| c.state == ContainerState::Running)
}

/// A reading of nothing: it has a time and no values.
fn nothing() -> CgroupStats {
    CgroupStats { at: crate::exec::nanos(std::time::SystemTime::now()), ..CgroupStats::default() }
}
