//! Sparse files as chunk indexes with holes: each stored stretch of the tar is mapped where it belongs, the rest is `EROFS_NULL_ADDR`.

use std::io;

use super::image::{BLOCK, CHUNK_INDEXES, chunk_index};
use crate::layer::entry::Region;

/// Most chunks of one file: 64 MiB of indexes.
const CHUNKS_MAX: u64 = 8 << 20;
/// An index that maps nothing.
const HOLE: [u8; 8] = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

/// How a sparse file is cut: the largest power of two at which all its stretches start and end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    bits: u32,
    size: u64,
}

impl Chunks {
    pub(super) fn of(size: u64, regions: &[Region]) -> io::Result<Self> {
        // The last stretch may end in the middle of a chunk: there the file ends too.
        let stored = regions.iter().filter(|r| r.length > 0);
        let edges = stored.clone().fold(0, |edges, r| {
            let end = if r.offset + r.length == size { 0 } else { r.length };
            edges | r.offset | end
        });
        let whole = size.next_power_of_two().max(BLOCK).trailing_zeros();
        let bits = if edges == 0 { whole } else { edges.trailing_zeros().min(whole) };
        let aligned = stored.clone().all(|r| r.stored.is_multiple_of(BLOCK));
        if bits < BLOCK.trailing_zeros() || !aligned {
            return Err(io::Error::other(
                "a sparse file whose stretches are not multiples of 512 bytes is not built",
            ));
        }
        let chunks = Self { bits, size };
        if chunks.count() > CHUNKS_MAX || bits > 40 {
            return Err(io::Error::other("a sparse file needs more than 8 million chunks"));
        }
        Ok(chunks)
    }

    pub(super) fn count(&self) -> u64 {
        self.size.div_ceil(1 << self.bits)
    }

    pub(super) fn format(&self) -> u32 {
        CHUNK_INDEXES | (self.bits - BLOCK.trailing_zeros())
    }

    pub(super) fn append(&self, layer: usize, regions: &[Region], out: &mut Vec<u8>) -> io::Result<()> {
        let start = out.len();
        let count = usize::try_from(self.count()).map_err(|_| io::Error::other("too many chunks"))?;
        out.extend(std::iter::repeat_n(HOLE, count).flatten());
        for region in regions {
            let mut at = 0;
            while at < region.length {
                let number = usize::try_from((region.offset + at) >> self.bits).unwrap_or(usize::MAX);
                let slot = start + 8 * number;
                let index = chunk_index(layer, region.stored + at)?;
                out.get_mut(slot..slot + 8)
                    .ok_or_else(|| io::Error::other("a stretch ends behind its file"))?
                    .copy_from_slice(&index);
                at += 1 << self.bits;
            }
        }
        Ok(())
    }
}
