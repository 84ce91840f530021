//! Readings of a cgroup: every file opened once, read again and again with pread(2).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags, openat};

use super::hierarchy::{self, Hierarchies, Hierarchy};
use crate::api::{CgroupStats, Detail, Psi};
use crate::error::Error;
use crate::exec::nanos;

/// v1 limits at or above this mean "none" (the kernel's largest page-aligned number).
const V1_UNLIMITED: u64 = 1 << 62;
/// Longest file that is read.
const MAX_FILE: usize = 64 << 10;

/// Reads statistics of one cgroup through descriptors that stay open between readings.
#[derive(Debug)]
pub struct Reader {
    cgroup: String,
    /// What the open files are enough for.
    open: Detail,
    /// What is being read.
    wanted: Detail,
    files: BTreeMap<File, OwnedFd>,
    /// Memory and swap are counted together, as on v1.
    joint_swap: bool,
    /// Huge page sizes with their `current`/`usage` and `max`/`max_usage` files.
    huge: Vec<(String, OwnedFd, Option<OwnedFd>)>,
    /// Time and CPU use of the reading before.
    last: Option<(i64, u64)>,
    buffer: Vec<u8>,
}

/// Declares the files: name here, what needs it, controller, name on v1, name on v2.
macro_rules! files {
    ($($name:ident $detail:ident $controller:literal $v1:literal $v2:literal;)*) => {
        /// A file a reading needs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        enum File { $($name,)* }

        impl File {
            /// What needs it.
            fn detail(self) -> Detail {
                match self {
                    $(Self::$name => Detail::$detail,)*
                }
            }
        }

        /// Every file with its controller and its names on v1 and v2; empty: it has none there.
        const FILES: &[(File, &str, &str, &str)] = &[$((File::$name, $controller, $v1, $v2),)*];
    };
}

files! {
    CpuUsage Statistics "cpuacct" "cpuacct.usage" "";
    CpuUser Metrics "cpuacct" "cpuacct.usage_user" "";
    CpuSystem Metrics "cpuacct" "cpuacct.usage_sys" "";
    Throttling Statistics "cpu" "cpu.stat" "cpu.stat";
    Memory Statistics "memory" "memory.usage_in_bytes" "memory.current";
    MemoryStat Statistics "memory" "memory.stat" "memory.stat";
    MemoryLimit Statistics "memory" "memory.limit_in_bytes" "memory.max";
    MemoryPeak Metrics "memory" "memory.max_usage_in_bytes" "memory.peak";
    MemoryFailures Metrics "memory" "memory.failcnt" "memory.events";
    OomControl Metrics "memory" "memory.oom_control" "";
    Swap Statistics "memory" "memory.memsw.usage_in_bytes" "memory.swap.current";
    SwapLimit Statistics "memory" "memory.memsw.limit_in_bytes" "memory.swap.max";
    Tasks Metrics "pids" "pids.current" "pids.current";
    TaskLimit Metrics "pids" "pids.max" "pids.max";
    IoBytes Metrics "blkio" "blkio.throttle.io_service_bytes_recursive" "";
    IoOperations Metrics "blkio" "blkio.throttle.io_serviced_recursive" "";
    IoStat Metrics "io" "" "io.stat";
    CpuPressure Statistics "" "" "cpu.pressure";
    MemoryPressure Statistics "" "" "memory.pressure";
    IoPressure Statistics "" "" "io.pressure";
    Processes Statistics "" "cgroup.procs" "cgroup.procs";
}

impl Reader {
    /// Opens the files that so much of a reading needs, of a cgroup in cgroupfs spelling, relative to each hierarchy's root.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) when it exists on no hierarchy.
    pub fn open(cgroup: &str, detail: Detail) -> Result<Self, Error> {
        hierarchy::check(cgroup)?;
        let node = super::node()?;
        let mut files = BTreeMap::new();
        let v2 = node.v2.as_ref().and_then(|h| h.open(cgroup).ok());
        for (file, controller, v1_name, v2_name) in FILES.iter().filter(|(file, ..)| file.detail() <= detail)
        {
            let v1 = node.v1(controller).filter(|_| !v1_name.is_empty());
            let on_v1 = v1.and_then(|h| h.open_file(cgroup, v1_name, OFlags::RDONLY).ok());
            // cpu.stat of v2 tells usage even where the controller is elsewhere; it is not asked then.
            let may_v2 = controller.is_empty() || node.v2(controller).is_some() || node.v1.is_empty();
            let on_v2 = || {
                let dir = v2.as_ref().filter(|_| may_v2 && !v2_name.is_empty())?;
                openat(dir, *v2_name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
            };
            if let Some(fd) = on_v1.or_else(on_v2) {
                files.insert(*file, fd);
            }
        }
        if files.is_empty() {
            return Err(Error::not_found("cgroup", cgroup));
        }
        let huge = if detail < Detail::Metrics { Vec::new() } else { huge_pages(node, cgroup) };
        let joint_swap = node.v1("memory").is_some();
        let (cgroup, open, wanted) = (cgroup.into(), detail, detail);
        Ok(Self { cgroup, open, wanted, files, joint_swap, huge, last: None, buffer: Vec::new() })
    }

    /// How many descriptors it holds.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files.len() + self.huge.iter().map(|(_, _, most)| 1 + usize::from(most.is_some())).sum::<usize>()
    }

    /// What it was opened for.
    #[must_use]
    pub fn detail(&self) -> Detail {
        self.open
    }

    /// One reading of no more than it was opened for. Blocking, some ten or twenty preads. CPU use per second needs two readings of the same
    /// reader.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) once the cgroup is gone.
    pub fn read(&mut self, detail: Detail) -> Result<CgroupStats, Error> {
        let detail = detail.min(self.open);
        self.wanted = detail;
        let mut stats = CgroupStats { at: nanos(SystemTime::now()), detail, ..CgroupStats::default() };
        let there = [self.cpu(&mut stats), self.memory(&mut stats)];
        if there == [false; 2] {
            return Err(Error::not_found("cgroup", &self.cgroup));
        }
        self.swap(&mut stats);
        self.tasks(&mut stats);
        self.io(&mut stats);
        stats.psi = [File::CpuPressure, File::MemoryPressure, File::IoPressure]
            .map(|f| self.text(f).and_then(|t| psi(&t)));
        let mut huge = Vec::new();
        for (size, now, most) in self.huge.iter().filter(|_| detail == Detail::Metrics) {
            let now = read(&mut self.buffer, now).and_then(number).unwrap_or(0);
            let most = most.as_ref().and_then(|fd| read(&mut self.buffer, fd).and_then(number));
            huge.push((size.clone(), now, most.unwrap_or(now)));
        }
        stats.hugetlb = huge;
        Ok(stats)
    }

    /// The whole of a file, in the buffer; `None`: not there, not any more, or not wanted.
    fn contents(&mut self, file: File) -> Option<&str> {
        let fd = self.files.get(&file).filter(|_| file.detail() <= self.wanted)?;
        read(&mut self.buffer, fd)
    }

    fn text(&mut self, file: File) -> Option<String> {
        self.contents(file).map(str::to_owned)
    }

    fn number(&mut self, file: File) -> Option<u64> {
        self.contents(file).and_then(number)
    }

    /// Whether the cgroup could be asked.
    fn cpu(&mut self, stats: &mut CgroupStats) -> bool {
        let throttling = self.text(File::Throttling);
        let there = throttling.is_some();
        let throttling = throttling.unwrap_or_default();
        let value = |key| keyed(&throttling, key);
        stats.cpu = match self.number(File::CpuUsage) {
            Some(all) => {
                let [user, system] = [File::CpuUser, File::CpuSystem].map(|f| self.number(f).unwrap_or(0));
                Some([all, user, system])
            }
            None => value("usage_usec").map(|all| {
                [all, value("user_usec").unwrap_or(0), value("system_usec").unwrap_or(0)].map(|us| us * 1000)
            }),
        };
        // v1 tells nanoseconds, v2 microseconds.
        let throttled = value("throttled_time").or(value("throttled_usec").map(|us| us * 1000));
        stats.throttling =
            value("nr_periods").zip(throttled).map(|(n, t)| [n, value("nr_throttled").unwrap_or(0), t]);
        if let Some([all, ..]) = stats.cpu {
            stats.nano_cores = self.last.and_then(|(at, before)| rate(before, all, at, stats.at));
            self.last = Some((stats.at, all));
        }
        there
    }

    /// Whether the cgroup could be asked.
    fn memory(&mut self, stats: &mut CgroupStats) -> bool {
        let Some(usage) = self.number(File::Memory) else { return false };
        let stat = self.text(File::MemoryStat).unwrap_or_default();
        // v1 counts the cgroups below only in the `total_` lines.
        let value = |v1: &str, v2: &str| keyed(&stat, v1).or_else(|| keyed(&stat, v2)).unwrap_or(0);
        let inactive = value("total_inactive_file", "inactive_file");
        let kernel = keyed(&stat, "kernel").or_else(|| keyed(&stat, "slab")).unwrap_or(0);
        stats.memory = Some([
            usage,
            usage.saturating_sub(inactive),
            value("total_rss", "anon"),
            value("total_cache", "file"),
            value("total_mapped_file", "file_mapped"),
            kernel,
        ]);
        stats.faults = Some([value("total_pgfault", "pgfault"), value("total_pgmajfault", "pgmajfault")]);
        stats.memory_limit = self.number(File::MemoryLimit).filter(|limit| *limit < V1_UNLIMITED);
        stats.memory_peak = self.number(File::MemoryPeak);
        let failures = self.text(File::MemoryFailures).unwrap_or_default();
        let kills = self.text(File::OomControl).unwrap_or_else(|| failures.clone());
        let hits = number(&failures).or_else(|| keyed(&failures, "max"));
        stats.memory_failures = hits.map(|hits| [hits, keyed(&kills, "oom_kill").unwrap_or(0)]);
        true
    }

    /// v1 counts memory and swap together, v2 swap alone.
    fn swap(&mut self, stats: &mut CgroupStats) {
        let (Some(usage), limit) = (self.number(File::Swap), self.number(File::SwapLimit)) else { return };
        let limit = limit.filter(|limit| *limit < V1_UNLIMITED);
        stats.swap = match (stats.memory, self.joint_swap) {
            (Some([memory, ..]), true) => {
                let limit = limit.map(|both| both.saturating_sub(stats.memory_limit.unwrap_or(0)));
                Some((usage.saturating_sub(memory), limit))
            }
            _ => Some((usage, limit)),
        };
    }

    fn tasks(&mut self, stats: &mut CgroupStats) {
        let processes = self.text(File::Processes).map(|text| text.lines().count() as u64);
        let limit = self.number(File::TaskLimit);
        let tasks = self.number(File::Tasks).or(processes);
        stats.tasks = processes.zip(tasks).map(|(processes, tasks)| (processes, tasks, limit));
    }

    fn io(&mut self, stats: &mut CgroupStats) {
        let mut devices: BTreeMap<String, [u64; 4]> = BTreeMap::new();
        for (file, first) in [(File::IoBytes, 0), (File::IoOperations, 2)] {
            for line in self.text(file).unwrap_or_default().lines() {
                let mut words = line.split(' ');
                let (Some(device), Some(what), Some(value)) = (words.next(), words.next(), words.next())
                else {
                    continue;
                };
                let slot = match what {
                    "Read" => first,
                    "Write" => first + 1,
                    _ => continue,
                };
                devices.entry(device.into()).or_default()[slot] = value.parse().unwrap_or(0);
            }
        }
        for line in self.text(File::IoStat).unwrap_or_default().lines() {
            let mut words = line.split(' ');
            let Some(device) = words.next() else { continue };
            let values = devices.entry(device.into()).or_default();
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let keys = ["rbytes", "wbytes", "rios", "wios"];
                if let Some(slot) = keys.iter().position(|k| *k == key) {
                    values[slot] = value.parse().unwrap_or(0);
                }
            }
        }
        stats.io = devices.into_iter().collect();
    }
}

/// Nano-cores between two readings; `None` when no time has passed or the counter went back.
fn rate(before: u64, now: u64, from: i64, to: i64) -> Option<u64> {
    let elapsed = u128::try_from(to.checked_sub(from)?).ok().filter(|t| *t > 0)?;
    let used = u128::from(now.checked_sub(before)?);
    u64::try_from(used * 1_000_000_000 / elapsed).ok()
}

/// The descriptors of huge page statistics.
fn huge_pages(node: &Hierarchies, cgroup: &str) -> Vec<(String, OwnedFd, Option<OwnedFd>)> {
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let kilobytes = sizes
        .filter_map(|e| e.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
    let open = |h: &Hierarchy, name: String| {
        openat(h.open(cgroup).ok()?, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    };
    let one = |kilobytes: u64| {
        let size = page_size(kilobytes);
        let (now, most) = match (node.v1("hugetlb"), node.v2("hugetlb")) {
            (Some(v1), _) => (
                open(v1, format!("hugetlb.{size}.usage_in_bytes")),
                open(v1, format!("hugetlb.{size}.max_usage_in_bytes")),
            ),
            (None, Some(v2)) => (open(v2, format!("hugetlb.{size}.current")), None),
            (None, None) => return None,
        };
        Some((size, now?, most))
    };
    kilobytes.filter_map(one).collect()
}

/// A page size in the kernel's spelling.
fn page_size(kilobytes: u64) -> String {
    match kilobytes {
        k if k >= 1 << 20 => format!("{}GB", k >> 20),
        k if k >= 1 << 10 => format!("{}MB", k >> 10),
        k => format!("{k}KB"),
    }
}

/// The whole of a small file from its beginning; `None` when the cgroup is gone.
fn read<'a>(buffer: &'a mut Vec<u8>, fd: &OwnedFd) -> Option<&'a str> {
    buffer.resize(MAX_FILE, 0);
    let length = rustix::io::pread(fd, &mut buffer[..], 0).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()
}

/// A file that is one number; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind a key.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Pressure stall information; totals are microseconds in the file.
fn psi(text: &str) -> Option<Psi> {
    let line = |kind: &str| {
        let mut values = [0.0; 4];
        let line = text.lines().find_map(|l| l.strip_prefix(kind))?;
        for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
            let slot = ["avg10", "avg60", "avg300", "total"].iter().position(|k| *k == key)?;
            values[slot] = value.parse().ok()?;
        }
        Some(values)
    };
    // The cpu file of a root cgroup has no `full` line.
    let (some, full) = (line("some")?, line("full").unwrap_or_default());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let total = |micros: f64| micros as u64 * 1000;
    Some(Psi {
        some: [some[0], some[1], some[2]],
        some_total: total(some[3]),
        full: [full[0], full[1], full[2]],
        full_total: total(full[3]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_percent_and_nanoseconds() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=7\n";
        let psi = psi(text).unwrap();
        assert_eq!((psi.some[0], psi.some_total, psi.full[0], psi.full_total), (1.5, 1_234_000, 0.1, 7_000));
        assert!(super::psi("").is_none());
    }

    #[test]
    fn cpu_use_per_second_needs_time_and_a_growing_counter() {
        assert_eq!(rate(1_000, 1_500, 0, 1_000), Some(500_000_000));
        assert_eq!(rate(1_000, 1_500, 5, 5), None);
        assert_eq!(rate(1_500, 1_000, 0, 1_000), None);
    }

    #[test]
    fn a_key_is_found_whole() {
        assert_eq!(keyed("oom 3\noom_kill 2\n", "oom_kill"), Some(2));
        assert_eq!(keyed("nr_throttled 4\n", "nr"), None);
        assert_eq!([page_size(2048), page_size(1 << 20), page_size(64)], ["2MB", "1GB", "64KB"]);
    }
}
