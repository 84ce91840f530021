//! After an update of Berth the supervisors go on as the new program, in place: a fix of theirs does not wait for the pods to end, and
//! the old program's memory goes back to the node.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Mutex, PoisonError};

use super::Native;
use super::birth::words;
use super::supervisor::{Supervisor, blocking};
use crate::error::{Error, Kind};
use crate::exec::Supervisor as _;

/// Whether programs differ from ours, by device and inode: a daemon seals one copy for all supervisors it starts.
#[derive(Debug, Default)]
pub(super) struct Programs(Mutex<HashMap<(u64, u64), bool>>);

impl Programs {
    /// Whether a process runs another program than this one. Blocking: each program is read once.
    fn differs(&self, pid: i32, ours: &OwnedFd) -> io::Result<bool> {
        let (theirs, ours) = (File::open(format!("/proc/{pid}/exe"))?, File::from(ours.try_clone()?));
        let about = theirs.metadata()?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(differs) = known.get(&(about.dev(), about.ino())) {
            return Ok(*differs);
        }
        let differs = about.len() != ours.metadata()?.len() || !same_bytes(&theirs, &ours)?;
        known.insert((about.dev(), about.ino()), differs);
        Ok(differs)
    }
}

/// Compares two files of one length.
fn same_bytes(one: &File, other: &File) -> io::Result<bool> {
    const CHUNK: usize = 256 << 10;
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let length = one.read_at(&mut left, at)?;
        if length == 0 {
            return Ok(true);
        }
        other.read_exact_at(&mut right[..length], at)?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
        at += length as u64;
    }
}

impl Native {
    /// Has a supervisor go on as our program if its own is another one. It serves its pod in any case, so that a failure is no error.
    pub(super) async fn renew(&self, pod: &str, supervisor: &Supervisor) {
        match self.try_renew(pod, supervisor).await {
            Ok(false) => {}
            Ok(true) => tracing::info!(pod, "its supervisor goes on as the new program"),
            Err(e) => tracing::warn!(pod, "its supervisor goes on as the old program: {}", e.chain()),
        }
    }

    async fn try_renew(&self, pod: &str, supervisor: &Supervisor) -> Result<bool, Error> {
        let failed = |e| Error::with(Kind::Internal, "look at the supervisor's program", e);
        let (programs, program, pid) = (self.programs.clone(), self.program.clone(), supervisor.pid());
        if !blocking(move || programs.differs(pid, &program).map_err(failed)).await? {
            return Ok(false);
        }
        let arguments = words(&self.config.arguments, &[pod]).map_err(|e| failed(e.into()))?;
        supervisor.upgrade(self.program.try_clone().map_err(failed)?, &arguments).await?;
        Ok(true)
    }
}
