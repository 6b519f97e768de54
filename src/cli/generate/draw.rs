//! `generate --report`: what each token took, where its weights came from, and which experts were used.

use std::time::{Duration, Instant};

use crate::cli::output;
use crate::cli::report::{Cell, HeatMap, Lines, Page, Series};
use crate::engine::ExpertUse;
use crate::model::ModelSpec;
use crate::store::{ResidencyStats, Store};

/// Points of a line at most, and rows of the table: of more tokens, neighbours are taken together.
const POINTS: usize = 256;
const ROWS: usize = 32;

/// Levels of colour, by how much of an even share an expert has: from where each begins.
const LEVELS: [(f64, &str); 8] = [
    (0.0, "never"),
    (f64::MIN_POSITIVE, "below 1/4 of an even share"),
    (0.25, "1/4"),
    (0.5, "1/2"),
    (0.75, "3/4"),
    (1.25, "5/4"),
    (2.0, "2"),
    (4.0, "4 and above"),
];

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

#[derive(Clone, Debug, Default)]
struct Step {
    time: Duration,
    stats: ResidencyStats,
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
        self.steps.push(Step { time: now - self.since, stats: stats.since(&self.before) });
        (self.since, self.before) = (now, stats);
    }
}

/// Tokens that stand beside each other: the number of the first, how many, and what they took.
struct Stretch {
    first: usize,
    count: usize,
    sum: Step,
}

impl Stretch {
    fn each(&self, value: f64) -> f64 {
        value / self.count as f64
    }

    fn found(&self) -> Option<f64> {
        let asked = self.sum.stats.hits + self.sum.stats.misses;
        (asked > 0).then(|| 100.0 * self.sum.stats.hits as f64 / asked as f64)
    }

    fn tokens(&self) -> String {
        match self.count {
            1 => self.first.to_string(),
            count => format!("{}-{}", self.first, self.first + count - 1),
        }
    }
}

/// At most so many stretches, tokens counted from 1.
fn stretches(steps: &[Step], most: usize) -> Vec<Stretch> {
    let len = steps.len().div_ceil(most).max(1);
    let stretch = |(i, steps): (usize, &[Step])| {
        let mut sum = Step::default();
        for step in steps {
            sum.time += step.time;
            sum.stats.add(&step.stats);
        }
        Stretch { first: i * len + 1, count: steps.len(), sum }
    };
    steps.chunks(len).enumerate().map(stretch).collect()
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
    page.heading("Time by token");
    if steps.is_empty() {
        page.paragraph("No token was made.");
        return page;
    }
    page.paragraph(
        "The first token comes from the prompt's last pass, and those that were drafted and accepted come \
         with the one before them: they take next to no time of their own. Neighbours are taken together \
         where there are many.",
    );
    page.lines(&times(steps, streamed));
    if streamed {
        reads(&mut page, steps);
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
    if spec.has_experts() {
        page.heading("Experts by layer");
        page.paragraph(
            "How often each expert was chosen after the prompt: once for each token that it worked on, \
             drafts that were not accepted included. The colour tells it against an even share of its layer.",
        );
        page.heat_map(&experts(&watched.experts, spec));
    }
    page
}

fn lines(title: &str, y: &str, series: Vec<Series>) -> Lines {
    let [title, x, y] = [title, "token", y].map(str::to_owned);
    Lines { title, x, y, from_zero: true, series }
}

fn series(name: &str, stretches: &[Stretch], value: impl Fn(&Stretch) -> Option<f64>) -> Series {
    let points = stretches.iter().filter_map(|stretch| Some((stretch.first as f64, value(stretch)?)));
    Series { name: name.to_owned(), points: points.collect() }
}

fn times(steps: &[Step], streamed: bool) -> Lines {
    let stretches = stretches(steps, POINTS);
    let ms = |stretch: &Stretch, time: Duration| Some(stretch.each(1e3 * time.as_secs_f64()));
    let mut all = vec![series("in all", &stretches, |stretch| ms(stretch, stretch.sum.time))];
    if streamed {
        let wait = |stretch: &Stretch| ms(stretch, stretch.sum.stats.wait);
        all.push(series("waiting for weights", &stretches, wait));
    }
    lines("Time by token", "ms a token", all)
}

fn reads(page: &mut Page, steps: &[Step]) {
    let stretches = stretches(steps, POINTS);
    page.heading("From disk by token");
    let read = |stretch: &Stretch| Some(stretch.each(stretch.sum.stats.bytes_read as f64 / 1e6));
    page.lines(&lines("From disk by token", "MB a token", vec![series("read", &stretches, read)]));
    if stretches.iter().any(|stretch| stretch.found().is_some()) {
        page.heading("Experts found in memory");
        let found = series("found", &stretches, Stretch::found);
        page.lines(&lines("Experts found in memory by token", "found, %", vec![found]));
    }
}

fn by_stretch(page: &mut Page, steps: &[Step], streamed: bool) {
    let mut columns = vec!["tokens", "ms a token"];
    if streamed {
        columns.extend(["experts found", "and not", "read", "waited, ms"]);
    }
    let row = |stretch: &Stretch| {
        let ms = stretch.each(1e3 * stretch.sum.time.as_secs_f64());
        let mut row = vec![stretch.tokens(), format!("{ms:.3}")];
        if streamed {
            let stats = &stretch.sum.stats;
            row.extend([stats.hits, stats.misses].map(output::grouped));
            row.push(output::bytes(stats.bytes_read));
            row.push(format!("{:.3}", 1e3 * stats.wait.as_secs_f64()));
        }
        row
    };
    let rows: Vec<_> = stretches(steps, ROWS).iter().map(row).collect();
    page.table(&columns, &rows, &[0, 1, 2, 3, 4, 5]);
}

/// Which level a share is, where 1 is an even one.
fn level(share: f64) -> usize {
    LEVELS.iter().rposition(|&(from, _)| share >= from).unwrap_or(0)
}

fn experts(uses: &ExpertUse, spec: &ModelSpec) -> HeatMap {
    let layers = || spec.layers.iter().enumerate().filter_map(|(il, layer)| Some((il, layer.experts()?)));
    let most = layers().map(|(_, (count, _))| count).max().unwrap_or(0);
    let mut map = HeatMap::new("Use of experts by layer", (0..most).map(|i| i.to_string()).collect());
    for (level, (_, meaning)) in LEVELS.iter().enumerate() {
        map.legend(level, meaning);
    }
    for (il, (count, used)) in layers() {
        let counts = uses.layers.get(il).map_or(&[][..], Vec::as_slice);
        let all: u64 = counts.iter().sum();
        let cell = |expert: usize| {
            let times = counts.get(expert).copied().unwrap_or(0);
            let share = if all == 0 { 0.0 } else { times as f64 * count as f64 / all as f64 };
            let tokens = all / used.max(1) as u64;
            let title = format!(
                "blk {il}, expert {expert}\nchosen for {times} of {tokens} tokens\n\
                 {share:.2} of an even share"
            );
            Some(Cell { level: level(share), text: times.to_string(), title, mark: None })
        };
        map.row(&format!("blk {il}"), (0..most).map(|i| if i < count { cell(i) } else { None }).collect());
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_hold_every_token_once() {
        let step = |ms| {
            let stats = ResidencyStats { hits: 1, misses: 3, bytes_read: 10, ..Default::default() };
            Step { time: Duration::from_millis(ms), stats }
        };
        let steps: Vec<Step> = (1..=10).map(step).collect();
        let found = stretches(&steps, 4);
        assert_eq!(found.iter().map(Stretch::tokens).collect::<Vec<_>>(), ["1-3", "4-6", "7-9", "10"]);
        assert_eq!(found[1].each(found[1].sum.time.as_secs_f64() * 1e3), 5.0);
        assert_eq!((found[3].found(), found.iter().map(|s| s.sum.stats.bytes_read).sum()), (Some(25.0), 100));
        assert!(stretches(&[], 4).is_empty());
    }

    #[test]
    fn shares_have_levels() {
        assert_eq!([0.0, 0.01, 0.25, 0.6, 1.0, 1.25, 3.0, 64.0].map(level), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
