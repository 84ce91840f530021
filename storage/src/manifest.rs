//! Manifests, indexes and image configs: what a registry says an image is, checked before it is believed.
//!
//! OCI image-spec v1.1 (manifest.md, image-index.md, config.md) and Docker's schema 2. Raw bytes are kept by the caller, because the
//! digest is over them. Unknown fields are ignored, as the spec asks; contradictions are refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::ImageConfig;
use crate::digest::Digest;
use crate::error::ErrorKind;

/// Largest manifest or index accepted, in bytes.
pub const MANIFEST_MAX: u64 = 4 << 20;
/// Largest image config accepted, in bytes.
pub const CONFIG_MAX: u64 = 8 << 20;
/// Most layers in one image.
pub const LAYERS_MAX: usize = 512;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Why a manifest, index or config is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON it should be.
    #[error("{what} {digest} is malformed")]
    Json {
        /// manifest, index or config.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// Docker schema 1 and other things.
    #[error(
        "manifest {digest} has media type \"{media_type}\", which is not an image manifest or index{hint}"
    )]
    MediaType {
        /// Its digest.
        digest: Digest,
        /// As given.
        media_type: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The index has nothing for this machine.
    #[error("index {digest} has no image for {wanted}; it has: {offered}")]
    Platform {
        /// The index.
        digest: Digest,
        /// os/arch.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// Indexes nested too deep.
    #[error("index {0} is nested deeper than 4 levels")]
    Nested(Digest),
    /// Layers and diff IDs do not pair up.
    #[error("manifest {digest} has {layers} layers but its config names {diff_ids} diff IDs")]
    LayerCount {
        /// The manifest.
        digest: Digest,
        /// Layers in the manifest.
        layers: usize,
        /// Diff IDs in the config.
        diff_ids: usize,
    },
    /// `rootfs.type`.
    #[error("config {digest} has rootfs type \"{found}\"; only \"layers\" is defined")]
    RootfsType {
        /// The config.
        digest: Digest,
        /// As given.
        found: String,
    },
    /// The config is not an image config.
    #[error("manifest {digest} is an artifact ({media_type}), not a container image")]
    Artifact {
        /// The manifest.
        digest: Digest,
        /// Config media type.
        media_type: String,
    },
    /// A title that is no path in a volume.
    #[error("blob {digest} has the title \"{title}\", which cannot be a file of a volume")]
    Title {
        /// The blob.
        digest: Digest,
        /// As given.
        title: String,
    },
    /// Encrypted or otherwise unknown layers.
    #[error("layer {digest} has media type \"{media_type}\", which is not built")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// As given.
        media_type: String,
    },
    /// A limit.
    #[error("{what} {digest} is {size}, the limit is {limit}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// Of which object.
        digest: Digest,
        /// Found.
        size: u64,
        /// Allowed.
        limit: u64,
    },
}

impl ManifestError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Platform { .. } => ErrorKind::NotFound,
            Self::Limit { .. } => ErrorKind::ResourceExhausted,
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// A pointer to content (descriptor.md).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type as claimed.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Other places that have it (foreign layers).
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The platform of an image (image-index.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Go's GOARCH.
    #[serde(default)]
    pub architecture: String,
    /// Go's GOOS.
    #[serde(default)]
    pub os: String,
    /// `v7`, `v8`, `v2`, …
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A manifest or an index: the two differ by which list they have.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    #[serde(default)]
    schema_version: u32,
    #[serde(default, deserialize_with = "nullable")]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

/// An image manifest, checked.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// Its own digest.
    pub(crate) digest: Digest,
    /// The image config.
    pub(crate) config: Descriptor,
    /// Layers, lowest first.
    pub(crate) layers: Vec<Descriptor>,
    /// Annotations.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// What a fetched document turned out to be.
#[derive(Debug)]
pub(crate) enum Parsed {
    Manifest(Box<Manifest>),
    Index(Vec<Descriptor>),
}

/// The parts of an image config the store and the engine use (config.md).
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default, deserialize_with = "nullable")]
    config: ConfigProcess,
    rootfs: Rootfs,
}

#[derive(Clone, Debug, Deserialize)]
struct Rootfs {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "nullable")]
    diff_ids: Vec<Digest>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigProcess {
    #[serde(default, deserialize_with = "nullable")]
    user: String,
    #[serde(default, deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    working_dir: String,
    #[serde(default, deserialize_with = "nullable")]
    stop_signal: String,
    #[serde(default, deserialize_with = "nullable")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
}

/// Builders write `null` where the spec says "absent".
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

// === impl Document ===

/// Reads a manifest or index. `header` is the registry's Content-Type, used only when the document does not name its type.
pub(crate) fn parse(bytes: &[u8], digest: &Digest, header: &str) -> Result<Parsed, ManifestError> {
    let json = |what| {
        let digest = digest.clone();
        move |source| ManifestError::Json { what, digest, source }
    };
    let document: Document = serde_json::from_slice(bytes).map_err(json("manifest"))?;
    let header = header.split(';').next().unwrap_or_default().trim();
    let media_type = if document.media_type.is_empty() { header } else { &document.media_type };
    let refuse =
        |hint| ManifestError::MediaType { digest: digest.clone(), media_type: media_type.to_owned(), hint };
    if document.schema_version == 1 || media_type.ends_with("prettyjws") {
        return Err(refuse(" (Docker schema 1); push the image again with a current tool"));
    }
    match (document.manifests, document.config, document.layers) {
        // A document that is both is an attack on whoever reads the other half.
        (Some(manifests), None, None) if !matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) => {
            Ok(Parsed::Index(manifests))
        }
        (None, Some(config), layers) if !matches!(media_type, OCI_INDEX | DOCKER_LIST) => {
            let layers = layers.unwrap_or_default();
            limit("layer count of manifest", digest, layers.len() as u64, LAYERS_MAX as u64)?;
            limit("config of manifest", digest, config.size, CONFIG_MAX)?;
            Ok(Parsed::Manifest(Box::new(Manifest {
                digest: digest.clone(),
                config,
                layers,
                annotations: document.annotations,
            })))
        }
        _ => Err(refuse("")),
    }
}

fn limit(what: &'static str, digest: &Digest, size: u64, limit: u64) -> Result<(), ManifestError> {
    if size <= limit {
        Ok(())
    } else {
        Err(ManifestError::Limit { what, digest: digest.clone(), size, limit })
    }
}

// === impl Manifest ===

impl Manifest {
    /// Refuses artifacts and layers that are not tar archives.
    pub(crate) fn check_image(&self) -> Result<(), ManifestError> {
        let kind = self.config.media_type.as_str();
        let is_config = matches!(
            kind,
            "" | "application/vnd.oci.image.config.v1+json"
                | "application/vnd.docker.container.image.v1+json"
        );
        if !is_config {
            return Err(ManifestError::Artifact { digest: self.digest.clone(), media_type: kind.to_owned() });
        }
        for layer in &self.layers {
            let kind = layer.media_type.as_str();
            let tar = kind.is_empty()
                || (kind.starts_with("application/vnd.oci.image.layer.") && kind.contains("tar"))
                || kind.starts_with("application/vnd.docker.image.rootfs.");
            if !tar || kind.contains("encrypted") {
                let (digest, media_type) = (layer.digest.clone(), kind.to_owned());
                return Err(ManifestError::LayerType { digest, media_type });
            }
        }
        Ok(())
    }

    /// Pairs the layers with the config's diff IDs.
    pub(crate) fn diff_ids(&self, config: &Config) -> Result<Vec<Digest>, ManifestError> {
        let (layers, diff_ids) = (self.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(ManifestError::LayerCount { digest: self.digest.clone(), layers, diff_ids });
        }
        Ok(config.rootfs.diff_ids.clone())
    }
}

// === impl Config ===

impl Config {
    pub(crate) fn parse(bytes: &[u8], digest: &Digest) -> Result<Self, ManifestError> {
        let config: Self = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
            what: "config",
            digest: digest.clone(),
            source,
        })?;
        if config.rootfs.kind != "layers" {
            return Err(ManifestError::RootfsType { digest: digest.clone(), found: config.rootfs.kind });
        }
        Ok(config)
    }

    /// The process half, for the engine.
    pub(crate) fn process(&self) -> ImageConfig {
        let c = self.config.clone();
        ImageConfig {
            user: c.user,
            env: c.env,
            entrypoint: c.entrypoint,
            cmd: c.cmd,
            working_dir: c.working_dir,
            stop_signal: c.stop_signal,
            volumes: c.volumes.into_keys().collect(),
            labels: c.labels,
            exposed_ports: c.exposed_ports.into_keys().collect(),
        }
    }
}

// === platforms ===

impl Platform {
    /// The machine this runs on.
    pub(crate) fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "x86" => ("386", ""),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self { architecture: architecture.into(), os: "linux".into(), variant: variant.into() }
    }

    /// How well an image of platform `self` runs on `host`: 0 is best, `None` is not at all.
    fn rank(&self, host: &Self) -> Option<u32> {
        if self.os != host.os {
            return None;
        }
        let mine = (self.architecture.as_str(), self.variant.as_str());
        let order: &[(&str, &str)] = match host.architecture.as_str() {
            // Variants above v1 need instructions this machine may lack, so plain amd64 first.
            "amd64" => &[("amd64", ""), ("amd64", "v1"), ("386", "")],
            "arm64" => &[
                ("arm64", "v8"),
                ("arm64", ""),
                ("arm", "v8"),
                ("arm", "v7"),
                ("arm", ""),
                ("arm", "v6"),
                ("arm", "v5"),
            ],
            "arm" => &[("arm", "v7"), ("arm", ""), ("arm", "v6"), ("arm", "v5")],
            _ => return (self.architecture == host.architecture).then_some(0),
        };
        order.iter().position(|candidate| *candidate == mine).and_then(|at| u32::try_from(at).ok())
    }

    fn text(&self) -> String {
        let slash = if self.variant.is_empty() { "" } else { "/" };
        format!("{}/{}{slash}{}", self.os, self.architecture, self.variant)
    }
}

/// The entry of an index to use: the best platform, the first on ties, never an attestation.
pub(crate) fn select<'a>(
    entries: &'a [Descriptor],
    host: &Platform,
    index: &Digest,
) -> Result<&'a Descriptor, ManifestError> {
    let is_attestation = |d: &Descriptor| d.annotations.contains_key("vnd.docker.reference.type");
    let candidates = entries.iter().filter(|d| !is_attestation(d));
    let ranked = candidates.clone().filter_map(|d| match &d.platform {
        Some(platform) => platform.rank(host).map(|rank| (rank, d)),
        // A nested index, or an index of one: no platform means "ask the manifest", after all that say so.
        None => Some((1000, d)),
    });
    // `min_by_key` returns the first of equal ones.
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, d)| d).ok_or_else(|| {
        let offered: Vec<String> =
            candidates.filter_map(|d| d.platform.as_ref()).map(Platform::text).take(20).collect();
        let offered = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
        ManifestError::Platform { digest: index.clone(), wanted: host.text(), offered }
    })
}

#[cfg(test)]
mod tests;
