//! Image records and names: what the store knows after a restart, and the index it answers from.
//!
//! `images/<hex>/record.json` says what an image is made of and never changes; `refs.json` says what all images are called and is
//! replaced whole. Both are checksummed records ([`files`](crate::files)). Owned by this module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::FileError;
use crate::manifest::Config;
use crate::reference::{self, ImageRef};
use crate::{Image, Usage, files};

const VERSION: u32 = 1;

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Digest of the tar.
    pub(crate) diff_id: Digest,
    /// Length of the tar in bytes.
    pub(crate) tar_size: u64,
    /// Digest of the blob it came as.
    pub(crate) blob: Digest,
    /// Length of the blob.
    pub(crate) blob_size: u64,
    /// Media type of the blob.
    pub(crate) media_type: String,
}

/// What an image is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Config digest.
    pub(crate) id: Digest,
    /// Manifest digest.
    pub(crate) manifest: Digest,
    /// Layers, lowest first.
    pub(crate) layers: Vec<LayerRecord>,
    /// Annotations of the manifest.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Seconds since the epoch.
    pub(crate) pulled_at: u64,
}

/// What images are called.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Names {
    pub(crate) images: BTreeMap<String, ImageNames>,
    /// Names without a registry, completed with their tag, and the full names they were pulled as.
    #[serde(default)]
    pub(crate) short: BTreeMap<String, String>,
}

/// What one image is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageNames {
    pub(crate) tags: BTreeSet<String>,
    pub(crate) digests: BTreeSet<String>,
    #[serde(default)]
    pub(crate) pinned: bool,
}

/// One image in the index.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) image: Arc<Image>,
    pub(crate) record: Arc<Record>,
    /// Of the image's own directory.
    pub(crate) own: Usage,
}

/// All images, as one value that is replaced whole.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) images: BTreeMap<String, Held>,
    pub(crate) names: Names,
    /// By diff ID.
    pub(crate) layers: BTreeMap<Digest, Usage>,
}

// === paths ===

/// Directory of an image.
pub(crate) fn image_directory(root: &Path, id: &str) -> PathBuf {
    root.join("images").join(id.rsplit(':').next().unwrap_or(id))
}

/// Directory of a layer.
pub(crate) fn layer_directory(root: &Path, diff_id: &Digest) -> PathBuf {
    root.join("layers").join(diff_id.algorithm()).join(diff_id.hex())
}

/// Where a layer's blob is kept, if it is: one layer may have come as several blobs.
pub(crate) fn blob_path(layer: &Path, blob: &Digest) -> PathBuf {
    layer.join(format!("blob.{}.{}", blob.algorithm(), blob.hex()))
}

// === impl Record ===

impl Record {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        files::encode("image", VERSION, self)
    }

    pub(crate) fn read(directory: &Path) -> Result<Self, FileError> {
        files::decode(&directory.join("record.json"), "image", VERSION)
    }
}

// === impl Names ===

impl Names {
    /// Absent is empty; damaged is empty too, after a word: images keep their ids, and the next pull names them again.
    pub(crate) fn read(root: &Path) -> Self {
        let path = root.join("refs.json");
        match files::decode(&path, "names", VERSION) {
            Ok(names) => names,
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(%error, cause = %error.source, "image names are lost; images keep their ids");
                Self::default()
            }
        }
    }

    pub(crate) fn write(&self, root: &Path) -> Result<(), FileError> {
        files::replace(&root.join("refs.json"), &files::encode("names", VERSION, self))
    }

    /// Gives `id` the names a pull of `reference` earns it; a tag leaves whoever had it.
    pub(crate) fn add(&mut self, id: &str, reference: &ImageRef, digest: &Digest) {
        if reference.digest.is_none()
            && let Some(tag) = reference.tagged()
        {
            self.tag(id, tag);
        }
        self.images.entry(id.to_owned()).or_default().digests.insert(reference.with_digest(digest));
    }

    /// Remembers what a short name stands for; `false`: that was known.
    pub(crate) fn remember(&mut self, short: &str, full: &ImageRef) -> bool {
        let full = full.to_string();
        self.short.insert(reference::with_tag(short), full.clone()) != Some(full)
    }

    /// Drops short names that lead to nothing.
    fn forget_short(&mut self) {
        let named: BTreeSet<&String> =
            self.images.values().flat_map(|names| names.tags.iter().chain(&names.digests)).collect();
        self.short.retain(|_, full| named.contains(full));
    }

    /// Gives `id` a tag.
    pub(crate) fn tag(&mut self, id: &str, tag: String) {
        self.images.values_mut().for_each(|names| {
            names.tags.remove(&tag);
        });
        self.images.entry(id.to_owned()).or_default().tags.insert(tag);
    }
}

// === impl Index ===

impl Index {
    /// Reads all images of a store. One whose files are missing or short is left out, and named in the log.
    pub(crate) fn load(root: &Path) -> Result<Self, FileError> {
        let mut index = Self { names: Names::read(root), ..Self::default() };
        let images = root.join("images");
        for entry in std::fs::read_dir(&images).map_err(FileError::at("list", &images))? {
            let directory = entry.map_err(FileError::at("list", &images))?.path();
            match index.read_image(root, &directory) {
                Ok(()) => {}
                Err(error) => {
                    let image = directory.display();
                    tracing::warn!(%image, %error, cause = %error.source, "image is damaged and dropped; pull it again");
                }
            }
        }
        let known: BTreeSet<String> = index.images.keys().cloned().collect();
        index.names.images.retain(|id, _| known.contains(id));
        index.names.forget_short();
        Ok(index)
    }

    fn read_image(&mut self, root: &Path, directory: &Path) -> Result<(), FileError> {
        let record = Record::read(directory)?;
        let mut layers = Vec::new();
        for layer in &record.layers {
            let path = layer_directory(root, &layer.diff_id);
            let tar = path.join("tar");
            let found = std::fs::metadata(&tar).map_err(FileError::at("stat", &tar))?.len();
            if found != layer.tar_size {
                return Err(FileError::at("use", &tar)(std::io::Error::from(
                    std::io::ErrorKind::UnexpectedEof,
                )));
            }
            layers.push((layer.diff_id.clone(), files::flat_usage(&path)?));
        }
        self.layers.extend(layers);
        self.insert(directory, record)
    }

    /// Adds an image that is complete on disk; its layers' usage must be known already.
    pub(crate) fn insert(&mut self, directory: &Path, record: Record) -> Result<(), FileError> {
        let path = directory.join("config");
        let bytes = std::fs::read(&path).map_err(FileError::at("read", &path))?;
        let invalid =
            |_| FileError::at("parse", &path)(std::io::Error::from(std::io::ErrorKind::InvalidData));
        let config = Config::parse(&bytes, &record.id).map_err(invalid)?;
        let own = tree_usage(directory)?;
        let unique: BTreeSet<&Digest> = record.layers.iter().map(|l| &l.diff_id).collect();
        let size =
            own.bytes + unique.iter().filter_map(|d| self.layers.get(*d)).map(|u| u.bytes).sum::<u64>();
        let id = record.id.to_string();
        let image = Image {
            id: id.clone(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size,
            config: config.process(),
            pinned: false,
            annotations: record.annotations.clone(),
            pulled_at: UNIX_EPOCH + Duration::from_secs(record.pulled_at),
        };
        self.images.insert(id, Held { image: Arc::new(image), record: Arc::new(record), own });
        self.rename();
        Ok(())
    }

    /// Brings the images' names up to date with `names`.
    pub(crate) fn rename(&mut self) {
        for (id, held) in &mut self.images {
            let names = self.names.images.get(id).cloned().unwrap_or_default();
            let (tags, digests) = (names.tags.into_iter().collect(), names.digests.into_iter().collect());
            let image = &held.image;
            if image.repo_tags != tags || image.repo_digests != digests || image.pinned != names.pinned {
                let mut image = Image::clone(image);
                (image.repo_tags, image.repo_digests, image.pinned) = (tags, digests, names.pinned);
                held.image = Arc::new(image);
            }
        }
    }

    /// By id, tag, digest reference, or a prefix of the id that fits one image only.
    pub(crate) fn find(&self, name: &str) -> Option<&Held> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        if is_hex && hex.len() == 64 {
            return self.images.get(&format!("sha256:{hex}"));
        }
        let name = self.names.short.get(&reference::with_tag(name)).map_or(name, String::as_str);
        let named = name.parse::<ImageRef>().ok().and_then(|reference| self.by_reference(&reference));
        if named.is_some() || !is_hex {
            return named;
        }
        let prefix = format!("sha256:{hex}");
        let mut fitting = self.images.range(prefix.clone()..).take_while(|(id, _)| id.starts_with(&prefix));
        match (fitting.next(), fitting.next()) {
            (Some((_, held)), None) => Some(held),
            _ => None,
        }
    }

    fn by_reference(&self, reference: &ImageRef) -> Option<&Held> {
        let fits: Box<dyn Fn(&ImageNames) -> bool> = match &reference.digest {
            Some(digest) => {
                let text = reference.with_digest(digest);
                Box::new(move |names| names.digests.contains(&text))
            }
            None => {
                let text = reference.tagged()?;
                Box::new(move |names| names.tags.contains(&text))
            }
        };
        let (id, _) = self.names.images.iter().find(|(_, names)| fits(names))?;
        self.images.get(id)
    }

    /// Takes an image out; returns the layers nobody needs any more, except `keep`.
    pub(crate) fn take(&mut self, id: &str, keep: &dyn Fn(&Digest) -> bool) -> Vec<Digest> {
        self.names.images.remove(id);
        self.names.forget_short();
        let Some(held) = self.images.remove(id) else { return Vec::new() };
        let needed = self.needed_layers();
        let gone: BTreeSet<Digest> = held.record.layers.iter().map(|l| l.diff_id.clone()).collect();
        let gone: Vec<Digest> = gone.into_iter().filter(|d| !needed.contains(d) && !keep(d)).collect();
        for digest in &gone {
            self.layers.remove(digest);
        }
        gone
    }

    /// Layers of all images.
    pub(crate) fn needed_layers(&self) -> BTreeSet<Digest> {
        self.images.values().flat_map(|held| held.record.layers.iter().map(|l| l.diff_id.clone())).collect()
    }

    /// Everything images use on disk.
    pub(crate) fn usage(&self) -> Usage {
        let own = self.images.values().map(|held| held.own);
        own.chain(self.layers.values().copied()).fold(Usage::default(), |sum, u| Usage {
            bytes: sum.bytes + u.bytes,
            inodes: sum.inodes + u.inodes,
        })
    }
}

/// Seconds since the epoch, now.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An image's directory: its own files, and for each driver what it recorded when it built.
fn tree_usage(directory: &Path) -> Result<Usage, FileError> {
    let mut usage = files::flat_usage(directory)?;
    for entry in std::fs::read_dir(directory).map_err(FileError::at("list", directory))? {
        let path = entry.map_err(FileError::at("list", directory))?.path();
        if path.is_dir()
            && let Ok(built) = files::decode::<Usage>(&path.join("usage.json"), "usage", VERSION)
        {
            usage.bytes += built.bytes;
            usage.inodes += built.inodes;
        }
    }
    Ok(usage)
}

/// Writes what a driver's build used into the directory it built in.
pub(crate) fn record_usage(directory: &Path, mut usage: Usage) -> Result<(), FileError> {
    // The record and the directory themselves.
    usage.bytes += 8192;
    usage.inodes += 2;
    files::write_new(&directory.join("usage.json"), &files::encode("usage", VERSION, &usage))
}
