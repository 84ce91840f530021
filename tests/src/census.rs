//! What exists on this machine, and what a suite has left behind.
//!
//! On a private machine nobody else makes mounts, links, addresses, cgroups or processes, so a census is complete and two of
//! them can be compared entry by entry. Nothing is filtered by name, but for the furniture which Berth puts up once and keeps:
//! its top cgroups, its gateway link, the random number generator it has opened, and its nftables table, of which only the
//! elements count.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{report, shell};

/// The cgroups that stay: Berth's own parents of pods and supervisors, and the kubelet's.
const FURNITURE: [&str; 5] = ["berth", "podd", "kubepods", "besteffort", "burstable"];

/// The link that is every pod's gateway; its link-local address comes with the first pod.
const GATEWAY: &str = "berthgw";

/// Everything that exists, each entry with how often it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census(BTreeMap<String, usize>);

// === impl Census ===

impl Census {
    /// Counts what exists now, including the open files of process `daemon`.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    pub fn take(daemon: u32) -> Result<Self> {
        let mut census = Self::default();
        census.mounts()?;
        census.cgroups(Path::new("/sys/fs/cgroup"))?;
        census.lines("link or address", &shell::run(10, "ip", &["-o", "address"])?);
        census.lines("link or address", &shell::run(10, "ip", &["-o", "link"])?);
        census.lines("route", &shell::run(10, "ip", &["route", "show", "table", "all"])?);
        census.lines("route", &shell::run(10, "ip", &["-6", "route", "show", "table", "all"])?);
        census.packet_filter()?;
        census.processes()?;
        census.files(daemon);
        Ok(census)
    }

    /// Waits until nothing is left that `before` did not have; processes end in their own time.
    ///
    /// # Errors
    /// Names what is left after ten seconds.
    pub fn settle(before: &Self, daemon: u32) -> Result<()> {
        let mut left = Vec::new();
        let settled = shell::eventually("nothing is left behind", 10, || {
            left = Self::take(daemon)?.beyond(before);
            Ok(left.is_empty().then_some(()))
        });
        if settled.is_err() {
            bail!("leaked: {}\n{}", left.len(), left.join("\n"));
        }
        report::line(format_args!(
            "        leaked: 0 (mounts, cgroups, netns, links, addresses, routes, nft elements, processes, files)"
        ));
        Ok(())
    }

    /// What is here and was not there.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let more = |(entry, &count): (&String, &usize)| {
            let had = before.0.get(entry).copied().unwrap_or(0);
            (count > had).then(|| format!("{entry} ({had} before, {count} now)"))
        };
        self.0.iter().filter_map(more).collect()
    }

    fn add(&mut self, kind: &str, entry: &str) {
        *self.0.entry(format!("{kind} {entry}")).or_default() += 1;
    }

    fn lines(&mut self, kind: &str, text: &str) {
        // Neighbour timers and the like tick in the tail of a line; identity is in what comes before.
        for line in text.lines().map(|line| line.split(" expires ").next().unwrap_or(line)) {
            let stable = line.split("\\ ").next().unwrap_or(line).trim();
            if !stable.split([' ', ':', '@']).any(|word| word == GATEWAY) {
                self.add(kind, stable);
            }
        }
    }

    /// Mounts without their ids, which are never the same twice. A bound network namespace is a mount too.
    fn mounts(&mut self) -> Result<()> {
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let kind = line.split(" - ").nth(1).unwrap_or_default();
            self.add("mount", &format!("{} at {} ({kind})", words[3], words[4]));
        }
        Ok(())
    }

    fn cgroups(&mut self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                if !path.file_name().is_some_and(|name| FURNITURE.iter().any(|&known| name == known)) {
                    self.add("cgroup", &path.display().to_string());
                }
                // A directory may vanish between the two calls; then it is not there.
                let _ = self.cgroups(&path);
            }
        }
        Ok(())
    }

    /// Elements of sets and maps, and the rules of every table that is not Berth's.
    fn packet_filter(&mut self) -> Result<()> {
        let listing: Value = serde_json::from_str(&shell::run(10, "nft", &["-j", "list", "ruleset"])?)?;
        for object in listing["nftables"].as_array().into_iter().flatten() {
            for kind in ["set", "map"] {
                for element in object[kind]["elem"].as_array().into_iter().flatten() {
                    let name = format!("{}/{}", object[kind]["table"], object[kind]["name"]);
                    self.add("nft element", &format!("{name} {element}"));
                }
            }
            let rule = &object["rule"];
            if rule.is_object() && !rule["table"].as_str().is_some_and(|table| table.starts_with("berth")) {
                self.add("nft rule", &format!("{}/{} {}", rule["table"], rule["chain"], rule["expr"]));
            }
        }
        Ok(())
    }

    /// Processes by command line, and the network namespaces they are in.
    fn processes(&mut self) -> Result<()> {
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let number =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
            let Ok(cmdline) = fs::read(path.join("cmdline")) else { continue };
            if number.is_none() || number == Some(std::process::id()) {
                continue;
            }
            let name = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
            self.add("process", &format!("{} [{}]", name.trim(), comm.trim()));
            if let Ok(netns) = fs::read_link(path.join("ns/net")) {
                self.0.insert(format!("network namespace {}", netns.display()), 1);
            }
        }
        Ok(())
    }

    /// Open files of the daemon by kind: paths as they are, anonymous ones without their number.
    fn files(&mut self, daemon: u32) {
        for entry in fs::read_dir(format!("/proc/{daemon}/fd")).into_iter().flatten().flatten() {
            if let Ok(target) = fs::read_link(entry.path()) {
                let text = target.display().to_string();
                if text != "/dev/urandom" {
                    self.add("file of the daemon", text.split(":[").next().unwrap_or_default());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_named_and_what_is_gone_is_not() {
        let (mut before, mut after) = (Census::default(), Census::default());
        before.add("mount", "old");
        before.add("mount", "both");
        after.add("mount", "both");
        after.add("mount", "both");
        after.add("cgroup", "new");
        assert_eq!(after.beyond(&before), ["cgroup new (0 before, 1 now)", "mount both (1 before, 2 now)"]);
        assert!(before.beyond(&before).is_empty());
    }
}
