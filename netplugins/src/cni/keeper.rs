//! The background thread of configured networks: asks STATUS, repeats failed DELs, runs GC.
//!
//! It starts with the first configuration, works in the namespace of the thread that started it, and ends with its owner.
//! A change of the configuration's directory wakes it (inotify(7)), so that a new network is asked for STATUS at once and a
//! broken file is told in the log; what is true is still what the next look says.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::Cni;

/// How often the plugins are asked for STATUS.
const STATUS_PERIOD: Duration = Duration::from_secs(5);
/// An editor writes a file in several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// How often a failed DEL is repeated.
const PENDING_PERIOD: Duration = Duration::from_secs(60);
const GC_PERIOD: Duration = Duration::from_secs(3600);

/// Keeps the thread; dropping it waits for the end of what the thread is doing.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// The writing end of a pipe, whose closing ends the thread.
    alive: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn start(cni: &Arc<Cni>) -> Self {
        let started = rustix::pipe::pipe().map_err(io::Error::from).and_then(|(ended, alive)| {
            let cni = Arc::clone(cni);
            let thread = std::thread::Builder::new().name("cni".into()).spawn(move || keep(&cni, &ended))?;
            Ok((alive, thread))
        });
        match started {
            Ok((alive, thread)) => Self { alive: Some(alive), thread: Some(thread) },
            Err(e) => {
                tracing::error!("the thread that watches over CNI plugins cannot be started: {e}");
                Self { alive: None, thread: None }
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that watches over CNI plugins panicked");
        }
    }
}

fn keep(cni: &Cni, ended: &OwnedFd) {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
    let (mut pending, mut gc) = (Instant::now() + PENDING_PERIOD, Instant::now() + GC_PERIOD);
    loop {
        if let Some(events) = &events {
            watch(events, &cni.conf_dir);
        }
        round(cni, &mut pending, &mut gc);
        match wait(ended, events.as_ref(), STATUS_PERIOD) {
            Woken::Ended => return,
            Woken::Changed if matches!(wait(ended, None, SETTLE), Woken::Ended) => return,
            Woken::Changed | Woken::Time => {}
        }
    }
}

/// Watches a directory; again is fine, and what is not there now is watched from the next round on.
fn watch(events: &OwnedFd, directory: &Path) {
    let changes = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    let _ = inotify::add_watch(events, directory, changes);
}

enum Woken {
    Time,
    Changed,
    Ended,
}

fn wait(ended: &OwnedFd, events: Option<&OwnedFd>, limit: Duration) -> Woken {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else { return Woken::Time };
        let mut fds = vec![PollFd::new(ended, PollFlags::IN)];
        fds.extend(events.map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Woken::Time,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => {
                tracing::warn!("the thread that watches over CNI plugins cannot wait: {e}");
                std::thread::sleep(left);
                return Woken::Time;
            }
        }
        if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
            return Woken::Ended;
        }
        // What changed is not looked at: the next round looks at everything.
        let mut buffer = [0; 4096];
        while events.is_some_and(|fd| rustix::io::read(fd, &mut buffer).is_ok_and(|n| n > 0)) {}
        return Woken::Changed;
    }
}

fn round(cni: &Cni, pending: &mut Instant, gc: &mut Instant) {
    let now = Instant::now();
    cni.ask_health();
    if now >= *pending {
        *pending = now + PENDING_PERIOD;
        cni.retry_pending();
    }
    if now >= *gc {
        *gc = now + GC_PERIOD;
        cni.collect();
    }
}
