//! Every configuration, in every form that results have: ADD, CHECK, DEL, DEL again, and no trace of it afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::Test;
use crate::configurations::{self, Case};
use crate::lab::{Lab, Namespace, Site, VERSIONS, everything, lacks, versioned};

pub(crate) const TESTS: &[Test] =
    &[("every_configuration_is_added_checked_and_deleted_without_a_trace", every_configuration)];

/// Versions to try, from a configuration's first on: those given, or one of each form that results have, another one for every
/// configuration.
fn choose(versions: &[&'static str], index: usize, since: &str) -> Vec<&'static str> {
    let fit = |all: &[&'static str]| all.iter().filter(|v| **v >= since).copied().collect::<Vec<_>>();
    match std::env::var("CNI_VERSIONS").as_deref() {
        Ok("all") => fit(versions),
        Ok(list) => fit(versions).into_iter().filter(|v| list.split(',').any(|l| l == *v)).collect(),
        Err(_) if versions.len() != VERSIONS.len() => fit(versions),
        Err(_) => {
            let forms = [&VERSIONS[..2], &VERSIONS[2..5], &VERSIONS[5..]].map(fit);
            forms.iter().filter_map(|form| form.get(index % form.len().max(1)).copied()).collect()
        }
    }
}

/// Runs `body` for every configuration and version, on several threads; how many there were.
pub(crate) fn each(lab: &Lab, versions: &[&'static str], body: impl Fn(&Case, &str, &str) + Sync) -> usize {
    configurations::files(&lab.data("files"));
    let cases = configurations::all();
    let kinds: BTreeSet<&str> = cases.iter().flat_map(|c| c.needs).copied().collect();
    let missing: BTreeMap<&str, String> = kinds.into_iter().filter_map(|k| Some((k, lacks(k)?))).collect();
    let chosen = std::env::var("CNI_CASE").unwrap_or_default();
    let chosen = |case: &Case| chosen.split(',').any(|part| case.name.contains(part));
    let serves = |case: &&Case| chosen(case) && !case.needs.iter().any(|kind| missing.contains_key(kind));
    let work: Vec<(&Case, &str)> = cases
        .iter()
        .filter(serves)
        .enumerate()
        .flat_map(|(i, case)| choose(versions, i, case.since).into_iter().map(move |v| (case, v)))
        .collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some((case, version)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let label = format!("{}-{version}", case.name.replace(' ', "-"));
                    let run = std::panic::AssertUnwindSafe(|| body(case, version, &label));
                    if std::panic::catch_unwind(run).is_err() {
                        failures.lock().unwrap().push(format!("{} {version}", case.name));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {}: {failures:#?}", failures.len(), work.len());
    if !missing.is_empty() {
        let left_out: Vec<String> = missing.into_values().collect();
        assert!(!everything(), "{left_out:?}");
        crate::say(&format!("    left out: {}", left_out.join(", ")));
    }
    work.len()
}

/// The chain with its directories and version.
pub(crate) fn chain(case: &Case, version: &str, lab: &Lab, label: &str) -> Vec<Value> {
    let (data, files) = (lab.data(label), lab.data("files"));
    let fill = |plugin: &Value| {
        let text = plugin.to_string();
        let text = text.replace("{DATA}", data.to_str().unwrap()).replace("{FILES}", files.to_str().unwrap());
        versioned(&serde_json::from_str(&text).unwrap(), version)
    };
    case.plugins.iter().map(fill).collect()
}

/// A node and a pod as the configuration wants them.
pub(crate) fn site<'a>(case: &Case, bin: &'a Path) -> Site<'a> {
    let site = Site { args: case.args, ..Site::new(bin) };
    site.node.sh(if case.node.is_empty() { "true" } else { case.node });
    site.pod.sh(if case.pod.is_empty() { "true" } else { case.pod });
    site
}

fn every_configuration(lab: &Lab) -> Option<String> {
    // One version of each form that results have.
    each(lab, &["0.2.0", "0.4.0", "1.1.0"], |case, version, label| {
        let plugins = chain(case, version, lab, &format!("own-{label}"));
        let site = site(case, &lab.ours);
        let before = traces(&site.node);
        match site.add_all(&plugins) {
            Ok(result) => {
                let wanted = if plugins[0]["type"] == "loopback" { "1.1.0" } else { version };
                assert!(result["cniVersion"] == version || result["cniVersion"] == wanted, "{result}");
                if version >= "0.4.0" {
                    site.all("CHECK", &plugins, &result);
                }
                site.all("DEL", &plugins, &result);
                site.all("DEL", &plugins, &result);
            }
            Err(refusal) => {
                assert!(refusal["msg"].as_str().is_some_and(|m| !m.is_empty()), "{refusal}");
                // What a refused ADD made is taken down by the DELs that follow it, which may find nothing to do.
                plugins.iter().rev().for_each(|plugin| drop(site.call("DEL", plugin)));
            }
        }
        assert_eq!(before, traces(&site.node), "{} {version}", case.name);
        assert_eq!(held(&lab.data(&format!("own-{label}"))), 0, "{} {version}", case.name);
    });
    None
}

/// What a pod may leave on a node, but for the bridges, which stay.
fn traces(node: &Namespace) -> String {
    node.sh("ip -o link | sed 's/^[0-9]*: //' | grep -vE '^(cni0|cnx0)[:@.]|^veth[0-9a-f]*@cnx0|master cnx0' | cut -d' ' -f1 | sort
        nft list ruleset | grep 'comment \"testnet/c1/eth0' || true")
}

/// How many addresses a data directory holds.
fn held(data: &Path) -> usize {
    let entries = std::fs::read_dir(data.join("testnet")).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().parse::<std::net::IpAddr>().is_ok()).count()
}
