//! Images as files: OCI layouts and docker-archives, both ways.
//!
//! An image that was pulled keeps every digest when it is saved, pushed or loaded. Its layers lie in the store inflated, so their blobs
//! come from where they can be had exactly: kept beside the layer (`image.keep_blobs`, and always for a loaded image, which no registry may
//! have), the layer itself where the blob is a plain tar, or once more from the registry the image was pulled from. Making a blob again by
//! compressing is no way: each compressor writes other bytes.
//!
//! `blobs` finds blobs, `save` and `tar` write archives, `unpack` splits one into files, `load` takes in what it holds; [`layout`] turns
//! directories into tars and back.

pub(crate) mod blobs;
mod inspect;
pub mod layout;
mod load;
pub(crate) mod save;
pub(crate) mod tar;
mod unpack;

pub use load::Loaded;
pub use save::Format;
pub use unpack::Unpacked;

use crate::digest::Digest;
use crate::error::{ErrorKind, FileError, PullError};
use crate::manifest::ManifestError;
use crate::registry::RegistryError;

/// Why an image was not saved, loaded or pushed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum ArchiveError {
    #[error("image {0} is not in the store")]
    NoImage(String),
    #[error("no image has layer {0} any more")]
    NoLayer(Digest),
    #[error("{0} is an artifact; saving and pushing artifacts is not built")]
    Artifact(String),
    #[error("\"{0}\" is no name with a tag, such as registry.example/app:v1")]
    Name(String),
    #[error(
        "layer {layer} of {image} is not kept as it came (image.keep_blobs), and the registry it came from does not have it now; \
         format \"docker\" does without"
    )]
    NoBlob { image: String, layer: Digest, source: Option<Box<RegistryError>> },
    #[error("the archive cannot be written")]
    Write(#[source] std::io::Error),
    #[error("the archive cannot be read: {0}")]
    Read(String),
    #[error("the archive is neither an OCI layout (index.json) nor a docker-archive (manifest.json)")]
    Format,
    #[error("the archive names {0}, and does not hold it")]
    Missing(String),
    #[error("{name} of the archive has digest {found}")]
    Digest { name: String, found: Digest },
    #[error("{what} of the archive is malformed")]
    Json { what: String, source: serde_json::Error },
    #[error("the archive holds no image for this machine")]
    Empty,
    #[error("an image of the archive cannot be used")]
    Manifest(#[source] Box<ManifestError>),
    #[error(transparent)]
    Pull(Box<PullError>),
    #[error("cannot push {image}")]
    Push { image: String, source: Box<RegistryError> },
    #[error("cannot search {what}")]
    Search { what: String, source: Box<RegistryError> },
    #[error("a background task ended early")]
    Interrupted,
    #[error(transparent)]
    File(#[from] FileError),
}

impl ArchiveError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoImage(_) | Self::NoLayer(_) => ErrorKind::NotFound,
            Self::NoBlob { .. } => ErrorKind::FailedPrecondition,
            Self::Write(_) | Self::Interrupted => ErrorKind::Unavailable,
            Self::Pull(error) => error.kind(),
            Self::Push { source, .. } | Self::Search { source, .. } => source.kind(),
            Self::Manifest(error) => error.kind(),
            Self::File(error) => error.kind(),
            _ => ErrorKind::InvalidArgument,
        }
    }
}

impl From<PullError> for ArchiveError {
    fn from(error: PullError) -> Self {
        Self::Pull(Box::new(error))
    }
}

impl From<ManifestError> for ArchiveError {
    fn from(error: ManifestError) -> Self {
        Self::Manifest(Box::new(error))
    }
}
