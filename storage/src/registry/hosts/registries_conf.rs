//! CRI-O's and Podman's `registries.conf`, version 2 (containers-registries.conf(5)), with its drop-ins.
//!
//! The longest `prefix` that fits an image decides: its mirrors in order, then its `location`. Drop-ins are read after the file, in the
//! order of their names; an entry replaces an earlier one of the same prefix. Keys nobody knows are ignored, as there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::super::RegistryError;
use super::place::Source;
use super::{Capability, Endpoint, certs};
use crate::reference::ImageRef;

/// The file and its drop-ins, laid over each other.
#[derive(Debug, Default)]
pub struct Conf {
    /// Where the file lies; certificates are looked for beside it, in `certs.d`.
    path: PathBuf,
    search: Option<Vec<String>>,
    mode: Mode,
    aliases: BTreeMap<String, String>,
    registries: Vec<Entry>,
}

/// What a short name without an alias means when several registries may have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// Nobody can be asked which, so the name is refused. The file format's default.
    #[default]
    Enforcing,
    /// Each registry in turn.
    Trying,
}

/// One `[[registry]]`.
#[derive(Debug)]
struct Entry {
    prefix: String,
    location: Location,
    blocked: bool,
    digest_only: bool,
    mirrors: Vec<(Location, For)>,
    /// The file that says so, for messages.
    file: PathBuf,
}

#[derive(Clone, Debug, Default)]
struct Location {
    /// `host[:port][/path]`; empty: as the image says.
    location: String,
    insecure: bool,
}

/// Which pulls a mirror serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    All,
    Digests,
    Tags,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<Spanned<String>>>,
    short_name_mode: Option<Spanned<String>>,
    #[serde(default)]
    aliases: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    registry: Vec<Spanned<RawEntry>>,
    registries: Option<Spanned<toml::Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawEntry {
    prefix: Option<Spanned<String>>,
    location: Option<Spanned<String>>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<RawMirror>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawMirror {
    location: Spanned<String>,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Spanned<String>>,
}

// === reading ===

/// The file at `path` with its drop-ins; `None`: there is neither.
pub(super) fn read(path: &Path) -> Result<Option<Conf>, RegistryError> {
    let mut conf = Conf { path: path.to_owned(), ..Conf::default() };
    let mut any = false;
    for file in std::iter::once(path.to_owned()).chain(drop_ins(path)?) {
        if let Some(text) = super::read(&file)? {
            conf.add(&text, &file)?;
            any = true;
        }
    }
    Ok(any.then_some(conf))
}

/// One file alone.
///
/// # Errors
/// It is not what it should be: file, line and column are named.
pub fn parse(text: &str, path: &Path) -> Result<Conf, RegistryError> {
    let mut conf = Conf { path: path.to_owned(), ..Conf::default() };
    conf.add(text, path)?;
    Ok(conf)
}

/// `<path>.d/*.conf`, by name.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let wrong = |error: std::io::Error| RegistryError::config(&directory, error.to_string());
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(wrong)?.path();
        if file.extension().is_some_and(|extension| extension == "conf") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

// === impl Conf ===

impl Conf {
    fn add(&mut self, text: &str, path: &Path) -> Result<(), RegistryError> {
        let source = Source { path, text };
        let file: File = source.parse()?;
        if let Some(old) = file.registries {
            let problem = "[registries.…] is version 1 of the format; write [[registry]] and unqualified-search-registries";
            return Err(source.wrong(old.span(), problem));
        }
        if let Some(mode) = file.short_name_mode {
            self.mode = match mode.get_ref().as_str() {
                "enforcing" => Mode::Enforcing,
                "permissive" | "disabled" => Mode::Trying,
                _ => return Err(source.wrong(mode.span(), "it is enforcing, permissive or disabled")),
            };
        }
        if let Some(search) = file.unqualified_search_registries {
            for registry in &search {
                check_location(registry, &source)?;
            }
            self.search = Some(search.into_iter().map(Spanned::into_inner).collect());
        }
        for (name, target) in file.aliases {
            if target.get_ref().parse::<ImageRef>().is_err() {
                let problem = format!("alias \"{name}\" stands for something that is no image name");
                return Err(source.wrong(target.span(), problem));
            }
            self.aliases.insert(name, target.into_inner());
        }
        for raw in file.registry {
            let entry = entry(raw, &source)?;
            self.registries.retain(|known| known.prefix != entry.prefix);
            self.registries.push(entry);
        }
        Ok(())
    }

    /// The hosts to ask for an image; `None`: the file says nothing about it.
    ///
    /// # Errors
    /// The registry is blocked, or its certificates cannot be read.
    pub fn endpoints(&self, image: &ImageRef) -> Result<Option<Vec<Endpoint>>, RegistryError> {
        let name = image.name();
        let fitting = self.registries.iter().filter_map(|entry| Some((fit(&entry.prefix, &name)?, entry)));
        let Some((matched, entry)) = fitting.max_by_key(|(_, entry)| entry.prefix.len()) else {
            return Ok(None);
        };
        if entry.blocked {
            let (prefix, path) = (entry.prefix.clone(), entry.file.clone());
            return Err(RegistryError::Blocked { prefix, path });
        }
        let by_digest = image.digest.is_some();
        let mut found = Vec::new();
        for (location, serves) in &entry.mirrors {
            let capabilities = match serves {
                _ if entry.digest_only && !by_digest => continue,
                For::Digests if !by_digest => continue,
                For::Tags if by_digest => continue,
                _ => vec![Capability::Pull, Capability::Resolve, Capability::Referrers],
            };
            let endpoint = Endpoint { capabilities, ..self.endpoint(location, image, &name[matched..])? };
            found.extend(both_schemes(Endpoint { mirror: true, ..endpoint }, location.insecure));
        }
        let own = self.endpoint(&entry.location, image, &name[matched..])?;
        let mirror = own.authority != Endpoint::plain(&image.host).authority;
        found.extend(both_schemes(Endpoint { mirror, ..own }, entry.location.insecure));
        Ok(Some(found))
    }

    /// Where `rest` of an image is at a location. Certificates lie beside the file, under the host's name.
    fn endpoint(&self, location: &Location, image: &ImageRef, rest: &str) -> Result<Endpoint, RegistryError> {
        let whole = match location.location.as_str() {
            "" => image.name(),
            location => format!("{location}{rest}"),
        };
        let (host, path) = whole.split_once('/').unwrap_or((&whole, &image.path));
        let mut endpoint = Endpoint::plain(host);
        endpoint.skip_verify = location.insecure;
        endpoint.repository = (path != image.path).then(|| path.to_owned());
        let directory = self.path.parent().unwrap_or(Path::new("/")).join("certs.d").join(host);
        certs::apply(&mut endpoint, &directory)?;
        Ok(endpoint)
    }

    /// What a name without a registry stands for; `None`: the file says nothing about such names.
    ///
    /// # Errors
    /// It may be any of several and short names are enforced, or none is searched.
    pub fn names(&self, image: &str) -> Result<Option<Vec<String>>, RegistryError> {
        let end = image.find('@').unwrap_or(image.len());
        let end = image[..end].rfind(':').unwrap_or(end);
        let (bare, rest) = image.split_at(end);
        if let Some(target) = self.aliases.get(bare) {
            return Ok(Some(vec![format!("{target}{rest}")]));
        }
        let Some(search) = &self.search else { return Ok(None) };
        match (search.len(), self.mode) {
            (0, _) => Err(RegistryError::ShortName {
                name: image.to_owned(),
                path: self.path.clone(),
                problem: "names no registry, and no registry is searched for such names",
            }),
            (2.., Mode::Enforcing) => Err(RegistryError::ShortName {
                name: image.to_owned(),
                path: self.path.clone(),
                problem: "names no registry, and short-name-mode does not let it be any of several",
            }),
            _ => Ok(Some(search.iter().map(|registry| qualified(registry, image)).collect())),
        }
    }
}

/// Docker Hub's own images have a directory of theirs, which [`ImageRef`] knows.
fn qualified(registry: &str, image: &str) -> String {
    format!("{}/{image}", registry.trim_end_matches('/'))
}

/// An `insecure` registry is asked with any certificate, then without TLS.
fn both_schemes(endpoint: Endpoint, insecure: bool) -> Vec<Endpoint> {
    if !insecure || endpoint.scheme == "http" {
        return vec![endpoint];
    }
    let plain = Endpoint { scheme: "http".into(), ..endpoint.clone() };
    vec![endpoint, plain]
}

/// How many bytes of an image's name a prefix stands for.
fn fit(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        // `*.example.com` is any host below, and stands for the whole host.
        let host = name.split('/').next().unwrap_or(name);
        return host.ends_with(domain).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
}

fn entry(raw: Spanned<RawEntry>, source: &Source<'_>) -> Result<Entry, RegistryError> {
    let span = raw.span();
    let raw = raw.into_inner();
    if let Some(location) = &raw.location {
        check_location(location, source)?;
    }
    let location = raw.location.map(Spanned::into_inner).unwrap_or_default();
    let prefix = match &raw.prefix {
        Some(prefix) if !prefix.get_ref().is_empty() => {
            check_prefix(prefix, source)?;
            prefix.get_ref().trim_end_matches('/').to_owned()
        }
        _ => location.trim_end_matches('/').to_owned(),
    };
    if prefix.is_empty() || (location.is_empty() && !prefix.starts_with('*')) {
        return Err(
            source.wrong(span, "a registry needs a `location` (only with a prefix `*.…` it may do without)")
        );
    }
    let mut mirrors = Vec::new();
    for mirror in raw.mirror {
        check_location(&mirror.location, source)?;
        let serves = match mirror.pull_from_mirror.as_ref().map(|text| (text.get_ref().as_str(), text.span()))
        {
            None | Some(("" | "all", _)) => For::All,
            Some(("digest-only", _)) => For::Digests,
            Some(("tag-only", _)) => For::Tags,
            Some((_, at)) => return Err(source.wrong(at, "it is all, digest-only or tag-only")),
        };
        let location = mirror.location.into_inner().trim_end_matches('/').to_owned();
        mirrors.push((Location { location, insecure: mirror.insecure }, serves));
    }
    let location = Location { location: location.trim_end_matches('/').to_owned(), insecure: raw.insecure };
    let (blocked, digest_only) = (raw.blocked, raw.mirror_by_digest_only);
    Ok(Entry { prefix, location, blocked, digest_only, mirrors, file: source.path.to_owned() })
}

/// `host[:port][/path]`, without a scheme.
fn check_location(location: &Spanned<String>, source: &Source<'_>) -> Result<(), RegistryError> {
    let text = location.get_ref();
    let wrong = |at: Range<usize>, problem: &str| Err(source.wrong(at, format!("\"{text}\" {problem}")));
    if text.contains("://") {
        return wrong(location.span(), "has a scheme; write HOST[:PORT][/PATH], and `insecure` for http");
    }
    let host = text.split('/').next().unwrap_or_default();
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '@' | '*' | '?' | '#');
    if host.is_empty() || text.contains(odd) {
        return wrong(location.span(), "is not HOST[:PORT][/PATH]");
    }
    Ok(())
}

/// A location, or `*.domain`.
fn check_prefix(prefix: &Spanned<String>, source: &Source<'_>) -> Result<(), RegistryError> {
    match prefix.get_ref().strip_prefix('*') {
        None => check_location(prefix, source),
        Some(domain) if domain.starts_with('.') && !domain.contains(['*', '/', ':']) => Ok(()),
        Some(_) => Err(source.wrong(prefix.span(), "a prefix with `*` is `*.DOMAIN`")),
    }
}
