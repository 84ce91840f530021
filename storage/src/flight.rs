//! Layers in flight: each is fetched once, however many pulls wait for it, and stops when the last of them is gone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Semaphore, watch};

use crate::digest::Digest;
use crate::error::FileError;
use crate::layer::spool::Spool;
use crate::layer::{Expect, LAYER_MEMORY, LayerError, ingest};
use crate::registry::{Fetch, RegistryError};
use crate::{files, graph};

/// Why a layer did not arrive, shared by all who waited.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    Registry(Arc<RegistryError>),
    Layer(Arc<LayerError>),
    Interrupted,
}

type Outcome = Option<Result<(), Failure>>;

/// A layer on its way. Dropping the last reference stops it.
#[derive(Debug)]
pub(crate) struct Flight {
    task: tokio::task::JoinHandle<()>,
    outcome: watch::Receiver<Outcome>,
    counters: Arc<Counters>,
}

/// How far a layer is, in bytes of its blob.
#[derive(Debug, Default)]
struct Counters {
    done: AtomicU64,
}

/// All layers in flight of a store.
#[derive(Debug)]
pub(crate) struct Flights {
    root: PathBuf,
    flying: Mutex<HashMap<Digest, Weak<Flight>>>,
    /// One permit per [`LAYER_MEMORY`] of the budget.
    memory: Arc<Semaphore>,
    number: AtomicU64,
    keep_blobs: bool,
}

/// A staging directory that is gone when its owner is, unless published.
#[derive(Debug)]
pub(crate) struct Staging(pub(crate) PathBuf);

/// Ends the readers of a spool when the writer is dropped in the middle.
struct EndSpool(Arc<Spool>);

// === impl Flight ===

impl Flight {
    /// Waits for the end.
    pub(crate) async fn wait(&self) -> Result<(), Failure> {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Err(Failure::Interrupted)),
            Err(_) => Err(Failure::Interrupted),
        }
    }

    /// It waits for nothing any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// Bytes of the blob that have arrived.
    pub(crate) fn done(&self) -> u64 {
        self.counters.done.load(Ordering::Relaxed)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for EndSpool {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = files::remove(&self.0) {
            tracing::warn!(%error, "staging is left over until the next start");
        }
    }
}

// === impl Flights ===

impl Flights {
    pub(crate) fn new(root: &Path, budget: u64, keep_blobs: bool) -> Self {
        // One layer must always be able to fly.
        let permits = usize::try_from(budget / LAYER_MEMORY).unwrap_or(1).clamp(1, 64);
        Self {
            root: root.to_owned(),
            flying: Mutex::default(),
            memory: Arc::new(Semaphore::new(permits)),
            number: AtomicU64::new(0),
            keep_blobs,
        }
    }

    /// Is any layer in flight?
    pub(crate) fn any(&self) -> bool {
        let flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        flying.values().any(|flight| flight.strong_count() > 0)
    }

    /// A new directory under `staging/`.
    pub(crate) fn stage(&self) -> Result<Staging, FileError> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("staging").join(number.to_string());
        files::directory(&path)?;
        Ok(Staging(path))
    }

    /// Joins the flight of a layer, or starts it; `true`: started here.
    pub(crate) fn join(
        &self,
        expect: &Expect,
        fetch: impl FnOnce() -> Fetch,
    ) -> Result<(Arc<Flight>, bool), FileError> {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        flying.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flying.get(&expect.diff_id).and_then(Weak::upgrade)
            && flight.outcome.borrow().is_none()
        {
            return Ok((flight, false));
        }
        let (end, outcome) = watch::channel(None);
        let counters = Arc::new(Counters::default());
        let run = Run {
            staging: self.stage()?,
            layer: graph::layer_directory(&self.root, &expect.diff_id),
            partial: self.partial(&expect.blob),
            expect: expect.clone(),
            fetch: fetch(),
            memory: self.memory.clone(),
            counters: counters.clone(),
            keep: self.keep_blobs,
        };
        let task = tokio::spawn(async move {
            let result = run.run().await;
            end.send_replace(Some(result));
        });
        let flight = Arc::new(Flight { task, outcome, counters });
        flying.insert(expect.diff_id.clone(), Arc::downgrade(&flight));
        Ok((flight, true))
    }

    /// Where a blob's bytes wait to be continued.
    fn partial(&self, blob: &Digest) -> PathBuf {
        self.root.join("staging/partial").join(format!("{}-{}", blob.algorithm(), blob.hex()))
    }
}

/// One layer, start to end.
struct Run {
    staging: Staging,
    layer: PathBuf,
    partial: PathBuf,
    expect: Expect,
    fetch: Fetch,
    memory: Arc<Semaphore>,
    counters: Arc<Counters>,
    keep: bool,
}

impl Run {
    async fn run(self) -> Result<(), Failure> {
        let Ok(_permit) = self.memory.clone().acquire_owned().await else { return Err(Failure::Interrupted) };
        let Self { mut staging, layer, partial, expect, fetch, counters, keep, .. } = self;
        loop {
            let (spool, continued) = Spool::open(&partial, expect.size).map_err(layer_failure)?;
            let spool = Arc::new(spool);
            counters.done.store(continued, Ordering::Relaxed);
            let end = EndSpool(spool.clone());
            let (ours, want, path) = (spool.clone(), expect.clone(), layer.clone());
            let blob = keep.then(|| partial.clone());
            let mut ingesting = tokio::task::spawn_blocking(move || {
                let result = ingest(&ours, &want, &staging.0)
                    .and_then(|()| blob.map_or(Ok(()), |blob| keep_blob(&blob, &want, &staging.0)))
                    .and_then(|()| publish(&staging, &path));
                (staging, result)
            });
            let moved = |n| {
                counters.done.fetch_add(n, Ordering::Relaxed);
            };
            let fetched = tokio::select! {
                fetched = fetch.run(&spool, &moved) => fetched,
                early = &mut ingesting => {
                    let (_, result) = early.map_err(|_| Failure::Interrupted)?;
                    return result.map_err(layer_failure);
                }
            };
            match &fetched {
                Ok(()) => spool.complete(),
                Err(_) => spool.abandon(),
            }
            let (back, result) = ingesting.await.map_err(|_| Failure::Interrupted)?;
            drop(end);
            fetched.map_err(|error| Failure::Registry(Arc::new(error)))?;
            // The bytes have served, or are bad: either way nobody continues them.
            Spool::delete(&partial);
            match result {
                // What an earlier attempt left may be damaged: once more, all of it.
                Err(LayerError::Digest { .. }) if continued > 0 => {
                    staging = back;
                    clear(&staging.0).map_err(layer_failure)?;
                }
                result => return result.map_err(layer_failure),
            }
        }
    }
}

fn layer_failure(error: impl Into<LayerError>) -> Failure {
    Failure::Layer(Arc::new(error.into()))
}

/// Moves a verified blob beside the tar it holds, durable. A blob that is the tar itself needs no second copy.
pub(crate) fn keep_blob(blob: &Path, expect: &Expect, staging: &Path) -> Result<(), LayerError> {
    if expect.blob == expect.diff_id {
        return Ok(());
    }
    let file = std::fs::File::open(blob).map_err(FileError::at("open", blob))?;
    file.sync_data().map_err(FileError::at("flush", blob))?;
    let to = graph::blob_path(staging, &expect.blob);
    Ok(std::fs::rename(blob, &to).map_err(FileError::at("rename to", &to))?)
}

fn clear(directory: &Path) -> Result<(), FileError> {
    files::remove(directory)?;
    files::directory(directory)
}

/// Makes a verified layer visible. One that is there already is the same one.
fn publish(staging: &Staging, layer: &Path) -> Result<(), LayerError> {
    files::publish(&staging.0, layer)?;
    Ok(())
}
