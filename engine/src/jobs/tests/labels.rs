//! SELinux labels in the records of pods and containers, on a node whose kernel takes every label.

use std::sync::Arc;

use super::{created, ready_pod};
use crate::Engine;
use crate::jobs::{CreateContainer, RemovePod, RunPod};
use crate::selinux::{ContainerLabels, Place, PodLabels};
use crate::spec::SelinuxLabel;
use crate::testing::{Act, Node, container, pod};

/// A node with SELinux.
fn node() -> Node {
    let mut node = Node::new();
    let place = node.config.root.with_file_name("selinux");
    for (path, text) in [
        ("proc/self/attr/current", "system_u:system_r:container_runtime_t:s0\0"),
        ("sys/fs/selinux/enforce", "1"),
        ("sys/fs/selinux/mls", "1"),
        ("sys/fs/selinux/context", ""),
    ] {
        let path = place.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    node.config.selinux = Some(Place(place));
    node
}

fn of_pod(engine: &Engine, id: &str) -> Option<PodLabels> {
    engine.find_pod(id).unwrap().snapshot().state.record.selinux.clone()
}

fn of_container(engine: &Engine, id: &str) -> Option<ContainerLabels> {
    engine.container_state(id).unwrap().1.record.selinux.clone()
}

/// How many levels are taken.
fn levels(engine: &Arc<Engine>) -> usize {
    format!("{:?}", engine.selinux).matches("s0:c").count()
}

#[tokio::test]
async fn the_level_of_a_pod_is_its_containers_outlives_the_daemon_and_is_given_back_with_the_pod() {
    let node = node();
    let engine = node.engine().await.unwrap();
    let (one, two) = (ready_pod(&engine, "one").await, ready_pod(&engine, "two").await);
    let labels = of_pod(&engine, &one).unwrap();
    assert_ne!(Some(&labels), of_pod(&engine, &two).as_ref());
    for name in ["a", "b"] {
        let own = of_container(&engine, &created(&engine, &one, name).await).unwrap();
        assert_eq!((own.process.as_ref(), &own.file), (Some(&labels.process), &labels.file));
    }
    assert_eq!(levels(&engine), 2);
    drop(engine);

    let engine = node.engine().await.unwrap();
    assert_eq!(of_pod(&engine, &one), Some(labels.clone()));
    assert_eq!(levels(&engine), 2);
    let late = of_container(&engine, &created(&engine, &one, "late").await).unwrap();
    assert_eq!(late.process, Some(labels.process));
    engine.run(RemovePod { pod: one }, None).await.unwrap();
    assert_eq!(levels(&engine), 1);
    engine.run(RemovePod { pod: two }, None).await.unwrap();
    assert_eq!(levels(&engine), 0);
}

#[tokio::test]
async fn a_pod_that_comes_to_nothing_keeps_no_level() {
    let node = node();
    let engine = node.engine().await.unwrap();
    for step in ["reserve", "create_namespace", "launch"] {
        node.script.on(step, [Act::Fail]);
        engine.run(RunPod { spec: pod("web") }, None).await.unwrap_err();
        assert_eq!(levels(&engine), 0, "{step}");
    }
    let mut spec = pod("web");
    spec.security.selinux = Some(SelinuxLabel { level: "s0,c4".into(), ..SelinuxLabel::default() });
    let refused = engine.run(RunPod { spec }, None).await.unwrap_err().chain();
    assert!(refused.starts_with("selinux_options.level") && refused.contains("s0,c4"), "{refused}");
    assert_eq!((levels(&engine), node.left()), (0, Vec::new()));
}

#[tokio::test]
async fn a_container_that_asks_for_what_cannot_be_is_refused_and_where_selinux_is_not_used_it_is_not() {
    let bad = SelinuxLabel { kind: "a:b".into(), ..SelinuxLabel::default() };
    let mut spec = container("app");
    spec.security.selinux = Some(bad);
    let mut node = node();
    let engine = node.engine().await.unwrap();
    let id = ready_pod(&engine, "web").await;
    let create = CreateContainer { pod: id.clone(), spec };
    let refused = engine.run(create.clone(), None).await.unwrap_err().chain();
    assert!(refused.starts_with("selinux_options.type") && refused.contains("a:b"), "{refused}");
    assert!(engine.containers().is_empty());
    engine.run(RemovePod { pod: id }, None).await.unwrap();
    drop(engine);

    node.config.selinux = None;
    let engine = node.engine().await.unwrap();
    let id = ready_pod(&engine, "web").await;
    assert_eq!(of_pod(&engine, &id), None);
    let made = engine.run(CreateContainer { pod: id, ..create }, None).await.unwrap();
    assert_eq!(of_container(&engine, &made), None);
}
