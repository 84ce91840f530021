//! Fetching a blob into a [`Spool`]: continues where it stopped, whatever stopped it.
//!
//! A big blob is asked for in pieces, the first one alone: only when it comes as a piece are the others asked for beside it, in order, over
//! connections of their own. A server that answers with the whole blob is taken at its word.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use futures_util::future::try_join_all;

use super::client::{Ask, Client};
use super::{RegistryError, Timing};
use crate::error::FileError;
use crate::layer::spool::Spool;
use crate::manifest::Descriptor;

/// Length of a piece, in bytes.
const PIECE: u64 = 16 << 20;
/// Blobs of which more than this is missing come in pieces.
const BIG: u64 = 2 * PIECE;
/// Pieces asked for at a time.
const WORKERS: usize = 4;

/// The fetch of one blob.
#[derive(Debug)]
pub(crate) struct Fetch {
    descriptor: Descriptor,
    /// Where it may be had, best first.
    sources: Vec<Source>,
    timing: Timing,
}

/// One place that may have it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) url: String,
    /// The repository as the host calls it.
    pub(super) repository: String,
    pub(super) client: Client,
}

/// One run of a fetch.
struct Run<'a> {
    fetch: &'a Fetch,
    what: String,
    spool: &'a Spool,
    moved: &'a (dyn Fn(u64) + Send + Sync),
    /// What each source has said for good.
    verdicts: Mutex<Vec<Option<RegistryError>>>,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Piece,
    Whole,
}

impl Fetch {
    pub(super) fn new(descriptor: Descriptor, mut sources: Vec<Source>, timing: Timing) -> Self {
        for source in &mut sources {
            // Tries are counted here, over all sources.
            source.client = source.client.clone().eager(true);
        }
        Self { descriptor, sources, timing }
    }

    /// Adds what is missing of the blob to the spool. `moved` hears of each piece.
    pub(crate) async fn run(
        &self,
        spool: &Spool,
        moved: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let what = format!("blob {}", self.descriptor.digest);
        let verdicts = Mutex::new(self.sources.iter().map(|_| None).collect());
        let run = Run { fetch: self, what, spool, moved, verdicts };
        let size = self.descriptor.size;
        let missing = spool.missing(size);
        if missing.iter().map(|range| range.end - range.start).sum::<u64>() <= BIG {
            for stretch in missing {
                run.stretch(stretch, false).await?;
            }
            return Ok(());
        }
        let mut pieces: VecDeque<Range<u64>> = missing.into_iter().flat_map(cut).collect();
        if let Some(first) = pieces.pop_front()
            && run.stretch(first, true).await? == Answer::Whole
        {
            return Ok(());
        }
        let pieces = Mutex::new(pieces);
        let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let workers = (0..WORKERS).map(|_| async {
            while let Some(piece) = next() {
                run.stretch(piece, false).await?;
            }
            Ok::<(), RegistryError>(())
        });
        try_join_all(workers).await.map(drop)
    }
}

/// A stretch in pieces.
fn cut(stretch: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = stretch.start;
    std::iter::from_fn(move || {
        let from = at;
        at = stretch.end.min(from.saturating_add(PIECE));
        (from < at).then_some(from..at)
    })
}

// === impl Run ===

impl Run<'_> {
    /// Fetches one stretch, from whoever has it, with as many tries as make progress. `alone`: nobody else fetches, so an answer that is
    /// the whole blob may be read to its end.
    async fn stretch(&self, mut wanted: Range<u64>, alone: bool) -> Result<Answer, RegistryError> {
        let sources = &self.fetch.sources;
        let (mut at, mut tries) = (0, 0);
        while !wanted.is_empty() {
            let Some(source) = self.choose(at) else { return Err(self.hopeless()) };
            let client = &sources[source].client;
            let before = wanted.start;
            let error = match self.attempt(&sources[source], &mut wanted, alone).await {
                Ok(answer) if wanted.is_empty() => return Ok(answer),
                Ok(_) => self.length(client, wanted.start),
                Err(error) => error,
            };
            if !error.is_transient() {
                self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)[source] = Some(error);
                continue;
            }
            // Progress earns new tries: a link that breaks every 10 MB is slow, not dead.
            tries = if wanted.start > before { 1 } else { tries + 1 };
            if tries >= self.fetch.timing.tries {
                return Err(error);
            }
            if tries > 1 || sources.len() == 1 {
                client.pause(tries).await;
            }
            at = source + 1;
        }
        Ok(Answer::Piece)
    }

    /// The next source that has not refused for good, one that could be reached first.
    fn choose(&self, from: usize) -> Option<usize> {
        let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = verdicts.len();
        let left = (0..count).map(|step| (from + step) % count).filter(|source| verdicts[*source].is_none());
        let alive = |source: &usize| !self.fetch.sources[*source].client.is_dead();
        left.clone().find(alive).or_else(|| left.clone().next())
    }

    /// Every source has refused.
    fn hopeless(&self) -> RegistryError {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut said: Vec<RegistryError> = verdicts.iter_mut().filter_map(Option::take).collect();
        match said.len() {
            0 => RegistryError::NoHost(self.what.clone()),
            1 => said.remove(0),
            _ => RegistryError::All(said),
        }
    }

    /// One request, as far as it goes; what it brought is taken off `wanted`.
    async fn attempt(
        &self,
        source: &Source,
        wanted: &mut Range<u64>,
        alone: bool,
    ) -> Result<Answer, RegistryError> {
        let client = &source.client;
        let size = self.fetch.descriptor.size;
        let mut ask = Ask::get(&source.url, &source.repository, &self.what);
        ask.bulk = true;
        if *wanted != (0..size) {
            // An open end where the end is meant: some servers know no other form.
            ask.range = Some((wanted.start, (wanted.end < size).then(|| wanted.end - 1)));
        }
        let mut response = client.send(&ask).await?;
        let piece = response.status().as_u16() == 206;
        let mut skip = if piece {
            let start = response.headers().get("content-range").and_then(|v| range_start(v.to_str().ok()?));
            // Another stretch than asked for; skipping helps if it starts before.
            let start = start.filter(|start| *start <= wanted.start);
            wanted.start - start.ok_or_else(|| self.length(client, 0))?
        } else {
            if alone {
                wanted.end = size;
            }
            wanted.start
        };
        while !wanted.is_empty() {
            let chunk = tokio::time::timeout(self.fetch.timing.stall, response.chunk()).await;
            let chunk = chunk.map_err(|_| client.stalled(&self.what))?;
            let chunk = chunk.map_err(|e| super::answer::transport(client.name(), &self.what, e))?;
            let Some(chunk) = chunk else { break };
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            let mut fresh = &chunk[skipped..];
            if wanted.start + fresh.len() as u64 > size {
                let (host, what) = (client.name().to_owned(), self.what.clone());
                return Err(RegistryError::TooLarge { host, what, limit: size });
            }
            // The rest of a whole blob, of which only this stretch was wanted.
            let room = usize::try_from(wanted.end - wanted.start).unwrap_or(usize::MAX);
            fresh = &fresh[..room.min(fresh.len())];
            self.spool.write_at(wanted.start, fresh).map_err(FileError::at("write", "staging"))?;
            wanted.start += fresh.len() as u64;
            (self.moved)(fresh.len() as u64);
        }
        Ok(if piece { Answer::Piece } else { Answer::Whole })
    }

    fn length(&self, client: &Client, found: u64) -> RegistryError {
        let (host, expected) = (client.name().to_owned(), self.fetch.descriptor.size);
        RegistryError::Length { host, what: self.what.clone(), expected, found }
    }
}

/// `bytes FROM-TO/TOTAL` (RFC 9110 14.4).
fn range_start(header: &str) -> Option<u64> {
    header.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}
