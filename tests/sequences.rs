//! Sequences that share passes: each gets the bits that it gets alone, whatever the others are, and whatever
//! is forked, taken back or fed again.

mod common;

use common::gguf::GgufBuilder;
use common::runs::{Run, bits, fixture, load, options, options_of};
use common::tiny::{TOKENS, tiny_model};
use wayinfer::engine::{Engine, EngineError, EngineOptions, Feed, Sequence};
use wayinfer::gguf::Gguf;
use wayinfer::kernels::{Isa, Kernels};
use wayinfer::model::{KvType, Logits, Model, SequenceState};

const CONTEXT: usize = 400;

/// Prompts of sequences: single tokens, what kernels take at once and a bit more or less, around the pages of
/// 128 positions.
const PROMPTS: [usize; 30] = [
    129, 1, 40, 2, 128, 3, 257, 7, 1, 64, 5, 127, 33, 1, 16, 130, 9, 65, 1, 31, 256, 12, 2, 63, 255, 1, 17,
    4, 8, 32,
];

/// What a sequence does in a stage.
#[derive(Clone)]
struct Step {
    /// Goes back to so many positions first.
    rewind: Option<usize>,
    tokens: Vec<u32>,
    logits: Logits,
}

impl Step {
    fn new(tokens: Vec<u32>, logits: Logits) -> Step {
        Step { rewind: None, tokens, logits }
    }
}

/// Tokens that another seed makes others of.
fn tokens(vocab: usize, seed: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((3 + 7919 * (i + 1) * (seed + 1) + 31 * seed) % vocab) as u32).collect()
}

/// The steps of sequence `s`: its prompt, two tokens one by one, other tokens in the place of some, one more.
fn steps(vocab: usize, s: usize) -> Vec<Step> {
    let prompt = PROMPTS[s];
    let logits = match s {
        s if s % 7 == 0 => Logits::All,
        s if s % 5 == 1 => Logits::None,
        _ => Logits::Last,
    };
    // Within the page, to its edge, over it, to the beginning.
    let rewind = [prompt, prompt / 2, prompt.saturating_sub(1), prompt.min(128), 0][s % 5];
    let again = Step { rewind: Some(rewind), ..Step::new(tokens(vocab, s + 100, 1 + s % 9), Logits::Last) };
    let one = |seed: usize| Step::new(tokens(vocab, seed, 1), Logits::Last);
    vec![Step::new(tokens(vocab, s, prompt), logits), one(s + 40), one(s + 70), again, one(s + 90)]
}

/// The logits after each step of a sequence alone, as bits.
fn alone(engine: &mut Engine<'_>, steps: &[Step]) -> Vec<Vec<u32>> {
    let mut sequence = engine.sequence();
    let step = |step: &Step| {
        step.rewind.into_iter().for_each(|past| assert_eq!(sequence.rewind(past), past));
        engine.feed(&mut sequence, &step.tokens, step.logits).expect("a pass");
        bits(sequence.logits())
    };
    steps.iter().map(step).collect()
}

/// The same of all sequences in shared passes; `s` begins in stage `s % 3`, so that prompts meet single
/// tokens. `meddle` may change the sequences before a stage.
fn together(
    engine: &mut Engine<'_>,
    all: &[Vec<Step>],
    mut meddle: impl FnMut(usize, &mut [Sequence]),
) -> Vec<Vec<Vec<u32>>> {
    let mut sequences: Vec<Sequence> = all.iter().map(|_| engine.sequence()).collect();
    let mut seen = vec![Vec::new(); all.len()];
    for stage in 0..all[0].len() + 2 {
        meddle(stage, &mut sequences);
        let at_work = |s: usize| stage.checked_sub(s % 3).and_then(|step| all[s].get(step));
        let mut feeds = Vec::new();
        for (s, sequence) in sequences.iter_mut().enumerate() {
            let Some(step) = at_work(s) else { continue };
            step.rewind.into_iter().for_each(|past| assert_eq!(sequence.rewind(past), past));
            feeds.push(Feed { sequence, tokens: &step.tokens, logits: step.logits });
        }
        engine.feed_all(&mut feeds).expect("passes");
        for (s, sequence) in sequences.iter().enumerate().filter(|(s, _)| at_work(*s).is_some()) {
            seen[s].push(bits(sequence.logits()));
        }
    }
    seen
}

/// The first sequence and step whose logits differ. Of all logits of a prompt, those of its last pass are
/// compared.
fn first_difference(
    all: &[Vec<Step>],
    want: &[Vec<Vec<u32>>],
    got: &[Vec<Vec<u32>>],
) -> Option<(usize, usize)> {
    for (s, steps) in all.iter().enumerate() {
        assert_eq!((want[s].len(), got[s].len()), (steps.len(), steps.len()));
        for (i, step) in steps.iter().enumerate() {
            let (want, got) = (&want[s][i], &got[s][i]);
            assert_eq!(got.is_empty(), step.logits == Logits::None);
            let same = match step.logits {
                Logits::All | Logits::Drafts => want.ends_with(got),
                Logits::None | Logits::Last => want == got,
            };
            if !same {
                return Some((s, i));
            }
        }
    }
    None
}

fn all_steps(model: &Model) -> Vec<Vec<Step>> {
    (0..PROMPTS.len()).map(|s| steps(model.spec().vocab, s)).collect()
}

fn truth(model: &Model, all: &[Vec<Step>], kv: KvType) -> Vec<Vec<Vec<u32>>> {
    let mut engine = Engine::new(model, &options_of(CONTEXT, 300, Isa::Scalar, 2, kv)).expect("an engine");
    all.iter().map(|steps| alone(&mut engine, steps)).collect()
}

#[test]
fn thirty_sequences_get_the_bits_that_each_gets_alone() {
    common::say_kernel_sets("sequences");
    for name in [
        "dense-q4_k_m",
        "moe-q4_k_m",
        "odd-q8_0",
        "deepseek2",
        "deepseek32",
        "minimax-m3",
        "gemma4",
        "gemma3n",
    ] {
        let model = load(&fixture(name));
        let all = all_steps(&model);
        for kv in [KvType::F16, KvType::F32, KvType::Q8_0, KvType::Q4_0] {
            if SequenceState::check(model.spec(), kv).is_err() {
                assert!(kv.is_quantised() && !name.ends_with("q4_k_m"), "{name}, {kv}");
                continue;
            }
            let truth = truth(&model, &all, kv);
            for set in Kernels::available() {
                // In a pass or two, and cut in many places.
                for (threads, batch) in [(2, 2000), (3, 101)] {
                    let options = options_of(CONTEXT.max(batch), batch, set.isa(), threads, kv);
                    let mut engine = Engine::new(&model, &options).expect("an engine");
                    assert_eq!(engine.batch(), batch);
                    let got = together(&mut engine, &all, |_, _| ());
                    let what = format!("{name}, {}, {kv}, batches of {batch}", set.isa());
                    assert_eq!(first_difference(&all, &truth, &got), None, "{what}");
                }
            }
        }
    }
}

/// The comparison above sees two sequences that have changed places.
#[test]
fn sequences_in_each_others_place_are_noticed() {
    let model = load(&fixture("dense-q4_k_m"));
    let all = all_steps(&model);
    let truth = truth(&model, &all, KvType::F16);
    let mut engine = Engine::new(&model, &options(CONTEXT, 300)).expect("an engine");
    // Both have seen one token; then each gets the other's next.
    assert_eq!((PROMPTS[1], PROMPTS[13]), (1, 1));
    let got = together(&mut engine, &all, |stage, sequences| {
        if stage == 2 {
            sequences.swap(1, 13);
        }
    });
    assert_eq!(first_difference(&all, &truth, &got), Some((1, 1)));
}

/// Bits of the last logits of these tokens, from the beginning.
fn from_the_beginning(engine: &mut Engine<'_>, tokens: &[u32]) -> Vec<u32> {
    let mut sequence = engine.sequence();
    engine.feed(&mut sequence, tokens, Logits::Last).expect("a pass");
    bits(sequence.logits())
}

#[test]
fn forks_go_their_own_ways() {
    for (name, kv) in [("dense-q4_k_m", KvType::F16), ("moe-q4_k_m", KvType::F32)] {
        let model = load(&fixture(name));
        let vocab = model.spec().vocab;
        let options = EngineOptions { kv, ..options(CONTEXT, 300) };
        let mut engine = Engine::new(&model, &options).expect("an engine");
        // In the middle of the second page, at its beginning, in the first.
        for shared in [200, 128, 50] {
            let prompt = tokens(vocab, 1, shared);
            let mut parent = engine.sequence();
            engine.feed(&mut parent, &prompt, Logits::Last).expect("a pass");
            let logits = bits(parent.logits());
            let mut forks: Vec<Sequence> = (0..3).map(|_| parent.fork()).collect();
            assert!(forks.iter().all(|fork| bits(fork.logits()) == logits && fork.tokens() == prompt));
            // The last of them takes some back first, over the edge of a page where there is one.
            let back = shared - 75.min(shared - 1);
            assert_eq!(forks[2].rewind(back), back);
            let ways: Vec<Vec<u32>> = (0..4).map(|way| tokens(vocab, 20 + way, 3 + 40 * way)).collect();
            let [a, b, c] = &mut forks[..] else { panic!("three forks") };
            let sequences = [&mut parent, a, b, c].into_iter();
            let mut feeds: Vec<Feed<'_>> = sequences
                .zip(&ways)
                .map(|(sequence, tokens)| Feed { sequence, tokens, logits: Logits::Last })
                .collect();
            engine.feed_all(&mut feeds).expect("passes");
            let pasts = [&prompt[..], &prompt, &prompt, &prompt[..back]];
            for ((sequence, way), past) in [&parent].into_iter().chain(&forks).zip(&ways).zip(pasts) {
                let whole = [past, way].concat();
                assert_eq!(sequence.tokens(), whole);
                let want = from_the_beginning(&mut engine, &whole);
                assert_eq!(bits(sequence.logits()), want, "{name}: {shared} shared, {} more", way.len());
            }
            // Each goes on as if the others had not been.
            for (sequence, past) in [&mut parent].into_iter().chain(&mut forks).zip(pasts) {
                assert_eq!(sequence.rewind(past.len()), past.len());
                engine.feed(sequence, &[5, 6], Logits::Last).expect("a pass");
                assert_eq!(
                    bits(sequence.logits()),
                    from_the_beginning(&mut engine, &[past, &[5, 6]].concat())
                );
            }
        }
    }
}

/// Full pages are shared: forks of a long text take little more than the text.
#[test]
fn forks_share_full_pages() {
    let model = load(&fixture("dense-q4_k_m"));
    let mut engine = Engine::new(&model, &options(CONTEXT, 300)).expect("an engine");
    let mut parent = engine.sequence();
    engine.feed(&mut parent, &tokens(model.spec().vocab, 1, 256), Logits::Last).expect("a pass");
    let pages = |sequence: &Sequence| sequence.held_bytes();
    let two = pages(&parent);
    let mut fork = parent.fork();
    engine.feed(&mut fork, &[1], Logits::Last).expect("a pass");
    assert_eq!((pages(&parent), 2 * pages(&fork)), (two, 3 * two), "a page of its own");
    assert_eq!(fork.rewind(256), 256);
    assert_eq!(pages(&fork), two);
}

/// Tokens of which the last one's logits are wanted.
fn feed<'s>(sequence: &'s mut Sequence, tokens: &'s [u32]) -> Feed<'s> {
    Feed { sequence, tokens, logits: Logits::Last }
}

#[test]
fn what_does_not_fit_a_context_runs_nothing() {
    let model = load(&fixture("dense-q4_k_m"));
    let mut engine = Engine::new(&model, &options(16, 16)).expect("an engine");
    let (mut short, mut long) = (engine.sequence(), engine.sequence());
    engine.feed(&mut short, &[1, 2], Logits::Last).expect("a pass");
    let before = bits(short.logits());
    let refused = engine.feed_all(&mut [feed(&mut short, &[3]), feed(&mut long, &[4; 17])]);
    assert!(
        matches!(refused, Err(EngineError::ContextFull { tokens: 17, past: 0, context: 16 })),
        "{refused:?}"
    );
    assert_eq!((short.tokens(), long.past()), (&[1, 2][..], 0));
    assert_eq!(bits(short.logits()), before);
    engine.feed_all(&mut [feed(&mut short, &[3]), feed(&mut long, &[4; 16])]).expect("passes");
    assert_eq!((short.past(), long.past()), (3, 16));
    engine.feed_all(&mut []).expect("nothing to do");
}

/// A token outside of the vocabulary leaves no sequence of its pass with logits, and all where they were.
#[test]
fn a_refused_pass_leaves_its_sequences_where_they_were() {
    let model = load(&fixture("dense-q4_k_m"));
    let mut engine = Engine::new(&model, &options(16, 16)).expect("an engine");
    let (mut good, mut bad) = (engine.sequence(), engine.sequence());
    engine.feed(&mut good, &[1, 2], Logits::Last).expect("a pass");
    assert!(engine.feed_all(&mut [feed(&mut good, &[3]), feed(&mut bad, &[u32::MAX])]).is_err());
    assert_eq!((good.tokens(), bad.past()), (&[1, 2][..], 0));
    assert!(good.logits().is_empty() && matches!(bad.argmax(), Err(EngineError::NoLogits)));
    engine.feed(&mut good, &[3], Logits::Last).expect("a pass");
    let want = from_the_beginning(&mut engine, &[1, 2, 3]);
    assert_eq!(bits(good.logits()), want);
}

/// A tiny model whose queries see 40 positions.
fn windowed() -> GgufBuilder {
    tiny_model().set("llama.attention.sliding_window", 40u32)
}

/// A window gives up its pages: memory stays, and what cannot be taken back any more has to be fed again.
#[test]
fn a_window_gives_up_what_it_does_not_see() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let path = dir.path().join("window.gguf");
    std::fs::write(&path, windowed().build()).expect("a model");
    let model = Model::load(&Gguf::open(&path).expect("a file")).expect("it loads");
    let text = tokens(TOKENS as usize, 1, 700);
    let mut run = Run::new(&model, &options(700, 64));
    let mut most = 0;
    for chunk in text.chunks(50) {
        run.feed(chunk, Logits::Last).expect("a pass");
        most = most.max(run.sequence.held_bytes());
    }
    let want = bits(run.logits());
    let page = 128 * (16 + 16) * 2;
    assert!(most <= 4 * page, "{most} bytes of pages of {page}");

    // A few tokens are there to be taken back, many are not.
    assert_eq!(run.sequence.rewind(690), 690);
    run.feed(&text[690..], Logits::Last).expect("a pass");
    assert_eq!(bits(run.logits()), want);
    assert_eq!(run.sequence.rewind(300), 0);
    assert_eq!((run.sequence.past(), run.sequence.held_bytes()), (0, 0));
    run.feed(&text, Logits::Last).expect("passes");
    assert_eq!(bits(run.logits()), want);

    // Beside others, at another place in the text, too.
    let (mut first, mut second) = (run.engine.sequence(), run.engine.sequence());
    let halves = text.split_at(333);
    run.engine.feed_all(&mut [feed(&mut first, halves.0), feed(&mut second, &text[..90])]).expect("passes");
    run.engine.feed_all(&mut [feed(&mut second, &text[90..]), feed(&mut first, halves.1)]).expect("passes");
    assert_eq!((bits(first.logits()), bits(second.logits())), (want.clone(), want));
}
