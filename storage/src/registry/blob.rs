//! Fetching a blob into a [`Spool`]: continues where it stopped, whatever stopped it.

use super::client::{Ask, Client};
use super::{RegistryError, Timing};
use crate::error::FileError;
use crate::layer::spool::Spool;
use crate::manifest::Descriptor;

/// The fetch of one blob.
#[derive(Debug)]
pub(crate) struct Fetch {
    repository: String,
    descriptor: Descriptor,
    /// Where it may be had, best first.
    sources: Vec<(String, Client)>,
    timing: Timing,
}

impl Fetch {
    pub(super) fn new(
        repository: String,
        descriptor: Descriptor,
        sources: Vec<(String, Client)>,
        timing: Timing,
    ) -> Self {
        Self { repository, descriptor, sources, timing }
    }

    /// Appends what is missing of the blob to the spool. `moved` hears of each piece.
    pub(crate) async fn run(
        &self,
        spool: &Spool,
        moved: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let what = format!("blob {}", self.descriptor.digest);
        let (mut source, mut tries) = (0, 0);
        let mut permanent = Vec::new();
        let mut gone = vec![false; self.sources.len()];
        while spool.available() < self.descriptor.size {
            if gone.iter().all(|gone| *gone) {
                return Err(match permanent.len() {
                    1 => permanent.remove(0),
                    0 => RegistryError::NoHost(self.repository.clone()),
                    _ => RegistryError::All(permanent),
                });
            }
            source %= self.sources.len();
            if gone[source] {
                source += 1;
                continue;
            }
            let (url, client) = &self.sources[source];
            let before = spool.available();
            let Err(error) = self.attempt(url, client, &what, spool, moved).await else { continue };
            if !error.is_transient() {
                gone[source] = true;
                permanent.push(error);
                continue;
            }
            // Progress earns new tries: a link that breaks every 10 MB is slow, not dead.
            tries = if spool.available() > before { 1 } else { tries + 1 };
            if tries >= self.timing.tries {
                return Err(error);
            }
            client.pause(tries, None).await;
            source += 1;
        }
        Ok(())
    }

    /// One request, as far as it goes.
    async fn attempt(
        &self,
        url: &str,
        client: &Client,
        what: &str,
        spool: &Spool,
        moved: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let from = spool.available();
        let mut ask = Ask::get(url, &self.repository, what);
        ask.from = from;
        let mut response = client.send(&ask).await?;
        let mut skip = match response.status().as_u16() {
            206 => {
                let range =
                    response.headers().get("content-range").and_then(|v| v.to_str().ok()).unwrap_or_default();
                let start: Option<u64> = range
                    .strip_prefix("bytes ")
                    .and_then(|r| r.split('-').next())
                    .and_then(|s| s.parse().ok());
                // Another stretch than asked for; skipping helps if it starts before.
                match start {
                    Some(start) if start <= from => from - start,
                    _ => return Err(self.length(client, what, 0)),
                }
            }
            // The whole blob again: what we have is skipped.
            _ => from,
        };
        let mut done = from;
        loop {
            let chunk = tokio::time::timeout(self.timing.stall, response.chunk()).await;
            let chunk = chunk.map_err(|_| client.stalled(what))?;
            let chunk = chunk.map_err(|e| super::client::transport(client.name(), what, e))?;
            let Some(chunk) = chunk else { break };
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            let fresh = &chunk[skipped..];
            if fresh.is_empty() {
                continue;
            }
            if done + fresh.len() as u64 > self.descriptor.size {
                let (host, limit) = (client.name().to_owned(), self.descriptor.size);
                return Err(RegistryError::TooLarge { host, what: what.to_owned(), limit });
            }
            spool.append(fresh).map_err(FileError::at("write", "staging"))?;
            done += fresh.len() as u64;
            moved(fresh.len() as u64);
        }
        if done < self.descriptor.size { Err(self.length(client, what, done)) } else { Ok(()) }
    }

    fn length(&self, client: &Client, what: &str, found: u64) -> RegistryError {
        let (host, expected) = (client.name().to_owned(), self.descriptor.size);
        RegistryError::Length { host, what: what.to_owned(), expected, found }
    }
}
