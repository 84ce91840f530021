//! A network's plugins called one after the other: ADD, DEL, CHECK, GC and STATUS of the specification.
//!
//! ADD goes forward and hands each plugin's result to the next; DEL goes backward and carries on after a failure; CHECK
//! and STATUS stop at the first one. Versions decide what exists: CHECK from 0.4.0, GC and STATUS from 1.1.0; what is built in
//! collects garbage in any version.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::config::{Network, Plugin, at_least};
use super::invoke::{self, Call, Failure, TRY_AGAIN};
use super::result::Success;
use crate::plugins::{self, MakeTap};

/// "Try again later" of a plugin is obeyed within the deadline.
const AGAIN_PAUSE: Duration = Duration::from_millis(500);
/// The address manager whose files this program keeps in order, whoever wrote them.
const HOST_LOCAL: &str = "host-local";

/// The container side of a call.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) container: &'a str,
    pub(crate) netns: Option<&'a Path>,
    pub(crate) interface: &'a str,
    /// `CNI_ARGS`.
    pub(crate) args: &'a str,
    /// Capability arguments by capability; a plugin gets those it declared.
    pub(crate) capabilities: &'a Map<String, Value>,
}

/// An attachment that exists, for GC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Valid {
    pub(crate) container: String,
    pub(crate) interface: String,
}

/// A network and where its plugins are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain<'a> {
    pub(crate) network: &'a Network,
    pub(crate) path: &'a [PathBuf],
    /// Types that are run in process.
    pub(crate) built_in: &'a BTreeSet<String>,
    /// Makes tap links for them.
    pub(crate) tap: MakeTap,
    pub(crate) deadline: Instant,
}

/// The network's plugin types that are run in process: built-in ones that nobody installed. An executable in the plugin
/// directories is the administrator's choice and wins.
pub(crate) fn in_process(network: &Network, path: &[PathBuf]) -> BTreeSet<String> {
    let kinds = network.plugins.iter().map(|p| &p.kind);
    kinds
        .filter(|kind| plugins::NAMES.contains(&kind.as_str()) && invoke::find(kind, path).is_err())
        .cloned()
        .collect()
}

impl Chain<'_> {
    /// Attaches; the last plugin's result, in the network's version.
    pub(crate) fn add(&self, target: &Target<'_>) -> Result<Value, Failure> {
        let mut previous = None;
        for plugin in &self.network.plugins {
            previous = Some(self.add_one(plugin, target, previous.as_ref())?);
        }
        Ok(previous.unwrap_or_else(|| json!({ "cniVersion": self.network.version })))
    }

    fn add_one(
        &self,
        plugin: &Plugin,
        target: &Target<'_>,
        previous: Option<&Value>,
    ) -> Result<Value, Failure> {
        let config = self.config(plugin, Some(target), previous);
        let printed = loop {
            match self.call(plugin, "ADD", Some(target), &config) {
                Err(Failure::Failed { code: TRY_AGAIN, .. })
                    if Instant::now() + AGAIN_PAUSE < self.deadline =>
                {
                    std::thread::sleep(AGAIN_PAUSE);
                }
                other => break other?,
            }
        };
        let refuse = |why: String| Failure::Result { plugin: plugin.kind.clone().into(), why };
        let value: Value = serde_json::from_slice(&printed).map_err(|e| refuse(e.to_string()))?;
        // One version for the whole chain, whatever this plugin speaks.
        let result = Success::decode(&value, &self.network.version).map_err(refuse)?;
        result.encode(&self.network.version).map_err(refuse)
    }

    /// Detaches, last plugin first; every failure is kept.
    pub(crate) fn delete(&self, target: &Target<'_>, result: Option<&Value>) -> Vec<Failure> {
        let previous = result.filter(|_| at_least(&self.network.version, "0.4.0"));
        let calls = self.network.plugins.iter().rev().map(|plugin| {
            self.call(plugin, "DEL", Some(target), &self.config(plugin, Some(target), previous)).map(drop)
        });
        calls.filter_map(Result::err).collect()
    }

    /// Asks whether the attachment is as it was made. Versions without CHECK say yes.
    pub(crate) fn check(&self, target: &Target<'_>, result: &Value) -> Result<(), Failure> {
        if self.network.disable_check || !at_least(&self.network.version, "0.4.0") {
            return Ok(());
        }
        self.network.plugins.iter().try_for_each(|plugin| {
            self.call(plugin, "CHECK", Some(target), &self.config(plugin, Some(target), Some(result)))
                .map(drop)
        })
    }

    /// Lets plugins drop what belongs to no attachment in the list; every failure is kept.
    ///
    /// GC is of version 1.1.0. Built-in plugins are asked whatever the version: theirs is a function of this program. So are
    /// the files of `host-local` under somebody else's plugin: their format is common property, and the reference plugin,
    /// which has no GC, would never free an address whose DEL was lost.
    pub(crate) fn collect(&self, valid: &[Valid]) -> Vec<Failure> {
        if self.network.disable_gc {
            return Vec::new();
        }
        let valid: Vec<Value> =
            valid.iter().map(|v| json!({ "containerID": v.container, "ifname": v.interface })).collect();
        let mut failures = Vec::new();
        for plugin in &self.network.plugins {
            let mut config = self.config(plugin, None, None);
            if let Some(object) = config.as_object_mut() {
                // The second key is a misspelling that libcni once shipped and still sends.
                object.insert("cni.dev/valid-attachments".into(), Value::Array(valid.clone()));
                object.insert("cni.dev/attachments".into(), Value::Array(valid.clone()));
            }
            let built_in = self.built_in.contains(&plugin.kind);
            if built_in || at_least(&self.network.version, "1.1.0") {
                failures.extend(self.call(plugin, "GC", None, &config).err());
            }
            if !built_in && plugin.address_manager() == Some(HOST_LOCAL) {
                failures.extend(self.call_built_in(HOST_LOCAL, "GC", None, &config).err());
            }
        }
        failures
    }

    /// Asks whether the plugins could serve an ADD now. Versions without STATUS say yes.
    pub(crate) fn status(&self) -> Result<(), Failure> {
        if !at_least(&self.network.version, "1.1.0") {
            return Ok(());
        }
        self.network.plugins.iter().try_for_each(|plugin| {
            self.call(plugin, "STATUS", None, &self.config(plugin, None, None)).map(drop)
        })
    }

    /// The plugin's object with what every call adds to it (section 3 of the specification).
    fn config(&self, plugin: &Plugin, target: Option<&Target<'_>>, previous: Option<&Value>) -> Value {
        let mut object = plugin.raw.clone();
        object.insert("name".into(), json!(self.network.name));
        object.insert("cniVersion".into(), json!(self.network.version));
        let given = target.map(|t| t.capabilities).into_iter().flatten();
        let wanted: Map<String, Value> = given
            .filter(|(name, _)| plugin.capabilities.contains(*name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            object.insert("runtimeConfig".into(), Value::Object(wanted));
        }
        if let Some(previous) = previous {
            object.insert("prevResult".into(), previous.clone());
        }
        Value::Object(object)
    }

    fn call(
        &self,
        plugin: &Plugin,
        command: &'static str,
        target: Option<&Target<'_>>,
        config: &Value,
    ) -> Result<Vec<u8>, Failure> {
        if self.built_in.contains(&plugin.kind) {
            return self.call_built_in(&plugin.kind, command, target, config);
        }
        let executable = invoke::find(&plugin.kind, self.path)?;
        let call = Call {
            command,
            container: target.map_or("", |t| t.container),
            netns: target.and_then(|t| t.netns),
            interface: target.map_or("", |t| t.interface),
            args: target.map_or("", |t| t.args),
            path: self.path,
            deadline: self.deadline,
        };
        invoke::run(&executable, &call, config.to_string().as_bytes())
    }

    /// The same without a process: the plugin is a function of this program.
    fn call_built_in(
        &self,
        kind: &str,
        command: &'static str,
        target: Option<&Target<'_>>,
        config: &Value,
    ) -> Result<Vec<u8>, Failure> {
        let failed = |r: plugins::Refusal| Failure::Failed {
            plugin: format!("{kind} (built in)").into(),
            code: r.code,
            text: r.to_string(),
        };
        let request =
            plugins::Request::in_process(command, target, self.path, self.tap, config).map_err(failed)?;
        let answer = plugins::run(kind, &request).unwrap_or(Ok(None)).map_err(failed)?;
        let Some(success) = answer else { return Ok(Vec::new()) };
        let result = success.encode(&request.version);
        let result = result.map_err(|why| Failure::Result { plugin: kind.into(), why })?;
        Ok(result.to_string().into_bytes())
    }
}
