//! Containers from creation to removal.

use std::time::{Duration, Instant};

use super::{created, ended, ready_pod, running};
use crate::Kind;
use crate::api::ContainerState;
use crate::jobs::{
    CreateContainer, RemoveContainer, RemoveImage, StartContainer, StopContainer, StopPod,
    UpdateContainerResources,
};
use crate::spec::Resources;
use crate::testing::fakes::IMAGE;
use crate::testing::{Act, Node, container};

#[tokio::test]
async fn a_container_lives_and_its_exit_code_reason_and_time_are_told() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    for (code, reason) in [(0, "Completed"), (7, "Error")] {
        let id = running(&engine, &pod, reason).await;
        let view = engine.container(&id).unwrap();
        assert_eq!((view.state, view.user.uid), (ContainerState::Running, 0));
        assert!(view.started_at >= view.created_at && view.pid > 0);
        node.world.end(&id, code);
        ended(&engine, &id).await;
        let view = engine.container(&id).unwrap();
        let exit = view.exit.clone().unwrap();
        assert_eq!((view.state, exit.code, view.reason, view.pid), (ContainerState::Exited, code, reason, 0));
        assert!(exit.at >= view.started_at);
    }
    let id = running(&engine, &pod, "hungry").await;
    node.world.end_by_oom(&id);
    ended(&engine, &id).await;
    let view = engine.container(&id).unwrap();
    assert_eq!((view.reason, view.exit.clone().unwrap().code), ("OOMKilled", 137));
}

#[tokio::test]
async fn each_step_of_create_that_fails_leaves_nothing_and_a_retry_succeeds() {
    for step in ["prepare", "mount"] {
        for act in [Act::Fail, Act::FailAfter] {
            let node = Node::new();
            let engine = node.engine().await.unwrap();
            let pod = ready_pod(&engine, "web").await;
            let before = node.left();
            node.script.on(step, [act]);
            let request = CreateContainer { pod: pod.clone(), spec: container("app") };
            let error = engine.run(request, None).await.unwrap_err();
            assert!(error.chain().contains(step), "{}", error.chain());
            assert!(engine.containers().is_empty());
            assert_eq!(node.left(), before, "{act:?} at {step}");
            created(&engine, &pod, "app").await;
        }
    }
}

#[tokio::test]
async fn each_step_of_start_that_fails_ends_the_container_with_start_error() {
    for (step, act) in
        [("prepare_volumes", Act::Fail), ("start", Act::Fail), ("prepare_volumes", Act::FailAfter)]
    {
        let node = Node::new();
        let engine = node.engine().await.unwrap();
        let pod = ready_pod(&engine, "web").await;
        let id = created(&engine, &pod, "app").await;
        node.script.on(step, [act]);
        let error = engine.run(StartContainer { container: id.clone() }, None).await.unwrap_err();
        assert!(error.chain().contains(step), "{}", error.chain());
        let view = engine.container(&id).unwrap();
        let code = view.exit.clone().unwrap().code;
        assert_eq!((view.state, view.reason, code), (ContainerState::Exited, "StartError", 128));
        assert!(view.message.contains(step), "{}", view.message);
        assert!(node.world.running().is_empty());
        engine.run(RemoveContainer { container: id }, None).await.unwrap();
        assert!(!node.left().iter().any(|line| line.contains("layer")));
    }
}

#[tokio::test]
async fn a_command_that_is_not_in_the_image_is_named() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let mut spec = container("app");
    spec.command = vec!["/missing".into()];
    let id = engine.run(CreateContainer { pod, spec }, None).await.unwrap();
    engine.run(StartContainer { container: id.clone() }, None).await.unwrap_err();
    assert!(engine.container(&id).unwrap().message.contains("/missing"));
}

#[tokio::test]
async fn an_exit_that_comes_before_the_start_is_recorded_is_kept() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let mut spec = container("app");
    spec.command = vec!["/instant".into()];
    let id = engine.run(CreateContainer { pod, spec }, None).await.unwrap();
    engine.run(StartContainer { container: id.clone() }, None).await.unwrap();
    ended(&engine, &id).await;
    let view = engine.container(&id).unwrap();
    assert_eq!((view.exit.clone().unwrap().code, view.reason), (3, "Error"));
    assert!(view.started_at > 0);
}

#[tokio::test]
async fn a_repeated_create_and_start_change_nothing() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = created(&engine, &pod, "app").await;
    assert_eq!(created(&engine, &pod, "app").await, id);
    for _ in 0..2 {
        engine.run(StartContainer { container: id.clone() }, None).await.unwrap();
    }
    assert_eq!(node.world.running(), std::slice::from_ref(&id));
    node.world.end(&id, 0);
    ended(&engine, &id).await;
    let again = engine.run(StartContainer { container: id }, None).await.unwrap_err();
    assert_eq!(again.kind(), Kind::FailedPrecondition);
}

#[tokio::test]
async fn a_missing_image_pod_user_or_container_is_named() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let mut spec = container("app");
    spec.image.image = "example.org/other:1".into();
    let error = engine.run(CreateContainer { pod: pod.clone(), spec }, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.chain().contains("example.org/other:1"));
    let mut spec = container("app");
    spec.security.user.username = "nobody-here".into();
    let error = engine.run(CreateContainer { pod: pod.clone(), spec }, None).await.unwrap_err();
    assert!(error.chain().contains("nobody-here"), "{}", error.chain());
    assert_eq!(node.left().iter().filter(|line| line.contains("layer")).count(), 0);
    let request = CreateContainer { pod: "absent".into(), spec: container("app") };
    assert_eq!(engine.run(request, None).await.unwrap_err().kind(), Kind::NotFound);
    let error = engine.run(StartContainer { container: "absent".into() }, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test]
async fn the_user_is_looked_up_in_the_image_with_its_groups_and_home() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let mut spec = container("app");
    spec.security.user.username = "app".into();
    let id = engine.run(CreateContainer { pod, spec }, None).await.unwrap();
    let view = engine.container(&id).unwrap();
    assert_eq!((view.user.uid, view.user.gid, view.user.groups.as_slice()), (1000, 1000, &[10, 1000][..]));
    let (_, container) = engine.container_state(&id).unwrap();
    assert!(container.process().env.contains(&b"HOME=/home/app".to_vec()));
}

#[tokio::test]
async fn stop_sends_the_stop_signal_once_and_kills_after_the_shortest_grace() {
    let node = Node::new();
    node.world.be_stubborn();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = running(&engine, &pod, "app").await;
    let stop = |grace| {
        let (engine, container) = (engine.clone(), id.clone());
        tokio::spawn(async move { engine.run(StopContainer { container, grace }, None).await })
    };
    let begin = Instant::now();
    let long = stop(Duration::from_secs(600));
    let short = stop(Duration::from_millis(50));
    short.await.unwrap().unwrap();
    long.await.unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert_eq!(node.world.signals(), [(id.clone(), libc::SIGTERM)]);
    assert_eq!(engine.container(&id).unwrap().exit.clone().unwrap().code, 137);
}

#[tokio::test]
async fn stop_uses_the_requested_signal_and_no_signal_without_grace() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let mut spec = container("app");
    spec.stop_signal = Some(libc::SIGINT);
    let id = engine.run(CreateContainer { pod: pod.clone(), spec }, None).await.unwrap();
    engine.run(StartContainer { container: id.clone() }, None).await.unwrap();
    engine.run(StopContainer { container: id.clone(), grace: Duration::from_secs(600) }, None).await.unwrap();
    assert_eq!(node.world.signals(), [(id.clone(), libc::SIGINT)]);
    assert_eq!(engine.container(&id).unwrap().exit.clone().unwrap().code, 130);

    let id = running(&engine, &pod, "other").await;
    engine.run(StopContainer { container: id.clone(), grace: Duration::ZERO }, None).await.unwrap();
    assert_eq!(node.world.signals().len(), 1);
    assert_eq!(engine.container(&id).unwrap().exit.clone().unwrap().code, 137);
}

#[tokio::test]
async fn stop_and_remove_of_absent_created_or_ended_containers_succeed() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = created(&engine, &pod, "app").await;
    for container in ["absent".to_owned(), id.clone()] {
        engine.run(StopContainer { container, grace: Duration::from_secs(1) }, None).await.unwrap();
    }
    assert_eq!(engine.container(&id).unwrap().state, ContainerState::Created);
    for _ in 0..2 {
        engine.run(RemoveContainer { container: id.clone() }, None).await.unwrap();
    }
    let id = running(&engine, &pod, "app").await;
    engine.run(RemoveContainer { container: id.clone() }, None).await.unwrap();
    assert!(node.world.running().is_empty(), "a running container is killed first");
    assert!(engine.containers().is_empty());
}

#[tokio::test]
async fn a_stopped_pod_takes_no_containers() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let made = created(&engine, &pod, "app").await;
    engine.run(StopPod { pod: pod.clone() }, None).await.unwrap();
    let create = engine.run(CreateContainer { pod, spec: container("late") }, None).await.unwrap_err();
    let start = engine.run(StartContainer { container: made }, None).await.unwrap_err();
    assert_eq!((create.kind(), start.kind()), (Kind::FailedPrecondition, Kind::FailedPrecondition));
}

#[tokio::test]
async fn resources_of_created_and_running_containers_change_and_are_put_back_on_failure() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = created(&engine, &pod, "app").await;
    let update = |cpu_shares| UpdateContainerResources {
        container: id.clone(),
        resources: Resources { cpu_shares, ..Resources::default() },
        annotations: Default::default(),
    };
    engine.run(update(512), None).await.unwrap();
    assert_eq!(engine.container(&id).unwrap().resources.cpu_shares, 512);
    engine.run(StartContainer { container: id.clone() }, None).await.unwrap();
    engine.run(update(256), None).await.unwrap();
    node.script.on("update_cgroup", [Act::FailAfter]);
    engine.run(update(128), None).await.unwrap_err();
    let view = engine.container(&id).unwrap();
    assert_eq!((view.resources.cpu_shares, view.spec.resources.cpu_shares), (256, 256));
    let calls = node.script.take_calls().iter().filter(|call| *call == "update_cgroup").count();
    assert_eq!(calls, 3, "the failed one is undone");
    node.world.end(&id, 0);
    ended(&engine, &id).await;
    assert_eq!(engine.run(update(64), None).await.unwrap_err().kind(), Kind::FailedPrecondition);
}

#[tokio::test]
async fn an_image_in_use_is_not_removed() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = ready_pod(&engine, "web").await;
    let id = created(&engine, &pod, "app").await;
    let remove = || RemoveImage { image: IMAGE.into() };
    assert_eq!(engine.run(remove(), None).await.unwrap_err().kind(), Kind::FailedPrecondition);
    engine.run(RemoveContainer { container: id }, None).await.unwrap();
    engine.run(remove(), None).await.unwrap();
    engine.run(remove(), None).await.unwrap();
}
