//! The job table: what runs, what ran, and who waits for it.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Cx, Job, Undo};
use crate::api::JobView;
use crate::histogram::Histogram;
use crate::{Engine, Error, Kind};

/// Running jobs and the most recent ended ones.
#[derive(Debug)]
pub struct Table {
    rows: Mutex<Rows>,
    keep: usize,
    /// Where jobs run. Callers may wait in another runtime, whose reads then never stand in a queue with jobs.
    runtime: Handle,
}

#[derive(Debug, Default)]
struct Rows {
    next: u64,
    running: BTreeMap<u64, Arc<Entry>>,
    joinable: HashMap<(&'static str, String), Joinable>,
    recent: VecDeque<JobView>,
    durations: Durations,
}

/// How long jobs and their steps took, by the job's name and the step's; the whole job has no step.
pub type Durations = BTreeMap<(&'static str, &'static str), Histogram>;

/// A running job others may join, and where its result will appear (`watch::Receiver<Option<Result<Output, Error>>>`).
#[derive(Debug)]
struct Joinable {
    entry: Arc<Entry>,
    result: Box<dyn Any + Send>,
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Entry {
    id: u64,
    name: &'static str,
    started: Instant,
    started_at: i64,
    subject: Mutex<String>,
    steps: Mutex<Vec<Step>>,
    claim: watch::Sender<Claim>,
    undo: Undo,
    progress: Mutex<Option<watch::Receiver<storage::PullProgress>>>,
}

#[derive(Debug)]
struct Step {
    name: &'static str,
    from: Duration,
    took: Option<Duration>,
}

/// Who still wants the result.
#[derive(Clone, Copy, Debug)]
struct Claim {
    waiters: usize,
    /// `None`: somebody waits for ever.
    deadline: Option<Instant>,
}

/// A caller's hold on a job; dropping it tells the job that one waiter is gone.
struct Ticket<T> {
    entry: Arc<Entry>,
    result: Outcome<T>,
}

type Outcome<T> = watch::Receiver<Option<Result<T, Error>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Table ===

impl Table {
    /// An empty table that keeps `keep` ended jobs, and runs all in this runtime.
    pub fn new(keep: usize, runtime: Handle) -> Self {
        Self { rows: Mutex::default(), keep, runtime }
    }

    /// Starts a job, or joins the running one of the same identity, and waits for its end or the deadline.
    pub async fn run<J: Job>(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        job: J,
        deadline: Option<Instant>,
    ) -> Result<J::Output, Error> {
        if deadline.is_some_and(|d| d <= Instant::now()) {
            return Err(late(J::NAME, &job.subject()));
        }
        if J::AT_ONCE {
            return self.submit(engine, job, deadline).wait(deadline).await;
        }
        // The table is locked where jobs run: who holds it may have lost its processor to a container, and the thread that calls come in by
        // should not wait for that.
        let (table, engine) = (self.clone(), engine.clone());
        let wait = async move { table.submit(&engine, job, deadline).wait(deadline).await };
        let waiting = AbortOnDropHandle::new(self.runtime.spawn(wait.boxed()));
        waiting.await.map_err(|e| Error::with(Kind::Internal, J::NAME, e))?
    }

    /// Running jobs, oldest first, then recent ones, newest first.
    pub fn views(&self) -> Vec<JobView> {
        let rows = lock(&self.rows);
        let running = rows.running.values().map(|entry| entry.view("running".into()));
        running.chain(rows.recent.iter().rev().cloned()).collect()
    }

    /// Where jobs run.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// How long the ended jobs and their steps took.
    pub fn durations(&self) -> Durations {
        lock(&self.rows).durations.clone()
    }

    fn submit<J: Job>(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        job: J,
        deadline: Option<Instant>,
    ) -> Ticket<J::Output> {
        let key = job.identity(engine).map(|identity| (J::NAME, identity));
        let mut rows = lock(&self.rows);
        if let Some(joinable) = key.as_ref().and_then(|key| rows.joinable.get(key))
            && let Some(result) = joinable.result.downcast_ref::<Outcome<J::Output>>()
        {
            joinable.entry.join(deadline);
            return Ticket { entry: joinable.entry.clone(), result: result.clone() };
        }
        rows.next += 1;
        let entry = Arc::new(Entry::new(rows.next, J::NAME, job.subject(), deadline));
        let (sender, result) = watch::channel(None);
        rows.running.insert(entry.id, entry.clone());
        if let Some(key) = &key {
            let joinable = Joinable { entry: entry.clone(), result: Box::new(result.clone()) };
            rows.joinable.insert(key.clone(), joinable);
        }
        drop(rows);
        let job = perform(self.clone(), engine.clone(), job, entry.clone(), key, sender);
        let runtime = if J::AT_ONCE { Handle::current() } else { self.runtime.clone() };
        runtime.spawn(job.boxed());
        Ticket { entry, result }
    }

    fn retire(&self, entry: &Entry, key: Option<&(&'static str, String)>, outcome: String) {
        let mut rows = lock(&self.rows);
        rows.running.remove(&entry.id);
        if let Some(key) = key {
            rows.joinable.remove(key);
        }
        rows.durations.entry((entry.name, "")).or_default().observe(entry.started.elapsed());
        for step in lock(&entry.steps).iter() {
            let took = step.took.unwrap_or_else(|| entry.started.elapsed().saturating_sub(step.from));
            rows.durations.entry((entry.name, step.name)).or_default().observe(took);
        }
        rows.recent.push_back(entry.view(outcome));
        if rows.recent.len() > self.keep {
            rows.recent.pop_front();
        }
    }
}

/// Runs one job to its end: the body of its task.
async fn perform<J: Job>(
    table: Arc<Table>,
    engine: Arc<Engine>,
    job: J,
    entry: Arc<Entry>,
    key: Option<(&'static str, String)>,
    sender: watch::Sender<Option<Result<J::Output, Error>>>,
) {
    let result = job.run(engine, Cx { entry: entry.clone() }).await;
    let outcome = match &result {
        Ok(_) => {
            entry.undo.commit();
            "ok".to_owned()
        }
        Err(error) => {
            for left in entry.undo.run().await {
                tracing::error!(job = entry.id, subject = %entry.subject(), step = left.step,
                    error = %left.error.chain(), "undo failed; the record says what is left");
            }
            error.chain()
        }
    };
    table.retire(&entry, key.as_ref(), outcome);
    sender.send_replace(Some(result));
}

// === impl Entry ===

impl Entry {
    fn new(id: u64, name: &'static str, subject: String, deadline: Option<Instant>) -> Self {
        Self {
            id,
            name,
            started: Instant::now(),
            started_at: crate::exec::nanos(SystemTime::now()),
            subject: Mutex::new(subject),
            steps: Mutex::default(),
            claim: watch::Sender::new(Claim { waiters: 1, deadline }),
            undo: Undo::default(),
            progress: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn undo(&self) -> &Undo {
        &self.undo
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.claim.borrow().deadline
    }

    pub(super) fn set_subject(&self, subject: &str) {
        subject.clone_into(&mut lock(&self.subject));
    }

    pub(super) fn set_progress(&self, progress: watch::Receiver<storage::PullProgress>) {
        *lock(&self.progress) = Some(progress);
    }

    fn subject(&self) -> String {
        lock(&self.subject).clone()
    }

    pub(super) fn step_begins(&self, name: &'static str) -> usize {
        let mut steps = lock(&self.steps);
        steps.push(Step { name, from: self.started.elapsed(), took: None });
        steps.len() - 1
    }

    pub(super) fn step_ends(&self, number: usize) {
        let now = self.started.elapsed();
        if let Some(step) = lock(&self.steps).get_mut(number) {
            step.took = Some(now.saturating_sub(step.from));
        }
    }

    pub(super) async fn ended(&self, abandoned: Option<Duration>) -> Error {
        let mut claims = self.claim.subscribe();
        loop {
            let claim = *claims.borrow_and_update();
            let alone = abandoned.filter(|_| claim.waiters == 0);
            tokio::select! {
                () = until(claim.deadline) => return late(self.name, &self.subject()),
                () = lapse(alone) => {
                    return Error::new(Kind::Cancelled, format!("{} {}: every caller went away", self.name, self.subject()));
                }
                _ = claims.changed() => {}
            }
        }
    }

    /// One more waiter; the latest deadline counts.
    fn join(&self, deadline: Option<Instant>) {
        self.claim.send_modify(|claim| {
            claim.waiters += 1;
            claim.deadline = claim.deadline.zip(deadline).map(|(a, b)| a.max(b));
        });
    }

    fn leave(&self) {
        self.claim.send_modify(|claim| claim.waiters = claim.waiters.saturating_sub(1));
    }

    fn view(&self, outcome: String) -> JobView {
        let took = self.started.elapsed();
        let steps = lock(&self.steps);
        JobView {
            id: self.id,
            name: self.name.to_owned(),
            subject: self.subject(),
            started_at: self.started_at,
            took,
            outcome,
            progress: lock(&self.progress).as_ref().map(|progress| progress.borrow().clone()),
            steps: steps
                .iter()
                .map(|s| (s.name.to_owned(), s.from, s.took.unwrap_or_else(|| took.saturating_sub(s.from))))
                .collect(),
        }
    }
}

// === impl Ticket ===

impl<T: Clone> Ticket<T> {
    async fn wait(mut self, deadline: Option<Instant>) -> Result<T, Error> {
        let entry = self.entry.clone();
        tokio::select! {
            biased;
            end = self.result.wait_for(Option::is_some) => match end.as_deref() {
                Ok(Some(result)) => result.clone(),
                _ => Err(Error::new(Kind::Internal, format!("{} ended without a result", entry.name))),
            },
            () = until(deadline) => Err(late(entry.name, &entry.subject())),
        }
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        self.entry.leave();
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn lapse(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}

fn late(name: &str, subject: &str) -> Error {
    Error::new(Kind::DeadlineExceeded, format!("{name} {subject}: deadline exceeded"))
}
