//! What a run has come to, for people and for programs.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::cli::number::Number;
use crate::cli::{CliError, output, safe_text};
use crate::engine::{Engine, EngineOptions};
use crate::verify::perplexity::{
    BaseHeader, DivergencePart, DivergenceSummary, Divergences, Mean, Measured, Percentile, Sums, Windows,
    share,
};

/// Stretches of positions that people are shown.
const STRETCHES: usize = 4;

/// Columns of what a base says of itself, at most.
const MOST_SETTINGS: usize = 200;

/// One side of a comparison.
pub struct Side {
    /// The file.
    pub name: String,
    /// How it was run, and of a base what; `None` where nobody knows.
    pub settings: Option<String>,
}

impl Side {
    /// Of a file and, where it is run, its engine.
    pub fn new(path: &Path, engine: Option<(&Engine<'_>, &EngineOptions)>) -> Side {
        let settings = engine.map(|(engine, options)| format!("{}, KV {}", engine.isa(), options.kv));
        Side { name: path.display().to_string(), settings }
    }

    /// Of a base that says what it is of.
    pub fn of_base(path: &Path, header: &BaseHeader) -> Side {
        let settings = format!("{}, {}", header.model, header.settings);
        Side { name: path.display().to_string(), settings: Some(settings) }
    }

    /// In words.
    pub fn line(&self) -> String {
        let name = safe_text::escape(&self.name);
        match &self.settings {
            Some(settings) => {
                format!("{name} ({})", output::cut_end(&safe_text::escape(settings), MOST_SETTINGS))
            }
            None => name.to_string(),
        }
    }
}

/// All of it.
pub struct Report<'r> {
    pub own: Side,
    pub against: Option<Side>,
    pub text: &'r Path,
    pub windows: &'r Windows,
    pub measured: &'r Measured,
}

impl Report<'_> {
    /// Prints it.
    pub fn print(&self, json: bool) -> Result<(), CliError> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        if json {
            safe_text::write_json(&self.json(), &mut out)?;
        } else {
            self.write(&mut out)?;
        }
        out.flush()?;
        Ok(())
    }

    fn write(&self, out: &mut impl Write) -> Result<(), CliError> {
        writeln!(out, "{}", self.own.line())?;
        writeln!(out, "{}", safe_text::escape(&self.scored()))?;
        writeln!(out)?;
        line(out, "perplexity", &fixed(self.measured.perplexity.perplexity(), 4))?;
        if let (Some(divergences), Some(side)) = (&self.measured.divergences, &self.against) {
            let summary = divergences.summary();
            writeln!(out, "\nagainst {}\n", side.line())?;
            for (name, value) in self.summary(&summary) {
                line(out, name, &value)?;
            }
            let mut table = output::new_table(&PERCENTILES, &[0, 1, 2]);
            table.add_rows(percentiles(&summary));
            writeln!(out, "\n{}", table.trim_fmt())?;
        }
        let (columns, rows) = self.stretches();
        let mut table = output::new_table(&columns, &[0, 1, 2, 3]);
        table.add_rows(rows);
        writeln!(out, "\n{}", table.trim_fmt())?;
        Ok(())
    }

    /// What was scored.
    pub fn scored(&self) -> String {
        format!(
            "{} of {} tokens of {}: {} tokens scored",
            counted(self.windows.count(), "window"),
            self.windows.window(),
            self.text.display(),
            output::grouped(self.measured.perplexity.all.count),
        )
    }

    /// What a comparison comes to, each with its name.
    pub fn summary(&self, summary: &DivergenceSummary) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("base's perplexity", fixed(summary.base_perplexity, 4)),
            ("ratio", fixed(summary.ratio, 6)),
            ("ln of the ratio", small(summary.ln_ratio)),
        ];
        if let Some(correlation) = summary.correlation {
            lines.push(("correlation", format!("{} %", decimal(100.0 * correlation, 2))));
        }
        lines.extend([
            ("KL divergence", small(summary.kld)),
            ("same top token", percent(summary.same_top, 2)),
            ("delta p", percent(summary.delta_p, 3)),
            ("delta p, RMS", percent(summary.delta_p_rms, 3)),
        ]);
        if let Some(differing) = summary.differing {
            let [differing, rows] = [differing, self.measured.perplexity.all.count].map(output::grouped);
            lines.push(("rows that differ", format!("{differing} of {rows}")));
        }
        if summary.rest > 0.0 {
            let rest = format!("{} % of the probability", output::significant(100.0 * summary.rest, 3));
            lines.push(("not told apart", rest));
        }
        lines
    }

    /// The columns of a table by position, in stretches, and its rows.
    pub fn stretches(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let positions = &self.measured.perplexity.positions;
        let divergences = self.measured.divergences.as_ref();
        let mut columns = vec!["positions", "perplexity"];
        if divergences.is_some() {
            columns.extend(["divergence", "same top"]);
        }
        let first = self.windows.scored().start;
        let len = positions.len().div_ceil(STRETCHES).max(1);
        let row = |(i, stretch): (usize, &[Sums])| {
            let from = i * len;
            let (begin, end) = (first + from, first + from + stretch.len() - 1);
            let mut row = vec![format!("{begin}-{end}"), fixed(joined(stretch).mean().exp(), 4)];
            if let Some(divergences) = divergences {
                let part = together(&divergences.positions[from..from + stretch.len()]);
                row.push(small(part.kld.mean()));
                row.push(percent(share(part.same_top, part.kld.count), 2));
            }
            row
        };
        (columns, positions.chunks(len).enumerate().map(row).collect())
    }

    fn json(&self) -> Json<'_> {
        let Report { windows, measured, .. } = self;
        let perplexity = &measured.perplexity;
        Json {
            model: &self.own.name,
            settings: self.own.settings.as_deref(),
            text: self.text.display().to_string(),
            tokens: windows.tokens().len(),
            context: windows.options().context,
            stride: windows.options().stride,
            window: windows.window(),
            scored: perplexity.all.count,
            perplexity: perplexity.perplexity().into(),
            nll: perplexity.all.mean().into(),
            divergence: measured.divergences.as_ref().map(|divergences| {
                let summary = divergences.summary();
                JsonDivergence::new(self.against.as_ref(), &summary)
            }),
            windows: parts(&perplexity.windows, measured.divergences.as_ref().map(|d| &d.windows[..])),
            first_position: windows.scored().start,
            positions: parts(&perplexity.positions, measured.divergences.as_ref().map(by_position)),
        }
    }
}

fn by_position(divergences: &Divergences) -> &[DivergencePart] {
    &divergences.positions
}

/// Windows or positions as one.
pub fn joined(parts: &[Sums]) -> Sums {
    let mut sums = Sums::default();
    parts.iter().for_each(|part| sums.join(part));
    sums
}

/// The same of what is compared.
pub fn together(parts: &[DivergencePart]) -> DivergencePart {
    let mut whole = DivergencePart::default();
    parts.iter().for_each(|part| whole.join(part));
    whole
}

fn counted(count: usize, what: &str) -> String {
    format!("{} {what}{}", output::grouped(count as u64), if count == 1 { "" } else { "s" })
}

fn line(out: &mut impl Write, label: &str, value: &str) -> io::Result<()> {
    writeln!(out, "  {label:<22} {value}")
}

/// A value with so many decimals; what is rounded to 0 has no sign.
fn decimal(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        _ => text,
    }
}

/// A mean and its error, with so many decimals.
pub fn fixed(mean: Mean, digits: usize) -> String {
    format!("{} ± {}", decimal(mean.mean, digits), decimal(mean.error, digits))
}

/// A value that may be small, and is exactly 0 where that is said.
pub fn small(mean: Mean) -> String {
    format!("{} ± {}", short(mean.mean), short(mean.error))
}

fn short(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { output::significant(value, 4) }
}

/// In percent.
fn percent(mean: Mean, digits: usize) -> String {
    format!("{} ± {} %", decimal(100.0 * mean.mean, digits), decimal(100.0 * mean.error, digits))
}

/// The columns of [`percentiles`].
pub const PERCENTILES: [&str; 3] = ["percentile", "divergence", "delta p"];

/// Rows of a table of percentiles.
pub fn percentiles(summary: &DivergenceSummary) -> Vec<Vec<String>> {
    let row = |row: &Percentile| {
        let label = match row.percent {
            100.0 => "maximum".to_owned(),
            50.0 => "median".to_owned(),
            0.0 => "minimum".to_owned(),
            percent => format!("{percent:.1} %"),
        };
        vec![label, short(row.kld), format!("{} %", decimal(100.0 * row.delta_p, 3))]
    };
    summary.percentiles.iter().map(row).collect()
}

#[derive(Serialize)]
struct JsonMean {
    mean: Number,
    error: Number,
}

impl From<Mean> for JsonMean {
    fn from(mean: Mean) -> JsonMean {
        JsonMean { mean: mean.mean.into(), error: mean.error.into() }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Json<'r> {
    model: &'r str,
    settings: Option<&'r str>,
    text: String,
    /// Of the whole text.
    tokens: usize,
    context: usize,
    stride: Option<usize>,
    /// Tokens of a window.
    window: usize,
    scored: u64,
    perplexity: JsonMean,
    /// In nats, of a token.
    nll: JsonMean,
    #[serde(skip_serializing_if = "Option::is_none")]
    divergence: Option<JsonDivergence>,
    windows: Vec<JsonPart>,
    /// Where the first of the positions is in its window, counted from 0.
    first_position: usize,
    positions: Vec<JsonPart>,
}

/// A window, or a position over all windows.
#[derive(Serialize)]
struct JsonPart {
    nll: Number,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_nll: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kld: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    same_top: Option<Number>,
}

fn parts(sums: &[Sums], others: Option<&[DivergencePart]>) -> Vec<JsonPart> {
    let part = |(i, sums): (usize, &Sums)| {
        let other = others.map(|others| &others[i]);
        JsonPart {
            nll: sums.mean().mean.into(),
            base_nll: other.map(|other| other.base_nll.mean().mean.into()),
            kld: other.map(|other| other.kld.mean().mean.into()),
            same_top: other.map(|other| share(other.same_top, other.kld.count).mean.into()),
        }
    };
    sums.iter().enumerate().map(part).collect()
}

#[derive(Serialize)]
struct JsonDivergence {
    against: Option<String>,
    settings: Option<String>,
    base_perplexity: JsonMean,
    ratio: JsonMean,
    ln_ratio: JsonMean,
    correlation: Option<Number>,
    kld: JsonMean,
    same_top: JsonMean,
    delta_p: JsonMean,
    delta_p_rms: JsonMean,
    /// Rows of which some logit differs, where all are known.
    rows_that_differ: Option<u64>,
    /// The mean probability that the base does not tell apart.
    not_told_apart: Number,
    percentiles: Vec<JsonPercentile>,
}

#[derive(Serialize)]
struct JsonPercentile {
    percent: f64,
    kld: Number,
    delta_p: Number,
}

impl JsonDivergence {
    fn new(side: Option<&Side>, summary: &DivergenceSummary) -> JsonDivergence {
        let percentiles = summary.percentiles.iter().map(|row| JsonPercentile {
            percent: row.percent,
            kld: row.kld.into(),
            delta_p: row.delta_p.into(),
        });
        JsonDivergence {
            against: side.map(|side| side.name.clone()),
            settings: side.and_then(|side| side.settings.clone()),
            base_perplexity: summary.base_perplexity.into(),
            ratio: summary.ratio.into(),
            ln_ratio: summary.ln_ratio.into(),
            correlation: summary.correlation.map(Number::from),
            kld: summary.kld.into(),
            same_top: summary.same_top.into(),
            delta_p: summary.delta_p.into(),
            delta_p_rms: summary.delta_p_rms.into(),
            rows_that_differ: summary.differing,
            not_told_apart: summary.rest.into(),
            percentiles: percentiles.collect(),
        }
    }
}
