//! Resource limits, both ways.

use engine::Error;
use engine::spec::Resources;

use super::no_nul;
use crate::proto;

/// Reads limits. 0 and empty mean unset; what the kernel can never accept is refused here, by name.
pub fn resources(at: &str, r: Option<proto::LinuxContainerResources>) -> Result<Resources, Error> {
    let Some(r) = r else { return Ok(Resources::default()) };
    let invalid = |field: &str, why: &str| Err(Error::invalid(&format!("{at}.{field}"), why));
    if r.cpu_period != 0 && !(1_000..=1_000_000).contains(&r.cpu_period) {
        return invalid("cpu_period", "must be between 1000 and 1000000 microseconds");
    }
    if (1..1_000).contains(&r.cpu_quota) {
        return invalid("cpu_quota", "must be at least 1000 microseconds");
    }
    if r.cpu_shares < 0 {
        return invalid("cpu_shares", "must not be negative");
    }
    if r.memory_limit_in_bytes < 0 {
        return invalid("memory_limit_in_bytes", "must not be negative");
    }
    if r.memory_swap_limit_in_bytes < -1 {
        return invalid(
            "memory_swap_limit_in_bytes",
            "must be -1 (no limit), 0 (unset) or a number of bytes",
        );
    }
    if r.memory_swap_limit_in_bytes > 0 && r.memory_swap_limit_in_bytes < r.memory_limit_in_bytes {
        return invalid("memory_swap_limit_in_bytes", "is memory plus swap, so not below the memory limit");
    }
    if !(-1000..=1000).contains(&r.oom_score_adj) {
        return invalid("oom_score_adj", "must be between -1000 and 1000");
    }
    for (field, list) in [("cpuset_cpus", &r.cpuset_cpus), ("cpuset_mems", &r.cpuset_mems)] {
        if !list.chars().all(|c| c.is_ascii_digit() || ",- \n".contains(c)) {
            return invalid(field, "is not a list like \"0-3,8\"");
        }
    }
    Ok(Resources {
        cpu_period: r.cpu_period,
        cpu_quota: r.cpu_quota,
        cpu_shares: r.cpu_shares,
        memory_limit: r.memory_limit_in_bytes,
        oom_score_adj: r.oom_score_adj,
        cpuset_cpus: r.cpuset_cpus.trim().to_owned(),
        cpuset_mems: r.cpuset_mems.trim().to_owned(),
        hugepage_limits: hugepages(at, r.hugepage_limits)?,
        unified: unified(at, r.unified)?,
        memory_swap_limit: r.memory_swap_limit_in_bytes,
    })
}

fn hugepages(at: &str, limits: Vec<proto::HugepageLimit>) -> Result<Vec<(String, u64)>, Error> {
    let limit = |(i, l): (usize, proto::HugepageLimit)| {
        let digits = l.page_size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let unit = &l.page_size[digits.len()..];
        let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if !number || !matches!(unit, "KB" | "MB" | "GB") {
            let field = format!("{at}.hugepage_limits[{i}].page_size");
            return Err(Error::invalid(
                &field,
                format_args!("\"{}\" is not a size like \"2MB\"", l.page_size),
            ));
        }
        Ok((l.page_size, l.limit))
    };
    limits.into_iter().enumerate().map(limit).collect()
}

/// Keys become file names below the cgroup, so they must be plain ones.
fn unified(
    at: &str,
    keys: std::collections::BTreeMap<String, String>,
) -> Result<std::collections::BTreeMap<String, String>, Error> {
    for (key, value) in &keys {
        let field = format!("{at}.unified");
        let plain = key.contains('.') && !key.starts_with('.') && !key.contains("..");
        if !plain || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            return Err(Error::invalid(&field, format_args!("\"{key}\" is not a cgroup v2 key")));
        }
        no_nul(&field, value.clone())?;
    }
    Ok(keys)
}

/// Writes limits back, for ContainerStatus.
pub fn encode(r: &Resources) -> proto::LinuxContainerResources {
    let hugepage =
        |(size, limit): &(String, u64)| proto::HugepageLimit { page_size: size.clone(), limit: *limit };
    proto::LinuxContainerResources {
        cpu_period: r.cpu_period,
        cpu_quota: r.cpu_quota,
        cpu_shares: r.cpu_shares,
        memory_limit_in_bytes: r.memory_limit,
        oom_score_adj: r.oom_score_adj,
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        hugepage_limits: r.hugepage_limits.iter().map(hugepage).collect(),
        unified: r.unified.clone(),
        memory_swap_limit_in_bytes: r.memory_swap_limit,
    }
}
