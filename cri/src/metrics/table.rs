//! The table of metrics.

use netplugins::InterfaceStats;

use super::{Container, Value};
use crate::proto::MetricType::{self, Counter, Gauge};

/// A metric of containers.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name.
    pub name: &'static str,
    /// One line for a person.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: MetricType,
    /// Its own labels, after the common ones.
    pub labels: &'static [&'static str],
    /// Its values; none where the kernel does not say.
    pub values: fn(&Container<'_>) -> Vec<Value>,
}

/// A metric of a pod's network interfaces.
#[derive(Clone, Copy, Debug)]
pub struct NetworkRow {
    /// Name.
    pub name: &'static str,
    /// One line for a person.
    pub help: &'static str,
    /// Its own labels.
    pub labels: &'static [&'static str],
    /// Its value.
    pub value: fn(&InterfaceStats) -> u64,
}

const SECOND: u64 = 1_000_000_000;

fn one(value: Option<u64>) -> Vec<Value> {
    value.map(|v| (Vec::new(), v)).into_iter().collect()
}

fn labelled(label: &str, value: Option<u64>) -> Vec<Value> {
    value.map(|v| (vec![label.to_owned()], v)).into_iter().collect()
}

/// A limit or setting; unset is 0, as cAdvisor has it.
fn setting(value: i64) -> Vec<Value> {
    one(Some(u64::try_from(value).unwrap_or(0)))
}

fn nanos_to_seconds(nanos: i64) -> Option<u64> {
    u64::try_from(nanos).ok().filter(|n| *n > 0).map(|n| n / SECOND)
}

/// One value per block device: bytes read, written, operations read, written.
fn per_device(c: &Container<'_>, which: usize) -> Vec<Value> {
    c.cgroup.io.iter().map(|(device, n)| (vec![device.clone()], n[which])).collect()
}

fn blkio(c: &Container<'_>) -> Vec<Value> {
    let device = |(device, n): &(String, [u64; 4])| {
        let (major, minor) = device.split_once(':').unwrap_or((device, ""));
        let of = |operation: &str, value| {
            let labels = [device.as_str(), major, minor, operation];
            (labels.map(str::to_owned).to_vec(), value)
        };
        [of("Read", n[0]), of("Write", n[1])]
    };
    c.cgroup.io.iter().flat_map(device).collect()
}

fn faults(c: &Container<'_>) -> Vec<Value> {
    let of = |kind: &str, value| (vec![kind.to_owned(), "container".to_owned()], value);
    let both = |[minor, major]: [u64; 2]| vec![of("pgfault", minor + major), of("pgmajfault", major)];
    c.cgroup.faults.map(both).unwrap_or_default()
}

fn memory(c: &Container<'_>, which: usize) -> Vec<Value> {
    one(c.cgroup.memory.map(|m| m[which]))
}

fn cpu(c: &Container<'_>, which: usize) -> Option<u64> {
    c.cgroup.cpu.map(|n| n[which] / SECOND)
}

/// Pressure: `some` is waiting, `full` is stalled.
fn waiting(c: &Container<'_>, which: usize) -> Vec<Value> {
    one(c.cgroup.psi[which].map(|p| p.some_total / SECOND))
}

fn stalled(c: &Container<'_>, which: usize) -> Vec<Value> {
    one(c.cgroup.psi[which].map(|p| p.full_total / SECOND))
}

/// Memory that the container is sure to keep: `memory.low` of the raw keys, as the kubelet's memory QoS sets it.
fn reservation(c: &Container<'_>) -> Vec<Value> {
    one(Some(c.view.resources.unified.get("memory.low").and_then(|v| v.parse().ok()).unwrap_or(0)))
}

const fn row(
    name: &'static str,
    kind: MetricType,
    help: &'static str,
    labels: &'static [&'static str],
    values: fn(&Container<'_>) -> Vec<Value>,
) -> Row {
    Row { name, help, kind, labels, values }
}

/// Metrics of containers.
#[rustfmt::skip]
pub const CONTAINER: &[Row] = &[
    row("container_blkio_device_usage_total", Counter, "Bytes read and written per block device.", &["device", "major", "minor", "operation"], blkio),
    row("container_cpu_cfs_periods_total", Counter, "Enforcement periods of the CPU quota.", &[], |c| one(c.cgroup.throttling.map(|t| t[0]))),
    row("container_cpu_cfs_throttled_periods_total", Counter, "Periods in which the container was throttled.", &[], |c| one(c.cgroup.throttling.map(|t| t[1]))),
    row("container_cpu_cfs_throttled_seconds_total", Counter, "Time the container was throttled.", &[], |c| one(c.cgroup.throttling.map(|t| t[2] / SECOND))),
    row("container_cpu_system_seconds_total", Counter, "CPU time in the kernel.", &[], |c| one(cpu(c, 2))),
    row("container_cpu_usage_seconds_total", Counter, "CPU time.", &["cpu"], |c| labelled("total", cpu(c, 0))),
    row("container_cpu_user_seconds_total", Counter, "CPU time in user mode.", &[], |c| one(cpu(c, 1))),
    row("container_file_descriptors", Gauge, "Open file descriptors.", &[], |c| one(c.processes.map(|p| p.descriptors))),
    row("container_fs_inodes_free", Gauge, "Free inodes of the file system of the writable layer.", &["device"], |c| labelled("", c.filesystem.map(|f| f.inodes_free))),
    row("container_fs_inodes_total", Gauge, "Inodes of the file system of the writable layer.", &["device"], |c| labelled("", c.filesystem.map(|f| f.inodes))),
    row("container_fs_limit_bytes", Gauge, "Size of the file system of the writable layer.", &["device"], |c| labelled("", c.filesystem.map(|f| f.bytes))),
    row("container_fs_reads_bytes_total", Counter, "Bytes read per block device.", &["device"], |c| per_device(c, 0)),
    row("container_fs_reads_total", Counter, "Reads per block device.", &["device"], |c| per_device(c, 2)),
    row("container_fs_usage_bytes", Gauge, "Bytes of the writable layer.", &["device"], |c| labelled("", c.writable.map(|u| u.bytes))),
    row("container_fs_writes_bytes_total", Counter, "Bytes written per block device.", &["device"], |c| per_device(c, 1)),
    row("container_fs_writes_total", Counter, "Writes per block device.", &["device"], |c| per_device(c, 3)),
    row("container_hugetlb_max_usage_bytes", Gauge, "Most huge page memory in use so far.", &["pagesize"], |c| c.cgroup.hugetlb.iter().map(|(size, _, most)| (vec![size.clone()], *most)).collect()),
    row("container_hugetlb_usage_bytes", Gauge, "Huge page memory in use.", &["pagesize"], |c| c.cgroup.hugetlb.iter().map(|(size, used, _)| (vec![size.clone()], *used)).collect()),
    row("container_last_seen", Gauge, "Time of this reading, seconds since the epoch.", &[], |c| one(nanos_to_seconds(c.cgroup.at))),
    row("container_memory_cache", Gauge, "Page cache.", &[], |c| memory(c, 3)),
    row("container_memory_failcnt", Counter, "Times the memory limit was hit.", &[], |c| one(c.cgroup.memory_failures.map(|f| f[0]))),
    row("container_memory_failures_total", Counter, "Page faults.", &["failure_type", "scope"], faults),
    row("container_memory_kernel_usage", Gauge, "Kernel memory.", &[], |c| memory(c, 5)),
    row("container_memory_mapped_file", Gauge, "Mapped files.", &[], |c| memory(c, 4)),
    row("container_memory_max_usage_bytes", Gauge, "Most memory in use so far.", &[], |c| one(c.cgroup.memory_peak)),
    row("container_memory_rss", Gauge, "Anonymous memory.", &[], |c| memory(c, 2)),
    row("container_memory_swap", Gauge, "Swap in use.", &[], |c| one(c.cgroup.swap.map(|(used, _)| used))),
    row("container_memory_usage_bytes", Gauge, "Memory in use, cache included.", &[], |c| memory(c, 0)),
    row("container_memory_working_set_bytes", Gauge, "Memory in use without what can be dropped first.", &[], |c| memory(c, 1)),
    row("container_oom_events_total", Counter, "Processes killed because memory ran out.", &[], |c| one(c.cgroup.memory_failures.map(|f| f[1]))),
    row("container_pressure_cpu_stalled_seconds_total", Counter, "Time all processes waited for a CPU.", &[], |c| stalled(c, 0)),
    row("container_pressure_cpu_waiting_seconds_total", Counter, "Time some process waited for a CPU.", &[], |c| waiting(c, 0)),
    row("container_pressure_io_stalled_seconds_total", Counter, "Time all processes waited for input or output.", &[], |c| stalled(c, 2)),
    row("container_pressure_io_waiting_seconds_total", Counter, "Time some process waited for input or output.", &[], |c| waiting(c, 2)),
    row("container_pressure_memory_stalled_seconds_total", Counter, "Time all processes waited for memory.", &[], |c| stalled(c, 1)),
    row("container_pressure_memory_waiting_seconds_total", Counter, "Time some process waited for memory.", &[], |c| waiting(c, 1)),
    row("container_processes", Gauge, "Processes.", &[], |c| one(c.cgroup.tasks.map(|t| t.0))),
    row("container_sockets", Gauge, "Open sockets.", &[], |c| one(c.processes.map(|p| p.sockets))),
    row("container_spec_cpu_period", Gauge, "CPU period of the container, microseconds.", &[], |c| setting(c.view.resources.cpu_period)),
    row("container_spec_cpu_quota", Gauge, "CPU quota of the container, microseconds.", &[], |c| setting(c.view.resources.cpu_quota)),
    row("container_spec_cpu_shares", Gauge, "CPU shares of the container.", &[], |c| setting(c.view.resources.cpu_shares)),
    row("container_spec_memory_limit_bytes", Gauge, "Memory limit of the container.", &[], |c| setting(c.view.resources.memory_limit)),
    row("container_spec_memory_reservation_limit_bytes", Gauge, "Memory the container is sure to keep.", &[], reservation),
    row("container_spec_memory_swap_limit_bytes", Gauge, "Limit of memory plus swap of the container.", &[], |c| setting(c.view.resources.memory_swap_limit)),
    row("container_start_time_seconds", Gauge, "Start, seconds since the epoch.", &[], |c| one(nanos_to_seconds(c.view.started_at))),
    row("container_threads", Gauge, "Threads.", &[], |c| one(c.cgroup.tasks.map(|t| t.1))),
    row("container_threads_max", Gauge, "Limit of threads; 0: none.", &[], |c| one(c.cgroup.tasks.map(|t| t.2.unwrap_or(0)))),
    row("container_ulimits_soft", Gauge, "Soft limits of the first process.", &["ulimit"], |c| labelled("max_open_files", c.processes.and_then(|p| p.open_files_limit))),
];

const fn network(name: &'static str, help: &'static str, value: fn(&InterfaceStats) -> u64) -> NetworkRow {
    NetworkRow { name, help, labels: &["interface"], value }
}

/// Metrics of pods.
#[rustfmt::skip]
pub const NETWORK: &[NetworkRow] = &[
    network("container_network_receive_bytes_total", "Bytes received.", |i| i.rx[0]),
    network("container_network_receive_errors_total", "Errors while receiving.", |i| i.rx[2]),
    network("container_network_receive_packets_dropped_total", "Packets dropped while receiving.", |i| i.rx[3]),
    network("container_network_receive_packets_total", "Packets received.", |i| i.rx[1]),
    network("container_network_transmit_bytes_total", "Bytes sent.", |i| i.tx[0]),
    network("container_network_transmit_errors_total", "Errors while sending.", |i| i.tx[2]),
    network("container_network_transmit_packets_dropped_total", "Packets dropped while sending.", |i| i.tx[3]),
    network("container_network_transmit_packets_total", "Packets sent.", |i| i.tx[1]),
];
