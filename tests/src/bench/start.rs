//! Starting a container and a process in it, with nothing around: Berth over its socket, and OCI runtimes as the commands they are,
//! Berth's own command among them. A container is up when its own output says so.
//!
//! What `run` of an OCI runtime does is what StartContainer does: namespaces, limits, mounts, filter, program. CreateContainer comes
//! before it: the image's root with a writable layer, the record on disk, and the empty cgroups. A bundle has its root already and
//! nobody keeps a record of it, so that call is a row of its own and nothing is compared with it.
//!
//! Execs go into a container that is up, as probes do, one after the other. The first comes right behind the start, while the program's
//! own start is still going on: it is a row of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::action::{milliseconds, said};
use super::contender::Contender;
use super::sample::Sample;
use super::table::machine;
use crate::client;
use crate::images::{BUSYBOX, PAUSE};
use crate::report::line;
use crate::suites::wait;
use crate::world::World;

/// Rounds over all sides, and containers of each in a round: few, so that a slow minute of the machine is one of all sides.
const ROUNDS: usize = 25;
const EACH: usize = 2;
/// Execs in each container, after its first.
const EXECS: usize = 5;

const CREATE: &str = "CreateContainer: ms";
const START: &str = "container started and up: ms";
const FIRST: &str = "exec of true, the first in its container: ms";
const EXEC: &str = "exec of true: ms";

/// How many times faster than crun Berth has to be.
const ROWS: [(&str, Option<f64>); 3] = [(START, Some(4.0)), (FIRST, None), (EXEC, Some(5.0))];
const RIVAL: &str = "crun";

/// What a container runs: it says that it is up, and stays.
const PROGRAM: [&str; 3] = ["sh", "-c", "echo up; exec sleep 1000"];

/// Row, then side, then what was measured.
type Results = BTreeMap<&'static str, BTreeMap<String, Sample>>;

/// Measures all sides and prints the table.
///
/// # Errors
/// A container or an exec does not do what it is asked for.
pub fn run(world: &World) -> Result<()> {
    world.registry()?;
    let dir = world.dir.join("bench-exec");
    let contender = Contender::berth(world)?;
    let commands = commands(world, &dir)?;
    let mut results = Results::new();
    for round in 0..ROUNDS {
        line(format_args!("round {} of {ROUNDS}", round + 1));
        let mut push = |row, side: &str, ms| {
            results.entry(row).or_default().entry(side.to_owned()).or_default().push(ms);
        };
        over_the_socket(&contender, round, &mut push)?;
        for command in &commands {
            command.round(round, &mut push).with_context(|| command.name.clone())?;
        }
    }
    let (text, met) = table(&results)?;
    line(format_args!("\n{text}"));
    let create = results.get(CREATE).and_then(|row| row.get("berth")).map_or(f64::NAN, Sample::median);
    line(format_args!("before a container is started, {CREATE}: {create:.2}"));
    line(format_args!("{met} of {} rows met", ROWS.iter().filter(|(_, goal)| goal.is_some()).count()));
    Ok(())
}

/// The row of each exec in a container.
fn execs() -> impl Iterator<Item = &'static str> {
    [FIRST].into_iter().chain([EXEC; EXECS])
}

/// Whoever may be measured: Berth's command, and each of the rivals' runtimes.
fn commands(world: &World, dir: &Path) -> Result<Vec<OciCommand>> {
    let rootfs = world.dir.join("images/busybox");
    let mut commands =
        vec![OciCommand::new("berth oci", &[&world.berth.display().to_string(), "oci"], dir, &rootfs)?];
    for path in std::env::var("OCI_RUNTIMES")?.split(':').filter(|path| !path.is_empty()) {
        let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path);
        commands.push(OciCommand::new(name, &[path], dir, &rootfs)?);
    }
    Ok(commands)
}

// === Berth, over its socket ===

/// Containers of one pod; the daemon makes the root of each, as it does for a kubelet.
fn over_the_socket(
    contender: &Contender,
    round: usize,
    push: &mut impl FnMut(&'static str, &str, f64),
) -> Result<()> {
    let logs = contender.dir.join("logs/exec");
    fs::create_dir_all(&logs)?;
    wait(async {
        let mut client = contender.client().await?;
        client.pull(PAUSE).await?;
        client.pull(BUSYBOX).await?;
        let config = client::pod(&format!("exec{round}"), &logs);
        let pod = client.run_pod(&config).await?;
        for number in 0..EACH {
            let name = format!("c{round}-{number}");
            let log = logs.join(format!("{name}.log"));
            let start = Instant::now();
            let container =
                client.create(&pod, &client::container(&name, BUSYBOX, &PROGRAM), &config).await?;
            push(CREATE, "berth", milliseconds(start));
            let start = Instant::now();
            client.start(&container).await?;
            said(&log, "up")?;
            push(START, "berth", milliseconds(start));
            for row in execs() {
                let start = Instant::now();
                let output = client.exec(&container, &["true"]).await?;
                push(row, "berth", milliseconds(start));
                ensure!(output.exit_code == 0, "{output:?}");
            }
            let output = client.exec(&container, &["echo", "inside"]).await?;
            ensure!(output.stdout == b"inside\n", "{output:?}");
            client.discard(&container).await?;
        }
        Ok(client.remove_pod(&pod).await?)
    })
}

// === an OCI runtime, as a command ===

/// A command, and the bundle it runs.
struct OciCommand {
    name: String,
    words: Vec<String>,
    /// Its bundle, its state, what its containers say.
    dir: PathBuf,
}

impl OciCommand {
    /// Lets the command write its own default configuration, and has it run our program without a terminal.
    fn new(name: &str, words: &[&str], dir: &Path, rootfs: &Path) -> Result<Self> {
        let dir = dir.join(name.replace(' ', "-"));
        fs::create_dir_all(&dir)?;
        let words = words.iter().map(|&word| word.to_owned()).collect();
        let command = Self { name: name.to_owned(), words, dir };
        command.call(&["spec", "--bundle", &command.dir.display().to_string()], None)?;
        let path = command.dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(PROGRAM);
        config["root"] = json!({ "path": rootfs, "readonly": true });
        fs::write(&path, config.to_string())?;
        Ok(command)
    }

    fn round(&self, round: usize, push: &mut impl FnMut(&'static str, &str, f64)) -> Result<()> {
        let bundle = self.dir.display().to_string();
        for number in 0..EACH {
            let id = format!("bench{round}-{number}");
            let output = self.dir.join(format!("{id}.out"));
            let start = Instant::now();
            self.call(&["run", "--detach", "--bundle", &bundle, &id], Some(&output))?;
            said(&output, "up")?;
            push(START, &self.name, milliseconds(start));
            for row in execs() {
                let start = Instant::now();
                self.call(&["exec", &id, "true"], None)?;
                push(row, &self.name, milliseconds(start));
            }
            let inside = self.dir.join(format!("{id}.exec"));
            self.call(&["exec", &id, "echo", "inside"], Some(&inside))?;
            said(&inside, "inside")?;
            self.call(&["delete", "--force", &id], None)?;
        }
        Ok(())
    }

    /// Runs the command to its end, which has to be a good one.
    fn call(&self, arguments: &[&str], output: Option<&Path>) -> Result<()> {
        let errors = self.dir.join("errors");
        let (program, first) = self.words.split_first().context("no command")?;
        let status = Command::new(program)
            .args(first)
            .arg("--root")
            .arg(self.dir.join("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.map_or_else(|| Ok(Stdio::null()), |path| File::create(path).map(Stdio::from))?)
            .stderr(File::create(&errors)?)
            .status()
            .with_context(|| format!("start {program}"))?;
        ensure!(
            status.success(),
            "{} {}: {status}\n{}",
            self.name,
            arguments.join(" "),
            fs::read_to_string(&errors)?
        );
        Ok(())
    }
}

// === the table ===

/// Markdown, and how many goals are met.
fn table(results: &Results) -> Result<(String, usize)> {
    let mut text = format!("{}\n\n", machine()?);
    let sides: Vec<&String> = results.get(START).into_iter().flat_map(BTreeMap::keys).collect();
    let names: Vec<&str> = sides.iter().map(|name| name.as_str()).collect();
    writeln!(text, "| row (median; p99; min) | {} | goal |", names.join(" | "))?;
    writeln!(text, "|{}", "---|".repeat(names.len() + 2))?;
    let mut met = 0;
    for (row, goal) in ROWS {
        let row_results = results.get(row).with_context(|| row.to_owned())?;
        let median = |side: &str| row_results.get(side).map_or(f64::NAN, Sample::median);
        write!(text, "| {row} |")?;
        for side in &sides {
            let Some(sample) = row_results.get(*side) else { continue };
            let (p99, least) = (sample.quantile(0.99), sample.quantile(0.0));
            write!(text, " {:.2}; {p99:.2}; {least:.2}", sample.median())?;
            if side.as_str() != "berth" {
                write!(text, " ({:.1}x)", sample.median() / median("berth"))?;
            }
            write!(text, " |")?;
        }
        let Some(goal) = goal else {
            writeln!(text, " |")?;
            continue;
        };
        let reached = median(RIVAL) / median("berth") >= goal;
        met += usize::from(reached);
        writeln!(text, " ≥ {goal:.0} over {RIVAL}: {} |", if reached { "met" } else { "not met" })?;
    }
    Ok((text, met))
}
