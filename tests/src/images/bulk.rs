//! Big images made of arithmetic: the same bytes at every run, shaped like what images hold.
//!
//! A layer is written as a tar directly, because a hundred thousand files on disk would take longer than the pulls they are for. File
//! contents are stretches of four pools (prose, machine code, tables, noise) that are far longer than gzip's window, so that
//! every stretch is packed on its own. Hashing and packing are left to `sha256sum` and `gzip -6`, which are optimised in every build.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layout::{self, Config, Stored};
use super::{BIG, Image};
use crate::shell;

/// The image of forty layers.
pub const FORTY_LAYERS: &str = "gcr.io/suite/forty:latest";
/// Ten images that have three layers in common and one each of their own: `SHARED` and a digit and `:latest`.
pub const SHARED: &str = "gcr.io/suite/shared";

/// Raised when the bytes change, so that nothing stale is used.
const EDITION: u32 = 2;

/// Files of a layer and what they are like.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Also seeds the contents.
    number: u64,
    files: u64,
    /// Sizes are multiplied by this and divided by 100.
    percent: u64,
}

/// Four layers with 116,000 files between them, 1.9 GB unpacked, 640 MB packed.
///
/// # Errors
/// A file cannot be written, or `gzip` failed.
pub fn big(cache: &Path) -> Result<Image> {
    let shapes: Vec<_> = (0..4).map(|number| Shape { number, files: 29_000, percent: 96 }).collect();
    image(cache, BIG, &shapes)
}

/// Forty layers of 20 MB each.
///
/// # Errors
/// As [`big`].
pub fn forty_layers(cache: &Path) -> Result<Image> {
    let shapes: Vec<_> = (100..140).map(|number| Shape { number, files: 400, percent: 310 }).collect();
    image(cache, FORTY_LAYERS, &shapes)
}

/// Ten images: three layers of 20 MB in common, a small one each of their own.
///
/// # Errors
/// As [`big`].
pub fn shared(cache: &Path) -> Result<Vec<Image>> {
    let common: Vec<_> = (100..103).map(|number| Shape { number, files: 400, percent: 310 }).collect();
    let one = |own: u64| {
        let top = Shape { number: 200 + own, files: 50, percent: 100 };
        let shapes: Vec<_> = common.iter().copied().chain([top]).collect();
        image(cache, &format!("{SHARED}{own}:latest"), &shapes)
    };
    (0..10).map(one).collect()
}

/// Makes the layout below `cache`, if it is not there from an earlier run.
fn image(cache: &Path, name: &str, shapes: &[Shape]) -> Result<Image> {
    let layout = cache.join(format!("{}-{EDITION}", name.replace(['/', ':'], "_")));
    let image = Image { names: vec![name.to_owned()], layout: layout.clone(), format: None };
    if layout.join("index.json").exists() {
        return Ok(image);
    }
    let making = cache.join(format!("making-{}", std::process::id()));
    fs::create_dir_all(making.join("blobs/sha256"))?;
    let pools = Pools::new();
    // As many at a time as there are processors to pack them.
    let mut layers = Vec::new();
    for batch in shapes.chunks(std::thread::available_parallelism()?.get()) {
        let packed = std::thread::scope(|scope| {
            let each: Vec<_> =
                batch.iter().map(|shape| scope.spawn(|| layer(&making, *shape, &pools))).collect();
            each.into_iter().map(|one| one.join().ok().context("a layer's thread ended early")?).collect()
        });
        let packed: Result<Vec<Stored>> = packed;
        layers.extend(packed?);
    }
    layout::finish(&making, &Config { cmd: &["/none"], ..Config::default() }, &layers)?;
    fs::rename(&making, &layout)?;
    Ok(image)
}

fn layer(layout: &Path, shape: Shape, pools: &Pools) -> Result<Stored> {
    let plain = layout.join(format!("{}.tar", shape.number));
    write_tar(&plain, shape, pools)?;
    let diff_id = sha256(&plain)?;
    shell::run(600, "gzip", &["-6", "-n", &plain.display().to_string()])?;
    let packed = layout.join(format!("{}.tar.gz", shape.number));
    let (digest, size) = (sha256(&packed)?, fs::metadata(&packed)?.len());
    fs::rename(&packed, layout.join("blobs").join(digest.replace(':', "/")))?;
    Ok(Stored { media_type: "application/vnd.oci.image.layer.v1.tar+gzip", digest, size, diff_id })
}

fn sha256(path: &Path) -> Result<String> {
    let line = shell::run(120, "sha256sum", &[&path.display().to_string()])?;
    Ok(format!("sha256:{}", line.split_whitespace().next().context("sha256sum says nothing")?))
}

// === the tar ===

fn write_tar(path: &PathBuf, shape: Shape, pools: &Pools) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    let mut random = Random(shape.number + 1);
    let top = format!("usr/lib/part{}", shape.number);
    for file in 0..shape.files {
        let dir = format!("{top}/module-{:03}", file / 60);
        if file % 60 == 0 {
            out.write_all(&header(&format!("{dir}/"), 0, b'5'))?;
        }
        // As in real images: most files are small, most bytes are in large ones.
        let size = match random.below(100) {
            0..60 => random.between(300, 6_000),
            60..90 => random.between(6_000, 24_000),
            90..99 => random.between(24_000, 90_000),
            _ => random.between(90_000, 700_000),
        };
        let size = size * shape.percent / 100;
        out.write_all(&header(&format!("{dir}/file-{file:05}.dat"), size, b'0'))?;
        let mut left = size;
        while left > 0 {
            let part = left.min(random.between(16 << 10, 96 << 10));
            out.write_all(pools.stretch(&mut random, usize::try_from(part)?))?;
            left -= part;
        }
        out.write_all(&[0; 512][..usize::try_from(size.next_multiple_of(512) - size)?])?;
    }
    out.write_all(&[0; 1024])?;
    Ok(out.flush()?)
}

/// A POSIX ustar header (pax(1)).
fn header(name: &str, size: u64, kind: u8) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, if kind == b'5' { "0000755" } else { "0000644" });
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "14000000000");
    put(148, "        ");
    put(257, "ustar\x0000");
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

// === the contents ===

/// Length of a pool in bytes.
const POOL: usize = 4 << 20;

struct Pools {
    prose: Vec<u8>,
    code: Vec<u8>,
    table: Vec<u8>,
    noise: Vec<u8>,
}

impl Pools {
    fn new() -> Self {
        let mut random = Random(7);
        let words: Vec<Vec<u8>> = (0..4096)
            .map(|_| (0..random.between(2, 11)).map(|_| random.letter()).chain([b' ']).collect())
            .collect();
        let prose = fill(|out| out.extend(&words[random.small(4096)]));
        // Frequent instructions with varying operands.
        let codes: Vec<Vec<u8>> =
            (0..600).map(|_| (0..random.between(2, 7)).map(|_| random.byte()).collect()).collect();
        let code = fill(|out| {
            out.extend(&codes[random.small(600)]);
            out.extend((0..random.below(3)).map(|_| random.byte()));
        });
        let mut row = 0_u64;
        let table = fill(|out| {
            row += random.below(9);
            let value = random.below(1000);
            let _ = writeln!(
                out,
                "{{\"id\": {row}, \"name\": \"entry\", \"value\": {value}, \"enabled\": true}},"
            );
        });
        let noise = fill(|out| out.extend(random.next().to_le_bytes()));
        Self { prose, code, table, noise }
    }

    /// Some bytes of one of the pools.
    fn stretch(&self, random: &mut Random, length: usize) -> &[u8] {
        let pool = match random.below(100) {
            0..36 => &self.prose,
            36..56 => &self.code,
            56..98 => &self.table,
            _ => &self.noise,
        };
        let start = random.small(POOL - (1 << 20));
        &pool[start..start + length]
    }
}

fn fill(mut more: impl FnMut(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(POOL + 128);
    while out.len() < POOL {
        more(&mut out);
    }
    out
}

/// Marsaglia's xorshift: no secret, only variety.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low)
    }
    /// Below `end`, the lower the more often.
    fn small(&mut self, end: usize) -> usize {
        let end = end as u64;
        usize::try_from(self.below(end).min(self.below(end))).unwrap_or(0)
    }
    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
    fn letter(&mut self) -> u8 {
        b"etaoinshrdlucmfwypvbgkqjxz"[self.small(26)]
    }
}
