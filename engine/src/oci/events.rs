//! `events`: statistics of a container in the shape that callers of runc read.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::args::Parsed;
use super::lifecycle::pidfd_of;
use super::store::Status;
use super::{Context, Outcome, say, wait};
use crate::api::{CgroupStats, Detail};
use crate::error::{Error, Kind};
use crate::exec::cgroup::Reader;

/// `events ID`: once with `--stats`, else again and again until the container has ended, and its OOM kills between.
pub(super) fn events(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    if context.store.status(&record) == Status::Stopped {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!("container with id \"{}\" is not running", record.id),
        ));
    }
    let mut reader = Reader::open(&record.cgroup, Detail::Metrics)?;
    let stats = |stats: &CgroupStats| {
        say(&format!("{}\n", json!({ "type": "stats", "id": record.id, "data": data(stats) })));
    };
    if parsed.has("stats") {
        stats(&reader.read(Detail::Metrics)?);
        return Ok(0);
    }
    let interval = interval(parsed.string("interval")?.as_deref().unwrap_or("5s"))?;
    let pidfd = pidfd_of(&record)?;
    let mut kills = None;
    loop {
        let limit =
            Timespec { tv_sec: interval.as_secs().cast_signed(), tv_nsec: interval.subsec_nanos().into() };
        let ended = wait::ready(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))
            .map_err(|e| Error::with(Kind::Internal, "wait for the container", e))?;
        match reader.read(Detail::Metrics) {
            Ok(now) => {
                let count = now.memory_failures.map_or(0, |[_, kills]| kills);
                if kills.is_some_and(|before| before < count) {
                    say(&format!("{}\n", json!({ "type": "oom", "id": record.id })));
                }
                kills = Some(count);
                stats(&now);
            }
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            Err(_) => return Ok(0),
        }
        if ended > 0 {
            return Ok(0);
        }
    }
}

/// A span as Go programs write it: a number with `ms`, `s` or `m`.
fn interval(text: &str) -> Result<Duration, Error> {
    let bad = || Error::invalid("--interval", format!("{text:?} is no span such as 500ms, 5s or 1m"));
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let span = match &text[digits..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(bad()),
    };
    if span.is_zero() { Err(bad()) } else { Ok(span) }
}

/// The figures, by runc's names.
fn data(stats: &CgroupStats) -> Value {
    let [total, user, system] = stats.cpu.unwrap_or_default();
    let [periods, throttled, throttled_time] = stats.throttling.unwrap_or_default();
    let [usage, working_set, rss, cache, mapped, kernel] = stats.memory.unwrap_or_default();
    let [failures, _] = stats.memory_failures.unwrap_or_default();
    let (swap, swap_limit) = stats.swap.unwrap_or_default();
    let (_, tasks, tasks_limit) = stats.tasks.unwrap_or_default();
    let hugetlb: serde_json::Map<String, Value> = stats
        .hugetlb
        .iter()
        .map(|(size, usage, most)| (size.clone(), json!({ "usage": usage, "max": most })))
        .collect();
    json!({
        "cpu": {
            "usage": { "total": total, "user": user, "kernel": system },
            "throttling": { "periods": periods, "throttledPeriods": throttled, "throttledTime": throttled_time },
        },
        "memory": {
            "cache": cache,
            "usage": {
                "limit": stats.memory_limit.unwrap_or(u64::MAX),
                "usage": usage,
                "max": stats.memory_peak.unwrap_or(0),
                "failcnt": failures,
            },
            "swap": { "limit": swap_limit.unwrap_or(u64::MAX), "usage": swap },
            "kernel": { "usage": kernel },
            "raw": { "rss": rss, "cache": cache, "mapped_file": mapped, "working_set": working_set },
        },
        "pids": { "current": tasks, "limit": tasks_limit.unwrap_or(0) },
        "blkio": { "ioServiceBytesRecursive": io(stats, [0, 1]), "ioServicedRecursive": io(stats, [2, 3]) },
        "hugetlb": hugetlb,
    })
}

/// Reads and writes per device.
fn io(stats: &CgroupStats, columns: [usize; 2]) -> Vec<Value> {
    let mut out = Vec::new();
    for (device, counts) in &stats.io {
        let (major, minor) = device.split_once(':').unwrap_or((device, "0"));
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        for (operation, column) in ["Read", "Write"].into_iter().zip(columns) {
            out.push(json!({
                "major": number(major), "minor": number(minor), "op": operation, "value": counts[column],
            }));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_in_go() {
        assert_eq!(interval("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(interval("2m").unwrap(), Duration::from_secs(120));
        for bad in ["", "5", "s", "0s", "1h", "-1s"] {
            interval(bad).unwrap_err();
        }
    }
}
