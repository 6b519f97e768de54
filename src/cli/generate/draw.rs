//! `generate --report`: what each token took, where its weights came from, and which experts were used.

use std::time::Instant;

use crate::cli::output;
use crate::engine::ExpertUse;
use crate::model::ModelSpec;
use crate::show::Page;
use crate::show::residency::{Step, Stretch, by_token, expert_layers, experts, stretches};
use crate::store::{ResidencyStats, Store};

/// Rows of the table: of more tokens, neighbours are taken together.
const ROWS: usize = 32;

/// What decoding leaves for the page.
pub struct Watched<'a> {
    pub steps: Steps<'a>,
    pub experts: ExpertUse,
}

/// What each token took.
pub struct Steps<'a> {
    store: &'a Store,
    since: Instant,
    before: ResidencyStats,
    steps: Vec<Step>,
}

impl<'a> Watched<'a> {
    /// Of a run that decodes from now on.
    pub fn new(store: &'a Store) -> Watched<'a> {
        let steps = Steps { store, since: Instant::now(), before: store.stats(), steps: Vec::new() };
        Watched { steps, experts: ExpertUse::default() }
    }
}

impl Steps<'_> {
    /// Takes note of a token.
    pub fn token(&mut self) {
        let (now, stats) = (Instant::now(), self.store.stats());
        self.steps.push(Step { tokens: 1, time: now - self.since, stats: stats.since(&self.before) });
        (self.since, self.before) = (now, stats);
    }
}

/// The page of a run; `facts` say what ran and `residency` what came of its weights' places, in words.
pub fn page(
    facts: &[(&str, String)],
    residency: &[String],
    watched: &Watched<'_>,
    spec: &ModelSpec,
    streamed: bool,
) -> Page {
    let mut page = Page::new("Generate");
    page.facts(facts);
    let steps = &watched.steps.steps;
    let pictures = by_token(steps.iter(), 0, streamed);
    let (times, more) = pictures.split_first().unzip();
    page.heading("Time by token");
    let Some(times) = times.filter(|_| !steps.is_empty()) else {
        page.paragraph("No token was made.");
        return page;
    };
    page.paragraph(
        "The first token comes from the prompt's last pass, and those that were drafted and accepted come \
         with the one before them: they take next to no time of their own. Neighbours are taken together \
         where there are many.",
    );
    page.lines(times);
    for picture in more.unwrap_or_default() {
        page.heading(&picture.title).lines(picture);
    }
    if streamed {
        for line in residency {
            page.paragraph(line);
        }
    } else {
        page.paragraph(
            "All weights are mapped or in memory: this run streamed nothing, so that there are no hits, \
             reads or waits to show. What the system reads for a mapped file is not seen here.",
        );
    }
    by_stretch(&mut page, steps, streamed);
    let layers = expert_layers(spec);
    if !layers.is_empty() {
        page.heading("Experts by layer");
        page.paragraph(
            "How often each expert was chosen after the prompt: once for each token that it worked on, \
             drafts that were not accepted included. The colour tells it against an even share of its layer.",
        );
        page.heat_map(&experts(&watched.experts, &layers));
    }
    page
}

fn by_stretch(page: &mut Page, steps: &[Step], streamed: bool) {
    let mut columns = vec!["tokens", "ms a token"];
    if streamed {
        columns.extend(["experts found", "and not", "read", "waited, ms"]);
    }
    let row = |stretch: &Stretch| {
        let mut row = vec![stretch.tokens(), format!("{:.3}", stretch.ms(stretch.time))];
        if streamed {
            let stats = &stretch.stats;
            row.extend([stats.hits, stats.misses].map(output::grouped));
            row.push(output::bytes(stats.bytes_read));
            row.push(format!("{:.3}", 1e3 * stats.wait.as_secs_f64()));
        }
        row
    };
    let rows: Vec<_> = stretches(steps.iter(), 0, ROWS).iter().map(row).collect();
    page.table(&columns, &rows, &[0, 1, 2, 3, 4, 5]);
}
