//! The Prometheus text format, version 0.0.4.

use std::fmt::{Display, Write};

use engine::histogram::Histogram;

/// What the HTTP answer calls it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page in the making.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Opens a family of samples. `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        if !labels.is_empty() {
            self.0.push('{');
            for (n, (key, value)) in labels.iter().enumerate() {
                let comma = if n == 0 { "" } else { "," };
                let _ = write!(self.0, "{comma}{key}=\"{}\"", escaped(value));
            }
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// All samples of one histogram.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        let bounds = histogram.cumulative().map(|(bound, count)| (bound.to_string(), count));
        for (bound, count) in bounds.chain([("+Inf".to_owned(), histogram.count())]) {
            let all: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&bucket, &all, count);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum().as_secs_f64());
        self.sample(&format!("{name}_count"), labels, histogram.count());
    }

    /// The page.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

/// A label's value: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_page_is_what_the_format_says() {
        let mut page = Page::default();
        page.family("a_total", "counter", "Things.");
        page.sample("a_total", &[], 3);
        page.sample("a_total", &[("x", "1\"2\\3\n"), ("y", "")], 0.5);
        let want = "# HELP a_total Things.\n# TYPE a_total counter\na_total 3\na_total{x=\"1\\\"2\\\\3\\n\",y=\"\"} 0.5\n";
        assert_eq!(page.finish(), want);
    }

    #[test]
    fn a_histogram_ends_with_its_infinite_bucket_sum_and_count() {
        let (mut page, mut histogram) = (Page::default(), Histogram::default());
        histogram.observe(Duration::from_millis(1500));
        page.histogram("t", &[("k", "v")], &histogram);
        let text = page.finish();
        assert!(text.starts_with("t_bucket{k=\"v\",le=\"0.0005\"} 0\n"), "{text}");
        assert!(text.contains("t_bucket{k=\"v\",le=\"2.5\"} 1\n"), "{text}");
        assert!(
            text.ends_with("t_bucket{k=\"v\",le=\"+Inf\"} 1\nt_sum{k=\"v\"} 1.5\nt_count{k=\"v\"} 1\n"),
            "{text}"
        );
    }
}
