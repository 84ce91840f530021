//! Durations counted in buckets, as Prometheus has them.

use std::time::Duration;

/// Upper bounds of the buckets in seconds; one bucket without a bound follows.
pub const BOUNDS: [f64; 15] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// How many durations fell into which bucket, and their sum.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&mut self, took: Duration) {
        let bucket = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// Per bound, how many durations are not above it. What is above the last bound is in [`Self::count`] only.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let totals = self.counts.iter().scan(0, |total, count| {
            *total += count;
            Some(*total)
        });
        BOUNDS.into_iter().zip(totals)
    }

    /// How many durations there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_all_buckets_that_are_not_below_it() {
        let mut histogram = Histogram::default();
        for millis in [1, 30, 30, 500_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let at = |bound: f64| histogram.cumulative().find(|(b, _)| *b == bound).map(|(_, count)| count);
        assert_eq!((at(0.000_5), at(0.001), at(0.05), at(120.0)), (Some(0), Some(1), Some(3), Some(3)));
        assert_eq!((histogram.count(), histogram.sum()), (4, Duration::from_millis(500_061)));
    }
}
