//! The registry client: OCI distribution-spec v1.1 and what real registries do besides.
//!
//! [`hosts`] decides where to ask (mirrors, then the registry itself), [`auth`] how to be let in, [`client`] sends one request well
//! (retries, redirects, deadlines), [`blob`] fetches content that may be cut. Bytes are never trusted: whoever asks for a digest
//! hashes what comes.

pub mod auth;
mod blob;
pub mod client;
mod dns;
pub mod hosts;
mod tls;

use std::path::PathBuf;
use std::time::Duration;

use crate::Credentials;
use crate::digest::Digest;
use crate::error::{ErrorKind, FileError};
use crate::manifest::{self, Descriptor};
use crate::reference::ImageRef;
use client::{Ask, Client};
use hosts::{Capability, Endpoint};

pub(crate) use blob::Fetch;

/// What a registry, or the way to it, answered.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum RegistryError {
    #[error("{host} refused the credentials{}{hint}", detail(.message))]
    Unauthorized { host: String, message: String, hint: &'static str },
    #[error("{what} not found at {host}{}; check the name, and whether the repository needs credentials", detail(.message))]
    NotFound { host: String, what: String, message: String },
    #[error("{host} limits requests{}; wait, or use credentials with a higher limit", detail(.message))]
    RateLimited { host: String, message: String },
    #[error("{host} answered {status} to {what}{}", detail(.message))]
    Status { host: String, status: u16, what: String, message: String },
    #[error("cannot reach {host} for {what}")]
    Transport { host: String, what: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{host} sent nothing for {seconds} seconds during {what}")]
    Stalled { host: String, what: String, seconds: u64 },
    #[error("{host} sent {what} of {found} bytes, expected {expected}")]
    Length { host: String, what: String, expected: u64, found: u64 },
    #[error("{host} sent more than {limit} bytes as {what}")]
    TooLarge { host: String, what: String, limit: u64 },
    #[error("{host} sent {what} with digest {found}")]
    Digest { host: String, what: String, found: Digest },
    #[error("{host} redirects {what} {problem}")]
    Redirect { host: String, what: String, problem: &'static str },
    #[error("token service {realm} of {host} answered {status}{}", detail(.message))]
    Token { host: String, realm: String, status: u16, message: String },
    #[error("{host} asks for authentication in a way that is not understood: {challenge}")]
    Challenge { host: String, challenge: String },
    #[error("the credentials are not usable: {0}")]
    Credentials(&'static str),
    #[error("registry configuration {} is wrong: {problem}", path.display())]
    Config { path: PathBuf, problem: String },
    #[error("no configured host of {0} may be asked for this (see `capabilities` in hosts.toml)")]
    NoHost(String),
    #[error("all hosts failed: {}", list(.0))]
    All(Vec<RegistryError>),
    #[error(transparent)]
    File(#[from] FileError),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

fn list(errors: &[RegistryError]) -> String {
    let texts: Vec<String> = errors
        .iter()
        .map(|error| match std::error::Error::source(error) {
            Some(source) => format!("{error}: {}", root_cause(source)),
            None => error.to_string(),
        })
        .collect();
    texts.join("; ")
}

fn root_cause(mut error: &dyn std::error::Error) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl RegistryError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unauthorized { .. } => ErrorKind::PermissionDenied,
            Self::Token { status: 400..=403, .. } => ErrorKind::PermissionDenied,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Credentials(_) => ErrorKind::InvalidArgument,
            Self::Config { .. } | Self::NoHost(_) => ErrorKind::FailedPrecondition,
            Self::Stalled { .. } => ErrorKind::DeadlineExceeded,
            Self::File(error) => error.kind(),
            // The registry itself speaks last and with most authority.
            Self::All(errors) => errors.last().map_or(ErrorKind::Unavailable, Self::kind),
            _ => ErrorKind::Unavailable,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Stalled { .. } | Self::Length { .. } => true,
            Self::Status { status, .. } | Self::Token { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

/// Times of the client; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// To connect, TLS included.
    pub connect: Duration,
    /// Without a byte, header or body.
    pub stall: Duration,
    /// First pause before a retry; doubles.
    pub backoff: Duration,
    /// Longest pause, also if `Retry-After` asks for more.
    pub backoff_max: Duration,
    /// Tries without progress before giving up.
    pub tries: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            backoff: Duration::from_millis(400),
            backoff_max: Duration::from_secs(30),
            tries: 5,
        }
    }
}

/// A manifest or index as fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) content_type: String,
}

/// One repository, as one pull sees it: its hosts in order, its credentials.
#[derive(Debug)]
pub(crate) struct Repository {
    path: String,
    host: String,
    endpoints: Vec<(Endpoint, Client)>,
    timing: Timing,
}

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

// === impl Repository ===

impl Repository {
    /// Reads the configuration for the image's registry and gets clients ready; connects to nothing.
    pub(crate) fn open(
        image: &ImageRef,
        credentials: Option<Credentials>,
        config: &[PathBuf],
        timing: Timing,
    ) -> Result<Self, RegistryError> {
        let endpoints = hosts::endpoints(&image.host, config)?;
        let secret = auth::Secret::new(credentials.unwrap_or_default())?;
        let mut clients = Vec::new();
        for endpoint in endpoints {
            let secret = secret.for_host(&endpoint, &image.host);
            let client = Client::new(&endpoint, secret, timing)?;
            clients.push((endpoint, client));
        }
        Ok(Self { path: image.path.clone(), host: image.host.clone(), endpoints: clients, timing })
    }

    /// The manifest or index behind a tag or digest, verified if by digest.
    pub(crate) async fn manifest(&self, image: &ImageRef) -> Result<Fetched, RegistryError> {
        let tag = image.tag.as_deref().unwrap_or("latest");
        let (reference, needs) = match &image.digest {
            Some(digest) => (digest.as_str(), Capability::Pull),
            None => (tag, Capability::Resolve),
        };
        self.manifest_at(needs, reference, image.digest.as_ref()).await
    }

    /// The manifest an index names.
    pub(crate) async fn manifest_by(&self, descriptor: &Descriptor) -> Result<Fetched, RegistryError> {
        let digest = &descriptor.digest;
        self.manifest_at(Capability::Pull, digest.as_str(), Some(digest)).await
    }

    /// A small blob, whole and verified.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let digest = &descriptor.digest;
        let what = format!("blob {digest}");
        let mut errors = Vec::new();
        for (endpoint, client) in self.able(Capability::Pull) {
            let url = endpoint.url(&self.path, "blobs", digest.as_str(), &self.host);
            let answer = client.small(&Ask::get(&url, &self.path, &what), limit.min(descriptor.size)).await;
            match answer.and_then(|(_, bytes)| verify(endpoint, &what, bytes, digest)) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => errors.push(error),
            }
        }
        Err(self.none(errors))
    }

    /// Everything a layer's fetch needs, detached from the pull's borrow.
    pub(crate) fn fetch(&self, descriptor: &Descriptor) -> Fetch {
        let sources = self.endpoints.iter().filter(|(endpoint, _)| endpoint.can(Capability::Pull));
        let sources = sources.map(|(endpoint, client)| {
            (endpoint.url(&self.path, "blobs", descriptor.digest.as_str(), &self.host), client.clone())
        });
        Fetch::new(self.path.clone(), descriptor.clone(), sources.collect(), self.timing)
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        client: &Client,
        reference: &str,
        digest: Option<&Digest>,
    ) -> Result<Fetched, RegistryError> {
        let what = format!("manifest {}:{reference}", self.path);
        let url = endpoint.url(&self.path, "manifests", reference, &self.host);
        let mut ask = Ask::get(&url, &self.path, &what);
        ask.accept = ACCEPT;
        let (head, bytes) = client.small(&ask, manifest::MANIFEST_MAX).await?;
        let content_type =
            head.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let bytes = match digest {
            Some(digest) => verify(endpoint, &what, bytes, digest)?,
            None => bytes,
        };
        let digest = digest.cloned().unwrap_or_else(|| Digest::of(&bytes));
        Ok(Fetched { bytes, digest, content_type })
    }

    /// The manifest from the first host that has it.
    async fn manifest_at(
        &self,
        needs: Capability,
        reference: &str,
        digest: Option<&Digest>,
    ) -> Result<Fetched, RegistryError> {
        let mut errors = Vec::new();
        for (endpoint, client) in self.able(needs) {
            match self.manifest_from(endpoint, client, reference, digest).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => errors.push(error),
            }
        }
        Err(self.none(errors))
    }

    /// Hosts that may be asked for something, in order.
    fn able(&self, needs: Capability) -> impl Iterator<Item = &(Endpoint, Client)> {
        self.endpoints.iter().filter(move |(endpoint, _)| endpoint.can(needs))
    }

    /// No host had it: why.
    fn none(&self, mut errors: Vec<RegistryError>) -> RegistryError {
        match errors.len() {
            0 => RegistryError::NoHost(self.host.clone()),
            1 => errors.remove(0),
            _ => RegistryError::All(errors),
        }
    }
}

fn verify(
    endpoint: &Endpoint,
    what: &str,
    bytes: Vec<u8>,
    digest: &Digest,
) -> Result<Vec<u8>, RegistryError> {
    if digest.matches(&bytes) {
        return Ok(bytes);
    }
    let found = Digest::of(&bytes);
    Err(RegistryError::Digest { host: endpoint.name(), what: what.to_owned(), found })
}
