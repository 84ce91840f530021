//! `tests/bench pull`: big images from the loopback registry, by each contender in turn.
//!
//! Three images: one of four large layers, one of forty middling ones, and ten that share layers and are asked for all at once; and what
//! the first container of an image pays ([`cold`]). `BENCH_PULLS` names some of them (`big forty shared cold`). Times are the client's;
//! durable means that the file system's `sync` right after the answer is counted too, so that nobody can defer the work. What went over the wire is read from the registry's access log.

mod cold;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::action;
use super::contender::Contender;
use super::run::Results;
use super::{machine, remount};
use crate::images::{self, BIG, FORTY_LAYERS, Image, SHARED};
use crate::report::line;
use crate::shell;
use crate::suites::wait;
use crate::world::World;

/// What Berth may take in memory during a pull, in MiB.
const MEMORY_MIB: f64 = 350.0;
/// Containers started of an image in each state of its memory.
const STARTS: usize = 15;

/// Pulls by every contender.
///
/// # Errors
/// A pull fails or is not durable, Berth takes more memory than it may, or fetches a blob twice.
pub fn all(world: &World, contenders: &mut [Contender], rounds: usize) -> Result<Results> {
    let cache = std::env::var("BENCH_IMAGES").context("BENCH_IMAGES is not set: use tests/bench")?;
    let cache = Path::new(&cache);
    let asked = std::env::var("BENCH_PULLS").unwrap_or_else(|_| "big forty shared cold".to_owned());
    let wants = |name: &str| asked.split_whitespace().any(|word| word == name);
    let big = wants("big").then(|| images::big(cache)).transpose()?;
    let forty = wants("forty").then(|| images::forty_layers(cache)).transpose()?;
    let shared = wants("shared").then(|| images::shared(cache)).transpose()?.unwrap_or_default();
    for image in big.iter().chain(&forty).chain(&shared) {
        world.registry()?.push(image)?;
        line(format_args!("{}: {} MB packed", image.names[0], packed(image)? / 1_000_000));
    }
    let log = world.registry()?.log.clone();
    let mut results = Results::new();
    for round in 0..rounds {
        line(format_args!("round {} of {rounds}", round + 1));
        for contender in &*contenders {
            let mut bench = Bench { contender, results: &mut results, log: &log };
            let whose = || contender.name.clone();
            if let Some(big) = &big {
                bench.one("the big image", BIG, packed(big)?).with_context(whose)?;
            }
            if let Some(forty) = &forty {
                bench.one("40 layers of 20 MB", FORTY_LAYERS, packed(forty)?).with_context(whose)?;
            }
            if !shared.is_empty() {
                bench.ten(&shared).with_context(whose)?;
            }
        }
    }
    if let Some(big) = &big {
        remount::all(contenders, big)?;
    }
    for contender in contenders.iter().filter(|_| wants("cold")) {
        cold::all(contender, &mut results, STARTS).with_context(|| contender.name.clone())?;
    }
    Ok(results)
}

/// One contender under measurement.
struct Bench<'a> {
    contender: &'a Contender,
    results: &'a mut Results,
    log: &'a Path,
}

impl Bench<'_> {
    fn push(&mut self, row: &str, value: f64) {
        line(format_args!("  {:16} {row} {value:.1}", self.contender.name));
        let row = self.results.entry(row.to_owned()).or_default();
        row.entry(self.contender.name.clone()).or_default().push(value);
    }

    /// One image: pulled, flushed, removed.
    fn one(&mut self, what: &str, image: &str, size: u64) -> Result<()> {
        let pid = self.contender.pid();
        let from = fs::metadata(self.log)?.len();
        machine::forget_peak(pid)?;
        self.flush()?;
        let before = machine::process_seconds(pid)?;
        let start = Instant::now();
        wait(async { Ok(self.contender.client().await?.pull(image).await.map(drop)?) })?;
        let returned = milliseconds(start);
        self.flush()?;
        let durable = milliseconds(start);
        let (cpu, peak) = (machine::process_seconds(pid)? - before, machine::peak(pid)?);
        self.push(&format!("pull of {what}, durable: ms"), durable);
        self.push(&format!("pull of {what}, left unwritten at return: ms"), durable - returned);
        self.push(&format!("pull of {what}, the daemon's processor time: ms"), cpu * 1e3);
        self.push(&format!("pull of {what}, the daemon's peak memory: MiB"), peak);
        self.wire(what, from, size)?;
        let removed = wait(async { action::remove_image(&mut self.contender.client().await?, image).await })?;
        self.push(&format!("RemoveImage of {what}: ms"), removed);
        ensure!(!self.is_berth() || peak <= MEMORY_MIB, "{peak:.0} MiB of memory for {what}");
        Ok(())
    }

    /// Ten images with common layers at once.
    fn ten(&mut self, images: &[Image]) -> Result<()> {
        let from = fs::metadata(self.log)?.len();
        self.flush()?;
        let start = Instant::now();
        wait(async {
            let mut tasks = tokio::task::JoinSet::new();
            for number in 0..images.len() {
                let mut client = self.contender.client().await?;
                tasks.spawn(async move { client.pull(&format!("{SHARED}{number}:latest")).await });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(())
        })?;
        self.flush()?;
        self.push("10 images that share layers, at once, durable: ms", milliseconds(start));
        let mut blobs = std::collections::BTreeMap::new();
        for image in images {
            blobs.extend(layers(image)?);
        }
        self.wire("10 images that share layers", from, blobs.values().sum())?;
        for number in 0..images.len() {
            let name = format!("{SHARED}{number}:latest");
            wait(async { action::remove_image(&mut self.contender.client().await?, &name).await })?;
        }
        Ok(())
    }

    /// What the registry sent since `from` of its log, as a share of what there is to send.
    fn wire(&mut self, what: &str, from: u64, size: u64) -> Result<()> {
        let log = fs::read_to_string(self.log)?;
        let sent = sent(log.get(usize::try_from(from)?..).unwrap_or_default());
        #[expect(clippy::cast_precision_loss, reason = "a percentage")]
        let share = sent as f64 * 100.0 / size as f64;
        self.push(&format!("{what}: bytes on the wire, % of the blobs"), share);
        ensure!(
            !self.is_berth() || share < 102.0,
            "{what}: {sent} bytes on the wire for {size} bytes of blobs"
        );
        ensure!(
            share > 99.0,
            "{what}: {sent} bytes on the wire for {size} bytes of blobs: is this the right log?"
        );
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        shell::run(300, "sync", &["-f", &self.contender.dir.display().to_string()]).map(drop)
    }

    fn is_berth(&self) -> bool {
        self.contender.name == "berth"
    }
}

/// Bytes of blobs in lines of the registry's access log, which is in Apache's combined format.
fn sent(log: &str) -> u64 {
    let blob = |line: &str| {
        let (_, rest) = line.split_once("\"GET ")?;
        let (request, rest) = rest.split_once("\" ")?;
        let mut numbers = rest.split_whitespace();
        let is_fine = request.contains("/blobs/sha256:") && numbers.next()?.starts_with("20");
        is_fine.then(|| numbers.next()?.parse::<u64>().ok()).flatten()
    };
    log.lines().filter_map(blob).sum()
}

/// Bytes of all layers.
fn packed(image: &Image) -> Result<u64> {
    Ok(layers(image)?.into_iter().map(|(_, size)| size).sum())
}

/// Digests and sizes of the layers of an image of one platform.
pub(super) fn layers(image: &Image) -> Result<Vec<(String, u64)>> {
    let read = |path: &Path| -> Result<serde_json::Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let index = read(&image.layout.join("index.json"))?;
    let digest = index["manifests"][0]["digest"].as_str().context("no digest")?;
    let manifest = read(&image.layout.join("blobs").join(digest.replace(':', "/")))?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    let one =
        |layer: &serde_json::Value| Some((layer["digest"].as_str()?.to_owned(), layer["size"].as_u64()?));
    layers.iter().map(|layer| one(layer).context("not a descriptor")).collect()
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blobs_that_were_sent_count() {
        let line = |what: &str, status| {
            format!(
                "127.0.0.1 - - [21/Nov/2026:06:20:01 +0000] \"{what} HTTP/1.1\" {status} 1000 \"\" \"agent\"\n"
            )
        };
        let log = line("GET /v2/a/blobs/sha256:00", 200)
            + &line("GET /v2/a/blobs/sha256:00", 206)
            + &line("GET /v2/a/blobs/sha256:00", 404)
            + &line("HEAD /v2/a/blobs/sha256:00", 200)
            + &line("GET /v2/a/manifests/t", 200);
        assert_eq!(sent(&log), 2000);
    }
}
