//! The flusher: syncs changed journals behind the jobs' backs.
//!
//! It waits for a pause before it syncs. An `fsync` makes the file system commit, and while it commits whoever makes, renames
//! or removes a file in a directory of that commit waits for the disk: 0.5 to 5 ms, several times in each pod start, if each
//! change were synced at once (measured; ext4 with the root file systems of the containers beside the journal). With a pause a
//! burst of pod starts costs one commit after it is over.
//!
//! What a power cut can therefore take back are the changes of the last [`LATEST`] and of the sync under way: pods and
//! containers that ran then are not running any more anyway, and come back as not ready with an earlier state, as Exited with
//! reason `Unknown` instead of their exit code, or not at all; what was removed may be there again, not ready, to be removed
//! again. Layers and images are not concerned: the store syncs them before it shows them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::sys::memory;

/// So long nothing must have changed before a sync begins.
const QUIET: Duration = Duration::from_millis(200);
/// So long after a change its sync begins, quiet or not.
const LATEST: Duration = Duration::from_secs(2);

/// A thread that makes what was written survive a power cut. It ends when the value is dropped, after its last sync.
#[derive(Debug)]
pub(super) struct Flusher {
    marks: Option<mpsc::Sender<PathBuf>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread. Without one (no more threads allowed) nothing but power-loss safety is lost.
    pub(super) fn start() -> Self {
        let (marks, receiver) = mpsc::channel();
        let run = move || while gather(&receiver, QUIET, LATEST).is_some_and(|files| sync(&files)) {};
        let thread = std::thread::Builder::new().name("journal-sync".into()).spawn(run);
        if let Err(error) = &thread {
            tracing::warn!(%error, "no journal flusher: records may be lost in a power cut");
        }
        Self { marks: Some(marks), thread: thread.ok() }
    }

    /// The file, or its entry in its directory, has changed.
    pub(super) fn mark(&self, file: &Path) {
        if let Some(marks) = &self.marks {
            let _ = marks.send(file.to_owned());
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.marks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The files marked until there was a pause; `None` once there can be no more.
fn gather(marks: &mpsc::Receiver<PathBuf>, quiet: Duration, latest: Duration) -> Option<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::from([marks.recv().ok()?]);
    let until = Instant::now() + latest;
    loop {
        let pause = quiet.min(until.saturating_duration_since(Instant::now()));
        match marks.recv_timeout(pause) {
            Ok(file) => drop(files.insert(file)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Some(files),
        }
        // Marks that keep coming must not put the sync off.
        if Instant::now() >= until {
            files.extend(marks.try_iter());
            return Some(files);
        }
    }
}

/// Syncs the files, then the directories that name them. Always true.
fn sync(files: &BTreeSet<PathBuf>) -> bool {
    let directories: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    // All on their way at once: the commit that the first sync waits for then serves the others as well.
    for file in files.iter().filter_map(|path| File::open(path).ok()) {
        let _ = memory::start_writing(file.as_fd());
    }
    for path in files.iter().map(PathBuf::as_path).chain(directories) {
        // Gone meanwhile is fine; a disk that cannot sync is told by the next write as well.
        if let Err(error) = File::open(path).and_then(|file| file.sync_all())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "sync");
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_gather_until_a_pause_or_the_latest_time() {
        let (marks, receiver) = mpsc::channel();
        for name in ["a", "b", "a"] {
            marks.send(name.into()).unwrap();
        }
        let quiet = Duration::from_millis(5);
        let files = gather(&receiver, quiet, Duration::from_secs(60)).unwrap();
        assert_eq!(files, ["a".into(), "b".into()].into());

        // With no time left, what is there is taken and nothing waited for.
        marks.send("c".into()).unwrap();
        let begun = Instant::now();
        assert_eq!(gather(&receiver, Duration::from_secs(60), Duration::ZERO).unwrap().len(), 1);
        assert!(begun.elapsed() < Duration::from_secs(30));

        marks.send("d".into()).unwrap();
        drop(marks);
        assert_eq!(gather(&receiver, quiet, quiet).unwrap().len(), 1);
        assert!(gather(&receiver, quiet, quiet).is_none());
    }
}
