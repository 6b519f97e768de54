//! Simulated runs: no clock but the policy's own.

use super::*;

/// What a run costs: the seconds of a pass with so many drafts, and of a token drafted by the block.
struct Costs<'a> {
    pass: &'a dyn Fn(usize) -> f64,
    block: f64,
}

/// How often a draft of each source is right.
#[derive(Clone, Copy)]
struct Rates {
    text: f64,
    block: f64,
}

/// A simulated run: tokens made and seconds they took.
#[derive(Debug)]
struct Run {
    tokens: usize,
    seconds: f64,
    /// What the last pass drafted.
    last: Option<DraftPlan>,
}

impl Run {
    fn drafts(&self) -> usize {
        self.last.map_or(0, |plan| plan.drafts)
    }
}

/// Knuth's linear congruential generator.
fn random(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Runs passes until there are `tokens` tokens.
fn run(policy: &mut DraftPolicy, tokens: usize, offer: DraftOffer, rates: Rates, costs: &Costs<'_>) -> Run {
    run_seeded(policy, tokens, offer, rates, costs, 1)
}

fn run_seeded(
    policy: &mut DraftPolicy,
    tokens: usize,
    offer: DraftOffer,
    rates: Rates,
    costs: &Costs<'_>,
    seed: u64,
) -> Run {
    let mut draw = random(seed);
    let mut run = Run { tokens: 0, seconds: 0.0, last: None };
    while run.tokens < tokens {
        let plan = policy.choose(offer);
        let drafts = plan.map_or(0, |plan| plan.drafts);
        let source = plan.map(|plan| plan.source);
        assert!(plan.is_none() || drafts > 0);
        let made = if source == Some(DraftSource::Block) { drafts as f64 * costs.block } else { 0.0 };
        let pass = (costs.pass)(drafts);
        let [making, took] = [made, pass].map(Duration::from_secs_f64);
        policy.passed(source, drafts, making, took);
        run.seconds += made + pass;
        run.tokens += 1;
        // As a generation compares: what was run, and what the text says, run or not.
        let text = offer.text.map(|(matched, n)| (DraftSource::Text { matched }, n, rates.text));
        let block = (source == Some(DraftSource::Block)).then_some((DraftSource::Block, drafts, rates.block));
        for (from, said, rate) in text.into_iter().chain(block) {
            let ran = if source == Some(from) { drafts } else { 0 };
            for at in 0..said.min(ran + 1) {
                let accepted = draw() < rate;
                policy.compared(from, at, accepted, at < ran);
                if !accepted {
                    break;
                }
                run.tokens += usize::from(at < ran);
            }
        }
        run.last = plan;
    }
    run
}

const TEXT: DraftOffer = DraftOffer { text: Some((3, 15)), block: 0 };
const BLOCK: DraftOffer = DraftOffer { text: None, block: 15 };
const BOTH: DraftOffer = DraftOffer { text: Some((3, 15)), block: 15 };

fn of_text(rate: f64) -> Rates {
    Rates { text: rate, block: 0.0 }
}

fn of_block(rate: f64) -> Rates {
    Rates { text: 0.0, block: rate }
}

fn text_costs(pass: &dyn Fn(usize) -> f64) -> Costs<'_> {
    Costs { pass, block: 0.0 }
}

#[test]
fn free_drafts_are_as_long_as_can_be() {
    let mut policy = DraftPolicy::default();
    let run = run(&mut policy, 1600, TEXT, of_text(0.9), &text_costs(&|_| 0.5));
    // 1 + 0.9 + ... + 0.9^15 = 8.1 tokens a pass; some passes try shorter ones, or none.
    assert!(run.tokens as f64 / run.seconds > 0.85 * 8.1 / 0.5, "{run:?}");
    assert_eq!(policy.choose(DraftOffer { text: Some((3, 0)), block: 0 }), None);
}

#[test]
fn nothing_is_drafted_before_a_pass_was_measured_and_long_drafts_are_come_to_by_degrees() {
    let mut policy = DraftPolicy::default();
    let lengths: Vec<_> = (0..12)
        .map(|_| {
            let plan = policy.choose(DraftOffer { text: Some((4, 15)), block: 0 });
            let drafts = plan.map_or(0, |plan| plan.drafts);
            policy.passed(plan.map(|plan| plan.source), drafts, Duration::ZERO, Duration::from_millis(100));
            policy.compared(DraftSource::Text { matched: 4 }, 0, true, drafts > 0);
            drafts
        })
        .collect();
    // Every fifth pass measures at first what a pass without drafts takes.
    assert_eq!(lengths, [0, 1, 2, 3, 4, 0, 6, 8, 11, 14, 0, 15]);
}

/// Never slower than without by more than 3 % over 200 tokens, whatever the costs and whatever is right: that
/// is what a run may lose, in the mean of some runs and nearly in each.
#[test]
fn little_is_lost_where_drafts_do_not_pay() {
    let mut worst = 0.0f64;
    for offer in [TEXT, BLOCK, BOTH] {
        for (rate, slope, block) in [
            (0.0, 1.0, 0.3),
            (0.5, 1.0, 0.3),
            (0.1, 0.3, 0.2),
            (0.9, 1.0, 0.4),
            (0.0, 0.1, 0.05),
            (0.3, 0.5, 0.3),
            (0.5, 0.6, 0.2),
            (0.7, 0.8, 0.2),
            (0.0, 0.0, 0.5),
            (0.2, 0.02, 0.3),
        ] {
            let rates = Rates { text: rate, block: rate };
            let costs = Costs { pass: &|drafts| 0.1 * (1.0 + slope * drafts as f64), block: 0.1 * block };
            let losses: Vec<f64> = (1..=20)
                .map(|seed| {
                    let run = run_seeded(&mut DraftPolicy::default(), 200, offer, rates, &costs, seed);
                    run.seconds / (0.1 * run.tokens as f64) - 1.0
                })
                .collect();
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            let most = losses.iter().copied().fold(f64::MIN, f64::max);
            worst = worst.max(most);
            assert!(mean < 0.03 && most < 0.035, "{offer:?}, right {rate}, slope {slope}: {mean}, {most}");
        }
    }
    println!("at worst {worst}");
}

#[test]
fn the_length_follows_from_acceptance_and_cost() {
    // Free up to 7 drafts, then as dear as a pass each.
    let knee = |drafts: usize| 0.5 * (1.0 + drafts.saturating_sub(7) as f64);
    let knee_run = run(&mut DraftPolicy::default(), 1200, TEXT, of_text(0.8), &text_costs(&knee));
    // 1 + 0.8 + ... + 0.8^7 = 4.16 tokens in 0.5 s.
    assert!(knee_run.tokens as f64 / knee_run.seconds > 0.8 * 4.16 / 0.5, "{knee_run:?}");
    // A tenth of a pass for each draft: the more are right, the longer they are.
    let slope = |drafts: usize| 0.5 + 0.05 * drafts as f64;
    let rates = [0.3, 0.5, 0.9].map(|rate| {
        let run = run(&mut DraftPolicy::default(), 800, TEXT, of_text(rate), &text_costs(&slope));
        run.tokens as f64 / run.seconds * 0.5
    });
    assert!(rates.is_sorted() && rates[0] > 1.1 && rates[2] > 2.5, "{rates:?}");
}

#[test]
fn the_block_drafts_where_it_pays() {
    // A verified draft costs a quarter of a pass, a drafted one a tenth: 0.8 of them are right.
    let costs = Costs { pass: &|drafts| 0.1 * (1.0 + 0.25 * drafts as f64), block: 0.01 };
    let block = run(&mut DraftPolicy::default(), 400, BLOCK, of_block(0.8), &costs);
    assert!(block.tokens as f64 * 0.1 / block.seconds > 1.25, "{block:?}");
    assert!(block.drafts() <= MOST_OF_BLOCK);
    // The text says nothing of use: it is the block that drafts.
    let rates = Rates { text: 0.05, block: 0.8 };
    let both = run(&mut DraftPolicy::default(), 400, BOTH, rates, &costs);
    assert!(both.tokens as f64 * 0.1 / both.seconds > 1.2, "{both:?}");
    // The text repeats itself: drafts of it are free.
    let rates = Rates { text: 0.98, block: 0.8 };
    let free = Costs { pass: &|_| 0.1, block: 0.02 };
    let mut policy = DraftPolicy::default();
    let repeated = run(&mut policy, 1500, BOTH, rates, &free);
    assert!(repeated.tokens as f64 * 0.1 / repeated.seconds > 6.0, "{repeated:?}");
}

#[test]
fn a_block_that_must_draft_does_so_at_its_best_length() {
    let mut policy = DraftPolicy::default();
    let lengths: Vec<usize> = (0..40)
        .map(|_| {
            let drafts = policy.choose_of_block(15);
            let seconds = 0.1 + 0.001 * drafts as f64;
            policy.passed(Some(DraftSource::Block), drafts, Duration::ZERO, Duration::from_secs_f64(seconds));
            for at in 0..drafts {
                policy.compared(DraftSource::Block, at, true, true);
            }
            drafts
        })
        .collect();
    assert_eq!(lengths[..4], [0, 1, 2, 3]);
    assert_eq!(lengths.iter().max(), Some(&MOST_OF_BLOCK));
    assert!(lengths.iter().filter(|&&n| n == 0).count() <= 10, "{lengths:?}");
    // Where none pays, one is drafted all the same.
    let mut policy = DraftPolicy::default();
    let lengths: Vec<usize> = (0..40)
        .map(|_| {
            let drafts = policy.choose_of_block(15);
            let pass = Duration::from_secs_f64(0.1 * (1 + drafts) as f64);
            policy.passed(Some(DraftSource::Block), drafts, Duration::from_millis(30), pass);
            policy.compared(DraftSource::Block, 0, false, true);
            drafts
        })
        .collect();
    assert!(lengths.iter().all(|&n| n <= 1) && lengths.iter().sum::<usize>() >= 28, "{lengths:?}");
}

#[test]
fn a_change_is_noticed() {
    let mut policy = DraftPolicy::default();
    assert_eq!(run(&mut policy, 600, TEXT, of_text(0.9), &text_costs(&|_| 0.5)).drafts(), 15);
    // The weights have found room in memory: a pass takes what its tokens take.
    let dear = run(&mut policy, 600, TEXT, of_text(0.9), &text_costs(&|drafts| 0.05 * (1 + drafts) as f64));
    assert_eq!(dear.drafts(), 0);
    let cheap = run(&mut policy, 600, TEXT, of_text(0.9), &text_costs(&|_| 0.5));
    assert!((cheap.seconds / 0.5) < 0.5 * 600.0, "{cheap:?}");
    // The text has changed: what is drafted is wrong. It is compared all the same, and comes back.
    let slope = |drafts: usize| 0.5 + 0.1 * drafts as f64;
    assert_eq!(run(&mut policy, 200, TEXT, of_text(0.0), &text_costs(&slope)).drafts(), 0);
    let back = run(&mut policy, 1500, TEXT, of_text(1.0), &text_costs(&slope));
    assert!(back.drafts() > 7 || back.tokens as f64 / back.seconds > 2.0, "{back:?}");
    // The block's drafts become right later on.
    let costs = Costs { pass: &|drafts| 0.1 * (1.0 + 0.2 * drafts as f64), block: 0.01 };
    let mut policy = DraftPolicy::default();
    run(&mut policy, 300, BLOCK, of_block(0.0), &costs);
    let later = run(&mut policy, 1000, BLOCK, of_block(0.95), &costs);
    assert!(later.tokens as f64 * 0.1 / later.seconds > 1.2, "{later:?}");
}

#[test]
fn a_mishap_is_forgotten() {
    let mut policy = DraftPolicy::default();
    policy.passed(None, 0, Duration::ZERO, Duration::from_millis(100));
    let plan = policy.choose(TEXT);
    assert_eq!(plan.map(|plan| plan.drafts), Some(1));
    policy.passed(plan.map(|plan| plan.source), 1, Duration::ZERO, Duration::from_secs(20));
    assert_eq!(policy.choose(TEXT), None);
    let run = run(&mut policy, 1500, TEXT, of_text(0.9), &text_costs(&|_| 0.1));
    assert!(run.drafts() > 10 || run.seconds < 0.1 * 750.0, "{run:?}");
}

#[test]
fn ngrams_of_each_length_have_their_own_chance() {
    let mut policy = DraftPolicy::default();
    let ms = Duration::from_millis;
    policy.passed(None, 0, Duration::ZERO, ms(100));
    policy.passed(Some(DraftSource::Text { matched: 4 }), 1, Duration::ZERO, ms(150));
    for _ in 0..20 {
        policy.compared(DraftSource::Text { matched: 2 }, 0, false, false);
        policy.compared(DraftSource::Text { matched: 4 }, 0, true, false);
    }
    let mut offered = |matched| policy.choose(DraftOffer { text: Some((matched, 3)), block: 0 });
    assert_eq!(offered(2), None);
    assert_eq!(offered(4).map(|plan| plan.drafts), Some(2));
}
