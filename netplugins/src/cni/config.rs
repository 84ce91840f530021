//! Network configurations: files of a directory, decoded and checked before anything is run.
//!
//! CNI specification 1.1, section 1. The first file by name rules, whether it is good or not: skipping a broken
//! `10-real.conflist` for a valid `90-leftover.conflist` would put pods on the wrong network.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::json;
use crate::error::Error;
use crate::name;

/// The newest version of the specification this runtime speaks.
pub(crate) const NEWEST: &str = "1.1.0";
/// All versions, oldest first.
pub(crate) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Larger files are not configurations.
const MAX_BYTES: u64 = 1 << 20;

/// A network: plugins that are called one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    /// Network name.
    pub(crate) name: String,
    /// Version spoken with the plugins.
    pub(crate) version: String,
    /// No CHECK.
    pub(crate) disable_check: bool,
    /// No GC.
    pub(crate) disable_gc: bool,
    /// In the order of ADD.
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plugin {
    /// Name of the executable.
    pub(crate) kind: String,
    /// Capabilities it asks for.
    pub(crate) capabilities: BTreeSet<String>,
    /// Its configuration object as written.
    pub(crate) raw: Map<String, Value>,
}

/// A file that is no network configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Which file.
    pub(crate) file: PathBuf,
    /// What is wrong, with line and column where JSON itself is.
    pub(crate) why: String,
}

impl Plugin {
    /// The plugin that gives it addresses (`ipam.type`).
    pub(crate) fn address_manager(&self) -> Option<&str> {
        self.raw.get("ipam")?.get("type")?.as_str()
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.why)
    }
}

/// Configuration files of a directory in the order that counts; an absent directory has none.
pub(crate) fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::file("read", directory)(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::file("read", directory))?.path();
        let named = path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json");
        if named && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one file. `.conflist` holds a list; the others hold a list too, or one plugin.
pub(crate) fn load(file: &Path) -> Result<Network, Broken> {
    let broken = |why: String| Broken { file: file.to_owned(), why };
    let mut value = read(file).map_err(broken)?;
    let list = value.as_object_mut().ok_or_else(|| broken("it is not a JSON object".into()))?;
    if !list.contains_key("plugins") && list.contains_key("type") {
        *list = as_list(std::mem::take(list));
    }
    if !flag(list, "loadOnlyInlinedPlugins").map_err(broken)? {
        let directory =
            list.get("name").and_then(Value::as_str).and_then(|name| Some(file.parent()?.join(name)));
        append_dropped_in(list, directory.as_deref())?;
    }
    decode(&value).map_err(broken)
}

/// Decodes a list, as loaded or as kept with an attachment.
pub(crate) fn decode(value: &Value) -> Result<Network, String> {
    let list = value.as_object().ok_or("it is not a JSON object")?;
    let network_name = text(list, "name")?.ok_or("\"name\" is missing")?;
    name::check_id(&network_name, "a CNI network").map_err(|e| e.to_string())?;
    let plugins = list.get("plugins").and_then(Value::as_array).ok_or("\"plugins\" is not a list")?;
    if plugins.is_empty() {
        return Err("\"plugins\" is empty".into());
    }
    Ok(Network {
        name: network_name,
        version: version(list)?,
        disable_check: flag(list, "disableCheck")?,
        disable_gc: flag(list, "disableGC")?,
        plugins: plugins.iter().enumerate().map(|(i, p)| plugin(i, p)).collect::<Result<_, _>>()?,
    })
}

/// The list that [`decode`] reads back, for the record of an attachment.
pub(crate) fn encode(network: &Network) -> Value {
    let plugins: Vec<Value> = network.plugins.iter().map(|p| Value::Object(p.raw.clone())).collect();
    serde_json::json!({
        "cniVersion": network.version,
        "name": network.name,
        "disableCheck": network.disable_check,
        "disableGC": network.disable_gc,
        "plugins": plugins,
    })
}

/// Whether version `a` is at least `b`; both are of [`VERSIONS`].
pub(crate) fn at_least(a: &str, b: &str) -> bool {
    let rank = |v: &str| VERSIONS.iter().position(|known| *known == v);
    rank(a) >= rank(b)
}

fn read(file: &Path) -> Result<Value, String> {
    let length = fs::metadata(file).map_err(|e| e.to_string())?.len();
    if length > MAX_BYTES {
        return Err(format!("it has {length} bytes; a configuration has at most {MAX_BYTES}"));
    }
    let bytes = fs::read(file).map_err(|e| e.to_string())?;
    // serde_json's text ends in "at line L column C".
    json::parse(&bytes).map_err(|e| e.to_string())
}

/// A single plugin's file as a list of one.
fn as_list(plugin: Map<String, Value>) -> Map<String, Value> {
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        list.extend(plugin.get(key).map(|v| (key.to_owned(), v.clone())));
    }
    list.insert("plugins".into(), Value::Array(vec![Value::Object(plugin)]));
    list
}

/// Adds `<directory>/*.conf` to the list's plugins.
fn append_dropped_in(list: &mut Map<String, Value>, directory: Option<&Path>) -> Result<(), Broken> {
    let Some(directory) = directory else { return Ok(()) };
    let dropped = files(directory).map_err(|e| Broken { file: directory.to_owned(), why: e.chain() })?;
    for file in dropped.into_iter().filter(|f| f.extension().is_some_and(|e| e == "conf")) {
        let value = read(&file).map_err(|why| Broken { file: file.clone(), why })?;
        let plugins = list.entry("plugins").or_insert_with(|| Value::Array(Vec::new()));
        if let Some(plugins) = plugins.as_array_mut() {
            plugins.push(value);
        }
    }
    Ok(())
}

fn plugin(index: usize, value: &Value) -> Result<Plugin, String> {
    let raw = value.as_object().ok_or(format!("plugin {index} is not an object"))?.clone();
    let kind =
        text(&raw, "type")?.filter(|t| !t.is_empty()).ok_or(format!("plugin {index} has no \"type\""))?;
    if kind.contains('/') || kind == "." || kind == ".." {
        return Err(format!("plugin {index}: type \"{kind}\" is a path"));
    }
    let wanted = raw.get("capabilities").and_then(Value::as_object);
    let capabilities = wanted.into_iter().flatten().filter(|(_, v)| **v == Value::Bool(true));
    Ok(Plugin { kind, capabilities: capabilities.map(|(k, _)| k.clone()).collect(), raw })
}

/// The highest version that both sides know; 0.1.0 where none is given.
fn version(list: &Map<String, Value>) -> Result<String, String> {
    let one = text(list, "cniVersion")?.filter(|v| !v.is_empty());
    let several = list.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let offered: BTreeSet<String> = several.filter_map(Value::as_str).map(str::to_owned).chain(one).collect();
    if offered.is_empty() {
        return Ok("0.1.0".into());
    }
    let known = VERSIONS.iter().rev().find(|known| offered.contains(**known));
    known.map(|v| (*v).to_owned()).ok_or_else(|| {
        let offered: Vec<String> = offered.into_iter().collect();
        format!("CNI version {} is not known; the newest known one is {NEWEST}", offered.join(", "))
    })
}

/// A boolean, which may be written as a string (libcni accepts both).
fn flag(list: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match list.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(Value::String(s)) if s == "true" || s == "false" => Ok(s == "true"),
        Some(_) => Err(format!("\"{key}\" is neither true nor false")),
    }
}

fn text(object: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(_) => Err(format!("\"{key}\" is not a string")),
    }
}

#[cfg(test)]
mod tests;
