//! What tests share: temporary directories, and a node of their own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::CloneFlags;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory that goes away with the value.
#[derive(Debug)]
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("net-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A failed test leaves namespaces mounted; the machine must not keep them.
            for entry in std::fs::read_dir(self.0.join("netns")).into_iter().flatten().flatten() {
                let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
            }
            let _ = std::fs::remove_dir_all(&self.0);
        } else {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }
}

/// Runs a test as the only thing on a node: in a network namespace of its own, on a thread of its own.
pub(crate) fn on_a_node<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
