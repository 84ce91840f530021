//! One entry of a layer, and the file that keeps a layer's entries.
//!
//! Format of `entries` (version 2, little endian): `BERTHENT`, u32 version, u64 count, the records, sha256 of all before it.
//! A record: u8 kind, u64 offset, u32 mode, u32 uid, u32 gid, i64 mtime, u32 nanoseconds, path, xattr count and pairs, then by kind. Byte strings
//! are u32 length and bytes. Owned by this module.

use crate::digest::Hasher;

/// Longest path in a layer, in bytes.
pub(super) const PATH_MAX: usize = 4096;
/// Longest component of a path, in bytes.
pub(super) const NAME_MAX: usize = 255;

const MAGIC: &[u8; 8] = b"BERTHENT";
const VERSION: u32 = 2;
const SUM: usize = 71;

/// A stored stretch of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// Where in the tar.
    pub stored: u64,
    /// How long.
    pub length: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file whose contents are `size` bytes at `offset` of the layer's tar.
    File {
        /// Offset in the tar, a multiple of 512.
        offset: u64,
        /// Size in bytes.
        size: u64,
    },
    /// A file with holes.
    Sparse {
        /// Apparent size in bytes.
        size: u64,
        /// Stored stretches, ascending.
        regions: Vec<Region>,
    },
    /// Another name for `target`, a clean path below the root.
    HardLink {
        /// Path below the root.
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// As stored.
        target: Vec<u8>,
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// Hides this path of the layers below.
    Whiteout,
    /// Hides all children this path has in the layers below.
    Opaque,
}

/// An entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Offset of its first header in the tar, for messages.
    pub at: u64,
    /// Clean path below the root; empty: the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch.
    pub mtime: i64,
    /// And nanoseconds.
    pub mtime_nsec: u32,
    /// Extended attributes, full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Collects entries into the bytes of an `entries` file.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
    count: u64,
}

/// The `entries` file is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the layer's entry list is damaged; remove the image and pull it again")]
pub struct Damaged;

// === impl Writer ===

impl Default for Writer {
    fn default() -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        Self { bytes, count: 0 }
    }
}

impl Writer {
    /// Adds an entry.
    pub fn push(&mut self, entry: &Entry) {
        let out = &mut self.bytes;
        out.push(kind_code(&entry.kind));
        out.extend_from_slice(&entry.at.to_le_bytes());
        for number in [entry.mode, entry.uid, entry.gid] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&entry.mtime.to_le_bytes());
        out.extend_from_slice(&entry.mtime_nsec.to_le_bytes());
        put(out, &entry.path);
        put_length(out, entry.xattrs.len());
        for (name, value) in &entry.xattrs {
            put(out, name);
            put(out, value);
        }
        let mut put_all =
            |numbers: &[u64]| numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        match &entry.kind {
            Kind::File { offset, size } => put_all(&[*offset, *size]),
            Kind::Sparse { size, regions } => {
                put_all(&[*size, regions.len() as u64]);
                regions.iter().for_each(|r| put_all(&[r.offset, r.stored, r.length]));
            }
            Kind::HardLink { target } | Kind::Symlink { target } => put(out, target),
            Kind::Char { major, minor } | Kind::Block { major, minor } => {
                put_all(&[u64::from(*major), u64::from(*minor)]);
            }
            Kind::Directory | Kind::Fifo | Kind::Whiteout | Kind::Opaque => {}
        }
        self.count += 1;
    }

    /// The complete file.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes[12..20].copy_from_slice(&self.count.to_le_bytes());
        let mut hasher = Hasher::sha256();
        hasher.update(&self.bytes);
        self.bytes.extend_from_slice(hasher.finish().as_str().as_bytes());
        self.bytes
    }
}

fn kind_code(kind: &Kind) -> u8 {
    match kind {
        Kind::Directory => 0,
        Kind::File { .. } => 1,
        Kind::Sparse { .. } => 2,
        Kind::HardLink { .. } => 3,
        Kind::Symlink { .. } => 4,
        Kind::Char { .. } => 5,
        Kind::Block { .. } => 6,
        Kind::Fifo => 7,
        Kind::Whiteout => 8,
        Kind::Opaque => 9,
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    // Lengths come from bounded fields (paths 4 KiB, xattrs 1 MiB), far below u32.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

// === reading ===

/// Reads an `entries` file, calling `sink` for each entry in order.
pub fn read<E: From<Damaged>>(file: &[u8], mut sink: impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
    let body_end = file.len().checked_sub(SUM).ok_or(Damaged)?;
    let (body, sum) = file.split_at(body_end);
    let mut hasher = Hasher::sha256();
    hasher.update(body);
    if hasher.finish().as_str().as_bytes() != sum || !body.starts_with(MAGIC) {
        return Err(Damaged.into());
    }
    let mut reader = Reader(&body[8..]);
    if reader.u32()? != VERSION {
        return Err(Damaged.into());
    }
    for _ in 0..reader.u64()? {
        let entry = reader.entry()?;
        sink(entry)?;
    }
    if reader.0.is_empty() { Ok(()) } else { Err(Damaged.into()) }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Damaged> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Damaged)?;
        self.0 = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        self.take(N)?.try_into().map_err(|_| Damaged)
    }
    fn u32(&mut self) -> Result<u32, Damaged> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, Damaged> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn bytes(&mut self) -> Result<Vec<u8>, Damaged> {
        let length = usize::try_from(self.u32()?).map_err(|_| Damaged)?;
        Ok(self.take(length)?.to_vec())
    }
    fn small(&mut self) -> Result<u32, Damaged> {
        u32::try_from(self.u64()?).map_err(|_| Damaged)
    }

    fn entry(&mut self) -> Result<Entry, Damaged> {
        let code = self.array::<1>()?[0];
        let at = self.u64()?;
        let (mode, uid, gid) = (self.u32()?, self.u32()?, self.u32()?);
        let mtime = i64::from_le_bytes(self.array()?);
        let mtime_nsec = self.u32()?;
        let path = self.bytes()?;
        let mut xattrs = Vec::new();
        for _ in 0..self.u32()? {
            xattrs.push((self.bytes()?, self.bytes()?));
        }
        let kind = match code {
            0 => Kind::Directory,
            1 => Kind::File { offset: self.u64()?, size: self.u64()? },
            2 => {
                let (size, count) = (self.u64()?, self.u64()?);
                let mut regions = Vec::new();
                for _ in 0..count {
                    regions.push(Region { offset: self.u64()?, stored: self.u64()?, length: self.u64()? });
                }
                Kind::Sparse { size, regions }
            }
            3 => Kind::HardLink { target: self.bytes()? },
            4 => Kind::Symlink { target: self.bytes()? },
            5 => Kind::Char { major: self.small()?, minor: self.small()? },
            6 => Kind::Block { major: self.small()?, minor: self.small()? },
            7 => Kind::Fifo,
            8 => Kind::Whiteout,
            9 => Kind::Opaque,
            _ => return Err(Damaged),
        };
        Ok(Entry { at, path, kind, mode, uid, gid, mtime, mtime_nsec, xattrs })
    }
}
