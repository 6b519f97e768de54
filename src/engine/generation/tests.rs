//! Speculation is lossless: at every token, the token, what it was drawn from and the sequence are those
//! without.

use std::path::Path;
use std::sync::atomic::Ordering;

use super::super::speculation::{Drafter, Fault};
use super::super::{EngineOptions, SamplerConfig};
use super::*;
use crate::gguf::{Gguf, Source, StaticBytes};
use crate::model::{KvType, Model};
use crate::store::Guesses;
use crate::text::{Constraint, Grammar, GrammarFactory, Tokenizer};

/// Dense in floats and in blocks, with experts, and with an output tied to the embedding.
const FIXTURES: [&str; 6] =
    ["dense-f32", "dense-q8_0", "dense-q4_k_m", "moe-q4_k_m", "odd-q8_0", "demo-q4_k_m"];

fn fixture(name: &str) -> Gguf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{name}.gguf"));
    Gguf::open(&path).unwrap_or_else(|e| panic!("{e}"))
}

fn load(name: &str) -> Model {
    Model::load(&fixture(name)).unwrap_or_else(|e| panic!("{e}"))
}

/// A run: prompt, sampler, context, batch, most tokens.
#[derive(Clone)]
struct Case {
    prompt: Vec<u32>,
    sampler: SamplerConfig,
    context: usize,
    batch: usize,
    most: usize,
    constraint: Option<Constraint>,
}

impl Case {
    fn new(prompt: Vec<u32>, sampler: SamplerConfig) -> Case {
        Case { prompt, sampler, context: 160, batch: 64, most: 60, constraint: None }
    }
}

/// The sequence and the sampler after a token, or the error.
#[derive(Debug, PartialEq)]
struct Seen {
    token: Result<(u32, Vec<Candidate>), String>,
    tokens: Vec<u32>,
    past: usize,
    logits: Vec<u32>,
}

fn begin<'m>(model: &'m Model, context: usize, batch: usize, prompt: &[u32]) -> (Engine<'m>, Sequence) {
    let options = EngineOptions {
        context,
        batch,
        kv: KvType::F16,
        threads: 2.into(),
        isa: None,
        drafts: 15,
        guesses: Guesses::Off,
    };
    let mut engine = Engine::new(model, &options).expect("an engine");
    let mut sequence = engine.sequence();
    engine.feed(&mut sequence, prompt, Logits::Last).expect("the prompt");
    (engine, sequence)
}

/// Runs a case; `setup` turns speculation on.
fn run(model: &Model, case: &Case, setup: impl Fn(&mut Generation<'_, '_>)) -> (Vec<Seen>, SpeculationStats) {
    let (mut engine, mut sequence) = begin(model, case.context, case.batch, &case.prompt);
    let mut sampler = Sampler::new(case.sampler.clone()).unwrap();
    sampler.read(case.prompt.iter().copied());
    case.constraint.iter().for_each(|constraint| sampler.constrain(constraint.clone()));
    let mut generation = engine.generate(&mut sequence, &mut sampler);
    generation.wanted = case.most;
    setup(&mut generation);
    let mut seen = Vec::new();
    while seen.len() < case.most {
        let Some(token) = generation.next() else { break };
        let failed = token.is_err();
        seen.push(Seen {
            token: token.map(|c| (c.id, generation.candidates().to_vec())).map_err(|e| e.to_string()),
            tokens: generation.sequence.tokens().to_vec(),
            past: generation.sequence.past(),
            logits: generation.sequence.logits().iter().map(|l| l.to_bits()).collect(),
        });
        if failed {
            break;
        }
    }
    (seen, generation.stats())
}

fn off(_: &mut Generation<'_, '_>) {}

/// Drafts of up to `most`, with a fault.
fn drafter(most: usize, fault: Option<Fault>) -> impl Fn(&mut Generation<'_, '_>) {
    move |generation| {
        let text = generation.sequence.tokens();
        let mut drafter = Drafter::new(Speculation::Fixed(most), text, false).expect("it drafts");
        drafter.fault = fault.clone();
        generation.drafter = Some(drafter);
    }
}

fn ids(seen: &[Seen]) -> Vec<u32> {
    seen.iter().filter_map(|seen| Some(seen.token.as_ref().ok()?.0)).collect()
}

/// The first token at which two runs differ.
fn first_difference(a: &[Seen], b: &[Seen]) -> Option<usize> {
    (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i))
}

fn repeating(model: &Model) -> Vec<u32> {
    (0..40).map(|i| ((3 + 7919 * (i % 9)) % model.spec().vocab) as u32).collect()
}

fn varied(model: &Model) -> Vec<u32> {
    (0..40).map(|i| ((3 + 7919 * i) % model.spec().vocab) as u32).collect()
}

fn samplers() -> Vec<SamplerConfig> {
    let sampled = |seed| SamplerConfig { temperature: 0.7, top_k: 3, seed, ..SamplerConfig::greedy() };
    let penalised = SamplerConfig { repeat_penalty: 1.3, repeat_last: 16, top_p: 0.9, ..sampled(3) };
    vec![SamplerConfig::greedy(), sampled(1), sampled(2), penalised]
}

#[test]
fn speculation_changes_nothing_but_the_passes() {
    for name in FIXTURES {
        let model = load(name);
        let mut accepted = 0;
        for prompt in [repeating(&model), varied(&model)] {
            for sampler in samplers() {
                let case = Case::new(prompt.clone(), sampler);
                let (plain, without) = run(&model, &case, off);
                assert_eq!((plain.len(), without.passes, without.drafted), (60, 59, 0));
                for most in [1, 3, 8, 15] {
                    let (got, stats) = run(&model, &case, drafter(most, None));
                    let what = format!("{name}, {most} drafts, {:?}", case.sampler);
                    assert_eq!(first_difference(&plain, &got), None, "{what}");
                    assert_eq!(stats.passes + stats.accepted, 59, "{what}");
                    accepted += stats.accepted;
                }
            }
        }
        assert!(accepted > 0, "{name}: no draft was ever accepted");
        println!("{name}: {accepted} accepted");
    }
}

/// Drafts that the grammar does not allow are never drawn, and those that it does count as they do without.
#[test]
fn speculation_changes_nothing_under_a_grammar() {
    let (gguf, model) = (fixture("demo-q4_k_m"), load("demo-q4_k_m"));
    let tokenizer = Tokenizer::from_metadata(gguf.metadata(), None).expect("a tokenizer");
    let factory = GrammarFactory::new(&tokenizer).expect("a factory");
    let grammar =
        Grammar::regex(r#"(\{"day": (true|false), "of": "[a-z]{2,4}"\}, ?){40}"#).expect("a grammar");
    let constraint = factory.constraint(&grammar).expect("a constraint");
    let mut accepted = 0;
    for sampler in samplers() {
        let case = Case { constraint: Some(constraint.clone()), ..Case::new(varied(&model), sampler) };
        let (plain, _) = run(&model, &case, off);
        let text = ids(&plain);
        assert_eq!(text.len(), 60);
        let read = tokenizer.decode(&text, false);
        assert!(read.starts_with("{\"day\": "), "{read}");
        let texts = [&text[..], &text.iter().map(|id| (id + 1) % 300).collect::<Vec<_>>()];
        let setups = texts.map(|text| drafts_from(&case, text));
        for (got, stats) in setups.iter().map(|setup| run(&model, &case, setup)) {
            assert_eq!(first_difference(&plain, &got), None, "{:?}", case.sampler);
            accepted += stats.accepted;
        }
        for most in [1, 3, 8, 15] {
            let (got, stats) = run(&model, &case, drafter(most, None));
            assert_eq!(first_difference(&plain, &got), None, "{most} drafts, {:?}", case.sampler);
            accepted += stats.accepted;
        }
    }
    assert!(accepted > 100, "{accepted} accepted");
    println!("{accepted} accepted");
}

/// The comparison above sees a draft that stands unseen.
#[test]
fn a_draft_that_is_not_compared_is_noticed() {
    let model = load("dense-q8_0");
    for sampler in samplers() {
        let case = Case::new(repeating(&model), sampler);
        let (plain, _) = run(&model, &case, off);
        let (got, _) = run(&model, &case, drafter(8, Some(Fault::NotCompared)));
        assert!(first_difference(&plain, &got).is_some());
    }
}

/// Drafts of up to 3 from a text that goes on from the prompt like this.
fn drafts_from(case: &Case, text: &[u32]) -> impl Fn(&mut Generation<'_, '_>) + use<> {
    drafter(3, Some(Fault::Text([&case.prompt, text].concat())))
}

#[test]
fn drafts_that_are_all_right_or_all_wrong_change_nothing() {
    let model = load("dense-q4_k_m");
    for sampler in samplers() {
        let case = Case::new(varied(&model), sampler);
        let (plain, _) = run(&model, &case, off);
        let text = ids(&plain);
        let (got, stats) = run(&model, &case, drafts_from(&case, &text));
        assert_eq!(first_difference(&plain, &got), None);
        // The first token comes from the prompt's logits, then four from each pass: the last needs no draft
        // more.
        assert_eq!((stats.passes, stats.drafted, stats.accepted), (15, 44, 44));

        let wrong: Vec<u32> = text.iter().map(|id| (id + 1) % 300).collect();
        let (got, stats) = run(&model, &case, drafts_from(&case, &wrong));
        assert_eq!(first_difference(&plain, &got), None);
        assert_eq!((stats.passes, stats.accepted), (59, 0));
    }
}

#[test]
fn the_context_ends_at_the_same_token() {
    let model = load("dense-q8_0");
    for context in [40, 41, 42, 43, 47, 50] {
        let case = Case { context, ..Case::new(repeating(&model), SamplerConfig::greedy()) };
        let (plain, _) = run(&model, &case, off);
        assert_eq!(plain.len(), context - 40 + 1, "the last token drawn is not fed");
        let text = ids(&plain);
        for setup in [drafts_from(&case, &text), drafts_from(&case, &[&text[..], &[1; 9]].concat())] {
            assert_eq!(first_difference(&plain, &run(&model, &case, setup).0), None, "{context}");
        }
        assert_eq!(first_difference(&plain, &run(&model, &case, drafter(15, None)).0), None, "{context}");
    }
}

#[test]
fn drafts_fit_the_batch_and_what_is_wanted() {
    let model = load("moe-q4_k_m");
    for (batch, most) in [(1, 9), (2, 9), (3, 1), (16, 2), (16, 0)] {
        let case = Case { batch, most, ..Case::new(repeating(&model), SamplerConfig::greedy()) };
        let (plain, _) = run(&model, &case, off);
        let (got, stats) = run(&model, &case, drafter(15, Some(Fault::Text(vec![1; 200]))));
        assert_eq!(first_difference(&plain, &got), None);
        assert_eq!(stats.drafted > 0, batch > 1 && most > 2, "{batch}, {most}: {stats:?}");
    }
}

/// After any token the sequence can be used on as if there had been no speculation.
#[test]
fn a_generation_may_be_dropped_and_the_sequence_used_on() {
    let model = load("dense-q4_k_m");
    let prompt = repeating(&model);
    let after = |speculation: Speculation, tokens: usize| {
        let (mut engine, mut sequence) = begin(&model, 160, 64, &prompt);
        let mut sampler = Sampler::new(SamplerConfig::greedy()).unwrap();
        let drawn = engine
            .generate(&mut sequence, &mut sampler)
            .speculate(speculation, usize::MAX)
            .take(tokens)
            .count();
        assert_eq!(drawn, tokens);
        let next = sequence.argmax().expect("finite");
        engine.feed(&mut sequence, &[next, 5, 6], Logits::All).expect("it goes on");
        (sequence.past(), sequence.tokens().to_vec(), sequence.logits().to_vec())
    };
    for tokens in 0..12 {
        assert_eq!(after(Speculation::Fixed(8), tokens), after(Speculation::Off, tokens), "after {tokens}");
    }
}

/// A model of a fixture in which the embedding of one token is not a number.
fn poisoned(name: &'static str, id: u32) -> Model {
    let gguf = fixture(name);
    let mut bytes = std::fs::read(&gguf.parts[0].path).expect("the fixture");
    let embedding = gguf.tensors.iter().find(|t| t.name == "token_embd.weight").expect("an embedding");
    let row = (embedding.bytes / embedding.dims[1]) as usize;
    bytes[embedding.offset as usize + id as usize * row..][..row].fill(0xff);
    let source = Source::Memory { name, bytes: StaticBytes(bytes.leak()) };
    Model::load(&Gguf::open(source).expect("it opens")).unwrap_or_else(|e| panic!("{e}"))
}

/// A draft that overflows does not matter until it is drawn; then the error is that without speculation.
#[test]
fn what_is_not_finite_matters_where_it_is_used() {
    // Refused where it is quantised, and where keys are kept.
    for (name, refused) in [("dense-q8_0", "attn_norm of layer 0"), ("dense-f32", "Kcur of layer 0")] {
        let case = Case::new(varied(&load(name)), SamplerConfig::greedy());
        let text = ids(&run(&load(name), &case, off).0);
        // A token that is drawn after some others, for the first time.
        let known = |at: usize| case.prompt.contains(&text[at]) || text[..at].contains(&text[at]);
        let at = (5..text.len()).find(|&at| !known(at)).expect("a token that is new");
        let model = poisoned(name, text[at]);
        let (plain, _) = run(&model, &case, off);
        let error = plain[at + 1].token.as_ref().expect_err("it is fed");
        assert!(plain.len() == at + 2 && error.contains(refused), "{name}: {error}");
        let (got, stats) = run(&model, &case, drafts_from(&case, &text));
        assert_eq!(first_difference(&plain, &got), None, "{name}");
        assert!(stats.drafted > stats.accepted, "{name}: {stats:?}");

        // Not drawn: another token that is as new, among drafts that are right.
        let other = (0..300).find(|id| !case.prompt.contains(id) && !text.contains(id)).expect("an id");
        let wrong: Vec<u32> = (0..60).map(|i| if i % 4 == 3 { other } else { text[i] }).collect();
        let (plain, _) = run(&poisoned(name, other), &case, off);
        let (got, stats) = run(&poisoned(name, other), &case, drafts_from(&case, &wrong));
        assert_eq!(ids(&got), text, "{name}");
        assert_eq!(first_difference(&plain, &got), None, "{name}");
        assert!(stats.drafted > stats.accepted, "{name}: {stats:?}");
    }
}

/// What is measured differs from run to run; the text does not.
#[test]
fn adaptive_drafts_change_nothing() {
    let model = load("dense-q4_k_m");
    let mut drafted = 0;
    for sampler in samplers() {
        let case = Case::new(repeating(&model), sampler);
        let (plain, _) = run(&model, &case, off);
        let (got, stats) = run(&model, &case, adaptive);
        assert_eq!(first_difference(&plain, &got), None);
        drafted += stats.drafted;
    }
    assert!(drafted > 0, "one draft is tried at least");
}

fn adaptive(generation: &mut Generation<'_, '_>) {
    generation.drafter = Drafter::new(Speculation::Auto, generation.sequence.tokens(), false);
}

/// With a clock of the test's own: where a draft costs nothing many are run, where it costs a pass hardly
/// any.
#[test]
fn drafts_follow_the_clock() {
    let model = load("dense-q4_k_m");
    let case = Case::new(repeating(&model), SamplerConfig::greedy());
    let (plain, without) = run(&model, &case, off);
    let mut drafted = [(0, 0); 2];
    for (of_draft, drafted) in [0, 100].into_iter().zip(&mut drafted) {
        let (got, stats) = run(&model, &case, |generation| {
            adaptive(generation);
            generation.clock = Box::new(move |stats| {
                Duration::from_millis((100 * stats.passes + of_draft * stats.drafted) as u64)
            });
        });
        assert_eq!(first_difference(&plain, &got), None);
        *drafted = (stats.drafted, stats.passes);
    }
    let [free, dear] = drafted;
    assert!(free.0 > 20 && free.1 < without.passes, "{free:?}");
    assert!(dear.0 <= 3, "{dear:?}");
}

/// A pass that is under way when it is to end leaves the sequence before it.
#[test]
fn an_interrupt_breaks_a_pass_off() {
    let model = load("dense-q8_0");
    for speculation in [Speculation::Off, Speculation::Fixed(3)] {
        let (mut engine, mut sequence) = begin(&model, 160, 64, &repeating(&model));
        let mut sampler = Sampler::new(SamplerConfig::greedy()).unwrap();
        let interrupted = AtomicBool::new(false);
        let mut generation = engine.generate(&mut sequence, &mut sampler);
        generation = generation.speculate(speculation, usize::MAX).until(&interrupted);
        let drawn: Vec<u32> = generation.by_ref().take(5).map(|token| token.expect("a token").id).collect();
        interrupted.store(true, Ordering::Relaxed);
        // Drafts that were run already may be drawn; no other pass ends.
        let end = generation.find(Result::is_err);
        assert!(matches!(end, Some(Err(EngineError::Interrupted))), "{speculation}: {end:?}");
        let passes = generation.stats().passes;
        assert!(passes <= 4, "{speculation}: {passes} passes");
        drop(generation);
        assert_eq!(sequence.tokens()[40..44], drawn[..4], "{speculation}");
    }
}
