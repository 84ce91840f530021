//! Writes an EROFS image that holds names and attributes only; file contents stay in the layers' tars, its extra devices.
//!
//! On-disk format: Linux `fs/erofs/erofs_fs.h`. Block size is 512, the tar's, so a file's contents are one chunk that starts at its
//! block in the tar of layer `k`, device `k + 1`. Layout of the result:
//! ```text
//! 0     nothing        1024  superblock        1152  one device slot of 128 bytes per layer
//! then  inodes of 64 bytes + xattrs + chunk index or symlink target, the root first
//! then  blocks of directories and of targets that do not fit behind their inode
//! ```
//! Every node number is a byte offset divided by 32 (`meta_blkaddr` is 0), so the root's fits its 16 bits: 512 slots end below 2 MiB.

mod image;
mod sparse;
mod xattr;

use std::collections::HashMap;
use std::io::{self, Write};

use crate::tree::{Body, NodeId, Tree};
use image::{BLOCK, Inode, SLOT, SUPER_END};

/// A device of the image: one layer's tar.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    /// Length of the tar in bytes.
    pub(crate) size: u64,
}

/// Where each node goes.
#[derive(Debug)]
struct Layout {
    /// Nodes in order of their inodes, root first, each once however many names it has.
    order: Vec<NodeId>,
    place: HashMap<NodeId, Place>,
    /// First block after the inodes.
    data_block: u64,
    /// All blocks.
    blocks: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    offset: u64,
    links: u32,
    /// First data block of a directory or a long symlink.
    block: u64,
    /// Length of the directory's blocks.
    size: u64,
    /// The symlink's target is behind the inode.
    inline: bool,
}

/// Writes the image of `tree`.
pub(crate) fn write(tree: &Tree, devices: &[Device], out: &mut dyn Write) -> io::Result<()> {
    let layout = plan(tree, devices.len())?;
    let mut at = out_header(tree, &layout, devices, out)?;
    let parents = parents(tree, &layout);
    for id in &layout.order {
        let place = layout.place.get(id).copied().unwrap_or_default();
        pad(out, &mut at, place.offset)?;
        let bytes = inode_bytes(tree, *id, &place)?;
        out.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    for id in &layout.order {
        let place = layout.place.get(id).copied().unwrap_or_default();
        let bytes = match &tree.nodes[*id].body {
            Body::Directory(_) => {
                let parent = parents.get(id).copied().unwrap_or(*id);
                directory_bytes(&directory(tree, *id, parent), &layout)
            }
            Body::Symlink(target) if !place.inline => target.clone(),
            _ => continue,
        };
        pad(out, &mut at, place.block * BLOCK)?;
        out.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    pad(out, &mut at, layout.blocks * BLOCK)
}

fn pad(out: &mut dyn Write, at: &mut u64, to: u64) -> io::Result<()> {
    let gap = to.checked_sub(*at).ok_or_else(|| io::Error::other("erofs layout overlaps"))?;
    io::copy(&mut io::Read::take(io::repeat(0), gap), out)?;
    *at = to;
    Ok(())
}

/// Gives every reachable node its offset, and every directory its blocks.
fn plan(tree: &Tree, devices: usize) -> io::Result<Layout> {
    let mut order = Vec::with_capacity(tree.nodes.len());
    let mut place: HashMap<NodeId, Place> = HashMap::with_capacity(tree.nodes.len());
    let mut stack = vec![0];
    place.insert(0, Place { links: 2, ..Place::default() });
    while let Some(id) = stack.pop() {
        order.push(id);
        let Some(children) = tree.children(id) else { continue };
        for child in children.values() {
            let is_directory = tree.children(*child).is_some();
            let seen = place.contains_key(child);
            let entry = place.entry(*child).or_default();
            entry.links += if is_directory { 2 } else { 1 };
            if !seen {
                stack.push(*child);
            }
            if is_directory && let Some(parent) = place.get_mut(&id) {
                parent.links += 1;
            }
        }
    }
    let mut at = SUPER_END + SLOT * devices as u64;
    for id in &order {
        let body = &tree.nodes[*id].body;
        let head = image::INODE + xattr::size(&tree.nodes[*id].xattrs)?;
        at = at.next_multiple_of(32);
        let Some(place) = place.get_mut(id) else { continue };
        if let Body::Symlink(target) = body {
            // A tail must lie within one block; move on to the next block if that makes it fit.
            let length = target.len() as u64;
            let fits = |at: u64| (at + head) % BLOCK + length <= BLOCK && !(at + head).is_multiple_of(BLOCK);
            if !fits(at) && head + length < BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            place.inline = fits(at);
            place.size = if place.inline { length } else { 0 };
        }
        place.offset = at;
        at += head;
        at = match body {
            Body::File { size: 1.., .. } => at.next_multiple_of(8) + 8,
            Body::Sparse { size, regions, .. } => {
                at.next_multiple_of(8) + 8 * sparse::Chunks::of(*size, regions)?.count()
            }
            _ => at + place.size,
        };
    }
    let data_block = at.div_ceil(BLOCK);
    let mut block = data_block;
    for id in &order {
        let size = match &tree.nodes[*id].body {
            Body::Directory(_) => directory_size(tree, *id),
            Body::Symlink(target) => target.len() as u64,
            _ => continue,
        };
        let Some(place) = place.get_mut(id) else { continue };
        if !place.inline {
            place.block = block;
            place.size = size;
            block += size.div_ceil(BLOCK);
        }
    }
    Ok(Layout { order, place, data_block, blocks: block })
}

/// The parent of each directory.
fn parents(tree: &Tree, layout: &Layout) -> HashMap<NodeId, NodeId> {
    let mut parents = HashMap::new();
    for id in &layout.order {
        for child in tree.children(*id).into_iter().flat_map(|c| c.values()) {
            if tree.children(*child).is_some() {
                parents.insert(*child, *id);
            }
        }
    }
    parents
}

// === directories ===

type Names<'a> = Vec<(&'a [u8], NodeId, u8)>;

/// Names of a directory in byte order, `.` and `..` in their places.
fn directory(tree: &Tree, id: NodeId, parent: NodeId) -> Names<'_> {
    let mut names: Names<'_> = vec![(b".", id, 2), (b"..", parent, 2)];
    let children = tree.children(id).into_iter().flatten();
    names.extend(children.map(|(name, child)| (&**name, *child, file_type(&tree.nodes[*child].body))));
    names.sort_unstable_by(|a, b| a.0.cmp(b.0));
    names
}

/// `EROFS_FT_*`.
fn file_type(body: &Body) -> u8 {
    match body {
        Body::File { .. } | Body::Sparse { .. } => 1,
        Body::Directory(_) => 2,
        Body::Char(..) => 3,
        Body::Block(..) => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
    }
}

/// Splits names over blocks: 12 bytes and the name each, a block holds whole entries.
fn blocks<'a, 'b>(names: &'b [(&'a [u8], NodeId, u8)]) -> Vec<&'b [(&'a [u8], NodeId, u8)]> {
    let (mut blocks, mut start, mut used) = (Vec::new(), 0, 0);
    for (at, (name, ..)) in names.iter().enumerate() {
        let need = 12 + name.len() as u64;
        if used + need > BLOCK {
            blocks.push(&names[start..at]);
            (start, used) = (at, 0);
        }
        used += need;
    }
    blocks.push(&names[start..]);
    blocks
}

fn block_length(names: &[(&[u8], NodeId, u8)]) -> u64 {
    names.iter().map(|(name, ..)| 12 + name.len() as u64).sum()
}

/// Length of the directory: whole blocks, the last one only as far as it is used.
fn directory_size(tree: &Tree, id: NodeId) -> u64 {
    let names = directory(tree, id, id);
    let blocks = blocks(&names);
    let last = blocks.last().map_or(0, |names| block_length(names));
    (blocks.len() as u64 - 1) * BLOCK + last
}

fn directory_bytes(names: &[(&[u8], NodeId, u8)], layout: &Layout) -> Vec<u8> {
    let mut out = Vec::new();
    for block in blocks(names) {
        let start = out.len().next_multiple_of(512);
        out.resize(start, 0);
        let mut name_at = 12 * block.len();
        for (name, id, kind) in block {
            let place = layout.place.get(id).copied().unwrap_or_default();
            out.extend_from_slice(&(place.offset / 32).to_le_bytes());
            // At most 512, by the block size.
            out.extend_from_slice(&u16::try_from(name_at).unwrap_or(0).to_le_bytes());
            out.extend_from_slice(&[*kind, 0]);
            name_at += name.len();
        }
        block.iter().for_each(|(name, ..)| out.extend_from_slice(name));
    }
    out
}

// === inodes ===

fn inode_bytes(tree: &Tree, id: NodeId, place: &Place) -> io::Result<Vec<u8>> {
    let node = &tree.nodes[id];
    let (kind, layout, size, union) = match &node.body {
        Body::Directory(_) => (0o040_000, image::PLAIN, place.size, low32(place.block)?),
        Body::Symlink(target) if place.inline => (0o120_000, image::INLINE, target.len() as u64, 0),
        Body::Symlink(target) => (0o120_000, image::PLAIN, target.len() as u64, low32(place.block)?),
        Body::File { size: 0, .. } => (0o100_000, image::PLAIN, 0, 0),
        Body::File { size, .. } => (0o100_000, image::CHUNKED, *size, image::chunk_format(*size)?),
        Body::Char(major, minor) => (0o020_000, image::PLAIN, 0, image::device_number(*major, *minor)),
        Body::Block(major, minor) => (0o060_000, image::PLAIN, 0, image::device_number(*major, *minor)),
        Body::Fifo => (0o010_000, image::PLAIN, 0, 0),
        Body::Sparse { size: 0, .. } => (0o100_000, image::PLAIN, 0, 0),
        Body::Sparse { size, regions, .. } => {
            (0o100_000, image::CHUNKED, *size, sparse::Chunks::of(*size, regions)?.format())
        }
    };
    let inode = Inode {
        layout,
        xattr_count: xattr::count(&node.xattrs)?,
        mode: kind | node.mode,
        size,
        union,
        number: low32(place.offset / 32)?,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        mtime_nsec: node.mtime_nsec,
        links: place.links,
    };
    let mut bytes = inode.bytes();
    xattr::append(&node.xattrs, &mut bytes)?;
    match &node.body {
        Body::Symlink(target) if place.inline => bytes.extend_from_slice(target),
        Body::File { layer, offset, size: 1.. } => {
            // Offsets are from the start of the image, inodes are 32-aligned: aligning here is aligning there.
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes.extend_from_slice(&image::chunk_index(*layer, *offset)?);
        }
        Body::Sparse { layer, size: size @ 1.., regions } => {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            sparse::Chunks::of(*size, regions)?.append(*layer, regions, &mut bytes)?;
        }
        _ => {}
    }
    Ok(bytes)
}

fn low32(value: u64) -> io::Result<u32> {
    u32::try_from(value)
        .map_err(|_| io::Error::other("the image's metadata is larger than EROFS can address"))
}

/// Superblock and device slots; returns how many bytes that was.
fn out_header(tree: &Tree, layout: &Layout, devices: &[Device], out: &mut dyn Write) -> io::Result<u64> {
    let root = layout.place.get(&0).copied().unwrap_or_default();
    debug_assert!(!tree.nodes.is_empty() && layout.data_block <= layout.blocks);
    let header = image::header(root.offset / 32, layout.order.len() as u64, low32(layout.blocks)?, devices)?;
    out.write_all(&header)?;
    Ok(header.len() as u64)
}
