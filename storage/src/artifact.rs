//! OCI artifacts as volumes: an image whose files are the artifact's blobs, each under its title (`org.opencontainers.image.title`) or its
//! digest.
//!
//! An artifact has no root file system, so it gets one: a tar of its blobs, made here, the same for the same artifact everywhere. From then
//! on it is a layer like any other: verified, durable, scrubbed, mounted read-only. Its id is the digest of its manifest, since artifacts
//! share the empty config. It can be pulled, listed, mounted and removed; saving and pushing it is refused, for its blobs are not kept.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use crate::archive::tar;
use crate::digest::Digest;
use crate::error::{FileError, PullError};
use crate::flight::Staging;
use crate::layer::spool::Spool;
use crate::layer::{Expect, LayerError, ingest};
use crate::manifest::{Descriptor, Manifest, ManifestError};
use crate::pull::Resolved;
use crate::reference::ImageRef;
use crate::registry::Repository;
use crate::store::Store;
use crate::{Image, files, graph};

/// Annotation that names a blob's file.
const TITLE: &str = "org.opencontainers.image.title";
/// Media type of the layer that is made of an artifact's blobs.
pub(crate) const LAYER: &str = "application/vnd.berth.artifact.layer.v1.tar";

impl Store {
    /// Pulls the blobs of an artifact and makes an image of them.
    pub(crate) async fn pull_artifact(
        self: &Arc<Self>,
        repository: &Repository,
        resolved: Resolved,
        reference: &ImageRef,
        name: &str,
    ) -> Result<Arc<Image>, PullError> {
        let id = resolved.manifest.digest.clone();
        let _image_pin = self.pin_digests(vec![id.clone()]);
        if self.index.load().images.contains_key(id.as_str()) {
            return self.name_image(&id, reference, &resolved.top, name);
        }
        let file = |source| PullError::File { image: name.to_owned(), source };
        let staging = self.flights.stage().map_err(file)?;
        let mut blobs = Vec::new();
        for layer in &resolved.manifest.layers {
            let title =
                title(layer).map_err(|source| PullError::Manifest { image: name.to_owned(), source })?;
            let path = staging.0.join(format!("b{}", blobs.len()));
            self.fetch_blob(repository, layer, path.clone(), name).await?;
            blobs.push((title, layer.clone(), path));
        }
        let top = resolved.top.clone();
        let (store, reference, name) = (self.clone(), reference.clone(), name.to_owned());
        let interrupted = PullError::Interrupted { image: name.clone() };
        tokio::task::spawn_blocking(move || {
            let diff_id = store.artifact_layer(&staging, &blobs, &name)?;
            let _layer_pin = store.pin_digests(vec![diff_id.clone()]);
            let config = json!({
                "architecture": "", "os": "", "config": {}, "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            });
            let config = serde_json::to_vec(&config).unwrap_or_default();
            let (resolved, top) = (as_image(resolved, &diff_id, &store), top);
            store.publish_image(&resolved, &config, &[diff_id], &name)?;
            store.name_image(&id, &reference, &top, &name)
        })
        .await
        .map_err(|_| interrupted)?
    }

    /// One blob into a file, verified.
    async fn fetch_blob(
        &self,
        repository: &Repository,
        blob: &Descriptor,
        path: PathBuf,
        name: &str,
    ) -> Result<(), PullError> {
        let (image, layer) = (name.to_owned(), blob.digest.clone());
        let file = |source| PullError::File { image: name.to_owned(), source };
        let (spool, _) = Spool::open(&path, blob.size).map_err(file)?;
        let fetched = repository.fetch(blob, &self.clients).run(&spool, &|_| {}).await;
        fetched.map_err(|source| PullError::Fetch { image, layer, source: Arc::new(source) })?;
        let like = blob.digest.clone();
        let digest = tokio::task::spawn_blocking(move || files::digest(&path, &like)).await;
        let found = digest.map_err(|_| PullError::Interrupted { image: name.to_owned() })?.map_err(file)?;
        if found == blob.digest {
            return Ok(());
        }
        let source = Arc::new(LayerError::Digest { found });
        Err(PullError::Layer { image: name.to_owned(), layer: blob.digest.clone(), source })
    }

    /// The layer of all blobs, in the store. Blocking.
    fn artifact_layer(
        &self,
        staging: &Staging,
        blobs: &[(String, Descriptor, PathBuf)],
        name: &str,
    ) -> Result<Digest, PullError> {
        let file = |source| PullError::File { image: name.to_owned(), source };
        let path = staging.0.join("all");
        let make = || -> Result<(), FileError> {
            let out = File::create_new(&path).map_err(FileError::at("create", &path))?;
            let mut out = BufWriter::new(out);
            let mut tar = tar::Writer::new(&mut out);
            for (title, blob, from) in blobs {
                let content = File::open(from).map_err(FileError::at("open", from))?;
                tar.stream(title, blob.size, content).map_err(FileError::at("write", &path))?;
            }
            tar.finish().and_then(|()| out.flush()).map_err(FileError::at("write", &path))
        };
        make().map_err(file)?;
        let diff_id = files::digest(&path, &Digest::of(b"")).map_err(file)?;
        let directory = graph::layer_directory(self.root(), &diff_id);
        if directory.exists() {
            return Ok(diff_id);
        }
        let size = std::fs::metadata(&path).map_err(FileError::at("stat", &path)).map_err(file)?.len();
        let taken = || -> Result<(), LayerError> {
            let layer = self.flights.stage()?;
            let (spool, _) = Spool::open(&path, size)?;
            spool.complete();
            let expect = Expect { blob: diff_id.clone(), size, diff_id: diff_id.clone() };
            ingest(&Arc::new(spool), &expect, &layer.0)?;
            files::publish(&layer.0, &directory)?;
            Ok(())
        };
        let bad = |source| PullError::Layer {
            image: name.to_owned(),
            layer: diff_id.clone(),
            source: Arc::new(source),
        };
        taken().map_err(bad)?;
        Ok(diff_id)
    }
}

/// The artifact as an image of one layer, called by its manifest's digest.
fn as_image(resolved: Resolved, diff_id: &Digest, store: &Store) -> Resolved {
    let tar = graph::layer_directory(store.root(), diff_id).join("tar");
    let size = std::fs::metadata(tar).map_or(0, |m| m.len());
    let layer = Descriptor {
        media_type: LAYER.into(),
        digest: diff_id.clone(),
        size,
        urls: Vec::new(),
        platform: None,
        annotations: Default::default(),
    };
    let manifest = resolved.manifest;
    let config = Descriptor { digest: manifest.digest.clone(), ..manifest.config };
    Resolved { manifest: Manifest { config, layers: vec![layer], ..manifest }, ..resolved }
}

/// A blob's path in the volume. Names that would mean something else in a layer are refused.
fn title(blob: &Descriptor) -> Result<String, ManifestError> {
    let title = blob.annotations.get(TITLE).filter(|title| !title.is_empty());
    let Some(title) = title else { return Ok(format!("{}-{}", blob.digest.algorithm(), blob.digest.hex())) };
    let odd = |part: &str| part.is_empty() || part == "." || part == ".." || part.starts_with(".wh.");
    if title.starts_with('/')
        || title.contains(['\0', '\\'])
        || title.len() > 1024
        || title.split('/').any(odd)
    {
        return Err(ManifestError::Title {
            digest: blob.digest.clone(),
            title: title.chars().take(200).collect(),
        });
    }
    Ok(title.clone())
}

/// Whether a record is of an artifact.
pub(crate) fn is_artifact(record: &graph::Record) -> bool {
    record.layers.iter().any(|layer| layer.media_type == LAYER)
}
