//! The conformance suite of the CRI itself, `critest`, spec by spec.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::node;
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// The part that the main job answers for.
const FOCUS: &str = "runtime info|PodSandbox|Image Manager|basic operations|Idempotence|support log";

/// Specs no machine like this can run: a part of the name, and what is missing.
const UNRUNNABLE: [(&str, &str); 1] = [(
    "public image with digest should be pulled",
    "an image that only the public network has, pinned by its digest",
)];

/// Specs that this suite's busybox cannot serve; the whole suite leaves them out by name.
const UNRUNNABLE_FULL: [(&str, &str); 1] = [(
    "runtime should support MaskedPaths",
    "a busybox whose shell prefers /bin/ls to its own; Debian's does not",
)];

/// The specs of the main job.
///
/// # Errors
/// The daemon does not start.
pub fn focused(world: &World, report: &mut Report) -> Result<()> {
    on_berth(world, report, "critest", Some(FOCUS), &UNRUNNABLE)
}

/// Every spec.
///
/// # Errors
/// The daemon does not start.
pub fn full(world: &World, report: &mut Report) -> Result<()> {
    let unrunnable: Vec<_> = UNRUNNABLE.into_iter().chain(UNRUNNABLE_FULL).collect();
    on_berth(world, report, "critest-full", None, &unrunnable)
}

/// Every spec against containerd with runc: what fails there too is the machine's or the suite's doing, not Berth's.
///
/// # Errors
/// containerd does not start.
pub fn rival(world: &World, report: &mut Report) -> Result<()> {
    let runc = format!("{}/runc", std::env::var("RIVALS").context("RIVALS is not set: use tests/run")?);
    let containerd = crate::bench::contender::Contender::containerd(world, &runc)?;
    specs(world, report, (&containerd.socket, &containerd.dir), None, &[])
}

fn on_berth(
    world: &World,
    report: &mut Report,
    name: &str,
    focus: Option<&str>,
    unrunnable: &[(&str, &str)],
) -> Result<()> {
    let (mut node, before) = node(world, name)?;
    let failures = report.failures();
    specs(world, report, (&node.socket.clone(), &node.dir.clone()), focus, unrunnable)?;
    report.case("leaves nothing behind", || node.settle(&before));
    if report.failures() > failures {
        crate::report::line(format_args!("{}", node.log_tail()));
    }
    Ok(())
}

/// Runs critest against the runtime at a socket; a directory takes its report.
fn specs(
    world: &World,
    report: &mut Report,
    (socket, dir): (&Path, &Path),
    focus: Option<&str>,
    unrunnable: &[(&str, &str)],
) -> Result<()> {
    let Some(critest) = world.tool("CRITEST") else {
        report.skip("all specs", "critest");
        return Ok(());
    };
    let results = dir.join("results.json");
    let endpoint = format!("unix://{}", socket.display());
    let patterns: Vec<_> = unrunnable.iter().map(|(name, _)| *name).chain(["benchmark"]).collect();
    let mut args = vec![
        format!("--runtime-endpoint={endpoint}"),
        format!("--image-endpoint={endpoint}"),
        format!("--config={}", dir.join("none.yaml").display()),
        format!("--ginkgo.json-report={}", results.display()),
        format!("--ginkgo.skip={}", patterns.join("|")),
        "--ginkgo.no-color".to_owned(),
        "--test.timeout=0".to_owned(),
    ];
    args.extend(focus.map(|focus| format!("--ginkgo.focus={focus}")));
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let output = shell::output(1500, &critest, &args)?;
    let log = dir.join("critest.log");
    fs::write(&log, &output.stdout)?;
    let text =
        fs::read(&results).with_context(|| format!("critest left no report\n{}", crate::node::tail(&log)))?;
    record(report, &serde_json::from_slice(&text)?, unrunnable)
}

/// Turns ginkgo's JSON report into cases. Specs outside the focus are not part of the run.
fn record(report: &mut Report, results: &Value, unrunnable: &[(&str, &str)]) -> Result<()> {
    let suite = results.get(0).context("an empty report")?;
    for spec in suite["SpecReports"].as_array().into_iter().flatten() {
        if spec["LeafNodeType"] != "It" {
            if spec["State"] != "passed" {
                report.record(&format!("critest's own {}", spec["LeafNodeType"]), 0.0, Some(failure(spec)));
            }
            continue;
        }
        let name = full_name(spec);
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds shown as seconds with two digits")]
        let seconds = spec["RunTime"].as_u64().unwrap_or(0) as f64 / 1e9;
        match (spec["State"].as_str().unwrap_or("?"), unrunnable.iter().find(|(part, _)| name.contains(part)))
        {
            ("passed", _) => report.record(&name, seconds, None),
            ("skipped", Some((_, missing))) => report.skip(&name, missing),
            ("skipped", None) => match spec["Failure"]["Message"].as_str() {
                // Skipped by the spec itself, which says why; without a message it was not in the focus.
                Some(why) if !why.is_empty() => report.skip(&name, why),
                _ => {}
            },
            ("pending", _) => report.skip(&name, "a spec that runs: it is marked pending"),
            _ => report.record(&name, seconds, Some(failure(spec))),
        }
    }
    Ok(())
}

fn full_name(spec: &Value) -> String {
    let levels = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let words: Vec<_> = levels.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str).collect();
    words.join(" ").replace("[k8s.io] ", "")
}

fn failure(spec: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut why = text(&spec["Failure"]["Message"]);
    let place = &spec["Failure"]["Location"];
    why.push_str(&format!("\nat {}:{}", text(&place["FileName"]), place["LineNumber"]));
    why.chars().take(4000).collect()
}
