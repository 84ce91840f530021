//! Taking in the images of an archive: everything is verified as if it came from a registry, and kept as it came.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::ArchiveError;
use super::unpack::Unpacked;
use crate::digest::Digest;
use crate::error::{FileError, PullError};
use crate::flight::keep_blob;
use crate::layer::spool::Spool;
use crate::layer::{Expect, LayerError, ingest};
use crate::manifest::{
    self, CONFIG_MAX, Config, DOCKER_MANIFEST, Descriptor, MANIFEST_MAX, Manifest, Parsed, Platform,
};
use crate::pull::Resolved;
use crate::reference::ImageRef;
use crate::store::Store;
use crate::{Image, files, graph};

/// Indexes inside indexes followed.
const NESTING: usize = 4;
/// Most images in an archive.
const IMAGES_MAX: usize = 1000;

/// An image that was taken in, and the tags it got.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The image.
    pub image: Arc<Image>,
    /// Tags of the archive, completed.
    pub tags: Vec<String>,
}

/// A manifest of the archive, what to call it, and where its layers' blobs are.
struct Found {
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    config: Vec<u8>,
    names: Vec<ImageRef>,
    /// Names in the archive, in the order of the layers.
    files: Vec<String>,
}

/// One image of a docker-archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Store {
    /// Takes in the images of an archive. `base` is the name of images that the archive knows only a tag of. Blocking.
    ///
    /// # Errors
    /// The archive is not what it should be; images before the bad one are in the store.
    pub fn load(&self, archive: &Unpacked, base: Option<&str>) -> Result<Vec<Loaded>, ArchiveError> {
        let found = match archive.read("index.json", MANIFEST_MAX)? {
            Some(index) => from_layout(archive, &index, base)?,
            None => match archive.read("manifest.json", MANIFEST_MAX)? {
                Some(list) => from_docker(archive, &list)?,
                None => return Err(ArchiveError::Format),
            },
        };
        if found.is_empty() {
            return Err(ArchiveError::Empty);
        }
        found.into_iter().map(|found| self.take_in(archive, found)).collect()
    }

    fn take_in(&self, archive: &Unpacked, found: Found) -> Result<Loaded, ArchiveError> {
        let Found { manifest, manifest_bytes, config: config_bytes, names, files } = found;
        manifest.check_image()?;
        let id = manifest.config.digest.clone();
        let config = Config::parse(&config_bytes, &id)?;
        let diff_ids = manifest.diff_ids(&config)?;
        let _image_pin = self.pin_digests(vec![id.clone()]);
        let _layer_pin = self.pin_digests(diff_ids.clone());
        for ((layer, diff_id), file) in manifest.layers.iter().zip(&diff_ids).zip(&files) {
            let path = archive.find(file).ok_or_else(|| ArchiveError::Missing(file.clone()))?;
            let expect = Expect { blob: layer.digest.clone(), size: layer.size, diff_id: diff_id.clone() };
            self.take_layer(path, &expect).map_err(|source| {
                let (image, layer) = (id.to_string(), layer.digest.clone());
                PullError::Layer { image, layer, source: Arc::new(source) }
            })?;
        }
        let top = manifest.digest.clone();
        let resolved = Resolved { top: top.clone(), manifest, manifest_bytes };
        self.publish_image(&resolved, &config_bytes, &diff_ids, id.as_str())?;
        for name in &names {
            self.name_image(&id, name, &top, &name.to_string())?;
        }
        let image = self.find(id.as_str()).ok_or(ArchiveError::Interrupted)?;
        Ok(Loaded { image, tags: names.iter().filter_map(ImageRef::tagged).collect() })
    }

    /// Makes a layer of a blob, or gives a layer that is here its blob. The blob stays beside it: no registry may have it.
    fn take_layer(&self, blob: &Path, expect: &Expect) -> Result<(), LayerError> {
        let layer = graph::layer_directory(self.root(), &expect.diff_id);
        let kept = graph::blob_path(&layer, &expect.blob);
        if layer.exists() {
            if expect.blob == expect.diff_id || kept.exists() {
                return Ok(());
            }
            let found = files::digest(blob, &expect.blob)?;
            if found != expect.blob {
                return Err(LayerError::Digest { found });
            }
            keep_blob(blob, expect, &layer)?;
            files::sync_directory(&layer)?;
            return Ok(self.measure_layer(&expect.diff_id)?);
        }
        let staging = self.flights.stage()?;
        let (spool, there) = Spool::open(blob, expect.size)?;
        if there != expect.size {
            return Err(LayerError::Size { expected: expect.size, found: there });
        }
        spool.complete();
        ingest(&Arc::new(spool), expect, &staging.0)?;
        keep_blob(blob, expect, &staging.0)?;
        files::publish(&staging.0, &layer)?;
        Ok(())
    }
}

/// An OCI layout (image-layout.md): one image for each descriptor of the index that this machine can run.
fn from_layout(archive: &Unpacked, index: &[u8], base: Option<&str>) -> Result<Vec<Found>, ArchiveError> {
    let digest = Digest::of(index);
    let Parsed::Index(entries) = manifest::parse(index, &digest, manifest::OCI_INDEX)? else {
        return Err(ArchiveError::Format);
    };
    let mut found: Vec<Found> = Vec::new();
    for entry in entries.into_iter().take(IMAGES_MAX) {
        let names: Vec<ImageRef> = name_of(&entry, base).into_iter().collect();
        let (manifest, manifest_bytes) = choose(archive, &entry)?;
        if let Some(same) = found.iter_mut().find(|same| same.manifest.digest == manifest.digest) {
            same.names.extend(names);
            continue;
        }
        let config = blob(archive, &manifest.config, CONFIG_MAX)?;
        let files = manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
        found.push(Found { manifest, manifest_bytes, config, names, files });
    }
    Ok(found)
}

/// Follows indexes down to the manifest for this machine.
fn choose(archive: &Unpacked, entry: &Descriptor) -> Result<(Manifest, Vec<u8>), ArchiveError> {
    let mut entry = entry.clone();
    for _ in 0..=NESTING {
        let bytes = blob(archive, &entry, MANIFEST_MAX)?;
        match manifest::parse(&bytes, &entry.digest, &entry.media_type)? {
            Parsed::Manifest(manifest) => return Ok((*manifest, bytes)),
            Parsed::Index(entries) => {
                entry = manifest::select(&entries, &Platform::host(), &entry.digest)?.clone();
            }
        }
    }
    Err(manifest::ManifestError::Nested(entry.digest).into())
}

/// containerd writes the full name, others a tag, or either in the tag's place.
fn name_of(entry: &Descriptor, base: Option<&str>) -> Option<ImageRef> {
    let annotation = |key: &str| entry.annotations.get(key).filter(|text| !text.is_empty());
    if let Some(full) = annotation("io.containerd.image.name") {
        return full.parse().ok();
    }
    let tag = annotation("org.opencontainers.image.ref.name")?;
    match base {
        _ if tag.contains(['/', ':']) => tag.parse().ok(),
        Some(base) => format!("{base}:{tag}").parse().ok(),
        None => None,
    }
}

/// A docker-archive: its layers are files by name, and its manifest is made here.
fn from_docker(archive: &Unpacked, list: &[u8]) -> Result<Vec<Found>, ArchiveError> {
    let malformed = |source| ArchiveError::Json { what: "manifest.json".into(), source };
    let listed: Vec<Listed> = serde_json::from_slice(list).map_err(malformed)?;
    let mut found = Vec::new();
    for one in listed.into_iter().take(IMAGES_MAX) {
        let missing = || ArchiveError::Missing(one.config.clone());
        let config = archive.read(&one.config, CONFIG_MAX)?.ok_or_else(missing)?;
        let mut layers = Vec::new();
        for name in &one.layers {
            let path = archive.find(name).ok_or_else(|| ArchiveError::Missing(name.clone()))?;
            layers.push(docker_layer(path)?);
        }
        let id = Digest::of(&config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
            "config": { "mediaType": "application/vnd.docker.container.image.v1+json", "size": config.len(), "digest": id },
            "layers": layers,
        });
        let manifest_bytes = serde_json::to_vec(&manifest).unwrap_or_default();
        let digest = Digest::of(&manifest_bytes);
        let Parsed::Manifest(manifest) = manifest::parse(&manifest_bytes, &digest, DOCKER_MANIFEST)? else {
            return Err(ArchiveError::Format);
        };
        let names = one.repo_tags.unwrap_or_default();
        let names = names.iter().map(|name| name.parse().map_err(|_| ArchiveError::Name(name.clone())));
        let names = names.collect::<Result<_, _>>()?;
        found.push(Found { manifest: *manifest, manifest_bytes, config, names, files: one.layers });
    }
    Ok(found)
}

/// The descriptor of a layer's file.
fn docker_layer(path: &Path) -> Result<Descriptor, ArchiveError> {
    use crate::layer::decode;
    let head = {
        use std::io::Read;
        let mut head = Vec::new();
        let file = std::fs::File::open(path).map_err(FileError::at("open", path))?;
        file.take(4).read_to_end(&mut head).map_err(FileError::at("read", path))?;
        head
    };
    let suffix = match decode::Format::sniff(&head) {
        decode::Format::Gzip => ".gzip",
        decode::Format::Zstd => ".zstd",
        decode::Format::Plain => "",
    };
    Ok(Descriptor {
        media_type: format!("application/vnd.docker.image.rootfs.diff.tar{suffix}"),
        digest: files::digest(path, &Digest::of(b""))?,
        size: std::fs::metadata(path).map_err(FileError::at("stat", path))?.len(),
        urls: Vec::new(),
        platform: None,
        annotations: Default::default(),
    })
}

/// A small blob, verified.
fn blob(archive: &Unpacked, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, ArchiveError> {
    let name = blob_name(&descriptor.digest);
    let bytes = archive.read(&name, limit)?.ok_or_else(|| ArchiveError::Missing(name.clone()))?;
    if descriptor.digest.matches(&bytes) {
        return Ok(bytes);
    }
    Err(ArchiveError::Digest { name, found: Digest::of(&bytes) })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}
