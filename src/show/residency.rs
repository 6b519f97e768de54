//! Where weights are, what that costs by token, and which experts are used: in words and pictures.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Cell, HeatMap, Lines, Series, bytes};
use crate::engine::ExpertUse;
use crate::model::ModelSpec;
use crate::store::{DevicePlan, Plan, ResidencyStats};

/// Points of a line at most: of more tokens, neighbours are taken together.
const POINTS: usize = 256;

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

/// A plan in a line.
pub fn plan_line(plan: &Plan, direct_io: Option<bool>) -> String {
    let mut line = memory_line(plan, direct_io);
    if let Some(device) = &plan.device {
        let _ = write!(line, "; on the device: {}", device_line(device));
    }
    line
}

/// What is on a device in a line.
pub fn device_line(plan: &DevicePlan) -> String {
    let mut line = format!("{} of {} always used", bytes(plan.always_bytes), bytes(plan.budget));
    if plan.kv_bytes > 0 {
        let _ = write!(line, ", {} for what sequences remember", bytes(plan.kv_bytes));
    }
    let (slots, experts) = plan.slots_and_experts();
    if experts > 0 {
        let share = 100.0 * slots as f64 / experts as f64;
        let _ = write!(line, ", {} of experts ({share:.0} %)", bytes(plan.cache_bytes()));
    }
    line
}

/// What is not on a device in a line.
pub fn memory_line(plan: &Plan, direct_io: Option<bool>) -> String {
    let size = bytes;
    if plan.is_mapped() {
        return format!("{} of weights, mapped", size(plan.total_bytes));
    }
    let mut line = format!(
        "{} of weights in {}: {} pinned",
        size(plan.total_bytes),
        size(plan.own_bytes()),
        size(plan.pinned_bytes)
    );
    if plan.ring_bytes > 0 {
        let _ = write!(line, ", a ring of {} for what is streamed", size(plan.ring_bytes));
    }
    if !plan.classes.is_empty() {
        let (slots, members) = plan.slots_and_experts();
        let share = 100.0 * slots as f64 / members as f64;
        let _ = write!(line, ", {} of experts cached ({share:.0} %)", size(plan.cache_bytes()));
    }
    let _ = write!(line, ", {} a token from disk", size(plan.disk_bytes as u64));
    if direct_io == Some(false) {
        line.push_str(" through the page cache: this file system has no direct reads");
    }
    line
}

/// What tokens took that were made together.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// At least 1.
    pub tokens: usize,
    pub time: Duration,
    pub stats: ResidencyStats,
}

/// Steps that stand beside each other: the number of the first token, counted from 1, how many tokens, and
/// what they took.
#[derive(Clone, Debug)]
pub struct Stretch {
    pub first: usize,
    pub count: usize,
    pub time: Duration,
    pub stats: ResidencyStats,
}

impl Stretch {
    /// The mean of a token.
    fn each(&self, value: f64) -> f64 {
        value / self.count.max(1) as f64
    }

    /// Milliseconds of a token, of a time of all of them.
    pub fn ms(&self, time: Duration) -> f64 {
        self.each(1e3 * time.as_secs_f64())
    }

    /// Experts that were in memory when a pass asked for them, in percent; none where none was asked for.
    pub fn found(&self) -> Option<f64> {
        let asked = self.stats.hits + self.stats.misses;
        (asked > 0).then(|| 100.0 * self.stats.hits as f64 / asked as f64)
    }

    /// The numbers of its tokens, for people.
    pub fn tokens(&self) -> String {
        match self.count {
            0 | 1 => self.first.to_string(),
            count => format!("{}-{}", self.first, self.first + count - 1),
        }
    }
}

/// At most so many stretches of steps; `before` tokens came before the first.
pub fn stretches<'s>(
    steps: impl ExactSizeIterator<Item = &'s Step>,
    before: usize,
    most: usize,
) -> Vec<Stretch> {
    let len = steps.len().div_ceil(most).max(1);
    let mut found: Vec<Stretch> = Vec::new();
    let mut first = before + 1;
    for (i, step) in steps.enumerate() {
        if i % len == 0 {
            found.push(Stretch { first, count: 0, time: Duration::ZERO, stats: ResidencyStats::default() });
        }
        if let Some(stretch) = found.last_mut() {
            stretch.count += step.tokens;
            stretch.time += step.time;
            stretch.stats.add(&step.stats);
        }
        first += step.tokens;
    }
    found
}

/// Pictures of what tokens took: their time, and where weights are streamed the waiting in it, what came from
/// disk and how many experts were found in memory.
pub fn by_token<'s>(
    steps: impl ExactSizeIterator<Item = &'s Step>,
    before: usize,
    streamed: bool,
) -> Vec<Lines> {
    let stretches = stretches(steps, before, POINTS);
    let mut times = vec![series("in all", &stretches, |stretch| Some(stretch.ms(stretch.time)))];
    if !streamed {
        return vec![lines("Time by token", "ms a token", times)];
    }
    times.push(series("waiting for weights", &stretches, |stretch| Some(stretch.ms(stretch.stats.wait))));
    let read = |stretch: &Stretch| Some(stretch.each(stretch.stats.bytes_read as f64 / 1e6));
    let mut all = vec![
        lines("Time by token", "ms a token", times),
        lines("From disk by token", "MB a token", vec![series("read", &stretches, read)]),
    ];
    if stretches.iter().any(|stretch| stretch.found().is_some()) {
        let found = series("found", &stretches, Stretch::found);
        all.push(lines("Experts found in memory by token", "found, %", vec![found]));
    }
    all
}

fn lines(title: &str, y: &str, series: Vec<Series>) -> Lines {
    let [title, x, y] = [title, "token", y].map(str::to_owned);
    Lines { title, x, y, from_zero: true, series }
}

fn series(name: &str, stretches: &[Stretch], value: impl Fn(&Stretch) -> Option<f64>) -> Series {
    let points = stretches.iter().filter_map(|stretch| Some((stretch.first as f64, value(stretch)?)));
    Series { name: name.to_owned(), points: points.collect() }
}

/// A layer with experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertLayer {
    pub layer: usize,
    /// Experts that there are, and those that a token is worked on by.
    pub count: usize,
    pub used: usize,
}

/// The layers of a model that have experts.
pub fn expert_layers(spec: &ModelSpec) -> Vec<ExpertLayer> {
    let layers = spec.layers.iter().enumerate();
    let with_experts = layers.filter_map(|(layer, spec)| {
        let (count, used) = spec.experts()?;
        Some(ExpertLayer { layer, count, used })
    });
    with_experts.collect()
}

/// Which level a share is, where 1 is an even one.
fn level(share: f64) -> usize {
    LEVELS.iter().rposition(|&(from, _)| share >= from).unwrap_or(0)
}

/// How often each expert of each layer was chosen, coloured against an even share of its layer.
pub fn experts(uses: &ExpertUse, layers: &[ExpertLayer]) -> HeatMap {
    let most = layers.iter().map(|layer| layer.count).max().unwrap_or(0);
    let mut map = HeatMap::new("Use of experts by layer", (0..most).map(|i| i.to_string()).collect());
    for (level, (_, meaning)) in LEVELS.iter().enumerate() {
        map.legend(level, meaning);
    }
    for &ExpertLayer { layer, count, used } in layers {
        let counts = uses.layers.get(layer).map_or(&[][..], Vec::as_slice);
        let all: u64 = counts.iter().sum();
        let cell = |expert: usize| {
            let times = counts.get(expert).copied().unwrap_or(0);
            let share = if all == 0 { 0.0 } else { times as f64 * count as f64 / all as f64 };
            let tokens = all / used.max(1) as u64;
            let title = format!(
                "blk {layer}, expert {expert}\nchosen for {times} of {tokens} tokens\n\
                 {share:.2} of an even share"
            );
            Some(Cell { level: level(share), text: times.to_string(), title, mark: None })
        };
        map.row(&format!("blk {layer}"), (0..most).map(|i| if i < count { cell(i) } else { None }).collect());
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(tokens: usize, ms: u64) -> Step {
        let stats = ResidencyStats { hits: 1, misses: 3, bytes_read: 10, ..Default::default() };
        Step { tokens, time: Duration::from_millis(ms), stats }
    }

    #[test]
    fn stretches_hold_every_token_once() {
        let steps: Vec<Step> = (1..=10).map(|ms| step(1, ms)).collect();
        let found = stretches(steps.iter(), 0, 4);
        assert_eq!(found.iter().map(Stretch::tokens).collect::<Vec<_>>(), ["1-3", "4-6", "7-9", "10"]);
        assert_eq!(found[1].ms(found[1].time), 5.0);
        assert_eq!((found[3].found(), found.iter().map(|s| s.stats.bytes_read).sum()), (Some(25.0), 100));
        assert!(stretches([].iter(), 0, 4).is_empty());
    }

    /// Passes of several sequences make several tokens at once; earlier ones may be forgotten.
    #[test]
    fn tokens_are_numbered_on() {
        let steps = [step(2, 4), step(1, 6), step(3, 2)];
        let found = stretches(steps.iter(), 100, 8);
        assert_eq!(found.iter().map(Stretch::tokens).collect::<Vec<_>>(), ["101-102", "103", "104-106"]);
        assert_eq!(found[0].ms(found[0].time), 2.0);
    }

    #[test]
    fn shares_have_levels() {
        assert_eq!([0.0, 0.01, 0.25, 0.6, 1.0, 1.25, 3.0, 64.0].map(level), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
