//! Pictures of the results, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::growth::{Growth, exponent};
use super::machine::number;
use super::run::Results;
use super::table::GOALS;

const SIZE: (u32, u32) = (860, 420);
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 92, 175),
    RGBColor(214, 96, 36),
    RGBColor(34, 139, 84),
    RGBColor(140, 70, 160),
    RGBColor(90, 90, 90),
    RGBColor(190, 150, 20),
];

/// Latencies over the number of pods on the node, both axes logarithmic: a straight line is a power law, a level one is
/// what one hopes for.
///
/// # Errors
/// The file cannot be written.
pub fn growth(growth: &Growth, path: &Path) -> Result<()> {
    let all = || growth.values().flatten();
    let most = all().map(|(_, ms)| *ms).fold(1.0, f64::max);
    let least = all().map(|(_, ms)| *ms).fold(most, f64::min);
    let pods = all().map(|(pods, _)| *pods).max().unwrap_or(10);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(broken)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Berth: latency by pods on the node", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d((8.0..number(pods) * 1.2).log_scale(), (least / 2.0..most * 2.0).log_scale())
        .map_err(broken)?;
    chart
        .configure_mesh()
        .x_desc("pods on the node")
        .y_desc("median, ms")
        .x_label_formatter(&|pods| format!("{pods:.0}"))
        .y_label_formatter(&|ms| format!("{ms:.1}"))
        .draw()
        .map_err(broken)?;
    for ((what, points), colour) in growth.iter().zip(COLOURS.iter().cycle()) {
        let line: Vec<_> = points.iter().map(|(pods, ms)| (number(*pods), *ms)).collect();
        let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
        let label = format!("{what} (exponent {:.2})", exponent(points));
        chart
            .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))
            .map_err(broken)?
            .label(label)
            .legend(key);
        let dots = line.into_iter().map(|point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots).map_err(broken)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(broken)?;
    root.present().map_err(broken)
}

/// How many times better Berth is in each row that has a goal, one bar for each rival, on a logarithmic axis.
///
/// # Errors
/// The file cannot be written.
pub fn ratios(results: &Results, path: &Path) -> Result<()> {
    let bars = bars(results);
    let rows = bars.iter().map(|bar| bar.row).max().map_or(0, |row| row + 1);
    let most = bars.iter().map(|bar| bar.ratio).fold(10.0, f64::max) * 2.0;
    let root = SVGBackend::new(path, (SIZE.0, u32::try_from(rows * 40 + 100)?)).into_drawing_area();
    root.fill(&WHITE).map_err(broken)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("How many times better than …", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(8)
        .build_cartesian_2d((0.5..most).log_scale(), 0.0..number(rows))
        .map_err(broken)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_label_formatter(&|ratio| format!("{ratio}x"))
        .draw()
        .map_err(broken)?;
    let names: std::collections::BTreeSet<_> = bars.iter().map(|bar| bar.rival.clone()).collect();
    for (place, (name, colour)) in names.iter().zip(COLOURS.iter().skip(1)).enumerate() {
        let mine = bars.iter().filter(|bar| bar.rival == *name);
        let rectangles = mine.clone().map(|bar| {
            let bottom = number(rows - bar.row) - 0.60 - 0.28 * number(place);
            Rectangle::new([(0.5, bottom), (bar.ratio, bottom + 0.26)], colour.mix(0.75).filled())
        });
        let key = move |(x, y)| Rectangle::new([(x, y - 4), (x + 14, y + 4)], colour.mix(0.75).filled());
        chart.draw_series(rectangles).map_err(broken)?.label(name.as_str()).legend(key);
        let texts = mine.map(|bar| {
            let at = (bar.ratio * 1.04, number(rows - bar.row) - 0.38 - 0.28 * number(place));
            Text::new(format!("{:.1}", bar.ratio), at, ("sans-serif", 11))
        });
        chart.draw_series(texts).map_err(broken)?;
    }
    let titles = bars
        .iter()
        .map(|bar| Text::new(bar.title.clone(), (0.52, number(rows - bar.row) - 0.08), ("sans-serif", 12)));
    chart.draw_series(titles).map_err(broken)?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .draw()
        .map_err(broken)?;
    root.present().map_err(broken)
}

/// One bar.
struct Bar {
    /// Place of its row, from the top.
    row: usize,
    title: String,
    rival: String,
    ratio: f64,
}

fn bars(results: &Results) -> Vec<Bar> {
    let mut bars = Vec::new();
    let rows =
        GOALS.iter().filter_map(|(prefix, ..)| results.iter().find(|(row, _)| row.starts_with(prefix)));
    for (row, (title, samples)) in rows.enumerate() {
        let Some(own) = samples.get("berth") else { continue };
        for (rival, theirs) in samples.iter().filter(|(name, _)| *name != "berth") {
            let title = title.rsplit_once(':').map_or(title.as_str(), |(title, _)| title).to_owned();
            bars.push(Bar { row, title, rival: rival.clone(), ratio: theirs.median() / own.median() });
        }
    }
    bars
}

fn broken(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("plot: {error}")
}
