//! Scrub: reads every layer again and compares it with its name, because disks forget; and puts right what they forgot.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::archive::ArchiveError;
use crate::archive::blobs::Blob;
use crate::digest::Digest;
use crate::error::{FileError, PullError};
use crate::graph::LayerRecord;
use crate::layer::spool::Spool;
use crate::layer::{Expect, LayerError, ingest};
use crate::store::Store;
use crate::{files, graph};

/// A layer whose bytes are no longer what they were.
#[derive(Debug)]
pub struct Damage {
    /// Diff ID of the layer: the digest its tar had when it was pulled.
    pub layer: Digest,
    /// Ids of the images that contain it.
    pub images: Vec<String>,
    /// What was found: another digest, or why it could not be read.
    pub found: Result<Digest, FileError>,
}

impl Store {
    /// Hashes the tar of every layer; returns those that differ. Blocking, as long as the disk takes, behind everybody else who wants
    /// it; changes nothing.
    pub fn scrub(&self) -> Vec<Damage> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("scrub".into());
            let scrub = || {
                if let Err(error) = (self.config.kernel.idle)() {
                    tracing::debug!(%error, "layers are read at the usual priority");
                }
                self.read_layers()
            };
            let running = thread.spawn_scoped(scope, scrub).ok();
            running.and_then(|thread| thread.join().ok()).unwrap_or_else(|| self.read_layers())
        })
    }

    fn read_layers(&self) -> Vec<Damage> {
        let mut users: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for (id, held) in &self.index.load().images {
            for layer in &held.record.layers {
                let images = users.entry(layer.diff_id.clone()).or_default();
                if images.last() != Some(id) {
                    images.push(id.clone());
                }
            }
        }
        let check = |(layer, images): (Digest, Vec<String>)| {
            // An image removed meanwhile is no damage.
            let still_there = || self.index.load().layers.contains_key(&layer);
            let found = files::digest(&graph::layer_directory(self.root(), &layer).join("tar"), &layer);
            let fine = found.as_ref().is_ok_and(|found| *found == layer);
            (!fine && still_there()).then_some(Damage { layer, images, found })
        };
        users.into_iter().filter_map(check).collect()
    }

    /// Puts a damaged layer right: from the blob kept beside it, or by fetching that once more from where an image that has the layer was
    /// pulled. It is verified as in a pull; then what differs is written over the layer's tar where it lies, so that containers
    /// that run on it read good bytes too, once the kernel has forgotten those it read before.
    ///
    /// # Errors
    /// No image has the layer, its blob cannot be had (without credentials: the layer may be of several registries), or the disk fails;
    /// the damage is then what it was.
    pub async fn heal(self: &Arc<Self>, layer: &Digest) -> Result<(), ArchiveError> {
        let index = self.index.load_full();
        let has = |id: &&String| index.images[*id].record.layers.iter().any(|one| one.diff_id == *layer);
        let mut last = ArchiveError::NoLayer(layer.clone());
        for id in index.images.keys().filter(has) {
            match self.heal_image(id, layer).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn heal_image(self: &Arc<Self>, id: &str, layer: &Digest) -> Result<(), ArchiveError> {
        let (record, _, pin) = self.hold(id)?;
        let mut layers = record.layers.iter();
        let wanted = layers.find(|one| one.diff_id == *layer);
        let wanted = wanted.ok_or_else(|| ArchiveError::NoLayer(layer.clone()))?.clone();
        let (store, one) = (self.clone(), wanted.clone());
        let kept = tokio::task::spawn_blocking(move || store.good_blob(&one)).await;
        let blob = match kept.map_err(|_| ArchiveError::Interrupted)? {
            Some(blob) => blob,
            None => self.fetch_again(id, &record, &wanted, None).await?,
        };
        let (store, image) = (self.clone(), id.to_owned());
        let mended = tokio::task::spawn_blocking(move || {
            let mended = store.mend(&blob, &wanted);
            drop(pin);
            mended.map_err(|source| PullError::Layer { image, layer: wanted.blob, source: Arc::new(source) })
        });
        Ok(mended.await.map_err(|_| ArchiveError::Interrupted)??)
    }

    /// The blob beside a layer, if it is there and has not suffered as well.
    fn good_blob(&self, layer: &LayerRecord) -> Option<Arc<Blob>> {
        let path = graph::blob_path(&graph::layer_directory(self.root(), &layer.diff_id), &layer.blob);
        let good = files::digest(&path, &layer.blob).is_ok_and(|found| found == layer.blob);
        good.then(|| Arc::new(Blob::at(layer, path)))
    }

    /// Makes the layer anew of its blob, aside, and writes over the damaged one what differs.
    fn mend(&self, blob: &Blob, layer: &LayerRecord) -> Result<(), LayerError> {
        let expect =
            Expect { blob: layer.blob.clone(), size: layer.blob_size, diff_id: layer.diff_id.clone() };
        let staging = self.flights.stage()?;
        let (spool, _) = Spool::open(&blob.path, expect.size)?;
        spool.complete();
        ingest(&Arc::new(spool), &expect, &staging.0)?;
        let directory = graph::layer_directory(self.root(), &layer.diff_id);
        for file in ["tar", "entries"] {
            files::mend(&directory.join(file), &staging.0.join(file))?;
        }
        Ok(self.measure_layer(&layer.diff_id)?)
    }
}
