//! The flusher: syncs changed directories of the journal behind the jobs' backs.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

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
        let thread = std::thread::Builder::new().name("journal-sync".into()).spawn(move || run(&receiver));
        if let Err(error) = &thread {
            tracing::warn!(%error, "no journal flusher: records may be lost in a power cut");
        }
        Self { marks: Some(marks), thread: thread.ok() }
    }

    /// The files directly in `dir`, and its entry in its parent, have changed.
    pub(super) fn mark(&self, dir: &Path) {
        if let Some(marks) = &self.marks {
            let _ = marks.send(dir.to_owned());
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

/// Takes all that has gathered while the last round was on the disk: under load one sync serves many changes.
fn run(receiver: &mpsc::Receiver<PathBuf>) {
    while let Ok(first) = receiver.recv() {
        let dirs: BTreeSet<PathBuf> = std::iter::once(first).chain(receiver.try_iter()).collect();
        let parents: BTreeSet<&Path> = dirs.iter().filter_map(|dir| dir.parent()).collect();
        for dir in &dirs {
            sync_files(dir);
        }
        for dir in dirs.iter().map(PathBuf::as_path).chain(parents) {
            sync(dir);
        }
    }
}

fn sync_files(dir: &Path) {
    for name in super::file::names(dir).unwrap_or_default().iter().filter(|name| name.ends_with(".json")) {
        sync(&dir.join(name));
    }
}

/// Gone meanwhile is fine; a disk that cannot sync is told by the next write as well.
fn sync(path: &Path) {
    if let Err(error) = File::open(path).and_then(|file| file.sync_all())
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "sync");
    }
}
