//! Seccomp filters: profiles in, classic BPF out (seccomp(2)).
//!
//! [`profile`] reads a profile in Docker's or the OCI runtime specification's spelling and resolves what depends on the node
//! (capabilities, architecture, kernel); [`compile`] turns the result into one program per container. A program is a binary search
//! over ranges of system call numbers with the same verdict, which loads 3–4 times faster than a linear list and is cheaper to
//! run. `RuntimeDefault` is data: `runtime_default.json`. [`Cache`] compiles each (profile, capabilities) once.
//!
//! The filter is built in the daemon; the child only installs it.

mod arch;
mod compile;
mod document;
mod profile;
mod program;
mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::CString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::error::{Error, Kind};
use crate::spec::Profile as ProfileName;

/// The largest profile file that is read, in bytes.
const MAX_PROFILE: u64 = 4 << 20;
/// Filters kept; the cache starts over when it is full, so hostile variety costs time and not memory.
const MAX_CACHED: usize = 128;

const RUNTIME_DEFAULT: &[u8] = include_bytes!("runtime_default.json");

/// A compiled filter, ready for `seccomp(SECCOMP_SET_MODE_FILTER)`.
#[derive(Debug, PartialEq, Eq)]
pub struct Filter {
    /// `struct sock_filter[]` in native byte order, at most 4096 instructions.
    pub program: Box<[u8]>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u64,
    /// The agent that answers SCMP_ACT_NOTIFY; `flags` then has SECCOMP_FILTER_FLAG_NEW_LISTENER.
    pub listener: Option<Listener>,
}

/// An agent that decides on calls in the place of the kernel (seccomp_unotify(2)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The socket on which it waits for containers, an absolute path of the node.
    pub path: CString,
    /// What the profile has to say to it.
    pub metadata: Option<String>,
}

/// What of the node a filter depends on.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Major and minor version of the kernel.
    pub kernel: (u32, u32),
}

/// Digest of a profile's text, and the capabilities.
type Key = ([u8; 32], u64);

/// Compiles each profile once per set of capabilities.
#[derive(Debug)]
pub struct Cache {
    node: Node,
    filters: Mutex<HashMap<Key, Arc<Filter>>>,
}

impl Cache {
    /// An empty cache for this node.
    pub fn new(node: Node) -> Self {
        Self { node, filters: Mutex::new(HashMap::new()) }
    }

    /// The filter for a profile and an effective capability set (bit n is capability n, capabilities(7)). `None` is unconfined.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] names the file, and the line and column or the rule that cannot be honoured.
    pub fn filter(
        &self,
        name: Option<&ProfileName>,
        capabilities: u64,
    ) -> Result<Option<Arc<Filter>>, Error> {
        match source(name)? {
            None => Ok(None),
            Some((name, text)) => self.compiled(name, &text, capabilities),
        }
    }

    /// The same profile as data for somebody else who compiles it: in the OCI runtime specification's spelling, with nothing
    /// conditional any more.
    ///
    /// # Errors
    /// As [`Cache::filter`]; and a profile with an agent is refused.
    pub(crate) fn document(
        &self,
        name: Option<&ProfileName>,
        capabilities: u64,
    ) -> Result<Option<serde_json::Value>, Error> {
        let Some((name, text)) = source(name)? else { return Ok(None) };
        let resolved = self.resolved(name, &text, capabilities)?;
        if resolved.listener.is_some() {
            let why = "SCMP_ACT_NOTIFY is not offered by this handler";
            return Err(Error::invalid(&format!("seccomp profile {name}"), why));
        }
        Ok(Some(document::of(&resolved)))
    }

    fn resolved(&self, name: &str, text: &[u8], capabilities: u64) -> Result<profile::Resolved, Error> {
        let refuse = |why: String| Error::invalid(&format!("seccomp profile {name}"), why);
        let document: profile::Document = serde_json::from_slice(text).map_err(|e| refuse(e.to_string()))?;
        let facts = profile::Facts { capabilities, kernel: self.node.kernel, native: arch::NATIVE };
        profile::resolve(&document, &facts).map_err(refuse)
    }

    /// The filter for the text of a profile, in either spelling.
    ///
    /// # Errors
    /// As [`Cache::filter`].
    pub fn text(&self, name: &str, text: &[u8], capabilities: u64) -> Result<Option<Arc<Filter>>, Error> {
        self.compiled(name, text, capabilities)
    }

    fn compiled(&self, name: &str, text: &[u8], capabilities: u64) -> Result<Option<Arc<Filter>>, Error> {
        let key = (Sha256::digest(text).into(), capabilities);
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = filters.get(&key) {
            return Ok(Some(known.clone()));
        }
        let resolved = self.resolved(name, text, capabilities)?;
        let refuse = |why: String| Error::invalid(&format!("seccomp profile {name}"), why);
        let program = compile::compile(&resolved).map_err(refuse)?;
        let filter = Arc::new(Filter {
            program: program::bytes(&program),
            flags: resolved.flags,
            listener: resolved.listener,
        });
        if filters.len() >= MAX_CACHED {
            filters.clear();
        }
        filters.insert(key, filter.clone());
        Ok(Some(filter))
    }
}

/// Name and text of a profile.
type Named<'a> = (&'a str, Cow<'static, [u8]>);

/// Where a profile comes from; `None`: unconfined.
fn source(name: Option<&ProfileName>) -> Result<Option<Named<'_>>, Error> {
    Ok(match name {
        None | Some(ProfileName::Unconfined) => None,
        Some(ProfileName::RuntimeDefault) => Some(("runtime/default", RUNTIME_DEFAULT.into())),
        Some(ProfileName::Localhost(path)) => Some((path, read(path)?.into())),
    })
}

/// Reads a Localhost profile: an absolute path to a regular file of bounded size.
fn read(path: &str) -> Result<Vec<u8>, Error> {
    use std::io::Read;
    let named = |why: &str| Error::invalid("seccomp.localhost_ref", format!("{path}: {why}"));
    if !Path::new(path).is_absolute() {
        return Err(named("must be an absolute path"));
    }
    let failed = |e: std::io::Error| Error::with(Kind::InvalidArgument, format!("seccomp profile {path}"), e);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(named("is not a regular file"));
    }
    let mut text = Vec::new();
    file.by_ref().take(MAX_PROFILE + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_PROFILE {
        return Err(named("is larger than 4 MiB"));
    }
    Ok(text)
}
