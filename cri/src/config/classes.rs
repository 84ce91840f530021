//! Classes of resources: `[rdt.NAME]` and `[[blockio.NAME]]`.

use std::collections::BTreeMap;

use engine::exec::classes::{BlockioRule, Classes};

use super::{Error, bytes, file};

/// The classes of both kinds; a value without meaning is refused by its key.
pub(super) fn classes(
    rdt: Option<BTreeMap<String, file::RdtClass>>,
    blockio: Option<BTreeMap<String, Vec<file::BlockioRule>>>,
) -> Result<Classes, Error> {
    let mut classes = Classes::default();
    for (name, class) in rdt.unwrap_or_default() {
        let reserved = ["", ".", "..", "info", "mon_groups", "mon_data"].contains(&name.as_str());
        if reserved || name.contains(['/', '\n']) {
            let why = "is not the name of a resctrl group".to_owned();
            return Err(Error::value(&format!("rdt.{name}"), why));
        }
        if let Some(line) = class.schemata.iter().find(|line| !line.contains(':') || line.contains('\n')) {
            let why = format!("\"{line}\" is not a line like \"L3:0=ff\"");
            return Err(Error::value(&format!("rdt.{name}.schemata"), why));
        }
        classes.rdt.insert(name, class.schemata);
    }
    for (name, rules) in blockio.unwrap_or_default() {
        let rules: Result<Vec<_>, Error> =
            rules.into_iter().map(|rule| blockio_rule(&format!("blockio.{name}"), rule)).collect();
        classes.blockio.insert(name, rules?);
    }
    Ok(classes)
}

fn blockio_rule(at: &str, rule: file::BlockioRule) -> Result<BlockioRule, Error> {
    let rate =
        |key: &str, text: Option<String>| text.map(|text| bytes(&format!("{at}.{key}"), &text)).transpose();
    let rule = BlockioRule {
        weight: rule.weight,
        read_bps: rate("read_bps", rule.read_bps)?,
        write_bps: rate("write_bps", rule.write_bps)?,
        read_iops: rule.read_iops,
        write_iops: rule.write_iops,
        devices: rule.devices,
    };
    if let Some(device) = rule.devices.iter().find(|device| !device.starts_with('/') || device.ends_with('/'))
    {
        return Err(Error::value(
            &format!("{at}.devices"),
            format!("\"{device}\" is not the path of a device"),
        ));
    }
    if let Some(weight) = rule.weight.filter(|weight| !(10..=1000).contains(weight)) {
        return Err(Error::value(&format!("{at}.weight"), format!("{weight} is not one of 10 to 1000")));
    }
    let limited =
        [rule.read_bps, rule.write_bps, rule.read_iops, rule.write_iops].iter().any(Option::is_some);
    if limited && rule.devices.is_empty() {
        return Err(Error::value(&format!("{at}.devices"), "is missing: a limit is one of a device".into()));
    }
    if !limited && rule.weight.is_none() {
        return Err(Error::value(at, "says neither weight nor limit".into()));
    }
    Ok(rule)
}
