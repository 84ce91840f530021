//! The 56 metrics that cAdvisor would give and a kubelet with `PodAndContainerStatsFromCRI` asks the runtime for.
//!
//! [`table`] is the list: name, help, labels and the expression for each value. A value the kernel does not give is left
//! out. [`process`] counts what no cgroup counts. Values are whole numbers because the wire type is one: seconds are cut
//! off, as in the other runtimes.

use std::path::Path;

use engine::api::{CgroupStats, ContainerStats, ContainerView, PodStats, PodView};
use netplugins::InterfaceStats;
use storage::Usage;

use crate::proto;

pub mod process;
pub mod table;

#[cfg(test)]
mod tests;

/// Labels of every metric, before its own; their values are cAdvisor's.
pub const BASE_LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Size and use of the file system that holds the writable layers.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileSystem {
    /// Bytes in all.
    pub bytes: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
}

/// What the expressions of a container's metrics see.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// The container.
    pub view: &'a ContainerView,
    /// Its cgroup.
    pub cgroup: &'a CgroupStats,
    /// Its writable layer.
    pub writable: Option<Usage>,
    /// The file system below it.
    pub filesystem: Option<FileSystem>,
    /// Its processes.
    pub processes: Option<process::Counts>,
}

/// A value with the values of the metric's own labels.
pub type Value = (Vec<String>, u64);

/// All descriptors, in the table's order.
pub fn descriptors() -> Vec<proto::MetricDescriptor> {
    let describe = |name: &str, help: &str, labels: &[&str]| proto::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: BASE_LABELS.iter().chain(labels).map(|&l| l.to_owned()).collect(),
    };
    let containers = table::CONTAINER.iter().map(|row| describe(row.name, row.help, row.labels));
    let pods = table::NETWORK.iter().map(|row| describe(row.name, row.help, row.labels));
    containers.chain(pods).collect()
}

/// All metrics of a pod. Blocks: reads procfs and asks the file system.
pub fn collect(stats: &PodStats, layers: &Path) -> proto::PodSandboxMetrics {
    let filesystem = filesystem(layers);
    let container_metrics = stats.containers.iter().map(|c| container(stats, c, filesystem)).collect();
    proto::PodSandboxMetrics {
        pod_sandbox_id: stats.pod.id.clone(),
        metrics: pod(&stats.pod, &stats.network),
        container_metrics,
    }
}

fn container(
    pod: &PodStats,
    stats: &ContainerStats,
    filesystem: Option<FileSystem>,
) -> proto::ContainerMetrics {
    let view = &*stats.container;
    let sample = Container {
        view,
        cgroup: &stats.cgroup,
        writable: stats.writable,
        filesystem,
        processes: process::count(view.pid),
    };
    let image = &view.spec.image;
    let image =
        if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image };
    let base = [&view.spec.name, &view.id, image, &view.id, &pod.pod.spec.namespace, &pod.pod.spec.name];
    let base = base.map(String::clone);
    let metrics = table::CONTAINER.iter().flat_map(|row| {
        let values = (row.values)(&sample).into_iter();
        values.map(|value| metric(row.name, row.kind, &base, value)).collect::<Vec<_>>()
    });
    proto::ContainerMetrics { container_id: view.id.clone(), metrics: metrics.collect() }
}

fn pod(pod: &PodView, network: &[InterfaceStats]) -> Vec<proto::Metric> {
    let none = String::new;
    let base =
        [none(), pod.id.clone(), none(), pod.id.clone(), pod.spec.namespace.clone(), pod.spec.name.clone()];
    let interface = |i: &InterfaceStats| {
        let of = |row: &table::NetworkRow| {
            metric(row.name, proto::MetricType::Counter, &base, (vec![i.name.clone()], (row.value)(i)))
        };
        table::NETWORK.iter().map(of).collect::<Vec<_>>()
    };
    network.iter().flat_map(interface).collect()
}

/// A metric read just now: timestamp 0 says so.
fn metric(name: &str, kind: proto::MetricType, base: &[String; 6], (labels, value): Value) -> proto::Metric {
    proto::Metric {
        name: name.to_owned(),
        timestamp: 0,
        metric_type: kind.into(),
        label_values: base.iter().cloned().chain(labels).collect(),
        value: Some(proto::UInt64Value { value }),
    }
}

fn filesystem(path: &Path) -> Option<FileSystem> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(FileSystem {
        bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}
