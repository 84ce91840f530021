//! Which hosts to ask for a registry's content, in both formats that nodes have, read anew at each pull.
//!
//! | a configured place | is | read by |
//! |---|---|---|
//! | `…/certs.d` | a directory of `<host>/hosts.toml`, as containerd has it, or of `<host>/*.crt`, as Docker has it | `hosts_toml`, `certs` |
//! | `….conf` | a `registries.conf`, version 2, with drop-ins in `….conf.d/*.conf`, as CRI-O has it | `registries_conf` |
//!
//! The first place that says something about a registry counts, and alone: two files never mix. Without any, a registry is asked itself,
//! with https, or with plain http on loopback.

mod certs;
mod hosts_toml;
mod place;
mod registries_conf;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::RegistryError;
use crate::reference::{self, ImageRef};

pub use hosts_toml::parse as parse_hosts_toml;
pub use registries_conf::parse as parse_registries_conf;

/// Largest configuration file read, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// Most names one short name may stand for.
const NAMES_MAX: usize = 16;

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// Content by digest.
    Pull,
    /// What a tag means.
    Resolve,
    /// Uploads.
    Push,
    /// What refers to a manifest.
    Referrers,
}

/// A client certificate and its key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientPair {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Key; `None`: in the same file.
    pub key: Option<PathBuf>,
}

/// One host to ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: String,
    /// Host and port.
    pub authority: String,
    /// Path in front of `/v2`, or instead of it with `override_path`; no `/` at the end.
    pub prefix: String,
    /// The prefix already ends where repositories start.
    pub override_path: bool,
    /// Name of the repository there, if it is another one than the image says (`location` of registries.conf).
    pub repository: Option<String>,
    /// What it may be asked for.
    pub capabilities: Vec<Capability>,
    /// Not the registry itself: gets no credentials that are not meant for it, and no patience while there is another.
    pub mirror: bool,
    /// Is told by `?ns=` which registry it stands for.
    pub namespaced: bool,
    /// Any certificate will do.
    pub skip_verify: bool,
    /// Further roots, PEM files.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub client: Vec<ClientPair>,
    /// Headers sent with each request.
    pub headers: Vec<(String, String)>,
    /// Time to connect, if the file says.
    pub dial_timeout: Option<Duration>,
}

// === impl Endpoint ===

impl Endpoint {
    /// May it be asked for this?
    #[must_use]
    pub fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// What the image's repository is called there.
    #[must_use]
    pub fn repository<'a>(&'a self, image: &'a str) -> &'a str {
        self.repository.as_deref().unwrap_or(image)
    }

    /// The URL of something of a repository (`manifests/<reference>`, `blobs/<digest>`); `registry` is the upstream a mirror stands for.
    pub(super) fn url(&self, repository: &str, rest: &str, registry: &str) -> String {
        let v2 = if self.override_path { "" } else { "/v2" };
        let repository = self.repository(repository);
        let (scheme, authority, prefix) = (&self.scheme, &self.authority, &self.prefix);
        let mut url = format!("{scheme}://{authority}{prefix}{v2}/{repository}/{rest}");
        if self.namespaced {
            url.push(if rest.contains('?') { '&' } else { '?' });
            url.push_str("ns=");
            url.push_str(registry);
        }
        url
    }

    /// The registry itself, unconfigured: https, or plain http on loopback.
    pub(super) fn plain(host: &str) -> Self {
        let authority = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let scheme = if is_loopback(authority) && port(authority) != Some(443) { "http" } else { "https" };
        Self {
            scheme: scheme.into(),
            authority: authority.into(),
            prefix: String::new(),
            override_path: false,
            repository: None,
            capabilities: vec![
                Capability::Pull,
                Capability::Resolve,
                Capability::Push,
                Capability::Referrers,
            ],
            mirror: false,
            namespaced: false,
            skip_verify: false,
            ca: Vec::new(),
            client: Vec::new(),
            headers: Vec::new(),
            dial_timeout: None,
        }
    }
}

fn port(authority: &str) -> Option<u16> {
    authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}

/// `localhost`, `127.0.0.0/8`, `::1`, with or without a port.
#[must_use]
pub fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

// === looking it up ===

/// The hosts to ask for an image, in order.
pub(super) fn endpoints(image: &ImageRef, places: &[PathBuf]) -> Result<Vec<Endpoint>, RegistryError> {
    for place in places {
        let found = if is_conf(place) {
            match registries_conf::read(place)? {
                Some(conf) => conf.endpoints(image)?,
                None => None,
            }
        } else {
            directory_endpoints(&image.host, place)?
        };
        if let Some(endpoints) = found {
            return Ok(endpoints);
        }
    }
    Ok(vec![Endpoint::plain(&image.host)])
}

/// What a name may stand for, best first: itself, unless it names no registry and a `registries.conf` says where such names come from.
///
/// # Errors
/// A `registries.conf` cannot be read, or forbids the name.
pub fn names(image: &str, places: &[PathBuf]) -> Result<Vec<String>, RegistryError> {
    if reference::names_a_host(image) {
        return Ok(vec![image.to_owned()]);
    }
    for place in places.iter().filter(|place| is_conf(place)) {
        if let Some(conf) = registries_conf::read(place)?
            && let Some(mut names) = conf.names(image)?
        {
            names.truncate(NAMES_MAX);
            return Ok(names);
        }
    }
    Ok(vec![image.to_owned()])
}

fn is_conf(place: &Path) -> bool {
    place.extension().is_some_and(|extension| extension == "conf")
}

/// What a `certs.d` says about a host: its `hosts.toml`, or certificates alone.
fn directory_endpoints(host: &str, root: &Path) -> Result<Option<Vec<Endpoint>>, RegistryError> {
    let escaped = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') => format!("{name}_{port}_"),
        _ => host.to_owned(),
    };
    for name in [host, &escaped, "_default"] {
        let directory = root.join(name);
        let path = directory.join("hosts.toml");
        if let Some(text) = read(&path)? {
            return hosts_toml::parse(&text, &path, host).map(Some);
        }
        let mut endpoint = Endpoint::plain(host);
        if certs::apply(&mut endpoint, &directory)? {
            return Ok(Some(vec![endpoint]));
        }
    }
    Ok(None)
}

/// A configuration file's text; `None`: there is none.
fn read(path: &Path) -> Result<Option<String>, RegistryError> {
    use std::io::{ErrorKind, Read};
    let wrong = |problem: String| RegistryError::config(path, problem);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(wrong(error.to_string())),
    };
    let mut text = String::new();
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
    if text.len() as u64 > FILE_MAX {
        return Err(wrong(format!("it is larger than {FILE_MAX} bytes")));
    }
    Ok(Some(text))
}
