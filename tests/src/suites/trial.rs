//! `berth try`: the main job on a fresh machine, which measures its own leaks.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::census::Census;
use crate::images::BUSYBOX;
use crate::report::Report;
use crate::shell;
use crate::world::World;

/// Runs the suite.
///
/// # Errors
/// The census fails.
pub fn run(world: &World, report: &mut Report) -> Result<()> {
    let berth = world.berth.display().to_string();
    let before = Census::take(0)?;
    let settle = || Census::settle(&before, 0);
    for name in ["does the main job without network and configuration", "does it again right after"] {
        report.case(name, || complete(&berth, &["try"]).and_then(|()| settle()));
    }
    report.case("after kill -9 in the middle the next run says what it found and cleans it", || {
        interrupted(&berth, Signal::SIGKILL)?;
        let text = shell::run(120, &berth, &["try"])?;
        ensure!(text.contains("leaked: 0"), "{text}");
        ensure!(text.lines().any(|line| line.contains("found")), "nothing said of the run before:\n{text}");
        settle()
    });
    report.case("Ctrl-C cleans up", || {
        interrupted(&berth, Signal::SIGINT)?;
        settle()
    });
    world.registry()?;
    let before = Census::take(0)?;
    report.case("does the same with an image of the user's", || {
        let mirrors = world.registry()?.mirrors.display().to_string();
        let image = BUSYBOX.replacen("registry.k8s.io", crate::registry::ADDRESS, 1);
        let _ = mirrors;
        complete(&berth, &["try", &image, "sh", "-c", "echo mine; sleep 30"])?;
        Census::settle(&before, 0)
    });
    Ok(())
}

fn complete(berth: &str, args: &[&str]) -> Result<()> {
    let text = shell::run(120, berth, args)?;
    ensure!(text.contains("leaked: 0"), "{text}");
    Ok(())
}

/// Starts `berth try` and sends a signal once a pod of it is up.
fn interrupted(berth: &str, signal: Signal) -> Result<()> {
    let mut child = Command::new(berth).arg("try").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().context("its output")?;
    let mut seen = String::new();
    for line in std::io::BufRead::lines(std::io::BufReader::new(out)) {
        let line = line?;
        seen.push_str(&line);
        if line.contains("StartContainer") {
            kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
            shell::eventually("it ends", 30, || Ok(child.try_wait()?))?;
            return Ok(());
        }
    }
    child.wait()?;
    anyhow::bail!("no container was started\n{seen}")
}
