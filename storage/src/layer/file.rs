//! The one file of a layer, written in one sequence; and the buffers that go there.
//!
//! The first [`WARM`] bytes go through the page cache, so that a small image starts warm. What follows is written past it
//! (`O_DIRECT`, open(2)): a container reads a small part of a large image, the copy into the cache costs as much as inflating does, and
//! a pull must not push the pods' own files out of memory. It also leaves nothing to be flushed at the end. A file
//! system that cannot do it is written to through the cache throughout.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::SyncSender;

use crate::error::FileError;

/// What direct writes need of addresses, lengths and offsets: no disk has larger blocks.
const ALIGN: usize = 4096;
/// Bytes of a layer that stay in the page cache.
const WARM: u64 = 64 << 20;
/// Written bytes after which the disk is asked to start, so that the last flush is short.
const FLUSH_EVERY: u64 = 32 << 20;

/// Bytes at an address that suits direct writes.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

/// A layer's tar, being written.
#[derive(Debug)]
pub(super) struct TarFile<'a> {
    path: &'a Path,
    cached: &'a File,
    direct: Option<File>,
    at: u64,
    flushed: u64,
    /// Asks for what went through the cache to be flushed.
    flusher: SyncSender<()>,
}

// === impl Buffer ===

impl Buffer {
    /// Of `length` zeros, a multiple of 4096.
    pub(crate) fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGN];
        // Where it is not known (in an interpreter), any will do: direct writes are refused then, and done without.
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { bytes, start, length }
    }

    /// Another buffer of at least that length, or this one.
    pub(crate) fn reuse(mut self, length: usize) -> Self {
        if self.start + length > self.bytes.len() {
            return Self::new(length);
        }
        self.length = length;
        self
    }

    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    pub(crate) fn slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    pub(crate) fn slice_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

// === impl TarFile ===

impl<'a> TarFile<'a> {
    /// Writes to `cached`, which is open at `path`, from its start.
    pub(super) fn new(cached: &'a File, path: &'a Path, flusher: SyncSender<()>) -> Self {
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let direct = File::options().write(true).custom_flags(flags).open(path).ok();
        Self { path, cached, direct, at: 0, flushed: 0, flusher }
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let written = self.write_past_the_cache(bytes).map_err(FileError::at("write", self.path))?;
        let rest = &bytes[written..];
        if rest.is_empty() {
            return Ok(());
        }
        self.cached.write_all_at(rest, self.at).map_err(FileError::at("write", self.path))?;
        self.at += rest.len() as u64;
        if self.at - self.flushed >= FLUSH_EVERY && self.flusher.try_send(()).is_ok() {
            self.flushed = self.at;
        }
        Ok(())
    }

    /// As many bytes as can be; the rest is the cache's.
    fn write_past_the_cache(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() - bytes.len() % ALIGN;
        let Some(direct) = &self.direct else { return Ok(0) };
        if length == 0 || self.at < WARM || !self.at.is_multiple_of(ALIGN as u64) {
            return Ok(0);
        }
        match direct.write_all_at(&bytes[..length], self.at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.direct = None;
                return Ok(0);
            }
            Err(error) => return Err(error),
        }
        self.at += length as u64;
        self.flushed = self.at;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_was_written_wherever_it_went() {
        let path = std::path::PathBuf::from(format!("/tmp/storage-file-{}", std::process::id()));
        let file = File::options().create(true).truncate(true).write(true).open(&path).unwrap();
        let (flusher, flushes) = std::sync::mpsc::sync_channel(1);
        let mut tar = TarFile::new(&file, &path, flusher);
        let mut expected = Vec::new();
        let mut piece = Buffer::new(1 << 20);
        for number in 0..70_u8 {
            let length = if number == 69 { 700_001 } else { 1 << 20 };
            piece = piece.reuse(1 << 20);
            piece.slice_mut().fill(number);
            piece.truncate(length);
            tar.write(piece.slice()).unwrap();
            expected.extend_from_slice(piece.slice());
        }
        assert!(tar.direct.is_some(), "this file system writes past the cache");
        assert_eq!(flushes.try_iter().count(), 1, "asked once, and the queue is full");
        assert!(std::fs::read(&path).unwrap() == expected);
        std::fs::remove_file(&path).unwrap();
    }
}
