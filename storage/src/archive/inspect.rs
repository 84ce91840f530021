//! Everything known of an image, for a person or a script.

use serde_json::{Value, json};

use super::ArchiveError;
use crate::error::FileError;
use crate::graph;
use crate::store::Store;

impl Store {
    /// Names, manifest, configuration and layers of an image.
    ///
    /// # Errors
    /// No such image, or its files cannot be read.
    pub fn inspect(&self, name: &str) -> Result<Value, ArchiveError> {
        let (record, _, _pin) = self.hold(name)?;
        let image = self.find(record.id.as_str()).ok_or_else(|| ArchiveError::NoImage(name.to_owned()))?;
        let directory = graph::image_directory(self.root(), record.id.as_str());
        let read = |file: &str| -> Result<Value, ArchiveError> {
            let path = directory.join(file);
            let bytes = std::fs::read(&path).map_err(FileError::at("read", path))?;
            serde_json::from_slice(&bytes)
                .map_err(|source| ArchiveError::Json { what: file.to_owned(), source })
        };
        let layers: Vec<Value> = record
            .layers
            .iter()
            .map(|layer| {
                let path = graph::layer_directory(self.root(), &layer.diff_id);
                let kept = layer.blob == layer.diff_id || graph::blob_path(&path, &layer.blob).exists();
                json!({
                    "diffId": layer.diff_id, "size": layer.tar_size, "blob": layer.blob, "blobSize": layer.blob_size,
                    "mediaType": layer.media_type, "blobKept": kept,
                })
            })
            .collect();
        let pulled_at = image.pulled_at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(json!({
            "id": image.id, "repoTags": image.repo_tags, "repoDigests": image.repo_digests, "pinned": image.pinned,
            "sizeOnDisk": image.size, "pulledAtSeconds": pulled_at, "driver": self.driver_name(),
            "manifestDigest": record.manifest, "manifest": read("manifest")?, "config": read("config")?,
            "layers": layers,
        }))
    }
}
