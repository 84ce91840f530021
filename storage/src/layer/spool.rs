//! A blob on its way: written by the network at one end, read by hashing and inflating threads at the other.
//!
//! The bytes go through a file, not through memory, so a slow inflater never holds a connection, a cut connection continues where
//! it stopped, and a daemon that was killed continues with what it has. The file is as untrusted as the network: the digest is computed
//! over what is read from it.
//!
//! Bytes may come in any order. As long as they come from the front, the length of the file says what is there; as soon as they do not,
//! a ledger beside it (`<file>.have`: pairs of little-endian u64, from and to) says which stretches are. Owned by this module.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::FileError;

/// A stretch is entered in the ledger when it has grown by this many bytes, or is told to be: what a killed daemon loses of it.
const ENTER_EVERY: u64 = 128 << 10;
/// Readers wait for this many bytes, so that they are not woken for every packet.
const BATCH: usize = 256 << 10;
/// Largest ledger read, in bytes.
const LEDGER_MAX: u64 = 16 << 20;

/// The shared state of one blob in flight.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: PathBuf,
    progress: Mutex<Progress>,
    moved: Condvar,
}

#[derive(Debug)]
struct Progress {
    /// What is there: sorted, disjoint, not touching.
    have: Vec<Range<u64>>,
    /// What is there but not in the ledger yet.
    unentered: Vec<Range<u64>>,
    ledger: Option<File>,
    /// The shortest prefix that a reader waits for.
    wanted: u64,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Complete,
    Abandoned,
}

/// Reads a spool from its start, waiting for bytes to come.
#[derive(Debug)]
pub struct SpoolReader {
    spool: Arc<Spool>,
    at: u64,
}

// === impl Spool ===

impl Spool {
    /// Opens what there is of a blob of `size` bytes; returns it with the number of bytes that are there. Too much is as good as nothing.
    ///
    /// # Errors
    /// The file cannot be opened or cut.
    pub fn open(path: &Path, size: u64) -> Result<(Self, u64), FileError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(FileError::at("open", path))?;
        let there = file.metadata().map_err(FileError::at("stat", path))?.len();
        let mut have =
            read_ledger(&ledger_path(path), there).unwrap_or_else(|| std::iter::once(0..there).collect());
        if there > size {
            file.set_len(0).map_err(FileError::at("truncate", path))?;
            have.clear();
        }
        have.retain(|range| !range.is_empty());
        // The next byte that comes out of order starts it anew, with all of this.
        let _ = std::fs::remove_file(ledger_path(path));
        let count = have.iter().map(|range| range.end - range.start).sum();
        let mut progress =
            Progress { have, unentered: Vec::new(), ledger: None, wanted: u64::MAX, end: End::Open };
        if progress.has_holes(there) {
            progress.start_ledger(path).map_err(FileError::at("write", ledger_path(path)))?;
        }
        let spool =
            Self { file, path: path.to_owned(), progress: Mutex::new(progress), moved: Condvar::new() };
        Ok((spool, count))
    }

    /// Adds bytes that belong at `at`. Several writers may do so, each for its own stretch.
    ///
    /// # Errors
    /// The disk is full or fails.
    pub fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        let mut progress = self.lock();
        let written = at..at + bytes.len() as u64;
        add(&mut progress.have, written.clone());
        if progress.ledger.is_none() && progress.has_holes(written.end) {
            progress.start_ledger(&self.path)?;
        } else if progress.ledger.is_some() {
            add(&mut progress.unentered, written);
            progress.enter(ENTER_EVERY)?;
        }
        let enough = progress.prefix() >= progress.wanted;
        if enough {
            progress.wanted = u64::MAX;
        }
        drop(progress);
        if enough {
            self.moved.notify_all();
        }
        Ok(())
    }

    /// Bytes available from the front.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.lock().prefix()
    }

    /// The stretches of a blob of `size` bytes that are not there, in order.
    #[must_use]
    pub fn missing(&self, size: u64) -> Vec<Range<u64>> {
        let progress = self.lock();
        let mut missing = Vec::new();
        let mut at = 0;
        for range in &progress.have {
            if range.start > at {
                missing.push(at..range.start.min(size));
            }
            at = range.end;
        }
        if at < size {
            missing.push(at..size);
        }
        missing
    }

    /// No more bytes will come, and all have come.
    pub fn complete(&self) {
        self.end(End::Complete);
    }

    /// No more bytes will come, and readers fail with `ConnectionAborted`.
    pub fn abandon(&self) {
        self.end(End::Abandoned);
    }

    /// Deletes the files: the bytes have served, or are bad.
    pub fn delete(path: &Path) {
        for path in [path.to_owned(), ledger_path(path)] {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a partial blob is left over");
            }
        }
    }

    fn end(&self, end: End) {
        let mut progress = self.lock();
        if progress.end == End::Open || end == End::Abandoned {
            progress.end = end;
        }
        if let Err(error) = progress.enter(0) {
            tracing::debug!(path = %self.path.display(), %error, "some bytes will be fetched again");
        }
        drop(progress);
        self.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // Plain fields, each consistent by itself even if a holder panicked.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.abandon();
    }
}

// === impl Progress ===

impl Progress {
    fn prefix(&self) -> u64 {
        self.have.first().filter(|range| range.start == 0).map_or(0, |range| range.end)
    }

    /// Would the length of the file lie?
    fn has_holes(&self, length: u64) -> bool {
        self.prefix() < length
    }

    /// Begins a ledger with all that is there.
    fn start_ledger(&mut self, path: &Path) -> io::Result<()> {
        self.ledger = Some(File::create(ledger_path(path))?);
        self.unentered = self.have.clone();
        self.enter(0)
    }

    /// Enters the stretches that have grown to `least` bytes.
    fn enter(&mut self, least: u64) -> io::Result<()> {
        let Some(ledger) = &mut self.ledger else { return Ok(()) };
        let mut lines = Vec::new();
        self.unentered.retain(|range| {
            let due = range.end - range.start >= least;
            if due {
                lines.extend_from_slice(&range.start.to_le_bytes());
                lines.extend_from_slice(&range.end.to_le_bytes());
            }
            !due
        });
        if lines.is_empty() { Ok(()) } else { ledger.write_all(&lines) }
    }
}

fn ledger_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".have");
    name.into()
}

/// What a ledger says is there of a file of `length` bytes; `None`: there is none.
fn read_ledger(path: &Path, length: u64) -> Option<Vec<Range<u64>>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LEDGER_MAX).read_to_end(&mut bytes).ok()?;
    let mut have = Vec::new();
    for pair in bytes.as_chunks::<16>().0 {
        let (from, to) = pair.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let (from, to) = (number(from), number(to).min(length));
        if from < to {
            add(&mut have, from..to);
        }
    }
    Some(have)
}

/// Adds a stretch to sorted, disjoint ones.
fn add(have: &mut Vec<Range<u64>>, new: Range<u64>) {
    let from = have.partition_point(|range| range.end < new.start);
    let to = have.partition_point(|range| range.start <= new.end);
    let touching = &have[from..to];
    let start = touching.first().map_or(new.start, |range| range.start.min(new.start));
    let end = touching.last().map_or(new.end, |range| range.end.max(new.end));
    have.splice(from..to, std::iter::once(start..end));
}

// === impl SpoolReader ===

impl SpoolReader {
    /// From the first byte.
    #[must_use]
    pub fn new(spool: Arc<Spool>) -> Self {
        Self { spool, at: 0 }
    }
}

impl Read for SpoolReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut progress = self.spool.lock();
        let enough = self.at + buffer.len().min(BATCH) as u64;
        let available = loop {
            let available = progress.prefix();
            match progress.end {
                End::Abandoned => return Err(io::ErrorKind::ConnectionAborted.into()),
                End::Complete if available <= self.at => return Ok(0),
                End::Open if available < enough => progress.wanted = progress.wanted.min(enough),
                End::Open | End::Complete => break available,
            }
            progress = self.spool.moved.wait(progress).unwrap_or_else(PoisonError::into_inner);
        };
        drop(progress);
        let there = usize::try_from(available - self.at).unwrap_or(usize::MAX);
        let wanted = there.min(buffer.len());
        let n = self.spool.file.read_at(&mut buffer[..wanted], self.at)?;
        if n == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("spool-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn what_came_out_of_order_is_known_again_after_a_crash() {
        let directory = temp("order");
        let path = directory.join("blob");
        let (spool, there) = Spool::open(&path, 30).unwrap();
        assert_eq!(there, 0);
        spool.write_at(0, b"0123456789").unwrap();
        assert!(!ledger_path(&path).exists(), "from the front, the length says it all");
        spool.write_at(20, b"abcde").unwrap();
        assert_eq!((spool.available(), spool.missing(30)), (10, vec![10..20, 25..30]));
        // A killed process runs no destructor, and what was written is in the file.
        std::mem::forget(spool);
        let (spool, there) = Spool::open(&path, 30).unwrap();
        assert_eq!((there, spool.missing(30)), (15, vec![10..20, 25..30]));
        spool.write_at(10, b"zzzzzzzzzz").unwrap();
        assert_eq!(spool.available(), 25);
        drop(spool);
        assert_eq!(Spool::open(&path, 30).unwrap().1, 25);
        assert_eq!(Spool::open(&path, 20).unwrap().1, 0, "too much is as good as nothing");
        Spool::delete(&path);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_reader_waits_for_the_front() {
        let directory = temp("front");
        let (spool, _) = Spool::open(&directory.join("blob"), 4).unwrap();
        let spool = Arc::new(spool);
        spool.write_at(2, b"cd").unwrap();
        let mut reader = SpoolReader::new(spool.clone());
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        spool.write_at(0, b"ab").unwrap();
        spool.complete();
        assert_eq!(read.join().unwrap(), "abcd");
        std::fs::remove_dir_all(directory).unwrap();
    }

    proptest::proptest! {
        #[test]
        fn stretches_are_the_union_of_what_was_added(adds in proptest::collection::vec((0_u64..64, 1_u64..16), 0..20)) {
            let mut have = Vec::new();
            let mut truth = [false; 80];
            for (start, length) in adds {
                add(&mut have, start..start + length);
                (start..start + length).for_each(|at| truth[usize::try_from(at).unwrap()] = true);
            }
            for pair in have.windows(2) {
                assert!(pair[0].end < pair[1].start, "{have:?}");
            }
            for (at, there) in truth.iter().enumerate() {
                assert_eq!(have.iter().any(|range| range.contains(&(at as u64))), *there, "{at} of {have:?}");
            }
        }
    }
}
