//! Statistics on the wire. What the kernel does not say is absent, never 0.

use std::path::Path;
use std::sync::Arc;

use engine::api::{CgroupStats, ContainerStats, PodStats, Psi, Reading};
use netplugins::InterfaceStats;
use prost::Message;
use storage::Usage;

use super::view;
use crate::proto;

/// A number that is known.
fn known(value: u64) -> Option<proto::UInt64Value> {
    Some(proto::UInt64Value { value })
}

/// Use of a file system, found by its mount point.
pub fn filesystem(at: i64, mountpoint: &Path, usage: Usage) -> proto::FilesystemUsage {
    let mountpoint = mountpoint.to_string_lossy().into_owned();
    proto::FilesystemUsage {
        timestamp: at,
        fs_id: Some(proto::FilesystemIdentifier { mountpoint }),
        used_bytes: known(usage.bytes),
        inodes_used: known(usage.inodes),
    }
}

/// Statistics of a container; `mountpoint` is where writable layers live.
pub fn container(stats: &ContainerStats, mountpoint: &Path) -> proto::ContainerStats {
    let (c, cgroup) = (&stats.container, &stats.cgroup);
    proto::ContainerStats {
        attributes: Some(proto::ContainerAttributes {
            id: c.id.clone(),
            metadata: Some(view::container_metadata(c)),
            labels: c.spec.labels.clone(),
            annotations: c.spec.annotations.clone(),
        }),
        cpu: cpu(cgroup),
        memory: memory(cgroup),
        writable_layer: stats.writable.map(|usage| filesystem(cgroup.at, mountpoint, usage)),
        swap: swap(cgroup),
        io: io(cgroup),
    }
}

/// Statistics of a pod and its running containers.
pub fn pod(stats: &PodStats, mountpoint: &Path) -> proto::PodSandboxStats {
    let (pod, cgroup) = (&stats.pod, &stats.cgroup);
    let processes = cgroup.tasks.map(|(processes, _, _)| proto::ProcessUsage {
        timestamp: cgroup.at,
        process_count: known(processes),
    });
    proto::PodSandboxStats {
        attributes: Some(proto::PodSandboxAttributes {
            id: pod.id.clone(),
            metadata: Some(view::pod_metadata(pod)),
            labels: pod.spec.labels.clone(),
            annotations: pod.spec.annotations.clone(),
        }),
        linux: Some(proto::LinuxPodSandboxStats {
            cpu: cpu(cgroup),
            memory: memory(cgroup),
            network: network(cgroup.at, &stats.network),
            process: processes,
            containers: stats.containers.iter().map(|c| container(c, mountpoint)).collect(),
            io: io(cgroup),
        }),
        windows: None,
    }
}

/// Statistics of a container on the wire.
pub fn listed_container(stats: &ContainerStats, mountpoint: &Path) -> Arc<[u8]> {
    stats.rendering.made(|| container(stats, mountpoint).encode_to_vec()).clone()
}

/// Statistics of a pod on the wire.
pub fn listed_pod(stats: &PodStats, mountpoint: &Path) -> Arc<[u8]> {
    stats.rendering.made(|| pod(stats, mountpoint).encode_to_vec()).clone()
}

/// Encodes a reading ahead of the lists that will hold it.
pub fn encode(reading: Reading<'_>, mountpoint: &Path) {
    match reading {
        Reading::Container(stats) => drop(listed_container(stats, mountpoint)),
        Reading::Pod(stats) => drop(listed_pod(stats, mountpoint)),
    }
}

fn cpu(c: &CgroupStats) -> Option<proto::CpuUsage> {
    let [usage, _, _] = c.cpu?;
    Some(proto::CpuUsage {
        timestamp: c.at,
        usage_core_nano_seconds: known(usage),
        usage_nano_cores: c.nano_cores.and_then(known),
        psi: psi(c.psi[0]),
    })
}

fn memory(c: &CgroupStats) -> Option<proto::MemoryUsage> {
    let [usage, working_set, rss, ..] = c.memory?;
    Some(proto::MemoryUsage {
        timestamp: c.at,
        working_set_bytes: known(working_set),
        // Without a limit nothing is "available to the container" (the node's memory is everybody's).
        available_bytes: c.memory_limit.and_then(|limit| known(limit.saturating_sub(working_set))),
        usage_bytes: known(usage),
        rss_bytes: known(rss),
        page_faults: c.faults.and_then(|[minor, major]| known(minor + major)),
        major_page_faults: c.faults.and_then(|[_, major]| known(major)),
        psi: psi(c.psi[1]),
    })
}

fn swap(c: &CgroupStats) -> Option<proto::SwapUsage> {
    let (used, limit) = c.swap?;
    Some(proto::SwapUsage {
        timestamp: c.at,
        swap_available_bytes: limit.and_then(|limit| known(limit.saturating_sub(used))),
        swap_usage_bytes: known(used),
    })
}

fn io(c: &CgroupStats) -> Option<proto::IoUsage> {
    let psi = Some(psi(c.psi[2])?);
    Some(proto::IoUsage { timestamp: c.at, psi })
}

fn psi(psi: Option<Psi>) -> Option<proto::PsiStats> {
    let psi = psi?;
    let data = |total, [avg10, avg60, avg300]: [f64; 3]| proto::PsiData { total, avg10, avg60, avg300 };
    Some(proto::PsiStats {
        full: Some(data(psi.full_total, psi.full)),
        some: Some(data(psi.some_total, psi.some)),
    })
}

/// The default interface, then the others.
fn network(at: i64, interfaces: &[InterfaceStats]) -> Option<proto::NetworkUsage> {
    let usage = |i: &InterfaceStats| proto::NetworkInterfaceUsage {
        name: i.name.clone(),
        rx_bytes: known(i.rx[0]),
        rx_errors: known(i.rx[2]),
        tx_bytes: known(i.tx[0]),
        tx_errors: known(i.tx[2]),
    };
    let (default, others) = interfaces.split_first()?;
    Some(proto::NetworkUsage {
        timestamp: at,
        default_interface: Some(usage(default)),
        interfaces: others.iter().map(usage).collect(),
    })
}
