//! Which hosts to ask for a registry's content: the `hosts.toml` layout of containerd's `certs.d`, read anew at each pull.
//!
//! For registry `example.com:5000` the directories `example.com:5000`, `example.com_5000_` and `_default` are looked for in each configured
//! place; the first `hosts.toml` wins. Mirrors (`[host."…"]`) come in file order, then `server`, or the registry itself.

use std::path::{Path, PathBuf};

use super::RegistryError;

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Content by digest.
    Pull,
    /// What a tag means.
    Resolve,
    /// Uploads.
    Push,
}

/// A client certificate and its key, PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientPair {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Key; `None`: in the same file.
    pub key: Option<PathBuf>,
}

/// One host to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: String,
    /// Host and port.
    pub authority: String,
    /// Path in front of `/v2`, or instead of it with `override_path`; no `/` at the end.
    pub prefix: String,
    /// The prefix already ends where repositories start.
    pub override_path: bool,
    /// What it may be asked for.
    pub capabilities: Vec<Capability>,
    /// Not the registry itself: gets `ns=`, and no credentials that are not meant for it.
    pub mirror: bool,
    /// Any certificate will do.
    pub skip_verify: bool,
    /// Further roots, PEM files.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub client: Vec<ClientPair>,
    /// Headers sent with each request.
    pub headers: Vec<(String, String)>,
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

    /// The URL of a manifest or blob; `registry` is the upstream a mirror stands for.
    pub(super) fn url(&self, repository: &str, what: &str, reference: &str, registry: &str) -> String {
        let v2 = if self.override_path { "" } else { "/v2" };
        let ns = if self.mirror { format!("?ns={registry}") } else { String::new() };
        format!("{}://{}{}{v2}/{repository}/{what}/{reference}{ns}", self.scheme, self.authority, self.prefix)
    }

    /// The registry itself, unconfigured: https, or plain http on loopback.
    fn plain(host: &str) -> Self {
        let authority = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let scheme = if is_loopback(authority) && port(authority) != Some(443) { "http" } else { "https" };
        Self {
            scheme: scheme.into(),
            authority: authority.into(),
            prefix: String::new(),
            override_path: false,
            capabilities: vec![Capability::Pull, Capability::Resolve, Capability::Push],
            mirror: false,
            skip_verify: false,
            ca: Vec::new(),
            client: Vec::new(),
            headers: Vec::new(),
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

/// The hosts to ask for registry `host`, in order.
pub(super) fn endpoints(host: &str, config: &[PathBuf]) -> Result<Vec<Endpoint>, RegistryError> {
    let escaped = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') => format!("{name}_{port}_"),
        _ => host.to_owned(),
    };
    for root in config {
        for name in [host, &escaped, "_default"] {
            let path = root.join(name).join("hosts.toml");
            match std::fs::read_to_string(&path) {
                Ok(text) => return parse(&text, &path, host),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {}
                Err(error) => return Err(RegistryError::Config { path, problem: error.to_string() }),
            }
        }
    }
    Ok(vec![Endpoint::plain(host)])
}

/// Reads a `hosts.toml`.
fn parse(text: &str, path: &Path, host: &str) -> Result<Vec<Endpoint>, RegistryError> {
    let wrong = |problem: String| RegistryError::Config { path: path.to_owned(), problem };
    let table: toml::Table =
        text.parse().map_err(|e: toml::de::Error| wrong(e.to_string().trim().replace('\n', " ")))?;
    let base = path.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    if let Some(hosts) = table.get("host") {
        let hosts = hosts.as_table().ok_or_else(|| wrong("`host` is not a table".into()))?;
        for (url, settings) in in_file_order(hosts, text) {
            let settings =
                settings.as_table().ok_or_else(|| wrong(format!("`host.\"{url}\"` is not a table")))?;
            let mut endpoint = address(url, &Endpoint::plain(host)).map_err(&wrong)?;
            endpoint.mirror = endpoint.authority != Endpoint::plain(host).authority;
            apply(&mut endpoint, settings, base).map_err(|p| wrong(format!("host \"{url}\": {p}")))?;
            found.push(endpoint);
        }
    }
    let mut server = match table.get("server") {
        Some(value) => {
            let url = value.as_str().ok_or_else(|| wrong("`server` is not a string".into()))?;
            address(url, &Endpoint::plain(host)).map_err(&wrong)?
        }
        None => Endpoint::plain(host),
    };
    apply(&mut server, &table, base).map_err(&wrong)?;
    found.push(server);
    Ok(found)
}

/// toml's map is sorted by name; the order of preference is that of the file.
fn in_file_order<'a>(hosts: &'a toml::Table, text: &str) -> Vec<(&'a String, &'a toml::Value)> {
    let mut hosts: Vec<_> = hosts.iter().collect();
    let position = |url: &str| {
        let quoted = [format!("\"{url}\""), format!("'{url}'")];
        text.lines().position(|line| {
            let line = line.trim_start();
            line.starts_with("[host.") && quoted.iter().any(|q| line.contains(q.as_str()))
        })
    };
    hosts.sort_by_key(|(url, _)| position(url).unwrap_or(usize::MAX));
    hosts
}

/// `https://mirror.example/prefix`, or a bare host.
fn address(url: &str, like: &Endpoint) -> Result<Endpoint, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme.to_owned(), rest),
        Some((scheme, _)) => return Err(format!("\"{url}\": scheme {scheme} is neither http nor https")),
        None => (Endpoint::plain(url.split('/').next().unwrap_or(url)).scheme, url),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        return Err(format!("\"{url}\" names no host"));
    }
    let prefix = path.trim_end_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
    let authority = if authority == "docker.io" { "registry-1.docker.io" } else { authority };
    Ok(Endpoint { scheme, authority: authority.into(), prefix, ..like.clone() })
}

fn apply(endpoint: &mut Endpoint, table: &toml::Table, base: &Path) -> Result<(), String> {
    if let Some(value) = table.get("capabilities") {
        endpoint.capabilities.clear();
        for name in strings(value).ok_or("`capabilities` is not a list of strings")? {
            match name.as_str() {
                "pull" => endpoint.capabilities.push(Capability::Pull),
                "resolve" => endpoint.capabilities.push(Capability::Resolve),
                "push" => endpoint.capabilities.push(Capability::Push),
                "referrers" => {}
                other => return Err(format!("capability \"{other}\" is unknown")),
            }
        }
    }
    let flag = |key: &str| match table.get(key) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or(format!("`{key}` is not true or false")),
    };
    endpoint.skip_verify = flag("skip_verify")?;
    endpoint.override_path = flag("override_path")?;
    // A prefix that ends in the API version is where the API is.
    if let Some(prefix) = endpoint.prefix.strip_suffix("/v2").filter(|_| !endpoint.override_path) {
        endpoint.prefix = prefix.to_owned();
    }
    if let Some(value) = table.get("ca") {
        let files = strings(value).ok_or("`ca` is not a path or a list of paths")?;
        endpoint.ca = files.iter().map(|file| base.join(file)).collect();
    }
    if let Some(value) = table.get("client") {
        endpoint.client =
            pairs(value, base).ok_or("`client` is not a path, a list of paths, or a list of pairs")?;
    }
    if let Some(value) = table.get("header") {
        for (name, value) in value.as_table().ok_or("`header` is not a table")? {
            let values =
                strings(value).ok_or(format!("header {name} is not a string or a list of strings"))?;
            endpoint.headers.extend(values.into_iter().map(|value| (name.clone(), value)));
        }
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
                let key = (!key.is_empty()).then(|| base.join(key));
                Some(ClientPair { certificate: base.join(certificate.as_str()?), key })
            }
            _ => None,
        },
        _ => None,
    };
    list.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str, host: &str) -> Result<Vec<Endpoint>, RegistryError> {
        parse(text, Path::new("/etc/berth/certs.d/x/hosts.toml"), host)
    }

    #[test]
    fn without_configuration_only_loopback_is_plain_http_and_docker_io_is_its_registry() {
        for (host, url) in [
            ("127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("localhost", "http://localhost"),
            ("[::1]:80", "http://[::1]:80"),
            ("localhost:443", "https://localhost:443"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000"),
            ("docker.io", "https://registry-1.docker.io"),
        ] {
            assert_eq!(endpoints(host, &[]).unwrap()[0].name(), url);
        }
    }

    #[test]
    fn mirrors_come_in_file_order_then_the_server_and_get_the_namespace() {
        let text = r#"
            server = "https://up.example"
            [host."https://z.example/mirror/v2"]
              capabilities = ["pull"]
              skip_verify = true
              ca = "z.crt"
              client = [["c.crt", "c.key"]]
              [host."https://z.example/mirror/v2".header]
                X-Key = ["a", "b"]
            [host."http://a.example:80/prefix"]
              override_path = true
        "#;
        let found = hosts(text, "reg.example").unwrap();
        let urls: Vec<String> = found.iter().map(|e| e.url("a/b", "blobs", "d", "reg.example")).collect();
        assert_eq!(
            urls,
            [
                "https://z.example/mirror/v2/a/b/blobs/d?ns=reg.example",
                "http://a.example:80/prefix/a/b/blobs/d?ns=reg.example",
                "https://up.example/v2/a/b/blobs/d",
            ]
        );
        assert!(
            !found[0].can(Capability::Resolve) && found[0].skip_verify && found[1].can(Capability::Resolve)
        );
        assert_eq!(found[0].ca, [Path::new("/etc/berth/certs.d/x/z.crt")]);
        assert_eq!(found[0].client[0].key.as_deref(), Some(Path::new("/etc/berth/certs.d/x/c.key")));
        assert_eq!(found[0].headers.len(), 2);
        assert!(found[2].headers.is_empty() && !found[2].mirror);
    }

    #[test]
    fn a_wrong_file_is_named_with_the_place() {
        for (text, hint) in [
            ("server = 1", "server"),
            ("[host.\"ftp://x\"]", "ftp"),
            ("capabilities = [\"fly\"]", "fly"),
            ("x = ", "line 1"),
        ] {
            let error = hosts(text, "r").unwrap_err().to_string();
            assert!(error.contains("hosts.toml") && error.contains(hint), "{error}");
        }
    }
}
