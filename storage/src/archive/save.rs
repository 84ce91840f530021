//! Writing images as one tar: an OCI layout (image-layout.md) that `docker load` understands too, or the older docker-archive.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};

use super::ArchiveError;
use super::blobs::Parts;
use super::tar::Writer;
use crate::digest::Digest;
use crate::error::FileError;
use crate::graph::{self, Record};
use crate::manifest::{DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::reference::ImageRef;
use crate::store::Store;
use crate::{Credentials, artifact};

/// How images are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// An OCI layout with every byte as it came: all digests stay. It holds a `manifest.json`, so that `docker load` takes it as well.
    #[default]
    Oci,
    /// A docker-archive with plain tar layers: image ids stay, manifest digests do not. Needs no registry.
    Docker,
}

impl Store {
    /// Writes images to `out` as a tar. `credentials` are for the registries they came from, which are asked for layers that are not kept.
    ///
    /// # Errors
    /// An image is not here, a blob cannot be had, or `out` fails.
    pub async fn save(
        self: &Arc<Self>,
        images: &[String],
        format: Format,
        credentials: Option<Credentials>,
        out: impl Write + Send + 'static,
    ) -> Result<(), ArchiveError> {
        match format {
            Format::Oci => {
                let mut parts = Vec::new();
                for image in images {
                    parts.push((image.clone(), self.parts(image, credentials.as_ref()).await?));
                }
                tokio::task::spawn_blocking(move || write_oci(&parts, out))
                    .await
                    .map_err(|_| ArchiveError::Interrupted)?
            }
            Format::Docker => {
                let (store, images) = (self.clone(), images.to_vec());
                tokio::task::spawn_blocking(move || store.write_docker(&images, out))
                    .await
                    .map_err(|_| ArchiveError::Interrupted)?
            }
        }
    }

    fn write_docker(&self, images: &[String], out: impl Write) -> Result<(), ArchiveError> {
        let mut tar = Writer::new(out);
        let mut listed = Vec::new();
        let mut written = BTreeSet::new();
        for image in images {
            let (record, tags, _pin) = self.hold(image)?;
            if artifact::is_artifact(&record) {
                return Err(ArchiveError::Artifact(image.clone()));
            }
            let path = graph::image_directory(self.root(), record.id.as_str()).join("config");
            let config = std::fs::read(&path).map_err(FileError::at("read", path))?;
            let config_name = format!("{}.json", record.id.hex());
            if written.insert(config_name.clone()) {
                tar.file(&config_name, &config).map_err(ArchiveError::Write)?;
            }
            let mut layers = Vec::new();
            for layer in &record.layers {
                let name = format!("{}.tar", layer.diff_id.hex());
                if written.insert(name.clone()) {
                    let path = graph::layer_directory(self.root(), &layer.diff_id).join("tar");
                    let file = std::fs::File::open(&path).map_err(FileError::at("open", path))?;
                    tar.stream(&name, layer.tar_size, file).map_err(ArchiveError::Write)?;
                }
                layers.push(name);
            }
            let tags = chosen_tags(image, &tags);
            listed.push(json!({ "Config": config_name, "RepoTags": tags, "Layers": layers }));
        }
        tar.file("manifest.json", &pretty(&json!(listed))).map_err(ArchiveError::Write)?;
        tar.finish().map_err(ArchiveError::Write)
    }
}

/// The layout, and `manifest.json` that leads Docker to the same blobs.
fn write_oci(images: &[(String, Parts)], out: impl Write) -> Result<(), ArchiveError> {
    let mut tar = Writer::new(out);
    let mut written = BTreeSet::new();
    let (mut manifests, mut listed) = (Vec::new(), Vec::new());
    tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(ArchiveError::Write)?;
    for (asked, parts) in images {
        let record = &parts.record;
        for layer in &parts.layers {
            if written.insert(layer.digest.clone()) {
                let file = layer.open()?;
                tar.stream(&blob_name(&layer.digest), layer.size, file).map_err(ArchiveError::Write)?;
            }
        }
        for (digest, bytes) in [(&record.id, &parts.config), (&record.manifest, &parts.manifest)] {
            if written.insert(digest.clone()) {
                tar.file(&blob_name(digest), bytes).map_err(ArchiveError::Write)?;
            }
        }
        let tags = chosen_tags(asked, &parts.tags);
        manifests.extend(descriptors(record, &parts.manifest, &tags));
        let layers: Vec<String> = parts.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
        listed.push(json!({ "Config": blob_name(&record.id), "RepoTags": tags, "Layers": layers }));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    tar.file("index.json", &pretty(&index)).map_err(ArchiveError::Write)?;
    tar.file("manifest.json", &pretty(&json!(listed))).map_err(ArchiveError::Write)?;
    tar.finish().map_err(ArchiveError::Write)
}

/// The tag that was asked for, or all of them if the image was named otherwise.
fn chosen_tags(asked: &str, tags: &[String]) -> Vec<String> {
    let tagged = asked.parse::<ImageRef>().ok().and_then(|reference| reference.tagged());
    match tagged.filter(|tagged| tags.contains(tagged)) {
        Some(tagged) => vec![tagged],
        None => tags.to_vec(),
    }
}

/// One descriptor for each name, or one without.
fn descriptors(record: &Record, manifest: &[u8], tags: &[String]) -> Vec<Value> {
    let media_type = media_type(manifest);
    let plain = Descriptor {
        media_type,
        digest: record.manifest.clone(),
        size: manifest.len() as u64,
        urls: Vec::new(),
        platform: None,
        annotations: Default::default(),
    };
    let named = tags.iter().map(|tag| {
        let short = tag.rsplit(':').next().unwrap_or(tag).to_owned();
        let mut named = plain.clone();
        // containerd reads the full name, everybody else the tag.
        named.annotations.insert("io.containerd.image.name".into(), tag.clone());
        named.annotations.insert("org.opencontainers.image.ref.name".into(), short);
        json!(named)
    });
    if tags.is_empty() { vec![json!(plain)] } else { named.collect() }
}

/// What a manifest says it is; one that does not say is told by its config.
pub(crate) fn media_type(manifest: &[u8]) -> String {
    let value: Value = serde_json::from_slice(manifest).unwrap_or_default();
    if let Some(said) = value["mediaType"].as_str().filter(|said| !said.is_empty()) {
        return said.to_owned();
    }
    let docker = value["config"]["mediaType"].as_str().is_some_and(|kind| kind.contains("docker"));
    if docker { DOCKER_MANIFEST.into() } else { OCI_MANIFEST.into() }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn pretty(value: &Value) -> Vec<u8> {
    // A tree of strings and numbers always serialises.
    serde_json::to_vec_pretty(value).unwrap_or_default()
}
