//! `berth try [IMAGE [CMD…]]`: the main job on a fresh machine, without a network and without configuration.
//!
//! A private daemon in a temporary directory is driven over its socket as any client would, and everything it did to
//! the machine is measured and taken back. In reading order:
//!
//! - [`scenario`]: the story as a table of steps, and what each step does.
//! - [`pods`]: the two pods it runs; [`inside`]: the roles of this executable in their containers.
//! - [`image`], [`tar`], [`registry`]: an image packed from this executable, served on loopback.
//! - [`site`]: the run's own directory and names, and the marker by which a later run finds a broken one.
//! - [`daemon`], [`client`]: the daemon's process and its socket.
//! - [`leaks`]: before and after, measured; [`clean`]: taking back in order, then by force; [`netlink`] for both.
//! - [`report`]: what is printed.
//!
//! Tasks spawned: the registry's. Files owned: `/run/berth-try/<pid>.json` and `$TMPDIR/berth-try-<pid>/`.

pub mod clean;
pub mod client;
pub mod daemon;
pub mod image;
pub mod inside;
pub mod leaks;
pub mod links;
pub mod netlink;
pub mod pods;
pub mod registry;
pub mod report;
pub mod scenario;
pub mod site;
pub mod tar;

#[cfg(test)]
mod deploy_tests;

use std::process::ExitCode;

use engine::error::chain;
use tokio::signal::unix::{SignalKind, signal};

use leaks::collect::{forwarding, snapshot};
use leaks::{Kind, Object, Snapshot};
use report::Report;
use scenario::Stage;
use site::Site;

const USAGE: &str = "usage: berth try [IMAGE [CMD…]]

Runs the main job against a private daemon in a temporary directory: pull, two pods, logs, exec, HTTP, stats, removal.
Without IMAGE it uses an image made of this executable, served by a registry on loopback. Needs root; leaves nothing.";

/// Exit status of a run that was interrupted: 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// Runs the roles that play inside the trial's containers (`try-serve`, `try-fetch`, `try-whoami`); `None`: another role.
pub fn inside(arguments: &[String]) -> Option<ExitCode> {
    inside::run(arguments)
}

/// Runs `berth try` with the arguments that follow `try`.
pub fn main(arguments: &[String]) -> ExitCode {
    let report = Report::begin();
    let (image, command) = match arguments.split_first() {
        None => (None, arguments),
        Some((flag, _)) if flag == "-h" || flag == "--help" => {
            report.line(USAGE);
            return ExitCode::SUCCESS;
        }
        Some((flag, _)) if flag.starts_with('-') => {
            report.complain(&format!("berth try: unknown option {flag}\n{USAGE}"));
            return ExitCode::from(2);
        }
        Some((image, command)) => (Some(image.as_str()), command),
    };
    if !rustix::process::geteuid().is_root() {
        report.complain("berth try: needs root for namespaces, mounts and cgroups; run it with sudo");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report.complain(&format!("berth try: start the async runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let status = runtime.block_on(Box::pin(supervised(&report, image, command)));
    // A blocking request that is still under way is not waited for.
    runtime.shutdown_background();
    status
}

/// Signals that end a run early; each of them cleans up.
struct Interrupts([tokio::signal::unix::Signal; 3]);

impl Interrupts {
    fn listen() -> std::io::Result<Self> {
        let of = |kind| signal(kind);
        Ok(Self([of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The run with its beginning and its end: leftovers first, then the story, then taking everything back.
async fn supervised(report: &Report, image: Option<&str>, command: &[String]) -> ExitCode {
    let mut interrupts = match Interrupts::listen() {
        Ok(interrupts) => interrupts,
        Err(error) => return give_up(report, &format!("listen for signals: {error}")),
    };
    // Orphans of the daemon become our children, so no process of the run can hide.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        return give_up(report, &format!("become subreaper: {error}"));
    }
    clean_leftovers(report).await;

    let prepared = Site::plan().await;
    let prepared = prepared.and_then(|site| site.create().map(|()| site));
    let site = match prepared {
        Ok(site) => site,
        Err(error) => return give_up(report, &chain(&error)),
    };
    report.line(&format!("berth {} try in {}", env!("CARGO_PKG_VERSION"), site.directory.display()));
    let mut stage = Stage::new(site, image, command);
    let before = snapshot(&stage.marks).await;
    let switches = forwarding();

    let outcome = tokio::select! {
        outcome = scenario::run(&mut stage, report) => Some(outcome),
        () = interrupts.next() => None,
    };
    let status = match &outcome {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err((step, error))) => {
            report.complain(&format!("{step}: {}", chain(error)));
            ExitCode::FAILURE
        }
        None => {
            report.complain("\ninterrupted: cleaning up (once more to leave at once)");
            ExitCode::from(INTERRUPTED)
        }
    };
    let leaked = tokio::select! {
        leaked = take_back(&mut stage, report, before.ok(), matches!(outcome, Some(Ok(())))) => leaked,
        () = interrupts.next() => {
            report.complain("left at once; the next `berth try` cleans up what is left");
            return ExitCode::from(INTERRUPTED);
        }
    };
    for ((name, was), (_, is)) in switches.iter().zip(forwarding()).filter(|((_, was), (_, is))| was != is) {
        report.line(&format!("note: {name} was {was}, is {is} now, and stays: others may count on it"));
    }
    report_leaks(report, leaked.as_deref());
    match leaked {
        Some(leaked) if leaked.is_empty() => status,
        _ => ExitCode::FAILURE,
    }
}

fn give_up(report: &Report, why: &str) -> ExitCode {
    report.complain(&format!("berth try: {why}"));
    ExitCode::FAILURE
}

/// Finds and clears what broken runs have left.
async fn clean_leftovers(report: &Report) {
    let (sites, unreadable) = Site::leftovers();
    for path in unreadable {
        report.complain(&format!("marker {} is damaged: look at it and remove it", path.display()));
    }
    for mut site in sites {
        let found = snapshot(&site.marks()).await.unwrap_or_default();
        let what = if found.is_empty() { "its directory".to_owned() } else { found.summary() };
        report.line(&format!("found what the broken run {} left: {what}", site.pid()));
        let problems = clean::leftover(&mut site).await;
        let rest = snapshot(&site.marks()).await.map_or_else(|error| chain(&error), |rest| rest.summary());
        for problem in &problems {
            report.complain(&format!("  {problem}"));
        }
        let outcome = if rest.is_empty() { "cleaned".to_owned() } else { format!("still there: {rest}") };
        report.line(&format!("  {outcome}"));
    }
}

/// Takes everything back and returns what stayed behind; `None`: it could not be counted.
async fn take_back(
    stage: &mut Stage,
    report: &Report,
    before: Option<Snapshot>,
    finished: bool,
) -> Option<Vec<Object>> {
    if let Some(client) = stage.client.as_mut().filter(|_| !finished) {
        clean::through_daemon(client).await.iter().for_each(|problem| report.complain(problem));
        if let Err(error) = stage.look_for_leaks().await {
            report.complain(&chain(&error));
        }
    }
    stage.client = None;
    if finished {
        report::waterfall(&stage.start_jobs).iter().for_each(|line| report.line(line));
    }
    if let Some(daemon) = stage.daemon.take()
        && let Err(error) = daemon.stop().await
    {
        report.complain(&chain(&error));
    }
    clean::reap();
    // The pods' parent cgroup is the client's to remove: nothing may be left in it.
    clean::remove_cgroups(&stage.site).iter().for_each(|problem| report.complain(problem));

    // First what pods left beside the daemon, then what came with its end, then what cannot even be removed by force.
    let mut leaked = std::mem::take(&mut stage.left);
    let counted = count_end(stage, before.as_ref()?, &mut leaked, report).await;
    leaked.sort();
    leaked.dedup();
    match counted {
        Ok(()) => Some(leaked),
        Err(error) => {
            report.complain(&chain(&error));
            None
        }
    }
}

/// Counts after the daemon's end and once more after everything marked was removed. What the idle daemon keeps for itself
/// (its directories, its nft table) is no leak while it is installed, and is removed here.
async fn count_end(
    stage: &Stage,
    before: &Snapshot,
    leaked: &mut Vec<Object>,
    report: &Report,
) -> Result<(), leaks::collect::CollectError> {
    let outlived = snapshot(&stage.marks).await?;
    let is_file = |object: &Object| object.kind == Kind::File;
    leaked.extend(
        outlived.since(before).into_iter().filter(|object| !stage.idle.contains(object) && !is_file(object)),
    );
    clean::by_force(&stage.site).await.iter().for_each(|problem| report.complain(problem));
    leaked.extend(snapshot(&stage.marks).await?.since(before));
    Ok(())
}

/// The last lines: each leaked object, then the count.
fn report_leaks(report: &Report, leaked: Option<&[Object]>) {
    match leaked {
        Some(leaked) => {
            leaked.iter().for_each(|object| report.line(&format!("leaked {object}")));
            report.line(&format!("leaked: {}", leaked.len()));
        }
        None => report.line("leaked: not counted"),
    }
}
