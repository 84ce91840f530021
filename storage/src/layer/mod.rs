//! Layers: from a compressed stream to a verified tar with an index of its entries, in one pass.
//!
//! ```text
//! spool ──┬── sha256, size ────────────────────────────── = the descriptor's?
//!         └── inflate, tar scan ── write ── sha256 ──── = the config's diff ID?
//!                      entries        tar
//! ```
//! Each of these steps has a thread; the buffers go round. The tar is kept byte for byte: its hash is the diff ID at any later time,
//! and a file system can point into it.

pub mod decode;
pub mod entry;
mod file;
mod pax;
mod sparse;
pub mod spool;
pub mod tar;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use crate::digest::{Digest, Hasher};
use crate::error::{ErrorKind, FileError};
use file::{Buffer, TarFile};
use spool::{Spool, SpoolReader};

/// Decompressed bytes handled at a time.
const PIECE: usize = 1 << 20;
/// Pieces that may wait for the writer, and for the hasher: with one each being filled, written and hashed, seven at most.
const QUEUE: usize = 2;
/// Decompressed bytes after which the free space is looked at again.
const CHECK_EVERY: u64 = 64 << 20;
/// Largest layer, decompressed, in bytes, unless its blob is so large that [`RATIO_MAX`] allows more.
const LAYER_MAX: u64 = 100 << 30;
/// No honest data is packed better than this: deflate ends at 1032 to 1.
const RATIO_MAX: u64 = 1100;
/// A pull stops when less than this is free on the disk, for the node needs some of it, in bytes.
const RESERVE: u64 = 16 << 20;

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
    #[error("it decompresses to more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("{free} bytes are free on its disk, and {needed} more are needed at least")]
    Space { needed: u64, free: u64 },
    #[error(transparent)]
    Entries(#[from] entry::Damaged),
    #[error("the entry at offset {offset} (\"{path}\") cannot be applied: {problem}")]
    Apply { layer: usize, offset: u64, path: String, problem: &'static str },
    #[error("a hashing thread ended early")]
    Thread,
    #[error("a thread for it cannot be started")]
    NoThread(#[source] io::Error),
    #[error(transparent)]
    File(#[from] FileError),
}

impl LayerError {
    /// The trouble is here and not in the layer: its bytes need not be looked at any further.
    fn is_ours(&self) -> bool {
        matches!(self, Self::File(_) | Self::Space { .. } | Self::TooLarge { .. } | Self::Thread)
    }

    /// Class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            // Neither the image nor the request is at fault; another attempt, or another mirror, may do.
            Self::Read(_) | Self::Digest { .. } => ErrorKind::Unavailable,
            Self::File(error) => error.kind(),
            Self::TooLarge { .. } | Self::Space { .. } | Self::NoThread(_) => ErrorKind::ResourceExhausted,
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
    let path = dir.join("tar");
    let tar = File::create_new(&path).map_err(FileError::at("create", &path))?;
    // It will not get smaller by being unpacked.
    check_space(&tar, &path, expect.size)?;
    let entries = unpack(spool, expect, &tar, &path)?;
    tar.sync_data().map_err(FileError::at("flush", &path))?;
    let path = dir.join("entries");
    let mut file = File::create_new(&path).map_err(FileError::at("create", &path))?;
    file.write_all(&entries).and_then(|()| file.sync_data()).map_err(FileError::at("write", &path))?;
    Ok(())
}

/// Runs the threads of one layer and compares what they found; returns the bytes of the `entries` file.
fn unpack(spool: &Arc<Spool>, expect: &Expect, tar: &File, path: &Path) -> Result<Vec<u8>, LayerError> {
    std::thread::scope(|scope| {
        let blob = thread(scope, spool, "layer-sha-blob", || {
            hash_blob(SpoolReader::new(spool.clone()), expect.blob.hasher())
        })?;
        let (to_write, unwritten) = sync_channel(QUEUE);
        let (to_hash, unhashed) = sync_channel(QUEUE);
        let (give_back, spare) = channel();
        let (flusher, flushes) = sync_channel(1);
        let flush = thread(scope, spool, "layer-flush", || flush_on_demand(tar, flushes))?;
        let file = TarFile::new(tar, path, flusher);
        let write = thread(scope, spool, "layer-write", || write_pieces(unwritten, file, to_hash))?;
        let hasher = expect.diff_id.hasher();
        let diff = thread(scope, spool, "layer-sha-tar", || hash_pieces(unhashed, give_back, hasher))?;
        let intake = Intake {
            tar,
            path,
            limit: LAYER_MAX.max(expect.size.saturating_mul(RATIO_MAX)),
            to_write,
            spare,
            scanner: tar::Scanner::new(),
            entries: entry::Writer::default(),
            size: 0,
            checked: 0,
        };
        let entries = intake.run(SpoolReader::new(spool.clone()));
        if entries.as_ref().is_err_and(LayerError::is_ours) {
            // A full disk: nobody needs the rest of the blob.
            spool.abandon();
        }
        let (blob, diff, flush, write) = (blob.join(), diff.join(), flush.join(), write.join());
        write.map_err(|_| LayerError::Thread)??;
        let entries = match entries {
            Err(error) if error.is_ours() => return Err(error),
            entries => entries,
        };
        let blob = blob.map_err(|_| LayerError::Thread)??;
        flush.map_err(|_| LayerError::Thread)?.map_err(FileError::at("flush", path))?;
        let found = diff.map_err(|_| LayerError::Thread)?;
        // Damage on the way explains a malformed stream better than the stream does.
        if blob.1 != expect.size {
            return Err(LayerError::Size { expected: expect.size, found: blob.1 });
        }
        if blob.0 != expect.blob {
            return Err(LayerError::Digest { found: blob.0 });
        }
        let entries = entries?;
        if found != expect.diff_id {
            return Err(LayerError::DiffId { expected: expect.diff_id.clone(), found });
        }
        Ok(entries)
    })
}

/// Starts a step's thread. If there can be none the others must end: they wait for a spool that nobody reads to its end.
fn thread<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    spool: &Spool,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, LayerError> {
    let started = std::thread::Builder::new().name(name.into()).spawn_scoped(scope, work);
    started.map_err(|source| {
        spool.abandon();
        LayerError::NoThread(source)
    })
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

/// Writes pieces and passes them on. Whoever sends them sees by the closed channel that this has failed.
#[expect(clippy::needless_pass_by_value, reason = "the channels close when their ends are dropped here")]
fn write_pieces(
    pieces: Receiver<Buffer>,
    mut tar: TarFile<'_>,
    to_hash: SyncSender<Buffer>,
) -> Result<(), LayerError> {
    for piece in &pieces {
        tar.write(piece.slice())?;
        to_hash.send(piece).map_err(|_| LayerError::Thread)?;
    }
    Ok(())
}

/// Hashes pieces and gives their buffers back.
#[expect(clippy::needless_pass_by_value, reason = "the channels close when their ends are dropped here")]
fn hash_pieces(pieces: Receiver<Buffer>, spare: Sender<Buffer>, mut hasher: Hasher) -> Digest {
    for piece in &pieces {
        hasher.update(piece.slice());
        // At the end nobody wants them back.
        let _ = spare.send(piece);
    }
    hasher.finish()
}

#[expect(clippy::needless_pass_by_value, reason = "the channel closes when its receiver is dropped here")]
fn flush_on_demand(tar: &File, demands: Receiver<()>) -> io::Result<()> {
    demands.iter().try_for_each(|()| tar.sync_data())
}

/// The decompressed end of a layer: scanned, and passed on to be written and hashed.
struct Intake<'a> {
    tar: &'a File,
    path: &'a Path,
    limit: u64,
    to_write: SyncSender<Buffer>,
    spare: Receiver<Buffer>,
    scanner: tar::Scanner,
    entries: entry::Writer,
    size: u64,
    /// Size at which the disk's free space was looked at last.
    checked: u64,
}

impl Intake<'_> {
    /// Inflates and scans; returns the bytes of the `entries` file.
    fn run(mut self, input: SpoolReader) -> Result<Vec<u8>, LayerError> {
        decode::decode(input, PIECE, &mut |piece| self.take(piece))?;
        self.scanner.finish()?;
        Ok(self.entries.finish())
    }

    fn take(&mut self, piece: Buffer) -> Result<Buffer, LayerError> {
        self.size += piece.slice().len() as u64;
        if self.size > self.limit {
            return Err(LayerError::TooLarge { limit: self.limit });
        }
        if self.size - self.checked >= CHECK_EVERY {
            self.checked = self.size;
            check_space(self.tar, self.path, 0)?;
        }
        self.scanner.push(piece.slice(), &mut |entry| self.entries.push(&entry))?;
        self.to_write.send(piece).map_err(|_| LayerError::Thread)?;
        Ok(self.spare.try_recv().unwrap_or_default())
    }
}

/// Stops before the disk is full: `needed` more bytes, and what the node itself needs, must be free.
fn check_space(file: &File, path: &Path, needed: u64) -> Result<(), LayerError> {
    let stat = rustix::fs::fstatvfs(file).map_err(FileError::at("measure", path))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = needed.saturating_add(RESERVE);
    if free < needed { Err(LayerError::Space { needed, free }) } else { Ok(()) }
}
