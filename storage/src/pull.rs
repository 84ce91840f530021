//! One pull, start to end: ask the registry, fetch what is missing, make the image visible.
//!
//! ```text
//! resolve ─ choose the platform ─ config ─ layers, many at once ─ build ─ publish ─ name it
//! ```
//! Nothing is visible before `publish`, and nothing after it can leave half an image. A pull of an image that is here already stops after
//! the first step: the registry was asked, with these credentials, and nothing moved.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::watch;

use crate::digest::Digest;
use crate::error::{FileError, PullError, SnapshotError};
use crate::flight::{Failure, Flight};
use crate::graph::{self, Index, LayerRecord, Record};
use crate::layer::{Expect, LayerError};
use crate::manifest::{self, CONFIG_MAX, Config, Descriptor, Manifest, ManifestError, Parsed, Platform};
use crate::policy::{self, Policy, PolicyError};
use crate::reference::ImageRef;
use crate::registry::{Fetched, RegistryError, Repository, hosts};
use crate::snapshot::ImageLayers;
use crate::store::Store;
use crate::{Credentials, Image, LayerProgress, PullProgress, files};

/// Indexes inside indexes followed.
const NESTING: usize = 4;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(200);

/// A resolved image: what to fetch, and what to call it.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// Digest of what the reference names: an index or a manifest.
    pub(crate) top: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) manifest_bytes: Vec<u8>,
}

/// The policy and the verifiers, as far as they may refuse an image.
struct Gate {
    policy: Option<Policy>,
    verifiers: Option<PathBuf>,
}

impl Gate {
    /// Nothing may refuse it.
    fn is_open(&self) -> bool {
        self.policy.is_none() && self.verifiers.is_none()
    }

    async fn check(
        &self,
        reference: &ImageRef,
        resolved: &Resolved,
        repository: &Repository,
    ) -> Result<(), PolicyError> {
        let manifest = &resolved.manifest;
        if let Some(policy) = &self.policy {
            let mut digests = vec![manifest.digest.clone()];
            digests.extend((resolved.top != manifest.digest).then(|| resolved.top.clone()));
            policy.check(reference, &digests, repository).await?;
        }
        if let Some(directory) = &self.verifiers {
            let descriptor = Descriptor {
                media_type: crate::archive::save::media_type(&resolved.manifest_bytes),
                digest: manifest.digest.clone(),
                size: resolved.manifest_bytes.len() as u64,
                urls: Vec::new(),
                platform: None,
                annotations: Default::default(),
            };
            policy::run_verifiers(directory, &reference.to_string(), &descriptor).await?;
        }
        Ok(())
    }
}

impl Store {
    /// Pulls an image. Dropping the future aborts the pull and leaves nothing visible; what was fetched of a blob is kept for a
    /// while, to be continued. A name without a registry is tried at each that a `registries.conf` gives it.
    ///
    /// # Errors
    /// See [`PullError`]: each names the image, and the layer where there is one.
    pub async fn pull(
        self: &Arc<Self>,
        image: &str,
        credentials: Option<Credentials>,
        progress: watch::Sender<PullProgress>,
    ) -> Result<Arc<Image>, PullError> {
        let registry = |source| PullError::Registry { image: image.to_owned(), source };
        let names = hosts::names(image, &self.config.registry_config).map_err(registry)?;
        let mut tried = Vec::new();
        for name in &names {
            match self.pull_named(name, credentials.clone(), &progress).await {
                Ok(pulled) if name == image => return Ok(pulled),
                Ok(pulled) => return self.name_short(&pulled.id, image, name),
                Err(error) => tried.push(error),
            }
        }
        match tried.len() {
            1 => Err(tried.remove(0)),
            _ => Err(PullError::Nowhere { image: image.to_owned(), tried }),
        }
    }

    /// Pulls an image by its full name.
    async fn pull_named(
        self: &Arc<Self>,
        image: &str,
        credentials: Option<Credentials>,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<Arc<Image>, PullError> {
        let reference: ImageRef =
            image.parse().map_err(|source| PullError::Reference { image: image.to_owned(), source })?;
        let name = reference.to_string();
        let registry = |source| PullError::Registry { image: name.clone(), source };
        let wrong = |source| PullError::Manifest { image: name.clone(), source };
        let refused = |source| PullError::Policy { image: name.clone(), source };
        phase(progress, "resolving");
        let places = &self.config.registry_config;
        let repository = Repository::open(&reference, credentials, places, &self.clients, self.timing);
        let repository = repository.map_err(registry)?;
        let gate = self.gate(&reference, &name)?;
        if gate.is_open()
            && let Some((id, top)) = self.unchanged(&repository, &reference).await.map_err(registry)?
        {
            let _image_pin = self.pin_digests(vec![id.clone()]);
            if self.index.load().images.contains_key(id.as_str()) {
                return self.name_image(&id, &reference, &top, &name);
            }
        }
        let resolved = resolve(&repository, &reference, &name).await?;
        gate.check(&reference, &resolved, &repository).await.map_err(refused)?;
        match resolved.manifest.check_image() {
            Err(ManifestError::Artifact { .. }) => {
                return self.pull_artifact(&repository, resolved, &reference, &name).await;
            }
            checked => checked.map_err(wrong)?,
        }
        let id = resolved.manifest.config.digest.clone();
        // From here on nobody removes it under us.
        let _image_pin = self.pin_digests(vec![id.clone()]);
        if self.is_present(&id, &resolved.manifest.digest) {
            return self.name_image(&id, &reference, &resolved.top, &name);
        }
        let config_bytes =
            repository.small_blob(&resolved.manifest.config, CONFIG_MAX).await.map_err(registry)?;
        let config = Config::parse(&config_bytes, &id).map_err(wrong)?;
        let diff_ids = resolved.manifest.diff_ids(&config).map_err(wrong)?;
        let _layer_pin = self.pin_digests(diff_ids.clone());
        self.fetch_layers(&repository, &resolved.manifest.layers, &diff_ids, progress, &name).await?;
        phase(progress, "writing");
        let store = self.clone();
        let interrupted = |_| PullError::Interrupted { image: name.clone() };
        let build_name = name.clone();
        tokio::task::spawn_blocking(move || {
            store.publish_image(&resolved, &config_bytes, &diff_ids, &build_name)?;
            store.name_image(&id, &reference, &resolved.top, &build_name)
        })
        .await
        .map_err(interrupted)?
    }

    /// What stands between this image and the node.
    fn gate(&self, reference: &ImageRef, name: &str) -> Result<Gate, PullError> {
        let policy = Policy::read(&self.config.policy);
        let refused = |source| PullError::Policy { image: name.to_owned(), source };
        let policy = policy.map_err(refused)?.filter(|policy| !policy.accepts_all_of(reference));
        policy.as_ref().map_or(Ok(()), |policy| policy.check_outright(reference)).map_err(refused)?;
        Ok(Gate { policy, verifiers: self.config.verifiers.clone() })
    }

    /// Asks whether a tag is still what it was when it was pulled: `HEAD` costs nothing of a quota. The registry's word is taken only for a
    /// digest that this very repository has shown the content of, so that nobody is served somebody else's image for its digest alone.
    async fn unchanged(
        &self,
        repository: &Repository,
        reference: &ImageRef,
    ) -> Result<Option<(Digest, Digest)>, RegistryError> {
        let (Some(tag), None) = (&reference.tag, &reference.digest) else { return Ok(None) };
        let prefix = format!("{}@", reference.name());
        let index = self.index.load_full();
        let known = |text: &String| text.starts_with(&prefix);
        if !index.names.images.values().any(|names| names.digests.iter().any(known)) {
            return Ok(None);
        }
        let top = match repository.claimed_digest(tag).await {
            Ok(Some(top)) => top,
            // Not every registry answers `HEAD`; `GET` will say what is the matter.
            Ok(None) | Err(RegistryError::Status { .. } | RegistryError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = reference.with_digest(&top);
        let mut named = index.names.images.iter().filter(|(_, names)| names.digests.contains(&text));
        let held = named.find_map(|(id, _)| index.images.get(id));
        Ok(held.map(|held| (held.record.id.clone(), top)))
    }

    fn is_present(&self, id: &Digest, manifest: &Digest) -> bool {
        self.index.load().images.get(id.as_str()).is_some_and(|held| held.record.manifest == *manifest)
    }

    /// Fetches all layers that are not here, each once.
    async fn fetch_layers(
        &self,
        repository: &Repository,
        layers: &[Descriptor],
        diff_ids: &[Digest],
        progress: &watch::Sender<PullProgress>,
        name: &str,
    ) -> Result<(), PullError> {
        let mut seen = BTreeSet::new();
        let wanted: Vec<(&Descriptor, &Digest)> = layers
            .iter()
            .zip(diff_ids)
            .filter(|(_, diff_id)| {
                seen.insert(*diff_id) && !graph::layer_directory(self.root(), diff_id).exists()
            })
            .collect();
        let present = |layer: &&Descriptor| !wanted.iter().any(|(wanted, _)| wanted.digest == layer.digest);
        let mut shown: Vec<LayerProgress> =
            layers.iter().filter(present).map(|l| shown(l, l.size, true)).collect();
        let first = shown.len();
        shown.extend(wanted.iter().map(|(layer, _)| self::shown(layer, 0, false)));
        let total = wanted.iter().map(|(layer, _)| layer.size).sum();
        let flights: Vec<std::sync::Mutex<Option<Arc<Flight>>>> =
            wanted.iter().map(|_| Default::default()).collect();
        let mut fetches = Vec::with_capacity(wanted.len());
        for ((layer, diff_id), slot) in wanted.iter().zip(&flights) {
            fetches.push(self.fetch_layer(repository, layer, diff_id, slot, name));
        }
        let all = try_join_all(fetches);
        tokio::pin!(all);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                result = &mut all => {
                    shown.iter_mut().for_each(|layer| (layer.done, layer.done_for_good) = (layer.total, true));
                    progress.send_replace(PullProgress { total, done: total, phase: "fetched".into(), layers: shown });
                    return result.map(drop);
                }
                _ = tick.tick() => {
                    for (slot, layer) in flights.iter().zip(&mut shown[first..]) {
                        if let Some(flight) = slot.lock().ok().and_then(|slot| slot.clone()) {
                            (layer.done, layer.done_for_good) = (flight.done(), flight.has_ended());
                        }
                    }
                    let done = shown[first..].iter().map(|layer| layer.done).sum();
                    let layers = shown.clone();
                    progress.send_replace(PullProgress { total, done, phase: "fetching".into(), layers });
                }
            }
        }
    }

    async fn fetch_layer(
        &self,
        repository: &Repository,
        layer: &Descriptor,
        diff_id: &Digest,
        slot: &std::sync::Mutex<Option<Arc<Flight>>>,
        name: &str,
    ) -> Result<(), PullError> {
        let expect = Expect { blob: layer.digest.clone(), size: layer.size, diff_id: diff_id.clone() };
        let file = |source| PullError::File { image: name.to_owned(), source };
        loop {
            let (flight, ours) =
                self.flights.join(&expect, || repository.fetch(layer, &self.clients)).map_err(file)?;
            if let Ok(mut slot) = slot.lock() {
                *slot = Some(flight.clone());
            }
            let (image, digest) = (name.to_owned(), layer.digest.clone());
            match flight.wait().await {
                Ok(()) => return Ok(()),
                // Somebody else's credentials or deadline are no verdict on ours.
                Err(_) if !ours => {}
                Err(Failure::Registry(source)) => {
                    return Err(PullError::Fetch { image, layer: digest, source });
                }
                Err(Failure::Layer(source)) => return Err(PullError::Layer { image, layer: digest, source }),
                Err(Failure::Interrupted) => return Err(PullError::Interrupted { image }),
            }
        }
    }

    /// Builds the image in staging and moves it into place. Blocking.
    pub(crate) fn publish_image(
        &self,
        resolved: &Resolved,
        config: &[u8],
        diff_ids: &[Digest],
        name: &str,
    ) -> Result<(), PullError> {
        let file = |source| PullError::File { image: name.to_owned(), source };
        let id = &resolved.manifest.config.digest;
        let record = self.record(resolved, diff_ids).map_err(file)?;
        let staging = self.flights.stage().map_err(file)?;
        let paths = diff_ids.iter().map(|diff_id| graph::layer_directory(self.root(), diff_id));
        let layers = ImageLayers { id: id.to_string(), layers: paths.collect() };
        let snapshot = |source| built_badly(source, &resolved.manifest.layers, name);
        self.build(&layers, &staging.0.join(self.driver.name())).map_err(snapshot)?;
        files::write_new(&staging.0.join("config"), config).map_err(file)?;
        files::write_new(&staging.0.join("manifest"), &resolved.manifest_bytes).map_err(file)?;
        files::write_new(&staging.0.join("record.json"), &record.bytes()).map_err(file)?;
        let directory = graph::image_directory(self.root(), id.as_str());
        let _guard = self.write_lock();
        let mut index = Index::clone(&self.index.load());
        if index.images.contains_key(id.as_str()) {
            // Another manifest of the same config: its layers are the same by their diff IDs.
            return Ok(());
        }
        files::publish(&staging.0, &directory).map_err(file)?;
        for diff_id in diff_ids {
            let usage = files::flat_usage(&graph::layer_directory(self.root(), diff_id)).map_err(file)?;
            index.layers.insert(diff_id.clone(), usage);
        }
        index.insert(&directory, record).map_err(file)?;
        self.index.store(Arc::new(index));
        Ok(())
    }

    fn record(&self, resolved: &Resolved, diff_ids: &[Digest]) -> Result<Record, FileError> {
        let layer = |(descriptor, diff_id): (&Descriptor, &Digest)| {
            let tar = graph::layer_directory(self.root(), diff_id).join("tar");
            Ok(LayerRecord {
                diff_id: diff_id.clone(),
                tar_size: std::fs::metadata(&tar).map_err(FileError::at("stat", &tar))?.len(),
                blob: descriptor.digest.clone(),
                blob_size: descriptor.size,
                media_type: descriptor.media_type.clone(),
            })
        };
        Ok(Record {
            id: resolved.manifest.config.digest.clone(),
            manifest: resolved.manifest.digest.clone(),
            layers: resolved
                .manifest
                .layers
                .iter()
                .zip(diff_ids)
                .map(layer)
                .collect::<Result<_, FileError>>()?,
            annotations: resolved.manifest.annotations.clone(),
            pulled_at: graph::now(),
        })
    }

    /// Gives a present image the names this pull earns it.
    pub(crate) fn name_image(
        &self,
        id: &Digest,
        reference: &ImageRef,
        top: &Digest,
        name: &str,
    ) -> Result<Arc<Image>, PullError> {
        let _guard = self.write_lock();
        let mut index = Index::clone(&self.index.load());
        let before = index.names.images.get(id.as_str()).cloned();
        index.names.add(id.as_str(), reference, top);
        if index.names.images.get(id.as_str()) != before.as_ref() {
            index.rename();
            let file = |source| PullError::File { image: name.to_owned(), source };
            index.names.write(self.root()).map_err(file)?;
            self.index.store(Arc::new(index));
        }
        let index = self.index.load();
        let held = index.images.get(id.as_str());
        held.map(|held| held.image.clone()).ok_or_else(|| PullError::Interrupted { image: name.to_owned() })
    }
}

impl Store {
    /// Remembers what a name without a registry has turned out to be.
    fn name_short(&self, id: &str, short: &str, full: &str) -> Result<Arc<Image>, PullError> {
        let lost = || PullError::Interrupted { image: short.to_owned() };
        let full: ImageRef = full.parse().map_err(|_| lost())?;
        let _guard = self.write_lock();
        let mut index = Index::clone(&self.index.load());
        if index.names.remember(short, &full) {
            let file = |source| PullError::File { image: short.to_owned(), source };
            index.names.write(self.root()).map_err(file)?;
            self.index.store(Arc::new(index));
        }
        self.index.load().images.get(id).map(|held| held.image.clone()).ok_or_else(lost)
    }
}

fn shown(layer: &Descriptor, done: u64, done_for_good: bool) -> LayerProgress {
    LayerProgress { digest: layer.digest.to_string(), total: layer.size, done, done_for_good }
}

/// A layer that does not apply is named by its digest.
fn built_badly(source: SnapshotError, layers: &[Descriptor], image: &str) -> PullError {
    let image = image.to_owned();
    match source {
        SnapshotError::Layers(LayerError::Apply { layer, offset, path, problem }) if layer < layers.len() => {
            let source = LayerError::Apply { layer, offset, path, problem };
            PullError::Layer { image, layer: layers[layer].digest.clone(), source: Arc::new(source) }
        }
        source => PullError::Snapshot { image, source },
    }
}

fn phase(progress: &watch::Sender<PullProgress>, phase: &str) {
    progress.send_modify(|p| phase.clone_into(&mut p.phase));
}

/// From a reference to a manifest for this machine.
async fn resolve(repository: &Repository, reference: &ImageRef, name: &str) -> Result<Resolved, PullError> {
    let registry = |source: RegistryError| PullError::Registry { image: name.to_owned(), source };
    let wrong = |source| PullError::Manifest { image: name.to_owned(), source };
    let mut fetched: Fetched = repository.manifest(reference).await.map_err(registry)?;
    let top = fetched.digest.clone();
    let host = Platform::host();
    for _ in 0..=NESTING {
        match manifest::parse(&fetched.bytes, &fetched.digest, &fetched.content_type).map_err(wrong)? {
            Parsed::Manifest(manifest) => {
                return Ok(Resolved { top, manifest: *manifest, manifest_bytes: fetched.bytes });
            }
            Parsed::Index(entries) => {
                let entry = manifest::select(&entries, &host, &fetched.digest).map_err(wrong)?;
                fetched = repository.manifest_by(&entry.digest).await.map_err(registry)?;
            }
        }
    }
    Err(wrong(manifest::ManifestError::Nested(top)))
}
