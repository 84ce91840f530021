//! From resources to file contents: a pure table, for v1 and v2.

use crate::error::Error;
use crate::spec::Resources;

/// One value to be written: controller, file, value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Controller that the file belongs to; empty: cgroup core.
    pub(crate) controller: &'static str,
    /// File name.
    pub(crate) file: String,
    /// What to write.
    pub(crate) value: String,
    /// The kernel may be built without it.
    pub(crate) optional: bool,
}

/// A value that must be written.
pub(crate) fn set(controller: &'static str, file: &str, value: impl std::fmt::Display) -> Setting {
    Setting { controller, file: file.into(), value: value.to_string(), optional: false }
}

/// Default CFS period in microseconds.
const PERIOD: i64 = 100_000;

/// CPU weight of v2 for CPU shares of v1, on the curve that keeps 2, 1024 and 262144 at 1, 100 and 10000.
pub(crate) fn weight(shares: i64) -> i64 {
    match shares {
        0 => 0,
        ..=2 => 1,
        262_144.. => 10_000,
        shares => {
            #[allow(clippy::cast_precision_loss)]
            let l = (shares as f64).log2();
            #[allow(clippy::cast_possible_truncation)]
            let weight = 10f64.powf(((l * l + 125.0 * l) / 612.0) - 7.0 / 34.0).ceil() as i64;
            weight.clamp(1, 10_000)
        }
    }
}

/// Settings for controllers that sit on v1, in the order in which they have to be written to a fresh cgroup.
pub(crate) fn v1(r: &Resources) -> Vec<Setting> {
    let mut out = Vec::new();
    if !r.cpuset_cpus.is_empty() {
        out.push(set("cpuset", "cpuset.cpus", &r.cpuset_cpus));
    }
    if !r.cpuset_mems.is_empty() {
        out.push(set("cpuset", "cpuset.mems", &r.cpuset_mems));
    }
    if r.cpu_shares != 0 {
        out.push(set("cpu", "cpu.shares", r.cpu_shares.max(2)));
    }
    if r.cpu_period != 0 {
        out.push(set("cpu", "cpu.cfs_period_us", r.cpu_period));
    }
    if r.cpu_quota != 0 {
        out.push(set("cpu", "cpu.cfs_quota_us", r.cpu_quota.max(-1)));
    }
    if r.memory_limit != 0 {
        out.push(set("memory", "memory.limit_in_bytes", r.memory_limit.max(-1)));
        // Without a swap limit a container must not swap its way around the memory limit.
        let swap = if r.memory_swap_limit == 0 { r.memory_limit } else { r.memory_swap_limit };
        out.push(Setting { optional: true, ..set("memory", "memory.memsw.limit_in_bytes", swap.max(-1)) });
    }
    out
}

/// Settings for controllers that sit on v2.
pub(crate) fn v2(r: &Resources) -> Vec<Setting> {
    let mut out = Vec::new();
    if !r.cpuset_cpus.is_empty() {
        out.push(set("cpuset", "cpuset.cpus", &r.cpuset_cpus));
    }
    if !r.cpuset_mems.is_empty() {
        out.push(set("cpuset", "cpuset.mems", &r.cpuset_mems));
    }
    if r.cpu_shares != 0 {
        out.push(set("cpu", "cpu.weight", weight(r.cpu_shares)));
    }
    if r.cpu_quota != 0 || r.cpu_period != 0 {
        let period = if r.cpu_period == 0 { PERIOD } else { r.cpu_period };
        let quota = if r.cpu_quota > 0 { r.cpu_quota.to_string() } else { "max".into() };
        out.push(set("cpu", "cpu.max", format!("{quota} {period}")));
    }
    if r.memory_limit != 0 {
        out.push(set("memory", "memory.max", limit(r.memory_limit)));
        // v1 counts memory and swap together, v2 swap alone.
        let swap = match r.memory_swap_limit {
            0 => "0".into(),
            -1 => "max".into(),
            both => (both - r.memory_limit).max(0).to_string(),
        };
        out.push(Setting { optional: true, ..set("memory", "memory.swap.max", swap) });
    }
    out
}

/// Raw v2 keys, each of the controller it is named after. Refused when the controller is not on v2.
pub(crate) fn unified(r: &Resources) -> Result<Vec<(String, Setting)>, Error> {
    let mut out = Vec::new();
    for (key, value) in &r.unified {
        let sound = key.contains('.') && !key.starts_with('.') && !key.contains(['/', '\0', '\n']);
        if !sound {
            return Err(Error::invalid("unified", format!("{key:?} is not a cgroup v2 key")));
        }
        let controller = key.split('.').next().unwrap_or_default().to_owned();
        for line in value.lines() {
            out.push((controller.clone(), set("", key, line)));
        }
    }
    Ok(out)
}

/// Huge page limits, for the v1 or the v2 spelling of the files.
///
/// The kubelet forbids (0) every page size that a pod has not asked for; a node without the controller, or one that cannot hand it
/// on, need not fail all its pods for that. A real limit has to hold.
pub(crate) fn huge_pages(r: &Resources, v2: bool) -> Result<Vec<Setting>, Error> {
    let mut out = Vec::new();
    for (size, bytes) in &r.hugepage_limits {
        let sound = !size.is_empty() && size.bytes().all(|b| b.is_ascii_alphanumeric());
        if !sound {
            return Err(Error::invalid("hugepage_limits", format!("{size:?} is not a page size")));
        }
        let (file, reserved) =
            if v2 { ("max", "rsvd.max") } else { ("limit_in_bytes", "rsvd.limit_in_bytes") };
        out.push(Setting {
            optional: *bytes == 0,
            ..set("hugetlb", &format!("hugetlb.{size}.{file}"), bytes)
        });
        out.push(Setting { optional: true, ..set("hugetlb", &format!("hugetlb.{size}.{reserved}"), bytes) });
    }
    Ok(out)
}

/// A v2 limit: negative is none.
fn limit(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    #[test]
    fn shares_become_the_weight_that_kubernetes_expects() {
        for (shares, expected) in [
            (0, 0),
            (1, 1),
            (2, 1),
            (102, 17),
            (512, 59),
            (1024, 100),
            (10240, 639),
            (262_144, 10_000),
            (999_999, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
    }

    #[test]
    fn no_swap_limit_means_no_swap() {
        let r = Resources { memory_limit: 1 << 20, ..Default::default() };
        assert_eq!(shown(&v1(&r)), ["memory.limit_in_bytes=1048576", "memory.memsw.limit_in_bytes=1048576"]);
        assert_eq!(shown(&v2(&r)), ["memory.max=1048576", "memory.swap.max=0"]);
        let more = Resources { memory_swap_limit: 3 << 20, ..r.clone() };
        assert_eq!(shown(&v2(&more))[1], "memory.swap.max=2097152");
        let any = Resources { memory_swap_limit: -1, ..r };
        assert_eq!(shown(&v2(&any))[1], "memory.swap.max=max");
    }

    #[test]
    fn quota_and_period_are_one_file_on_v2() {
        let r = Resources { cpu_quota: 20_000, cpu_period: 50_000, ..Default::default() };
        assert_eq!(shown(&v2(&r)), ["cpu.max=20000 50000"]);
        let none = Resources { cpu_quota: -1, ..Default::default() };
        assert_eq!(shown(&v2(&none)), ["cpu.max=max 100000"]);
        assert_eq!(shown(&v1(&none)), ["cpu.cfs_quota_us=-1"]);
    }

    #[test]
    fn a_unified_key_cannot_leave_the_cgroup() {
        for key in ["../cgroup.procs", "cgroup", "a/b.c", ".hidden"] {
            let r = Resources { unified: [(key.to_owned(), "1".to_owned())].into(), ..Default::default() };
            unified(&r).unwrap_err();
        }
    }
}
