//! `bench [MODE]`: measures Berth and its rivals on this machine; `tests/bench` prepares and starts it, and tells the modes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tests::bench::contender::Contender;
use tests::bench::growth::{self, Growth};
use tests::bench::reads::{self, Load};
use tests::bench::run::{self, Effort, Results};
use tests::bench::table::{self, Table};
use tests::bench::{density, machine, memory, net, plot, profile, pull, remount, start, witness};
use tests::report::line;
use tests::world::World;

/// Pods on the node when growth is measured.
const STEPS: [usize; 4] = [10, 100, 300, 600];

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
    match what {
        "all" => compare(&world, Effort { rounds: 5, pods: 20, burst: 30, pulls: 2 }, true)?,
        "quick" => compare(&world, Effort { rounds: 2, pods: 10, burst: 30, pulls: 0 }, false)?,
        "growth" => grow(&world)?,
        "memory" => memory::run(&everybody(&world)?, number_from("BENCH_PODS", 100)?)?,
        "profile" => profile::run(&world, number_from("BENCH_PODS", 30)?)?,
        "pull" => pull(&world)?,
        "cri" => under_load(&world)?,
        "critest" => second_witness(&world)?,
        "exec" => start::run(&world)?,
        "net" => net::run(&world)?,
        other => {
            bail!("{other} is no mode: all, quick, growth, memory, profile, pull, exec, cri, critest or net")
        }
    }
    Ok(std::fs::remove_dir_all(&world.dir)?)
}

/// Berth, and containerd with each OCI runtime there is.
fn everybody(world: &World) -> Result<Vec<Contender>> {
    let mut contenders = vec![Contender::berth(world)?];
    for runtime in std::env::var("OCI_RUNTIMES")?.split(':').filter(|path| !path.is_empty()) {
        contenders.push(Contender::containerd(world, runtime)?);
    }
    Ok(contenders)
}

fn compare(world: &World, effort: Effort, whole: bool) -> Result<()> {
    let mut contenders = everybody(world)?;
    let cache = std::env::var("BENCH_IMAGES").context("BENCH_IMAGES is not set: use tests/bench")?;
    let big = (effort.pulls > 0).then(|| tests::images::big(cache.as_ref())).transpose()?;
    if let Some(big) = &big {
        world.registry()?.push(big)?;
    }
    if whole {
        machine::rest();
    }
    let mut results = run::all(&mut contenders, effort)?;
    let mut growth = None;
    if whole {
        machine::rest();
        growth = contenders.first().map(|berth| growth::measure(berth, &STEPS)).transpose()?;
        density::all(&mut contenders, &mut results)?;
    }
    if let Some(big) = &big {
        remount::all(&mut contenders, big)?;
    }
    publish(&results, growth.as_ref(), &contenders, "bench")
}

/// Prints the table, and keeps it where it is asked for.
fn publish(results: &Results, growth: Option<&Growth>, contenders: &[Contender], name: &str) -> Result<()> {
    let table = Table::new(results, growth, contenders)?;
    line(format_args!("\n{}", table.text));
    if let Some(dir) = std::env::var_os("BENCH_RESULTS").map(PathBuf::from) {
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(format!("{name}.md")), &table.text)?;
        std::fs::write(dir.join(format!("{name}.json")), table::json(results, growth, contenders)?)?;
        if let Some(growth) = growth {
            plot::growth(growth, &dir.join("growth.svg"))?;
            plot::ratios(results, &dir.join("ratios.svg"))?;
        }
    }
    line(format_args!("{} of {} rows met", table.met, table.goals));
    Ok(())
}

/// Big images only, with one rival: its runtime plays no part in a pull.
fn pull(world: &World) -> Result<()> {
    let mut contenders = vec![Contender::berth(world)?];
    if let Some(runtime) = std::env::var("OCI_RUNTIMES")?.split(':').find(|path| !path.is_empty()) {
        contenders.push(Contender::containerd(world, runtime)?);
    }
    let results = pull::all(world, &mut contenders, number_from("BENCH_ROUNDS", 2)?)?;
    publish(&results, None, &contenders, "pull")
}

/// What a kubelet reads, on a full node where pods are being made; and the throughput of exec.
fn under_load(world: &World) -> Result<()> {
    let load = Load {
        pods: number_from("BENCH_PODS", 300)?,
        creates: number_from("BENCH_CREATES", 50)?,
        rate: f64::from(u32::try_from(number_from("BENCH_RATE", 10)?)?),
        calls: number_from("BENCH_CALLS", 300)?,
        bytes: 1 << 30,
        rounds: 3,
    };
    let mut contenders = vec![Contender::berth(world)?];
    if let Some(runtime) = std::env::var("OCI_RUNTIMES")?.split(':').find(|path| !path.is_empty()) {
        contenders.push(Contender::containerd(world, runtime)?);
    }
    let results = reads::all(&contenders, load)?;
    publish(&results, None, &contenders, "cri")?;
    let late = reads::late(&results);
    anyhow::ensure!(late.is_empty(), "above {} ms at the 99th percentile: {late:?}", reads::LIMIT);
    Ok(())
}

/// What critest's own benchmark says.
fn second_witness(world: &World) -> Result<()> {
    let contenders = everybody(world)?;
    let results = witness::all(world, &contenders, number_from("BENCH_ROUNDS", 3)?)?;
    publish(&results, None, &contenders, "critest")
}

/// Latencies on a node that fills up.
fn grow(world: &World) -> Result<()> {
    let berth = Contender::berth(world)?;
    machine::rest();
    growth::print(&growth::measure(&berth, &STEPS)?);
    Ok(())
}

fn number_from(variable: &str, default: usize) -> Result<usize> {
    std::env::var(variable).ok().map_or(Ok(default), |text| text.parse().context(variable.to_owned()))
}
