//! Samples of one quantity and what they say.

use serde::Serialize;

/// Measured values, in the order in which they came.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample(Vec<f64>);

// === impl Sample ===

impl Sample {
    /// Adds a value.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Adds several values.
    pub fn extend(&mut self, values: &[f64]) {
        self.0.extend(values);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value below which a share `q` (0 to 1) of all lie; NaN when there is none.
    #[must_use]
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(clippy::cast_precision_loss, reason = "a sample has few values")]
        let rank = q * (sorted.len().saturating_sub(1)) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ≤ rank < length")]
        let below = rank as usize;
        let (Some(low), Some(high)) = (sorted.get(below), sorted.get(below + 1).or(sorted.get(below))) else {
            return f64::NAN;
        };
        low + (high - low) * rank.fract()
    }

    /// The median.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_and_order_does_not_matter() {
        let mut sample = Sample::default();
        sample.extend(&[4.0, 1.0, 3.0, 2.0]);
        assert!((sample.median() - 2.5).abs() < 1e-9);
        assert!((sample.quantile(1.0) - 4.0).abs() < 1e-9 && (sample.quantile(0.0) - 1.0).abs() < 1e-9);
        assert!(Sample::default().median().is_nan());
    }
}
