//! The daemon dies at any instruction, or the node does.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;

use super::{created, ended, ready_pod, running};
use crate::Engine;
use crate::api::{ContainerState, PodState};
use crate::jobs::{CreateContainer, RemoveContainer, RemovePod, RunPod, StartContainer, StopPod};
use crate::testing::{Act, Node, container, pod};

/// A daemon: dropping it is `kill -9`, what it was doing stops where it is.
struct Daemon {
    runtime: Option<Runtime>,
    engine: Option<Arc<Engine>>,
}

impl Daemon {
    fn start(node: &Node) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let engine = runtime.block_on(node.engine()).unwrap();
        Self { runtime: Some(runtime), engine: Some(engine) }
    }

    fn engine(&self) -> Arc<Engine> {
        self.engine.clone().unwrap()
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.as_ref().unwrap().spawn(work);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.engine = None;
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// Waits until what was half done is finished: nothing hidden is left.
async fn settled(engine: &Arc<Engine>) {
    for pod in engine.all_pods().iter() {
        let whole = pod.wait(|s| {
            let containers = s.state.containers.values().all(|c| s.containers.contains_key(&c.record.id));
            s.state.status.phase.shown() && containers
        });
        let gone = async {
            while engine.all_pods().iter().any(|other| other.id() == pod.id()) {
                tokio::task::yield_now().await;
            }
        };
        let either = async {
            tokio::select! { _ = whole => {}, () = gone => {} }
        };
        tokio::time::timeout(Duration::from_secs(10), either).await.unwrap();
    }
}

#[test]
fn everything_is_found_again_and_an_exit_meanwhile_has_its_code_and_time() {
    let node = Node::new();
    let first = Daemon::start(&node);
    let engine = first.engine();
    let (pod, kept, ends, made) = first.run(async {
        let pod = ready_pod(&engine, "web").await;
        let (kept, ends) = (running(&engine, &pod, "kept").await, running(&engine, &pod, "ends").await);
        let made = created(&engine, &pod, "made").await;
        (pod, kept, ends, made)
    });
    let before = engine.pod(&pod).unwrap();
    drop(engine);
    drop(first);
    node.world.end(&ends, 42);

    let second = Daemon::start(&node);
    let engine = second.engine();
    second.run(async {
        let after = engine.pod(&pod).unwrap();
        assert_eq!(
            (after.state, &after.ips, after.created_at),
            (PodState::Ready, &before.ips, before.created_at)
        );
        ended(&engine, &ends).await;
        let view = engine.container(&ends).unwrap();
        let exit = view.exit.clone().unwrap();
        assert_eq!((view.state, exit.code, view.reason), (ContainerState::Exited, 42, "Error"));
        assert_eq!(engine.container(&kept).unwrap().state, ContainerState::Running);
        engine.run(StartContainer { container: made }, None).await.unwrap();
        node.world.end(&kept, 0);
        ended(&engine, &kept).await;
        engine.run(RemovePod { pod }, None).await.unwrap();
        assert_eq!(node.left(), Vec::<String>::new());
    });
}

#[test]
fn a_daemon_killed_at_any_step_of_run_pod_leaves_nothing_and_a_retry_succeeds() {
    for step in ["create_namespace", "reserve", "attach", "launch"] {
        for act in [Act::Hang, Act::HangAfter] {
            let node = Node::new();
            let first = Daemon::start(&node);
            let engine = first.engine();
            node.script.on(step, [act]);
            first.spawn(async move {
                let _ = engine.run(RunPod { spec: pod("web") }, None).await;
            });
            first.run(node.script.hanging());
            drop(first);

            let second = Daemon::start(&node);
            let engine = second.engine();
            second.run(async {
                settled(&engine).await;
                assert!(engine.pods().is_empty(), "{act:?} at {step}");
                let id = ready_pod(&engine, "web").await;
                engine.run(RemovePod { pod: id }, None).await.unwrap();
                assert_eq!(node.left(), Vec::<String>::new(), "{act:?} at {step}");
            });
        }
    }
}

#[test]
fn a_daemon_killed_at_any_step_of_create_leaves_nothing() {
    for step in ["prepare", "mount"] {
        for act in [Act::Hang, Act::HangAfter] {
            let node = Node::new();
            let first = Daemon::start(&node);
            let engine = first.engine();
            let pod = first.run(ready_pod(&engine, "web"));
            node.script.on(step, [act]);
            let request = CreateContainer { pod: pod.clone(), spec: container("app") };
            first.spawn(async move {
                let _ = engine.run(request, None).await;
            });
            first.run(node.script.hanging());
            drop(first);

            let second = Daemon::start(&node);
            let engine = second.engine();
            second.run(async {
                settled(&engine).await;
                assert!(engine.containers().is_empty());
                running(&engine, &pod, "app").await;
                engine.run(RemovePod { pod: pod.clone() }, None).await.unwrap();
                assert_eq!(node.left(), Vec::<String>::new(), "{act:?} at {step}");
            });
        }
    }
}

#[test]
fn a_start_whose_fate_was_not_recorded_is_what_the_supervisor_says() {
    for (act, state) in [(Act::Hang, ContainerState::Exited), (Act::HangAfter, ContainerState::Running)] {
        let node = Node::new();
        let first = Daemon::start(&node);
        let engine = first.engine();
        let id = first.run(async {
            let pod = ready_pod(&engine, "web").await;
            created(&engine, &pod, "app").await
        });
        node.script.on("start", [act]);
        let request = StartContainer { container: id.clone() };
        first.spawn(async move {
            let _ = engine.run(request, None).await;
        });
        first.run(node.script.hanging());
        drop(first);

        let second = Daemon::start(&node);
        let engine = second.engine();
        second.run(async {
            let (pod, _) = engine.find_container(&id).unwrap();
            pod.wait(|s| s.containers.values().all(|c| c.state == state)).await;
        });
        let view = engine.container(&id).unwrap();
        if state == ContainerState::Exited {
            assert_eq!((view.reason, view.exit.clone().unwrap().code), ("Unknown", 255));
        }
    }
}

#[test]
fn a_daemon_killed_at_any_step_of_remove_is_finished_by_the_next() {
    for step in ["kill", "shutdown", "detach", "remove_namespace", "remove_cgroup", "release"] {
        let node = Node::new();
        let first = Daemon::start(&node);
        let engine = first.engine();
        let pod = first.run(async {
            let pod = ready_pod(&engine, "web").await;
            running(&engine, &pod, "app").await;
            pod
        });
        node.script.on(step, [Act::HangAfter]);
        let request = RemovePod { pod: pod.clone() };
        first.spawn(async move {
            let _ = engine.run(request, None).await;
        });
        first.run(node.script.hanging());
        drop(first);

        let second = Daemon::start(&node);
        let engine = second.engine();
        second.run(async {
            engine.run(RemovePod { pod }, None).await.unwrap();
            assert_eq!(node.left(), Vec::<String>::new(), "{step}");
        });
    }
}

#[test]
fn after_a_reboot_pods_are_not_ready_containers_have_ended_and_remove_works() {
    let node = Node::new();
    let first = Daemon::start(&node);
    let engine = first.engine();
    let (pod, ran, done) = first.run(async {
        let pod = ready_pod(&engine, "web").await;
        let (ran, done) = (running(&engine, &pod, "ran").await, running(&engine, &pod, "done").await);
        node.world.end(&done, 5);
        ended(&engine, &done).await;
        (pod, ran, done)
    });
    drop(engine);
    drop(first);
    node.reboot();

    let second = Daemon::start(&node);
    let engine = second.engine();
    assert_eq!(engine.pod(&pod).unwrap().state, PodState::NotReady);
    let view = engine.container(&ran).unwrap();
    assert_eq!(
        (view.state, view.reason, view.exit.clone().unwrap().code),
        (ContainerState::Exited, "Unknown", 255)
    );
    let view = engine.container(&done).unwrap();
    assert_eq!((view.reason, view.exit.clone().unwrap().code), ("Error", 5));
    second.run(async {
        engine.run(StopPod { pod: pod.clone() }, None).await.unwrap();
        engine.run(RemoveContainer { container: ran }, None).await.unwrap();
        engine.run(RemovePod { pod }, None).await.unwrap();
        assert_eq!(node.left(), Vec::<String>::new());
        ready_pod(&engine, "web").await;
    });
}

#[test]
fn a_supervisor_killed_under_the_daemon_or_without_it_ends_its_containers_unseen() {
    for daemon_dies_too in [false, true] {
        let node = Node::new();
        let mut daemon = Daemon::start(&node);
        let mut engine = daemon.engine();
        let (pod, seen, unseen) = daemon.run(async {
            let pod = ready_pod(&engine, "web").await;
            (pod.clone(), running(&engine, &pod, "seen").await, running(&engine, &pod, "unseen").await)
        });
        if daemon_dies_too {
            drop(engine);
            drop(daemon);
            node.world.end(&seen, 9);
            node.world.kill_supervisor(&pod);
            daemon = Daemon::start(&node);
            engine = daemon.engine();
        } else {
            node.world.end(&seen, 9);
            node.world.kill_supervisor(&pod);
        }
        daemon.run(async {
            ended(&engine, &seen).await;
            ended(&engine, &unseen).await;
            let seen = engine.container(&seen).unwrap();
            assert_eq!((seen.reason, seen.exit.clone().unwrap().code), ("Error", 9));
            let view = engine.container(&unseen).unwrap();
            assert_eq!((view.reason, view.exit.clone().unwrap().code), ("Unknown", 255));
            assert_eq!(engine.pod(&pod).unwrap().state, PodState::NotReady);
            engine.run(RemovePod { pod }, None).await.unwrap();
            assert_eq!(node.left(), Vec::<String>::new(), "processes left behind are killed by their cgroup");
        });
    }
}

#[test]
fn what_no_record_names_is_swept_at_start() {
    let node = Node::new();
    let first = Daemon::start(&node);
    let engine = first.engine();
    first.run(async {
        let pod = ready_pod(&engine, "web").await;
        running(&engine, &pod, "app").await;
    });
    drop(engine);
    drop(first);
    // The record is torn: power loss in the middle of a write.
    let pods = node.config.root.join("pods");
    let journal = std::fs::read_dir(&pods).unwrap().flatten().next().unwrap().path();
    std::fs::write(journal, "{").unwrap();

    let second = Daemon::start(&node);
    assert!(second.engine().pods().is_empty());
    let left: Vec<String> = node.left().into_iter().filter(|line| !line.starts_with("cgroup")).collect();
    assert_eq!(left, Vec::<String>::new());
}
