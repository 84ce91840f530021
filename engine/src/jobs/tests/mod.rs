//! Every verb on a node in memory: what is promised, and what is left when a step fails.

mod containers;
mod exec;
mod labels;
mod model;
mod pods;
mod restart;

use std::sync::Arc;
use std::time::Duration;

use crate::Engine;
use crate::jobs::{CreateContainer, RunPod, StartContainer};
use crate::testing::{container, pod};

/// A ready pod.
async fn ready_pod(engine: &Arc<Engine>, name: &str) -> String {
    engine.run(RunPod { spec: pod(name) }, None).await.unwrap()
}

/// A created container.
async fn created(engine: &Arc<Engine>, pod: &str, name: &str) -> String {
    engine.run(CreateContainer { pod: pod.into(), spec: container(name) }, None).await.unwrap()
}

/// A running container.
async fn running(engine: &Arc<Engine>, pod: &str, name: &str) -> String {
    let id = created(engine, pod, name).await;
    engine.run(StartContainer { container: id.clone() }, None).await.unwrap();
    id
}

/// Waits, without polling, until a container has ended.
async fn ended(engine: &Arc<Engine>, id: &str) {
    let (pod, id) = engine.find_container(id).unwrap();
    let end = pod.wait(|s| super::teardown::has_ended(s, &id));
    tokio::time::timeout(Duration::from_secs(10), end).await.unwrap();
}
