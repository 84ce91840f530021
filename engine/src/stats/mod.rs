//! Statistics: one pass per cgroup, through readers that stay open.
//!
//! A call for one pod or container takes its readings itself. A call for all of them is answered from the last readings that were shared;
//! what is missing there the [`sampler`] reads first. While calls come so fast that it reads ahead, they do not wait for it: what has just
//! changed, or everything if the node is too busy, is shown with the numbers that were read last. A container of which there are none a
//! call reads itself, if they are few. [`meter`] holds what all of them read with.

mod meter;
mod sampler;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

pub(crate) use meter::{Meter, News};
use sampler::{Board, Sampler};
use tokio::sync::oneshot;

use crate::api::{
    CgroupStats, ContainerState, ContainerStats, ContainerView, Detail, PodState, PodStats, Reading,
    Rendering,
};
use crate::engine::{blocking, network_error};
use crate::pod::Snapshot;
use crate::{Engine, Error};

/// So many running containers that were never read a call reads itself: a busy node takes up to 0.3 ms for each.
const UNREAD: usize = 32;

/// How the sampler makes readings of some things.
type Measure<T, S> = fn(&mut Sampler, &Arc<Engine>, &[T], Detail) -> Vec<Arc<S>>;

impl Engine {
    /// Statistics of one container, read now.
    pub async fn container_stats(self: &Arc<Self>, id: &str) -> Result<ContainerStats, Error> {
        let (pod, id) = self.find_container(id)?;
        let (engine, snapshot) = (self.clone(), pod.snapshot());
        blocking(move || {
            let container = snapshot.containers.get(&id).ok_or_else(|| Error::not_found("container", &id))?;
            engine.measure(&snapshot, container, Detail::Statistics)
        })
        .await
    }

    /// Statistics of all containers, none older than a second unless they are read ahead and the node is too busy for that; one that
    /// vanishes meanwhile is left out.
    pub async fn all_container_stats(self: &Arc<Self>) -> Vec<Arc<ContainerStats>> {
        let detail = Detail::Statistics;
        let ahead = self.meter.called(detail);
        let (board, now) = (self.meter.board(), Instant::now());
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for pod in self.all_pods().iter() {
            let snapshot = pod.snapshot();
            for (id, container) in &snapshot.containers {
                match board.container(id, container, now, detail) {
                    Some(stats) => found.push(stats.clone()),
                    None => missing.push((snapshot.clone(), id.clone())),
                }
            }
        }
        let unread = |id: &Arc<str>, container: &ContainerView| {
            let read = board.last_of_container(id, container).is_some_and(|(_, in_this_state)| in_this_state);
            container.state == ContainerState::Running && !read
        };
        let count = missing
            .iter()
            .filter(|(snapshot, id)| snapshot.containers.get(id).is_some_and(|c| unread(id, c)));
        // A burst of starts is for the sampler, which the call waits for then.
        let ahead = ahead && count.count() <= UNREAD;
        let last = |(snapshot, id): &(Arc<Snapshot>, Arc<str>)| {
            let container = snapshot.containers.get(id)?;
            let last = last_of_container(&board, id, container);
            if !unread(id, container) {
                return Some(last);
            }
            Some(self.reading(snapshot, container, detail, last.writable).map_or(last, Arc::new))
        };
        found.extend(self.sampled(missing, detail, ahead, Sampler::containers, last).await);
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
            let detail = Detail::Statistics;
            let measured = running(&snapshot).filter_map(|(_, c)| engine.measure(&snapshot, c, detail).ok());
            engine.compose_stats(&snapshot, network, measured.map(Arc::new).collect(), detail)
        })
        .await
    }

    /// Statistics of all ready pods, with so much detail or more; else as [`Self::all_container_stats`].
    pub async fn all_pod_stats(self: &Arc<Self>, detail: Detail) -> Vec<Arc<PodStats>> {
        let ahead = self.meter.called(detail);
        let (board, now) = (self.meter.board(), Instant::now());
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for pod in self.all_pods().iter() {
            let snapshot = pod.snapshot();
            if snapshot.pod.state == PodState::Ready {
                match board.pod(&snapshot, now, detail) {
                    Some(stats) => found.push(stats.clone()),
                    None => missing.push(snapshot),
                }
            }
        }
        let last = |snapshot: &Arc<Snapshot>| Some(last_of_pod(&board, snapshot));
        found.extend(self.sampled(missing, detail, ahead, Sampler::pods, last).await);
        found
    }

    /// Has every reading that is taken for lists shown to `render` before it is given to anybody: what is made there of its
    /// [`Rendering`] no caller has to wait for. Only the first call counts.
    pub fn render_readings(&self, render: impl Fn(Reading<'_>) + Send + Sync + 'static) {
        self.meter.render_with(Box::new(render));
    }

    /// What the sampler makes of these, at once; if it reads `ahead`, or cannot, the `last` that is known of them.
    async fn sampled<T: Clone + Send + 'static, S: Send + Sync + 'static>(
        self: &Arc<Self>,
        missing: Vec<T>,
        detail: Detail,
        ahead: bool,
        measure: Measure<T, S>,
        last: impl Fn(&T) -> Option<Arc<S>>,
    ) -> Vec<Arc<S>> {
        let last = |missing: &[T]| missing.iter().filter_map(&last).collect();
        if ahead || missing.is_empty() {
            return last(&missing);
        }
        let (done, all) = oneshot::channel();
        let wanted = missing.clone();
        let ask = move |sampler: &mut Sampler, engine: &Arc<Self>| {
            let _ = done.send(measure(sampler, engine, &wanted, detail));
        };
        if let Err(error) = self.meter.ask(Box::new(ask), || sampler::start(Arc::downgrade(self))) {
            tracing::warn!(%error, "no statistics: no thread to read them");
            return Vec::new();
        }
        all.await.unwrap_or_else(|_| last(&missing))
    }

    /// A reading of a container, and its writable layer as it was measured last or, if that was never or long ago, now.
    fn measure(
        &self,
        snapshot: &Snapshot,
        container: &Arc<ContainerView>,
        detail: Detail,
    ) -> Result<ContainerStats, Error> {
        let writable = self.meter.layer(&container.id, || self.images.container_usage(&container.id));
        self.reading(snapshot, container, detail, writable)
    }

    fn reading(
        &self,
        snapshot: &Snapshot,
        container: &Arc<ContainerView>,
        detail: Detail,
        writable: Option<storage::Usage>,
    ) -> Result<ContainerStats, Error> {
        let runs = container.state == ContainerState::Running;
        let cgroup = match snapshot.state.containers.get(container.id.as_str()).filter(|_| runs) {
            Some(running) => self.meter.read(&running.record.cgroup, detail)?,
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
        detail: Detail,
    ) -> Result<PodStats, Error> {
        let cgroup = self.meter.read(&snapshot.state.record.cgroup, detail)?.unwrap_or_else(nothing);
        let (pod, rendering) = (snapshot.pod.clone(), Rendering::default());
        Ok(PodStats { pod, cgroup, network, containers, rendering })
    }
}

fn running(snapshot: &Snapshot) -> impl Iterator<Item = (&Arc<str>, &Arc<ContainerView>)> {
    snapshot.containers.iter().filter(|(_, c)| c.state == ContainerState::Running)
}

/// The container as it is now, with the last numbers that were read of it, if any.
fn last_of_container(board: &Board, id: &str, now: &Arc<ContainerView>) -> Arc<ContainerStats> {
    let last = match board.last_of_container(id, now) {
        Some((last, true)) => return last.clone(),
        last => last.map(|(last, _)| last),
    };
    // What was read of it in another state says nothing about its processes now.
    let (cgroup, rendering) = (nothing(), Rendering::default());
    let writable = last.and_then(|last| last.writable);
    Arc::new(ContainerStats { cgroup, container: now.clone(), writable, rendering })
}

/// The pod as it is now, with the last numbers that were read of it and of its containers, if any.
fn last_of_pod(board: &Board, now: &Snapshot) -> Arc<PodStats> {
    let last = match board.last_of_pod(now) {
        Some((last, true)) => return last.clone(),
        last => last.map(|(last, _)| last),
    };
    let containers = running(now).map(|(id, container)| last_of_container(board, id, container)).collect();
    Arc::new(match last {
        Some(last) => last.with(now, containers),
        None => {
            let (pod, rendering) = (now.pod.clone(), Rendering::default());
            PodStats { pod, cgroup: nothing(), network: Vec::new(), containers, rendering }
        }
    })
}

/// A reading of nothing: it has a time and no values, and that is all there is.
fn nothing() -> CgroupStats {
    let at = crate::exec::nanos(std::time::SystemTime::now());
    CgroupStats { at, detail: Detail::Metrics, ..CgroupStats::default() }
}
