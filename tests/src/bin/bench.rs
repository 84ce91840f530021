//! `bench [quick|all|growth|pull]`: measures Berth and its rivals on this machine; `tests/bench` prepares and starts it.

use std::process::ExitCode;

use anyhow::{Context, Result};
use tests::bench::contender::Contender;
use tests::bench::run::{self, Effort};
use tests::bench::table;
use tests::report::line;
use tests::world::World;

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_else(|| "all".to_owned());
    match bench(&what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            line(format_args!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn bench(what: &str) -> Result<()> {
    let world = World::open()?;
    if what == "growth" {
        return growth(&world);
    }
    if what == "pull" {
        return pull(&world);
    }
    let effort = match what {
        "quick" => Effort { rounds: 2, pods: 5, burst: 30 },
        _ => Effort { rounds: 5, pods: 20, burst: 30 },
    };
    let mut contenders = vec![Contender::berth(&world)?];
    for runtime in std::env::var("OCI_RUNTIMES")?.split(':').filter(|path| !path.is_empty()) {
        contenders.push(Contender::containerd(&world, runtime)?);
    }
    let big = (what != "quick").then_some(tests::images::BIG);
    if big.is_some() {
        let cache = std::env::var("BENCH_IMAGES").context("BENCH_IMAGES is not set: use tests/bench")?;
        world.registry()?.push(&tests::images::big(cache.as_ref())?)?;
    }
    let results = run::all(&contenders, effort, big)?;
    publish(&results, &contenders, "bench")?;
    drop(contenders);
    Ok(std::fs::remove_dir_all(&world.dir)?)
}

/// Prints the table, and keeps it where it is asked for.
fn publish(results: &run::Results, contenders: &[Contender], name: &str) -> Result<()> {
    let (text, met, goals) = table::markdown(results, contenders)?;
    line(format_args!("\n{text}"));
    if let Some(dir) = std::env::var_os("BENCH_RESULTS") {
        let dir = std::path::PathBuf::from(dir);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("{name}.md")), &text)?;
        std::fs::write(dir.join(format!("{name}.json")), table::json(results, contenders)?)?;
    }
    line(format_args!("{met} of {goals} rows met"));
    Ok(())
}

/// Big images only, with one rival: its runtime plays no part in a pull.
fn pull(world: &World) -> Result<()> {
    let rounds = std::env::var("BENCH_ROUNDS").ok().map_or(Ok(2), |text| text.parse())?;
    let mut contenders = vec![Contender::berth(world)?];
    if let Some(runtime) = std::env::var("OCI_RUNTIMES")?.split(':').find(|path| !path.is_empty()) {
        contenders.push(Contender::containerd(world, runtime)?);
    }
    let results = tests::bench::pull::all(world, &contenders, rounds)?;
    publish(&results, &contenders, "pull")?;
    drop(contenders);
    Ok(std::fs::remove_dir_all(&world.dir)?)
}

/// Pod start latency on a node that fills up.
fn growth(world: &World) -> Result<()> {
    let berth = Contender::berth(world)?;
    for (pods, median) in run::growth(&berth, &[10, 100, 300, 600])? {
        line(format_args!("{pods} pods on the node: pod ready in {median:.2} ms"));
    }
    Ok(())
}
