//! The registry client: OCI distribution-spec v1.1 and what real registries do besides.
//!
//! [`hosts`] decides where to ask (mirrors, then the registry itself), [`auth`] and `token` how to be let in, [`client`] sends one
//! request well (retries, redirects, deadlines), `throttle` obeys `Retry-After`, `clients` keeps connections and tokens between pulls,
//! `blob` fetches content that may be cut. Bytes are never trusted: whoever asks for a digest hashes what comes.

mod answer;
pub mod auth;
mod blob;
mod catalog;
pub mod client;
mod clients;
mod dns;
mod error;
pub mod hosts;
mod throttle;
mod tls;
mod token;
mod upload;

use std::path::PathBuf;
use std::time::Duration;

use crate::Credentials;
use crate::digest::Digest;
use crate::manifest::{self, Descriptor};
use crate::reference::ImageRef;
use blob::Source;
use client::{Ask, Client};
use hosts::{Capability, Endpoint};

pub(crate) use blob::Fetch;
pub(crate) use clients::Clients;
pub use error::RegistryError;
pub(crate) use upload::Uploaded;

/// Times of the client; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// To connect, TLS included.
    pub connect: Duration,
    /// Without a byte, header or body.
    pub stall: Duration,
    /// First pause before a retry; doubles.
    pub backoff: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Longest `Retry-After` that is waited for.
    pub patience: Duration,
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
            patience: Duration::from_secs(60),
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
        clients: &Clients,
        timing: Timing,
    ) -> Result<Self, RegistryError> {
        let secret = auth::Secret::new(credentials.unwrap_or_default())?;
        let mut endpoints = Vec::new();
        for endpoint in hosts::endpoints(image, config)? {
            let client = clients.get(&endpoint, secret.for_host(&endpoint, &image.host), timing)?;
            endpoints.push((endpoint, client));
        }
        Ok(Self { path: image.path.clone(), host: image.host.clone(), endpoints, timing })
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

    /// What lies under another tag of the repository.
    pub(crate) async fn tagged(&self, tag: &str) -> Result<Fetched, RegistryError> {
        self.manifest_at(Capability::Pull, tag, None).await
    }

    /// The manifest an index names.
    pub(crate) async fn manifest_by(&self, digest: &Digest) -> Result<Fetched, RegistryError> {
        self.manifest_at(Capability::Pull, digest.as_str(), Some(digest)).await
    }

    /// The digest the first host that answers has for a tag, as it claims; `None`: it does not say.
    pub(crate) async fn claimed_digest(&self, tag: &str) -> Result<Option<Digest>, RegistryError> {
        let what = format!("manifest {}:{tag}", self.path);
        let mut errors = Errors::new();
        for (number, endpoint, client) in self.able(Capability::Resolve) {
            let url = endpoint.url(&self.path, &format!("manifests/{tag}"), &self.host);
            let mut ask = Ask::get(&url, endpoint.repository(&self.path), &what);
            (ask.method, ask.accept) = (http::Method::HEAD, ACCEPT);
            match client.send(&ask).await {
                Ok(response) => {
                    let digest = response.headers().get("docker-content-digest");
                    return Ok(digest.and_then(|d| d.to_str().ok()?.parse().ok()));
                }
                Err(error) => errors.push((number, error)),
            }
        }
        Err(self.none(errors))
    }

    /// A small blob, whole and verified.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let digest = &descriptor.digest;
        let what = format!("blob {digest}");
        let mut errors = Errors::new();
        for (number, endpoint, client) in self.able(Capability::Pull) {
            let url = endpoint.url(&self.path, &format!("blobs/{digest}"), &self.host);
            let ask = Ask::get(&url, endpoint.repository(&self.path), &what);
            let answer = client.small(&ask, limit.min(descriptor.size)).await;
            match answer.and_then(|(_, bytes)| verify(endpoint, &what, bytes, digest)) {
                Ok(bytes) => return Ok(bytes),
                Err(error) => errors.push((number, error)),
            }
        }
        Err(self.none(errors))
    }

    /// Everything a layer's fetch needs, detached from the pull's borrow. A foreign layer's own addresses come last, and see no
    /// credentials (CVE-2020-15157).
    pub(crate) fn fetch(&self, descriptor: &Descriptor, clients: &Clients) -> Fetch {
        let rest = format!("blobs/{}", descriptor.digest);
        let mut sources: Vec<Source> = Vec::new();
        for (_, endpoint, client) in self.able(Capability::Pull) {
            let url = endpoint.url(&self.path, &rest, &self.host);
            let repository = endpoint.repository(&self.path).to_owned();
            // Between sources the fetch itself decides who is asked next.
            sources.push(Source { url, repository, client });
        }
        for url in &descriptor.urls {
            if let Some((endpoint, url)) = foreign(url)
                && let Ok(client) = clients.get(&endpoint, auth::Secret::none(), self.timing)
            {
                sources.push(Source { url, repository: self.path.clone(), client });
            }
        }
        Fetch::new(descriptor.clone(), sources, self.timing)
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        client: &Client,
        reference: &str,
        digest: Option<&Digest>,
    ) -> Result<Fetched, RegistryError> {
        let what = format!("manifest {}:{reference}", self.path);
        let url = endpoint.url(&self.path, &format!("manifests/{reference}"), &self.host);
        let mut ask = Ask::get(&url, endpoint.repository(&self.path), &what);
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
        let mut errors = Errors::new();
        for (number, endpoint, client) in self.able(needs) {
            match self.manifest_from(endpoint, &client, reference, digest).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => errors.push((number, error)),
            }
        }
        Err(self.none(errors))
    }

    /// Hosts that may be asked for something: in order, but those that could not be reached a moment ago last. All but the last one get
    /// one try.
    fn able(&self, needs: Capability) -> Vec<(usize, &Endpoint, Client)> {
        let mut able: Vec<_> =
            self.endpoints.iter().enumerate().filter(|(_, (endpoint, _))| endpoint.can(needs)).collect();
        able.sort_by_key(|(_, (_, client))| client.is_dead());
        let last = able.len().saturating_sub(1);
        let each = able.into_iter().enumerate();
        each.map(|(at, (number, (endpoint, client)))| (number, endpoint, client.clone().eager(at < last)))
            .collect()
    }

    /// No host had it: why, in the order of the configuration.
    fn none(&self, mut errors: Errors) -> RegistryError {
        errors.sort_by_key(|(number, _)| *number);
        let mut errors: Vec<RegistryError> = errors.into_iter().map(|(_, error)| error).collect();
        match errors.len() {
            0 => RegistryError::NoHost(self.host.clone()),
            1 => errors.remove(0),
            _ => RegistryError::All(errors),
        }
    }
}

/// What each host said, by its place in the configuration.
type Errors = Vec<(usize, RegistryError)>;

/// Where a foreign layer's own address leads, if it may be followed: https, or http on loopback.
fn foreign(url: &str) -> Option<(Endpoint, String)> {
    let parsed = reqwest::Url::parse(url).ok()?;
    let host = parsed.host_str()?;
    let authority = parsed.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let plain = parsed.scheme() == "http" && hosts::is_loopback(&authority);
    if parsed.scheme() != "https" && !plain {
        return None;
    }
    let scheme = parsed.scheme().to_owned();
    Some((Endpoint { scheme, mirror: true, ..Endpoint::plain(&authority) }, parsed.to_string()))
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
