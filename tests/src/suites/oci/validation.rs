//! runtime-tools' validation programs on Berth and on Debian's crun, assertion by assertion, in one run.
//!
//! A program is one case: it passes when Berth holds everything crun holds, and does not fail where crun does not. The table
//! ([`super::table`]) names every assertion that either does not hold, and every one that was skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

use super::table;
use crate::report::Report;
use crate::world::World;

/// How many programs run at a time: most of them wait for a clock.
const WORKERS: usize = 6;

/// What one program said of one runtime.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// Assertions that hold, that do not, and that were not tried, by their text, with how often.
    pub(super) ok: Texts,
    pub(super) not_ok: Texts,
    pub(super) skipped: Texts,
    /// The program itself failed.
    pub(super) failed: Option<String>,
}

/// Texts, with how often each was said.
pub(super) type Texts = BTreeMap<String, usize>;

/// What every program said of one runtime, by the program's name.
pub(super) type Verdicts = BTreeMap<String, Verdict>;

/// Runs all programs on both runtimes and reports one case per program.
///
/// # Errors
/// The programs are not there.
pub(super) fn run(world: &World, report: &mut Report, runtime: &Path, dir: &Path) -> Result<()> {
    let (Some(programs), Some(crun)) = (world.tool("RUNTIME_TOOLS"), crun()) else {
        report.skip("runtime-tools' validation programs", "runtime-tools or crun");
        return Ok(());
    };
    let programs = PathBuf::from(programs);
    let names = names(&programs)?;
    let verdicts = [("berth", runtime), ("crun", &crun)].map(|(name, runtime)| {
        let scratch = dir.join(name);
        fs::create_dir_all(&scratch)?;
        all(&programs, &names, runtime, &scratch)
    });
    let [berth, crun] = verdicts;
    let (berth, crun) = (berth?, crun?);
    table::print(&berth, &crun);
    if let Some(file) = world.tool("OCI_TABLE") {
        fs::write(&file, table::markdown(&berth, &crun)).with_context(|| file)?;
    }
    for name in &names {
        report.case(&format!("runtime-tools {name}: not behind crun"), || {
            not_behind(&berth[name], &crun[name])
        });
    }
    Ok(())
}

/// Debian's crun.
fn crun() -> Option<PathBuf> {
    Some(PathBuf::from("/usr/bin/crun")).filter(|path| path.is_file())
}

/// Every program but the one that runs inside containers.
fn names(programs: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(programs).with_context(|| programs.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "runtimetest" && !name.contains('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Runs all programs, several at a time.
fn all(programs: &Path, names: &[String], runtime: &Path, scratch: &Path) -> Result<Verdicts> {
    // These share one cgroup path, so one of them runs at a time, before all others.
    let alone = |name: &&String| name.starts_with("linux_cgroups_") || name.starts_with("delete_only");
    let (single, names): (Vec<_>, Vec<_>) = names.iter().partition(alone);
    let mut first = Verdicts::new();
    for name in single {
        first.insert(name.clone(), one(programs, name, runtime, scratch)?);
    }
    let (next, verdicts) = (AtomicUsize::new(0), Mutex::new(first));
    let work = || -> Result<()> {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let verdict = one(programs, name, runtime, scratch)?;
            if let Ok(mut verdicts) = verdicts.lock() {
                verdicts.insert((*name).clone(), verdict);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join() {
                Ok(outcome) => outcome?,
                Err(_) => bail!("a worker panicked"),
            }
        }
        Ok(())
    })?;
    Ok(verdicts.into_inner().unwrap_or_default())
}

/// Runs one program; what it says is TAP (testanything.org).
fn one(programs: &Path, name: &str, runtime: &Path, scratch: &Path) -> Result<Verdict> {
    let output = Command::new("timeout")
        .args(["-k", "5", "90"])
        .arg(programs.join(name))
        .current_dir(programs)
        .env("RUNTIME", runtime)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {name}"))?;
    let mut verdict = Verdict::default();
    for text in String::from_utf8_lossy(&output.stdout).lines() {
        let (list, rest) = match (text.strip_prefix("ok "), text.strip_prefix("not ok ")) {
            (Some(rest), _) => (&mut verdict.ok, rest),
            (_, Some(rest)) => (&mut verdict.not_ok, rest),
            _ => continue,
        };
        if let Some(at) = rest.to_ascii_lowercase().find("# skip") {
            *verdict.skipped.entry(rest[at + "# skip".len()..].trim().to_owned()).or_default() += 1;
        } else if !rest.contains("# TODO") {
            *list.entry(described(rest)).or_default() += 1;
        }
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).replace(&*scratch.to_string_lossy(), "…");
        verdict.failed = Some(said.lines().take(3).collect::<Vec<_>>().join("; "));
    }
    Ok(verdict)
}

/// An assertion without its number and without names that are new in every run.
fn described(text: &str) -> String {
    let text = text.split_once(" - ").map_or(text, |(_, text)| text);
    let fresh = |word: &&str| !word.contains("ocitest") && word.len() < 36;
    text.split(' ').filter(fresh).collect::<Vec<_>>().join(" ")
}

/// Whatever crun passes, we pass. A program that crun fails and we do not has run another way, and its assertions do not compare.
fn not_behind(ours: &Verdict, theirs: &Verdict) -> Result<()> {
    if theirs.failed.is_some() && ours.failed.is_none() {
        return Ok(());
    }
    let mut behind: Vec<String> = Vec::new();
    for (text, times) in &theirs.ok {
        let held = ours.ok.get(text).copied().unwrap_or(0);
        if held < *times {
            behind.push(format!("holds {held} of {times}: {text}"));
        }
    }
    if let (Some(why), None) = (&ours.failed, &theirs.failed) {
        behind.push(format!("ended early: {why}"));
    }
    if behind.is_empty() { Ok(()) } else { bail!("{}", behind.join("\n")) }
}
