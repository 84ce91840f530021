//! Promises of the metrics.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::api::{ContainerState, Detail, PodState, Psi, Rendering};
use engine::exec::ResolvedUser;
use engine::spec::{ContainerSpec, PodSpec};

use super::*;

fn running_container() -> ContainerView {
    let spec = ContainerSpec { name: "app".into(), ..ContainerSpec::default() };
    ContainerView {
        id: "c1".into(),
        pod: "p1".into(),
        resources: spec.resources.clone(),
        spec: Arc::new(spec),
        image_id: "sha256:00".into(),
        image_ref: "sha256:00".into(),
        state: ContainerState::Running,
        created_at: 1,
        started_at: 5_000_000_000,
        exit: None,
        reason: "",
        message: String::new(),
        log_path: "/log".into(),
        user: ResolvedUser::default(),
        stop_signal: 15,
        pid: i32::try_from(std::process::id()).unwrap(),
        rendering: Rendering::default(),
    }
}

/// A reading in which every value is known.
fn complete() -> PodStats {
    let cgroup = CgroupStats {
        detail: Detail::Metrics,
        at: 9_000_000_000,
        cpu: Some([3_000_000_000, 2_000_000_000, 1_000_000_000]),
        nano_cores: Some(7),
        throttling: Some([4, 3, 2_000_000_000]),
        memory: Some([60, 50, 40, 30, 20, 10]),
        memory_limit: Some(100),
        memory_peak: Some(70),
        faults: Some([8, 2]),
        memory_failures: Some([6, 5]),
        swap: Some((11, None)),
        tasks: Some((1, 2, Some(3))),
        io: vec![("8:0".into(), [100, 200, 10, 20])],
        hugetlb: vec![("2MB".into(), 1, 2)],
        psi: [Some(Psi { some_total: 5_000_000_000, full_total: 4_000_000_000, ..Psi::default() }); 3],
    };
    let view = Arc::new(running_container());
    let stats = ContainerStats {
        container: view,
        cgroup: cgroup.clone(),
        writable: Some(Usage { bytes: 12, inodes: 3 }),
        rendering: Rendering::default(),
    };
    let spec = PodSpec { name: "pod".into(), namespace: "default".into(), ..PodSpec::default() };
    let pod = PodView {
        id: "p1".into(),
        spec: Arc::new(spec),
        state: PodState::Ready,
        created_at: 1,
        ips: Vec::new(),
        pid: 1,
        netns: None,
        rendering: Rendering::default(),
    };
    let interface = InterfaceStats { name: "eth0".into(), rx: [1, 2, 3, 4], tx: [5, 6, 7, 8] };
    let (network, containers, rendering) = (vec![interface], vec![Arc::new(stats)], Rendering::default());
    PodStats { pod: Arc::new(pod), cgroup, network, containers, rendering }
}

fn all(metrics: &proto::PodSandboxMetrics) -> Vec<&proto::Metric> {
    metrics.metrics.iter().chain(metrics.container_metrics.iter().flat_map(|c| &c.metrics)).collect()
}

#[test]
fn there_are_56_descriptors_with_different_names() {
    let names: BTreeSet<String> = descriptors().into_iter().map(|d| d.name).collect();
    assert_eq!(names.len(), 56);
    assert_eq!(descriptors().len(), 56);
    assert!(descriptors().iter().all(|d| d.name.starts_with("container_") && !d.help.is_empty()));
}

#[test]
fn every_descriptor_has_a_value_with_all_its_labels() {
    let collected = collect(&complete(), Path::new("/"));
    for descriptor in descriptors() {
        let values: Vec<_> = all(&collected).into_iter().filter(|m| m.name == descriptor.name).collect();
        assert!(!values.is_empty(), "{} has no value", descriptor.name);
        for value in values {
            assert_eq!(value.label_values.len(), descriptor.label_keys.len(), "{}", descriptor.name);
        }
    }
}

#[test]
fn values_are_those_of_the_reading() {
    let collected = collect(&complete(), Path::new("/"));
    let value = |name: &str| -> Vec<u64> {
        let named = all(&collected).into_iter().filter(|m| m.name == format!("container_{name}"));
        named.filter_map(|m| m.value.as_ref()).map(|v| v.value).collect()
    };
    for (name, expected) in [
        ("cpu_usage_seconds_total", vec![3]),
        ("cpu_user_seconds_total", vec![2]),
        ("cpu_system_seconds_total", vec![1]),
        ("cpu_cfs_throttled_seconds_total", vec![2]),
        ("memory_usage_bytes", vec![60]),
        ("memory_working_set_bytes", vec![50]),
        ("memory_kernel_usage", vec![10]),
        ("memory_failures_total", vec![10, 2]),
        ("oom_events_total", vec![5]),
        ("blkio_device_usage_total", vec![100, 200]),
        ("fs_writes_total", vec![20]),
        ("fs_usage_bytes", vec![12]),
        ("pressure_io_waiting_seconds_total", vec![5]),
        ("pressure_io_stalled_seconds_total", vec![4]),
        ("start_time_seconds", vec![5]),
        ("last_seen", vec![9]),
        ("network_receive_packets_dropped_total", vec![4]),
        ("network_transmit_bytes_total", vec![5]),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
}

#[test]
fn what_the_kernel_does_not_say_is_left_out() {
    let mut stats = complete();
    Arc::make_mut(&mut stats.containers[0]).cgroup = CgroupStats::default();
    let collected = collect(&stats, Path::new("/"));
    let named = |name: &str| all(&collected).into_iter().any(|m| m.name == name);
    assert!(!named("container_cpu_usage_seconds_total") && !named("container_memory_rss"));
    assert!(named("container_spec_cpu_shares"), "settings are always known");
}

#[test]
fn descriptors_and_sockets_of_a_process_are_counted() {
    let before = process::count(i32::try_from(std::process::id()).unwrap()).unwrap();
    assert!(before.descriptors > 0 && before.open_files_limit.is_some());
    assert_eq!(process::count(0), None);
    // A child of its own, so that other tests in this process do not move the numbers.
    let mut child =
        std::process::Command::new("sleep").arg("60").stdin(std::process::Stdio::null()).spawn().unwrap();
    let counts = process::count(i32::try_from(child.id()).unwrap()).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(counts.descriptors >= 3, "{counts:?}");
}
