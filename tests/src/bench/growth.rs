//! How latencies grow with the number of pods on a node.
//!
//! What the kernel has left of a pod that was removed it clears away later, on the same processors and with the same locks. So starts and
//! removals are measured apart from each other; and starts once more right behind a removal each, which is a row of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::action::{self, Pod};
use super::contender::Contender;
use super::machine::number;
use super::run::{remove_together, start_together};
use super::sample::Sample;
use crate::client::Client;
use crate::images::BUSYBOX;
use crate::report::line;
use crate::suites::wait;

/// Times that pods are started and removed in each step, on the way up and again on the way down.
const ROUNDS: usize = 5;
/// Pods that are started, and then removed, in one round.
const PODS: usize = 10;
/// What the kernel has left of one pod is cleared away by then.
const CLEARED: Duration = Duration::from_millis(200);
/// What pods that come or go by the hundred leave to be done in the background is done by then.
pub(super) const SETTLED: Duration = Duration::from_secs(2);

/// What is measured, then pods on the node and the median in milliseconds.
pub type Growth = BTreeMap<String, Vec<(usize, f64)>>;

/// Measures at each number of pods, as the node fills and as it empties: so that a machine that slows down meanwhile is not taken for
/// a node that does.
///
/// # Errors
/// An action fails.
pub fn measure(contender: &Contender, steps: &[usize]) -> Result<Growth> {
    wait(async {
        let mut client = contender.client().await?;
        client.pull(BUSYBOX).await?;
        let logs = contender.dir.join("logs/growth");
        let mut samples: BTreeMap<&str, BTreeMap<usize, Sample>> = BTreeMap::new();
        let mut pods: Vec<Pod> = Vec::new();
        for &step in steps.iter().chain(steps.iter().rev()) {
            let more = start_together(&client, pods.len()..step.max(pods.len()), 10, &logs).await?;
            for pod in &more {
                action::up(pod, &logs).await?;
            }
            pods.extend(more);
            remove_together(&client, pods.split_off(step), 10).await?;
            tokio::time::sleep(SETTLED).await;
            let mut push = |what, took| samples.entry(what).or_default().entry(step).or_default().push(took);
            for _ in 0..ROUNDS {
                round(&mut client, &logs, &mut push).await?;
            }
            for _ in 0..ROUNDS * PODS {
                push("pod ready, behind a removal", behind_a_removal(&mut client, &logs).await?);
            }
        }
        remove_together(&client, pods, 10).await?;
        let medians = |steps: BTreeMap<usize, Sample>| {
            steps.into_iter().map(|(step, sample)| (step, sample.median())).collect()
        };
        Ok(samples.into_iter().map(|(what, steps)| (what.to_owned(), medians(steps))).collect())
    })
}

/// A few more pods one after the other, an exec in each, and then their ends: what each of them took, in milliseconds.
async fn round(client: &mut Client, logs: &Path, push: &mut impl FnMut(&'static str, f64)) -> Result<()> {
    let mut pods = Vec::new();
    for number in 0..PODS {
        let (start, pod) = action::pod(client, &format!("growth-{number}"), logs).await?;
        action::up(&pod, logs).await?;
        push("pod ready", start.run + start.create + start.start);
        push("RunPodSandbox", start.run);
        push("CreateContainer", start.create);
        push("StartContainer", start.start);
        push("ExecSync true", action::exec(client, &pod).await?);
        push("ContainerStatus", action::status(client, &pod).await?);
        pods.push(pod);
    }
    for pod in pods {
        push("pod stopped and removed", action::remove(client, &pod).await?);
        std::fs::remove_dir_all(logs.join(&pod.name))?;
    }
    tokio::time::sleep(CLEARED).await;
    Ok(())
}

/// One more pod, when another was removed a moment ago: how long it took until it was ready.
async fn behind_a_removal(client: &mut Client, logs: &Path) -> Result<f64> {
    let (start, pod) = action::pod(client, "growth", logs).await?;
    action::up(&pod, logs).await?;
    action::remove(client, &pod).await?;
    std::fs::remove_dir_all(logs.join(&pod.name))?;
    Ok(start.run + start.create + start.start)
}

/// Prints each latency with its exponent.
pub fn print(growth: &Growth) {
    for (what, points) in growth {
        let shown: Vec<_> = points.iter().map(|(pods, median)| format!("{pods}: {median:.2} ms")).collect();
        line(format_args!("{what}: {}; grows with exponent {:.2}", shown.join(", "), exponent(points)));
    }
}

/// The last value over the first.
#[must_use]
pub fn factor(points: &[(usize, f64)]) -> f64 {
    points.first().zip(points.last()).map_or(f64::NAN, |((_, first), (_, last))| last / first)
}

/// The exponent e of the power law latency ~ pods^e that fits best: the slope of a straight line through the logarithms.
#[must_use]
pub fn exponent(points: &[(usize, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(pods, ms)| (number(*pods).ln(), ms.ln())).collect();
    let count = number(logs.len());
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let slope: f64 = logs.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    slope / logs.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_of_a_power_law_is_found() {
        let points = |e: f64| [10_usize, 100, 300, 600].map(|n| (n, 3.0 * number(n).powf(e)));
        assert!((exponent(&points(0.0))).abs() < 1e-9);
        assert!((exponent(&points(1.0)) - 1.0).abs() < 1e-9);
        assert!((exponent(&points(-0.5)) + 0.5).abs() < 1e-9);
        assert!((factor(&points(1.0)) - 60.0).abs() < 1e-9);
    }
}
