//! A unit of work, shaped like a Unix process: arguments, a deadline, steps that can be watched, an end.
//!
//! A job is a struct that is its own arguments. [`Engine::run`] puts it in the table and runs it on a task of its own, so
//! a caller that goes away leaves no half state:
//!
//! ```text
//!            submit                     run returns Ok
//!  caller ───────────▶ running ─────────────────────────▶ ended: ok
//!     │  same identity    │  run returns Err, or a step
//!     └──── joins ────────┤  finds the deadline passed
//!                         ▼
//!                      undoing ── every step, in reverse ─▶ ended: error (what was left is in the pod's record)
//! ```
//!
//! The deadline is the caller's. A caller is answered at its deadline in any case; the job itself notices between two
//! steps, because a step that has begun (a mount, a netlink call) is let finish and is then undone. A retry with the same
//! identity joins the running job and moves the deadline out.

mod table;
#[cfg(test)]
mod tests;
mod undo;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

pub use table::{Durations, Table};
pub use undo::{Left, Undo};

use crate::{Engine, Error, Kind};
use table::Entry;

/// Work the engine can be asked for. The fields of the type are its arguments.
pub trait Job: Debug + Send + Sized + 'static {
    /// Name, that of the RPC where there is one.
    const NAME: &'static str;
    /// It runs in its caller's runtime, where calls are served, and not in turn with the others: for work that hardly computes, and
    /// that somebody waits for to the microsecond.
    const AT_ONCE: bool = false;
    /// What a successful job hands back; shared by all callers that joined.
    type Output: Clone + Send + Sync + 'static;

    /// Two running jobs of one name with equal identities are the same work: the second caller joins the first.
    /// `None`: each call is work of its own.
    fn identity(&self, _engine: &Engine) -> Option<String> {
        None
    }

    /// What it is about, for a person: an id, a name, an image.
    fn subject(&self) -> String;

    /// Does the work. An error makes the table run `cx.undo()`.
    fn run(self, engine: Arc<Engine>, cx: Cx) -> impl Future<Output = Result<Self::Output, Error>> + Send;
}

/// What a job finds around itself.
#[derive(Clone, Debug)]
pub struct Cx {
    entry: Arc<Entry>,
}

impl Cx {
    /// Runs one named, timed step, unless the deadline has passed before it begins.
    pub async fn step<T>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.check(name)?;
        let number = self.entry.step_begins(name);
        let result = work.await;
        self.entry.step_ends(number);
        result
    }

    /// The undo stack; run in reverse when the job fails, dropped when it succeeds.
    pub fn undo(&self) -> &Undo {
        self.entry.undo()
    }

    /// Replaces the subject once the job knows better, say the id it has made.
    pub fn subject(&self, subject: &str) {
        self.entry.set_subject(subject);
    }

    /// Shows how far the job is, for as long as it runs.
    pub fn progress(&self, progress: watch::Receiver<storage::PullProgress>) {
        self.entry.set_progress(progress);
    }

    /// Resolves when nobody can want the result any more: the deadline of the last caller has passed, or all callers have
    /// been away for `abandoned`. For work that may be dropped in the middle: pulls, execs, waits.
    pub async fn ended(&self, abandoned: Option<Duration>) -> Error {
        self.entry.ended(abandoned).await
    }

    /// Fails when the deadline has passed.
    fn check(&self, step: &str) -> Result<(), Error> {
        match self.entry.deadline() {
            Some(deadline) if deadline <= Instant::now() => Err(Error::new(
                Kind::DeadlineExceeded,
                format!("{}: the caller's deadline passed before step \"{step}\"", self.entry.name()),
            )),
            _ => Ok(()),
        }
    }
}
