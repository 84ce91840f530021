//! A blob on its way: written by the network at one end, read by hashing and inflating threads at the other.
//!
//! The bytes go through a file, not through memory, so a slow inflater never holds a connection, a cut connection continues where
//! it stopped, and a daemon that was killed continues with what it has. The file is as untrusted as the network: the digest is computed
//! over what is read from it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The shared state of one blob in flight.
#[derive(Debug)]
pub struct Spool {
    file: File,
    progress: Mutex<Progress>,
    moved: Condvar,
}

#[derive(Debug)]
struct Progress {
    available: u64,
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
    /// Over an open file whose first `available` bytes are there already.
    #[must_use]
    pub fn new(file: File, available: u64) -> Self {
        Self { file, progress: Mutex::new(Progress { available, end: End::Open }), moved: Condvar::new() }
    }

    /// Appends at the end of what is available. Only one writer may do so.
    pub fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let at = self.lock().available;
        self.file.write_all_at(bytes, at)?;
        self.lock().available = at + bytes.len() as u64;
        self.moved.notify_all();
        Ok(())
    }

    /// Bytes available.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.lock().available
    }

    /// No more bytes will come, and all have come.
    pub fn complete(&self) {
        self.end(End::Complete);
    }

    /// No more bytes will come, and readers fail with `ConnectionAborted`.
    pub fn abandon(&self) {
        self.end(End::Abandoned);
    }

    fn end(&self, end: End) {
        let mut progress = self.lock();
        if progress.end == End::Open || end == End::Abandoned {
            progress.end = end;
        }
        self.moved.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // Two plain fields, written one at a time: they are consistent even if a holder panicked.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        loop {
            if progress.end == End::Abandoned {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if progress.available > self.at {
                break;
            }
            if progress.end == End::Complete {
                return Ok(0);
            }
            progress = self.spool.moved.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        let there = usize::try_from(progress.available - self.at).unwrap_or(usize::MAX);
        drop(progress);
        let wanted = there.min(buffer.len());
        let n = self.spool.file.read_at(&mut buffer[..wanted], self.at)?;
        if n == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        Ok(n)
    }
}
