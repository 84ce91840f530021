//! What readings are taken with, what of them is kept, and how much they are asked for.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use storage::Usage;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::sampler::{Ask, Board, Demand, FRESH};
use crate::api::{CgroupStats, Detail, PodState, Reading};
use crate::engine::absent_is_fine;
use crate::exec::cgroup::Reader;
use crate::pod::Snapshot;
use crate::sys::thread;
use crate::{Engine, Error};

/// So many calls in a row, each within [`FRESH`] of the one before, are a flood. A kubelet that asks every ten seconds makes two calls.
const FLOOD: u32 = 3;
/// How long after the last call of a flood the next one is expected.
const IDLE: Duration = Duration::from_secs(3);
/// Least age of a writable layer's size before it is measured anew: that walks a directory tree.
const LAYER_AGE: Duration = Duration::from_secs(10);
/// And the walk takes at most one part of this many of the time.
const LAYER_SHARE: u32 = 50;

/// One part of this many of the descriptors the process may have (RLIMIT_NOFILE) is for files that stay open between readings.
const FILES_SHARE: usize = 3;

/// Gauges by cgroup, and the last readings.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    gauges: Mutex<HashMap<String, Arc<Mutex<Needle>>>>,
    layers: Mutex<HashMap<String, Layer>>,
    /// A thread measures writable layers.
    walking: AtomicBool,
    board: ArcSwap<Board>,
    calls: Mutex<Calls>,
    news: Arc<News>,
    render: Renderer,
    files: Files,
}

/// Tells the sampler, while it reads ahead, of pods that have changed: it reads what is new in them at once, so that a call finds it there.
#[derive(Debug, Default)]
pub(crate) struct News(ArcSwapOption<Sender<Ask>>);

/// How many more files may stay open between readings. A cgroup for which there is no room is opened for each reading.
#[derive(Debug)]
struct Files(Arc<Semaphore>);

/// What readings of one cgroup are taken with.
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

/// Calls for all readings, and who reads for them.
#[derive(Debug, Default)]
struct Calls {
    last: Option<Instant>,
    /// How many have come one after the other, each within [`FRESH`] of the one before.
    row: u32,
    /// The last one that wanted everything.
    metrics: Option<Instant>,
    sampler: Option<Sender<Ask>>,
}

/// Who is shown every reading.
pub(super) type Render = Box<dyn Fn(Reading<'_>) + Send + Sync>;

/// See [`Engine::render_readings`].
#[derive(Default)]
struct Renderer(OnceLock<Render>);

impl std::fmt::Debug for Renderer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Renderer").field(&self.0.get().is_some()).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Meter ===

impl Meter {
    /// A reading of a cgroup, taken now; `Ok(None)`: there is no such cgroup.
    pub(super) fn read(&self, cgroup: &str, detail: Detail) -> Result<Option<CgroupStats>, Error> {
        let gauge = lock(&self.gauges).entry(cgroup.to_owned()).or_default().clone();
        let stats = absent_is_fine(lock(&gauge).read(cgroup, detail, &self.files))?;
        if stats.is_none() {
            self.forget(cgroup);
        }
        Ok(stats)
    }

    /// Closes the reader of a cgroup that is gone.
    pub(crate) fn forget(&self, cgroup: &str) {
        let gone = lock(&self.gauges).remove(cgroup);
        // Its files are closed without the lock.
        drop(gone);
    }

    /// The last readings that were shared.
    pub(super) fn board(&self) -> Arc<Board> {
        self.board.load_full()
    }

    /// Shares these readings and gives back those before.
    pub(super) fn share(&self, board: Arc<Board>) -> Arc<Board> {
        self.board.swap(board)
    }

    pub(super) fn render_with(&self, render: Render) {
        let _ = self.render.0.set(render);
    }

    pub(super) fn render(&self, reading: Reading<'_>) {
        if let Some(render) = self.render.0.get() {
            render(reading);
        }
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

    /// Measures the writable layers of those containers for which it is time, on a thread of its own: that walks directory trees, and waits
    /// for those that are being mounted.
    pub(super) fn measure_layers<'a>(
        &self,
        engine: &Arc<Engine>,
        containers: impl Iterator<Item = &'a Arc<str>>,
    ) {
        let due: Vec<Arc<str>> = {
            let layers = lock(&self.layers);
            containers.filter(|id| layers.get(&***id).is_none_or(Layer::due)).cloned().collect()
        };
        if due.is_empty() || self.walking.swap(true, Ordering::AcqRel) {
            return;
        }
        let weak = Arc::downgrade(engine);
        let walk = move || {
            for id in due {
                let Some(engine) = weak.upgrade() else { return };
                engine.meter.layer(&id, || engine.images.container_usage(&id));
            }
            if let Some(engine) = weak.upgrade() {
                engine.meter.walking.store(false, Ordering::Release);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("layers".into()).spawn(walk) {
            tracing::debug!(%error, "writable layers are not measured");
            self.walking.store(false, Ordering::Release);
        }
    }

    /// Drops what is kept of containers that are gone.
    pub(super) fn keep(&self, container: impl Fn(&str) -> bool) {
        lock(&self.layers).retain(|id, _| container(id));
    }

    /// Somebody asks for all readings; whether they are read ahead with that detail.
    pub(super) fn called(&self, detail: Detail) -> bool {
        let mut calls = lock(&self.calls);
        let read = calls.detail() >= detail;
        if detail == Detail::Metrics {
            calls.metrics = Some(Instant::now());
        }
        let soon = calls.last.replace(Instant::now()).is_some_and(|last| last.elapsed() < FRESH);
        calls.row = if soon { calls.row.saturating_add(1) } else { 1 };
        read && self.news.0.load().is_some()
    }

    /// Where changes of pods are to be told.
    pub(crate) fn news(&self) -> Arc<News> {
        self.news.clone()
    }

    /// From now on the sampler is told of changes, or not any more.
    pub(super) fn listen(&self, listen: bool) {
        if self.news.0.load().is_some() != listen {
            let sampler = lock(&self.calls).sampler.clone();
            self.news.0.store(sampler.filter(|_| listen).map(Arc::new));
        }
    }

    /// Hands work to the sampler, which `start` starts if there is none.
    pub(super) fn ask(&self, ask: Ask, start: impl FnOnce() -> io::Result<Sender<Ask>>) -> io::Result<()> {
        let mut calls = lock(&self.calls);
        let sampler = match calls.sampler.take() {
            Some(sampler) => sampler,
            None => start()?,
        };
        let handed = sampler.send(ask).map_err(|_| io::Error::other("the sampler has ended"));
        calls.sampler = handed.is_ok().then_some(sampler);
        handed
    }

    /// How much is to be read ahead.
    pub(super) fn detail(&self) -> Detail {
        lock(&self.calls).detail()
    }

    /// What the sampler is to do.
    pub(super) fn demand(&self) -> Demand {
        let calls = lock(&self.calls);
        let since = calls.last.map_or(Duration::MAX, |last| last.elapsed());
        match calls.row {
            FLOOD.. if since < IDLE => Demand::Fast,
            _ if since < FRESH => Demand::Slow,
            _ => Demand::None,
        }
    }

    /// The sampler ends: the next caller starts another one.
    pub(super) fn no_sampler(&self) {
        lock(&self.calls).sampler = None;
    }
}

// === impl Calls ===

impl Calls {
    /// As much as one of the last calls wanted.
    fn detail(&self) -> Detail {
        match self.metrics {
            Some(last) if last.elapsed() < IDLE => Detail::Metrics,
            _ => Detail::Statistics,
        }
    }
}

// === impl News ===

impl News {
    /// A pod has changed. Never waits.
    pub(crate) fn changed(&self, snapshot: &Arc<Snapshot>) {
        let sampler = self.0.load();
        let Some(sampler) = sampler.as_ref().filter(|_| snapshot.pod.state == PodState::Ready) else {
            return;
        };
        let snapshot = snapshot.clone();
        let _ = sampler.send(Box::new(move |sampler, engine| {
            drop(sampler.pods(engine, &[snapshot], engine.meter.detail()));
        }));
    }
}

impl Default for Files {
    fn default() -> Self {
        let most = thread::share_of_descriptors(FILES_SHARE);
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

impl Needle {
    fn read(&mut self, cgroup: &str, detail: Detail, files: &Files) -> Result<CgroupStats, Error> {
        let (mut reader, room) = match self.reader.take().filter(|(reader, _)| reader.detail() >= detail) {
            Some((reader, room)) => (reader, Some(room)),
            None => {
                let reader = Reader::open(cgroup, detail)?;
                let room = files.room(reader.files());
                (reader, room)
            }
        };
        let mut stats = reader.read(detail)?;
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
    fn only_a_flood_of_calls_is_read_for_ahead_and_not_for_long() {
        let meter = Meter::default();
        let back = |by: Duration| lock(&meter.calls).last = Instant::now().checked_sub(by);
        let mut seen = Vec::new();
        for _ in 0..FLOOD {
            meter.called(Detail::Statistics);
            seen.push(meter.demand());
        }
        assert_eq!(seen, [Demand::Slow, Demand::Slow, Demand::Fast]);
        back(FRESH);
        assert_eq!(meter.demand(), Demand::Fast, "the next call is expected still");
        back(IDLE);
        assert_eq!(meter.demand(), Demand::None);
        meter.called(Detail::Statistics);
        assert_eq!(meter.demand(), Demand::Slow, "after a pause it is a single call again");
    }

    #[test]
    fn metrics_are_read_ahead_only_after_somebody_asked_for_them() {
        let meter = Meter::default();
        let (sampler, _asks) = std::sync::mpsc::channel();
        meter.news.0.store(Some(Arc::new(sampler)));
        assert!(meter.called(Detail::Statistics));
        assert!(!meter.called(Detail::Metrics), "what was read has not all of it");
        assert_eq!(meter.detail(), Detail::Metrics);
        assert!(meter.called(Detail::Metrics));
        lock(&meter.calls).metrics = Instant::now().checked_sub(IDLE);
        assert_eq!(meter.detail(), Detail::Statistics);
    }

    #[test]
    fn a_sampler_is_started_once_and_again_after_its_end() {
        let meter = Meter::default();
        let (asks, waiting) = std::sync::mpsc::channel();
        let ask = |start: bool| {
            let asks = asks.clone();
            meter.ask(
                Box::new(|_, _| {}),
                move || if start { Ok(asks) } else { Err(io::Error::other("again")) },
            )
        };
        assert!(ask(true).is_ok() && ask(false).is_ok());
        assert_eq!(waiting.try_iter().count(), 2);
        meter.no_sampler();
        assert!(ask(false).is_err() && ask(true).is_ok());
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
        meter.keep(|_| false);
        assert_eq!(meter.known_layer("c"), None);
    }
}
