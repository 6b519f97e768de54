//! What `trace` prints.

use std::io::Write;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Value, json};

use super::super::number::Number;
use super::super::{CliError, output, safe_text, verdict};
use crate::verify::{Divergence, InputState, NodeGraph, NodeLabel, NodeReport, NodeStatistics, Substitute};

/// A comparison to be printed.
pub struct Comparison<'a> {
    /// What the reference is called.
    pub reference: String,
    /// What was compared with it.
    pub subject: String,
    pub substitute: Substitute,
    pub graph: &'a NodeGraph<'a>,
    pub reports: &'a [NodeReport<'a>],
    /// Nodes that only one side has.
    pub only_reference: Vec<String>,
    pub only_subject: Vec<String>,
}

/// How to print it.
pub struct Shown {
    pub worst: Option<usize>,
    pub json: bool,
}

/// Prints a comparison; 1 where a node is beyond its tolerance, or where there was nothing to compare.
pub fn comparison(c: &Comparison<'_>, shown: &Shown) -> Result<ExitCode, CliError> {
    if c.reports.is_empty() {
        let message = format!("{} and {} have no node in common that is asked for", c.reference, c.subject);
        return Err(CliError::new(message));
    }
    let mut rows: Vec<&NodeReport<'_>> = c.reports.iter().collect();
    if let Some(worst) = shown.worst {
        rows.sort_by(|a, b| farness(b).total_cmp(&farness(a)));
        rows.truncate(worst);
    }
    let divergence = Divergence::first(c.reports, c.graph);
    let printed = print(c, &rows, divergence.as_ref(), shown);
    verdict(ExitCode::from(u8::from(divergence.is_some())), printed)
}

fn print(
    c: &Comparison<'_>,
    rows: &[&NodeReport<'_>],
    divergence: Option<&Divergence<'_>>,
    shown: &Shown,
) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    if shown.json {
        safe_text::write_json(&as_json(c, rows, divergence), &mut out)?;
    } else {
        table(&mut out, rows, shown.worst.is_some())?;
        for (who, nodes) in [(&c.reference, &c.only_reference), (&c.subject, &c.only_subject)] {
            if !nodes.is_empty() {
                writeln!(out, "only {}: {}", safe_text::escape(who), names(nodes))?;
            }
        }
        writeln!(out, "{}", summary(c, divergence))?;
    }
    Ok(())
}

/// What nodes are ranked by: the NMSE, or for chosen experts the share of tokens that got others.
pub fn farness(r: &NodeReport<'_>) -> f64 {
    r.choices.map_or_else(|| r.difference.nmse(), |c| c.sets_differ as f64 / c.tokens.max(1) as f64)
}

/// Names without pass and layer, each once.
pub fn names(nodes: &[String]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for node in nodes {
        let id = node.split_once('/').map_or(&node[..], |(_, id)| id);
        let name = id.split_once(['-', '#']).map_or(id, |(name, _)| name);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    format!("{} ({} nodes)", safe_text::escape(&names.join(", ")), nodes.len())
}

fn table(out: &mut impl Write, rows: &[&NodeReport<'_>], mixed: bool) -> Result<(), CliError> {
    let header = ["node", "shape", "NMSE", "cosine", "largest", "at", "SQNR"];
    for group in rows.chunk_by(|a, b| mixed || a.pass == b.pass) {
        let Some(first) = group.first() else { continue };
        if !mixed {
            writeln!(out, "{}", heading(&first.pass, first.shape))?;
        }
        let mut table = output::new_table(&header, &[2, 3, 4, 5, 6]);
        for r in group {
            let d = &r.difference;
            let place = NodeLabel(&r.id).to_string();
            let place = if mixed { format!("{} {place}", r.pass) } else { place };
            let mark = if r.beyond { "!" } else { "" };
            table.add_row([
                format!("{}{mark}", output::cut_middle(&place, 28)),
                shape(r.shape),
                error(r),
                if r.choices.is_some() { "-".to_owned() } else { cosine(d.cosine()) },
                match r.choices {
                    Some(_) => "-".to_owned(),
                    None if d.is_none() => "0".to_owned(),
                    None => format!("{:.1e}", d.largest),
                },
                r.largest_at.map_or_else(|| "-".to_owned(), |(token, value)| format!("{token},{value}")),
                if d.sqnr_db().is_finite() && r.choices.is_none() {
                    format!("{:.0}", d.sqnr_db())
                } else {
                    "-".to_owned()
                },
            ]);
        }
        writeln!(out, "{}\n", table.trim_fmt())?;
    }
    Ok(())
}

fn heading(pass: &str, [tokens, ..]: [usize; 3]) -> String {
    format!("{pass}, {tokens} token{}", if tokens == 1 { "" } else { "s" })
}

/// Sizes of a token's values, the tokens left out.
pub fn shape([_, n, m]: [usize; 3]) -> String {
    if m > 1 { format!("{n}x{m}") } else { n.to_string() }
}

/// The NMSE; for chosen experts the tokens that got others, or the same in another order.
pub fn error(r: &NodeReport<'_>) -> String {
    match r.choices {
        _ if r.difference.is_none() => "same".to_owned(),
        Some(choices) if choices.sets_differ > 0 => format!("{} sets", choices.sets_differ),
        Some(choices) => format!("{} orders", choices.orders_differ),
        None => format!("{:.1e}", r.difference.nmse()),
    }
}

/// Nines are what matters: 1 - 3e-8 rather than 0.99999997.
pub fn cosine(cosine: f64) -> String {
    match 1.0 - cosine {
        0.0 => "1".to_owned(),
        off if off < 1e-3 => format!("1-{off:.0e}"),
        _ => format!("{cosine:.4}"),
    }
}

/// The line that a person reads.
pub fn summary(c: &Comparison<'_>, divergence: Option<&Divergence<'_>>) -> String {
    let nodes = c.reports.len();
    let passes = c.reports.chunk_by(|a, b| a.pass == b.pass).count();
    let of = format!(
        "{} against {}: {nodes} nodes of {passes} passes",
        safe_text::escape(&c.subject),
        safe_text::escape(&c.reference)
    );
    if let Some(divergence) = divergence {
        let beyond = c.reports.iter().filter(|r| r.beyond).count();
        return format!("{of}, {beyond} beyond tolerance; {divergence}");
    }
    let floats = c.reports.iter().filter(|r| r.choices.is_none());
    let worst = floats.max_by(|a, b| a.difference.nmse().total_cmp(&b.difference.nmse()));
    match worst.filter(|_| c.reports.iter().any(|r| !r.difference.is_none())) {
        None => format!("{of}: 0 differences, every bit the same"),
        Some(r) => {
            let flips = flips(c.reports).map_or_else(String::new, |(flipped, values)| {
                format!("; {flipped} of {values} roundings to 8 bits came out otherwise")
            });
            let (nmse, place, pass) = (r.difference.nmse(), NodeLabel(&r.id), &r.pass);
            let put: usize = c.reports.iter().map(|r| r.substituted).sum();
            let put = match c.substitute {
                Substitute::Roundings => format!("; the reference was put in the place of {put} rows"),
                _ => String::new(),
            };
            let worst = format!("the worst is {place} ({pass}) with an NMSE of {nmse:.1e}");
            format!("{of}, all within tolerance; {worst}{flips}{put}")
        }
    }
}

fn flips(reports: &[NodeReport<'_>]) -> Option<(u64, u64)> {
    let all = reports.iter().filter_map(|r| r.flips);
    let (flipped, values) = all.fold((0, 0), |(f, v), flips| (f + flips.flipped, v + flips.values));
    (values > 0).then_some((flipped, values))
}

/// Numbers that JSON does not have become strings.
fn as_json(c: &Comparison<'_>, rows: &[&NodeReport<'_>], divergence: Option<&Divergence<'_>>) -> Value {
    let inputs = |state: Option<InputState>| match state {
        Some(InputState::Equal) => "equal",
        Some(InputState::Within) => "within tolerance",
        Some(InputState::Beyond) => "beyond tolerance",
        None => "not compared",
    };
    let node = |r: &NodeReport<'_>| {
        let d = &r.difference;
        let mut value = json!({
            "pass": r.pass, "name": r.id.name, "layer": r.id.layer, "occurrence": r.id.occurrence,
            "kind": c.graph.kind(&r.id), "shape": r.shape, "values": d.count, "differing": d.differing,
            "tolerance": r.tolerance, "beyond": r.beyond, "inputs": inputs(r.inputs),
        });
        if c.substitute == Substitute::Roundings {
            value["substituted"] = json!(r.substituted);
        }
        if r.choices.is_none() {
            for (key, measure) in
                [("nmse", d.nmse()), ("cosine", d.cosine()), ("sqnr_db", d.sqnr_db()), ("largest", d.largest)]
            {
                value[key] = json!(Number::from(measure));
            }
            value["largest_at"] = json!(r.largest_at);
        }
        if let Some(choices) = r.choices {
            value["choices"] = json!({ "tokens": choices.tokens, "sets_differ": choices.sets_differ,
                "orders_differ": choices.orders_differ });
        }
        if let Some(flips) = r.flips {
            value["flips"] = json!({ "values": flips.values, "flipped": flips.flipped });
        }
        value
    };
    json!({
        "reference": c.reference, "subject": c.subject,
        "isolated": c.substitute == Substitute::Everywhere,
        "same_roundings": c.substitute == Substitute::Roundings,
        "nodes": rows.iter().map(|r| node(r)).collect::<Vec<_>>(),
        "compared": c.reports.len(),
        "beyond": c.reports.iter().filter(|r| r.beyond).count(),
        "first": divergence.map(|d| json!({ "node": format!("{}/{}", d.report.pass, d.report.id),
            "inputs": inputs(d.report.inputs), "suspect": d.suspect })),
        "only_reference": c.only_reference, "only_subject": c.only_subject,
    })
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"))
}

/// Prints what the values of nodes look like.
pub fn statistics(nodes: &[NodeStatistics], json: bool) -> Result<ExitCode, CliError> {
    #[derive(Serialize)]
    struct Row<'a> {
        pass: &'a str,
        name: &'a str,
        layer: Option<usize>,
        occurrence: usize,
        shape: [usize; 3],
        min: Option<f32>,
        max: Option<f32>,
        rms: Option<f64>,
        nan: u64,
        infinite: u64,
    }
    if nodes.is_empty() {
        return Err(CliError::new("no node is asked for"));
    }
    let mut out = std::io::stdout().lock();
    if json {
        let rows: Vec<Row<'_>> = nodes
            .iter()
            .map(|n| Row {
                pass: &n.pass,
                name: n.id.name,
                layer: n.id.layer,
                occurrence: n.id.occurrence,
                shape: n.shape,
                min: n.values.min.map(|(value, _)| value),
                max: n.values.max.map(|(value, _)| value),
                rms: n.values.rms(),
                nan: n.values.nan,
                infinite: n.values.infinite,
            })
            .collect();
        safe_text::write_json(&json!({ "nodes": rows }), &mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    for group in nodes.chunk_by(|a, b| a.pass == b.pass) {
        let Some(first) = group.first() else { continue };
        writeln!(out, "{}", heading(&first.pass, first.shape))?;
        let mut table =
            output::new_table(&["node", "shape", "min", "max", "RMS", "not finite"], &[2, 3, 4, 5]);
        for n in group {
            table.add_row([
                output::cut_middle(&NodeLabel(&n.id).to_string(), 32).into_owned(),
                shape(n.shape),
                number(n.values.min.map(|(value, _)| f64::from(value))),
                number(n.values.max.map(|(value, _)| f64::from(value))),
                number(n.values.rms()),
                (n.values.nan + n.values.infinite).to_string(),
            ]);
        }
        writeln!(out, "{}\n", table.trim_fmt())?;
    }
    Ok(ExitCode::SUCCESS)
}
