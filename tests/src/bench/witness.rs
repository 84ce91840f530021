//! A second witness: the benchmark that `critest` has of its own, against each contender in turn. What is measured, and how, is
//! then nothing of ours; this file names the images it is to use, starts it, and reads the durations it writes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use super::contender::Contender;
use super::run::Results;
use crate::images::{BUSYBOX, PAUSE};
use crate::report::line;
use crate::shell;
use crate::world::World;

/// How many pods, containers and images are made one after the other.
const NUMBER: usize = 50;

/// The files that critest writes, and what each is about.
const FILES: [(&str, &str); 4] = [
    ("pod_benchmark_data.json", "pod"),
    ("container_benchmark_data.json", "container"),
    ("image_lifecycle_benchmark_data.json", "image"),
    ("image_listing_benchmark_data.json", "images"),
];

/// One file: the operations of a cycle, and how long each took in each cycle.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    operations_names: Vec<String>,
    datapoints: Vec<Cycle>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cycle {
    operations_durations_ns: Vec<f64>,
}

/// Runs the benchmark `rounds` times, in turn for each contender.
///
/// # Errors
/// There is no critest, or one of its measurements failed.
pub fn all(world: &World, contenders: &[Contender], rounds: usize) -> Result<Results> {
    let critest = world.tool("CRITEST").context("CRITEST is not set: use tests/bench")?;
    let mut results = Results::new();
    for round in 0..rounds {
        line(format_args!("round {} of {rounds}", round + 1));
        for contender in contenders {
            let out = contender.dir.join(format!("critest-{round}"));
            measure(&critest, contender, &out)?;
            for (file, about) in FILES {
                read(&out.join(file), about, &contender.name, &mut results)?;
            }
        }
    }
    Ok(results)
}

/// One run of critest; what it measures is then in a directory.
fn measure(critest: &str, contender: &Contender, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let (parameters, images) = (out.join("parameters.yaml"), out.join("images.yaml"));
    // JSON is YAML.
    let numbers = json!({
        "podsNumber": NUMBER, "podsNumberParallel": 1, "podBenchmarkTimeoutSeconds": 60,
        "containersNumber": NUMBER, "containersNumberParallel": 1, "containerBenchmarkTimeoutSeconds": 60,
        "imagesNumber": NUMBER, "imagesNumberParallel": 1, "imageBenchmarkTimeoutSeconds": 60,
        "imagePullingBenchmarkImage": BUSYBOX, "imageListingBenchmarkImages": [BUSYBOX, PAUSE],
    });
    fs::write(&parameters, numbers.to_string())?;
    fs::write(&images, json!({ "defaultTestContainerImage": BUSYBOX }).to_string())?;
    let arguments = [
        "--benchmark".to_owned(),
        format!("--runtime-endpoint=unix://{}", contender.socket.display()),
        format!("--benchmarking-params-file={}", parameters.display()),
        format!("--benchmarking-output-dir={}", out.display()),
        format!("--test-images-file={}", images.display()),
        format!("--config={}", out.join("none.yaml").display()),
        "--ginkgo.no-color".to_owned(),
    ];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    shell::run(600, critest, &arguments).with_context(|| format!("critest against {}", contender.name))?;
    Ok(())
}

/// Adds what a file says to the results, in milliseconds.
fn read(file: &Path, about: &str, contender: &str, results: &mut Results) -> Result<()> {
    let text = fs::read(file).with_context(|| format!("critest left no {}", file.display()))?;
    let measured: Measured =
        serde_json::from_slice(&text).with_context(|| format!("{} is not as expected", file.display()))?;
    for cycle in &measured.datapoints {
        for (operation, nanoseconds) in measured.operations_names.iter().zip(&cycle.operations_durations_ns) {
            let row = results.entry(format!("{about}: {operation}: ms")).or_default();
            row.entry(contender.to_owned()).or_default().push(nanoseconds / 1e6);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_of_each_cycle_is_a_value_in_milliseconds() {
        let file = std::env::temp_dir().join(format!("berth-witness-{}.json", std::process::id()));
        let text = r#"{"operationsNames":["CreatePod","StopPod"],"numParallel":1,
            "datapoints":[{"sampleIndex":0,"operationsDurationsNs":[2000000,500000]},
                          {"sampleIndex":1,"operationsDurationsNs":[4000000,700000]}]}"#;
        fs::write(&file, text).unwrap();
        let mut results = Results::new();
        read(&file, "pod", "berth", &mut results).unwrap();
        fs::remove_file(&file).unwrap();
        let median = |row: &str| results.get(row).and_then(|row| row.get("berth")).unwrap().median();
        assert!((median("pod: CreatePod: ms") - 3.0).abs() < 1e-9);
        assert!((median("pod: StopPod: ms") - 0.6).abs() < 1e-9);
    }
}
