//! Layers: from a compressed stream to a verified tar with an index of its entries, in one pass.
//!
//! ```text
//! spool ──┬── sha256, size ────────────────────────────── = the descriptor's?
//!         └── inflate ──┬── sha256 ────────────────────── = the config's diff ID?
//!                       └── tar scan, write, (fdatasync) ── tar + entries
//! ```
//! Each arm has a thread. The tar is kept byte for byte: its hash is the diff ID at any later time, and a file system can point into it.

pub mod decode;
pub mod entry;
mod pax;
mod sparse;
pub mod spool;
pub mod tar;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::digest::{Digest, Hasher};
use crate::error::{ErrorKind, FileError};
use spool::{Spool, SpoolReader};

/// Decompressed bytes handled at a time.
const PIECE: usize = 1 << 20;
/// Pieces that may wait for the hasher: with [`PIECE`], the memory of one layer in flight.
const QUEUE: usize = 3;
/// Written bytes after which the disk is asked to start, so that the last flush is short.
const FLUSH_EVERY: u64 = 64 << 20;
/// Largest layer, decompressed, in bytes.
const LAYER_MAX: u64 = 100 << 30;

/// Memory one layer in flight may take, in bytes (a zstd window included).
pub(crate) const LAYER_MEMORY: u64 = 16 << 20;

/// Why a layer is not acceptable.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum LayerError {
    #[error("the transfer was interrupted")]
    Read(#[source] io::Error),
    #[error("{format} data is malformed after {offset} decompressed bytes")]
    Compression { format: &'static str, offset: u64, source: io::Error },
    #[error("bytes that are no gzip member follow the last one")]
    Trailing,
    #[error("the blob has {found} bytes, its descriptor says {expected}")]
    Size { expected: u64, found: u64 },
    #[error("the blob's digest is {found}; the registry or the way to it corrupts data")]
    Digest { found: Digest },
    #[error(
        "the decompressed digest is {found}, the config says {expected}; the image was built or pushed wrongly"
    )]
    DiffId { expected: Digest, found: Digest },
    #[error("the tar archive is malformed")]
    Tar(#[from] tar::TarError),
    #[error("it decompresses to more than {LAYER_MAX} bytes")]
    TooLarge,
    #[error(transparent)]
    Entries(#[from] entry::Damaged),
    #[error("layer {layer} cannot be applied at \"{path}\": {problem}")]
    Apply { layer: usize, path: String, problem: &'static str },
    #[error("a hashing thread ended early")]
    Thread,
    #[error(transparent)]
    File(#[from] FileError),
}

impl LayerError {
    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            // Neither the image nor the request is at fault; another attempt, or another mirror, may do.
            Self::Read(_) | Self::Digest { .. } => ErrorKind::Unavailable,
            Self::File(error) => error.kind(),
            Self::TooLarge => ErrorKind::ResourceExhausted,
            Self::Entries(_) | Self::Thread => ErrorKind::Internal,
            // The image is at fault, not the node.
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// What must be true of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Expect {
    /// Digest of the blob.
    pub(crate) blob: Digest,
    /// Length of the blob in bytes.
    pub(crate) size: u64,
    /// Digest of the decompressed tar.
    pub(crate) diff_id: Digest,
}

/// Reads the spool to its end into `dir/tar` and `dir/entries`, both verified and on disk when this returns. Blocking.
pub(crate) fn ingest(spool: &Arc<Spool>, expect: &Expect, dir: &Path) -> Result<(), LayerError> {
    let tar_path = dir.join("tar");
    let tar = File::create_new(&tar_path).map_err(FileError::at("create", &tar_path))?;
    let (diff_id, entries) = std::thread::scope(|scope| {
        let blob = scope.spawn(|| hash_blob(SpoolReader::new(spool.clone()), expect.blob.hasher()));
        let (to_hash, pieces) = sync_channel(QUEUE);
        let diff = scope.spawn(|| hash_pieces(pieces, expect.diff_id.hasher()));
        let (to_flush, flushes) = sync_channel(1);
        let flush = scope.spawn(|| flush_on_demand(&tar, flushes));
        let entries = unpack_stream(SpoolReader::new(spool.clone()), &tar, &tar_path, to_hash, &to_flush);
        drop(to_flush);
        if matches!(entries, Err(LayerError::File(_))) {
            // A full disk: nobody needs the rest of the blob.
            spool.abandon();
        }
        let (blob, diff, flush) = (blob.join(), diff.join(), flush.join());
        if let Err(LayerError::File(error)) = entries {
            return Err(error.into());
        }
        let blob = blob.map_err(|_| LayerError::Thread)??;
        flush.map_err(|_| LayerError::Thread)?.map_err(FileError::at("flush", &tar_path))?;
        let diff = diff.map_err(|_| LayerError::Thread)?;
        // Damage on the way explains a malformed stream better than the stream does.
        if blob.1 != expect.size {
            return Err(LayerError::Size { expected: expect.size, found: blob.1 });
        }
        if blob.0 != expect.blob {
            return Err(LayerError::Digest { found: blob.0 });
        }
        Ok((diff, entries?))
    })?;
    if diff_id != expect.diff_id {
        return Err(LayerError::DiffId { expected: expect.diff_id.clone(), found: diff_id });
    }
    tar.sync_data().map_err(FileError::at("flush", &tar_path))?;
    let path = dir.join("entries");
    let mut file = File::create_new(&path).map_err(FileError::at("create", &path))?;
    file.write_all(&entries).and_then(|()| file.sync_data()).map_err(FileError::at("write", &path))?;
    Ok(())
}

fn hash_blob(mut input: SpoolReader, mut hasher: Hasher) -> Result<(Digest, u64), LayerError> {
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match input.read(&mut buffer).map_err(LayerError::Read)? {
            0 => return Ok((hasher.finish(), size)),
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the channel closes when its receiver is dropped here")]
fn hash_pieces(pieces: Receiver<Arc<Vec<u8>>>, mut hasher: Hasher) -> Digest {
    for piece in &pieces {
        hasher.update(&piece);
    }
    hasher.finish()
}

#[expect(clippy::needless_pass_by_value, reason = "the channel closes when its receiver is dropped here")]
fn flush_on_demand(tar: &File, demands: Receiver<()>) -> io::Result<()> {
    demands.iter().try_for_each(|()| tar.sync_data())
}

/// Inflates, writes the tar, scans it; returns the bytes of the `entries` file.
#[expect(clippy::needless_pass_by_value, reason = "the hasher ends when its sender is dropped here")]
fn unpack_stream(
    input: SpoolReader,
    mut tar: &File,
    tar_path: &Path,
    to_hash: SyncSender<Arc<Vec<u8>>>,
    to_flush: &SyncSender<()>,
) -> Result<Vec<u8>, LayerError> {
    let mut scanner = tar::Scanner::new();
    let mut writer = entry::Writer::default();
    let (mut size, mut flushed) = (0_u64, 0_u64);
    decode::decode(input, PIECE, &mut |piece| {
        size += piece.len() as u64;
        if size > LAYER_MAX {
            return Err(LayerError::TooLarge);
        }
        let piece = Arc::new(piece);
        to_hash.send(piece.clone()).map_err(|_| LayerError::Thread)?;
        scanner.push(&piece, &mut |entry| writer.push(&entry))?;
        tar.write_all(&piece).map_err(FileError::at("write", tar_path))?;
        if size - flushed >= FLUSH_EVERY && to_flush.try_send(()).is_ok() {
            flushed = size;
        }
        Ok(())
    })?;
    scanner.finish()?;
    Ok(writer.finish())
}
