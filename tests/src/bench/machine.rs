//! Memory, processor time and mounts, as the kernel counts them on this private machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long an ext4 without a journal looks past an inode that was freed and is on the disk: a minute.
const LOOKED_PAST: Duration = Duration::from_secs(61);

/// Lets the machine get over what was done on it. An ext4 without a journal, for each file it makes, looks past those inodes one by one that
/// were freed of late (`recently_deleted` in the kernel's fs/ext4/ialloc.c), of which there are thousands where images were prepared.
pub fn rest() {
    nix::unistd::sync();
    std::thread::sleep(LOOKED_PAST);
}

/// A process: its proportional set size in KiB and its command line.
#[derive(Clone, Debug)]
pub struct Process {
    /// Pss of smaps_rollup, in KiB (proc_pid_smaps(5)).
    pub pss: f64,
    /// Arguments, separated by blanks.
    pub command: String,
}

/// Every process by its id.
///
/// # Errors
/// /proc cannot be read.
pub fn processes() -> Result<BTreeMap<u32, Process>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let (Ok(command), Ok(rollup)) =
            (fs::read(entry.path().join("cmdline")), fs::read_to_string(entry.path().join("smaps_rollup")))
        else {
            continue;
        };
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        all.insert(pid, Process { pss: field(&rollup, "Pss:").unwrap_or(0.0), command });
    }
    Ok(all)
}

/// The parent of a process; `None` when it is gone (proc_pid_status(5)).
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// The first number after `key`.
fn field(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The memory cgroup of a process, as a directory; `None` when it is gone.
#[must_use]
pub fn memory_cgroup(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    // cgroups(7): hierarchy, controllers, path; version 2 has an empty list of controllers.
    let mut rows = text.lines().filter_map(|row| {
        let mut parts = row.splitn(3, ':').skip(1);
        Some((parts.next()?, parts.next()?.trim_start_matches('/')))
    });
    let v1 = rows.clone().find(|(controllers, _)| controllers.split(',').any(|one| one == "memory"));
    match v1 {
        Some((_, path)) => Some(Path::new("/sys/fs/cgroup/memory").join(path)),
        None => rows
            .find(|(controllers, _)| controllers.is_empty())
            .map(|(_, path)| Path::new("/sys/fs/cgroup").join(path)),
    }
}

/// What is charged to a memory cgroup in KiB, the kernel's own memory among it; 0 when there is no such cgroup.
#[must_use]
pub fn charged(cgroup: &Path) -> f64 {
    let read = |file| fs::read_to_string(cgroup.join(file)).ok()?.trim().parse::<f64>().ok();
    read("memory.usage_in_bytes").or_else(|| read("memory.current")).unwrap_or(0.0) / 1024.0
}

/// Processor time of everything on this machine so far, in seconds.
///
/// # Errors
/// No hierarchy counts it.
pub fn cpu_seconds() -> Result<f64> {
    if let Ok(text) = fs::read_to_string("/sys/fs/cgroup/cpuacct/cpuacct.usage") {
        return Ok(text.trim().parse::<f64>()? / 1e9);
    }
    let text = fs::read_to_string("/sys/fs/cgroup/cpu.stat").context("neither cpuacct nor cpu.stat")?;
    Ok(field(&text, "usage_usec").context("usage_usec")? / 1e6)
}

/// Lines of the host's mount table.
///
/// # Errors
/// /proc cannot be read.
pub fn mounts() -> Result<usize> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().count())
}

/// Processor time of one process so far, all its threads, in seconds (proc_pid_stat(5)).
///
/// # Errors
/// The process is gone.
pub fn process_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything.
    let (_, rest) = text.rsplit_once(") ").context("stat")?;
    let ticks: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse().ok()).collect();
    // USER_HZ is 100 on every architecture this runs on.
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// Lets the peak of a process's memory begin anew (proc_pid_clear_refs(5)).
///
/// # Errors
/// The process is gone.
pub fn forget_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Peak of a process's resident memory, in MiB.
///
/// # Errors
/// The process is gone.
pub fn peak(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(field(&text, "VmHWM:").context("VmHWM")? / 1024.0)
}

/// A count as a measured value.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts and sizes far below 2^53")]
pub fn number(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}
