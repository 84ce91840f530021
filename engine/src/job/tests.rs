//! The table: steps, deadlines, undo, joining.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Cx, Job};
use crate::testing::Node;
use crate::{Engine, Error, Kind};

type Log = Arc<Mutex<Vec<&'static str>>>;

/// Does one step, waits to be let go, does another, and fails if told so.
#[derive(Clone, Debug)]
struct Work {
    log: Log,
    go: Arc<Notify>,
    identity: Option<&'static str>,
    fail: bool,
    broken_undo: bool,
}

impl Work {
    fn new() -> Self {
        Self {
            log: Log::default(),
            go: Arc::new(Notify::new()),
            identity: None,
            fail: false,
            broken_undo: false,
        }
    }

    fn log(&self) -> Vec<&'static str> {
        self.log.lock().unwrap().clone()
    }

    fn note(&self, what: &'static str) {
        self.log.lock().unwrap().push(what);
    }
}

impl Job for Work {
    const NAME: &'static str = "Work";
    type Output = usize;

    fn identity(&self, _: &Engine) -> Option<String> {
        self.identity.map(str::to_owned)
    }

    fn subject(&self) -> String {
        "thing".into()
    }

    async fn run(self, _: Arc<Engine>, cx: Cx) -> Result<usize, Error> {
        for name in ["undo first", "undo second"] {
            let job = self.clone();
            cx.undo().push(name, async move {
                job.note(name);
                if job.broken_undo { Err(Error::new(Kind::Internal, "broken")) } else { Ok(()) }
            });
        }
        cx.step("wait", async {
            self.note("begin");
            self.go.notified().await;
            Ok(())
        })
        .await?;
        let fail = self.fail;
        cx.step("end", async move { if fail { Err(Error::invalid("field", "no")) } else { Ok(()) } }).await?;
        self.note("end");
        Ok(7)
    }
}

fn submit(
    engine: &Arc<Engine>,
    job: &Work,
    deadline: Option<Instant>,
) -> tokio::task::JoinHandle<Result<usize, Error>> {
    let (engine, job) = (engine.clone(), job.clone());
    tokio::spawn(async move { engine.run(job, deadline).await })
}

#[tokio::test]
async fn steps_are_timed_and_the_end_is_shown() {
    let engine = Node::new().engine().await.unwrap();
    let job = Work::new();
    job.go.notify_one();
    assert_eq!(engine.run(job, None).await.unwrap(), 7);
    let view = engine.jobs().remove(0);
    assert_eq!((view.name.as_str(), view.subject.as_str(), view.outcome.as_str()), ("Work", "thing", "ok"));
    let names: Vec<&str> = view.steps.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["wait", "end"]);
    let (_, from, took) = &view.steps[1];
    assert!(*from >= view.steps[0].2 && *from + *took <= view.took);
}

#[tokio::test]
async fn a_failure_goes_all_the_way_back_even_if_undo_fails() {
    for broken_undo in [false, true] {
        let engine = Node::new().engine().await.unwrap();
        let job = Work { fail: true, broken_undo, ..Work::new() };
        job.go.notify_one();
        let error = engine.run(job.clone(), None).await.unwrap_err();
        assert_eq!((error.kind(), error.chain().as_str()), (Kind::InvalidArgument, "field: no"));
        assert_eq!(job.log(), ["begin", "undo second", "undo first"]);
        assert_eq!(engine.jobs()[0].outcome, "field: no");
    }
}

#[tokio::test]
async fn the_same_identity_joins_and_another_does_not() {
    let engine = Node::new().engine().await.unwrap();
    let job = Work { identity: Some("a"), ..Work::new() };
    let other = Work { identity: Some("b"), ..Work::new() };
    let callers = [submit(&engine, &job, None), submit(&engine, &job, None), submit(&engine, &other, None)];
    while engine.jobs().len() < 2 {
        tokio::task::yield_now().await;
    }
    job.go.notify_one();
    other.go.notify_one();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), 7);
    }
    assert_eq!(job.log().iter().filter(|entry| **entry == "begin").count(), 1);
    assert_eq!(engine.jobs().len(), 2);
}

#[tokio::test]
async fn the_caller_is_answered_at_its_deadline_and_the_job_is_undone_at_its_next_step() {
    let engine = Node::new().engine().await.unwrap();
    let job = Work::new();
    let deadline = Instant::now() + Duration::from_millis(20);
    let error = engine.run(job.clone(), Some(deadline)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(engine.jobs()[0].outcome, "running");
    while Instant::now() <= deadline {
        std::thread::yield_now();
    }
    job.go.notify_one();
    while engine.jobs()[0].outcome == "running" {
        tokio::task::yield_now().await;
    }
    assert_eq!(job.log(), ["begin", "undo second", "undo first"]);
    assert!(engine.jobs()[0].outcome.contains("\"end\""), "{}", engine.jobs()[0].outcome);
}

#[tokio::test]
async fn a_joiner_moves_the_deadline_out() {
    let engine = Node::new().engine().await.unwrap();
    let job = Work { identity: Some("a"), ..Work::new() };
    let early = Instant::now() + Duration::from_millis(20);
    let first = submit(&engine, &job, Some(early));
    while job.log().is_empty() {
        tokio::task::yield_now().await;
    }
    let second = submit(&engine, &job, None);
    assert_eq!(first.await.unwrap().unwrap_err().kind(), Kind::DeadlineExceeded);
    job.go.notify_one();
    assert_eq!(second.await.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_the_job() {
    let engine = Node::new().engine().await.unwrap();
    let job = Work::new();
    let caller = submit(&engine, &job, None);
    while job.log().is_empty() {
        tokio::task::yield_now().await;
    }
    caller.abort();
    let _ = caller.await;
    job.go.notify_one();
    while engine.jobs()[0].outcome == "running" {
        tokio::task::yield_now().await;
    }
    assert_eq!(job.log(), ["begin", "end"]);
}

#[tokio::test]
async fn only_so_many_ended_jobs_are_kept() {
    let mut node = Node::new();
    node.config.recent_jobs = 3;
    let engine = node.engine().await.unwrap();
    for _ in 0..5 {
        let job = Work::new();
        job.go.notify_one();
        engine.run(job, None).await.unwrap();
    }
    let ids: Vec<u64> = engine.jobs().iter().map(|job| job.id).collect();
    assert_eq!(ids, [5, 4, 3], "newest first");
}
