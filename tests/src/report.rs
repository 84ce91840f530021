//! Cases and their outcome. One line per case as it ends; one line for the whole run.

use std::fmt::Display;
use std::io::Write;
use std::time::Instant;

/// What has been run so far.
#[derive(Debug, Default)]
pub struct Report {
    suite: String,
    passed: u64,
    failed: Vec<String>,
    skipped: Vec<String>,
}

// === impl Report ===

impl Report {
    /// Opens a suite; its name goes in front of every case.
    pub fn suite(&mut self, name: &str) {
        name.clone_into(&mut self.suite);
        line(format_args!("\n== {name}"));
    }

    /// Runs one case and reports it. True when it passed.
    pub fn case(&mut self, name: &str, body: impl FnOnce() -> anyhow::Result<()>) -> bool {
        let start = Instant::now();
        let outcome = body();
        let passed = outcome.is_ok();
        self.record(name, start.elapsed().as_secs_f64(), outcome.err().map(|error| format!("{error:#}")));
        passed
    }

    /// Reports a case that somebody else ran: `failure` is `None` when it passed.
    pub fn record(&mut self, name: &str, seconds: f64, failure: Option<String>) {
        match failure {
            None => {
                self.passed += 1;
                line(format_args!("  ok    {}: {name} ({seconds:.2} s)", self.suite));
            }
            Some(why) => {
                line(format_args!("  FAIL  {}: {name} ({seconds:.2} s)", self.suite));
                for text in why.lines() {
                    line(format_args!("          {text}"));
                }
                self.failed.push(format!("{}: {name}", self.suite));
            }
        }
    }

    /// Reports a case that cannot run here, and what is missing.
    pub fn skip(&mut self, name: &str, missing: impl Display) {
        line(format_args!("  skip  {}: {name} (missing: {missing})", self.suite));
        self.skipped.push(format!("{}: {name} (missing: {missing})", self.suite));
    }

    /// How many cases have failed.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failed.len()
    }

    /// Prints what failed and what was skipped, then the closing line. True when nothing failed.
    #[must_use]
    pub fn close(&self) -> bool {
        line(format_args!(""));
        for name in &self.skipped {
            line(format_args!("skipped: {name}"));
        }
        for name in &self.failed {
            line(format_args!("failed: {name}"));
        }
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        line(format_args!("{} passed, {failed} failed, {skipped} skipped", self.passed));
        failed == 0
    }
}

/// Writes one line to standard output, at once; a reader who left is no reason to stop.
pub fn line(text: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_case_fails_the_run_and_the_others_still_count() {
        let mut report = Report::default();
        report.suite("s");
        assert!(report.case("good", || Ok(())));
        assert!(!report.case("bad", || anyhow::bail!("broken")));
        report.skip("later", "a tool");
        assert_eq!((report.passed, report.failed.len(), report.skipped.len()), (1, 1, 1));
        assert!(!report.close());
    }
}
