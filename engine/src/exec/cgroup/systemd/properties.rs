//! From what is written to a cgroup's files to the properties of its unit, so that systemd writes the same when it comes by
//! (systemd.resource-control(5), org.freedesktop.systemd1(5)). Pure.
//!
//! The settings themselves are the source: there is no second reading of a request that could differ from the first.

use super::super::limits::Setting;
use super::wire::{Property, Value};
use crate::error::Error;

/// "No limit" as systemd has it.
pub(super) const INFINITY: u64 = u64::MAX;
/// Microseconds of a second.
const SECOND: u64 = 1_000_000;
/// systemd keeps quotas in whole percents of a processor: 10 ms of each second.
const PERCENT: u64 = 10_000;

/// A setting, and whether its controller is on v2.
pub(super) type Written<'s> = (bool, &'s Setting);

/// The properties of these settings. `version`: systemd's, which refuses properties it does not know; `period`: CFS period in
/// microseconds that holds where only a quota is set.
pub(super) fn of(written: &[Written<'_>], version: u32, period: u64) -> Result<Vec<Property>, Error> {
    let mut out: Vec<Property> = Vec::new();
    let mut cpu = Cpu { quota: None, period, told: false };
    let idle = written.iter().any(|(_, s)| s.file == "cpu.idle" && s.value == "1");
    for (v2, setting) in written {
        let value = setting.value.as_str();
        let bad = || Error::invalid(&setting.file, format!("\"{value}\" is not a value systemd can be told"));
        let number = || limit(value).ok_or_else(bad);
        let property = match setting.file.as_str() {
            "cpu.shares" => ("CPUShares", Value::Number(number()?)),
            "cpu.weight" if idle => continue,
            "cpu.weight" => ("CPUWeight", Value::Number(number()?)),
            // 0 is "idle"; older ones have no word for it, and leave the weight alone if it is not set.
            "cpu.idle" if idle && version >= 252 => ("CPUWeight", Value::Number(0)),
            "cpu.cfs_quota_us" => {
                cpu.quota = Some(number()?);
                continue;
            }
            "cpu.cfs_period_us" => {
                (cpu.period, cpu.told) = (number()?, true);
                continue;
            }
            "cpu.max" => {
                let (quota, period) = value.split_once(' ').unwrap_or((value, "100000"));
                cpu.quota = Some(limit(quota).ok_or_else(bad)?);
                (cpu.period, cpu.told) = (limit(period).ok_or_else(bad)?, true);
                continue;
            }
            "memory.limit_in_bytes" => ("MemoryLimit", Value::Number(number()?)),
            "memory.max" => ("MemoryMax", Value::Number(number()?)),
            "memory.high" => ("MemoryHigh", Value::Number(number()?)),
            "memory.low" => ("MemoryLow", Value::Number(number()?)),
            "memory.min" => ("MemoryMin", Value::Number(number()?)),
            "memory.swap.max" => ("MemorySwapMax", Value::Number(number()?)),
            "pids.max" => ("TasksMax", Value::Number(number()?)),
            "cpuset.cpus" if *v2 && version >= 244 => {
                ("AllowedCPUs", Value::Bytes(mask(value).ok_or_else(bad)?))
            }
            "cpuset.mems" if *v2 && version >= 244 => {
                ("AllowedMemoryNodes", Value::Bytes(mask(value).ok_or_else(bad)?))
            }
            // With a device in front it is a limit of that device, of which systemd knows nothing that it could undo.
            "io.weight" if !value.contains(' ') => ("IOWeight", Value::Number(number()?)),
            "blkio.weight" => ("BlockIOWeight", Value::Number(number()?)),
            _ => continue,
        };
        out.retain(|(name, _)| *name != property.0);
        out.push(property);
    }
    cpu.properties(version, &mut out);
    Ok(out)
}

/// Quota and period, which are one thing to systemd.
struct Cpu {
    quota: Option<u64>,
    period: u64,
    /// The period was asked for.
    told: bool,
}

impl Cpu {
    fn properties(&self, version: u32, out: &mut Vec<Property>) {
        if let Some(quota) = self.quota {
            let per_second = match quota {
                INFINITY => INFINITY,
                // Rounded up: the container's own limit, which is written behind systemd's back, must not be above it.
                quota => {
                    let exact = u128::from(quota) * u128::from(SECOND) / u128::from(self.period.max(1));
                    u64::try_from(exact).unwrap_or(INFINITY - PERCENT).next_multiple_of(PERCENT)
                }
            };
            out.push(("CPUQuotaPerSecUSec", Value::Number(per_second)));
        }
        if self.told && version >= 242 {
            out.push(("CPUQuotaPeriodUSec", Value::Number(self.period)));
        }
    }
}

/// A number; `max` and negative ones are no limit.
fn limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(INFINITY),
        text if text.starts_with('-') => text.parse::<i64>().ok().map(|_| INFINITY),
        text => text.parse().ok(),
    }
}

/// A list of CPUs or memory nodes (`0-3,8`) as a bit mask, lowest first.
fn mask(list: &str) -> Option<Vec<u8>> {
    /// More than any kernel has (CONFIG_NR_CPUS).
    const MOST: usize = 8192;
    let mut bits = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        for bit in first..=last {
            bits.resize(bits.len().max(bit / 8 + 1), 0);
            bits[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::super::super::limits::{set, v1, v2};
    use super::*;
    use crate::spec::Resources;

    fn told(settings: &[Setting], on_v2: bool, version: u32) -> Vec<String> {
        let written: Vec<_> = settings.iter().map(|s| (on_v2, s)).collect();
        let shown = |(name, value): Property| match value {
            Value::Number(INFINITY) => format!("{name}=infinity"),
            Value::Number(n) => format!("{name}={n}"),
            other => format!("{name}={other:?}"),
        };
        of(&written, version, 100_000).unwrap().into_iter().map(shown).collect()
    }

    #[test]
    fn every_limit_of_a_request_is_told_to_systemd() {
        let r = Resources {
            cpu_shares: 1024,
            cpu_quota: 33_333,
            cpu_period: 100_000,
            memory_limit: 1 << 20,
            cpuset_cpus: "0-1,9".into(),
            cpuset_mems: "0".into(),
            ..Resources::default()
        };
        assert_eq!(
            told(&v2(&r), true, 252),
            [
                "AllowedCPUs=Bytes([3, 2])",
                "AllowedMemoryNodes=Bytes([1])",
                "CPUWeight=100",
                "MemoryMax=1048576",
                "MemorySwapMax=0",
                "CPUQuotaPerSecUSec=340000",
                "CPUQuotaPeriodUSec=100000",
            ]
        );
        assert_eq!(
            told(&v1(&r), false, 252),
            [
                "CPUShares=1024",
                "MemoryLimit=1048576",
                "CPUQuotaPerSecUSec=340000",
                "CPUQuotaPeriodUSec=100000"
            ]
        );
    }

    #[test]
    fn a_systemd_is_not_told_what_it_does_not_know() {
        let settings =
            [set("cpu", "cpu.max", "1 1000"), set("cpuset", "cpuset.cpus", "1"), set("cpu", "cpu.idle", 1)];
        assert_eq!(told(&settings, true, 241), ["CPUQuotaPerSecUSec=10000"]);
        assert_eq!(
            told(&settings, true, 252),
            ["AllowedCPUs=Bytes([2])", "CPUWeight=0", "CPUQuotaPerSecUSec=10000", "CPUQuotaPeriodUSec=1000"]
        );
    }

    #[test]
    fn no_limit_is_infinity_and_the_last_word_counts() {
        let settings = [
            set("memory", "memory.max", "max"),
            set("pids", "pids.max", "7"),
            set("pids", "pids.max", "-1"),
            set("cpu", "cpu.cfs_quota_us", "-1"),
            set("io", "io.weight", "8:0 100"),
        ];
        assert_eq!(
            told(&settings, true, 252),
            ["MemoryMax=infinity", "TasksMax=infinity", "CPUQuotaPerSecUSec=infinity"]
        );
    }

    #[test]
    fn a_quota_alone_counts_in_the_period_that_holds() {
        let quota = set("cpu", "cpu.cfs_quota_us", "25000");
        let of_period = |period| of(&[(false, &quota)], 252, period).unwrap();
        assert_eq!(of_period(50_000), [("CPUQuotaPerSecUSec", Value::Number(500_000))]);
        assert_eq!(of_period(0), of_period(1), "no division by zero");
    }

    #[test]
    fn values_that_mean_nothing_are_refused_by_file() {
        for (file, value) in [("cpuset.cpus", "3-1"), ("cpuset.cpus", "0-99999"), ("memory.max", "lots")] {
            let setting = set("", file, value);
            let error = of(&[(true, &setting)], 252, 1).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains(value), "{error}");
        }
    }
}
