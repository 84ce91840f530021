//! The log of `dm-log-writes` (drivers/md/dm-log-writes.c), and copies of sparse files.
//!
//! All numbers are little endian. Sector 0: magic, version, count of entries (u64 each), sector size (u32). Then each entry: a
//! sector that starts with where it was written, how many sectors, flags, length of a mark's text (u64 each); then the data.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// A log being read.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    entries: usize,
    sector: u64,
}

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut head = [0; 28];
        file.read_exact(&mut head)?;
        if number(&head, 0) != MAGIC || number(&head, 1) != 1 {
            return Err(io::Error::other("not a log of dm-log-writes"));
        }
        let sector = u64::from(u32::from_le_bytes([head[24], head[25], head[26], head[27]]));
        file.seek(SeekFrom::Start(sector))?;
        Ok(Self { file, entries: usize::try_from(number(&head, 2)).map_err(io::Error::other)?, sector })
    }

    /// How many entries there are.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// Writes the next entry to `disk`; or, if it is a mark, returns its text.
    pub(crate) fn apply_next(&mut self, disk: &File) -> io::Result<Option<String>> {
        let mut head = vec![0; usize::try_from(self.sector).map_err(io::Error::other)?];
        self.file.read_exact(&mut head)?;
        let [at, sectors, flags, length] = [0, 1, 2, 3].map(|n| number(&head, n));
        if flags & MARK != 0 {
            let text = head.get(32..32 + usize::try_from(length).map_err(io::Error::other)?);
            let text = text.ok_or_else(|| io::Error::other("a mark longer than its sector"))?;
            self.file.seek_relative(i64::try_from(sectors * self.sector).map_err(io::Error::other)?)?;
            return Ok(Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()));
        }
        let length = usize::try_from(sectors * self.sector).map_err(io::Error::other)?;
        let mut data = vec![0; length];
        if flags & DISCARD == 0 {
            self.file.read_exact(&mut data)?;
        }
        disk.write_all_at(&data, at * self.sector)?;
        Ok(None)
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at * 8..at * 8 + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Copies what a sparse file holds, and its holes as holes.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    let (from, to) = (File::open(from)?, File::create(to)?);
    let end = from.metadata()?.len();
    to.set_len(end)?;
    let mut at = 0;
    while let Ok(start) = seek(&from, SeekFrom::Data(at)) {
        let stop = seek(&from, SeekFrom::Hole(start))?.min(end);
        let mut data = vec![0; usize::try_from(stop - start).map_err(io::Error::other)?];
        from.read_exact_at(&mut data, start)?;
        to.write_all_at(&data, start)?;
        at = stop;
    }
    Ok(())
}
