//! Cgroups against the kernel: each test makes cgroups of its own and leaves none.

use super::*;
use crate::api::{CgroupStats, Detail};

/// A path of this test alone.
fn path(name: &str) -> String {
    format!("/berth-unit-{}-{name}", std::process::id())
}

/// Creates, runs, removes, and asserts that nothing is left.
fn with_cgroup(name: &str, resources: &Resources, test: impl FnOnce(&str)) {
    let path = path(name);
    let devices = Rules::Only(Rules::usual());
    let entrance = create(&Wanted::new(&path, resources, &devices)).unwrap();
    assert!(entrance.v2.is_some() || !entrance.tasks.is_empty());
    drop(entrance);
    test(&path);
    remove(&path).unwrap();
    assert!(node().unwrap().all().all(|h| h.open(&path).is_err()), "{path} is left");
}

/// What a file of the controller says.
fn value(path: &str, controller: &str, v1: &str, v2: &str) -> String {
    let node = node().unwrap();
    let (hierarchy, file) = match node.v1(controller) {
        Some(hierarchy) => (hierarchy, v1),
        None => (node.v2.as_ref().unwrap(), v2),
    };
    read(hierarchy.open(path).unwrap(), file).unwrap().trim().to_owned()
}

#[test]
fn limits_are_in_force_and_updates_leave_the_rest() {
    let resources = Resources {
        memory_limit: 64 << 20,
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    with_cgroup("limits", &resources, |path| {
        assert_eq!(value(path, "memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
        update(path, &Resources { memory_limit: 128 << 20, ..Default::default() }, &[], &[]).unwrap();
        assert_eq!(
            value(path, "memory", "memory.limit_in_bytes", "memory.max"),
            (128 << 20).to_string(),
            "up"
        );
        update(path, &Resources { memory_limit: 32 << 20, ..Default::default() }, &[], &[]).unwrap();
        assert_eq!(
            value(path, "memory", "memory.limit_in_bytes", "memory.max"),
            (32 << 20).to_string(),
            "and down"
        );
        assert!(["512", "59"].contains(&&*value(path, "cpu", "cpu.shares", "cpu.weight")));
        assert!(["50000", "50000 100000"].contains(&&*value(path, "cpu", "cpu.cfs_quota_us", "cpu.max")));
    });
}

#[test]
fn a_failed_update_changes_nothing() {
    let resources = Resources { memory_limit: 64 << 20, cpu_shares: 512, ..Default::default() };
    with_cgroup("undo", &resources, |path| {
        let bad =
            Resources { cpu_shares: 1024, memory_limit: 32 << 20, cpu_period: 17, ..Default::default() };
        let error = update(path, &bad, &[], &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
        assert!(error.to_string().contains("17"), "names the value: {error}");
        assert!(["512", "59"].contains(&&*value(path, "cpu", "cpu.shares", "cpu.weight")));
        assert_eq!(value(path, "memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    });
}

#[test]
fn an_impossible_limit_leaves_no_cgroup() {
    let path = path("impossible");
    let resources = Resources { cpuset_cpus: "9999".into(), ..Default::default() };
    let error = create(&Wanted::new(&path, &resources, &Rules::All)).unwrap_err();
    assert!(error.chain().contains("9999"), "{}", error.chain());
    assert!(node().unwrap().all().all(|h| h.open(&path).is_err()));
}

#[test]
fn a_fresh_cgroup_can_be_read() {
    with_cgroup("stats", &Resources { memory_limit: 64 << 20, ..Default::default() }, |path| {
        let mut reader = Reader::open(path, Detail::Metrics).unwrap();
        let first: CgroupStats = reader.read(Detail::Metrics).unwrap();
        assert_eq!(first.memory_limit, Some(64 << 20));
        assert_eq!(first.tasks.map(|t| t.0), Some(0));
        assert!(
            first.cpu.is_some() && first.memory.is_some() && first.memory_failures == Some([0, 0]),
            "{first:?}"
        );
        let short = Reader::open(path, Detail::Statistics).unwrap().read(Detail::Metrics).unwrap();
        assert_eq!(
            (short.detail, short.memory_peak, short.memory_limit),
            (Detail::Statistics, None, Some(64 << 20))
        );
        assert!(first.nano_cores.is_none() && reader.read(Detail::Metrics).unwrap().nano_cores.is_some());
    });
    assert_eq!(Reader::open(&path("never"), Detail::Statistics).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn absent_cgroups_are_removed_already() {
    remove(&path("absent/below")).unwrap();
    kill(&path("absent")).unwrap();
    assert_eq!(
        update(&path("absent"), &Resources { cpu_shares: 2, ..Default::default() }, &[], &[])
            .unwrap_err()
            .kind(),
        Kind::NotFound
    );
}
