//! What makes the death of a supervisor cost no line and double none: everything between a pipe and the log lies in memfds, of which
//! the daemon has copies.
//!
//! Each output is moved by splice(2) from its pipe into a *stage*, whose file position the kernel advances together with what it takes
//! from the pipe. A container's *ledger* says how much of each stage is in the log, and, before every write to the log, what is about
//! to be written and where the log stood; the log's own file position tells afterwards how much of it was. A supervisor that takes over
//! finishes the write that was under way and goes on with what is on the stages. Whoever is killed is killed between system calls, or
//! inside one that has done part of its work: both leave positions that are true.
//!
//! A ledger is 64 bytes, little-endian: format, done of stdout, done of stderr, number of the stream being written (2: none), its done
//! afterwards, position of the log before, length of the text, inode of the log. The text follows.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SeekFrom, fstat, ftruncate, memfd_create, seek};
use rustix::io::{Errno, pread, pwrite};
use rustix::pipe::{SpliceFlags, splice};

/// Format of a ledger.
const FORMAT: u64 = 1;
/// Length of its head.
const HEAD: usize = 64;
/// Number that stands for no stream.
const NONE: u64 = 2;
/// A text longer than this does not stay in memory.
const SMALL: u64 = 4 << 10;

/// A memfd for a stage or a ledger.
pub(super) fn file(name: &str) -> io::Result<OwnedFd> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?)
}

/// Where a file stands.
fn position(file: impl AsFd) -> u64 {
    seek(file, SeekFrom::Current(0)).unwrap_or(0)
}

/// Moves what is in a pipe onto its stage, and a copy of it into the buffer.
pub(super) fn take(pipe: &OwnedFd, stage: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let moved = splice(pipe, None, stage, None, buffer.len(), SpliceFlags::NONBLOCK)?;
    let from = position(stage) - moved as u64;
    let mut filled = 0;
    while filled < moved {
        match pread(stage, &mut buffer[filled..moved], from + filled as u64)? {
            0 => return Err(Errno::IO),
            n => filled += n,
        }
    }
    Ok(moved)
}

/// What is on a stage beyond what is done.
pub(super) fn rest(stage: &OwnedFd, done: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(position(stage).saturating_sub(done)).unwrap_or(0)];
    let mut filled = 0;
    while filled < bytes.len() {
        match pread(stage, &mut bytes[filled..], done + filled as u64) {
            Ok(n @ 1..) => filled += n,
            _ => break,
        }
    }
    bytes.truncate(filled);
    bytes
}

/// The ledger of one container.
#[derive(Debug)]
pub(super) struct Ledger {
    file: OwnedFd,
    done: [u64; 2],
}

impl Ledger {
    /// A ledger over a fresh file.
    pub(super) fn new(file: OwnedFd) -> Self {
        Self { file, done: [0; 2] }
    }

    /// The file.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// How much of a stage is in the log.
    pub(super) fn done(&self, which: usize) -> u64 {
        self.done[which]
    }

    /// Notes what is about to be appended to the log, text first, so that a head never speaks of a text that is not there; tells how
    /// much of the stage is done when it is. `held`: bytes at the end of the stage that stay for a later record.
    pub(super) fn intend(
        &mut self,
        which: usize,
        stage: &OwnedFd,
        held: usize,
        log: &OwnedFd,
        text: &[u8],
    ) -> u64 {
        let after = position(stage) - held as u64;
        let mut written = 0;
        while let Ok(n @ 1..) = pwrite(&self.file, &text[written..], (HEAD + written) as u64) {
            written += n;
        }
        let inode = fstat(log).map_or(0, |s| s.st_ino);
        self.put([which as u64, after, position(log), text.len() as u64, inode]);
        after
    }

    /// The text is in the log, or given up.
    pub(super) fn settle(&mut self, which: usize, after: u64, stage: &OwnedFd, length: usize, dropped: bool) {
        self.done[which] = after;
        if dropped {
            self.clear();
        }
        // Memory that holds nothing any more goes back; the position stays.
        if after == position(stage) {
            let _ = ftruncate(stage, 0);
        }
        if length as u64 > SMALL {
            let _ = ftruncate(&self.file, HEAD as u64);
        }
    }

    /// Nothing is being written: what a dead supervisor had begun is in the log, or the log is about to be another file, whose position
    /// means something else.
    pub(super) fn clear(&self) {
        self.put([NONE, 0, 0, 0, 0]);
    }

    fn put(&self, rest: [u64; 5]) {
        let mut head = [0; HEAD];
        let values = [FORMAT, self.done[0], self.done[1]].into_iter().chain(rest);
        for (slot, value) in head.chunks_exact_mut(8).zip(values) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        // At most one page: written whole or not at all.
        let _ = pwrite(&self.file, &head, 0);
    }

    /// The ledger of a dead supervisor, with what of its last text is missing in the log.
    pub(super) fn recover(file: OwnedFd, log: &OwnedFd) -> (Self, Vec<u8>) {
        let mut ledger = Self::new(file);
        let mut head = [0; HEAD];
        if pread(&ledger.file, &mut head, 0) != Ok(HEAD) {
            return (ledger, Vec::new());
        }
        let mut values = [0; 8];
        for (value, bytes) in values.iter_mut().zip(head.as_chunks::<8>().0) {
            *value = u64::from_le_bytes(*bytes);
        }
        let [format, out, err, which, after, before, length, inode] = values;
        if format != FORMAT {
            return (ledger, Vec::new());
        }
        ledger.done = [out, err];
        let Some(done) = usize::try_from(which).ok().and_then(|which| ledger.done.get_mut(which)) else {
            return (ledger, Vec::new());
        };
        *done = after;
        let same = fstat(log).is_ok_and(|s| s.st_ino == inode);
        let written = if same { position(log).saturating_sub(before).min(length) } else { length };
        let mut text = vec![0; usize::try_from(length - written).unwrap_or(0)];
        let read = pread(&ledger.file, &mut text, HEAD as u64 + written).unwrap_or(0);
        text.truncate(read);
        (ledger, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    fn log() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("berth-ledger-{:?}", std::thread::current().id()));
        let file = std::fs::File::options().create(true).append(true).read(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    /// A supervisor is killed after so many bytes of the record are in the log; the next one completes it, and knows what is left.
    #[test]
    fn a_record_is_in_the_log_once_wherever_the_writer_was_killed() {
        for killed_at in 0..=8 {
            let mut log = log();
            log.write_all(b"older\n").unwrap();
            let (pipe, mut writer) = std::io::pipe().unwrap();
            let pipe: OwnedFd = pipe.into();
            writer.write_all(b"line\nunfin").unwrap();
            let stage = file("stage").unwrap();
            let mut buffer = [0; 64];
            assert_eq!(take(&pipe, &stage, &mut buffer), Ok(10));
            let owned: OwnedFd = log.try_clone().unwrap().into();
            let mut ledger = Ledger::new(file("ledger").unwrap());
            ledger.intend(0, &stage, 5, &owned, b"F line!\n");
            log.write_all(&b"F line!\n"[..killed_at]).unwrap();

            let (next, missing) = Ledger::recover(ledger.file.try_clone().unwrap(), &owned);
            log.write_all(&missing).unwrap();
            let mut text = String::new();
            log.rewind().unwrap();
            log.read_to_string(&mut text).unwrap();
            assert_eq!(text, "older\nF line!\n", "killed after {killed_at} bytes");
            assert_eq!(rest(&stage, next.done(0)), b"unfin");
        }
    }

    #[test]
    fn before_the_first_record_everything_is_still_to_be_logged() {
        let log: OwnedFd = log().into();
        let (pipe, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"early").unwrap();
        let stage = file("stage").unwrap();
        take(&pipe.into(), &stage, &mut [0; 64]).unwrap();
        let (ledger, missing) = Ledger::recover(file("ledger").unwrap(), &log);
        assert!(missing.is_empty());
        assert_eq!(rest(&stage, ledger.done(0)), b"early");
    }
}
