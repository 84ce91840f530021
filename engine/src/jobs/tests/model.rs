//! Random sequences of jobs, exits, failures and restarts: the invariants hold, and in the end nothing is left.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::api::{ContainerState, PodState};
use crate::jobs::{
    CreateContainer, RemoveContainer, RemovePod, RunPod, StartContainer, StopContainer, StopPod,
};
use crate::testing::{Act, Node, container, pod};
use crate::{Engine, Kind};

/// One thing that happens. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Event {
    Run(u8),
    StopPod(u8),
    RemovePod(u8),
    Create(u8, u8),
    Start(u8),
    Stop(u8),
    Remove(u8),
    Exit(u8, i32),
    LoseSupervisor(u8),
    Fail(usize, bool),
    Restart,
}

const CALLS: [&str; 12] = [
    "create_namespace",
    "reserve",
    "attach",
    "launch",
    "prepare",
    "mount",
    "start",
    "kill",
    "detach",
    "shutdown",
    "release",
    "remove_cgroup",
];

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..3_u8).prop_map(Event::Run),
        1 => any::<u8>().prop_map(Event::StopPod),
        1 => any::<u8>().prop_map(Event::RemovePod),
        4 => (any::<u8>(), 0..3_u8).prop_map(|(pod, name)| Event::Create(pod, name)),
        4 => any::<u8>().prop_map(Event::Start),
        1 => any::<u8>().prop_map(Event::Stop),
        1 => any::<u8>().prop_map(Event::Remove),
        1 => (any::<u8>(), 0..3).prop_map(|(container, code)| Event::Exit(container, code)),
        1 => any::<u8>().prop_map(Event::LoseSupervisor),
        2 => (0..CALLS.len(), any::<bool>()).prop_map(|(call, after)| Event::Fail(call, after)),
        1 => Just(Event::Restart),
    ]
}

fn choose(ids: &[String], number: u8) -> String {
    ids.get(usize::from(number) % ids.len().max(1)).cloned().unwrap_or_else(|| "absent".into())
}

async fn happen(node: &Node, engine: &mut Arc<Engine>, event: Event) {
    let pods: Vec<String> = engine.pods().iter().map(|pod| pod.id.clone()).collect();
    let containers: Vec<String> = engine.containers().iter().map(|c| c.id.clone()).collect();
    let grace = Duration::ZERO;
    let result = match event {
        Event::Run(name) => engine.run(RunPod { spec: pod(&name.to_string()) }, None).await.map(drop),
        Event::StopPod(n) => engine.run(StopPod { pod: choose(&pods, n) }, None).await,
        Event::RemovePod(n) => engine.run(RemovePod { pod: choose(&pods, n) }, None).await,
        Event::Create(n, name) => {
            let spec = container(&name.to_string());
            engine.run(CreateContainer { pod: choose(&pods, n), spec }, None).await.map(drop)
        }
        Event::Start(n) => engine.run(StartContainer { container: choose(&containers, n) }, None).await,
        Event::Stop(n) => engine.run(StopContainer { container: choose(&containers, n), grace }, None).await,
        Event::Remove(n) => engine.run(RemoveContainer { container: choose(&containers, n) }, None).await,
        Event::Exit(n, code) => return node.world.end(&choose(&containers, n), code),
        Event::LoseSupervisor(n) => return node.world.kill_supervisor(&choose(&pods, n)),
        Event::Fail(call, after) => {
            return node.script.on(CALLS[call], [if after { Act::FailAfter } else { Act::Fail }]);
        }
        Event::Restart => {
            node.script.release();
            *engine = node.engine().await.unwrap();
            return;
        }
    };
    if let Err(error) = result {
        let expected = [
            Kind::NotFound,
            Kind::FailedPrecondition,
            Kind::AlreadyExists,
            Kind::Internal,
            Kind::Unavailable,
        ];
        assert!(expected.contains(&error.kind()), "{}", error.chain());
    }
}

/// What must hold between any two events.
fn check(engine: &Engine) {
    for pod in engine.pods() {
        let containers = engine.containers_of(&pod.id);
        for container in &containers {
            assert_eq!(container.pod, pod.id);
            assert_eq!(container.exit.is_some(), container.state == ContainerState::Exited, "{container:?}");
            assert_eq!(
                container.reason.is_empty(),
                container.state != ContainerState::Exited,
                "{container:?}"
            );
            assert!(container.state != ContainerState::Running || container.pid > 0, "{container:?}");
        }
        let mut names: Vec<_> = containers.iter().map(|c| (&c.spec.name, c.spec.attempt)).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), containers.len(), "names are unique in a pod");
        assert!(pod.state != PodState::Ready || pod.ips.len() == 1, "a ready pod has its address");
    }
    let ready: Vec<_> = engine.pods().into_iter().filter(|pod| pod.state == PodState::Ready).collect();
    let mut names: Vec<_> = ready.iter().map(|pod| &pod.spec.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), ready.len(), "one ready pod per identity");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_and_nothing_is_left(events in proptest::collection::vec(event(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = Node::new();
            let mut engine = node.engine().await.unwrap();
            for event in events {
                happen(&node, &mut engine, event).await;
                check(&engine);
            }
            node.script.release();
            for pod in engine.pods() {
                engine.run(RemovePod { pod: pod.id.clone() }, None).await.unwrap();
            }
            for pod in engine.all_pods().iter() {
                // What a restart is still clearing away in the background.
                super::super::teardown::remove(&engine, pod).await.unwrap();
            }
            assert_eq!(node.left(), Vec::<String>::new());
        });
    }
}
