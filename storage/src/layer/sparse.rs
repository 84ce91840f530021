//! Sparse files in tars: the old GNU type `S` and the three PAX forms 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").

use super::pax::{Pax, decimal};
use super::tar::{BLOCK, number};

/// Most stored stretches of one file.
const REGIONS_MAX: usize = 10_000;

/// The `GNU.sparse.*` records of a PAX header.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    size: Option<u64>,
    pending: Option<u64>,
    regions: Vec<(u64, u64)>,
    /// The file's own name; the header's is a stand-in.
    pub(super) name: Option<Vec<u8>>,
}

/// A sparse file being described.
#[derive(Debug)]
pub(super) struct SparseMap {
    /// Apparent size.
    pub(super) real_size: u64,
    /// Offset and length of each stored stretch.
    pub(super) regions: Vec<(u64, u64)>,
    /// Bytes stored in the tar after the map.
    pub(super) stored: u64,
    /// The file's header, while map blocks are read over it.
    pub(super) header: Box<[u8; BLOCK]>,
    more: More,
}

#[derive(Debug)]
enum More {
    Nothing,
    /// Old GNU: further blocks of 21 pairs.
    OldBlocks,
    /// PAX 1.0: decimal lines in front of the contents.
    Lines {
        text: Vec<u8>,
    },
}

impl PaxSparse {
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" => self.pending = Some(decimal(value)?),
            b"numbytes" => self.regions.push((self.pending.take()?, decimal(value)?)),
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|b| *b == b',').map(decimal).collect();
                let numbers = numbers.filter(|n| n.len() % 2 == 0)?;
                self.regions = numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect();
            }
            _ => {}
        }
        (self.regions.len() <= REGIONS_MAX).then_some(())
    }
}

/// Whether the header describes a sparse file of `stored` bytes in the tar.
pub(super) fn detect(header: &[u8; BLOCK], pax: Option<&Pax>, stored: u64) -> Result<Option<SparseMap>, ()> {
    let map =
        |real_size, regions, more| SparseMap { real_size, regions, stored, header: Box::new(*header), more };
    if header[156] == b'S' {
        let real_size = field(&header[483..495])?;
        let mut old = map(real_size, Vec::new(), More::Nothing);
        old.pairs(&header[386..482])?;
        if header[482] != 0 {
            old.more = More::OldBlocks;
            return Ok(Some(old));
        }
        return old.checked().map(Some);
    }
    let Some(sparse) = pax.map(|p| &p.sparse) else { return Ok(None) };
    let Some(size) = sparse.size else { return Ok(None) };
    if !matches!(header[156], b'0' | 0) {
        return Err(());
    }
    match (sparse.major, sparse.minor) {
        (Some(1), Some(0)) => Ok(Some(map(size, Vec::new(), More::Lines { text: Vec::new() }))),
        (None | Some(0), _) => map(size, sparse.regions.clone(), More::Nothing).checked().map(Some),
        _ => Err(()),
    }
}

fn field(bytes: &[u8]) -> Result<u64, ()> {
    number(bytes).and_then(|n| u64::try_from(n).ok()).ok_or(())
}

impl SparseMap {
    /// The map goes on in blocks of its own.
    pub(super) fn wants_blocks(&self) -> bool {
        !matches!(self.more, More::Nothing)
    }

    /// Takes the next map block; `true`: the map is complete.
    pub(super) fn block(&mut self, block: &[u8; BLOCK]) -> Result<bool, ()> {
        let complete = match &mut self.more {
            More::Nothing => true,
            More::OldBlocks => {
                self.pairs(&block[..504])?;
                block[504] == 0
            }
            More::Lines { text } => {
                text.extend_from_slice(block);
                self.stored = self.stored.checked_sub(BLOCK as u64).ok_or(())?;
                let Some(regions) = lines(text)? else {
                    // 20 digits a line, two lines a stretch, is the most a sane map needs.
                    return if text.len() > REGIONS_MAX * 42 { Err(()) } else { Ok(false) };
                };
                self.regions = regions;
                true
            }
        };
        if complete {
            self.check()?;
        }
        Ok(complete)
    }

    fn pairs(&mut self, bytes: &[u8]) -> Result<(), ()> {
        for pair in bytes.chunks_exact(24) {
            if pair[0] == 0 || pair[12] == 0 {
                break;
            }
            self.regions.push((field(&pair[..12])?, field(&pair[12..])?));
        }
        if self.regions.len() <= REGIONS_MAX { Ok(()) } else { Err(()) }
    }

    fn checked(self) -> Result<Self, ()> {
        self.check()?;
        Ok(self)
    }

    /// Ascending, inside the file, and exactly the stored bytes.
    fn check(&self) -> Result<(), ()> {
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (offset, length) in &self.regions {
            if *offset < end {
                return Err(());
            }
            end = offset.checked_add(*length).ok_or(())?;
            sum = sum.checked_add(*length).ok_or(())?;
        }
        if end <= self.real_size && sum == self.stored { Ok(()) } else { Err(()) }
    }
}

/// `count\n(offset\nlength\n)*`, once all lines are there.
fn lines(text: &[u8]) -> Result<Option<Vec<(u64, u64)>>, ()> {
    let mut lines = text.split_inclusive(|b| *b == b'\n');
    let mut next = || match lines.next() {
        Some(line) => match line.strip_suffix(b"\n") {
            Some(digits) => decimal(digits).map(Some).ok_or(()),
            None => Ok(None),
        },
        None => Ok(None),
    };
    let Some(count) = next()? else { return Ok(None) };
    let count = usize::try_from(count).ok().filter(|n| *n <= REGIONS_MAX).ok_or(())?;
    let mut regions = Vec::with_capacity(count);
    for _ in 0..count {
        let (Some(offset), Some(length)) = (next()?, next()?) else { return Ok(None) };
        regions.push((offset, length));
    }
    Ok(Some(regions))
}
