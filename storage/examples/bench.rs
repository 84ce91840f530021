//! Measures the stages of a pull on this machine, and a whole pull from a registry on loopback.
//!
//! `cargo run --release -p storage --example bench` prints the stages; with an image reference after it, it pulls that image into a
//! temporary store and removes it again.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for a person at a terminal")]
#![allow(clippy::cast_precision_loss, reason = "megabytes")]

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use sha2::Digest;

const SIZE: usize = 256 << 20;

fn main() {
    match std::env::args().nth(1) {
        Some(image) => pull(&image),
        None => stages(),
    }
}

fn rate(name: &str, bytes: usize, took: Duration) {
    println!(
        "{name:32} {:8.0} MB/s   {:6.0} ms",
        bytes as f64 / 1e6 / took.as_secs_f64(),
        took.as_secs_f64() * 1e3
    );
}

fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

/// Executable code and text, as images hold it.
fn sample() -> Vec<u8> {
    let mut bytes = Vec::new();
    for directory in ["/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share/doc"] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.metadata().is_ok_and(|m| m.is_file()) && bytes.len() < SIZE {
                bytes.extend(std::fs::read(entry.path()).unwrap_or_default());
            }
        }
    }
    bytes.truncate(SIZE);
    bytes
}

fn stages() {
    let plain = sample();
    let n = plain.len();
    println!("sample: {} MB", n / 1_000_000);
    let (_, took) = time(|| ring::digest::digest(&ring::digest::SHA256, &plain));
    rate("sha256, ring", n, took);
    let (_, took) = time(|| sha2::Sha256::digest(&plain));
    rate("sha256, sha2", n, took);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&plain).unwrap();
    let gzip = encoder.finish().unwrap();
    for buffer in [64 << 10, 1 << 20] {
        let (_, took) = time(|| {
            let mut decoder = flate2::bufread::GzDecoder::new(gzip.as_slice());
            let mut piece = vec![0; buffer];
            while decoder.read(&mut piece).unwrap() > 0 {}
        });
        rate(&format!("inflate, zlib-rs, {} KiB pieces", buffer >> 10), n, took);
    }
    let zstd_bytes = zstd::encode_all(plain.as_slice(), 3).unwrap();
    let (_, took) =
        time(|| std::io::copy(&mut zstd::Decoder::new(zstd_bytes.as_slice()).unwrap(), &mut std::io::sink()));
    rate("zstd", n, took);
    let path = std::env::temp_dir().join(format!("storage-bench-{}", std::process::id()));
    let (file, took) = time(|| {
        let mut file = std::fs::File::create(&path).unwrap();
        plain.chunks(1 << 20).for_each(|piece| file.write_all(piece).unwrap());
        file
    });
    rate("write, 1 MiB pieces", n, took);
    let (_, took) = time(|| file.sync_data().unwrap());
    rate("fdatasync of that", n, took);
    std::fs::remove_file(&path).unwrap();
}

fn pull(image: &str) {
    let root = std::env::temp_dir().join(format!("storage-bench-{}", std::process::id()));
    let config = storage::Config {
        root: root.clone(),
        driver: None,
        registry_config: Vec::new(),
        pull_memory: 256 << 20,
        kernel: storage::Kernel::default(),
        keep_blobs: false,
        label: None,
        policy: Vec::new(),
        verifiers: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = storage::Store::open(config).unwrap();
    let progress = || tokio::sync::watch::channel(storage::PullProgress::default()).0;
    let (pulled, took) = time(|| runtime.block_on(store.pull(image, None, progress())));
    let pulled = pulled.unwrap();
    println!(
        "pull, durable   {:8.2} s   {} MB on disk, driver {}",
        took.as_secs_f64(),
        pulled.size / 1_000_000,
        store.driver_name()
    );
    let (_, took) = time(|| runtime.block_on(store.pull(image, None, progress())).unwrap());
    println!("pull again      {:8.1} ms", took.as_secs_f64() * 1e3);
    let (_, took) = time(|| store.mount_image(&pulled.id, "", None).unwrap());
    println!("mount           {:8.2} ms", took.as_secs_f64() * 1e3);
    let (_, took) = time(|| store.prepare(&pulled.id, "c").unwrap());
    println!("prepare         {:8.2} ms", took.as_secs_f64() * 1e3);
    let (_, took) = time(|| store.mount("c", &storage::RootfsOptions::default()).unwrap());
    println!("container mount {:8.2} ms", took.as_secs_f64() * 1e3);
    store.release("c").unwrap();
    let (_, took) = time(|| store.remove(image).unwrap());
    println!("remove          {:8.2} ms", took.as_secs_f64() * 1e3);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("peak memory     {}", peak.trim_start_matches("VmHWM:").trim());
    drop(store);
    std::fs::remove_dir_all(root).unwrap();
}
