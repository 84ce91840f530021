//! Shares and limits of block devices: v1 has a file for each kind of limit, v2 one for all. And what a class of the configuration
//! comes down to on this node's devices.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::limits::{Setting, set};
use crate::error::{Error, Kind};
use crate::exec::classes::BlockioRule;

/// Settings for either version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Both {
    /// For the controller `blkio`.
    pub(crate) v1: Vec<Setting>,
    /// For the controller `io`.
    pub(crate) v2: Vec<Setting>,
}

/// What is limited: the file on v1, the key in `io.max` on v2.
pub(crate) type Limited = (&'static str, &'static str);
pub(crate) const READ_BPS: Limited = ("blkio.throttle.read_bps_device", "rbps");
pub(crate) const WRITE_BPS: Limited = ("blkio.throttle.write_bps_device", "wbps");
pub(crate) const READ_IOPS: Limited = ("blkio.throttle.read_iops_device", "riops");
pub(crate) const WRITE_IOPS: Limited = ("blkio.throttle.write_iops_device", "wiops");

impl Both {
    /// A share (10 to 1000) of all devices, or of one (`major:minor`).
    pub(crate) fn weight(&mut self, device: Option<&str>, weight: u16) {
        let (file, before) = match device {
            Some(number) => ("blkio.weight_device", format!("{number} ")),
            None => ("blkio.weight", String::new()),
        };
        self.v1.push(set("blkio", file, format!("{before}{weight}")));
        self.v2.push(set("io", "io.weight", format!("{before}{}", io_weight(weight))));
    }

    /// At most so much a second of a device (`major:minor`).
    pub(crate) fn throttle(&mut self, device: &str, (file, key): Limited, rate: u64) {
        self.v1.push(set("blkio", file, format!("{device} {rate}")));
        self.v2.push(set("io", "io.max", format!("{device} {key}={rate}")));
    }
}

/// io.weight (1..10000) for a weight of v1 (10..1000).
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.max(10) - 10) * 9999 / 990
}

/// What a class means here. A device that is named must be there; a pattern may match none.
pub(crate) fn of_class(class: &str, rules: &[BlockioRule]) -> Result<Both, Error> {
    let mut both = Both::default();
    for rule in rules {
        if rule.devices.is_empty() {
            rule.weight.into_iter().for_each(|weight| both.weight(None, weight));
        }
        for pattern in &rule.devices {
            for number in numbers(pattern).map_err(|e| e.context(format!("blockio class \"{class}\"")))? {
                rule.weight.into_iter().for_each(|weight| both.weight(Some(&number), weight));
                for (limited, rate) in [
                    (READ_BPS, rule.read_bps),
                    (WRITE_BPS, rule.write_bps),
                    (READ_IOPS, rule.read_iops),
                    (WRITE_IOPS, rule.write_iops),
                ] {
                    rate.into_iter().for_each(|rate| both.throttle(&number, limited, rate));
                }
            }
        }
    }
    Ok(both)
}

/// `major:minor` of the block devices that a path names or a pattern matches.
fn numbers(pattern: &str) -> Result<Vec<String>, Error> {
    let path = Path::new(pattern);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.contains(['*', '?']) {
        let failed = |e| Error::with(Kind::FailedPrecondition, format!("block device {pattern}"), e);
        let about = fs::metadata(path).map_err(failed)?;
        if !about.file_type().is_block_device() {
            return Err(Error::new(Kind::FailedPrecondition, format!("{pattern} is not a block device")));
        }
        return Ok(vec![number(about.rdev())]);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let failed = |e| Error::with(Kind::FailedPrecondition, format!("block devices {pattern}"), e);
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_str().is_some_and(|entry| matches(name.as_bytes(), entry.as_bytes())) {
            found.push(entry.path());
        }
    }
    found.sort();
    let blocks = found.into_iter().filter_map(|path| fs::metadata(path).ok());
    let mut numbers: Vec<String> = blocks
        .filter(|about| about.file_type().is_block_device())
        .map(|about| number(about.rdev()))
        .collect();
    numbers.dedup();
    Ok(numbers)
}

fn number(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// Whether a name is what a pattern of `*` and `?` says.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some(b'*'), _) => matches(&pattern[1..], name) || (!name.is_empty() && matches(pattern, &name[1..])),
        (Some(b'?'), Some(_)) => matches(&pattern[1..], &name[1..]),
        (Some(p), Some(n)) if p == n => matches(&pattern[1..], &name[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(|s| format!("{}={}", s.file, s.value)).collect()
    }

    #[test]
    fn a_class_is_settings_for_the_devices_it_matches() {
        let dir = PathBuf::from(format!("/tmp/berth-blockio-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for (name, minor) in [("sda", 0), ("sdb", 16)] {
            let device = rustix::fs::makedev(8, minor);
            let (kind, mode) = (rustix::fs::FileType::BlockDevice, rustix::fs::Mode::from_raw_mode(0o600));
            rustix::fs::mknodat(rustix::fs::CWD, dir.join(name), kind, mode, device).unwrap();
        }
        fs::write(dir.join("sdfile"), "").unwrap();
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let rules = [
            BlockioRule { weight: Some(100), ..BlockioRule::default() },
            BlockioRule { devices: vec![at("sd*")], read_bps: Some(50 << 20), ..BlockioRule::default() },
            BlockioRule {
                devices: vec![at("sda"), at("nv?me*")],
                weight: Some(10),
                write_iops: Some(7),
                ..BlockioRule::default()
            },
        ];
        let both = of_class("slow", &rules).unwrap();
        assert_eq!(
            shown(&both.v2),
            [
                "io.weight=910",
                "io.max=8:0 rbps=52428800",
                "io.max=8:16 rbps=52428800",
                "io.weight=8:0 1",
                "io.max=8:0 wiops=7"
            ]
        );
        assert_eq!(
            shown(&both.v1),
            [
                "blkio.weight=100",
                "blkio.throttle.read_bps_device=8:0 52428800",
                "blkio.throttle.read_bps_device=8:16 52428800",
                "blkio.weight_device=8:0 10",
                "blkio.throttle.write_iops_device=8:0 7",
            ]
        );
        for wrong in ["sdz", "sdfile"] {
            let rules =
                [BlockioRule { devices: vec![at(wrong)], weight: Some(10), ..BlockioRule::default() }];
            let error = of_class("slow", &rules).unwrap_err().chain();
            assert!(error.contains("\"slow\"") && error.contains(wrong), "{error}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("sd*", "sda", true),
            ("sd?", "sda1", false),
            ("*n1", "nvme0n1", true),
            ("*n1", "nvme0n1p1", false),
            ("*", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }
}
