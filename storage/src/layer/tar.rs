//! A tar reader that never sees the stream twice: bytes are pushed in, entries come out, file contents stay where they are.
//!
//! Formats: POSIX pax and ustar, GNU (long names, base-256 numbers), V7 (pax(1), tar(5)). Contents are not copied: an entry says at which
//! offset of the tar they lie, which is how a file system can point into it. Numbers and lengths are checked before they
//! are used; PAX `size` overrides the header for advancing, as POSIX says, and a second, different `size` is refused (the
//! desynchronisation of CVE-2025-62518).

use super::entry::{Entry, Kind, NAME_MAX, PATH_MAX, Region};
use super::pax::{Pax, PaxError};
use super::sparse::{self, SparseMap};

/// Size of a tar block.
pub(super) const BLOCK: usize = 512;
/// Largest PAX header or GNU long name, in bytes.
const META_MAX: u64 = 1 << 20;
/// Most entries in one layer.
const ENTRIES_MAX: u64 = 10_000_000;

/// What is wrong with a tar, at which offset of the uncompressed stream.
#[derive(Debug, thiserror::Error)]
#[error("tar entry at offset {offset}{}", name_hint(.name))]
pub struct TarError {
    /// Offset of the header of the entry, in bytes.
    pub offset: u64,
    /// Name of the entry as far as known.
    pub name: String,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

fn name_hint(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" (\"{name}\")") }
}

/// What can be wrong with a tar entry.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum Problem {
    #[error("header checksum does not match")]
    Checksum,
    #[error("a lone block of zeros is followed by more")]
    LoneZeroBlock,
    #[error("{0} is not a number in its range")]
    Number(&'static str),
    #[error("the stream ends inside it")]
    Truncated,
    #[error("extended header is larger than {META_MAX} bytes")]
    MetaTooLarge,
    #[error("malformed PAX record")]
    Pax(#[from] PaxError),
    #[error("name contains a NUL byte")]
    Nul,
    #[error("path is longer than {PATH_MAX} or a component longer than {NAME_MAX} bytes")]
    NameTooLong,
    #[error("more than {ENTRIES_MAX} entries")]
    TooManyEntries,
    #[error("type {0:?} is not defined for image layers")]
    Type(char),
    #[error("whiteout without a name")]
    EmptyWhiteout,
    #[error("link without a target")]
    EmptyTarget,
    #[error("sparse map is malformed")]
    Sparse,
}

/// Reads pushed bytes as a tar.
#[derive(Debug)]
pub struct Scanner {
    offset: u64,
    header: Box<[u8; BLOCK]>,
    filled: usize,
    state: State,
    /// Offset of the first header of the entry being read, extensions included.
    start: u64,
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    count: u64,
}

#[derive(Debug)]
enum State {
    /// Collecting a header block.
    Header,
    /// One zero block seen.
    ZeroBlock,
    /// Skipping contents and padding.
    Skip { left: u64 },
    /// Collecting an extension of `left` more bytes, padding included.
    Meta { kind: u8, size: usize, left: u64, data: Vec<u8> },
    /// Collecting a sparse map that lies in blocks of its own.
    SparseMap(Box<SparseMap>),
    /// Past the end marker: anything goes, it only counts for the digest.
    End,
}

// === impl Scanner ===

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// At offset 0.
    #[must_use]
    pub fn new() -> Self {
        Self {
            offset: 0,
            header: Box::new([0; BLOCK]),
            filled: 0,
            state: State::Header,
            start: 0,
            pax: None,
            long_name: None,
            long_link: None,
            count: 0,
        }
    }

    /// Takes the next bytes; calls `sink` for each entry completed by them.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(Entry)) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let used = match &mut self.state {
                State::End => bytes.len(),
                State::Skip { left } => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = State::Header;
                    }
                    n
                }
                State::Meta { size, left, data, .. } => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let wanted = size.saturating_sub(data.len()).min(n);
                    data.extend_from_slice(&bytes[..wanted]);
                    *left -= n as u64;
                    n
                }
                State::Header | State::ZeroBlock | State::SparseMap(_) => {
                    let n = (BLOCK - self.filled).min(bytes.len());
                    self.header[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
                    self.filled += n;
                    n
                }
            };
            self.offset += used as u64;
            bytes = &bytes[used..];
            self.settle(sink)?;
        }
        Ok(())
    }

    /// The stream is over; was it whole?
    pub fn finish(&self) -> Result<(), TarError> {
        match self.state {
            State::End | State::ZeroBlock if self.filled == 0 => Ok(()),
            State::End => Ok(()),
            State::Header if self.filled == 0 && self.pax.is_none() && self.long_name.is_none() => Ok(()),
            _ => Err(self.error(Problem::Truncated)),
        }
    }

    /// Acts on whatever the last bytes completed.
    fn settle(&mut self, sink: &mut dyn FnMut(Entry)) -> Result<(), TarError> {
        if let State::Meta { kind, left: 0, data, .. } = &mut self.state {
            let (kind, data) = (*kind, std::mem::take(data));
            self.state = State::Header;
            return self.take_meta(kind, data);
        }
        if self.filled < BLOCK {
            return Ok(());
        }
        self.filled = 0;
        if let State::SparseMap(map) = &mut self.state {
            let done = map.block(&self.header);
            return match done {
                Ok(false) => Ok(()),
                Ok(true) => self.sparse_complete(sink),
                Err(()) => Err(self.error(Problem::Sparse)),
            };
        }
        if self.header.iter().all(|b| *b == 0) {
            self.state = if matches!(self.state, State::ZeroBlock) { State::End } else { State::ZeroBlock };
            return Ok(());
        }
        if matches!(self.state, State::ZeroBlock) {
            return Err(self.error(Problem::LoneZeroBlock));
        }
        self.take_header(sink)
    }

    fn take_meta(&mut self, kind: u8, mut data: Vec<u8>) -> Result<(), TarError> {
        match kind {
            b'x' | b'X' => {
                let pax = Pax::parse(&data).map_err(|e| self.error(e.into()))?;
                self.pax = Some(pax);
            }
            b'L' | b'K' => {
                let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
                data.truncate(end);
                let slot = if kind == b'L' { &mut self.long_name } else { &mut self.long_link };
                *slot = Some(data);
            }
            // A global header sets defaults nobody reads in layers; both big runtimes ignore it.
            _ => {}
        }
        Ok(())
    }

    fn take_header(&mut self, sink: &mut dyn FnMut(Entry)) -> Result<(), TarError> {
        let fresh = self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none();
        if fresh {
            self.start = self.offset - BLOCK as u64;
        }
        if !checksum_ok(&self.header) {
            return Err(self.error(Problem::Checksum));
        }
        let size = number(&self.header[124..136]).and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or_else(|| self.error(Problem::Number("size")))?;
        let kind = self.header[156];
        if matches!(kind, b'x' | b'X' | b'g' | b'L' | b'K') {
            if size > META_MAX {
                return Err(self.error(Problem::MetaTooLarge));
            }
            let size_bytes = usize::try_from(size).map_err(|_| self.error(Problem::MetaTooLarge))?;
            self.state = State::Meta { kind, size: size_bytes, left: padded(size), data: Vec::new() };
            // An empty extension has no bytes to wait for.
            if size == 0 {
                self.state = State::Header;
                return self.take_meta(kind, Vec::new());
            }
            return Ok(());
        }
        let size = self.pax.as_ref().and_then(|p| p.size).unwrap_or(size);
        let stored = if has_contents(kind) { size } else { 0 };
        let left = stored.checked_next_multiple_of(BLOCK as u64);
        let left = left.ok_or_else(|| self.error(Problem::Number("size")))?;
        let map = sparse::detect(&self.header, self.pax.as_ref(), stored)
            .map_err(|()| self.error(Problem::Sparse))?;
        match map {
            Some(map) if map.wants_blocks() => {
                self.state = State::SparseMap(Box::new(map));
                return Ok(());
            }
            Some(map) => self.emit(kind, stored, Some(map), sink)?,
            None => self.emit(kind, stored, None, sink)?,
        }
        self.state = if left == 0 { State::Header } else { State::Skip { left } };
        Ok(())
    }

    /// All map blocks are read; what follows are the stored bytes.
    fn sparse_complete(&mut self, sink: &mut dyn FnMut(Entry)) -> Result<(), TarError> {
        let State::SparseMap(map) = std::mem::replace(&mut self.state, State::Header) else {
            return Ok(());
        };
        let map = *map;
        self.header.copy_from_slice(&map.header[..]);
        let stored = map.stored;
        self.emit(b'0', stored, Some(map), sink)?;
        let left = padded(stored);
        self.state = if left == 0 { State::Header } else { State::Skip { left } };
        Ok(())
    }

    /// Turns the header at hand and its extensions into an entry.
    fn emit(
        &mut self,
        kind: u8,
        size: u64,
        map: Option<SparseMap>,
        sink: &mut dyn FnMut(Entry),
    ) -> Result<(), TarError> {
        let mut pax = self.pax.take().unwrap_or_default();
        let long_name = self.long_name.take();
        let long_link = self.long_link.take();
        if let Some(name) = pax.sparse.name.take() {
            pax.path = Some(name);
        }
        let raw = pax.path.take().or(long_name).unwrap_or_else(|| header_name(&self.header));
        let target = pax.link.take().or(long_link).unwrap_or_else(|| text(&self.header[157..257]).to_vec());
        let name = String::from_utf8_lossy(&raw[..raw.len().min(300)]).into_owned();
        let fail = |problem| TarError { offset: self.start, name: name.clone(), problem };
        self.count += 1;
        if self.count > ENTRIES_MAX {
            return Err(fail(Problem::TooManyEntries));
        }
        let path = clean_path(&raw).map_err(fail)?;
        let is_directory_name = raw.ends_with(b"/");
        let kind = match kind {
            b'5' => Kind::Directory,
            b'0' | 0 | b'7' | b'S' if is_directory_name && map.is_none() => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => self.file_kind(size, map).map_err(fail)?,
            b'1' | b'2' if target.is_empty() => return Err(fail(Problem::EmptyTarget)),
            b'1' | b'2' if target.contains(&0) => return Err(fail(Problem::Nul)),
            b'1' => Kind::HardLink { target: clean_path(&target).map_err(fail)? },
            b'2' if target.len() > PATH_MAX => return Err(fail(Problem::NameTooLong)),
            b'2' => Kind::Symlink { target },
            b'3' | b'4' => {
                let part = |range: std::ops::Range<usize>, what| {
                    number(&self.header[range])
                        .and_then(|n| u32::try_from(n).ok())
                        .ok_or(Problem::Number(what))
                };
                let major = part(329..337, "device major").map_err(fail)?;
                let minor = part(337..345, "device minor").map_err(fail)?;
                if kind == b'3' { Kind::Char { major, minor } } else { Kind::Block { major, minor } }
            }
            b'6' => Kind::Fifo,
            // A volume label or a GNU directory listing carries no file.
            b'V' | b'D' => return Ok(()),
            other => return Err(fail(Problem::Type(char::from(other)))),
        };
        let Some((path, kind)) = whiteout(path, kind).map_err(fail)? else { return Ok(()) };
        let id = |value: Option<u64>, range: std::ops::Range<usize>, what| {
            let value = value.map(i128::from).or_else(|| number(&self.header[range]));
            value.and_then(|n| u32::try_from(n).ok()).filter(|n| *n != u32::MAX).ok_or(Problem::Number(what))
        };
        let (mtime, mtime_nsec) = match pax.mtime {
            Some(time) => time,
            None => (clamp(number(&self.header[136..148]).ok_or_else(|| fail(Problem::Number("mtime")))?), 0),
        };
        let mode = number(&self.header[100..108]).ok_or_else(|| fail(Problem::Number("mode")))?;
        sink(Entry {
            at: self.start,
            path,
            kind,
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: id(pax.uid, 108..116, "uid").map_err(fail)?,
            gid: id(pax.gid, 116..124, "gid").map_err(fail)?,
            mtime,
            mtime_nsec,
            xattrs: pax.xattrs,
        });
        Ok(())
    }

    fn file_kind(&self, size: u64, map: Option<SparseMap>) -> Result<Kind, Problem> {
        let Some(map) = map else { return Ok(Kind::File { offset: self.offset, size }) };
        let mut at = self.offset;
        let mut regions = Vec::with_capacity(map.regions.len());
        for (offset, length) in map.regions {
            regions.push(Region { offset, stored: at, length });
            at = at.checked_add(length).ok_or(Problem::Sparse)?;
        }
        Ok(Kind::Sparse { size: map.real_size, regions })
    }

    fn error(&self, problem: Problem) -> TarError {
        TarError { offset: self.start, name: String::new(), problem }
    }
}

// === header fields ===

fn padded(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64)
}

/// Only these carry bytes; for the rest a size is decoration.
fn has_contents(kind: u8) -> bool {
    !matches!(kind, b'1'..=b'6')
}

/// A field up to its NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// Name and, in POSIX ustar, the prefix before it.
fn header_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(&header[..100]);
    let prefix = text(&header[345..500]);
    if &header[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// Octal text, or GNU base-256 with the top bit set (two's complement).
pub(super) fn number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Sign-extend from bit 6 of the first byte.
        let mut value = i128::from(first & 0x7f);
        if first & 0x40 != 0 {
            value -= 0x80;
        }
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return Some(value);
    }
    let is_filler = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !is_filler(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_filler).unwrap_or(digits.len());
    let mut value: i128 = 0;
    for digit in &digits[..end] {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 8)?;
        value = value * 8 + i128::from(digit);
    }
    Some(value)
}

/// The sum of all bytes with the checksum field as spaces; old writers summed signed bytes.
fn checksum_ok(header: &[u8; BLOCK]) -> bool {
    let Some(claimed) = number(&header[148..156]) else { return false };
    let (before, after) = (&header[..148], &header[156..]);
    let unsigned = |bytes: &[u8]| bytes.iter().map(|b| i32::from(*b)).sum::<i32>();
    let signed = |bytes: &[u8]| bytes.iter().map(|b| i32::from(b.cast_signed())).sum::<i32>();
    let spaces = 8 * i32::from(b' ');
    claimed == i128::from(unsigned(before) + unsigned(after) + spaces)
        || claimed == i128::from(signed(before) + signed(after) + spaces)
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// The path below the root: no `/` in front, no `.`, and `..` never leaves the root.
fn clean_path(raw: &[u8]) -> Result<Vec<u8>, Problem> {
    if raw.contains(&0) {
        return Err(Problem::Nul);
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in raw.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part if part.len() > NAME_MAX => return Err(Problem::NameTooLong),
            part => parts.push(part),
        }
    }
    let path = parts.join(&b'/');
    if path.len() > PATH_MAX { Err(Problem::NameTooLong) } else { Ok(path) }
}

/// Reads AUFS-style whiteout names (image-spec layer.md, "Whiteouts"); `None`: an AUFS name without meaning here.
fn whiteout(mut path: Vec<u8>, kind: Kind) -> Result<Option<(Vec<u8>, Kind)>, Problem> {
    let base = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    let Some(name) = path[base..].strip_prefix(b".wh.") else { return Ok(Some((path, kind))) };
    match name {
        b"" | b"." | b".." => Err(Problem::EmptyWhiteout),
        b".wh..opq" => {
            path.truncate(base.saturating_sub(1));
            Ok(Some((path, Kind::Opaque)))
        }
        name if name.starts_with(b".wh.") => Ok(None),
        name => {
            let name = name.to_vec();
            path.truncate(base);
            path.extend_from_slice(&name);
            Ok(Some((path, Kind::Whiteout)))
        }
    }
}
