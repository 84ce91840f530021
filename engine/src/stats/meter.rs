//! Readings that are shared: whoever asks while one is young gets that one, and its time with it.
//!
//! A node asks for the same numbers from several sides (kubelet, crictl, a metrics agent). When they come faster than once in
//! [`FRESH`], a sampler takes over: it reads every gauge in the background, twice in that time, and what is new at once, so
//! that no caller waits for a reading at all. It ends when nobody has asked for a while. A node that asks every ten
//! seconds never starts it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netplugins::InterfaceStats;
use storage::Usage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Error;
use crate::api::CgroupStats;
use crate::engine::absent_is_fine;
use crate::exec::cgroup::Reader;

/// A reading younger than this is given to the next caller as well.
pub(super) const FRESH: Duration = Duration::from_millis(1000);
/// How often the sampler reads.
pub(super) const SAMPLE: Duration = Duration::from_millis(400);
/// How often the sampler looks for what has no reading yet.
pub(super) const NEWCOMERS: Duration = Duration::from_millis(20);
/// How long the sampler goes on after the last call.
const IDLE: Duration = Duration::from_secs(3);
/// Least age of a writable layer's size before it is measured anew: that walks a directory tree.
const LAYER_AGE: Duration = Duration::from_secs(10);
/// And the walk takes at most one part of this many of the time.
const LAYER_SHARE: u32 = 50;

/// One part of this many of the descriptors the process may have (RLIMIT_NOFILE) is for files that stay open between readings.
const FILES_SHARE: u64 = 4;

/// Gauges by cgroup, and the last readings of what is no cgroup.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    gauges: Mutex<HashMap<String, Arc<Gauge>>>,
    networks: Mutex<HashMap<Arc<str>, Interfaces>>,
    layers: Mutex<HashMap<String, Layer>>,
    demand: Mutex<Demand>,
    files: Files,
}

/// How many more files may stay open between readings. A cgroup for which there is no room is opened for each reading.
#[derive(Debug)]
struct Files(Arc<Semaphore>);

/// A pod's interfaces, and when they were read.
type Interfaces = (Instant, Vec<InterfaceStats>);

/// One cgroup: whoever takes a reading holds up nobody who is content with the last one.
#[derive(Debug, Default)]
struct Gauge {
    needle: Mutex<Needle>,
    latest: Mutex<Option<(Instant, CgroupStats)>>,
}

/// What readings are taken with.
#[derive(Debug, Default)]
struct Needle {
    reader: Option<(Reader, OwnedSemaphorePermit)>,
    /// Time of the last reading and CPU time then, both in nanoseconds.
    last: Option<(i64, u64)>,
}

/// Size of a writable layer, and when it was measured and at what cost.
#[derive(Clone, Copy, Debug)]
struct Layer {
    at: Instant,
    took: Duration,
    usage: Option<Usage>,
}

/// When callers have come.
#[derive(Debug, Default)]
struct Demand {
    last: Option<Instant>,
    sampling: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Meter ===

impl Meter {
    /// A reading of a cgroup not older than `age`; `Ok(None)`: there is no such cgroup.
    pub(super) fn read(&self, cgroup: &str, age: Duration) -> Result<Option<CgroupStats>, Error> {
        let gauge = lock(&self.gauges).entry(cgroup.to_owned()).or_default().clone();
        let stats = absent_is_fine(gauge.read(cgroup, age, &self.files))?;
        if stats.is_none() {
            self.forget(cgroup);
        }
        Ok(stats)
    }

    /// The last reading, if it is young.
    pub(super) fn young(&self, cgroup: &str) -> Option<CgroupStats> {
        let gauge = lock(&self.gauges).get(cgroup)?.clone();
        gauge.latest(FRESH)
    }

    /// Closes the reader of a cgroup that is gone.
    pub(crate) fn forget(&self, cgroup: &str) {
        lock(&self.gauges).remove(cgroup);
    }

    /// A pod's interfaces, read by `read` unless there is a reading not older than `age`.
    pub(super) fn network(
        &self,
        pod: &Arc<str>,
        age: Duration,
        read: impl FnOnce() -> Result<Vec<InterfaceStats>, Error>,
    ) -> Result<Vec<InterfaceStats>, Error> {
        if let Some((at, stats)) = lock(&self.networks).get(pod)
            && at.elapsed() < age
        {
            return Ok(stats.clone());
        }
        let stats = read()?;
        lock(&self.networks).insert(pod.clone(), (Instant::now(), stats.clone()));
        Ok(stats)
    }

    /// The last reading of a pod's interfaces, if it is young.
    pub(super) fn young_network(&self, pod: &str) -> Option<Vec<InterfaceStats>> {
        let networks = lock(&self.networks);
        networks.get(pod).filter(|(at, _)| at.elapsed() < FRESH).map(|(_, stats)| stats.clone())
    }

    /// A writable layer's size as last measured; `None`: never.
    pub(super) fn known_layer(&self, container: &str) -> Option<Option<Usage>> {
        lock(&self.layers).get(container).map(|layer| layer.usage)
    }

    /// Measures a writable layer by `walk` if it is time to, and gives its size.
    pub(super) fn layer(&self, container: &str, walk: impl FnOnce() -> Option<Usage>) -> Option<Usage> {
        let known = lock(&self.layers).get(container).copied();
        if let Some(layer) = known.filter(|layer| !layer.due()) {
            return layer.usage;
        }
        let begun = Instant::now();
        let usage = walk();
        let layer = Layer { at: Instant::now(), took: begun.elapsed(), usage };
        lock(&self.layers).insert(container.to_owned(), layer);
        usage
    }

    /// Drops what is kept of containers and pods that are gone.
    pub(super) fn keep(&self, container: impl Fn(&str) -> bool, pod: impl Fn(&str) -> bool) {
        lock(&self.layers).retain(|id, _| container(id));
        lock(&self.networks).retain(|id, _| pod(id));
    }

    /// Somebody asks. True when that is the second call in short time and no sampler runs: the caller starts it.
    pub(super) fn asked(&self) -> bool {
        let mut demand = lock(&self.demand);
        let often = demand.last.replace(Instant::now()).is_some_and(|last| last.elapsed() < FRESH);
        often && !std::mem::replace(&mut demand.sampling, true)
    }

    /// It could not be started: the next caller tries again.
    pub(super) fn no_sampler(&self) {
        lock(&self.demand).sampling = false;
    }

    /// Whether the sampler goes on. When not, the next call may start one.
    pub(super) fn wanted(&self) -> bool {
        let mut demand = lock(&self.demand);
        demand.sampling = demand.last.is_some_and(|last| last.elapsed() < IDLE);
        demand.sampling
    }
}

impl Default for Files {
    fn default() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = limit.map_or(Semaphore::MAX_PERMITS, |n| (n / FILES_SHARE) as usize);
        Self(Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))))
    }
}

impl Files {
    /// Room for so many, if there is; it is given back by dropping it.
    fn room(&self, count: usize) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_many_owned(u32::try_from(count).ok()?).ok()
    }
}

impl Layer {
    fn due(&self) -> bool {
        self.at.elapsed() > LAYER_AGE.max(self.took * LAYER_SHARE)
    }
}

impl Gauge {
    /// The last reading, if it is younger than `age`.
    fn latest(&self, age: Duration) -> Option<CgroupStats> {
        let latest = lock(&self.latest);
        latest.as_ref().filter(|(at, _)| at.elapsed() < age).map(|(_, stats)| stats.clone())
    }

    fn read(&self, cgroup: &str, age: Duration, files: &Files) -> Result<CgroupStats, Error> {
        if let Some(stats) = self.latest(age) {
            return Ok(stats);
        }
        let mut needle = lock(&self.needle);
        // Whoever had the needle before may have taken the reading that is wanted.
        if let Some(stats) = self.latest(age) {
            return Ok(stats);
        }
        let stats = needle.read(cgroup, files)?;
        *lock(&self.latest) = Some((Instant::now(), stats.clone()));
        Ok(stats)
    }
}

impl Needle {
    fn read(&mut self, cgroup: &str, files: &Files) -> Result<CgroupStats, Error> {
        let (mut reader, room) = match self.reader.take() {
            Some((reader, room)) => (reader, Some(room)),
            None => {
                let reader = Reader::open(cgroup)?;
                let room = files.room(reader.files());
                (reader, room)
            }
        };
        let mut stats = reader.read()?;
        self.reader = room.map(|room| (reader, room));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampler_is_started_once_and_only_for_callers_that_come_often() {
        let meter = Meter::default();
        assert_eq!([meter.asked(), meter.asked(), meter.asked()], [false, true, false]);
        assert!(meter.wanted());
        lock(&meter.demand).last = Instant::now().checked_sub(IDLE + FRESH);
        assert!(!meter.wanted());
        assert_eq!([meter.asked(), meter.asked()], [false, true]);
    }

    #[test]
    fn files_beyond_the_limit_do_not_stay_open() {
        let files = Files(Arc::new(Semaphore::new(100)));
        let first = files.room(60);
        assert!(first.is_some() && files.room(60).is_none());
        assert!(files.room(40).is_some(), "it is not counted what found no room");
        drop(first);
        assert!(files.room(60).is_some(), "what is closed makes room");
    }

    #[test]
    fn a_writable_layer_is_not_walked_at_each_call() {
        let meter = Meter::default();
        let mut walks = 0;
        for _ in 0..3 {
            let usage = meter.layer("c", || {
                walks += 1;
                Some(Usage { bytes: 5, inodes: 1 })
            });
            assert_eq!(usage.map(|usage| usage.bytes), Some(5));
        }
        assert_eq!(walks, 1);
        meter.keep(|_| false, |_| false);
        assert_eq!(meter.known_layer("c"), None);
    }
}
