//! Other people's networks: the runtime side of CNI 1.1.
//!
//! In reading order: [`json`], [`config`] (files), [`result`] (what plugins answer), [`invoke`] (one execution), [`chain`] (a whole
//! network), [`request`] (what Kubernetes tells plugins), [`cache`] (what is kept of an attachment), this file (the driver).
//!
//! The directory is looked at whenever an answer depends on it: a scan costs some twenty microseconds, needs no watcher
//! and cannot miss an event. A file is decoded only when something changed. While the first file is broken, the last good
//! configuration stays in use and the file is named.
//!
//! An attachment carries its own configuration, so that DEL does not depend on what the directory says by then. A pod never
//! waits for a broken plugin to let it go: a DEL that failed is kept in `pending` and repeated until it succeeds.

mod cache;
pub(crate) mod chain;
pub(crate) mod config;
pub(crate) mod invoke;
pub(crate) mod json;
pub(crate) mod keeper;
mod request;
pub(crate) mod result;

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::{Attachment, Config, Endpoint, NetNs};

use cache::Cache;
use chain::{Chain, Target, Valid};
use config::{Broken, Network};

/// Interface name in the pod.
const POD_LINK: &str = "eth0";
/// The kubelet gives RunPodSandbox four minutes.
const ADD_LIMIT: Duration = Duration::from_secs(120);
const DEL_LIMIT: Duration = Duration::from_secs(60);
const CHECK_LIMIT: Duration = Duration::from_secs(60);
const STATUS_LIMIT: Duration = Duration::from_secs(10);
const GC_LIMIT: Duration = Duration::from_secs(60);

/// The driver for configured networks.
#[derive(Debug)]
pub(crate) struct Cni {
    conf_dir: PathBuf,
    path: Vec<PathBuf>,
    cache: Cache,
    loaded: Mutex<Loaded>,
    /// What the plugins last answered to STATUS.
    health: Mutex<Option<Result<(), String>>>,
    live: Mutex<HashMap<String, Attachment>>,
    /// Held shared by ADD, DEL and CHECK, alone by GC.
    exclusive: RwLock<()>,
}

/// What the directory last said.
#[derive(Debug, Default)]
struct Loaded {
    signature: Option<Signature>,
    network: Option<Arc<Network>>,
    broken: Option<Broken>,
}

/// Identity, size and times of every file that counts: it changes whenever one of them does.
type Signature = Vec<(PathBuf, u64, u64, i64, i64)>;

/// The part of an [`Attachment`] that only this driver reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// Tells it from other drivers' records.
    driver: String,
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
            cache: Cache::new(&config.state_dir.join("cni")),
            loaded: Mutex::default(),
            health: Mutex::default(),
            live: Mutex::default(),
            exclusive: RwLock::default(),
        }
    }

    /// Whether an attachment is this driver's.
    pub(crate) fn owns(attachment: &Attachment) -> bool {
        attachment.private.get("driver").and_then(Value::as_str) == Some(DRIVER)
    }

    /// The network pods are attached to now; `None`: the directory configures none.
    pub(crate) fn network(&self) -> Option<Result<Arc<Network>, Broken>> {
        let mut loaded = lock(&self.loaded);
        let files = config::files(&self.conf_dir).unwrap_or_default();
        let signature = sign(&self.conf_dir, &files);
        if loaded.signature.as_ref() != Some(&signature) {
            loaded.signature = Some(signature);
            self.load(&mut loaded, files.first());
        }
        match (&loaded.network, &loaded.broken) {
            (Some(network), _) => Some(Ok(Arc::clone(network))),
            (None, Some(broken)) => Some(Err(broken.clone())),
            (None, None) => None,
        }
    }

    fn load(&self, loaded: &mut Loaded, first: Option<&PathBuf>) {
        match first.map(|file| config::load(file)) {
            None => (loaded.network, loaded.broken) = (None, None),
            Some(Ok(network)) => {
                if loaded.network.as_deref() != Some(&network) {
                    tracing::info!(
                        network = network.name,
                        version = network.version,
                        "network configuration loaded"
                    );
                    *lock(&self.health) = None;
                }
                (loaded.network, loaded.broken) = (Some(Arc::new(network)), None);
            }
            Some(Err(broken)) => {
                tracing::warn!("{broken}");
                loaded.broken = Some(broken);
            }
        }
    }

    /// Whether pods can be attached; only called where there is a configuration. Never runs a plugin.
    pub(crate) fn status(&self, network: &Network) -> Result<(), String> {
        let built_in = chain::in_process(network, &self.path);
        for plugin in network.plugins.iter().filter(|p| !built_in.contains(&p.kind)) {
            invoke::find(&plugin.kind, &self.path)
                .map_err(|e| format!("network \"{}\": {e}", network.name))?;
        }
        if !config::at_least(&network.version, "1.1.0") {
            return Ok(());
        }
        let answered = lock(&self.health).clone();
        answered.unwrap_or_else(|| {
            Err(format!("the plugins of network \"{}\" have not answered STATUS yet", network.name))
        })
    }

    /// What is wrong although pods can be attached.
    pub(crate) fn notice(&self) -> Option<String> {
        let loaded = lock(&self.loaded);
        let broken = loaded.broken.as_ref().filter(|_| loaded.network.is_some())?;
        Some(format!("{broken}; the last good configuration stays in use"))
    }

    pub(crate) fn reserve(&self, network: &Network, endpoint: &Endpoint, boot_id: &str) -> Attachment {
        let record = Record {
            driver: DRIVER.into(),
            network: config::encode(network),
            args: request::arguments(endpoint),
            capabilities: request::capabilities(endpoint),
            built_in: chain::in_process(network, &self.path),
            result: None,
        };
        Attachment {
            id: endpoint.id.clone(),
            interface: POD_LINK.into(),
            boot_id: boot_id.into(),
            private: serde_json::to_value(&record).unwrap_or_default(),
            ..Attachment::default()
        }
    }

    pub(crate) fn attach(&self, ns: &NetNs, mut attachment: Attachment) -> Result<Attachment, Error> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let (mut record, network) = read(&attachment)?;
        let target = target(&attachment, &record, Some(&ns.path));
        let chain = self.chain(&network, &record.built_in, ADD_LIMIT);
        let added = chain.add(&target).map_err(|e| {
            // A DEL must follow even a failed ADD.
            self.delete(&attachment, &record, &network, Some(&ns.path));
            Error::plugin(format!("attach pod {} to network \"{}\"", attachment.id, network.name))(e)
        })?;
        let success = result::Success::decode(&added, &network.version)
            .map_err(|why| Error::Format { path: "result of the plugins".into(), why })?;
        self.cache.store(&network, &target, &record, &added)?;
        record.result = Some(added);
        attachment.addresses = success.pod_addresses();
        attachment.private = serde_json::to_value(&record).unwrap_or_default();
        lock(&self.live).insert(attachment.id.clone(), attachment.clone());
        Ok(attachment)
    }

    pub(crate) fn detach(&self, ns: Option<&Path>, attachment: &Attachment) -> Result<(), Error> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        lock(&self.live).remove(&attachment.id);
        let (record, network) = read(attachment)?;
        self.delete(attachment, &record, &network, ns);
        Ok(())
    }

    /// Asks the plugins whether the attachment is as they made it.
    pub(crate) fn check(&self, ns: &NetNs, attachment: &Attachment) -> Result<(), Error> {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        let (record, network) = read(attachment)?;
        let result = record.result.clone().unwrap_or_default();
        let target = target(attachment, &record, Some(&ns.path));
        let checked = self.chain(&network, &record.built_in, CHECK_LIMIT).check(&target, &result);
        checked.map_err(Error::plugin(format!("find pod {} on network \"{}\"", attachment.id, network.name)))
    }

    /// Takes the live pods over, and removes what is left of others.
    pub(crate) fn restore(&self, live: &[&Attachment]) -> Result<Vec<String>, Error> {
        *lock(&self.live) = live.iter().map(|a| (a.id.clone(), (*a).clone())).collect();
        let mut found = Vec::new();
        for (file, attachment) in self.cache.orphans(|id| live.iter().any(|a| a.id == id))? {
            found.push(format!("cached result {} of no pod", file.display()));
            self.detach(None, &attachment)?;
        }
        self.retry_pending();
        self.collect();
        Ok(found)
    }

    /// Runs DEL; a failure is logged and kept for later.
    fn delete(&self, attachment: &Attachment, record: &Record, network: &Network, ns: Option<&Path>) {
        let failures = self.try_delete(attachment, record, network, ns);
        for failure in &failures {
            tracing::warn!(
                pod = attachment.id,
                network = network.name,
                "DEL will be repeated: {}",
                crate::error::chain(failure)
            );
        }
        let kept = if failures.is_empty() {
            self.cache.forget_pending(&attachment.id)
        } else {
            self.cache.keep_pending(attachment)
        };
        if let Err(e) = kept {
            tracing::warn!(pod = attachment.id, "{}", e.chain());
        }
    }

    fn try_delete(
        &self,
        attachment: &Attachment,
        record: &Record,
        network: &Network,
        ns: Option<&Path>,
    ) -> Vec<invoke::Failure> {
        let target = target(attachment, record, ns);
        let failures =
            self.chain(network, &record.built_in, DEL_LIMIT).delete(&target, record.result.as_ref());
        if failures.is_empty() {
            self.cache.forget(network, &target);
        }
        failures
    }

    /// Repeats every DEL that failed, without a namespace: it is gone by now.
    fn retry_pending(&self) {
        let _shared = self.exclusive.read().unwrap_or_else(PoisonError::into_inner);
        for attachment in self.cache.pending() {
            if let Ok((record, network)) = read(&attachment) {
                self.delete(&attachment, &record, &network, None);
            }
        }
    }

    /// GC with all live attachments, for the network configured now.
    fn collect(&self) {
        let Some(Ok(network)) = self.network() else { return };
        let _alone = self.exclusive.write().unwrap_or_else(PoisonError::into_inner);
        let live = lock(&self.live).values().map(valid).collect::<Vec<_>>();
        let pending = self.cache.pending().iter().map(valid).collect::<Vec<_>>();
        let built_in = chain::in_process(&network, &self.path);
        for failure in self.chain(&network, &built_in, GC_LIMIT).collect(&[live, pending].concat()) {
            tracing::warn!(network = network.name, "GC: {}", crate::error::chain(&failure));
        }
    }

    /// Asks STATUS; for the background.
    fn ask_health(&self) {
        let Some(Ok(network)) = self.network() else { return };
        let answer = self.chain(&network, &chain::in_process(&network, &self.path), STATUS_LIMIT).status();
        let answer = answer.map_err(|e| format!("network \"{}\": {}", network.name, crate::error::chain(&e)));
        *lock(&self.health) = Some(answer);
    }

    fn chain<'a>(
        &'a self,
        network: &'a Network,
        built_in: &'a BTreeSet<String>,
        limit: Duration,
    ) -> Chain<'a> {
        Chain { network, path: &self.path, built_in, deadline: Instant::now() + limit }
    }
}

fn read(attachment: &Attachment) -> Result<(Record, Network), Error> {
    let refuse =
        |why: String| Error::Format { path: format!("network record of pod {}", attachment.id).into(), why };
    let record: Record =
        serde_json::from_value(attachment.private.clone()).map_err(|e| refuse(e.to_string()))?;
    let network = config::decode(&record.network).map_err(refuse)?;
    Ok((record, network))
}

fn target<'a>(attachment: &'a Attachment, record: &'a Record, netns: Option<&'a Path>) -> Target<'a> {
    Target {
        container: &attachment.id,
        netns,
        interface: &attachment.interface,
        args: &record.args,
        capabilities: &record.capabilities,
    }
}

fn valid(attachment: &Attachment) -> Valid {
    Valid { container: attachment.id.clone(), interface: attachment.interface.clone() }
}

/// Signs the configuration files and those dropped in below.
fn sign(directory: &Path, files: &[PathBuf]) -> Signature {
    let below =
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir());
    let dropped = below.flat_map(|dir| config::files(&dir).unwrap_or_default());
    let mut signature: Signature = files
        .iter()
        .cloned()
        .chain(dropped)
        .filter_map(|file| {
            let meta = std::fs::metadata(&file).ok()?;
            let changed = meta.ctime().checked_mul(1_000_000_000)? + meta.ctime_nsec();
            Some((file, meta.ino(), meta.len(), meta.mtime_nsec(), changed))
        })
        .collect();
    signature.sort();
    signature
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
