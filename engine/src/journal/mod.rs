//! The journal: what Berth intends and has, on disk before it exists in the kernel.
//!
//! ```text
//! <root>/pods/<pod id>.journal                          entries about the pod and its containers, one a line, appended
//!            /<pod id>/<container id>/volumes/…         image-declared volumes (volume::Local), where there are any
//! ```
//!
//! An [`entry`] carries format, version and checksum. The first says what the pod is; each one after it replaces what an
//! earlier one said of the same thing. So a change is one append to a file that exists: some microseconds, and no directory
//! of the disk is touched, for which it would have to wait while the file system commits somebody's `fsync`. A journal that
//! has grown well beyond what is true is written anew beside itself and renamed.
//!
//! What a change has been told about is true after the daemon dies at any instruction, because the page cache outlives it.
//! Against power loss the [`flush`] thread syncs behind the jobs' backs. What it had not reached yet described kernel
//! objects that the power cut removed as well, and a torn entry fails its checksum: then what the one before said holds, and
//! without a readable first one the pod is swept like one without a journal. So no job waits for the disk.

mod entry;
pub mod file;
mod flush;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::Error;
use crate::container::{ContainerRecord, ContainerStatus};
use crate::engine::blocking;
use crate::pod::{PodRecord, PodStatus, State};
use entry::Entry;
use flush::Flusher;

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A system call failed.
    #[error("{call} {}", path.display())]
    Io {
        /// The call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what way.
        why: String,
    },
    /// The value cannot be written as JSON.
    #[error("encode an entry of {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The journal of one root directory.
#[derive(Debug)]
pub struct Journal {
    pods: PathBuf,
    flusher: Flusher,
    /// Held by the one task that writes on its own thread.
    here: Semaphore,
    /// Length of each pod's file when it was last written as a whole by this daemon.
    written: Mutex<HashMap<String, u64>>,
}

/// A pod read back.
#[derive(Debug)]
pub struct Loaded {
    /// Its record.
    pub record: PodRecord,
    /// Its status.
    pub status: PodStatus,
    /// Its containers.
    pub containers: BTreeMap<String, (ContainerRecord, ContainerStatus)>,
}

/// How the name of a pod's file ends.
const SUFFIX: &str = ".journal";

/// A file is not written anew before it has grown by this much, in bytes, and to three times its length.
const SLACK: u64 = 64 << 10;

impl Journal {
    /// Opens the journal below `root`, making its directory.
    pub fn open(root: &Path) -> Result<Self, JournalError> {
        let pods = root.join("pods");
        file::make_dir(&pods)?;
        Ok(Self { pods, flusher: Flusher::start(), here: Semaphore::new(1), written: Mutex::default() })
    }

    /// Directory for what belongs to a container alone; it goes with the container.
    pub fn container_dir(&self, pod: &str, container: &str) -> PathBuf {
        self.pods.join(pod).join(container)
    }

    fn path(&self, pod: &str) -> PathBuf {
        self.pods.join(format!("{pod}{SUFFIX}"))
    }

    /// Writes what differs between two states of a pod. `old` is `None` for a new pod, and where it is not known what the
    /// file holds.
    pub fn save(&self, old: Option<&State>, new: &State) -> Result<(), JournalError> {
        match old {
            None => self.begin(new),
            Some(old) => self.append(old, new).and_then(|length| self.tidy(old, new, length)),
        }
    }

    /// As [`save`](Self::save), for a task. An append takes less time than two changes of threads, so it is made here and now; by one
    /// task at a time, and only beside other workers: a disk that hangs holds up this one, and nobody else.
    pub(crate) async fn record(self: &Arc<Self>, old: Option<State>, new: State) -> Result<(), Error> {
        let journal = self.clone();
        let workers = Handle::current().metrics().num_workers();
        match (self.here.try_acquire(), old) {
            (Ok(_here), Some(old)) if workers > 1 => {
                let length = self.append(&old, &new)?;
                if !self.too_long(&new, length) && gone(&old, &new).next().is_none() {
                    return Ok(());
                }
                blocking(move || Ok(journal.tidy(&old, &new, length)?)).await
            }
            (_, old) => blocking(move || Ok(journal.save(old.as_ref(), &new)?)).await,
        }
    }

    /// Writes all of a pod.
    fn begin(&self, new: &State) -> Result<(), JournalError> {
        let path = self.path(&new.record.id);
        let text = encode(&path, &everything(new))?;
        match file::append(&path, &text, true) {
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                file::replace(&path, &text)?;
            }
            other => drop(other?),
        }
        self.note(&new.record.id, text.len() as u64);
        self.flusher.mark(&path);
        Ok(())
    }

    /// Writes the differences, if there are any; how long the file is then, for [`tidy`](Self::tidy).
    fn append(&self, old: &State, new: &State) -> Result<u64, JournalError> {
        let path = self.path(&new.record.id);
        let changes = difference(old, new);
        if changes.is_empty() {
            return Ok(0);
        }
        let length = file::append(&path, &encode(&path, &changes)?, false)?;
        self.flusher.mark(&path);
        Ok(length)
    }

    /// Writes a file anew that has grown too long, and removes what belonged to containers that are no more.
    fn tidy(&self, old: &State, new: &State, length: u64) -> Result<(), JournalError> {
        let (id, path) = (&*new.record.id, self.path(&new.record.id));
        if self.too_long(new, length) {
            let text = encode(&path, &everything(new))?;
            file::replace(&path, &text)?;
            self.note(id, text.len() as u64);
            self.flusher.mark(&path);
        }
        // What no entry names any more is also swept by `load`.
        gone(old, new).try_for_each(|container| file::remove_tree(&self.container_dir(id, container)))
    }

    fn too_long(&self, pod: &State, length: u64) -> bool {
        length > SLACK + 3 * self.noted(&pod.record.id)
    }

    /// Forgets a pod and everything of it.
    pub fn forget(&self, pod: &str) -> Result<(), JournalError> {
        let path = self.path(pod);
        file::remove(&path)?;
        self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
        self.flusher.mark(&path);
        file::remove_tree(&self.pods.join(pod))
    }

    /// Reads everything back. Unreadable pods are swept; each, and each unreadable entry, is reported in one line.
    pub fn load(&self) -> Result<(Vec<Loaded>, Vec<String>), JournalError> {
        let (mut pods, mut report) = (Vec::new(), Vec::new());
        let names = file::names(&self.pods)?;
        for (path, id) in names.iter().filter_map(|n| Some((self.pods.join(n), n.strip_suffix(SUFFIX)?))) {
            match load_pod(&path, id, &mut report) {
                Ok(pod) => pods.push(pod),
                Err(error) => {
                    report.push(format!("pod {id}: journal unreadable, swept: {}", chain(&error)));
                    self.forget(id)?;
                }
            }
        }
        for name in names.iter().filter(|name| !name.ends_with(SUFFIX)) {
            let of = pods.iter().find(|pod| *pod.record.id == **name);
            self.sweep(&self.pods.join(name), of)?;
        }
        Ok((pods, report))
    }

    /// Removes directories of containers that are no more; without a pod, all of it. A half written file goes as well.
    fn sweep(&self, path: &Path, pod: Option<&Loaded>) -> Result<(), JournalError> {
        let Some(pod) = pod else {
            return if path.is_dir() { file::remove_tree(path) } else { file::remove(path) };
        };
        let gone = file::names(path)?.into_iter().filter(|id| !pod.containers.contains_key(id));
        gone.map(|id| path.join(id)).try_for_each(|dir| file::remove_tree(&dir))
    }

    fn note(&self, pod: &str, length: u64) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned(), length);
    }

    fn noted(&self, pod: &str) -> u64 {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).get(pod).copied().unwrap_or(0)
    }
}

/// All entries of a state.
fn everything(state: &State) -> Vec<Entry<'_>> {
    let mut entries =
        vec![Entry::Pod(Cow::Borrowed(&*state.record)), Entry::PodStatus(Cow::Borrowed(&state.status))];
    for (id, container) in &state.containers {
        entries.push(Entry::Container(Cow::Borrowed(&*container.record)));
        entries.push(Entry::ContainerStatus(Cow::Borrowed(id), Cow::Borrowed(&container.status)));
    }
    entries
}

/// Entries that lead from one state to the next.
fn difference<'s>(old: &'s State, new: &'s State) -> Vec<Entry<'s>> {
    let mut entries = Vec::new();
    if old.status != new.status {
        entries.push(Entry::PodStatus(Cow::Borrowed(&new.status)));
    }
    for (id, now) in &new.containers {
        let was = old.containers.get(id);
        if was.is_none() {
            entries.push(Entry::Container(Cow::Borrowed(&*now.record)));
        }
        if was.is_none_or(|was| was.status != now.status) {
            entries.push(Entry::ContainerStatus(Cow::Borrowed(id), Cow::Borrowed(&now.status)));
        }
    }
    entries.extend(gone(old, new).map(|id| Entry::ContainerGone(Cow::Borrowed(id))));
    entries
}

/// The containers that are no more.
fn gone<'s>(old: &'s State, new: &'s State) -> impl Iterator<Item = &'s str> {
    old.containers.keys().filter(|id| !new.containers.contains_key(*id)).map(|id| &**id)
}

fn encode(path: &Path, entries: &[Entry<'_>]) -> Result<Vec<u8>, JournalError> {
    let mut text = Vec::new();
    let encoded = entries.iter().try_for_each(|entry| entry.encode(&mut text));
    encoded.map_err(|source| JournalError::Encode { path: path.to_owned(), source })?;
    Ok(text)
}

/// What a pod's entries say in the end. Entries that cannot be read say nothing, and are reported.
fn load_pod(path: &Path, id: &str, report: &mut Vec<String>) -> Result<Loaded, JournalError> {
    let text = file::read(path)?;
    let (mut pod, mut status) = (None, None);
    let (mut records, mut statuses) = (BTreeMap::new(), BTreeMap::new());
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        match Entry::decode(line) {
            Ok(Entry::Pod(record)) => pod = Some(record.into_owned()),
            Ok(Entry::PodStatus(now)) => status = Some(now.into_owned()),
            Ok(Entry::Container(record)) => {
                let record = record.into_owned();
                records.insert(record.id.to_string(), record);
            }
            Ok(Entry::ContainerStatus(id, now)) => {
                statuses.insert(id.into_owned(), now.into_owned());
            }
            Ok(Entry::ContainerGone(id)) => {
                records.remove(&*id);
                statuses.remove(&*id);
            }
            Err(why) => report.push(format!("pod {id}: line {} unreadable, skipped: {why}", number + 1)),
        }
    }
    let damaged =
        |what: &str| JournalError::Damaged { path: path.into(), why: format!("no readable {what}") };
    let record: PodRecord = pod.ok_or_else(|| damaged("record of the pod"))?;
    if *record.id != *id {
        return Err(damaged("record of the pod whose name the file has"));
    }
    let status = status.ok_or_else(|| damaged("status of the pod"))?;
    // A container has both or does not exist: they are written together, before anything is made of it.
    let containers = records.into_iter().filter_map(|(id, record)| {
        let status = statuses.remove(&id)?;
        Some((id, (record, status)))
    });
    Ok(Loaded { record, status, containers: containers.collect() })
}

fn chain(error: &JournalError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl From<JournalError> for crate::Error {
    fn from(error: JournalError) -> Self {
        crate::Error::with(crate::Kind::Internal, "journal", error)
    }
}
