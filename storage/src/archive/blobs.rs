//! Where a layer's blob can be had, exactly as it came.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};

use super::ArchiveError;
use crate::digest::Digest;
use crate::error::FileError;
use crate::flight::Staging;
use crate::graph::{self, LayerRecord, Record};
use crate::layer::spool::Spool;
use crate::manifest::Descriptor;
use crate::reference::ImageRef;
use crate::registry::Repository;
use crate::store::{Pin, Store};
use crate::{Credentials, artifact, files};

/// Layers fetched again at a time.
const FETCHES: usize = 3;

/// A blob as a file, verified where it is not the store's own.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) path: PathBuf,
    /// Fetched for the occasion.
    _staging: Option<Staging>,
}

/// An image with everything it is made of, held until this is dropped.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) record: Arc<Record>,
    pub(crate) tags: Vec<String>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    /// Lowest first; a blob that occurs twice is listed twice.
    pub(crate) layers: Vec<Arc<Blob>>,
    _pin: Pin,
}

impl Blob {
    /// A layer's blob that is here.
    pub(crate) fn at(layer: &LayerRecord, path: PathBuf) -> Self {
        Self { digest: layer.blob.clone(), size: layer.blob_size, path, _staging: None }
    }

    pub(crate) fn open(&self) -> Result<File, FileError> {
        File::open(&self.path).map_err(FileError::at("open", &self.path))
    }
}

impl Store {
    /// The image's record, pinned: nobody removes it while it is read.
    pub(crate) fn hold(&self, name: &str) -> Result<(Arc<Record>, Vec<String>, Pin), ArchiveError> {
        let none = || ArchiveError::NoImage(name.to_owned());
        let id = self.index.load().find(name).map(|held| held.record.id.clone()).ok_or_else(none)?;
        let pin = self.pin_digests(vec![id.clone()]);
        let index = self.index.load();
        let held = index.images.get(id.as_str()).ok_or_else(none)?;
        Ok((held.record.clone(), held.image.repo_tags.clone(), pin))
    }

    /// An image with its blobs, fetched again where they are not here. `credentials` are for the registry it came from.
    pub(crate) async fn parts(
        self: &Arc<Self>,
        name: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Parts, ArchiveError> {
        let (record, tags, pin) = self.hold(name)?;
        if artifact::is_artifact(&record) {
            return Err(ArchiveError::Artifact(name.to_owned()));
        }
        let directory = graph::image_directory(self.root(), record.id.as_str());
        let read = |file: &str| {
            let path = directory.join(file);
            std::fs::read(&path).map_err(FileError::at("read", path))
        };
        let (manifest, config) = (read("manifest")?, read("config")?);
        let mut fetches = Vec::new();
        for layer in &record.layers {
            fetches.push(self.blob(name, &record, layer, credentials).boxed());
        }
        let fetched: Vec<_> = futures_util::stream::iter(fetches).buffered(FETCHES).collect().await;
        let layers = fetched.into_iter().collect::<Result<_, _>>()?;
        Ok(Parts { record, tags, manifest, config, layers, _pin: pin })
    }

    async fn blob(
        self: &Arc<Self>,
        name: &str,
        record: &Record,
        layer: &LayerRecord,
        credentials: Option<&Credentials>,
    ) -> Result<Arc<Blob>, ArchiveError> {
        let directory = graph::layer_directory(self.root(), &layer.diff_id);
        let kept = if layer.blob == layer.diff_id {
            directory.join("tar")
        } else {
            graph::blob_path(&directory, &layer.blob)
        };
        if kept.exists() {
            return Ok(Arc::new(Blob::at(layer, kept)));
        }
        self.fetch_again(name, record, layer, credentials).await
    }

    /// A layer's blob from where its image was pulled, verified.
    pub(crate) async fn fetch_again(
        self: &Arc<Self>,
        name: &str,
        record: &Record,
        layer: &LayerRecord,
        credentials: Option<&Credentials>,
    ) -> Result<Arc<Blob>, ArchiveError> {
        let staging = self.flights.stage()?;
        let path = staging.0.join("blob");
        let descriptor = Descriptor {
            media_type: layer.media_type.clone(),
            digest: layer.blob.clone(),
            size: layer.blob_size,
            urls: Vec::new(),
            platform: None,
            annotations: Default::default(),
        };
        let mut last = None;
        for origin in self.origins(record) {
            let places = &self.config.registry_config;
            let opened = Repository::open(&origin, credentials.cloned(), places, &self.clients, self.timing);
            let fetched = match opened {
                Ok(repository) => {
                    let (spool, _) = Spool::open(&path, layer.blob_size)?;
                    repository.fetch(&descriptor, &self.clients).run(&spool, &|_| {}).await
                }
                Err(error) => Err(error),
            };
            match fetched {
                Ok(()) => {
                    let (checked, like) = (path.clone(), layer.blob.clone());
                    let found = tokio::task::spawn_blocking(move || files::digest(&checked, &like)).await;
                    let found = found.map_err(|_| ArchiveError::Interrupted)??;
                    if found == layer.blob {
                        return Ok(Arc::new(Blob { _staging: Some(staging), ..Blob::at(layer, path) }));
                    }
                    Spool::delete(&path);
                    return Err(ArchiveError::Digest { name: layer.blob.to_string(), found });
                }
                Err(error) => last = Some(error),
            }
        }
        Err(ArchiveError::NoBlob {
            image: name.to_owned(),
            layer: layer.blob.clone(),
            source: last.map(Box::new),
        })
    }

    /// Where an image was pulled from.
    fn origins(&self, record: &Record) -> Vec<ImageRef> {
        let index = self.index.load();
        let names = index.names.images.get(record.id.as_str());
        names.into_iter().flat_map(|names| &names.digests).filter_map(|digest| digest.parse().ok()).collect()
    }
}
