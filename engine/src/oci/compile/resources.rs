//! Limits of a bundle (config-linux.md, "Control groups"): what the engine's own table knows, and the rest as settings. Pure.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};

use crate::error::{Error, Kind};
use crate::exec::cgroup::blockio::{Both, READ_BPS, READ_IOPS, WRITE_BPS, WRITE_IOPS};
use crate::exec::cgroup::devices::{Access, Rule, Rules};
use crate::exec::cgroup::limits::{Setting, set};
use crate::spec::Resources;

/// Everything a cgroup is to be told.
#[derive(Debug, Default, PartialEq)]
pub(in crate::oci) struct Limits {
    /// What CRI containers have, too.
    pub(in crate::oci) common: Resources,
    /// The rest, for controllers on v1.
    pub(in crate::oci) v1: Vec<Setting>,
    /// The rest, for controllers on v2.
    pub(in crate::oci) v2: Vec<Setting>,
}

fn optional(setting: Setting) -> Setting {
    Setting { optional: true, ..setting }
}

/// Reads the limits. Numbers beyond 63 bits are errors.
pub(in crate::oci) fn limits(resources: &LinuxResources) -> Result<Limits, Error> {
    let signed = |field: &str, value: u64| {
        i64::try_from(value).map_err(|_| Error::invalid(field, format!("{value} is out of range")))
    };
    let mut limits = Limits::default();
    if let Some(cpu) = resources.cpu() {
        let common = &mut limits.common;
        common.cpu_shares = signed("cpu.shares", cpu.shares().unwrap_or(0))?;
        common.cpu_quota = cpu.quota().unwrap_or(0);
        common.cpu_period = signed("cpu.period", cpu.period().unwrap_or(0))?;
        common.cpuset_cpus = cpu.cpus().clone().unwrap_or_default();
        common.cpuset_mems = cpu.mems().clone().unwrap_or_default();
        if let Some(burst) = cpu.burst() {
            limits.v1.push(set("cpu", "cpu.cfs_burst_us", burst));
            limits.v2.push(set("cpu", "cpu.max.burst", burst));
        }
        if let Some(period) = cpu.realtime_period() {
            limits.v1.push(set("cpu", "cpu.rt_period_us", period));
        }
        if let Some(runtime) = cpu.realtime_runtime() {
            limits.v1.push(set("cpu", "cpu.rt_runtime_us", runtime));
        }
        if let Some(idle) = cpu.idle() {
            limits.v1.push(set("cpu", "cpu.idle", idle));
            limits.v2.push(set("cpu", "cpu.idle", idle));
        }
    }
    if let Some(memory) = resources.memory() {
        memory_limits(memory, &mut limits);
    }
    if let Some(pids) = resources.pids() {
        // Zero and less mean no limit, as every runtime has read it.
        let most = if pids.limit() <= 0 { "max".to_owned() } else { pids.limit().to_string() };
        limits.v1.push(set("pids", "pids.max", &most));
        limits.v2.push(set("pids", "pids.max", most));
    }
    if let Some(block) = resources.block_io() {
        block_limits(block, &mut limits);
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        let bytes =
            u64::try_from(huge.limit()).map_err(|_| Error::invalid("hugepageLimits", "is negative"))?;
        limits.common.hugepage_limits.push((huge.page_size().clone(), bytes));
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            limits.v1.push(set("net_cls", "net_cls.classid", class));
        }
        for one in network.priorities().iter().flatten() {
            limits.v1.push(set(
                "net_prio",
                "net_prio.ifpriomap",
                format!("{} {}", one.name(), one.priority()),
            ));
        }
    }
    for (device, rdma) in resources.rdma().iter().flatten() {
        let most = |n: Option<u32>| n.map_or("max".to_owned(), |n| n.to_string());
        let value = format!(
            "{device} hca_handle={} hca_object={}",
            most(rdma.hca_handles()),
            most(rdma.hca_objects())
        );
        limits.v1.push(set("rdma", "rdma.max", &value));
        limits.v2.push(set("rdma", "rdma.max", value));
    }
    limits.common.unified =
        resources.unified().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(limits)
}

/// Memory. Unlike for the CRI, swap that is not mentioned stays as it is.
fn memory_limits(memory: &LinuxMemory, limits: &mut Limits) {
    let most = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if let Some(limit) = memory.limit().filter(|l| *l != 0) {
        limits.v1.push(set("memory", "memory.limit_in_bytes", limit.max(-1)));
        limits.v2.push(set("memory", "memory.max", most(limit)));
    }
    if let Some(both) = memory.swap().filter(|s| *s != 0) {
        limits.v1.push(optional(set("memory", "memory.memsw.limit_in_bytes", both.max(-1))));
        // v1 counts memory and swap together, v2 swap alone.
        let swap = if both < 0 { -1 } else { (both - memory.limit().unwrap_or(0).max(0)).max(0) };
        limits.v2.push(optional(set("memory", "memory.swap.max", most(swap))));
    }
    if let Some(reservation) = memory.reservation().filter(|r| *r != 0) {
        limits.v1.push(set("memory", "memory.soft_limit_in_bytes", reservation.max(-1)));
        limits.v2.push(set("memory", "memory.low", most(reservation)));
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|k| *k != 0) {
        limits.v1.push(set("memory", "memory.kmem.tcp.limit_in_bytes", tcp.max(-1)));
    }
    if let Some(swappiness) = memory.swappiness() {
        limits.v1.push(set("memory", "memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer() == Some(true) {
        limits.v1.push(set("memory", "memory.oom_control", 1));
    }
}

/// Block devices.
fn block_limits(block: &LinuxBlockIo, limits: &mut Limits) {
    let mut both = Both::default();
    block.weight().filter(|w| *w != 0).into_iter().for_each(|weight| both.weight(None, weight));
    for device in block.weight_device().iter().flatten() {
        let number = format!("{}:{}", device.major(), device.minor());
        device.weight().into_iter().for_each(|weight| both.weight(Some(&number), weight));
        if let Some(weight) = device.leaf_weight() {
            both.v1.push(set("blkio", "blkio.leaf_weight_device", format!("{number} {weight}")));
        }
    }
    if let Some(weight) = block.leaf_weight().filter(|w| *w != 0) {
        both.v1.push(set("blkio", "blkio.leaf_weight", weight));
    }
    let mut throttle = |devices: &Option<Vec<LinuxThrottleDevice>>, limited| {
        for device in devices.iter().flatten() {
            both.throttle(&format!("{}:{}", device.major(), device.minor()), limited, device.rate());
        }
    };
    throttle(block.throttle_read_bps_device(), READ_BPS);
    throttle(block.throttle_write_bps_device(), WRITE_BPS);
    throttle(block.throttle_read_iops_device(), READ_IOPS);
    throttle(block.throttle_write_iops_device(), WRITE_IOPS);
    limits.v1.extend(both.v1);
    limits.v2.extend(both.v2);
}

/// Device rules: nothing at first, then the bundle's in order, then what no program can be without.
pub(in crate::oci) fn device_rules(resources: Option<&LinuxResources>) -> Result<Rules, Error> {
    let mut rules = Vec::new();
    for device in resources.and_then(|r| r.devices().as_ref()).into_iter().flatten() {
        let rule = device_rule(device)?;
        let everything = rule.major.is_none() && rule.minor.is_none() && rule.access == Access::ALL;
        if rule.kind == b'a' && !everything {
            // v1 takes "a" for everything, whatever follows.
            rules.extend(b"cb".map(|kind| (device.allow(), Rule { kind, ..rule })));
        } else {
            rules.push((device.allow(), rule));
        }
    }
    rules.extend(Rules::usual().into_iter().map(|rule| (true, rule)));
    Ok(Rules::Ordered(rules))
}

fn device_rule(device: &LinuxDeviceCgroup) -> Result<Rule, Error> {
    let field = "linux.resources.devices";
    let kind = match device.typ() {
        Some(LinuxDeviceType::B) => b'b',
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => b'c',
        Some(LinuxDeviceType::A) | None => b'a',
        Some(LinuxDeviceType::P) => return Err(Error::invalid(field, "a FIFO is no device")),
    };
    // -1 is an old spelling of "all".
    let number = |n: Option<i64>| match n {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n)
            .map(Some)
            .map_err(|_| Error::new(Kind::InvalidArgument, format!("{field}: {n} is no device number"))),
    };
    let access = match device.access().as_deref() {
        None | Some("") => Access::ALL,
        Some(text) => Access::parse(text)?,
    };
    Ok(Rule { kind, major: number(device.major())?, minor: number(device.minor())?, access })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Limits {
        limits(&serde_json::from_str(json).unwrap()).unwrap()
    }

    fn shown(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    #[test]
    fn swap_counts_with_memory_on_v1_and_alone_on_v2() {
        let l = read(r#"{"memory":{"limit":1000,"swap":3000,"swappiness":7},"pids":{"limit":-1}}"#);
        assert_eq!(
            shown(&l.v1),
            [
                "memory.limit_in_bytes=1000",
                "memory.memsw.limit_in_bytes=3000",
                "memory.swappiness=7",
                "pids.max=max"
            ]
        );
        assert_eq!(shown(&l.v2), ["memory.max=1000", "memory.swap.max=2000", "pids.max=max"]);
    }

    #[test]
    fn limits_of_block_devices_have_a_file_each_on_v1_and_one_on_v2() {
        let l =
            read(r#"{"blockIO":{"weight":500,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":9}]}}"#);
        assert_eq!(shown(&l.v1), ["blkio.weight=500", "blkio.throttle.read_bps_device=8:0 9"]);
        assert_eq!(shown(&l.v2), ["io.weight=4950", "io.max=8:0 rbps=9"]);
    }

    #[test]
    fn device_rules_keep_their_order() {
        let json = r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]}"#;
        let Rules::Ordered(rules) = device_rules(Some(&serde_json::from_str(json).unwrap())).unwrap() else {
            panic!("not in order")
        };
        assert_eq!((rules[0].0, rules[0].1.kind, rules[0].1.major), (false, b'a', None));
        assert_eq!((rules[1].0, rules[1].1.kind, rules[1].1.minor), (true, b'c', Some(229)));
        assert!(rules[2..].iter().all(|(allow, _)| *allow));
    }
}
