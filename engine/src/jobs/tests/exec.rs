//! ExecSync, PullImage.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;

use super::{created, ready_pod, running};
use crate::Kind;
use crate::jobs::{ExecSync, PullImage, exec_sync};
use crate::testing::{Act, Node};

fn exec(container: &str, command: &[&str], timeout: Option<Duration>) -> ExecSync {
    let command = command.iter().map(|arg| (*arg).to_owned()).collect();
    ExecSync { container: container.into(), command, timeout }
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = running(&engine, &pod, "app").await;
    let output = engine.run(exec(&id, &["echo", "hello", "world"], None), None).await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.code), (&b"hello world"[..], 0));
    assert_eq!(engine.run(exec(&id, &["false"], None), None).await.unwrap().code, 1);
    let missing = engine.run(exec(&id, &["nothing"], None), None).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::InvalidArgument);
    assert_eq!(engine.run(exec(&id, &[], None), None).await.unwrap_err().kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn a_timeout_kills_the_command_and_is_told_as_deadline_exceeded() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = running(&engine, &pod, "app").await;
    let late = engine.run(exec(&id, &["sleep"], Some(Duration::from_millis(20))), None).await.unwrap_err();
    assert_eq!(late.kind(), Kind::DeadlineExceeded);
    assert!(!node.world.left().iter().any(|line| line.contains("exec")), "{:?}", node.world.left());
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_command_with_it() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = running(&engine, &pod, "app").await;
    let deadline = Instant::now() + Duration::from_millis(50);
    let late = engine.run(exec(&id, &["sleep"], None), Some(deadline)).await.unwrap_err();
    assert_eq!(late.kind(), Kind::DeadlineExceeded);
    // The job ends by itself; removing the pod waits for nothing else.
    while engine.jobs().iter().any(|job| job.outcome == "running") {
        tokio::task::yield_now().await;
    }
    assert!(!node.world.left().iter().any(|line| line.contains("exec")), "{:?}", node.world.left());
}

#[tokio::test]
async fn output_beyond_the_cap_is_read_and_dropped() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = running(&engine, &pod, "app").await;
    let bytes = (exec_sync::CAP + (1 << 20)).to_string();
    let output = engine.run(exec(&id, &["flood", &bytes], None), None).await.unwrap();
    assert!(output.stdout.len() <= exec_sync::CAP);
}

#[tokio::test]
async fn a_process_left_behind_does_not_hold_the_answer() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = running(&engine, &pod, "app").await;
    let output = engine.run(exec(&id, &["orphan"], None), None).await.unwrap();
    assert_eq!(output.stdout, b"mine");
}

#[tokio::test]
async fn execs_need_a_running_container() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = created(&engine, &pod, "app").await;
    let error = engine.run(exec(&id, &["true"], None), None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    let error = engine.run(exec("absent", &["true"], None), None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test]
async fn an_interactive_exec_hands_over_its_streams_and_its_end() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = running(&engine, &pod, "app").await;
    let command = ["echo".to_owned(), "hello".to_owned()];
    let session = engine.exec(&id, &command, false, false, true, false).await.unwrap();
    let mut text = String::new();
    session.stdout.unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    assert_eq!(session.exit.await.unwrap().code, 0);
    let error = engine.attach(&id, true, false, true, false).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn callers_of_one_image_share_a_pull_and_others_credentials_do_not() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    node.script.on("pull", [Act::Hang, Act::Hang]);
    let pull = |password: Option<&str>| {
        let credentials = password.map(|password| storage::Credentials {
            username: "me".into(),
            password: password.into(),
            ..Default::default()
        });
        let (engine, job) = (engine.clone(), PullImage { image: "example.org/new:1".into(), credentials });
        tokio::spawn(async move { engine.run(job, None).await })
    };
    let first = pull(None);
    node.script.hanging().await;
    let (second, third) = (pull(None), pull(Some("secret")));
    while engine.jobs().len() < 2 {
        tokio::task::yield_now().await;
    }
    node.script.release();
    let ids = [first.await, second.await, third.await].map(|image| image.unwrap().unwrap().id.clone());
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(node.script.take_calls(), ["restore", "pull", "pull"]);
    let late =
        engine.run(PullImage { image: "example.org/late:1".into(), credentials: None }, Some(Instant::now()));
    assert_eq!(late.await.unwrap_err().kind(), Kind::DeadlineExceeded);
}
