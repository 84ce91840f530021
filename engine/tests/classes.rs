//! Classes of resources on the node: what a pod's annotations come down to. Needs root and busybox-static.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests; a skip says why"
)]

mod house;

use std::fs;
use std::path::{Path, PathBuf};

use engine::Kind;
use engine::exec::classes::{BlockioRule, Classes};
use engine::jobs::CreateContainer;
use engine::spec::PodSpec;
use house::*;

/// A block device of the node: its path and number.
fn device() -> Option<(String, String)> {
    let mut all: Vec<_> = fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path()).collect();
    all.sort();
    all.into_iter().find_map(|path| {
        let name = path.file_name()?.to_str()?.to_owned();
        let number = fs::read_to_string(path.join("dev")).ok()?.trim().to_owned();
        let size: u64 = fs::read_to_string(path.join("size")).ok()?.trim().parse().ok()?;
        let device = format!("/dev/{name}");
        (size > 0 && Path::new(&device).exists()).then_some((device, number))
    })
}

/// The file with limits of bytes read, of a container's cgroup.
fn limits(cgroup: &str) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = table
        .lines()
        .filter(|l| l.contains(" - cgroup"))
        .map(|l| PathBuf::from(l.split(' ').nth(4).unwrap()));
    let files = roots.flat_map(|root| {
        let dir = root.join(cgroup.trim_start_matches('/'));
        [dir.join("blkio.throttle.read_bps_device"), dir.join("io.max")]
    });
    files.filter_map(|file| fs::read_to_string(file).ok()).collect()
}

fn asking(mut spec: PodSpec, annotation: &str, class: &str) -> PodSpec {
    spec.annotations.insert(annotation.into(), class.into());
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_of_block_io_is_in_force_and_an_unknown_one_is_refused_by_name() {
    let Some((device, number)) = device() else {
        println!("skip: this node has no block device");
        return;
    };
    let house = House::new();
    let slow = BlockioRule { devices: vec![device], read_bps: Some(1 << 20), ..BlockioRule::default() };
    let engine = house
        .engine_with(|native, _| {
            native.classes = Classes {
                blockio: [("slow".to_owned(), vec![slow])].into(),
                rdt: [("gold".to_owned(), vec!["L3:0=f".to_owned()])].into(),
            };
        })
        .await;
    let asked = asking(house.pod("io"), "blockio.resources.beta.kubernetes.io/container.app", "slow");
    let pod = run_pod(&engine, asked).await;
    let id = start(&engine, &pod, house.shell("app", "while :; do sleep 1; done")).await;
    let limited = limits(&format!("/core-{}/{pod}/{id}", house.name));
    assert!(limited.contains(&number) && limited.contains("1048576"), "{number}: {limited:?}");
    let other = start(&engine, &pod, house.shell("other", "while :; do sleep 1; done")).await;
    assert!(!limits(&format!("/core-{}/{pod}/{other}", house.name)).contains("1048576"), "another container");

    let refused = async |name: &str, annotation: &str, class: &str| {
        let pod = run_pod(&engine, asking(house.pod(name), annotation, class)).await;
        let job = CreateContainer { pod, spec: house.shell("app", "true") };
        engine.run(job, None).await.unwrap_err()
    };
    let unknown = refused("unknown", "blockio.resources.beta.kubernetes.io/pod", "fast").await;
    assert_eq!(unknown.kind(), Kind::InvalidArgument);
    assert!(unknown.chain().contains("\"fast\""), "{}", unknown.chain());
    if !Path::new("/sys/fs/resctrl/schemata").exists() {
        let without = refused("cache", "rdt.resources.beta.kubernetes.io/pod", "gold").await;
        assert_eq!(without.kind(), Kind::FailedPrecondition);
        assert!(without.chain().contains("resctrl"), "{}", without.chain());
    }
    house.close(engine).await;
}
