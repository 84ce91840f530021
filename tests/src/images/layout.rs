//! OCI layouts: blobs by digest, a config, a manifest, an index.
//!
//! <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md>

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Image;
use crate::shell;

/// GOARCH of this machine.
pub(super) const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// The part of an image config the recipes vary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config<'a> {
    /// `user[:group]`.
    pub user: &'a str,
    /// Command line.
    pub cmd: &'a [&'a str],
    /// Environment besides PATH.
    pub env: &'a [&'a str],
    /// Working directory.
    pub working_dir: &'a str,
    /// Stop signal.
    pub stop_signal: &'a str,
    /// Exposed ports.
    pub ports: &'a [&'a str],
}

/// A packed layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// OCI media type.
    pub media_type: &'static str,
    /// The blob as it travels.
    pub blob: Vec<u8>,
    /// Digest of the plain tar.
    pub diff_id: String,
}

// === impl Layer ===

impl Layer {
    /// A directory as a plain tar.
    ///
    /// # Errors
    /// `tar` failed.
    pub fn plain(root: &Path) -> Result<Self> {
        let tar = root.with_extension("tar");
        let (root, path) = (root.display().to_string(), tar.display().to_string());
        let args =
            ["--numeric-owner", "--sort=name", "--mtime=@1", "--xattrs", "-C", &root, "-cf", &path, "."];
        shell::run(60, "tar", &args)?;
        let blob = fs::read(&tar)?;
        fs::remove_file(&tar)?;
        let diff_id = digest(&blob);
        Ok(Self { media_type: "application/vnd.oci.image.layer.v1.tar", blob, diff_id })
    }

    /// A directory as a gzipped tar.
    ///
    /// # Errors
    /// `tar` failed.
    pub fn gzip(root: &Path) -> Result<Self> {
        let plain = Self::plain(root)?;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain.blob)?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Ok(Self { media_type, blob: encoder.finish()?, diff_id: plain.diff_id })
    }

    /// A directory as a tar packed by `zstd`.
    ///
    /// # Errors
    /// `tar` or `zstd` failed.
    pub fn zstd(root: &Path) -> Result<Self> {
        let plain = Self::plain(root)?;
        let (from, to) = (root.with_extension("plain"), root.with_extension("zst"));
        fs::write(&from, &plain.blob)?;
        shell::run(60, "zstd", &["-qf", "-o", &to.display().to_string(), &from.display().to_string()])?;
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        Ok(Self { media_type, blob: fs::read(to)?, diff_id: plain.diff_id })
    }
}

/// A layer whose blob lies in a layout already.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// OCI media type.
    pub(super) media_type: &'static str,
    /// `sha256:…` of the blob.
    pub(super) digest: String,
    /// Length of the blob in bytes.
    pub(super) size: u64,
    /// Digest of the plain tar.
    pub(super) diff_id: String,
}

// === layouts ===

/// `sha256:…` of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}

/// Writes an image of one platform as an OCI layout of its own.
///
/// # Errors
/// A file cannot be written.
pub(super) fn image(dir: &Path, names: &[&str], config: &Config<'_>, layers: &[&Layer]) -> Result<Image> {
    let layout = open(dir, names[0])?;
    let layers = layers.iter().map(|layer| store(&layout, layer)).collect::<Result<Vec<_>>>()?;
    let manifest = manifest(&layout, config, ("linux", ARCHITECTURE), &layers)?;
    close(&layout, &manifest)?;
    Ok(Image { names: names.iter().map(|&name| name.to_owned()).collect(), layout, format: None })
}

/// Completes the layout of an image whose layers lie in it.
///
/// # Errors
/// A file cannot be written.
pub(super) fn finish(layout: &Path, config: &Config<'_>, layers: &[Stored]) -> Result<()> {
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let manifest = manifest(layout, config, ("linux", ARCHITECTURE), layers)?;
    close(layout, &manifest)
}

fn store(layout: &Path, layer: &Layer) -> Result<Stored> {
    let descriptor = blob(layout, layer.media_type, &layer.blob)?;
    let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
    let size = u64::try_from(layer.blob.len())?;
    Ok(Stored { media_type: layer.media_type, digest, size, diff_id: layer.diff_id.clone() })
}

/// Writes an image index with one manifest per platform.
///
/// # Errors
/// A file cannot be written.
pub(super) fn index(dir: &Path, name: &str, platforms: &[(&str, &str)], layer: &Layer) -> Result<Image> {
    let layout = open(dir, name)?;
    let layer = store(&layout, layer)?;
    let mut manifests = Vec::new();
    for &(os, architecture) in platforms {
        let platform = format!("PLATFORM={os}/{architecture}");
        let config = Config { env: &[&platform], cmd: &["sh"], ..Config::default() };
        let mut entry = manifest(&layout, &config, (os, architecture), std::slice::from_ref(&layer))?;
        entry["platform"] = json!({ "os": os, "architecture": architecture });
        manifests.push(entry);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
    let entry = blob(&layout, media_type, &serde_json::to_vec(&index)?)?;
    close(&layout, &entry)?;
    Ok(Image { names: vec![name.to_owned()], layout, format: None })
}

fn open(dir: &Path, name: &str) -> Result<PathBuf> {
    let layout = dir.join("layouts").join(name.replace(['/', ':'], "_"));
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(layout)
}

fn close(layout: &Path, entry: &Value) -> Result<()> {
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    Ok(fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?)
}

/// Stores a blob and returns its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = digest(bytes);
    fs::write(layout.join("blobs").join(digest.replace(':', "/")), bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

/// Stores config, layers and manifest; returns the manifest's descriptor.
fn manifest(
    layout: &Path,
    config: &Config<'_>,
    (os, architecture): (&str, &str),
    layers: &[Stored],
) -> Result<Value> {
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
    env.extend(config.env);
    let ports: serde_json::Map<_, _> =
        config.ports.iter().map(|&port| (port.to_owned(), json!({}))).collect();
    let mut process = json!({ "Env": env, "Cmd": config.cmd, "ExposedPorts": ports });
    let texts =
        [("User", config.user), ("WorkingDir", config.working_dir), ("StopSignal", config.stop_signal)];
    for (key, value) in texts.into_iter().filter(|(_, value)| !value.is_empty()) {
        process[key] = json!(value);
    }
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    let image = json!({
        "created": "1970-01-01T00:00:01Z", "os": os, "architecture": architecture, "config": process,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(layout, "application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&image)?)?;
    let layers: Vec<_> = layers
        .iter()
        .map(|one| json!({ "mediaType": one.media_type, "digest": one.digest, "size": one.size }))
        .collect();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers });
    blob(layout, media_type, &serde_json::to_vec(&manifest)?)
}
