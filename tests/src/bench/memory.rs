//! `tests/bench memory`: what daemons and helpers hold, by what they hold it for.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};

use super::action;
use super::contender::Contender;
use super::machine::{charged, number};
use super::run::{Footprint, remove_together, start_together};
use crate::images::BUSYBOX;
use crate::report::line;
use crate::suites::wait;

/// What the helpers of a pod may hold, in KiB, by either count.
const LIMIT: f64 = 300.0;

/// Prints the memory of each contender: idle, and with `count` pods.
///
/// # Errors
/// An action fails, or a pod costs Berth more than it may.
pub fn run(contenders: &[Contender], count: usize) -> Result<()> {
    for contender in contenders {
        wait(async { Ok(contender.client().await?.pull(BUSYBOX).await.map(drop)?) })?;
        line(format_args!("\n{} {}: the daemon, idle, PSS in KiB", contender.name, contender.version));
        print(contender.pid())?;
        let logs = contender.dir.join("logs/memory");
        let before = Footprint::now()?;
        let pods = wait(async {
            let pods = start_together(&contender.client().await?, 0..count, 10, &logs).await?;
            for pod in &pods {
                action::up(pod, &logs).await?;
            }
            Ok(pods)
        })?;
        let now = Footprint::now()?;
        let per_pod = now.helpers_since(&before) / number(count);
        line(format_args!("helpers: {per_pod:.0} KiB of PSS per pod"));
        let cgroups = now.cgroups_since(&before);
        let charged =
            cgroups.map(|all| all.iter().map(|cgroup| charged(cgroup)).sum::<f64>() / number(count));
        let told = charged
            .map_or("unknown by their memory cgroup: the daemon is in it too".to_owned(), |charged| {
                format!("{charged:.0} KiB per pod by their memory cgroup, the kernel's own among it")
            });
        line(format_args!("helpers: {told}"));
        line(format_args!("the daemon with {count} pods:"));
        print(contender.pid())?;
        wait(async { remove_together(&contender.client().await?, pods, 10).await })?;
        let most = per_pod.max(charged.unwrap_or(0.0));
        ensure!(contender.rival() || most <= LIMIT, "a pod costs {most:.0} KiB, above {LIMIT}");
    }
    Ok(())
}

/// The mappings of a process by kind.
fn print(pid: u32) -> Result<()> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).context("smaps")?;
    let kinds = by_kind(&text);
    for (kind, pss) in &kinds {
        line(format_args!("  {kind:<28} {pss:7}"));
    }
    line(format_args!("  {:<28} {:7}", "all", kinds.values().sum::<u64>()));
    Ok(())
}

/// PSS in KiB by kind of mapping (proc_pid_smaps(5)).
fn by_kind(smaps: &str) -> BTreeMap<String, u64> {
    let mut kinds = BTreeMap::new();
    let mut kind = String::new();
    for text in smaps.lines() {
        let mut words = text.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "Pss:" {
            let pss: u64 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            *kinds.entry(kind.clone()).or_default() += pss;
        } else if !first.ends_with(':') {
            let (access, name) = (words.next().unwrap_or_default(), words.nth(3).unwrap_or_default());
            kind = match (name, access.as_bytes().get(1..3)) {
                ("[heap]", _) => "heap".into(),
                ("[stack]", _) => "main stack".into(),
                ("", _) => "anonymous (arenas, stacks)".into(),
                (name, _) if name.starts_with('[') => name.into(),
                (_, Some(b"-x")) => "program code".into(),
                (_, Some(b"w-")) => "program data".into(),
                _ => "program constants".into(),
            };
        }
    }
    kinds.retain(|_, pss| *pss > 0);
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        let smaps = "00400000-00500000 r-xp 00000000 00:01 7  /berth\nSize: 1024 kB\nPss:  100 kB\n\
                     00500000-00600000 rw-p 00100000 00:01 7  /berth\nPss:  10 kB\n\
                     01000000-01100000 rw-p 00000000 00:00 0  [heap]\nPss:  30 kB\n\
                     7f000000-7f100000 rw-p 00000000 00:00 0 \nPss:  5 kB\nPss_Dirty: 5 kB\n";
        let kinds = by_kind(smaps);
        assert_eq!(kinds.values().sum::<u64>(), 145);
        assert_eq!((kinds["program code"], kinds["heap"]), (100, 30));
    }
}
