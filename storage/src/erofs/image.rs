//! The fixed structures of EROFS: superblock, device slots, inodes, chunk indexes (Linux `fs/erofs/erofs_fs.h`).

use std::io;

use super::Device;

/// Block size, the tar's.
pub(super) const BLOCK: u64 = 512;
/// End of the superblock, where the device slots start.
pub(super) const SUPER_END: u64 = 1152;
/// Size of a device slot.
pub(super) const SLOT: u64 = 128;
/// Size of an extended inode.
pub(super) const INODE: u64 = 64;

/// `EROFS_INODE_FLAT_PLAIN`.
pub(super) const PLAIN: u16 = 0;
/// `EROFS_INODE_FLAT_INLINE`.
pub(super) const INLINE: u16 = 2;
/// `EROFS_INODE_CHUNK_BASED`.
pub(super) const CHUNKED: u16 = 4;

const MAGIC: u32 = 0xE0F5_E1E2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE | EROFS_FEATURE_INCOMPAT_DEVICE_TABLE`.
const INCOMPAT: u32 = 0x4 | 0x8;
/// `EROFS_CHUNK_FORMAT_INDEXES`: an index of 8 bytes per chunk, with a device.
pub(super) const CHUNK_INDEXES: u32 = 0x20;

/// An inode before it is bytes.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) layout: u16,
    pub(super) xattr_count: u16,
    /// Type and permission bits.
    pub(super) mode: u32,
    pub(super) size: u64,
    /// Start block, device number or chunk format.
    pub(super) union: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nsec: u32,
    pub(super) links: u32,
}

impl Inode {
    /// `struct erofs_inode_extended`.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        out.extend_from_slice(&(1 | self.layout << 1).to_le_bytes());
        out.extend_from_slice(&self.xattr_count.to_le_bytes());
        // 16 bits hold type and permissions by construction.
        out.extend_from_slice(&self.mode.to_le_bytes()[..2]);
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.union.to_le_bytes());
        for number in [self.number, self.uid, self.gid] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.mtime.to_le_bytes());
        out.extend_from_slice(&self.mtime_nsec.to_le_bytes());
        out.extend_from_slice(&self.links.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        out
    }
}

/// Everything before the inodes.
pub(super) fn header(root: u64, inodes: u64, blocks: u32, devices: &[Device]) -> io::Result<Vec<u8>> {
    let too_many = |_| io::Error::other("too many layers for one EROFS image");
    let mut out = vec![0; 1024];
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 8]); // checksum, compatible features
    out.extend_from_slice(&[9, 0]); // 512-byte blocks, no superblock extension
    out.extend_from_slice(&u16::try_from(root).map_err(too_many)?.to_le_bytes());
    out.extend_from_slice(&inodes.to_le_bytes());
    out.extend_from_slice(&[0; 12]); // build time, unused with extended inodes
    out.extend_from_slice(&blocks.to_le_bytes());
    out.extend_from_slice(&[0; 8]); // metadata and shared xattrs start at block 0
    out.extend_from_slice(&[0; 32]); // uuid, volume name
    out.extend_from_slice(&INCOMPAT.to_le_bytes());
    out.extend_from_slice(&[0; 2]); // compression algorithms
    out.extend_from_slice(&u16::try_from(devices.len()).map_err(too_many)?.to_le_bytes());
    out.extend_from_slice(&u16::try_from(SUPER_END / SLOT).map_err(too_many)?.to_le_bytes());
    out.resize(usize::try_from(SUPER_END).map_err(too_many)?, 0);
    for (number, device) in devices.iter().enumerate() {
        let start = out.len();
        out.extend_from_slice(format!("layer {number}").as_bytes());
        out.resize(start + 64, 0);
        let blocks = u32::try_from(device.size.div_ceil(BLOCK));
        let blocks = blocks.map_err(|_| io::Error::other("a layer is larger than 2 TiB"))?;
        out.extend_from_slice(&blocks.to_le_bytes());
        out.resize(start + 128, 0);
    }
    Ok(out)
}

/// Chunk size as a power of two that covers the whole file, so that one index does.
pub(super) fn chunk_format(size: u64) -> io::Result<u32> {
    let bits = size.div_ceil(BLOCK).next_power_of_two().trailing_zeros();
    if bits > 31 {
        return Err(io::Error::other("a file is larger than 1 TiB"));
    }
    Ok(CHUNK_INDEXES | bits)
}

/// `struct erofs_inode_chunk_index`: contents start at `offset` of the tar of layer `layer`.
pub(super) fn chunk_index(layer: usize, offset: u64) -> io::Result<[u8; 8]> {
    let device =
        u16::try_from(layer + 1).map_err(|_| io::Error::other("too many layers for one EROFS image"))?;
    let block =
        u32::try_from(offset / BLOCK).map_err(|_| io::Error::other("a layer is larger than 2 TiB"))?;
    let mut out = [0; 8];
    out[2..4].copy_from_slice(&device.to_le_bytes());
    out[4..].copy_from_slice(&block.to_le_bytes());
    Ok(out)
}

/// Linux's `new_encode_dev`.
pub(super) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
