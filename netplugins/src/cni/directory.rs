//! The networks that the CNI directory configures: looked at whenever an answer depends on it, decoded when it changed.
//!
//! A look costs some twenty microseconds and cannot miss an event, so that no watcher has to be trusted. While one of the
//! files that count is broken, the last good set stays in use and the file is named.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::{self, Broken, Network};

/// Every network a pod is attached to, in the order of interfaces.
pub(crate) type Networks = Arc<[Network]>;

/// What the directory last said.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// How many files count.
    limit: usize,
    signature: Option<Signature>,
    networks: Option<Networks>,
    broken: Option<Broken>,
}

/// Identity, size and times of every file that counts: it changes whenever one of them does.
type Signature = Vec<(PathBuf, u64, u64, i64, i64)>;

impl Directory {
    pub(super) fn new(path: &Path, limit: usize) -> Self {
        Self { path: path.to_owned(), limit: limit.max(1), signature: None, networks: None, broken: None }
    }

    /// The networks now, and whether they are others than at the last look; `None`: the directory configures none.
    pub(super) fn look(&mut self) -> (Option<Result<Networks, Broken>>, bool) {
        let files = config::files(&self.path).unwrap_or_default();
        let signature = sign(&self.path, &files);
        let mut changed = false;
        if self.signature.as_ref() != Some(&signature) {
            self.signature = Some(signature);
            changed = self.load(&files);
        }
        let answer = match (&self.networks, &self.broken) {
            (Some(networks), _) => Some(Ok(Arc::clone(networks))),
            (None, Some(broken)) => Some(Err(broken.clone())),
            (None, None) => None,
        };
        (answer, changed)
    }

    /// `true`: other networks than before.
    fn load(&mut self, files: &[PathBuf]) -> bool {
        match load(files.get(..self.limit).unwrap_or(files)) {
            Ok(networks) if networks.is_empty() => {
                (self.networks, self.broken) = (None, None);
                true
            }
            Ok(networks) => {
                let changed = self.networks.as_deref() != Some(networks.as_slice());
                for network in networks.iter().filter(|_| changed) {
                    tracing::info!(
                        network = network.name,
                        version = network.version,
                        "network configuration loaded"
                    );
                }
                (self.networks, self.broken) = (Some(networks.into()), None);
                changed
            }
            Err(broken) => {
                tracing::warn!("{broken}");
                self.broken = Some(broken);
                false
            }
        }
    }

    /// What is wrong although pods can be attached.
    pub(super) fn notice(&self) -> Option<String> {
        let broken = self.broken.as_ref().filter(|_| self.networks.is_some())?;
        Some(format!("{broken}; the last good configuration stays in use"))
    }
}

/// Reads these files; two networks of one name would share addresses, cached results and interfaces.
fn load(files: &[PathBuf]) -> Result<Vec<Network>, Broken> {
    let mut networks: Vec<Network> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let network = config::load(file)?;
        if let Some(first) = networks.iter().position(|n| n.name == network.name) {
            let other = files.get(first).map(|f| f.display().to_string()).unwrap_or_default();
            let why = format!("network \"{}\" is configured by {other} already", network.name);
            return Err(Broken { file: files.get(index).cloned().unwrap_or_default(), why });
        }
        networks.push(network);
    }
    Ok(networks)
}

/// Signs the configuration files and those dropped in below.
fn sign(directory: &Path, files: &[PathBuf]) -> Signature {
    let below =
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir());
    let dropped = below.flat_map(|dir| config::files(&dir).unwrap_or_default());
    let mut signature: Signature = files
        .iter()
        .cloned()
        .chain(dropped)
        .filter_map(|file| {
            let meta = std::fs::metadata(&file).ok()?;
            let changed = meta.ctime().checked_mul(1_000_000_000)? + meta.ctime_nsec();
            Some((file, meta.ino(), meta.len(), meta.mtime_nsec(), changed))
        })
        .collect();
    signature.sort();
    signature
}
