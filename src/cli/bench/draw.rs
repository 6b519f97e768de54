//! `bench --report`: where the time goes and how the speed changes with the position, as pictures.

use super::profile::Row;
use super::{Phase, Report};
use crate::cli::output;
use crate::show::{Bar, Bars, Lines, Page, Segment, Series};

/// Positions that a line is drawn through at most: of more, neighbours are taken together.
const POINTS: usize = 128;

/// The page of what was measured.
pub fn page(report: &Report, prefill: &Phase, decode: &Phase) -> Page {
    let mut page = Page::new("Bench");
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2} tok/s"));
    let kernels: Vec<String> = report.kernels.iter().map(|(ty, kernel)| format!("{ty}: {kernel}")).collect();
    page.facts(&[
        ("model", report.model.clone()),
        ("prefill", format!("{} of {} tokens", rate(report.prefill_tok_s), report.prompt_tokens)),
        (
            "decode",
            format!("{} of {} tokens at {}", rate(report.decode_tok_s), report.decode_tokens, report.depth),
        ),
        ("kernels", format!("{}: {}", report.isa, kernels.join(", "))),
        ("threads", report.threads.to_string()),
        ("rounds", format!("medians of {}", report.rounds)),
        ("peak RSS", report.peak_rss_bytes.map_or_else(|| "unknown".to_owned(), output::bytes)),
    ]);
    for line in report.residency.iter().flat_map(super::Residency::lines) {
        page.paragraph(&line);
    }
    for (name, phase) in [("Prefill", prefill), ("Decode", decode)] {
        let rates = thinned(&phase.rates());
        if rates.len() > 1 {
            page.heading(&format!("{name} by position"));
            page.paragraph("The median of all rounds at each position, from 0 up.");
            page.lines(&Lines {
                title: format!("{name}: tokens a second by position"),
                x: "position".to_owned(),
                y: "tok/s".to_owned(),
                from_zero: true,
                series: vec![Series { name: name.to_owned(), points: rates }],
            });
        }
    }
    if let Some(profile) = &report.profile {
        for (name, rows) in [("Prefill", &profile.prefill), ("Decode", &profile.decode)] {
            if !rows.is_empty() {
                page.heading(&format!("{name} by kind of work"));
                page.paragraph("Measured in a round of its own.");
                page.bars(&bars(name, rows));
            }
        }
    }
    page
}

fn bars(name: &str, rows: &[Row]) -> Bars {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let bar = |row: &&Row| {
        let types = if row.types.is_empty() { String::new() } else { format!(" ({})", row.types.join(", ")) };
        let rate = row.weights_gb_s.map_or_else(String::new, |rate| format!(", {rate:.1} GB/s"));
        let value = format!("{:.2} ms, {:.1} %{rate}", row.seconds * 1e3, row.share * 100.0);
        let title = format!("{}{types}\n{value}", row.kind);
        let segments = vec![Segment { look: 0, value: row.seconds, title }];
        Bar { label: format!("{}{types}", row.kind), value, segments }
    };
    let bars = rows.iter().map(bar).collect();
    Bars { title: format!("{name}: time by kind of work"), looks: Vec::new(), bars }
}

/// At most so many points: of neighbours the harmonic mean, which is that of the time.
fn thinned(rates: &[(usize, f64)]) -> Vec<(f64, f64)> {
    let together = rates.len().div_ceil(POINTS).max(1);
    let mean = |group: &[(usize, f64)]| {
        let first = group.first().map_or(0, |(position, _)| *position);
        (first as f64, group.len() as f64 / group.iter().map(|(_, rate)| 1.0 / rate).sum::<f64>())
    };
    rates.chunks(together).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_taken_together() {
        let rates: Vec<(usize, f64)> =
            (0..256).map(|at| (at, if at % 2 == 0 { 10.0 } else { 30.0 })).collect();
        let thinned = thinned(&rates);
        assert_eq!(thinned.len(), 128);
        assert_eq!(thinned[1].0, 2.0);
        assert!((thinned[1].1 - 15.0).abs() < 1e-12, "{thinned:?}");
        assert_eq!(super::thinned(&[]), []);
    }
}
