//! Whether a signature is for the image that is pulled, and not for another of the same signer (containers-policy.json(5), `signedIdentity`).

use serde::Deserialize;

use crate::reference::ImageRef;

/// How the name in a signature must relate to the name of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Identity {
    /// The same name with tag; for an image by digest, the same repository. The format's default.
    #[default]
    RepositoryForDigestsOrExact,
    /// The same name with tag.
    Exact,
    /// The same repository.
    Repository,
    /// This name with tag.
    ExactReference(String),
    /// This repository.
    ExactRepository(String),
    /// The image's name with one prefix for another, then as the default.
    Remap { prefix: String, signed_prefix: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(rename = "type")]
    kind: String,
    docker_reference: Option<String>,
    docker_repository: Option<String>,
    prefix: Option<String>,
    signed_prefix: Option<String>,
}

// === impl Identity ===

impl Identity {
    pub(super) fn parse(raw: Raw) -> Result<Self, String> {
        let need =
            |name: &str, value: Option<String>| value.ok_or_else(|| format!("signedIdentity lacks {name}"));
        Ok(match raw.kind.as_str() {
            "matchRepoDigestOrExact" => Self::RepositoryForDigestsOrExact,
            "matchExact" => Self::Exact,
            "matchRepository" => Self::Repository,
            "exactReference" => Self::ExactReference(need("dockerReference", raw.docker_reference)?),
            "exactRepository" => Self::ExactRepository(need("dockerRepository", raw.docker_repository)?),
            "remapIdentity" => Self::Remap {
                prefix: need("prefix", raw.prefix)?,
                signed_prefix: need("signedPrefix", raw.signed_prefix)?,
            },
            other => return Err(format!("signedIdentity \"{other}\" is unknown")),
        })
    }

    /// Does the name in a signature fit the image?
    pub(super) fn fits(&self, image: &ImageRef, signed: &str) -> bool {
        let Some((repository, tag)) = split(signed) else { return false };
        let wanted = image.name();
        let exact = |wanted: &str| repository == wanted && tag.is_some() && tag == image.tag.as_deref();
        match self {
            Self::RepositoryForDigestsOrExact if image.digest.is_some() => repository == wanted,
            Self::RepositoryForDigestsOrExact | Self::Exact => exact(&wanted),
            Self::Repository => repository == wanted,
            Self::ExactReference(reference) => {
                split(reference).is_some_and(|(r, t)| r == repository && t.is_some() && t == tag)
            }
            Self::ExactRepository(name) => split(name).is_some_and(|(r, _)| r == repository),
            Self::Remap { prefix, signed_prefix } => {
                let rest = wanted
                    .strip_prefix(prefix.as_str())
                    .filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let wanted = rest.map_or_else(|| wanted.clone(), |rest| format!("{signed_prefix}{rest}"));
                if image.digest.is_some() { repository == wanted } else { exact(&wanted) }
            }
        }
    }
}

/// Repository and tag of a name; a name without a tag has none, and means none.
fn split(name: &str) -> Option<(String, Option<&str>)> {
    let reference: ImageRef = name.parse().ok()?;
    let name = name.split('@').next()?;
    let tag = name.rsplit('/').next()?.split_once(':').map(|(_, tag)| tag);
    Some((reference.name(), tag))
}
