//! What the person at the terminal sees: each step with its time as it happens, and the pod start as a waterfall.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::proto::admin::Job;

/// Width of the step names.
const NAME_WIDTH: usize = 28;
/// Width of the waterfall's bars.
const BAR_WIDTH: u64 = 44;

/// The printed record of a run. A terminal that is gone does not end the run: write errors are ignored.
#[derive(Debug)]
pub struct Report {
    begun: Instant,
    terminal: bool,
}

impl Report {
    /// Starts the clock.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), terminal: io::stdout().is_terminal() }
    }

    /// A free line.
    pub fn line(&self, text: &str) {
        let _ = writeln!(io::stdout().lock(), "{text}");
    }

    /// A warning or error, to stderr.
    pub fn complain(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Shows that a step has begun, on a terminal only.
    pub fn begin_step(&self, name: &str) {
        if self.terminal {
            let mut out = io::stdout().lock();
            let _ = write!(out, "{:>9} {:>10}  {name} …", seconds(self.begun.elapsed()), "");
            let _ = out.flush();
        }
    }

    /// Prints a finished step; further lines of `detail` are indented below the first.
    pub fn end_step(&self, name: &str, took: Duration, detail: &str) {
        let at = self.begun.elapsed().saturating_sub(took);
        let over = if self.terminal { "\r\x1b[2K" } else { "" };
        let mut lines = detail.lines();
        let first = lines.next().unwrap_or_default();
        let mut text =
            format!("{over}{:>9} {:>10}  {name:<NAME_WIDTH$} {first}\n", seconds(at), milliseconds(took));
        for line in lines {
            let _ = writeln!(text, "{:width$}{line}", "", width = 9 + 1 + 10 + 2 + NAME_WIDTH + 1);
        }
        let _ = io::stdout().lock().write_all(text.as_bytes());
    }

    /// Prints a step that is left out, and why.
    pub fn skip_step(&self, name: &str, why: &str) {
        self.line(&format!(
            "{:>9} {:>10}  {name:<NAME_WIDTH$} skipped: {why}",
            seconds(self.begun.elapsed()),
            "-"
        ));
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

fn milliseconds(time: Duration) -> String {
    let value = time.as_secs_f64() * 1000.0;
    if value < 10.0 { format!("{value:.2} ms") } else { format!("{value:.0} ms") }
}

/// Draws jobs one below the other on a common time axis, each with its steps.
pub fn waterfall(jobs: &[Job]) -> Vec<String> {
    let start_of = |job: &Job| job.started_at.cast_unsigned();
    let Some(begin) = jobs.iter().map(start_of).min() else { return Vec::new() };
    let end = jobs.iter().map(|job| start_of(job).saturating_add(job.took)).max().unwrap_or(begin);
    let axis = (end - begin).max(1);
    let mut lines = vec![format!("{:<38} {:>10}  0{:>width$}", "", "took", show(axis), width = 43)];
    for job in jobs {
        let offset = start_of(job) - begin;
        lines.push(bar_line(&job.name, offset, job.took, axis, '━'));
        for step in &job.steps {
            lines.push(bar_line(
                &format!("  {}", step.name),
                offset.saturating_add(step.offset),
                step.took,
                axis,
                '▪',
            ));
        }
    }
    lines
}

/// One line: name, duration, and a bar of at least one mark at its place on the axis. Times in nanoseconds.
fn bar_line(name: &str, offset: u64, took: u64, axis: u64, mark: char) -> String {
    let column = |time: u64| {
        u64::try_from(u128::from(time) * u128::from(BAR_WIDTH) / u128::from(axis))
            .unwrap_or(BAR_WIDTH)
            .min(BAR_WIDTH)
    };
    let from = column(offset).min(BAR_WIDTH - 1);
    let length = column(offset.saturating_add(took)).saturating_sub(from).max(1);
    let name: String = name.chars().take(38).collect();
    let blank = " ".repeat(usize::try_from(from).unwrap_or(0));
    let bar = mark.to_string().repeat(usize::try_from(length).unwrap_or(1));
    format!("{name:<38} {:>10}  {blank}{bar}", show(took))
}

fn show(nanoseconds: u64) -> String {
    milliseconds(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::admin::Step;

    fn job(name: &str, started_at: i64, took: u64, steps: &[(&str, u64, u64)]) -> Job {
        let step = |&(name, offset, took): &(&str, u64, u64)| Step { name: name.into(), offset, took };
        Job {
            name: name.into(),
            started_at,
            took,
            steps: steps.iter().map(step).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn bars_stand_at_their_time_on_a_common_axis() {
        let lines = waterfall(&[
            job("RunPodSandbox", 1_000, 22, &[("namespace", 0, 11), ("network", 11, 11)]),
            job("StartContainer", 1_022, 22, &[]),
        ]);
        let bars: Vec<String> = lines.iter().skip(1).map(|line| line.chars().skip(51).collect()).collect();
        assert_eq!(
            bars,
            [
                "━".repeat(22),
                "▪".repeat(11),
                format!("{}{}", " ".repeat(11), "▪".repeat(11)),
                format!("{}{}", " ".repeat(22), "━".repeat(22)),
            ]
        );
    }

    #[test]
    fn nothing_to_draw_and_impossible_times_are_harmless() {
        assert!(waterfall(&[]).is_empty());
        for line in waterfall(&[job("odd", 5, 0, &[("late", u64::MAX / 2, 9_999_000_000), ("none", 0, 0)])]) {
            assert!(line.chars().count() <= 51 + 45, "{line}");
        }
    }

    #[test]
    fn times_are_shown_in_the_unit_that_reads_best() {
        assert_eq!(milliseconds(Duration::from_micros(1234)), "1.23 ms");
        assert_eq!(milliseconds(Duration::from_millis(1234)), "1234 ms");
        assert_eq!(seconds(Duration::from_millis(1234)), "1.234 s");
    }
}
