//! Statistics: one pass per cgroup, through readers that stay open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::{CgroupStats, ContainerState, ContainerStats, ContainerView, PodState, PodStats};
use crate::engine::{absent_is_fine, blocking, network_error};
use crate::exec::cgroup::Reader;
use crate::pod::Snapshot;
use crate::{Engine, Error};

/// Readers by cgroup, and the last reading of each.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    readers: Mutex<HashMap<String, Arc<Mutex<Gauge>>>>,
}

#[derive(Debug, Default)]
struct Gauge {
    reader: Option<Reader>,
    /// Time of the last reading and CPU time then, both in nanoseconds.
    last: Option<(i64, u64)>,
}

impl Meter {
    /// Reads a cgroup; `None` if there is none.
    fn read(&self, cgroup: &str) -> Result<Option<CgroupStats>, Error> {
        let gauge = {
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            readers.entry(cgroup.to_owned()).or_default().clone()
        };
        let mut gauge = gauge.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = absent_is_fine(gauge.read(cgroup))?;
        if stats.is_none() {
            self.forget(cgroup);
        }
        Ok(stats)
    }

    /// Closes the reader of a cgroup that is gone.
    pub(crate) fn forget(&self, cgroup: &str) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).remove(cgroup);
    }
}

impl Gauge {
    fn read(&mut self, cgroup: &str) -> Result<CgroupStats, Error> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            empty => empty.insert(Reader::open(cgroup)?),
        };
        let mut stats = reader.read()?;
        if let Some([total, ..]) = stats.cpu {
            if stats.nano_cores.is_none() {
                stats.nano_cores = self.last.and_then(|last| nano_cores(last, (stats.at, total)));
            }
            self.last = Some((stats.at, total));
        }
        Ok(stats)
    }
}

/// CPU use between two readings of (time, CPU time), in billionths of a core.
fn nano_cores(before: (i64, u64), now: (i64, u64)) -> Option<u64> {
    let time = u128::try_from(now.0.checked_sub(before.0)?).ok().filter(|time| *time > 0)?;
    let used = u128::from(now.1.checked_sub(before.1)?);
    u64::try_from(used * 1_000_000_000 / time).ok()
}

impl Engine {
    /// Statistics of one container.
    pub async fn container_stats(self: &Arc<Self>, id: &str) -> Result<ContainerStats, Error> {
        let container = self.container(id)?;
        let engine = self.clone();
        blocking(move || engine.measure(container)).await
    }

    /// Statistics of all containers; one that vanishes meanwhile is left out.
    pub async fn all_container_stats(self: &Arc<Self>) -> Vec<ContainerStats> {
        let engine = self.clone();
        let all = blocking(move || {
            Ok(engine
                .containers()
                .into_iter()
                .filter_map(|container| engine.measure(container).ok())
                .collect())
        });
        all.await.unwrap_or_default()
    }

    /// Statistics of one pod.
    pub async fn pod_stats(self: &Arc<Self>, id: &str) -> Result<PodStats, Error> {
        let snapshot = self.find_pod(id)?.snapshot();
        let engine = self.clone();
        blocking(move || engine.measure_pod(&snapshot)).await
    }

    /// Statistics of all ready pods; one that vanishes meanwhile is left out.
    pub async fn all_pod_stats(self: &Arc<Self>) -> Vec<PodStats> {
        let engine = self.clone();
        let all = blocking(move || {
            let snapshots = engine.all_pods().into_iter().map(|pod| pod.snapshot());
            let ready = snapshots.filter(|snapshot| snapshot.pod.state == PodState::Ready);
            Ok(ready.filter_map(|snapshot| engine.measure_pod(&snapshot).ok()).collect())
        });
        all.await.unwrap_or_default()
    }

    fn measure(&self, container: Arc<ContainerView>) -> Result<ContainerStats, Error> {
        let writable = self.images.container_usage(&container.id);
        let running = container.state == ContainerState::Running;
        let (pod, state) = self.container_state(&container.id)?;
        let _ = pod;
        let cgroup = if running { self.meter.read(&state.record.cgroup)? } else { None };
        Ok(ContainerStats { cgroup: cgroup.unwrap_or_else(nothing), container, writable })
    }

    fn measure_pod(&self, snapshot: &Snapshot) -> Result<PodStats, Error> {
        let state = &snapshot.state;
        let running = snapshot.containers.values().filter(|c| c.state == ContainerState::Running);
        let containers = running.filter_map(|container| self.measure(container.clone()).ok()).collect();
        let mut network = Vec::new();
        if state.status.holds.namespace
            && let Some(namespace) = self.network.open_namespace(&state.record.id).map_err(network_error)?
        {
            network = self.network.stats(&namespace).map_err(network_error)?;
        }
        let cgroup = self.meter.read(&state.record.cgroup)?.unwrap_or_else(nothing);
        Ok(PodStats { pod: snapshot.pod.clone(), cgroup, network, containers })
    }
}

/// A reading of nothing: it has a time and no values.
fn nothing() -> CgroupStats {
    CgroupStats { at: crate::exec::nanos(std::time::SystemTime::now()), ..CgroupStats::default() }
}
