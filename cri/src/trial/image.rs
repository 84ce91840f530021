//! Packs a complete OCI image out of nothing but this executable.
//!
//! One gzip layer with `/bin/berth`, the two account files and `/tmp`; an image config; a manifest; an index over it.
//! Everything stays in memory and is content-addressed. Formats: OCI image-spec v1.1 (image-layout, manifest,
//! image-index, config).

use std::collections::BTreeMap;
use std::io::Write;
use std::str::FromStr;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use oci_spec::OciSpecError;
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, Digest, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, Os, PlatformBuilder, RootFsBuilder,
};
use sha2::{Digest as _, Sha256};

use super::tar::{Archive, TarError};

/// OCI image index, image-spec `image-index.md`.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest, image-spec `manifest.md`.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Where the executable lies inside the image.
pub const EXECUTABLE: &str = "/bin/berth";
/// The account the image's process runs as: a name, so that the image's /etc/passwd has to be read.
pub const USER: &str = "guest";

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The layer's archive.
    #[error("write the layer archive")]
    Tar(#[from] TarError),
    /// Its compression.
    #[error("compress the layer")]
    Gzip(#[source] std::io::Error),
    /// Its config, manifest or index.
    #[error("describe the image")]
    Describe(#[from] OciSpecError),
}

/// A content-addressed piece with its media type.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Media type.
    pub media_type: &'static str,
    /// Content.
    pub bytes: Bytes,
}

/// A packed image: what a registry has to serve.
#[derive(Debug)]
pub struct Packed {
    /// Digest of the index: what the tag points to.
    pub index: String,
    /// Index and manifest by digest.
    pub manifests: BTreeMap<String, Blob>,
    /// Config and layer by digest.
    pub blobs: BTreeMap<String, Blob>,
    /// Digest of the config: the id the runtime must report.
    pub id: String,
    /// Bytes of the layer before and after compression.
    pub layer: (u64, u64),
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Packs `executable` into an image whose process is `command`, run by [`USER`].
pub fn pack(executable: &[u8], command: &[&str]) -> Result<Packed, PackError> {
    let tar = layer(executable)?;
    let diff_id = digest(&tar);
    let mut encoder = GzEncoder::new(Vec::with_capacity(tar.len() / 2), Compression::fast());
    encoder.write_all(&tar).map_err(PackError::Gzip)?;
    let gzip = encoder.finish().map_err(PackError::Gzip)?;
    let sizes = (tar.len() as u64, gzip.len() as u64);

    let layer = Blob { media_type: LAYER, bytes: gzip.into() };
    let config = Blob { media_type: CONFIG, bytes: config(command, &diff_id)?.into() };
    let manifest = Blob { media_type: MANIFEST, bytes: manifest(&config, &layer)?.into() };
    let index = Blob { media_type: INDEX, bytes: index(&manifest)?.into() };

    let id = digest(&config.bytes);
    let by_digest = |blobs: [Blob; 2]| blobs.into_iter().map(|blob| (digest(&blob.bytes), blob)).collect();
    Ok(Packed {
        index: digest(&index.bytes),
        manifests: by_digest([index, manifest]),
        blobs: by_digest([config, layer]),
        id,
        layer: sizes,
    })
}

/// The file system: the executable, two accounts, a world-writable /tmp, and nothing else.
fn layer(executable: &[u8]) -> Result<Vec<u8>, TarError> {
    let passwd = format!("root:x:0:0:root:/:/bin/false\n{USER}:x:1000:1000:guest:/tmp:/bin/false\n");
    let group = format!("root:x:0:\n{USER}:x:1000:\nharbour:x:1001:{USER}\n");
    let mut archive = Archive::with_capacity(executable.len());
    archive.directory("bin", 0o755)?;
    archive.directory("etc", 0o755)?;
    archive.directory("tmp", 0o1777)?;
    archive.file("etc/passwd", 0o644, passwd.as_bytes())?;
    archive.file("etc/group", 0o644, group.as_bytes())?;
    archive.file(EXECUTABLE.trim_start_matches('/'), 0o755, executable)?;
    Ok(archive.finish())
}

fn config(command: &[&str], diff_id: &str) -> Result<Vec<u8>, OciSpecError> {
    let process = ConfigBuilder::default()
        .user(USER)
        .env(["PATH=/bin", "BERTH_TRIAL=from the image"].map(str::to_owned))
        .entrypoint([EXECUTABLE.to_owned()])
        .cmd(command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        .working_dir("/tmp")
        .stop_signal("SIGTERM")
        .build()?;
    let rootfs = RootFsBuilder::default().typ("layers").diff_ids([diff_id.to_owned()]).build()?;
    let config = ImageConfigurationBuilder::default()
        .created("1970-01-01T00:00:00Z")
        .architecture(Arch::default())
        .os(Os::Linux)
        .config(process)
        .rootfs(rootfs)
        .build()?;
    config.to_string().map(String::into_bytes)
}

fn manifest(config: &Blob, layer: &Blob) -> Result<Vec<u8>, OciSpecError> {
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(config)?)
        .layers([descriptor(layer)?])
        .build()?;
    manifest.to_string().map(String::into_bytes)
}

fn index(manifest: &Blob) -> Result<Vec<u8>, OciSpecError> {
    let mut entry = descriptor(manifest)?;
    entry.set_platform(Some(PlatformBuilder::default().architecture(Arch::default()).os(Os::Linux).build()?));
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests([entry])
        .build()?;
    index.to_string().map(String::into_bytes)
}

fn descriptor(blob: &Blob) -> Result<Descriptor, OciSpecError> {
    let digest = Digest::from_str(&digest(&blob.bytes))?;
    Ok(Descriptor::new(MediaType::from(blob.media_type), blob.bytes.len() as u64, digest))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use serde_json::Value;

    use super::*;

    fn parse(blob: &Blob) -> Value {
        serde_json::from_slice(&blob.bytes).unwrap()
    }

    /// Follows a descriptor and checks its size on the way.
    fn follow<'a>(pool: &'a BTreeMap<String, Blob>, descriptor: &Value) -> &'a Blob {
        let blob = &pool[descriptor["digest"].as_str().unwrap()];
        assert_eq!(descriptor["size"].as_u64(), Some(blob.bytes.len() as u64));
        assert_eq!(descriptor["mediaType"].as_str(), Some(blob.media_type));
        blob
    }

    #[test]
    fn every_digest_size_and_diff_id_on_the_way_down_is_true() {
        let image = pack(b"\x7fELF not really", &["try-serve", "8080"]).unwrap();
        let index = parse(&image.manifests[&image.index]);
        let manifest = parse(follow(&image.manifests, &index["manifests"][0]));
        let config_blob = follow(&image.blobs, &manifest["config"]);
        let layer = follow(&image.blobs, &manifest["layers"][0]);
        assert_eq!(digest(&config_blob.bytes), image.id);

        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&layer.bytes[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(image.layer, (tar.len() as u64, layer.bytes.len() as u64));
        assert_eq!(parse(config_blob)["rootfs"]["diff_ids"][0], digest(&tar));
        assert!(tar.windows(15).any(|window| window == b"\x7fELF not really"));
    }

    #[test]
    fn a_digest_is_lower_case_sha256() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn packing_twice_gives_the_same_image() {
        assert_eq!(pack(b"x", &["a"]).unwrap().index, pack(b"x", &["a"]).unwrap().index);
        assert_ne!(pack(b"x", &["a"]).unwrap().index, pack(b"y", &["a"]).unwrap().index);
    }
}
