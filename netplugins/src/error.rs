//! What can go wrong with pod networking, and which class of answer it deserves.
//!
//! Variants carry the objects they are about; the source is never repeated in the text. Print the chain once, at the
//! edge.

use std::io;
use std::path::PathBuf;

use crate::netlink::Failure;

/// Class of an [`Error`], for the caller's own mapping to answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request or the configuration cannot be honoured as it stands.
    InvalidArgument,
    /// No address is left.
    Exhausted,
    /// Something by that name, or on that port, exists and is another's.
    Conflict,
    /// The network is not configured or not restored yet; try again later.
    NotReady,
    /// An external plugin or a lock took too long.
    Timeout,
    /// The kernel, the file system or a plugin failed.
    Internal,
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A pod CIDR cannot be used.
    #[error("pod CIDR \"{cidr}\": {why}")]
    Cidr {
        /// As given.
        cidr: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An id or name is not fit for a file or link name.
    #[error("\"{name}\" cannot name {what}: {why}")]
    Name {
        /// As given.
        name: String,
        /// What it should name.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Every address of the family is held.
    #[error(
        "no {family} address left in {cidrs}: {held} held by pods, {leaving} by pods that are being taken down; {holders}"
    )]
    Exhausted {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// The CIDRs searched, comma separated.
        cidrs: String,
        /// Addresses of live pods.
        held: usize,
        /// Addresses in quarantine.
        leaving: usize,
        /// `pods a, b, c and 12 more`.
        holders: String,
    },
    /// An annotation of the pod asks for something that cannot be.
    #[error("annotation {annotation} \"{value}\": {why}")]
    Annotation {
        /// Its name.
        annotation: &'static str,
        /// As given.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A host port is published already.
    #[error("host port {port} is published by pod {owner} already")]
    PortTaken {
        /// `10.0.0.1:80/tcp`, or `80/tcp`.
        port: String,
        /// Pod id of the owner.
        owner: String,
    },
    /// A host port cannot be published as asked.
    #[error("host port {port}: {why}")]
    Port {
        /// `10.0.0.1:80/tcp`, or `80/tcp`.
        port: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A network device cannot be given to a pod.
    #[error("network device \"{device}\": {why}")]
    Device {
        /// Its name on the node.
        device: String,
        /// What is wrong.
        why: String,
    },
    /// The pod holds addresses already.
    #[error("pod {id} holds {addresses} already")]
    Held {
        /// Pod id.
        id: String,
        /// Its addresses.
        addresses: String,
    },
    /// The network cannot serve now; the text says what to do.
    #[error("{0}")]
    NotReady(String),
    /// The kernel refused a request.
    #[error("cannot {doing}")]
    Kernel {
        /// The step, as a verb phrase.
        doing: String,
        /// What the kernel said.
        #[source]
        source: Failure,
    },
    /// A system call on a namespace failed.
    #[error("cannot {doing}")]
    Namespace {
        /// The step, as a verb phrase.
        doing: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A CNI plugin failed.
    #[error("cannot {doing}")]
    Plugin {
        /// The step, as a verb phrase.
        doing: String,
        /// Whether it was killed at its deadline.
        timeout: bool,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An attachment is not as it was made.
    #[error("the network of pod {id} is damaged: {missing}")]
    Damaged {
        /// Pod id.
        id: String,
        /// What is missing.
        missing: String,
    },
    /// A file could not be read or written.
    #[error("cannot {verb} {path}")]
    File {
        /// `read`, `write`, `create`…
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path} is not what this version writes: {why}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Cidr { .. }
            | Self::Name { .. }
            | Self::Port { .. }
            | Self::Annotation { .. }
            | Self::Device { .. } => Kind::InvalidArgument,
            Self::Exhausted { .. } => Kind::Exhausted,
            Self::PortTaken { .. } | Self::Held { .. } => Kind::Conflict,
            Self::NotReady(_) => Kind::NotReady,
            Self::Plugin { timeout: true, .. } => Kind::Timeout,
            Self::Kernel { .. }
            | Self::Namespace { .. }
            | Self::Plugin { .. }
            | Self::Damaged { .. }
            | Self::File { .. }
            | Self::Format { .. } => Kind::Internal,
        }
    }

    /// The message and all its causes on one line.
    pub fn chain(&self) -> String {
        chain(self)
    }

    pub(crate) fn file(verb: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb, path, source }
    }

    pub(crate) fn namespace(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Namespace { doing, source }
    }

    pub(crate) fn kernel(doing: impl Into<String>) -> impl FnOnce(Failure) -> Self {
        let doing = doing.into();
        move |source| Self::Kernel { doing, source }
    }

    pub(crate) fn plugin(doing: String) -> impl FnOnce(crate::cni::invoke::Failure) -> Self {
        move |source| Self::Plugin { doing, timeout: source.is_timeout(), source: Box::new(source) }
    }
}

/// An error and all its causes on one line.
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
