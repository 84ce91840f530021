//! Parsers of hostile bytes, each with what must hold whatever the bytes are: called by the fuzz targets in `storage/fuzz` and, on
//! random bytes, by the tests below. Every function panics when its property does not hold.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a panic is how a property fails"
)]

use crate::digest::Digest;
use crate::erofs::{self, Device};
use crate::layer::LayerError;
use crate::layer::decode::decode;
use crate::layer::entry::{self, Damaged, Entry, Kind};
use crate::layer::tar::{Scanner, TarError};
use crate::manifest::{self, Config, Parsed, Platform};
use crate::tree::{Body, Tree};

/// Most bytes a blob may be inflated to here.
const INFLATED_MAX: usize = 1 << 20;

/// A tar: the same entries however it is cut; clean paths; contents inside it; and an entry list that reads back.
pub fn tar(bytes: &[u8]) {
    let whole = scan(bytes, bytes.len().max(1));
    let cut = 1 + usize::from(bytes.first().copied().unwrap_or(0)) * 3;
    let pieces = scan(bytes, cut);
    assert_eq!(whole.0, pieces.0, "pieces of {cut} bytes give other entries");
    assert_eq!(whole.1.is_ok(), pieces.1.is_ok());
    let (entries, end) = whole;
    for entry in &entries {
        assert!(entry.path.len() <= 4096 && !entry.path.contains(&0));
        let clean = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && part.len() <= 255;
        assert!(entry.path.is_empty() || entry.path.split(|b| *b == b'/').all(clean), "{entry:?}");
        assert!(entry.mode & !0o7777 == 0 && entry.mtime_nsec < 1_000_000_000, "{entry:?}");
        if end.is_ok() {
            inside(entry, bytes.len() as u64);
        }
    }
    let mut list = entry::Writer::default();
    entries.iter().for_each(|entry| list.push(entry));
    let mut again = Vec::new();
    entry::read::<Damaged>(&list.finish(), |entry| {
        again.push(entry);
        Ok(())
    })
    .unwrap();
    assert_eq!(entries, again);
}

/// What a file system would point at is in the tar.
fn inside(entry: &Entry, length: u64) {
    match &entry.kind {
        Kind::File { offset, size } => {
            assert!(*size == 0 || offset % 512 == 0 && offset + size <= length, "{entry:?}");
        }
        Kind::Sparse { size, regions } => {
            let mut at = 0;
            for region in regions {
                assert!(region.offset >= at && region.stored + region.length <= length, "{entry:?}");
                at = region.offset + region.length;
            }
            assert!(at <= *size, "{entry:?}");
        }
        _ => {}
    }
}

/// A PAX header with these bytes, and a file that it describes.
pub fn pax(bytes: &[u8]) {
    let mut archive = header(b'x', bytes.len());
    archive.extend_from_slice(bytes);
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive.extend_from_slice(&header(b'0', 0));
    archive.extend_from_slice(&[0; 1024]);
    tar(&archive);
}

/// Blobs of any compression: pieces of any length give the same bytes, or fail alike.
pub fn blob(bytes: &[u8]) {
    let (large, small) = (inflate(bytes, 64 << 10), inflate(bytes, 4096));
    assert_eq!(large.is_ok(), small.is_ok());
    if let (Ok(large), Ok(small)) = (large, small) {
        assert!(large == small, "other bytes");
    }
}

/// Manifests, indexes and configurations: what is accepted is bounded and can be asked everything.
pub fn manifest(bytes: &[u8]) {
    let digest = Digest::of(bytes);
    let config = Config::parse(bytes, &digest);
    if let Ok(config) = &config {
        let _ = config.process();
    }
    for header in ["", manifest::OCI_INDEX, manifest::OCI_MANIFEST, manifest::DOCKER_MANIFEST] {
        match manifest::parse(bytes, &digest, header) {
            Ok(Parsed::Manifest(manifest)) => {
                assert!(manifest.layers.len() <= 512 && manifest.digest == digest);
                let _ = manifest.check_image();
                if let Ok(diff_ids) =
                    config.as_ref().map_err(drop).and_then(|c| manifest.diff_ids(c).map_err(drop))
                {
                    assert_eq!(diff_ids.len(), manifest.layers.len());
                }
            }
            Ok(Parsed::Index(entries)) => {
                if let Ok(chosen) = manifest::select(&entries, &Platform::host(), &digest) {
                    assert!(entries.iter().any(|entry| entry.digest == chosen.digest));
                }
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

/// A file of an image written by [`image`], as a reader must see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Absolute path.
    pub path: String,
    /// With the type's bits (`S_IFMT`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes of a file's contents or a link's target; 0 for all others.
    pub size: u64,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
}

/// Merges layers that the bytes describe (0xff parts them; four bytes are an entry) and writes the EROFS image; returns it with the number
/// of layers and what is in it. `None`: the layers do not apply.
#[must_use]
pub fn image(bytes: &[u8]) -> Option<(Vec<u8>, usize, Vec<Written>)> {
    let mut tree = Tree::new();
    let mut devices = Vec::new();
    for layer in bytes.split(|byte| *byte == 0xff).take(4) {
        tree.apply(layer.chunks_exact(4).map(described).collect()).ok()?;
        devices.push(Device { size: 1 << 20 });
    }
    let mut image = Vec::new();
    erofs::write(&tree, &devices, &mut image).unwrap();
    assert!(image.len().is_multiple_of(512));
    let mut files = Vec::new();
    list(&tree, 0, "", &mut files);
    Some((image, devices.len(), files))
}

/// An entry of four bytes: what it is, where, and numbers.
fn described(bytes: &[u8]) -> Entry {
    let (what, place, other, number) = (bytes[0], bytes[1], bytes[2], bytes[3]);
    let kind = match what % 10 {
        0 | 1 => Kind::Directory,
        2 | 3 => Kind::File { offset: 512 * u64::from(other), size: u64::from(number) * 37 },
        4 => Kind::Symlink { target: "t/".repeat(usize::from(number) * 8 + 1).into_bytes() },
        5 => Kind::HardLink { target: path(other) },
        6 => Kind::Char { major: u32::from(other), minor: u32::from(number) },
        7 => Kind::Fifo,
        8 => Kind::Whiteout,
        _ => Kind::Opaque,
    };
    let xattrs =
        (0..number % 4).map(|n| (format!("user.x{n}").into_bytes(), vec![other; usize::from(number)]));
    Entry {
        at: 0,
        path: path(place),
        kind,
        mode: u32::from(other) << 4 | 0o100,
        uid: u32::from(number) << 16,
        gid: u32::from(other),
        mtime: i64::from(number) - 100,
        mtime_nsec: u32::from(other),
        xattrs: xattrs.collect(),
    }
}

/// One of 256 paths of up to three components, some of them long.
fn path(number: u8) -> Vec<u8> {
    let mut parts = Vec::new();
    for part in [number & 7, number >> 3 & 7, number >> 6] {
        if part > 0 {
            let letter = char::from(b'a' + part);
            parts.push(letter.to_string().repeat(if part == 7 { 200 } else { usize::from(part) }));
        }
    }
    if parts.is_empty() { b"r".to_vec() } else { parts.join("/").into_bytes() }
}

fn list(tree: &Tree, id: usize, path: &str, out: &mut Vec<Written>) {
    let node = &tree.nodes[id];
    let (kind, size, target) = match &node.body {
        Body::Directory(_) => (0o040_000, 0, Vec::new()),
        Body::File { size, .. } | Body::Sparse { size, .. } => (0o100_000, *size, Vec::new()),
        Body::Symlink(target) => (0o120_000, target.len() as u64, target.clone()),
        Body::Char(..) => (0o020_000, 0, Vec::new()),
        Body::Block(..) => (0o060_000, 0, Vec::new()),
        Body::Fifo => (0o010_000, 0, Vec::new()),
    };
    let shown = if path.is_empty() { "/" } else { path }.to_owned();
    out.push(Written { path: shown, mode: kind | node.mode, uid: node.uid, gid: node.gid, size, target });
    for (name, child) in tree.children(id).into_iter().flatten() {
        list(tree, *child, &format!("{path}/{}", String::from_utf8_lossy(name)), out);
    }
}

fn scan(bytes: &[u8], piece: usize) -> (Vec<Entry>, Result<(), TarError>) {
    let (mut scanner, mut entries) = (Scanner::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        if let Err(error) = scanner.push(piece, &mut |entry| entries.push(entry)) {
            return (entries, Err(error));
        }
    }
    let end = scanner.finish();
    (entries, end)
}

fn inflate(bytes: &[u8], piece: usize) -> Result<Vec<u8>, LayerError> {
    let mut out = Vec::new();
    decode(bytes, piece, &mut |buffer| {
        out.extend_from_slice(buffer.slice());
        if out.len() > INFLATED_MAX { Err(LayerError::Thread) } else { Ok(buffer) }
    })?;
    Ok(out)
}

/// A ustar header of a file `f`.
fn header(kind: u8, size: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[0] = b'f';
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[148..156].fill(b' ');
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tars_hold_for_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            super::tar(&bytes);
        }

        #[test]
        fn pax_headers_hold_for_any_records(
            records in proptest::collection::vec(
                ("(path|linkpath|size|uid|mtime|SCHILY.xattr.user.a|GNU.sparse.(major|minor|name|realsize|map|size))", "[0-9./-]{0,12}|\\PC{0,6}"), 0..5),
            wrong in 0..4_usize,
        ) {
            let mut bytes = Vec::new();
            for (key, value) in records {
                let body = format!(" {key}={value}\n");
                let length = body.len() + (body.len() + 2).to_string().len() + wrong / 3;
                bytes.extend_from_slice(format!("{length}{body}").as_bytes());
            }
            super::pax(&bytes);
        }

        #[test]
        fn blobs_hold_for_any_framing(
            members in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..4),
            flip in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(), damaged: bool,
        ) {
            let mut bytes: Vec<u8> = members.iter().flat_map(|member| {
                use std::io::Write;
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(member).unwrap();
                out.finish().unwrap()
            }).collect();
            if damaged && !bytes.is_empty() {
                let at = flip.index(bytes.len());
                bytes[at] ^= 1;
                bytes.truncate(cut.index(bytes.len()) + 1);
            }
            super::blob(&bytes);
        }

        #[test]
        fn manifests_hold_for_any_text(size: u64, kind in "(application/vnd.oci.image.(manifest|index|config).v1\\+json|\\PC{0,4})",
            digest in "sha256:([0-9a-f]{64}|[0-9a-f]{0,3})|\\PC{0,5}", list in "(layers|manifests|config|rootfs)") {
            let descriptor = serde_json::json!({ "mediaType": kind, "digest": digest, "size": size });
            let document = serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "config": descriptor, list: [descriptor],
                "rootfs": { "type": "layers", "diff_ids": [digest] } });
            super::manifest(document.to_string().as_bytes());
        }

        #[test]
        fn images_hold_for_any_layers(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = super::image(&bytes);
        }
    }
}
