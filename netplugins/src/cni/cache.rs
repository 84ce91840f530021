//! What is kept on disk of attachments: results in libcni's format, and DELs that have to be repeated.
//!
//! `<state_dir>/cni/results/<network>-<container>-<interface>` is what libcni writes (`cniCacheV1`), readable by the same
//! tools. `<state_dir>/cni/pending/<container>` holds the attachment whose DEL failed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Record;
use super::chain::{Target, Valid};
use super::config::{self, Network};
use crate::Attachment;
use crate::error::Error;

const KIND: &str = "cniCacheV1";
/// Where other runtimes keep theirs: libcni's default.
const OTHERS: &str = "/var/lib/cni/results";
/// Larger files are not cached results.
const MAX_BYTES: u64 = 4 << 20;

/// The directories.
#[derive(Debug)]
pub(super) struct Cache {
    results: PathBuf,
    pending: PathBuf,
    others: PathBuf,
}

/// libcni's record.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    container_id: String,
    config: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    capability_args: Map<String, Value>,
    /// Plugin types that ran in process; libcni ignores it.
    #[serde(default)]
    built_in: BTreeSet<String>,
    result: Value,
}

impl Cache {
    pub(super) fn new(directory: &Path) -> Self {
        Self { results: directory.join("results"), pending: directory.join("pending"), others: OTHERS.into() }
    }

    /// Keeps the result of an ADD.
    pub(super) fn store(
        &self,
        network: &Network,
        target: &Target<'_>,
        record: &Record,
        result: &Value,
    ) -> Result<(), Error> {
        let arguments = target.args.split(';').filter_map(|pair| pair.split_once('='));
        let cached = Cached {
            kind: KIND.into(),
            container_id: target.container.into(),
            config: STANDARD.encode(record.network.to_string()),
            if_name: target.interface.into(),
            network_name: network.name.clone(),
            netns: target.netns.map(|p| p.display().to_string()).unwrap_or_default(),
            cni_args: arguments.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            capability_args: target.capabilities.clone(),
            built_in: record.built_in.clone(),
            result: result.clone(),
        };
        write(&self.file(network, target), &serde_json::to_value(cached).unwrap_or_default())
    }

    /// Drops the result; absent is fine.
    pub(super) fn forget(&self, network: &Network, target: &Target<'_>) {
        let file = self.file(network, target);
        if let Err(e) = remove(&file) {
            tracing::warn!("{}", e.chain());
        }
    }

    /// Attachments whose pods are not live, rebuilt from what is cached, with their files.
    pub(super) fn orphans(
        &self,
        live: impl Fn(&str) -> bool,
    ) -> Result<Vec<(Vec<PathBuf>, Attachment)>, Error> {
        let mut orphans: BTreeMap<String, Vec<(PathBuf, Record)>> = BTreeMap::new();
        for file in list(&self.results)? {
            let bytes = fs::read(&file).map_err(Error::file("read", &file))?;
            match serde_json::from_slice::<Cached>(&bytes) {
                Ok(cached) if live(&cached.container_id) => {}
                Ok(cached) => {
                    let id = cached.container_id.clone();
                    let record = cached.record().map(|record| (file, record));
                    orphans.entry(id).or_default().extend(record);
                }
                Err(e) => tracing::warn!("{} is no cached result: {e}", file.display()),
            }
        }
        orphans.retain(|_, found| !found.is_empty());
        let attachment = |(id, mut found): (String, Vec<(PathBuf, Record)>)| {
            found.sort_by(|a, b| a.1.interface.cmp(&b.1.interface));
            let (files, records): (Vec<PathBuf>, Vec<Record>) = found.into_iter().unzip();
            let interface = records.first().map(|r| r.interface.clone()).unwrap_or_default();
            (files, Attachment { id, interface, private: super::write(records), ..Attachment::default() })
        };
        Ok(orphans.into_iter().map(attachment).collect())
    }

    /// What other runtimes of this node have attached to a network: containerd with the same configuration, say, whose pods
    /// are not gone because this daemon does not know them. Their namespaces tell which attachments still exist.
    pub(super) fn others(&self, network: &str) -> Vec<Valid> {
        let read = |file: PathBuf| {
            let small = fs::metadata(&file).is_ok_and(|about| about.len() <= MAX_BYTES);
            serde_json::from_slice::<Cached>(&small.then(|| fs::read(&file))?.ok()?).ok()
        };
        let cached = list(&self.others).unwrap_or_default().into_iter().filter_map(read);
        let there = |c: &Cached| c.network_name == network && Path::new(&c.netns).exists();
        cached.filter(there).map(|c| Valid { container: c.container_id, interface: c.if_name }).collect()
    }

    /// Keeps an attachment whose DEL has to be repeated.
    pub(super) fn keep_pending(&self, attachment: &Attachment) -> Result<(), Error> {
        write(&self.pending.join(&attachment.id), &serde_json::to_value(attachment).unwrap_or_default())
    }

    /// The DEL succeeded; absent is fine.
    pub(super) fn forget_pending(&self, id: &str) -> Result<(), Error> {
        remove(&self.pending.join(id))
    }

    /// All of them.
    pub(super) fn pending(&self) -> Vec<Attachment> {
        let files = list(&self.pending).unwrap_or_default();
        files.iter().filter_map(|f| serde_json::from_slice(&fs::read(f).ok()?).ok()).collect()
    }

    fn file(&self, network: &Network, target: &Target<'_>) -> PathBuf {
        self.results.join(format!("{}-{}-{}", network.name, target.container, target.interface))
    }
}

impl Cached {
    fn record(self) -> Option<Record> {
        let network: Value = serde_json::from_slice(&STANDARD.decode(&self.config).ok()?).ok()?;
        config::decode(&network).ok()?;
        let pairs: BTreeMap<&str, &str> =
            self.cni_args.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let args = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(";");
        Some(Record {
            interface: self.if_name,
            network,
            args,
            capabilities: self.capability_args,
            built_in: self.built_in,
            result: Some(self.result),
        })
    }
}

/// Complete files only: temporary ones begin with a dot.
fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("read", directory)(e)),
    };
    let visible = |path: &PathBuf| !path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(visible).collect();
    files.sort();
    Ok(files)
}

fn write(file: &Path, value: &Value) -> Result<(), Error> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(Error::file("create", directory))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}"));
    fs::write(&temporary, value.to_string()).map_err(Error::file("write", &temporary))?;
    fs::rename(&temporary, file).map_err(Error::file("write", file))
}

fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", file)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn attachments_of_other_runtimes_count_while_their_namespaces_exist() {
        let dir = TempDir::new("cache");
        let cache = Cache { others: dir.path().to_owned(), ..Cache::new(&dir.path().join("own")) };
        let keep = |network: &str, container: &str, netns: &str| {
            let cached = json!({ "kind": KIND, "containerId": container, "config": "e30=", "ifName": "eth0",
                "networkName": network, "netns": netns, "result": { "cniVersion": "1.0.0" } });
            fs::write(dir.path().join(format!("{network}-{container}-eth0")), cached.to_string()).unwrap();
        };
        keep("n", "live", "/proc/self/ns/net");
        keep("n", "dead", "/nowhere");
        keep("m", "elsewhere", "/proc/self/ns/net");
        fs::write(dir.path().join("n-garbage-eth0"), "{").unwrap();
        assert_eq!(cache.others("n"), [Valid { container: "live".into(), interface: "eth0".into() }]);
    }
}
