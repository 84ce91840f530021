//! `libraries LAYER.tar.gz`: how fast libraries hash and inflate a real layer here, on one processor and on all at once.
//!
//! The backend of flate2 is chosen when this is built. Libraries that inflate into one piece of memory are given the whole layer, which a
//! pull cannot do: they are here for what could be won.

use std::io::Read;
use std::time::Instant;

/// Runs of each, of which the fastest counts.
const ROUNDS: usize = 3;
/// Bytes handled at a time where a library works in pieces, as in a pull.
const PIECE: usize = 1 << 20;

fn main() {
    let path = std::env::args().nth(1).expect("usage: libraries LAYER.tar.gz");
    let packed = std::fs::read(path).expect("the layer");
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut plain).expect("gzip");
    let zstd = zstd::bulk::compress(&plain, 3).expect("zstd");
    println!("{} MB packed, {} MB plain", packed.len() / 1_000_000, plain.len() / 1_000_000);
    hashes(&plain);
    inflaters(&packed, plain.len());
    let n = plain.len();
    measure("zstd 3, pieces", n, || drain(zstd::Decoder::new(zstd.as_slice()).expect("zstd"), n));
}

fn hashes(plain: &[u8]) {
    let n = plain.len();
    measure("sha256: ring", n, || {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        plain.chunks(PIECE).for_each(|piece| hash.update(piece));
        hash.finish().as_ref()[0]
    });
    measure("sha256: aws-lc-rs", n, || {
        let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        plain.chunks(PIECE).for_each(|piece| hash.update(piece));
        hash.finish().as_ref()[0]
    });
    measure("sha256: sha2", n, || {
        use sha2::Digest;
        let mut hash = sha2::Sha256::new();
        plain.chunks(PIECE).for_each(|piece| hash.update(piece));
        hash.finalize()[0]
    });
}

fn inflaters(packed: &[u8], n: usize) {
    let backend = if cfg!(feature = "zlib-rs") {
        "zlib-rs"
    } else if cfg!(feature = "zlib-ng") {
        "zlib-ng (C)"
    } else if cfg!(feature = "zlib") {
        "zlib (C)"
    } else {
        "miniz_oxide"
    };
    measure(&format!("gzip: {backend}, pieces"), n, || {
        drain(flate2::bufread::MultiGzDecoder::new(packed), n)
    });
    measure("gzip: libdeflate (C), whole", n, || {
        let mut out = vec![0; n];
        libdeflater::Decompressor::new().gzip_decompress(packed, &mut out).expect("gzip");
        out[n - 1]
    });
    measure("gzip: zune-inflate, whole", n, || {
        let options = zune_inflate::DeflateOptions::default().set_size_hint(n).set_limit(n + 1);
        let out =
            zune_inflate::DeflateDecoder::new_with_options(packed, options).decode_gzip().expect("gzip");
        out[n - 1]
    });
}

fn drain(mut from: impl Read, expected: usize) -> u8 {
    let (mut piece, mut all) = (vec![0; PIECE], 0);
    loop {
        match from.read(&mut piece).expect("it inflates") {
            0 => break,
            n => all += n,
        }
    }
    assert_eq!(all, expected);
    piece[0]
}

fn measure(name: &str, bytes: usize, work: impl Fn() -> u8 + Sync) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let rate = |threads: usize| {
        let mut best = 0.0_f64;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            std::thread::scope(|scope| {
                (0..threads).for_each(|_| drop(scope.spawn(|| std::hint::black_box(work()))));
            });
            best = best.max(bytes as f64 * threads as f64 / 1e6 / start.elapsed().as_secs_f64());
        }
        best
    };
    println!("| {name} | {:.0} | {:.0} |", rate(1), rate(processors));
}
