//! `berth jobs` and `berth job ID`: what the daemon does and did, and where the time went.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::args::Args;
use super::connect::{Command, block_on, connect, parse, refused, usage};
use super::say;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{Job, ListJobsRequest};

const HELP: &str = "\
usage: berth jobs [--json] [--address unix:///PATH]
       berth job ID [--json] [--address unix:///PATH]

Lists running and recent jobs, or draws one job's steps over time.
";

/// Width of a waterfall's time axis in characters.
const AXIS: usize = 48;

pub(super) fn list(args: Args) -> ExitCode {
    run("jobs", args, |command| match command.operands.first() {
        None => Ok(0),
        Some(operand) => Err(format!("unexpected argument {operand}")),
    })
}

pub(super) fn show(args: Args) -> ExitCode {
    run("job", args, |command| match command.operands.as_slice() {
        [id] => {
            id.parse().ok().filter(|id| *id > 0).ok_or_else(|| format!("{id} is not the number of a job"))
        }
        _ => Err("expected the number of one job".to_owned()),
    })
}

fn run(verb: &str, args: Args, id: fn(&Command) -> Result<u64, String>) -> ExitCode {
    let command = match parse(args) {
        Ok(Some(command)) => command,
        Ok(None) => return say(HELP),
        Err(error) => return usage(verb, &error),
    };
    let id = match id(&command) {
        Ok(id) => id,
        Err(error) => return usage(verb, &error),
    };
    block_on(async {
        let mut client = AdminClient::new(connect(&command.address).await?);
        let answer = client.list_jobs(ListJobsRequest { id }).await.map_err(|s| refused(&s))?;
        let jobs = answer.into_inner().jobs;
        let text = match (command.json, id, jobs.first()) {
            (true, _, _) => json(&jobs),
            (false, 0, _) => table(&jobs),
            (false, _, Some(job)) => waterfall(job),
            (false, _, None) => {
                return Err(format!("job {id} is not known; `berth jobs` lists those that are"));
            }
        };
        say(text);
        Ok(())
    })
}

fn table(jobs: &[Job]) -> String {
    let mut text = format!("{:>6}  {:<25} {:>10}  {:<14} {}\n", "JOB", "NAME", "TOOK", "SUBJECT", "OUTCOME");
    for job in jobs {
        let subject: String = job.subject.chars().take(13).collect();
        let took = duration(job.took);
        let outcome = match (&job.progress, job.outcome.as_str()) {
            (Some(progress), "running") => format!("running: {}", super::progress::summary(progress)),
            (_, outcome) => outcome.to_owned(),
        };
        let _ = writeln!(text, "{:>6}  {:<25} {took:>10}  {subject:<14} {outcome}", job.id, job.name);
    }
    text
}

/// Each step as a bar from its start to its end on one common axis.
pub fn waterfall(job: &Job) -> String {
    let mut text = format!("{} {}  {}  {}\n", job.name, job.subject, duration(job.took), job.outcome);
    let width = job.steps.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
    for step in &job.steps {
        let (start, end) = bar(step.offset, step.took, job.took);
        let blank = " ".repeat(start);
        let bar = "█".repeat(end - start);
        let rest = " ".repeat(AXIS - end);
        let (at, took) = (duration(step.offset), duration(step.took));
        let _ = writeln!(text, "  {:<width$} │{blank}{bar}{rest}│ {took:>9}  at {at}", step.name);
    }
    text
}

/// First and last-plus-one column of a step; never empty, so that no step is invisible.
fn bar(offset: u64, took: u64, total: u64) -> (usize, usize) {
    let axis = AXIS as u128;
    let column =
        |nanos: u128| usize::try_from((nanos * axis / u128::from(total.max(1))).min(axis)).unwrap_or(AXIS);
    let start = column(u128::from(offset)).min(AXIS - 1);
    let end = column(u128::from(offset) + u128::from(took)).clamp(start + 1, AXIS);
    (start, end)
}

/// Three significant digits.
fn duration(nanos: u64) -> String {
    let d = Duration::from_nanos(nanos);
    match nanos {
        0..1_000 => format!("{nanos} ns"),
        1_000..1_000_000 => format!("{:.1} µs", d.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.1} ms", d.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", d.as_secs_f64()),
    }
}

fn json(jobs: &[Job]) -> String {
    let step = |s: &crate::proto::admin::Step| serde_json::json!({ "name": s.name, "offsetNanos": s.offset, "tookNanos": s.took });
    let progress = |p: &crate::proto::admin::Progress| {
        let layer = |l: &crate::proto::admin::LayerProgress| serde_json::json!({ "digest": l.digest, "total": l.total, "done": l.done, "finished": l.finished });
        let layers: Vec<_> = p.layers.iter().map(layer).collect();
        serde_json::json!({ "total": p.total, "done": p.done, "phase": p.phase, "layers": layers })
    };
    let job = |j: &Job| {
        serde_json::json!({
            "progress": j.progress.as_ref().map(progress),
            "id": j.id, "name": j.name, "subject": j.subject, "startedAtNanos": j.started_at,
            "tookNanos": j.took, "outcome": j.outcome, "steps": j.steps.iter().map(step).collect::<Vec<_>>(),
        })
    };
    format!("{:#}\n", serde_json::Value::from(jobs.iter().map(job).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::admin::Step;

    #[test]
    fn every_step_is_drawn_where_and_as_long_as_it_was() {
        assert_eq!(bar(0, 100, 100), (0, AXIS));
        assert_eq!(bar(50, 50, 100), (AXIS / 2, AXIS));
        assert_eq!(bar(0, 0, 100), (0, 1), "a step that took no time is still seen");
        assert_eq!(bar(100, 0, 100), (AXIS - 1, AXIS), "also at the end");
        assert_eq!(bar(0, 0, 0), (0, 1));
    }

    #[test]
    fn a_waterfall_shows_names_and_times() {
        let steps = vec![
            Step { name: "make namespaces".into(), offset: 0, took: 2_000_000 },
            Step { name: "attach".into(), offset: 2_000_000, took: 2_000_000 },
        ];
        let job = Job {
            id: 1,
            name: "RunPodSandbox".into(),
            took: 4_000_000,
            outcome: "ok".into(),
            steps,
            ..Job::default()
        };
        let text = waterfall(&job);
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.contains("RunPodSandbox") && text.contains("4.0 ms") && text.contains("at 2.0 ms"),
            "{text}"
        );
    }
}
