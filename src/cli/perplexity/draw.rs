//! `perplexity --report`: how the perplexity settles, where in a window it is high, how divergences are
//! spread.

use super::report::{PERCENTILES, Report, fixed, joined, percentiles, small, together};
use crate::show::{Lines, Page, Series};
use crate::verify::perplexity::{Divergences, Sums, share};

/// Points of a line at most: of more, neighbours are taken together.
const POINTS: usize = 128;

/// Rows of the table of windows at most: the same.
const ROWS: usize = 32;

/// The page of what was measured.
pub fn page(report: &Report<'_>) -> Page {
    let mut page = Page::new("Perplexity");
    let perplexity = &report.measured.perplexity;
    let divergences = report.measured.divergences.as_ref();
    let mut facts = vec![
        ("model", report.own.line()),
        ("text", report.scored()),
        ("perplexity", fixed(perplexity.perplexity(), 4)),
    ];
    let summary = divergences.map(Divergences::summary);
    if let Some(side) = &report.against {
        facts.push(("against", side.line()));
    }
    if let Some(summary) = &summary {
        facts.extend(report.summary(summary));
    }
    page.facts(&facts);

    page.heading("Perplexity as it settles");
    page.paragraph(
        "exp of the mean negative logarithm of the probabilities of all tokens scored so far, and one \
         standard error above and below it. Where it still drifts by more than that, more of the text is needed.",
    );
    page.lines(&settling(&perplexity.windows));
    page.paragraph("By window; neighbours are taken together where there are many.");
    by_window(&mut page, report);

    page.heading("By position in the window");
    page.paragraph(
        "Over all windows, counted from 0. The further to the right, the more text the model has seen.",
    );
    page.lines(&by_position(report));
    if let Some(divergences) = divergences {
        page.lines(&Lines {
            title: "Divergence by position".to_owned(),
            x: "position".to_owned(),
            y: "KL divergence, nats".to_owned(),
            from_zero: true,
            series: vec![Series {
                name: "KL divergence".to_owned(),
                points: points(report, divergences.positions.len(), |stretch| {
                    together(&divergences.positions[stretch]).kld.mean().mean
                }),
            }],
        });
    }
    let (columns, rows) = report.stretches();
    page.table(&columns, &rows, &[0, 1, 2, 3]);

    if let Some(summary) = &summary {
        page.heading("How the divergences are spread");
        page.paragraph(
            "What so many percent of the scored tokens are below: of the divergence its power of ten (-3: \
             0.001 nats), which what is exactly 0 has none of; of delta p, by how much the probability of \
             the token that came is higher than the base's.",
        );
        let spread = |y: &str, value: &dyn Fn(f64, f64) -> f64| {
            let points = summary.percentiles.iter().rev();
            let points = points.map(|row| (row.percent, value(row.kld, row.delta_p))).collect();
            Lines {
                title: format!("{y} by percentile"),
                x: "tokens below, %".to_owned(),
                y: y.to_owned(),
                from_zero: false,
                series: vec![Series { name: y.to_owned(), points }],
            }
        };
        if summary.percentiles.iter().any(|row| row.kld > 0.0) {
            page.lines(&spread("KL divergence, power of ten", &|kld, _| kld.log10()));
        } else {
            page.paragraph("No token has a divergence.");
        }
        page.lines(&spread("delta p, %", &|_, delta| 100.0 * delta));
        page.table(&PERCENTILES, &percentiles(summary), &[0, 1, 2]);
    }
    page
}

/// The perplexity after each window.
fn settling(windows: &[Sums]) -> Lines {
    let mut sums = Sums::default();
    let means: Vec<_> = windows
        .iter()
        .enumerate()
        .map(|(i, window)| {
            sums.join(window);
            ((i + 1) as f64, sums.mean().exp())
        })
        .collect();
    // The last of each group, so that the line ends at the figure that is told.
    let means = means.chunks(windows.len().div_ceil(POINTS).max(1)).filter_map(|group| group.last().copied());
    let means: Vec<_> = means.collect();
    let series = |name: &str, sign: f64| {
        // Of a few tokens the error may be more than the figure, which is never below 0.
        let points = means.iter().map(|&(at, mean)| (at, mean.mean + (sign * mean.error).max(-mean.mean)));
        Series { name: name.to_owned(), points: points.collect() }
    };
    Lines {
        title: "Perplexity by windows scored".to_owned(),
        x: "windows scored".to_owned(),
        y: "perplexity".to_owned(),
        from_zero: false,
        series: vec![series("so far", 0.0), series("+ 1 error", 1.0), series("- 1 error", -1.0)],
    }
}

fn by_window(page: &mut Page, report: &Report<'_>) {
    let windows = &report.measured.perplexity.windows;
    let divergences = report.measured.divergences.as_ref();
    let len = windows.len().div_ceil(ROWS).max(1);
    let mut sums = Sums::default();
    let mut columns = vec!["windows", "perplexity", "so far"];
    if divergences.is_some() {
        columns.extend(["divergence", "same top"]);
    }
    let mut rows = Vec::new();
    for (i, group) in windows.chunks(len).enumerate() {
        let (from, to) = (i * len, i * len + group.len());
        let of_group = joined(group);
        sums.join(&of_group);
        let name = if group.len() == 1 { to.to_string() } else { format!("{}-{to}", from + 1) };
        let mut row = vec![name, fixed(of_group.mean().exp(), 4), fixed(sums.mean().exp(), 4)];
        if let Some(divergences) = divergences {
            let part = together(&divergences.windows[from..to]);
            let same = share(part.same_top, part.kld.count).mean;
            row.extend([small(part.kld.mean()), format!("{:.2} %", 100.0 * same)]);
        }
        rows.push(row);
    }
    page.table(&columns, &rows, &[0, 1, 2, 3, 4]);
}

fn by_position(report: &Report<'_>) -> Lines {
    let positions = &report.measured.perplexity.positions;
    let mut series = vec![Series {
        name: "the model's".to_owned(),
        points: points(report, positions.len(), |stretch| joined(&positions[stretch]).mean().exp().mean),
    }];
    if let Some(divergences) = &report.measured.divergences {
        series.push(Series {
            name: "the base's".to_owned(),
            points: points(report, positions.len(), |stretch| {
                together(&divergences.positions[stretch]).base_nll.mean().exp().mean
            }),
        });
    }
    Lines {
        title: "Perplexity by position".to_owned(),
        x: "position".to_owned(),
        y: "perplexity".to_owned(),
        from_zero: true,
        series,
    }
}

/// A point for each position, or for each stretch of neighbours where there are too many, at its first.
fn points(
    report: &Report<'_>,
    positions: usize,
    value: impl Fn(std::ops::Range<usize>) -> f64,
) -> Vec<(f64, f64)> {
    let first = report.windows.scored().start;
    let len = positions.div_ceil(POINTS).max(1);
    let starts = (0..positions).step_by(len);
    starts.map(|at| ((first + at) as f64, value(at..positions.min(at + len)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_ends_at_the_figure() {
        let windows: Vec<Sums> = (0..300).map(|i| Sums::of([1.0, f64::from(i % 7)])).collect();
        let lines = settling(&windows);
        let all = joined(&windows).mean().exp();
        assert!(lines.series[0].points.len() <= POINTS);
        let ends: Vec<_> = lines.series.iter().map(|series| *series.points.last().unwrap()).collect();
        let wanted = [all.mean, all.mean + all.error, all.mean - all.error].map(|value| (300.0, value));
        assert_eq!(ends, wanted);
        assert_eq!(settling(&[]).series[0].points, []);
    }
}
