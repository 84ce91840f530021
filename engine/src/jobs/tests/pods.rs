//! RunPodSandbox, StopPodSandbox, RemovePodSandbox.

use std::time::{Duration, Instant};

use super::{ready_pod, running};
use crate::Kind;
use crate::api::{Happening, PodState};
use crate::jobs::{RemovePod, RunPod, StopPod, UpdatePodResources, teardown};
use crate::spec::{NamespaceMode, PodSpec, Resources};
use crate::testing::{Act, Node, pod};

/// Calls RunPodSandbox makes to its drivers, in order of the recipe.
const STEPS: [&str; 4] = ["create_namespace", "reserve", "attach", "launch"];

#[tokio::test]
async fn a_pod_runs_stops_and_is_removed_without_leaving_anything() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let id = ready_pod(&engine, "web").await;
    let view = engine.pod(&id).unwrap();
    assert_eq!((view.state, view.ips.len(), view.spec.name.as_str()), (PodState::Ready, 1, "web"));
    let files = engine.state_dir(&id);
    let hosts = std::fs::read_to_string(files.join("hosts")).unwrap();
    assert!(hosts.contains(&format!("{}\tweb", view.ips[0])), "{hosts}");
    assert_eq!(std::fs::read_to_string(files.join("hostname")).unwrap(), "web\n");

    engine.run(StopPod { pod: id.clone() }, None).await.unwrap();
    assert_eq!(engine.pod(&id).unwrap().state, PodState::NotReady);
    assert_eq!(node.world.left(), Vec::<String>::new());
    engine.run(RemovePod { pod: id.clone() }, None).await.unwrap();
    assert_eq!(engine.pod(&id).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn stop_and_remove_of_an_absent_or_stopped_pod_succeed() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    engine.run(StopPod { pod: "absent".into() }, None).await.unwrap();
    engine.run(RemovePod { pod: "absent".into() }, None).await.unwrap();
    let id = ready_pod(&engine, "web").await;
    for _ in 0..2 {
        engine.run(StopPod { pod: id.clone() }, None).await.unwrap();
    }
    for _ in 0..2 {
        engine.run(RemovePod { pod: id.clone() }, None).await.unwrap();
    }
    assert_eq!(node.left(), Vec::<String>::new());
}

/// One thread, and no turn for anybody else between the death and the kill.
#[tokio::test]
async fn a_container_is_killed_although_its_supervisor_died_and_nobody_has_been_told() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let id = ready_pod(&engine, "web").await;
    let (pod, container) = (engine.find_pod(&id).unwrap(), running(&engine, &id, "app").await);
    node.world.kill_supervisor(&id);
    teardown::kill(&engine, &pod, &container).await.unwrap();
    assert_eq!(engine.container(&container).unwrap().exit.clone().unwrap().code, 255);
    engine.run(RemovePod { pod: id }, None).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn each_step_that_fails_leaves_nothing_and_a_retry_succeeds() {
    for step in STEPS {
        for act in [Act::Fail, Act::FailAfter] {
            let node = Node::new();
            let engine = node.engine().await.unwrap();
            node.script.on(step, [act]);
            let error = engine.run(RunPod { spec: pod("web") }, None).await.unwrap_err();
            assert!(error.chain().contains(step), "{step}: {}", error.chain());
            assert_eq!(node.left(), Vec::<String>::new(), "{act:?} at {step}");
            assert!(engine.pods().is_empty(), "{act:?} at {step}");
            ready_pod(&engine, "web").await;
        }
    }
}

#[tokio::test]
async fn a_failed_teardown_is_listed_and_stop_and_remove_finish_it() {
    for (step, undo) in
        [("launch", "detach"), ("launch", "remove_namespace"), ("attach", "detach"), ("launch", "connect")]
    {
        let node = Node::new();
        let engine = node.engine().await.unwrap();
        node.script.on(step, [Act::FailAfter]);
        node.script.on(undo, [Act::Fail]);
        engine.run(RunPod { spec: pod("web") }, None).await.unwrap_err();
        let pods = engine.pods();
        assert_eq!(pods.len(), 1, "{step}, {undo}");
        assert_eq!(pods[0].state, PodState::NotReady);
        engine.run(StopPod { pod: pods[0].id.clone() }, None).await.unwrap();
        assert_eq!(node.world.left(), Vec::<String>::new(), "{step}, {undo}");
        engine.run(RemovePod { pod: pods[0].id.clone() }, None).await.unwrap();
        assert_eq!(node.left(), Vec::<String>::new(), "{step}, {undo}");
    }
}

#[tokio::test]
async fn each_step_of_remove_that_fails_is_finished_by_the_next_call() {
    let steps =
        ["kill", "shutdown", "detach", "remove_namespace", "remove_cgroup", "release", "open_namespace"];
    for step in steps {
        for act in [Act::Fail, Act::FailAfter] {
            let node = Node::new();
            let engine = node.engine().await.unwrap();
            let id = ready_pod(&engine, "web").await;
            running(&engine, &id, "app").await;
            node.script.on(step, [act]);
            engine.run(RemovePod { pod: id.clone() }, None).await.unwrap_err();
            assert_eq!(engine.pod(&id).unwrap().state, PodState::NotReady, "{act:?} at {step}");
            engine.run(RemovePod { pod: id.clone() }, None).await.unwrap();
            assert_eq!(node.left(), Vec::<String>::new(), "{act:?} at {step}");
        }
    }
}

#[tokio::test]
async fn a_repeat_joins_the_running_job_and_later_finds_the_pod() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    node.script.on("attach", [Act::Hang]);
    let first = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run(RunPod { spec: pod("web") }, None).await }
    });
    node.script.hanging().await;
    let second = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run(RunPod { spec: pod("web") }, None).await }
    });
    assert!(engine.pods().is_empty(), "a pod in the making is not shown");
    assert_eq!(engine.jobs().len(), 1, "the second caller has joined");
    node.script.release();
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!(first, second);
    assert_eq!(ready_pod(&engine, "web").await, first);
    assert_eq!(engine.pods().len(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_a_whole_pod() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    node.script.on("attach", [Act::Hang]);
    let caller = tokio::spawn({
        let engine = engine.clone();
        async move { engine.run(RunPod { spec: pod("web") }, None).await }
    });
    node.script.hanging().await;
    caller.abort();
    node.script.release();
    let id = ready_pod(&engine, "web").await;
    assert_eq!(engine.pod(&id).unwrap().state, PodState::Ready);
    assert_eq!(node.script.take_calls().iter().filter(|call| *call == "launch").count(), 1);
}

#[tokio::test]
async fn a_deadline_that_passes_during_a_step_is_answered_in_time_and_the_work_is_undone() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    node.script.on("attach", [Act::Hang]);
    let deadline = Instant::now() + Duration::from_millis(50);
    let error = engine.run(RunPod { spec: pod("web") }, Some(deadline)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let mut events = engine.events();
    node.script.release();
    // Joining waits for the end of the job: it is undone, because its deadline has passed.
    let joined =
        engine.run(RunPod { spec: pod("web") }, Some(Instant::now() + Duration::from_secs(10))).await;
    if joined.is_err() {
        assert_eq!(node.left(), Vec::<String>::new());
        assert!(events.try_recv().is_err(), "nobody was told of a pod");
    }
    ready_pod(&engine, "web").await;
}

#[tokio::test]
async fn a_deadline_already_passed_starts_nothing() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let error = engine.run(RunPod { spec: pod("web") }, Some(Instant::now())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert!(engine.jobs().is_empty());
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_has_no_namespace_and_no_address() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let mut spec = pod("host");
    spec.security.namespaces.network = NamespaceMode::Node;
    let id = engine.run(RunPod { spec }, None).await.unwrap();
    let view = engine.pod(&id).unwrap();
    assert_eq!((view.ips.len(), view.netns.clone()), (0, None));
    let calls = node.script.take_calls();
    assert!(!calls.iter().any(|call| call == "attach" || call == "create_namespace"), "{calls:?}");
    engine.run(RemovePod { pod: id }, None).await.unwrap();
    assert_eq!(node.left(), Vec::<String>::new());
}

#[tokio::test]
async fn ids_may_be_shortened_as_long_as_they_are_unique() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let id = ready_pod(&engine, "one").await;
    assert_eq!(engine.pod(&id[..12]).unwrap().id, id);
    assert_eq!(engine.pod("").unwrap_err().kind(), Kind::InvalidArgument);
    let mut others = Vec::new();
    while others.iter().all(|other: &String| other[..1] != id[..1]) {
        others.push(ready_pod(&engine, &format!("pod{}", others.len())).await);
    }
    assert_eq!(engine.pod(&id[..1]).unwrap_err().kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn an_unknown_handler_is_refused_by_name() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let mut spec = pod("web");
    spec.handler = "kata".into();
    let error = engine.run(RunPod { spec }, None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.chain().contains("\"kata\""), "{}", error.chain());
}

#[tokio::test]
async fn events_carry_the_complete_pod_in_order() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let mut events = engine.events();
    let id = ready_pod(&engine, "web").await;
    let app = running(&engine, &id, "app").await;
    engine.run(RemovePod { pod: id.clone() }, None).await.unwrap();
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert_eq!(event.pod.id, id);
        seen.push((event.subject, event.what));
    }
    use Happening::{Created, Deleted, Started, Stopped};
    let expected = [(&id, Created), (&id, Started), (&app, Created), (&app, Started)];
    let after = [(&id, Stopped), (&app, Stopped), (&app, Deleted), (&id, Deleted)];
    let expected: Vec<_> = expected.into_iter().chain(after).map(|(id, what)| (id.clone(), what)).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn reads_do_not_wait_for_a_stuck_driver() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let id = ready_pod(&engine, "web").await;
    let app = running(&engine, &id, "app").await;
    node.script.on("shutdown", [Act::Hang]);
    node.script.on("attach", [Act::Hang]);
    let stuck = [
        tokio::spawn({
            let (engine, id) = (engine.clone(), id.clone());
            async move { engine.run(StopPod { pod: id }, None).await.map(|()| String::new()) }
        }),
        tokio::spawn({
            let engine = engine.clone();
            async move { engine.run(RunPod { spec: pod("other") }, None).await }
        }),
    ];
    node.script.hanging().await;
    let begin = Instant::now();
    for _ in 0..1000 {
        assert_eq!(engine.pods().len(), 1);
        assert_eq!(engine.container(&app).unwrap().pod, id);
        assert!(engine.readiness().await.runtime.is_ok());
        assert!(engine.jobs().len() >= 2);
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    node.script.release();
    for job in stuck {
        job.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_pods_limits_reach_its_cgroup_whoever_named_it_and_before_any_container_runs() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    for (name, parent) in [("own", ""), ("named", "/kubepods/burstable/pod1")] {
        let spec = PodSpec { cgroup_parent: parent.into(), ..pod(name) };
        let id = engine.run(RunPod { spec }, None).await.unwrap();
        let resize = |cpu_shares, memory_limit| UpdatePodResources {
            pod: id.clone(),
            overhead: None,
            resources: Some(Resources { cpu_shares, memory_limit, ..Resources::default() }),
        };
        engine.run(resize(512, 0), None).await.unwrap();
        engine.run(resize(0, 1 << 30), None).await.unwrap();
        let kept = || engine.pod(&id).unwrap().spec.resources.clone().unwrap();
        assert_eq!((kept().cpu_shares, kept().memory_limit), (512, 1 << 30), "{name}: the later adds up");
        node.script.on("update_pod_cgroup", [Act::Fail]);
        engine.run(resize(2, 0), None).await.unwrap_err();
        assert_eq!(kept().cpu_shares, 512, "{name}");
        let calls = node.script.take_calls().iter().filter(|call| *call == "update_pod_cgroup").count();
        assert_eq!(calls, 3, "{name}");
        engine.run(RemovePod { pod: id }, None).await.unwrap();
    }
}
