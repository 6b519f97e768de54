//! What to draft from, and how many tokens: whatever is expected to give the most tokens a second, by what
//! was measured.
//!
//! Knows no clock: durations are passed in. What a pass reads (of streamed experts a wider one reads more) is
//! in its time.

use std::time::Duration;

use super::MAX_DRAFT;
use super::ngram::LONGEST;

/// Passes after which a measured time counts no more.
const FRESH: u64 = 64;
/// The same of passes without drafts, by which all others are judged: as few at first, since a cold run
/// becomes faster, and as many later.
const BASE_FRESH: (u64, u64) = (4, 32);
/// Weight of a new time in its running average.
const TIME_WEIGHT: f64 = 0.25;
/// Least weight of a new comparison in the running average of what is accepted.
const CHANCE_WEIGHT: f64 = 1.0 / 32.0;
/// Gain below which a draft is not worth its while.
const MARGIN: f64 = 1.02;
/// Share of the time that may be lost, and the passes that it may be lost ahead: 2.5 % over 200 tokens.
const LOSS_SHARE: f64 = 0.015;
const LOSS_AHEAD: f64 = 2.0;
/// Passes by which drafts that are expected to pay may overdraw that.
const OVERDRAFT: f64 = 0.5;
/// What is feared of the time of a token drafted by the block before it was measured, in passes.
const FEARED_DRAFT: f64 = 0.25;
/// Most tokens that the block drafts for a pass: what it makes of its own hidden rows is right ever more
/// seldom.
pub(super) const MOST_OF_BLOCK: usize = 4;
/// Comparisons that an acceptance counts for at most, once nothing was compared for long.
const STALE_COUNT: u32 = 3;

/// What gives drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftSource {
    /// What followed an n-gram of so many tokens earlier in the text.
    Text { matched: usize },
    /// The model's block of multi-token prediction.
    Block,
}

/// What a pass is to draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DraftPlan {
    pub source: DraftSource,
    pub drafts: usize,
}

/// What could be drafted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftOffer {
    /// The tokens of the n-gram that the text offers drafts for, and how many it offers.
    pub text: Option<(usize, usize)>,
    /// Most drafts of the block, where there is one.
    pub block: usize,
}

/// A measured time.
#[derive(Clone, Copy, Debug)]
struct Time {
    seconds: f64,
    /// The number of the pass that gave it.
    at: u64,
}

impl Time {
    /// The running average with a new time; the new one alone where the old is out of date.
    fn update(old: Option<Time>, fresh: bool, seconds: f64, at: u64) -> Option<Time> {
        let average = match old.filter(|_| fresh) {
            Some(old) => old.seconds + TIME_WEIGHT * (seconds - old.seconds),
            None => seconds,
        };
        Some(Time { seconds: average, at })
    }
}

/// How often a drafted token is the one that is drawn, those before it being right.
#[derive(Clone, Copy, Debug)]
struct Chance {
    average: f64,
    /// Comparisons, the first guess counting as some.
    compared: u32,
}

impl Chance {
    /// A guess that counts as so many comparisons.
    const fn guess(average: f64, compared: u32) -> Chance {
        Chance { average, compared }
    }

    fn update(&mut self, accepted: bool) {
        self.compared = self.compared.saturating_add(1);
        // The mean of all, later a running average.
        let weight = (1.0 / f64::from(self.compared)).max(CHANCE_WEIGHT);
        self.average += weight * (f64::from(u8::from(accepted)) - self.average);
    }
}

/// A pass with drafts whose yield is not known yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    seconds: f64,
    drafts: usize,
    accepted: usize,
}

/// Chooses what to draft from and how much, by measured times and measured acceptance.
///
/// What the text offers is compared without drafting too; what the block would say is not known before it is
/// asked. Times are measured by the passes that are run, those without drafts from time to time. What drafts
/// lose and gain against passes without is kept account of: a loss of more than a few per cent turns them
/// off, until as much has been saved as another attempt may lose.
#[derive(Clone, Debug)]
pub struct DraftPolicy {
    passes: u64,
    /// Of a pass, by the number of drafts; what making them takes is not in it.
    times: [Option<Time>; MAX_DRAFT + 1],
    /// Of a token drafted by the block.
    block_time: Option<Time>,
    /// By the length of the n-gram that gave the draft.
    of_text: [Chance; LONGEST + 1],
    /// By the number of drafts before it.
    of_block: [Chance; MAX_DRAFT],
    /// Seconds that may be lost.
    allowance: Option<f64>,
    pending: Option<Pending>,
}

impl Default for DraftPolicy {
    fn default() -> DraftPolicy {
        DraftPolicy {
            passes: 0,
            times: [None; MAX_DRAFT + 1],
            block_time: None,
            of_text: [Chance::guess(0.5, 1); LONGEST + 1],
            of_block: [Chance::guess(0.7, 3); MAX_DRAFT],
            allowance: None,
            pending: None,
        }
    }
}

impl DraftPolicy {
    /// What to draft of what is on offer; nothing where that is expected to be fastest, or not known yet.
    pub fn choose(&mut self, offer: DraftOffer) -> Option<DraftPlan> {
        self.settle();
        let base = self.base()?;
        let offer = self.within_reach(offer);
        let allowance = self.allowance.unwrap_or(0.0);
        if let Some((plan, loss)) = self.probe(&offer, base)
            && allowance >= loss
        {
            return Some(plan);
        }
        let (plan, rate) = self.best(&offer, base, allowance + OVERDRAFT * base)?;
        (rate > MARGIN / base).then_some(plan)
    }

    /// How many tokens the block is to draft where nothing else drafts and it has to: none only where a pass
    /// without drafts has to be measured.
    pub fn choose_of_block(&mut self, most: usize) -> usize {
        self.settle();
        let Some(base) = self.base() else { return 0 };
        let offer = self.within_reach(DraftOffer { text: None, block: most });
        self.best(&offer, base, f64::INFINITY).map_or(1, |(plan, _)| plan.drafts).min(most)
    }

    /// The offer up to the lengths that may be tried: where passes begin to cost more is not known before, so
    /// by small steps.
    fn within_reach(&self, offer: DraftOffer) -> DraftOffer {
        let longest = self.measured();
        let most = longest + longest / 4 + 1;
        let text = offer.text.map(|(matched, n)| (matched.min(LONGEST), n.min(most).min(MAX_DRAFT)));
        DraftOffer { text: text.filter(|&(_, n)| n > 0), block: offer.block.min(most).min(MOST_OF_BLOCK) }
    }

    /// What has to be tried to be known, and how much it may lose.
    fn probe(&self, offer: &DraftOffer, base: f64) -> Option<(DraftPlan, f64)> {
        // What one draft costs was last known so, or is feared to be another pass.
        let wider = self.times[1].map_or(base, |time| (time.seconds - base).clamp(0.0, base));
        if offer.block > 0 && self.fresh(self.block_time, FRESH).is_none() {
            let making = self.block_time.map_or(FEARED_DRAFT * base, |time| time.seconds.min(base));
            return Some((DraftPlan { source: DraftSource::Block, drafts: 1 }, wider + making));
        }
        let (matched, _) = offer.text.filter(|_| self.measured() == 0)?;
        Some((DraftPlan { source: DraftSource::Text { matched }, drafts: 1 }, wider))
    }

    /// The plan that gives the most tokens a second, and how many, of those that lose no more than `spare`
    /// where all their drafts are wrong. None before a pass with drafts was measured.
    fn best(&self, offer: &DraftOffer, base: f64, spare: f64) -> Option<(DraftPlan, f64)> {
        if self.measured() == 0 {
            return None;
        }
        let mut best: Option<(DraftPlan, f64)> = None;
        let mut consider = |source, drafts, tokens: f64, making: f64| {
            let seconds = self.seconds(base, drafts) + making;
            let rate = tokens / seconds;
            if seconds - base <= spare && best.is_none_or(|(_, found)| rate > found) {
                best = Some((DraftPlan { source, drafts }, rate));
            }
        };
        if let Some((matched, most)) = offer.text {
            let chance = self.of_text[matched].average;
            let (mut tokens, mut right) = (1.0, 1.0);
            for drafts in 1..=most {
                right *= chance;
                tokens += right;
                consider(DraftSource::Text { matched }, drafts, tokens, 0.0);
            }
        }
        if let Some(each) = self.fresh(self.block_time, FRESH) {
            let (mut tokens, mut right) = (1.0, 1.0);
            for drafts in 1..=offer.block {
                right *= self.of_block[drafts - 1].average;
                tokens += right;
                consider(DraftSource::Block, drafts, tokens, each * drafts as f64);
            }
        }
        best
    }

    /// Whether draft number `at` of a source was the token drawn, the drafts before it having been; whether
    /// the last pass ran it.
    pub fn compared(&mut self, source: DraftSource, at: usize, accepted: bool, run: bool) {
        match source {
            DraftSource::Text { matched } => self.of_text[matched.min(LONGEST)].update(accepted),
            DraftSource::Block => self.of_block[at.min(MAX_DRAFT - 1)].update(accepted),
        }
        if let Some(pending) = self.pending.as_mut().filter(|_| accepted && run) {
            pending.accepted += 1;
        }
    }

    /// What a pass with this many drafts took, and what making them took.
    pub fn passed(&mut self, source: Option<DraftSource>, drafts: usize, making: Duration, pass: Duration) {
        self.settle();
        let drafts = drafts.min(MAX_DRAFT);
        let of_block = drafts > 0 && source == Some(DraftSource::Block);
        // To look something up takes next to nothing: it belongs to the pass.
        let making = making.as_secs_f64();
        let seconds = pass.as_secs_f64() + if of_block { 0.0 } else { making };
        let making = if of_block { making } else { 0.0 };
        let fresh =
            if drafts == 0 { self.base().is_some() } else { self.fresh(self.times[drafts], FRESH).is_some() };
        self.passes += 1;
        self.times[drafts] = Time::update(self.times[drafts], fresh, seconds, self.passes);
        if of_block {
            let fresh = self.fresh(self.block_time, FRESH).is_some();
            if !fresh {
                for chance in &mut self.of_block {
                    chance.compared = chance.compared.min(STALE_COUNT);
                }
            }
            let each = making / drafts as f64;
            self.block_time = Time::update(self.block_time, fresh, each, self.passes);
        }
        self.pending = Some(Pending { seconds: seconds + making, drafts, accepted: 0 });
    }

    /// Takes account of the last pass, whose tokens have been drawn.
    fn settle(&mut self) {
        let Some(Pending { seconds, accepted, drafts }) = self.pending.take() else { return };
        let Some(base) = self.times[0].map(|time| time.seconds) else { return };
        let ahead = LOSS_AHEAD * base;
        let gain = if drafts > 0 { (1 + accepted) as f64 * base - seconds } else { 0.0 };
        let allowance = self.allowance.unwrap_or(ahead) + LOSS_SHARE * seconds + gain;
        // No mishap rules drafts out for good.
        self.allowance = Some(allowance.clamp(-ahead, ahead));
    }

    /// The time of a pass without drafts.
    fn base(&self) -> Option<f64> {
        self.fresh(self.times[0], (self.passes / 4).clamp(BASE_FRESH.0, BASE_FRESH.1))
    }

    /// A time, where it was measured lately.
    fn fresh(&self, time: Option<Time>, passes: u64) -> Option<f64> {
        time.filter(|time| self.passes - time.at < passes).map(|time| time.seconds)
    }

    fn time(&self, drafts: usize) -> Option<f64> {
        self.fresh(self.times[drafts], FRESH)
    }

    /// The longest draft whose time was measured lately; 0 where there is none.
    fn measured(&self) -> usize {
        (1..=MAX_DRAFT).rev().find(|&drafts| self.time(drafts).is_some()).unwrap_or(0)
    }

    /// The time of a pass with this many drafts: measured, between its measured neighbours, or on the line
    /// from no draft through the longest measured. Never less than a pass without drafts.
    fn seconds(&self, base: f64, drafts: usize) -> f64 {
        let time = |drafts: usize| Some((drafts as f64, if drafts == 0 { base } else { self.time(drafts)? }));
        let below = (0..=drafts).rev().find_map(time);
        let above = (drafts + 1..=MAX_DRAFT).find_map(time);
        let line = |a: (f64, f64), b: (f64, f64)| a.1 + (b.1 - a.1) * (drafts as f64 - a.0) / (b.0 - a.0);
        let seconds = match (below, above) {
            (Some(below), _) if below.0 == drafts as f64 => below.1,
            (Some(below), Some(above)) => line(below, above),
            (Some(below), None) if below.0 > 0.0 => line((0.0, base), below),
            _ => base,
        };
        seconds.max(base)
    }
}

#[cfg(test)]
mod tests;
