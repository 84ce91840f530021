//! `update`: other limits for a running container.

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::args::Parsed;
use super::compile::resources;
use super::rdt::{self, Rdt};
use super::store::{Record, Status};
use super::{Context, Outcome, bundle};
use crate::error::{Error, Kind};
use crate::exec::rdt::Resctrl;

/// Options with their place in the resources.
const FIELDS: [(&str, &str, &str); 15] = [
    ("blkio-weight", "blockIO", "weight"),
    ("cpu-period", "cpu", "period"),
    ("cpu-quota", "cpu", "quota"),
    ("cpu-burst", "cpu", "burst"),
    ("cpu-share", "cpu", "shares"),
    ("cpu-rt-period", "cpu", "realtimePeriod"),
    ("cpu-rt-runtime", "cpu", "realtimeRuntime"),
    ("cpu-idle", "cpu", "idle"),
    ("cpuset-cpus", "cpu", "cpus"),
    ("cpuset-mems", "cpu", "mems"),
    ("memory", "memory", "limit"),
    ("memory-reservation", "memory", "reservation"),
    ("memory-swap", "memory", "swap"),
    ("kernel-memory-tcp", "memory", "kernelTCP"),
    ("pids-limit", "pids", "limit"),
];

/// `update ID`: from options, or with `--resources` from a file or (`-`) standard input.
pub(super) fn update(context: &Context, parsed: &Parsed) -> Outcome {
    let record = context.store.read(parsed.id()?)?;
    if context.store.status(&record) == Status::Stopped {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!("cannot update container \"{}\": container not running", record.id),
        ));
    }
    let mut schemata = Vec::new();
    for option in ["l3-cache-schema", "mem-bw-schema"] {
        let Some(text) = parsed.string(option)?.filter(|text| !text.is_empty()) else { continue };
        if Rdt::of(&record.id, &record.spec).is_none() {
            return Err(rdt::none(option));
        }
        schemata.extend(text.lines().map(str::to_owned));
    }
    let given = parsed.path("resources").is_some() || FIELDS.iter().any(|(option, ..)| parsed.has(option));
    if given || schemata.is_empty() {
        change_limits(&record, parsed)?;
    }
    match Rdt::of(&record.id, &record.spec) {
        Some(rdt) if !schemata.is_empty() => rdt.change(&Resctrl::default(), &schemata).map(|()| 0),
        _ => Ok(0),
    }
}

/// Writes limits to the container's cgroup.
fn change_limits(record: &Record, parsed: &Parsed) -> Result<(), Error> {
    let wanted: LinuxResources = match parsed.path("resources") {
        Some(path) if path.as_os_str() == "-" => {
            bundle::json(&bundle::bounded(std::io::stdin().lock(), "standard input")?)?
        }
        Some(path) => bundle::json(&bundle::bytes(&path)?)?,
        None => bundle::json(options(parsed)?.to_string().as_bytes())?,
    };
    let limits = resources::limits(&wanted)?;
    record.manager().update(&record.cgroup, &limits.common, &limits.v1, &limits.v2)
}

/// The options as the document they stand for.
fn options(parsed: &Parsed) -> Result<Value, Error> {
    let mut document = Map::new();
    for (option, group, field) in FIELDS {
        let Some(text) = parsed.string(option)? else { continue };
        let value = if field == "cpus" || field == "mems" {
            json!(text)
        } else if matches!(field, "limit" | "reservation" | "swap" | "kernelTCP") && group == "memory" {
            json!(bytes(option, &text)?)
        } else {
            let number: i64 = text
                .parse()
                .map_err(|_| Error::invalid(&format!("--{option}"), format!("{text:?} is no number")))?;
            json!(number)
        };
        let group = document.entry(group).or_insert_with(|| json!({}));
        group[field] = value;
    }
    if document.is_empty() {
        return Err(Error::new(Kind::InvalidArgument, "update: nothing is to be changed"));
    }
    Ok(Value::Object(document))
}

/// A size with an optional `k`, `m`, `g` (powers of 1024); -1 is no limit.
fn bytes(option: &str, text: &str) -> Result<i64, Error> {
    let bad = || Error::invalid(&format!("--{option}"), format!("{text:?} is no size"));
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, factor) = match lower.char_indices().last() {
        Some((at, 'k')) => (&lower[..at], 1 << 10),
        Some((at, 'm')) => (&lower[..at], 1 << 20),
        Some((at, 'g')) => (&lower[..at], 1 << 30),
        _ => (lower, 1),
    };
    let number: i64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(factor).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, expected) in
            [("-1", -1), ("0", 0), ("4096", 4096), ("5k", 5 << 10), ("2M", 2 << 20), ("1gb", 1 << 30)]
        {
            assert_eq!(bytes("memory", text).unwrap(), expected, "{text}");
        }
        for bad in ["", "k", "1t", "9999999999999999g", "x"] {
            bytes("memory", bad).unwrap_err();
        }
    }
}
