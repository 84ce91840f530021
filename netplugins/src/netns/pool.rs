//! Fresh namespaces kept ready while pods keep coming.
//!
//! Making a namespace takes most of a millisecond that the next pod need not wait for. A namespace that waits here has
//! neither name nor mount nor marker: it exists by its descriptors alone and ends with the daemon, however that ends. It is
//! given out once and never comes back, so that nothing of one pod can meet another one in it.
//!
//! As many are kept as were taken lately, and none where none was: a thread makes them and ends when nobody asks any more.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Fresh;
use crate::error::Error;

/// How long a demand is remembered, and a namespace kept for it.
const LATELY: Duration = Duration::from_secs(1);
/// A burst is served at the pace of the kernel, whoever makes the namespaces.
const MOST: usize = 8;

/// Makes one.
type Make = fn() -> Result<Fresh, Error>;

/// The namespaces of one daemon that wait for a pod.
#[derive(Debug)]
pub(super) struct Pool {
    make: Make,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<Fresh>,
    /// When namespaces were taken, as far back as counts.
    taken: VecDeque<Instant>,
    /// Whether the thread runs.
    running: bool,
    /// The owner is gone.
    ended: bool,
}

impl Pool {
    pub(super) fn new(make: Make) -> Self {
        Self { make, shared: Arc::default() }
    }

    /// A namespace: one that waits, or a new one.
    pub(super) fn take(&self) -> Result<Fresh, Error> {
        let mut state = self.shared.lock();
        let ready = state.ready.pop();
        state.taken.push_back(Instant::now());
        state.forget();
        // One pod is no demand: what is made ahead for it would most likely be made in vain.
        if state.wanted() > 0 && !state.running {
            let (shared, make) = (Arc::clone(&self.shared), self.make);
            let started =
                std::thread::Builder::new().name("netns-pool".into()).spawn(move || shared.keep(make));
            state.running = started.is_ok();
        }
        drop(state);
        self.shared.changed.notify_one();
        ready.map_or_else(self.make, Ok)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.ready.clear();
        drop(state);
        self.shared.changed.notify_one();
    }
}

impl State {
    fn forget(&mut self) {
        while self.taken.front().is_some_and(|at| at.elapsed() > LATELY) {
            self.taken.pop_front();
        }
        while self.taken.len() > MOST + 1 {
            self.taken.pop_front();
        }
    }

    /// How many should wait.
    fn wanted(&self) -> usize {
        if self.ended { 0 } else { self.taken.len().saturating_sub(1) }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's work, until nobody wants any.
    fn keep(&self, make: Make) {
        let mut state = self.lock();
        loop {
            state.forget();
            let wanted = state.wanted();
            if wanted == 0 {
                state.ready.clear();
                state.running = false;
                return;
            }
            if state.ready.len() < wanted {
                drop(state);
                let made = make();
                state = self.lock();
                match made {
                    Ok(fresh) if !state.ended => state.ready.push(fresh),
                    Ok(_) => {}
                    Err(error) => {
                        // Whoever needs one now makes it and reports what the kernel says.
                        tracing::debug!("no namespace is made ahead: {}", error.chain());
                        state.taken.clear();
                    }
                }
            } else {
                let waited = self.changed.wait_timeout(state, LATELY);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::unshare;

    #[test]
    fn namespaces_are_made_ahead_while_they_are_asked_for_and_none_is_kept_for_long() {
        let pool = Pool::new(unshare);
        let inode = |fresh: &Fresh| rustix::fs::fstat(&fresh.fd).unwrap().st_ino;
        let waiting = || pool.shared.lock().ready.len();
        let first = pool.take().unwrap();
        assert!(!pool.shared.lock().running, "one pod is no demand");
        let second = pool.take().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while waiting() == 0 && Instant::now() < until {
            std::thread::yield_now();
        }
        let third = pool.take().unwrap();
        let own = rustix::fs::stat("/proc/self/ns/net").unwrap().st_ino;
        let all = std::collections::BTreeSet::from([own, inode(&first), inode(&second), inode(&third)]);
        assert_eq!(all.len(), 4, "every one of them is new");
        while pool.shared.lock().running && Instant::now() < until {
            std::thread::yield_now();
        }
        assert_eq!((waiting(), pool.shared.lock().running), (0, false));
    }
}
