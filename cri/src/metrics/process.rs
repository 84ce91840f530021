//! What no cgroup counts: descriptors, sockets and limits of a container's processes.

use std::path::{Path, PathBuf};

/// Processes looked at per container; beyond this the counts are left out rather than wrong.
const PROCESSES: usize = 1024;

/// Counts over all processes of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Open file descriptors.
    pub descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
    /// Soft limit of open files of the first process; `None`: unlimited.
    pub open_files_limit: Option<u64>,
}

/// Counts the process and all its descendants: in a PID namespace of their own these are all processes there are.
/// `None` when it does not run, or has more descendants than are looked at.
pub fn count(pid: i32) -> Option<Counts> {
    if pid <= 0 {
        return None;
    }
    let first = PathBuf::from(format!("/proc/{pid}"));
    let mut counts = Counts { open_files_limit: open_files_limit(&first), ..Counts::default() };
    let mut waiting = vec![first];
    let mut seen = 0;
    while let Some(process) = waiting.pop() {
        seen += 1;
        if seen > PROCESSES {
            return None;
        }
        // A process that has ended meanwhile counts nothing.
        let _ = add(&mut counts, &process);
        waiting.extend(children(&process));
    }
    Some(counts)
}

fn add(counts: &mut Counts, process: &Path) -> std::io::Result<()> {
    for fd in std::fs::read_dir(process.join("fd"))? {
        counts.descriptors += 1;
        let target = std::fs::read_link(fd?.path());
        if target.is_ok_and(|t| t.as_os_str().as_encoded_bytes().starts_with(b"socket:")) {
            counts.sockets += 1;
        }
    }
    Ok(())
}

fn children(process: &Path) -> Vec<PathBuf> {
    let Ok(threads) = std::fs::read_dir(process.join("task")) else { return Vec::new() };
    let of_thread = |path: PathBuf| std::fs::read_to_string(path.join("children")).unwrap_or_default();
    let lists: Vec<String> = threads.flatten().map(|t| of_thread(t.path())).collect();
    lists.iter().flat_map(|l| l.split_whitespace()).map(|pid| PathBuf::from("/proc").join(pid)).collect()
}

fn open_files_limit(process: &Path) -> Option<u64> {
    let limits = std::fs::read_to_string(process.join("limits")).ok()?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
