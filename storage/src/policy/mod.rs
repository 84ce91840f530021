//! Which images may be pulled: a `policy.json` (containers-policy.json(5)) and a directory of verifiers (containerd, docs/image-verification.md).
//!
//! Built of `policy.json`: `default` and `transports.docker` with its scopes; requirements `insecureAcceptAnything`, `reject`, and
//! `sigstoreSigned` with keys (`keyPath`, `keyPaths`, `keyData`, `keyDatas`) and every `signedIdentity`. A policy that asks for anything else
//! (`signedBy`, Fulcio, Rekor) is refused by name: an image is never let in by a rule that was not understood.
//!
//! Both are read anew at each pull. The rules see every pull before anything of the image is fetched, and images that are here too.

mod identity;
mod signature;
#[cfg(test)]
mod tests;
mod verifier;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{ErrorKind, FileError};
use crate::reference::ImageRef;
use crate::registry::{RegistryError, Repository};
use identity::Identity;

pub(crate) use signature::Key;
pub(crate) use verifier::verify as run_verifiers;

/// Largest policy read, in bytes.
const POLICY_MAX: u64 = 4 << 20;

/// Why an image may not be pulled.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum PolicyError {
    #[error("policy {} cannot be used: {problem}", path.display())]
    Policy { path: PathBuf, problem: String },
    #[error("policy {} rejects images of {scope}", path.display())]
    Rejected { path: PathBuf, scope: String },
    #[error("policy {} wants a signature for images of {scope}: {problem}", path.display())]
    Unsigned { path: PathBuf, scope: String, problem: String },
    #[error("the signatures cannot be had")]
    Fetch(#[source] Box<RegistryError>),
    #[error("verifier {} refuses the image: {said}", path.display())]
    Verifier { path: PathBuf, said: String },
    #[error(transparent)]
    File(#[from] FileError),
}

impl PolicyError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Policy { .. } => ErrorKind::FailedPrecondition,
            Self::Rejected { .. } | Self::Unsigned { .. } | Self::Verifier { .. } => {
                ErrorKind::PermissionDenied
            }
            Self::Fetch(error) => error.kind(),
            Self::File(error) => error.kind(),
        }
    }
}

/// A `policy.json`, understood.
#[derive(Debug)]
pub(crate) struct Policy {
    path: PathBuf,
    default: Vec<Requirement>,
    /// Scopes of the `docker` transport; `""` is its own default.
    scopes: BTreeMap<String, Vec<Requirement>>,
}

/// What must be true of an image.
#[derive(Debug)]
enum Requirement {
    Accept,
    Reject,
    /// One of the keys has signed it.
    Signed {
        keys: Vec<Key>,
        identity: Identity,
    },
}

#[derive(Deserialize)]
struct File {
    default: Vec<Raw>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Raw>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    #[serde(rename = "type")]
    kind: String,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<identity::Raw>,
    key_type: Option<String>,
    fulcio: Option<serde_json::Value>,
    rekor_public_key_path: Option<serde_json::Value>,
    rekor_public_key_paths: Option<serde_json::Value>,
    rekor_public_key_data: Option<serde_json::Value>,
    rekor_public_key_datas: Option<serde_json::Value>,
    pki: Option<serde_json::Value>,
}

// === impl Policy ===

impl Policy {
    /// The first of `places` that exists; `None`: there is none, and everything is accepted.
    pub(crate) fn read(places: &[PathBuf]) -> Result<Option<Self>, PolicyError> {
        use std::io::Read;
        for path in places {
            let file = match std::fs::File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(FileError::at("open", path)(error).into()),
            };
            let mut text = String::new();
            file.take(POLICY_MAX).read_to_string(&mut text).map_err(FileError::at("read", path))?;
            return Self::parse(&text, path).map(Some);
        }
        Ok(None)
    }

    /// Reads a policy; `path` is where it lies, for messages.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, PolicyError> {
        let wrong = |problem: String| PolicyError::Policy { path: path.to_owned(), problem };
        // serde_json names line and column.
        let file: File = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let all = |scope: &str, raw: Vec<Raw>| -> Result<Vec<Requirement>, PolicyError> {
            if raw.is_empty() {
                return Err(wrong(format!("scope \"{scope}\" has no requirement")));
            }
            raw.into_iter()
                .map(|raw| requirement(raw).map_err(|p| wrong(format!("scope \"{scope}\": {p}"))))
                .collect()
        };
        let default = all("default", file.default)?;
        let mut scopes = BTreeMap::new();
        let docker = file.transports.into_iter().find(|(transport, _)| transport == "docker");
        for (scope, raw) in docker.map(|(_, scopes)| scopes).unwrap_or_default() {
            let requirements = all(&scope, raw)?;
            scopes.insert(scope, requirements);
        }
        Ok(Self { path: path.to_owned(), default, scopes })
    }

    /// Whether an image is let in whatever it is.
    pub(crate) fn accepts_all_of(&self, image: &ImageRef) -> bool {
        self.requirements(image).1.iter().all(|requirement| matches!(requirement, Requirement::Accept))
    }

    /// Refuses an image that nothing could let in, before its registry is asked.
    pub(crate) fn check_outright(&self, image: &ImageRef) -> Result<(), PolicyError> {
        let (scope, requirements) = self.requirements(image);
        if requirements.iter().any(|requirement| matches!(requirement, Requirement::Reject)) {
            return Err(PolicyError::Rejected { path: self.path.clone(), scope: scope.to_owned() });
        }
        Ok(())
    }

    /// Checks an image that its registry shows: `digests` are those of its manifest and of the index it was found through, either of
    /// which may be what was signed.
    pub(crate) async fn check(
        &self,
        image: &ImageRef,
        digests: &[Digest],
        repository: &Repository,
    ) -> Result<(), PolicyError> {
        self.check_outright(image)?;
        let (scope, requirements) = self.requirements(image);
        for requirement in requirements {
            match requirement {
                Requirement::Accept | Requirement::Reject => {}
                Requirement::Signed { keys, identity } => {
                    let mut problem = "it has none".to_owned();
                    for digest in digests {
                        match signature::check(repository, image, digest, keys, identity).await? {
                            Ok(()) => {
                                problem.clear();
                                break;
                            }
                            // What the last one with signatures says is worth more than that another has none.
                            Err(Some(why)) => problem = why,
                            Err(None) => {}
                        }
                    }
                    if !problem.is_empty() {
                        let (path, scope) = (self.path.clone(), scope.to_owned());
                        return Err(PolicyError::Unsigned { path, scope, problem });
                    }
                }
            }
        }
        Ok(())
    }

    /// The requirements of the most specific scope: name with tag or digest, name, its parents, the host, its domains, the default.
    fn requirements(&self, image: &ImageRef) -> (&str, &[Requirement]) {
        let mut wanted = vec![image.to_string()];
        let name = image.name();
        let mut rest = name.as_str();
        loop {
            wanted.push(rest.to_owned());
            match rest.rsplit_once('/') {
                Some((parent, _)) => rest = parent,
                None => break,
            }
        }
        let host = image.host.split(':').next().unwrap_or(&image.host);
        let dots = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..]));
        wanted.extend(dots);
        wanted.push(String::new());
        let found = wanted.iter().find_map(|scope| self.scopes.get_key_value(scope.as_str()));
        found.map_or(("all registries", &self.default[..]), |(scope, all)| {
            (if scope.is_empty() { "all registries" } else { scope }, &all[..])
        })
    }
}

fn requirement(raw: Raw) -> Result<Requirement, String> {
    let plain = raw.key_path.is_none()
        && raw.key_paths.is_none()
        && raw.key_data.is_none()
        && raw.key_datas.is_none();
    match raw.kind.as_str() {
        "insecureAcceptAnything" if plain => Ok(Requirement::Accept),
        "reject" if plain => Ok(Requirement::Reject),
        "sigstoreSigned" => signed(raw),
        "signedBy" => Err("signedBy (GPG) is not built; use sigstoreSigned with a key".into()),
        other => Err(format!("requirement \"{other}\" is unknown, or has keys it takes none of")),
    }
}

fn signed(raw: Raw) -> Result<Requirement, String> {
    for (name, given) in [
        ("fulcio", raw.fulcio.is_some()),
        ("pki", raw.pki.is_some()),
        ("rekorPublicKeyPath", raw.rekor_public_key_path.is_some() || raw.rekor_public_key_paths.is_some()),
        ("rekorPublicKeyData", raw.rekor_public_key_data.is_some() || raw.rekor_public_key_datas.is_some()),
        ("keyType", raw.key_type.is_some()),
    ] {
        if given {
            return Err(format!("sigstoreSigned with {name} is not built; only keys are"));
        }
    }
    let mut keys = Vec::new();
    for path in raw.key_path.into_iter().chain(raw.key_paths.unwrap_or_default()) {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("key {}: {e}", path.display()))?;
        keys.push(Key::parse(&text).map_err(|e| format!("key {}: {e}", path.display()))?);
    }
    for data in raw.key_data.into_iter().chain(raw.key_datas.unwrap_or_default()) {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.decode(data.trim());
        let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or("keyData is not base64 of a PEM key")?;
        keys.push(Key::parse(&text).map_err(|e| format!("keyData: {e}"))?);
    }
    if keys.is_empty() {
        return Err("sigstoreSigned names no key".into());
    }
    let identity = raw.signed_identity.map_or(Ok(Identity::default()), Identity::parse)?;
    Ok(Requirement::Signed { keys, identity })
}
