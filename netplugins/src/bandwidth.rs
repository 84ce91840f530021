//! How much traffic a pod may have: the annotations `kubernetes.io/ingress-bandwidth` and `…/egress-bandwidth`.
//!
//! The kubelet's own rules hold: a value is a Kubernetes quantity of bits per second from 1k to 1P. What it would refuse is
//! refused here as well, by the annotation's name, before anything of the pod exists.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Limits what comes into the pod.
pub(crate) const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Limits what the pod sends.
pub(crate) const EGRESS: &str = "kubernetes.io/egress-bandwidth";

const LEAST: u64 = 1_000;
const MOST: u64 = 1_000_000_000_000_000;

/// Bits per second in each direction, as the pod sees it; `None`: as much as the node can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) ingress: Option<u64>,
    pub(crate) egress: Option<u64>,
}

impl Limits {
    /// What the annotations of a pod say.
    pub(crate) fn of(annotations: &BTreeMap<String, String>) -> Result<Self, Error> {
        let read = |name| annotations.get(name).map(|value| rate(name, value)).transpose();
        Ok(Self { ingress: read(INGRESS)?, egress: read(EGRESS)? })
    }
}

/// A token bucket that keeps a rate (tc-tbf(8)), everything in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Per second.
    pub(crate) rate: u64,
    /// Size of the bucket: what may pass at once after a pause.
    pub(crate) burst: u32,
    /// What may wait; the rest is dropped.
    pub(crate) limit: u32,
}

impl Bucket {
    /// A bucket for a rate in bits per second.
    ///
    /// The annotations say nothing of bursts. Fifty milliseconds' worth keep the rate within any second, and lose nothing where
    /// the timer of a busy node is late; below it a full-sized segment of generic offload must still fit. The queue holds a
    /// hundred milliseconds, or some packets where the rate is small: with less, TCP does not reach the rate.
    pub(crate) fn of(bits: u64) -> Self {
        const LEAST_BURST: u64 = 16 << 10;
        const LEAST_QUEUE: u64 = 64 << 10;
        let rate = bits.div_ceil(8);
        let bounded = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let burst = (rate / 20).max(LEAST_BURST).min(u64::from(u32::MAX / 2));
        let queue = (rate / 10).max(LEAST_QUEUE);
        Self { rate, burst: bounded(burst), limit: bounded(burst.saturating_add(queue)) }
    }
}

fn rate(annotation: &'static str, value: &str) -> Result<u64, Error> {
    let refuse = |why| Err(Error::Annotation { annotation, value: value.to_owned(), why });
    match quantity(value) {
        None => refuse("it is no quantity, such as 10M"),
        Some(bits) if bits < LEAST => refuse("a pod cannot work with less than 1k bits per second"),
        Some(bits) if bits > MOST => refuse("it is more than 1P bits per second"),
        Some(bits) => Ok(bits),
    }
}

/// A Kubernetes quantity as a whole number, fractions rounded up: `10M`, `1.5Gi`, `1e6`.
fn quantity(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let (multiplier, divisor) = factor(suffix)?;
    if whole.len() + fraction.len() > 18 {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    u64::try_from(digits.checked_mul(multiplier)?.div_ceil(divisor * scale)).ok()
}

/// What a quantity's suffix multiplies and divides by.
fn factor(suffix: &str) -> Option<(u128, u128)> {
    let thousands = ["", "k", "M", "G", "T", "P", "E"];
    let kibis = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let parts = ["m", "u", "n"];
    let place = |names: &[&str]| names.iter().position(|n| *n == suffix).and_then(|p| u32::try_from(p).ok());
    if let Some(power) = place(&thousands) {
        return Some((1000u128.pow(power), 1));
    }
    if let Some(power) = place(&kibis) {
        return Some((1024u128.pow(power + 1), 1));
    }
    if let Some(power) = place(&parts) {
        return Some((1, 1000u128.pow(power + 1)));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10u128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.abs() < 20)?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        for (text, value) in [
            ("1", Some(1)),
            ("+1k", Some(1_000)),
            ("10M", Some(10_000_000)),
            ("1.5Gi", Some(1_610_612_736)),
            ("1e6", Some(1_000_000)),
            ("5E-1", Some(1)),
            ("2500m", Some(3)),
            ("0.5k", Some(500)),
            (".5k", Some(500)),
            ("", None),
            ("M", None),
            ("-1", None),
            ("1X", None),
            ("1 M", None),
            ("99E", None),
            ("1e99", None),
            ("1.2.3", None),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
    }

    #[test]
    fn a_bad_rate_is_refused_by_the_annotations_name() {
        let of = |name: &str, value: &str| Limits::of(&BTreeMap::from([(name.into(), value.into())]));
        assert_eq!(of(INGRESS, "1k").unwrap(), Limits { ingress: Some(1_000), egress: None });
        assert_eq!(of(EGRESS, "1P").unwrap(), Limits { ingress: None, egress: Some(MOST) });
        assert_eq!(of("other", "x").unwrap(), Limits::default());
        for (value, why) in [("999", "less than 1k"), ("1.1P", "more than 1P"), ("fast", "no quantity")] {
            let error = of(EGRESS, value).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::InvalidArgument);
            let text = error.to_string();
            assert!(text.contains(EGRESS) && text.contains(value) && text.contains(why), "{text}");
        }
    }

    #[test]
    fn a_bucket_passes_a_segment_at_any_rate_and_fits_the_kernels_fields() {
        for bits in [LEAST, 1_000_000, 10_000_000_000, MOST] {
            let bucket = Bucket::of(bits);
            assert!(bucket.burst >= 16 << 10 && bucket.limit > bucket.burst, "{bucket:?}");
        }
        assert_eq!(Bucket::of(80_000_000), Bucket { rate: 10_000_000, burst: 500_000, limit: 1_500_000 });
    }
}
