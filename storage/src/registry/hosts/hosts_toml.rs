//! containerd's `certs.d/<host>/hosts.toml` (containerd, docs/hosts.md).
//!
//! Mirrors (`[host."…"]`) come in file order, then `server`, or the registry itself. Keys nobody knows are ignored, as containerd does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::super::RegistryError;
use super::place::Source;
use super::{Capability, ClientPair, Endpoint};

#[derive(Deserialize)]
struct File {
    server: Option<Spanned<String>>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<Settings>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    capabilities: Option<Spanned<Vec<String>>>,
    ca: Option<Spanned<toml::Value>>,
    client: Option<Spanned<toml::Value>>,
    skip_verify: Option<bool>,
    header: BTreeMap<String, Spanned<toml::Value>>,
    override_path: Option<bool>,
    dial_timeout: Option<Spanned<String>>,
}

/// Reads a `hosts.toml` of registry `host`; `path` is where it lies, for relative paths and messages.
///
/// # Errors
/// It is not what it should be: file, line and column are named.
pub fn parse(text: &str, path: &Path, host: &str) -> Result<Vec<Endpoint>, RegistryError> {
    let source = Source { path, text };
    let file: File = source.parse()?;
    // The same keys stand at the top, for the server. (Flattened into `File` they would lose their place.)
    let own: Settings = source.parse()?;
    let plain = Endpoint::plain(host);
    let mut mirrors: Vec<_> = file.host.into_iter().collect();
    // The map is sorted by name; the order of preference is that of the file.
    mirrors.sort_by_key(|(_, settings)| settings.span().start);
    let mut found = Vec::new();
    for (url, settings) in mirrors {
        let at = settings.span();
        let mut endpoint = address(&url, &plain).map_err(|problem| source.wrong(at, problem))?;
        endpoint.mirror = endpoint.authority != plain.authority;
        endpoint.namespaced = endpoint.mirror;
        apply(&mut endpoint, settings.into_inner(), &source)?;
        found.push(endpoint);
    }
    let mut server = match file.server {
        Some(url) => address(url.get_ref(), &plain).map_err(|problem| source.wrong(url.span(), problem))?,
        None => plain,
    };
    apply(&mut server, own, &source)?;
    found.push(server);
    Ok(found)
}

/// `https://mirror.example/prefix`, or a bare host.
fn address(url: &str, like: &Endpoint) -> Result<Endpoint, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme.to_owned(), rest),
        Some((scheme, _)) => return Err(format!("\"{url}\": scheme {scheme} is neither http nor https")),
        None => (Endpoint::plain(url.split('/').next().unwrap_or(url)).scheme, url),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() || authority.contains(|c: char| c.is_whitespace() || c.is_control() || c == '@') {
        return Err(format!("\"{url}\" names no host"));
    }
    let prefix = path.trim_end_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
    let authority = if authority == "docker.io" { "registry-1.docker.io" } else { authority };
    Ok(Endpoint { scheme, authority: authority.into(), prefix, ..like.clone() })
}

fn apply(endpoint: &mut Endpoint, settings: Settings, source: &Source<'_>) -> Result<(), RegistryError> {
    let base = source.path.parent().unwrap_or(Path::new("/"));
    if let Some(names) = settings.capabilities {
        endpoint.capabilities.clear();
        for name in names.get_ref() {
            let capability = match name.as_str() {
                "pull" => Capability::Pull,
                "resolve" => Capability::Resolve,
                "push" => Capability::Push,
                "referrers" => Capability::Referrers,
                other => return Err(source.wrong(names.span(), format!("capability \"{other}\" is unknown"))),
            };
            endpoint.capabilities.push(capability);
        }
    }
    endpoint.skip_verify = settings.skip_verify.unwrap_or(false);
    endpoint.override_path = settings.override_path.unwrap_or(false);
    // A prefix that ends in the API version is where the API is.
    if let Some(prefix) = endpoint.prefix.strip_suffix("/v2").filter(|_| !endpoint.override_path) {
        endpoint.prefix = prefix.to_owned();
    }
    if let Some(value) = settings.ca {
        let files = strings(value.get_ref())
            .ok_or_else(|| source.wrong(value.span(), "`ca` is not a path or a list of paths"))?;
        endpoint.ca = files.iter().map(|file| base.join(file)).collect();
    }
    if let Some(value) = settings.client {
        endpoint.client = pairs(value.get_ref(), base).ok_or_else(|| {
            source.wrong(value.span(), "`client` is not a path, a list of paths, or a list of pairs")
        })?;
    }
    for (name, value) in settings.header {
        let values = strings(value.get_ref()).ok_or_else(|| {
            source.wrong(value.span(), format!("header {name} is not a string or a list of strings"))
        })?;
        for value_text in values {
            let fine =
                name.parse::<http::HeaderName>().is_ok() && http::HeaderValue::from_str(&value_text).is_ok();
            if !fine {
                return Err(source.wrong(value.span(), format!("header {name} cannot be sent over HTTP")));
            }
            endpoint.headers.push((name.clone(), value_text));
        }
    }
    if let Some(text) = settings.dial_timeout {
        let time = go_duration(text.get_ref()).ok_or_else(|| {
            source.wrong(text.span(), "`dial_timeout` is not a time such as \"5s\" or \"500ms\"")
        })?;
        endpoint.dial_timeout = Some(time);
    }
    Ok(())
}

/// A string, or a list of them.
fn strings(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(one) => Some(vec![one.clone()]),
        toml::Value::Array(many) => many.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn pairs(value: &toml::Value, base: &Path) -> Option<Vec<ClientPair>> {
    let one = |file: &str| ClientPair { certificate: base.join(file), key: None };
    let toml::Value::Array(list) = value else { return value.as_str().map(|file| vec![one(file)]) };
    let pair = |entry: &toml::Value| match entry {
        toml::Value::String(file) => Some(one(file)),
        toml::Value::Array(two) => match two.as_slice() {
            [certificate] => Some(one(certificate.as_str()?)),
            [certificate, key] => {
                let key = key.as_str()?;
                let key: Option<PathBuf> = (!key.is_empty()).then(|| base.join(key));
                Some(ClientPair { certificate: base.join(certificate.as_str()?), key })
            }
            _ => None,
        },
        _ => None,
    };
    list.iter().map(pair).collect()
}

/// Go's durations, as far as anybody writes them: numbers with `ms`, `s`, `m` or `h`, one after the other.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        let seconds = match &rest[end..unit_end] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    Some(total)
}
