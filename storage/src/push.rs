//! Push, and what a registry has: the store's side of `berth push` and `berth search`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;

use crate::archive::ArchiveError;
use crate::archive::{blobs::Blob, save};
use crate::reference::ImageRef;
use crate::registry::{RegistryError, Repository, Uploaded};
use crate::store::Store;
use crate::{Credentials, LayerProgress, PullProgress};

/// Layers sent at a time.
const UPLOADS: usize = 3;
/// Bytes read and sent at a time.
const PIECE: usize = 256 << 10;

/// What a push has done.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// `name@digest`, as the registry has it now.
    pub reference: String,
    /// Bytes of layers that were sent.
    pub sent: u64,
}

impl Store {
    /// Sends an image to a registry as `target`, every byte as it came. `origin` is for the registry it came from, if a layer has to be fetched
    /// from there once more.
    ///
    /// # Errors
    /// The image is not here, a blob cannot be had, or the registry refuses.
    pub async fn push(
        self: &Arc<Self>,
        image: &str,
        target: &str,
        credentials: Option<Credentials>,
        origin: Option<Credentials>,
        progress: watch::Sender<PullProgress>,
    ) -> Result<Pushed, ArchiveError> {
        let reference: ImageRef = target.parse().map_err(|_| ArchiveError::Name(target.to_owned()))?;
        let pushing = |source| ArchiveError::Push { image: target.to_owned(), source: Box::new(source) };
        progress.send_modify(|p| p.phase = "collecting".into());
        let parts = self.parts(image, origin.as_ref()).await?;
        let repository = self.repository(&reference, credentials).map_err(pushing)?;
        let neighbours = self.neighbours(parts.record.id.as_str(), &reference.host);
        let layers: Vec<LayerProgress> = parts.layers.iter().map(|blob| layer(blob)).collect();
        let total = layers.iter().map(|layer| layer.total).sum();
        progress.send_replace(PullProgress { total, done: 0, phase: "pushing".into(), layers });
        let sent = AtomicU64::new(0);
        let mut uploads = Vec::new();
        for (number, blob) in parts.layers.iter().enumerate() {
            let (progress, repository, neighbours, sent) = (&progress, &repository, &neighbours, &sent);
            let upload = async move {
                let body = || {
                    progress.send_modify(|p| p.restart(number));
                    stream(blob, number, progress.clone())
                };
                let how = repository.push_blob(&blob.digest, blob.size, neighbours, &body).await?;
                if how == Uploaded::Sent {
                    sent.fetch_add(blob.size, Ordering::Relaxed);
                }
                progress.send_modify(|p| p.finish(number));
                Ok::<(), RegistryError>(())
            };
            uploads.push(upload.boxed());
        }
        futures_util::stream::iter(uploads)
            .buffer_unordered(UPLOADS)
            .try_collect::<()>()
            .await
            .map_err(pushing)?;
        let config = || reqwest::Body::from(parts.config.clone());
        let size = parts.config.len() as u64;
        repository.push_blob(&parts.record.id, size, &neighbours, &config).await.map_err(pushing)?;
        let media_type = save::media_type(&parts.manifest);
        let digest = &parts.record.manifest;
        let under = reference.tag.clone().unwrap_or_else(|| digest.to_string());
        repository.push_manifest(&under, &media_type, &parts.manifest).await.map_err(pushing)?;
        Ok(Pushed { reference: reference.with_digest(digest), sent: sent.into_inner() })
    }

    /// All tags of a repository.
    ///
    /// # Errors
    /// The name does not parse, or the registry refuses.
    pub async fn remote_tags(
        &self,
        name: &str,
        credentials: Option<Credentials>,
    ) -> Result<Vec<String>, ArchiveError> {
        let reference: ImageRef = name.parse().map_err(|_| ArchiveError::Name(name.to_owned()))?;
        let failed = |source| ArchiveError::Search { what: name.to_owned(), source: Box::new(source) };
        let repository = self.repository(&reference, credentials).map_err(failed)?;
        repository.tags().await.map_err(failed)
    }

    /// Repositories of a registry whose name contains a term, with what the registry says about them. `term` may begin with the registry.
    ///
    /// # Errors
    /// The registry has no catalog, or refuses.
    pub async fn search(
        &self,
        term: &str,
        credentials: Option<Credentials>,
    ) -> Result<Vec<(String, String)>, ArchiveError> {
        let (host, term) = match term.split_once('/') {
            Some((host, term)) if crate::reference::names_a_host(&format!("{host}/x")) => (host, term),
            _ => ("docker.io", term),
        };
        let failed =
            |source| ArchiveError::Search { what: format!("{host}/{term}"), source: Box::new(source) };
        // Any repository's name opens the registry.
        let any: ImageRef =
            format!("{host}/search/any").parse().map_err(|_| ArchiveError::Name(host.to_owned()))?;
        let repository = self.repository(&any, credentials).map_err(failed)?;
        if host == "docker.io" {
            return repository.hub_search(term).await.map_err(failed);
        }
        let all = repository.catalog().await.map_err(failed)?;
        let fitting = all.into_iter().filter(|name| name.contains(term));
        Ok(fitting.map(|name| (format!("{host}/{name}"), String::new())).collect())
    }

    fn repository(
        &self,
        reference: &ImageRef,
        credentials: Option<Credentials>,
    ) -> Result<Repository, RegistryError> {
        Repository::open(reference, credentials, &self.config.registry_config, &self.clients, self.timing)
    }

    /// Repositories of a host that this image was pulled from: their blobs need not be sent again.
    fn neighbours(&self, id: &str, host: &str) -> Vec<String> {
        let index = self.index.load();
        let names = index.names.images.get(id).into_iter().flat_map(|names| &names.digests);
        let references = names.filter_map(|name| name.parse::<ImageRef>().ok());
        references.filter(|reference| reference.host == host).map(|reference| reference.path).collect()
    }
}

fn layer(blob: &Blob) -> LayerProgress {
    LayerProgress { digest: blob.digest.to_string(), total: blob.size, done: 0, done_for_good: false }
}

/// A blob's file as a request's body.
fn stream(blob: &Arc<Blob>, number: usize, progress: watch::Sender<PullProgress>) -> reqwest::Body {
    let path = blob.path.clone();
    let opened = async move { tokio::fs::File::open(path).await };
    let pieces = futures_util::stream::once(opened).flat_map(move |opened| {
        let progress = progress.clone();
        futures_util::stream::try_unfold(opened, move |file| {
            let progress = progress.clone();
            async move {
                let mut file = file?;
                let mut piece = Vec::with_capacity(PIECE);
                let n = (&mut file).take(PIECE as u64).read_to_end(&mut piece).await?;
                progress.send_modify(|p| p.moved(number, n as u64));
                Ok::<_, std::io::Error>((n > 0).then_some((bytes::Bytes::from(piece), Ok(file))))
            }
        })
    });
    reqwest::Body::wrap_stream(pieces)
}
