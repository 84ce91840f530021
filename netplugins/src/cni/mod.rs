//! Other people's networks: the runtime side of CNI 1.1.
//!
//! In reading order: [`json`], [`config`] (one file), [`directory`] (all of them), [`result`] (what plugins answer), [`invoke`] (one execution), [`chain`] (a whole
//! network), [`request`] (what Kubernetes tells plugins), [`cache`] (what is kept of an attachment), this file (the driver).
//!
//! A pod may be attached to several networks: the first is its `eth0` and gives its addresses, the next its `eth1`.
//!
//! An attachment carries its own configuration, so that DEL does not depend on what the directory says by then. A pod never
//! waits for a broken plugin to let it go: a DEL that failed is kept in `pending` and repeated until it succeeds.

mod cache;
pub(crate) mod chain;
pub(crate) mod config;
mod directory;
pub(crate) mod invoke;
pub(crate) mod json;
pub(crate) mod keeper;
mod request;
pub(crate) mod result;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::{Attachment, Config, Endpoint, MakeTap, NetNs};

use cache::Cache;
use chain::{Chain, Target, Valid};
use config::{Broken, Network};
use directory::Directory;
pub(crate) use directory::Networks;

/// The kubelet gives RunPodSandbox four minutes.
const ADD_LIMIT: Duration = Duration::from_secs(120);
const DEL_LIMIT: Duration = Duration::from_secs(60);
const CHECK_LIMIT: Duration = Duration::from_secs(60);
const STATUS_LIMIT: Duration = Duration::from_secs(10);
const GC_LIMIT: Duration = Duration::from_secs(60);

/// The driver for configured networks.
#[derive(Debug)]
pub(crate) struct Cni {
    pub(crate) conf_dir: PathBuf,
    path: Vec<PathBuf>,
    /// Makes tap links for built-in plugins.
    tap: MakeTap,
    cache: Cache,
    directory: Mutex<Directory>,
    /// What the plugins last answered to STATUS.
    health: Mutex<Option<Result<(), String>>>,
    live: Mutex<HashMap<String, Attachment>>,
    /// Held shared by ADD, DEL and CHECK, alone by GC.
    exclusive: RwLock<()>,
}

/// The part of an [`Attachment`] that only this driver reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Records {
    /// Tells it from other drivers' records.
    driver: String,
    /// In the order of ADD.
    networks: Vec<Record>,
}

/// One network of an attachment.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// Interface name in the pod.
    interface: String,
    /// The network as it was configured at ADD.
    network: Value,
    /// `CNI_ARGS`.
    args: String,
    /// Capability arguments.
    capabilities: Map<String, Value>,
    /// Plugin types that ran in process at ADD, and so do at DEL.
    #[serde(default)]
    built_in: BTreeSet<String>,
    /// Result of ADD.
    result: Option<Value>,
}

const DRIVER: &str = "cni";

impl Cni {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            conf_dir: config.conf_dir.clone(),
            path: config.bin_dirs.clone(),
            tap: config.tap,
            cache: Cache::new(&config.state_dir.join("cni")),
            directory: Mutex::new(Directory::new(&config.conf_dir, config.max_networks)),
            health: Mutex::default(),
            live: Mutex::default(),
            exclusive: RwLock::default(),
        }
    }

    /// Whether an attachment is this driver's.
    pub(crate) fn owns(attachment: &Attachment) -> bool {
        attachment.private.get("driver").and_then(Value::as_str) == Some(DRIVER)
    }

    /// The networks pods are attached to now; `None`: the directory configures none.
    pub(crate) fn networks(&self) -> Option<Result<Networks, Broken>> {
        let (networks, changed) = lock(&self.directory).look();
        if changed {
            *lock(&self.health) = None;
        }
        networks
    }

    /// Whether pods can be attached; only called where there is a configuration. Never runs a plugin.
    pub(crate) fn status(&self, networks: &[Network]) -> Result<(), String> {
        for network in networks {
            let built_in = chain::in_process(network, &self.path);
            for plugin in network.plugins.iter().filter(|p| !built_in.contains(&p.kind)) {
                invoke::find(&plugin.kind, &self.path)
                    .map_err(|e| format!("network \"{}\": {e}", network.name))?;
            }
        }
        if !networks.iter().any(|network| config::at_least(&network.version, "1.1.0")) {
            return Ok(());
        }
        let answered = lock(&self.health).clone();
        answered.unwrap_or_else(|| {
            let names: Vec<&str> = networks.iter().map(|n| n.name.as_str()).collect();
            Err(format!("the plugins of network \"{}\" have not answered STATUS yet", names.join("\", \"")))
        })
    }

    /// What is wrong although pods can be attached.
    pub(crate) fn notice(&self) -> Option<String> {
        lock(&self.directory).notice()
    }

    pub(crate) fn reserve(&self, networks: &[Network], endpoint: &Endpoint, boot_id: &str) -> Attachment {
        let record = |(index, network): (usize, &Network)| Record {
            interface: format!("eth{index}"),
            network: config::encode(network),
            args: request::arguments(endpoint),
            capabilities: request::capabilities(endpoint),
            built_in: chain::in_process(network, &self.path),
            result: None,
        };
        let records: Vec<Record> = networks.iter().enumerate().map(record).collect();
        Attachment {
            id: endpoint.id.clone(),
            interface: records.first().map(|r| r.interface.clone()).unwrap_or_default(),
            boot_id: boot_id.into(),
            private: write(records),
            ..Attachment::default()
        }
    }

    pub(crate) fn attach(&self, ns: &NetNs, mut attachment: Attachment) -> Result<Attachment, Error> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let mut records = read(&attachment)?;
        for at in 0..records.len() {
            let Some((record, network)) = records.get_mut(at) else { break };
            match self.add(ns, &attachment.id, record, network) {
                Ok(success) if at == 0 => attachment.addresses = success.pod_addresses(),
                Ok(_) => {}
                Err(e) => {
                    // A DEL must follow even a failed ADD; networks that were not reached need none.
                    records.truncate(at + 1);
                    self.delete(&attachment, &records, Some(&ns.path));
                    return Err(e);
                }
            }
        }
        attachment.private = write(records.into_iter().map(|(record, _)| record).collect());
        lock(&self.live).insert(attachment.id.clone(), attachment.clone());
        Ok(attachment)
    }

    /// ADD of one network; its result is kept on disk before anybody relies on it.
    fn add(
        &self,
        ns: &NetNs,
        id: &str,
        record: &mut Record,
        network: &Network,
    ) -> Result<result::Success, Error> {
        let chain = self.chain(network, &record.built_in, ADD_LIMIT);
        let added = chain
            .add(&target(id, record, Some(&ns.path)))
            .map_err(Error::plugin(format!("attach pod {id} to network \"{}\"", network.name)))?;
        let success = result::Success::decode(&added, &network.version)
            .map_err(|why| Error::Format { path: "result of the plugins".into(), why })?;
        record.result = Some(added.clone());
        self.cache.store(network, &target(id, record, Some(&ns.path)), record, &added)?;
        Ok(success)
    }

    pub(crate) fn detach(&self, ns: Option<&Path>, attachment: &Attachment) -> Result<(), Error> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        lock(&self.live).remove(&attachment.id);
        self.delete(attachment, &read(attachment)?, ns);
        Ok(())
    }

    /// Asks the plugins whether the attachment is as they made it.
    pub(crate) fn check(&self, ns: &NetNs, attachment: &Attachment) -> Result<(), Error> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        for (record, network) in read(attachment)? {
            let result = record.result.clone().unwrap_or_default();
            let target = target(&attachment.id, &record, Some(&ns.path));
            let checked = self.chain(&network, &record.built_in, CHECK_LIMIT).check(&target, &result);
            checked.map_err(Error::plugin(format!(
                "find pod {} on network \"{}\"",
                attachment.id, network.name
            )))?;
        }
        Ok(())
    }

    /// Takes the live pods over, and removes what is left of others.
    pub(crate) fn restore(&self, live: &[&Attachment]) -> Result<Vec<String>, Error> {
        *lock(&self.live) = live.iter().map(|a| (a.id.clone(), (*a).clone())).collect();
        let mut found = Vec::new();
        for (files, attachment) in self.cache.orphans(|id| live.iter().any(|a| a.id == id))? {
            found.extend(files.iter().map(|file| format!("cached result {} of no pod", file.display())));
            self.detach(None, &attachment)?;
        }
        self.retry_pending();
        self.collect();
        Ok(found)
    }

    /// Runs DEL, last network first; a failure is logged and kept for later.
    fn delete(&self, attachment: &Attachment, records: &[(Record, Network)], ns: Option<&Path>) {
        let mut failed = false;
        for (record, network) in records.iter().rev() {
            let target = target(&attachment.id, record, ns);
            let chain = self.chain(network, &record.built_in, DEL_LIMIT);
            let failures = chain.delete(&target, record.result.as_ref());
            for failure in &failures {
                tracing::warn!(
                    pod = attachment.id,
                    network = network.name,
                    "DEL will be repeated: {}",
                    crate::error::chain(failure)
                );
            }
            if failures.is_empty() {
                self.cache.forget(network, &target);
            }
            failed |= !failures.is_empty();
        }
        let kept = if failed {
            self.cache.keep_pending(attachment)
        } else {
            self.cache.forget_pending(&attachment.id)
        };
        if let Err(e) = kept {
            tracing::warn!(pod = attachment.id, "{}", e.chain());
        }
    }

    /// Repeats every DEL that failed, without a namespace: it is gone by now.
    fn retry_pending(&self) {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        for attachment in self.cache.pending() {
            if let Ok(records) = read(&attachment) {
                self.delete(&attachment, &records, None);
            }
        }
    }

    /// GC of every network configured now, with the attachments it has, of whatever runtime.
    pub(crate) fn collect(&self) {
        let Some(Ok(networks)) = self.networks() else { return };
        let _alone = self.exclusive.write().unwrap_or_else(PoisonError::into_inner);
        let live = lock(&self.live).values().cloned().collect::<Vec<_>>();
        let all = [live, self.cache.pending()].concat();
        for network in networks.iter() {
            let built_in = chain::in_process(network, &self.path);
            let mut valid: Vec<Valid> = all.iter().flat_map(|a| valid(a, &network.name)).collect();
            valid.extend(self.cache.others(&network.name));
            for failure in self.chain(network, &built_in, GC_LIMIT).collect(&valid) {
                tracing::warn!(network = network.name, "GC: {}", crate::error::chain(&failure));
            }
        }
    }

    /// Asks STATUS; for the background.
    fn ask_health(&self) {
        let Some(Ok(networks)) = self.networks() else { return };
        let ask = |network: &Network| {
            let built_in = chain::in_process(network, &self.path);
            let answer = self.chain(network, &built_in, STATUS_LIMIT).status();
            answer.map_err(|e| format!("network \"{}\": {}", network.name, crate::error::chain(&e)))
        };
        let answer = networks.iter().try_for_each(ask);
        *lock(&self.health) = Some(answer);
    }

    fn chain<'a>(
        &'a self,
        network: &'a Network,
        built_in: &'a BTreeSet<String>,
        limit: Duration,
    ) -> Chain<'a> {
        Chain { network, path: &self.path, built_in, tap: self.tap, deadline: Instant::now() + limit }
    }
}

fn read(attachment: &Attachment) -> Result<Vec<(Record, Network)>, Error> {
    let refuse =
        |why: String| Error::Format { path: format!("network record of pod {}", attachment.id).into(), why };
    let records: Records =
        serde_json::from_value(attachment.private.clone()).map_err(|e| refuse(e.to_string()))?;
    let decode = |record: Record| {
        let network = config::decode(&record.network).map_err(refuse)?;
        Ok((record, network))
    };
    records.networks.into_iter().map(decode).collect()
}

fn write(networks: Vec<Record>) -> Value {
    let records = Records { driver: DRIVER.into(), networks };
    serde_json::to_value(&records).unwrap_or_default()
}

fn target<'a>(id: &'a str, record: &'a Record, netns: Option<&'a Path>) -> Target<'a> {
    Target {
        container: id,
        netns,
        interface: &record.interface,
        args: &record.args,
        capabilities: &record.capabilities,
    }
}

/// What an attachment has of a network.
fn valid(attachment: &Attachment, network: &str) -> Vec<Valid> {
    let records = read(attachment).unwrap_or_default();
    let own = records.into_iter().filter(|(_, n)| n.name == network);
    own.map(|(record, _)| Valid { container: attachment.id.clone(), interface: record.interface }).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
