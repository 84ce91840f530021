//! The errors of the store, one enum per operation, each with a [`ErrorKind`] for the caller's wire.
//!
//! Texts name the image, the digest and the offset, and what to do; a source is never repeated in the text.

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::layer::LayerError;
use crate::manifest::ManifestError;
use crate::policy::PolicyError;
use crate::reference::ReferenceError;
use crate::registry::RegistryError;

/// Class of an error; the caller maps it to its wire's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The named object does not exist.
    NotFound,
    /// The request cannot be honoured as it stands.
    InvalidArgument,
    /// Credentials are missing or refused.
    PermissionDenied,
    /// Try again later.
    Unavailable,
    /// The object is in the wrong state.
    FailedPrecondition,
    /// A limit is reached: disk, quota, size.
    ResourceExhausted,
    /// A deadline passed.
    DeadlineExceeded,
    /// Anything else.
    Internal,
}

/// A file operation that failed, with the path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub what: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// A closure for `map_err` over both `io::Error` and `rustix::io::Errno`.
    pub(crate) fn at<E: Into<io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |error| Self { what, path, source: error.into() }
    }

    /// Full disk and exhausted quota are limits; the rest is internal.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::ResourceExhausted,
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            _ => ErrorKind::Internal,
        }
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory or file of the store.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process has this root open.
    #[error("image store {} is in use by another process; stop it, or choose another root", root.display())]
    Locked {
        /// The root.
        root: PathBuf,
    },
    /// The configured driver is unknown or does not work here.
    #[error("snapshot driver \"{name}\" cannot be used here: {reason}")]
    Driver {
        /// The name in the configuration.
        name: String,
        /// What the probe said.
        reason: String,
    },
}

impl OpenError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File(error) => error.kind(),
            Self::Locked { .. } | Self::Driver { .. } => ErrorKind::FailedPrecondition,
        }
    }
}

/// Why an image was not pulled. Nothing of it is visible, whatever the variant.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference does not parse.
    #[error("invalid image reference \"{image}\"")]
    Reference {
        /// As given.
        image: String,
        /// What is wrong with it.
        #[source]
        source: ReferenceError,
    },
    /// A name without a registry, and none of those it may stand for has it.
    #[error("no registry has {image}: {}", tried.iter().map(|e| chain(e)).collect::<Vec<_>>().join("; "))]
    Nowhere {
        /// As given.
        image: String,
        /// What each said.
        tried: Vec<PullError>,
    },
    /// The registry, or the way to it.
    #[error("cannot pull {image}")]
    Registry {
        /// The image.
        image: String,
        /// What the registry said.
        #[source]
        source: RegistryError,
    },
    /// The node's policy does not let the image in.
    #[error("{image} may not be pulled")]
    Policy {
        /// The image.
        image: String,
        /// Why not.
        #[source]
        source: PolicyError,
    },
    /// The manifest, index or config is not acceptable.
    #[error("cannot use the manifest of {image}")]
    Manifest {
        /// The image.
        image: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A layer is not acceptable.
    #[error("cannot use layer {layer} of {image}")]
    Layer {
        /// The image.
        image: String,
        /// Digest of the layer's blob.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: std::sync::Arc<LayerError>,
    },
    /// A layer did not come.
    #[error("cannot fetch layer {layer} of {image}")]
    Fetch {
        /// The image.
        image: String,
        /// Digest of the layer's blob.
        layer: Digest,
        /// What the registry said.
        #[source]
        source: std::sync::Arc<RegistryError>,
    },
    /// The driver could not build the image's snapshot.
    #[error("cannot build the file system of {image}")]
    Snapshot {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: SnapshotError,
    },
    /// A file of the store.
    #[error("cannot store {image}")]
    File {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: FileError,
    },
    /// A background task ended without an answer (it panicked or the runtime stops).
    #[error("the pull of {image} was interrupted; try again")]
    Interrupted {
        /// The image.
        image: String,
    },
}

impl PullError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference { .. } => ErrorKind::InvalidArgument,
            // If one of them may have it, it is too early to say that none has.
            Self::Nowhere { tried, .. } => {
                let kinds = tried.iter().map(Self::kind);
                kinds.clone().find(|kind| *kind != ErrorKind::NotFound).unwrap_or(ErrorKind::NotFound)
            }
            Self::Registry { source, .. } => source.kind(),
            Self::Policy { source, .. } => source.kind(),
            Self::Manifest { source, .. } => source.kind(),
            Self::Layer { source, .. } => source.kind(),
            Self::Fetch { source, .. } => source.kind(),
            Self::Snapshot { source, .. } => source.kind(),
            Self::File { source, .. } => source.kind(),
            Self::Interrupted { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Why an image was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// A container or a pull holds it.
    #[error("image {id} is in use by {user}; remove that first")]
    InUse {
        /// Image id.
        id: String,
        /// A container name, or what else holds it.
        user: String,
    },
    /// A file of the store.
    #[error(transparent)]
    File(#[from] FileError),
}

impl RemoveError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InUse { .. } => ErrorKind::FailedPrecondition,
            Self::File(error) => error.kind(),
        }
    }
}

/// Why a container's or an image's file system is not there.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No such image.
    #[error("image {0} is not in the store; pull it")]
    NoImage(String),
    /// No such container.
    #[error("container {0} has no file system here; it was not prepared, or was released")]
    NoContainer(String),
    /// A name that cannot be a file name.
    #[error("container name \"{0}\" cannot be used: letters, digits, `.`, `_`, `-`, at most 200 bytes")]
    BadName(String),
    /// Not a tag that can be given.
    #[error("\"{0}\" is not a name with a tag, such as registry.example/app:v1")]
    BadTag(String),
    /// The container exists with another image.
    #[error("container {container} already has a file system of image {image}")]
    OtherImage {
        /// Container.
        container: String,
        /// The image it has.
        image: String,
    },
    /// A mount step failed.
    #[error("mount of {target} failed at {step}")]
    Mount {
        /// What was to be mounted.
        target: String,
        /// The step: a file system and a call.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path in the image.
    #[error("path \"{path}\" cannot be opened in image {image}")]
    SubPath {
        /// Image id.
        image: String,
        /// As given.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something this driver cannot do on this kernel.
    #[error("driver {driver} cannot do {what} here")]
    Unsupported {
        /// Driver name.
        driver: &'static str,
        /// The wish.
        what: &'static str,
    },
    /// The layers do not make a file system.
    #[error("the layers do not apply")]
    Layers(#[from] LayerError),
    /// A file of the store.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SnapshotError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoImage(_) | Self::NoContainer(_) => ErrorKind::NotFound,
            Self::BadName(_) | Self::BadTag(_) => ErrorKind::InvalidArgument,
            Self::OtherImage { .. } | Self::Unsupported { .. } => ErrorKind::FailedPrecondition,
            Self::Mount { .. } => ErrorKind::Internal,
            Self::SubPath { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::SubPath { .. } => ErrorKind::InvalidArgument,
            Self::Layers(error) => error.kind(),
            Self::File(error) => error.kind(),
        }
    }
}

/// An error and all its causes, for where several stand in one text.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
