//! Lists of statistics on a node in memory, whose network may hang.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::Engine;
use crate::api::{Detail, PodStats};
use crate::jobs::{CreateContainer, RunPod, StartContainer};
use crate::testing::{Act, Node, container, pod};

/// A ready pod with a running container.
async fn running(engine: &Arc<Engine>, name: &str) -> String {
    let pod = engine.run(RunPod { spec: pod(name) }, None).await.unwrap();
    let create = CreateContainer { pod: pod.clone(), spec: container("c") };
    let container = engine.run(create, None).await.unwrap();
    engine.run(StartContainer { container }, None).await.unwrap();
    pod
}

/// Asks again and again until the answer is as wanted.
async fn asked_until(engine: &Arc<Engine>, wanted: impl Fn(&[Arc<PodStats>]) -> bool) {
    let ask = async {
        while !wanted(&engine.all_pod_stats(Detail::Statistics).await) {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), ask).await.unwrap();
}

fn of<'a>(all: &'a [Arc<PodStats>], pod: &str) -> &'a PodStats {
    all.iter().find(|stats| stats.pod.id == pod).unwrap()
}

#[tokio::test]
async fn lists_that_are_read_ahead_do_not_wait_for_a_reading_that_hangs() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let old = running(&engine, "old").await;
    asked_until(&engine, |_| engine.meter.called(Detail::Statistics)).await;
    node.script.on("stats", [Act::Hang; 100]);
    let new = running(&engine, "new").await;
    node.script.hanging().await;
    for _ in 0..3 {
        let all = timeout(Duration::from_secs(1), engine.all_pod_stats(Detail::Statistics)).await.unwrap();
        assert_eq!(of(&all, &old).network.len(), 1, "the last reading");
        assert_eq!((of(&all, &new).network.len(), of(&all, &new).containers.len()), (0, 1), "no reading yet");
        let all = timeout(Duration::from_secs(1), engine.all_container_stats()).await.unwrap();
        assert_eq!(all.len(), 2);
    }
    node.script.release();
    asked_until(&engine, |all| of(all, &new).network.len() == 1).await;
}

#[tokio::test]
async fn a_list_that_nobody_expected_waits_for_its_readings() {
    let node = Node::new();
    let engine = node.engine().await.unwrap();
    let pod = running(&engine, "p").await;
    node.script.on("stats", [Act::Hang]);
    let released = async {
        node.script.hanging().await;
        node.script.release();
    };
    let (all, ()) = tokio::join!(engine.all_pod_stats(Detail::Statistics), released);
    assert_eq!(of(&all, &pod).network.len(), 1);
}
