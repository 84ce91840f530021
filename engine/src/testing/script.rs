//! What a wrapped driver does at its n-th call: `script.on("attach", [Act::Pass, Act::Fail])`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What happens at one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The call goes through.
    Pass,
    /// The call fails before it does anything.
    Fail,
    /// The call does its work and fails all the same: the worst case for undo.
    FailAfter,
    /// The call hangs until [`Script::release`], then goes through.
    Hang,
    /// The call does its work and hangs before it can tell.
    HangAfter,
}

/// The acts of a set of drivers, by name of the call; calls without an act go through.
#[derive(Clone, Debug, Default)]
pub struct Script {
    stage: Arc<Stage>,
}

#[derive(Debug, Default)]
struct Stage {
    play: Mutex<Play>,
    changed: Condvar,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Play {
    acts: HashMap<String, VecDeque<Act>>,
    calls: Vec<String>,
    hanging: usize,
    released: bool,
}

impl Script {
    /// Sets what the next calls of this name do.
    pub fn on(&self, call: &str, acts: impl IntoIterator<Item = Act>) {
        self.play().acts.insert(call.to_owned(), acts.into_iter().collect());
    }

    /// Forgets all acts that have not been played, and lets hanging calls go.
    pub fn release(&self) {
        let mut play = self.play();
        play.acts.clear();
        play.released = true;
        drop(play);
        self.stage.changed.notify_all();
        self.stage.notify.notify_waiters();
    }

    /// Names of the calls made so far, in order; the list is emptied.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.play().calls)
    }

    /// Waits until a call hangs.
    pub async fn hanging(&self) {
        loop {
            let notified = self.stage.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.play().hanging > 0 {
                return;
            }
            notified.await;
        }
    }

    /// A call begins: its act.
    pub(super) fn enter(&self, call: &str) -> Act {
        let mut play = self.play();
        play.calls.push(call.to_owned());
        play.acts.get_mut(call).and_then(VecDeque::pop_front).unwrap_or(Act::Pass)
    }

    /// Hangs a blocking call.
    pub(super) fn hang(&self) {
        let mut play = self.hang_begins();
        while !play.released {
            play = self.stage.changed.wait(play).unwrap_or_else(PoisonError::into_inner);
        }
        play.hanging -= 1;
    }

    /// Hangs an asynchronous call.
    pub(super) async fn hang_async(&self) {
        drop(self.hang_begins());
        loop {
            let notified = self.stage.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            {
                let mut play = self.play();
                if play.released {
                    play.hanging -= 1;
                    return;
                }
            }
            notified.await;
        }
    }

    fn hang_begins(&self) -> MutexGuard<'_, Play> {
        let mut play = self.play();
        play.released = false;
        play.hanging += 1;
        self.stage.notify.notify_waiters();
        play
    }

    fn play(&self) -> MutexGuard<'_, Play> {
        self.stage.play.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
