//! How far a transfer is: a bar for each layer on a terminal, lines anywhere else.
//!
//! The daemon is asked for its jobs while the call waits; what `berth jobs` shows is what is drawn here.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::transport::Channel;

use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{LayerProgress, ListJobsRequest, Progress};

/// How often the daemon is asked.
const TICK: Duration = Duration::from_millis(150);
/// Without a terminal, a line at least this often.
const LINE: Duration = Duration::from_secs(10);

/// Waits for `call` and shows how far the job `name` about `subject` is meanwhile.
pub(super) async fn watch<T>(
    channel: Channel,
    name: &str,
    subject: &str,
    call: impl Future<Output = T>,
) -> T {
    let mut client = AdminClient::new(channel);
    let mut view: Box<dyn View> = if std::io::stderr().is_terminal() {
        Box::new(Bars::new())
    } else {
        Box::new(Lines { shown: BTreeSet::new(), last: Instant::now(), subject: subject.to_owned() })
    };
    tokio::pin!(call);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            result = &mut call => {
                view.end();
                return result;
            }
            _ = tick.tick() => {
                let Ok(answer) = client.list_jobs(ListJobsRequest { id: 0 }).await else { continue };
                let jobs = answer.into_inner().jobs;
                let ours = jobs.into_iter().rev().find(|job| {
                    job.name == name && job.outcome == "running" && job.subject == subject
                });
                if let Some(progress) = ours.and_then(|job| job.progress) {
                    view.show(&progress);
                }
            }
        }
    }
}

/// One line about a transfer, for tables.
pub(super) fn summary(progress: &Progress) -> String {
    let percent = (progress.done * 100).checked_div(progress.total).unwrap_or(0).min(100);
    match progress.total {
        0 => progress.phase.clone(),
        total => format!("{} {percent}% of {}", progress.phase, super::images::bytes(total)),
    }
}

/// Shows progress one way or the other.
trait View {
    fn show(&mut self, progress: &Progress);
    fn end(&mut self) {}
}

/// On a terminal.
struct Bars {
    all: MultiProgress,
    bars: Vec<(String, ProgressBar)>,
}

/// In a log.
struct Lines {
    shown: BTreeSet<String>,
    last: Instant,
    subject: String,
}

// === impl Bars ===

impl Bars {
    fn new() -> Self {
        Self { all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), bars: Vec::new() }
    }

    fn bar(&mut self, layer: &LayerProgress) -> &ProgressBar {
        let at = self.bars.iter().position(|(digest, _)| *digest == layer.digest).unwrap_or_else(|| {
            let bar = self.all.add(ProgressBar::new(layer.total));
            let style = ProgressStyle::with_template(
                "{prefix} [{bar:32}] {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {msg}",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(short(&layer.digest));
            self.bars.push((layer.digest.clone(), bar));
            self.bars.len() - 1
        });
        &self.bars[at].1
    }
}

impl View for Bars {
    fn show(&mut self, progress: &Progress) {
        for layer in &progress.layers {
            let bar = self.bar(layer);
            bar.set_position(layer.done);
            if layer.finished && !bar.is_finished() {
                bar.finish_with_message("done");
            }
        }
    }

    fn end(&mut self) {
        for (_, bar) in self.bars.drain(..) {
            bar.finish();
        }
    }
}

// === impl Lines ===

impl View for Lines {
    fn show(&mut self, progress: &Progress) {
        for layer in progress.layers.iter().filter(|layer| layer.finished) {
            if self.shown.insert(layer.digest.clone()) {
                let size = super::images::bytes(layer.total);
                super::note(format_args!("{}: {} {size} done", self.subject, short(&layer.digest)));
            }
        }
        if self.last.elapsed() >= LINE {
            self.last = Instant::now();
            super::note(format_args!("{}: {}", self.subject, summary(progress)));
        }
    }
}

/// Enough of a digest to tell layers apart.
fn short(digest: &str) -> String {
    digest.rsplit(':').next().unwrap_or(digest).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_never_divides_by_nothing_and_never_exceeds_all() {
        let progress = |done, total| Progress { total, done, phase: "fetching".into(), layers: Vec::new() };
        assert_eq!(summary(&progress(0, 0)), "fetching");
        assert_eq!(summary(&progress(512, 1024)), "fetching 50% of 1.0 KiB");
        assert_eq!(summary(&progress(2048, 1024)), "fetching 100% of 1.0 KiB");
    }
}
