//! `trace --report`: how far each node is from its reference, as a picture.

use std::collections::{BTreeMap, BTreeSet};

use super::print::{self, Comparison};
use crate::show::{Cell, HeatMap, Mark, Page};
use crate::verify::{Divergence, NodeLabel, NodeReport};

/// The worst nodes that are told in full.
const WORST: usize = 20;

/// Levels of colour, by the exponent of the NMSE: from where each begins.
const LEVELS: [(i32, &str); 8] = [
    (i32::MIN, "below 1e-14"),
    (-14, "1e-14"),
    (-12, "1e-12"),
    (-10, "1e-10"),
    (-8, "1e-8"),
    (-6, "1e-6"),
    (-4, "1e-4"),
    (-2, "1e-2 and above"),
];

/// The page of a comparison.
pub fn page(c: &Comparison<'_>) -> Page {
    let divergence = Divergence::first(c.reports, c.graph);
    let mut page = Page::new("Trace");
    page.facts(&[
        ("compared", c.subject.clone()),
        ("reference", c.reference.clone()),
        ("nodes", c.reports.len().to_string()),
        ("passes", passes(c).len().to_string()),
    ]);
    page.verdict(divergence.is_none(), &print::summary(c, divergence.as_ref()));
    let first = divergence.as_ref().map(|divergence| divergence.report);

    page.heading("Error by node and layer");
    page.paragraph(
        "Each cell is the worst of all passes: the exponent of the NMSE (-7: from 1e-7 up), = for the same \
         bits, \u{2260} for experts chosen otherwise; ! and a frame where it is more than is allowed. Nodes \
         stand in the order of computation, so what goes wrong spreads to the right and down. A pointer that \
         rests on a cell shows its figures.",
    );
    page.heat_map(&by_layer(c, first));
    if passes(c).len() > 1 {
        page.heading("Error by pass and layer");
        page.paragraph("Each cell is the worst node of the pass in the layer.");
        page.heat_map(&by_pass(c, first));
    }

    let mut worst: Vec<&NodeReport<'_>> = c.reports.iter().filter(|r| !r.difference.is_none()).collect();
    worst.sort_by(|a, b| print::farness(b).total_cmp(&print::farness(a)));
    if !worst.is_empty() {
        page.heading("The worst nodes");
        let header = ["pass", "node", "shape", "NMSE", "cosine", "largest", "allowed"];
        let row = |r: &&NodeReport<'_>| {
            let place = NodeLabel(&r.id).to_string();
            let largest = format!("{:.1e}", r.difference.largest);
            let [pass, shape, error] = [r.pass.clone(), print::shape(r.shape), marked(r)];
            vec![pass, place, shape, error, print::cosine(r.difference.cosine()), largest, allowed(r)]
        };
        let rows: Vec<Vec<String>> = worst.iter().take(WORST).map(row).collect();
        page.table(&header, &rows, &[2, 3, 4, 5, 6]);
    }
    for (who, nodes) in [(&c.reference, &c.only_reference), (&c.subject, &c.only_subject)] {
        if !nodes.is_empty() {
            page.paragraph(&format!("Only {who}: {}", print::names(nodes)));
        }
    }
    page
}

fn passes<'r>(c: &Comparison<'r>) -> Vec<&'r str> {
    let mut all: Vec<&str> = Vec::new();
    for report in c.reports {
        if all.last() != Some(&&*report.pass) && !all.contains(&&*report.pass) {
            all.push(&report.pass);
        }
    }
    all
}

/// The columns: what is in no layer, then the layers that there are.
fn layers(c: &Comparison<'_>) -> (Vec<Option<usize>>, Vec<String>) {
    let all: BTreeSet<Option<usize>> = c.reports.iter().map(|r| r.id.layer).collect();
    let names = all.iter().map(|layer| layer.map_or_else(|| "-".to_owned(), |layer| layer.to_string()));
    let names = names.collect();
    (all.into_iter().collect(), names)
}

fn by_layer(c: &Comparison<'_>, first: Option<&NodeReport<'_>>) -> HeatMap {
    let label = |r: &NodeReport<'_>| {
        let layer = r.id.layer.map_or_else(String::new, |layer| format!("blk {layer} "));
        NodeLabel(&r.id).to_string()[layer.len()..].to_owned()
    };
    map("Error by node and layer", c, first, order(c.reports.iter().map(label)), label)
}

fn by_pass(c: &Comparison<'_>, first: Option<&NodeReport<'_>>) -> HeatMap {
    let label = |r: &NodeReport<'_>| r.pass.clone();
    map("Error by pass and layer", c, first, order(c.reports.iter().map(label)), label)
}

/// Each once, where it comes first.
fn order(labels: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    labels.filter(|label| seen.insert(label.clone())).collect()
}

fn map(
    title: &str,
    c: &Comparison<'_>,
    first: Option<&NodeReport<'_>>,
    rows: Vec<String>,
    label: impl Fn(&NodeReport<'_>) -> String,
) -> HeatMap {
    let (layers, names) = layers(c);
    let mut worst: BTreeMap<(String, Option<usize>), &NodeReport<'_>> = BTreeMap::new();
    for report in c.reports {
        let held = worst.entry((label(report), report.id.layer)).or_insert(report);
        let is_first = |r: &NodeReport<'_>| first.is_some_and(|first| std::ptr::eq(first, r));
        // The first stays whatever comes: it is what is looked for.
        let rank = |r: &NodeReport<'_>| (is_first(r), r.beyond);
        if rank(report) > rank(held)
            || (rank(report) == rank(held) && print::farness(report) > print::farness(held))
        {
            *held = report;
        }
    }
    let mut map = HeatMap::new(title, names);
    for row in rows {
        let cells = layers.iter().map(|&layer| {
            let report = worst.get(&(row.clone(), layer))?;
            Some(cell(report, first.is_some_and(|first| std::ptr::eq(first, *report))))
        });
        map.row(&row, cells.collect());
    }
    map.legend(0, "the same bits");
    for (level, (_, meaning)) in LEVELS.iter().enumerate() {
        map.legend(level + 1, meaning);
    }
    map
}

fn cell(r: &NodeReport<'_>, is_first: bool) -> Cell {
    let (level, text) = level(r);
    let mark = if is_first { Some(Mark::First) } else { r.beyond.then_some(Mark::Beyond) };
    let text = if r.beyond { format!("{text}!") } else { text };
    let d = &r.difference;
    let mut title = format!("{}, {}\n{} of {} values differ", NodeLabel(&r.id), r.pass, d.differing, d.count);
    match r.choices {
        Some(choices) => {
            let (sets, orders) = (choices.sets_differ, choices.orders_differ);
            title +=
                &format!("\nof {} tokens {sets} have other experts, {orders} another order", choices.tokens);
        }
        None => {
            title += &format!("\nNMSE {:.2e}, cosine {}", d.nmse(), print::cosine(d.cosine()));
            title += &format!("\nlargest {:.2e}", d.largest);
            if let Some((token, value)) = r.largest_at.filter(|_| !d.is_none()) {
                title += &format!(" at token {token}, value {value}");
            }
        }
    }
    title += &format!("\nallowed {}", allowed(r));
    if is_first {
        title += "\nthe first that is beyond it";
    }
    Cell { level, text, title, mark }
}

fn allowed(r: &NodeReport<'_>) -> String {
    if r.tolerance == 0.0 { "the same bits".to_owned() } else { format!("{:.1e}", r.tolerance) }
}

fn marked(r: &NodeReport<'_>) -> String {
    format!("{}{}", print::error(r), if r.beyond { "!" } else { "" })
}

/// How strong the colour of an error is, and what stands in its cell.
fn level(r: &NodeReport<'_>) -> (usize, String) {
    if r.difference.is_none() {
        return (0, "=".to_owned());
    }
    if r.choices.is_some() {
        return (LEVELS.len(), "\u{2260}".to_owned());
    }
    exponent_level(r.difference.nmse())
}

fn exponent_level(nmse: f64) -> (usize, String) {
    if !nmse.is_finite() {
        return (LEVELS.len(), "inf".to_owned());
    }
    let exponent = if nmse > 0.0 { nmse.log10().floor() as i32 } else { i32::MIN };
    let level = LEVELS.iter().rposition(|(from, _)| exponent >= *from).map_or(1, |at| at + 1);
    (level, if nmse > 0.0 { exponent.to_string() } else { "0".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_levels() {
        let cases = [
            (0.0, 1, "0"),
            (3e-18, 1, "-18"),
            (1e-14, 2, "-14"),
            (9.9e-8, 5, "-8"),
            (2e-7, 5, "-7"),
            (0.5, 8, "-1"),
            (40.0, 8, "1"),
            (f64::INFINITY, 8, "inf"),
            (f64::NAN, 8, "inf"),
        ];
        for (nmse, level, text) in cases {
            assert_eq!(exponent_level(nmse), (level, text.to_owned()), "{nmse}");
        }
    }
}
