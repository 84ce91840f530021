//! The journal: what Berth intends and has, on disk before it exists in the kernel.
//!
//! ```text
//! <root>/pods/<pod id>/record.json                      written once, before the first kernel object of the pod
//!                     /status.json                      replaced at every change
//!                     /containers/<id>/record.json      written once, before the container's layer exists
//!                                     /status.json      replaced at every change
//!                                     /volumes/…        image-declared volumes (volume::Local)
//!            /.gone-<id>                                being deleted
//! ```
//!
//! Every file is one [`file`] envelope: format, version, checksum, body. Writing is temporary file, rename. What a change
//! has been told about is true after the daemon dies at any instruction, because rename is atomic and the page cache
//! outlives it. Against power loss the flusher thread syncs files and directories behind the jobs' backs; what it had not
//! reached yet described kernel objects that the power cut removed as well, and a torn file fails its checksum and is
//! swept like no file. So no job waits for the disk.

pub mod file;
mod flush;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::container::{ContainerRecord, ContainerStatus};
use crate::pod::{PodRecord, PodStatus, State};
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
    #[error("encode {}", path.display())]
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

const RECORD: &str = "record.json";
const STATUS: &str = "status.json";

impl Journal {
    /// Opens the journal below `root`, making its directory.
    pub fn open(root: &Path) -> Result<Self, JournalError> {
        let pods = root.join("pods");
        file::make_dir(&pods)?;
        Ok(Self { pods, flusher: Flusher::start() })
    }

    /// Directory of a pod.
    pub fn pod_dir(&self, pod: &str) -> PathBuf {
        self.pods.join(pod)
    }

    /// Directory of a container.
    pub fn container_dir(&self, pod: &str, container: &str) -> PathBuf {
        self.pods.join(pod).join("containers").join(container)
    }

    /// Writes what differs between two states of a pod; `old` is `None` for a new pod.
    pub fn save(&self, old: Option<&State>, new: &State) -> Result<(), JournalError> {
        let dir = self.pod_dir(&new.record.id);
        if old.is_none() {
            file::make_dir(&dir.join("containers"))?;
            file::write(&dir.join(RECORD), "pod.record", &*new.record)?;
        }
        if old.is_none_or(|old| old.status != new.status) {
            file::write(&dir.join(STATUS), "pod.status", &new.status)?;
            self.flusher.mark(&dir);
        }
        for (id, now) in &new.containers {
            let was = old.and_then(|old| old.containers.get(id));
            if was.is_some_and(|was| was.status == now.status) {
                continue;
            }
            let dir = self.container_dir(&new.record.id, id);
            if was.is_none() {
                file::make_dir(&dir)?;
                file::write(&dir.join(RECORD), "container.record", &*now.record)?;
            }
            file::write(&dir.join(STATUS), "container.status", &now.status)?;
            self.flusher.mark(&dir);
        }
        let gone = old.into_iter().flat_map(|old| old.containers.keys());
        for id in gone.filter(|id| !new.containers.contains_key(*id)) {
            self.discard(&self.container_dir(&new.record.id, id))?;
        }
        Ok(())
    }

    /// Forgets a pod and everything below its directory.
    pub fn forget(&self, pod: &str) -> Result<(), JournalError> {
        self.discard(&self.pod_dir(pod))
    }

    /// Reads everything back. Unreadable pods are moved away; each is reported in one line.
    pub fn load(&self) -> Result<(Vec<Loaded>, Vec<String>), JournalError> {
        let (mut pods, mut report) = (Vec::new(), Vec::new());
        for name in file::names(&self.pods)? {
            let dir = self.pods.join(&name);
            if name.starts_with(GONE) {
                file::remove_tree(&dir)?;
                continue;
            }
            match self.load_pod(&dir, &mut report) {
                Ok(pod) => pods.push(pod),
                Err(error) => {
                    report.push(format!("pod {name}: record unreadable, swept: {}", chain(&error)));
                    self.discard(&dir)?;
                }
            }
        }
        Ok((pods, report))
    }

    fn load_pod(&self, dir: &Path, report: &mut Vec<String>) -> Result<Loaded, JournalError> {
        let record: PodRecord = file::read(&dir.join(RECORD), "pod.record")?;
        let status: PodStatus = file::read(&dir.join(STATUS), "pod.status")?;
        let mut containers = BTreeMap::new();
        for id in file::names(&dir.join("containers"))? {
            let dir = dir.join("containers").join(&id);
            if id.starts_with(GONE) {
                file::remove_tree(&dir)?;
                continue;
            }
            let read = file::read(&dir.join(RECORD), "container.record")
                .and_then(|record| Ok((record, file::read(&dir.join(STATUS), "container.status")?)));
            match read {
                Ok(container) => {
                    containers.insert(id, container);
                }
                Err(error) => {
                    report.push(format!("container {id}: record unreadable, swept: {}", chain(&error)));
                    self.discard(&dir)?;
                }
            }
        }
        Ok(Loaded { record, status, containers })
    }

    /// One rename makes it invisible; what follows may be interrupted and is finished by `load`.
    fn discard(&self, dir: &Path) -> Result<(), JournalError> {
        let Some((parent, name)) = dir.parent().zip(dir.file_name()) else { return Ok(()) };
        let gone = parent.join(format!("{GONE}{}", name.to_string_lossy()));
        match std::fs::rename(dir, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => {
                result.map_err(|source| JournalError::Io { call: "rename", path: dir.into(), source })?;
            }
        }
        self.flusher.mark(parent);
        file::remove_tree(&gone)
    }
}

const GONE: &str = ".gone-";

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
