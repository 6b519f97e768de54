//! That a request is answered alike alone and among others, whatever came before, and what becomes of those
//! that end early.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

mod kept;

use super::job::ROWS;
use super::*;
use crate::engine::{EngineOptions, Logprobs, Sampler, SamplerConfig};
use crate::gguf::Gguf;
use crate::model::{KvType, Model};
use crate::store::Guesses;

fn model(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    Model::load(&Gguf::open(&path).expect("a model")).expect("it loads")
}

fn scheduler(model: &Model, limits: SchedulerLimits) -> Scheduler<'_> {
    let options = EngineOptions {
        context: 400,
        batch: 64,
        kv: KvType::F16,
        threads: 2.into(),
        isa: None,
        drafts: 0,
        guesses: Guesses::Off,
    };
    Scheduler::new(Engine::new(model, &options).expect("an engine"), limits, None)
}

const LIMITS: SchedulerLimits = SchedulerLimits { sequences: 4, chunk: 24, sequence_bytes: 1 << 30 };

/// What a request was told.
#[derive(Debug, Default)]
struct Told {
    ids: Vec<u32>,
    logprobs: Vec<Option<Logprobs>>,
    /// Of the prompt.
    read: Vec<Drawn>,
    end: Option<(String, Usage)>,
    /// Leaves after so many tokens.
    leaves: Option<usize>,
    gone: bool,
}

type Listener = Arc<Mutex<Told>>;

impl Sink for Listener {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        let mut told = self.lock().unwrap();
        match event {
            Event::Prefill { done, of } => assert!(0 < done && done < of),
            Event::Read(read) => told.read.extend(read),
            Event::Token(Drawn { id, logprobs }) => {
                told.ids.push(id);
                told.logprobs.push(logprobs);
                if told.leaves == Some(told.ids.len()) {
                    return ControlFlow::Break(());
                }
            }
            Event::End { why, usage, .. } => {
                let why = why.map_or_else(|error| error.to_string(), |end| format!("{end:?}"));
                assert!(told.end.replace((why, usage)).is_none(), "it ends once");
            }
        }
        ControlFlow::Continue(())
    }

    fn is_gone(&self) -> bool {
        self.lock().unwrap().gone
    }
}

/// Asks for a text of its own kind.
fn ask(n: usize, vocab: usize) -> (Request, Listener) {
    let listener = Listener::default();
    // Every other prompt begins as the one before does.
    let token = |i: usize| (3 + (n / 2 * 131 + i * i * 7 + (i > 150) as usize * n) % (vocab - 3)) as u32;
    let prompt = (0..1 + n * 53 % 300).map(token).collect();
    let config = SamplerConfig { temperature: 0.8, seed: n as u64, top_k: 20, ..SamplerConfig::greedy() };
    let request = Request {
        prompt,
        text: None,
        sampler: Sampler::new(config).expect("a sampler"),
        max_tokens: 5 + n % 7,
        ends: Arc::new([2]),
        logprobs: n.is_multiple_of(3).then_some(2),
        prompt_logprobs: n.is_multiple_of(5).then_some(1),
        sink: Box::new(Arc::clone(&listener)),
    };
    (request, listener)
}

fn run(scheduler: &mut Scheduler<'_>) {
    for _ in 0..10_000 {
        if !scheduler.step() {
            return;
        }
    }
    panic!("it does not end");
}

fn alone(model: &Model, n: usize) -> Told {
    let mut scheduler = scheduler(model, LIMITS);
    let (request, told) = ask(n, model.spec().vocab);
    scheduler.submit(request);
    run(&mut scheduler);
    std::mem::take(&mut *told.lock().unwrap())
}

fn same(a: &Told, b: &Told, what: &str) {
    assert_eq!(a.ids, b.ids, "{what}");
    assert_eq!(a.logprobs, b.logprobs, "{what}");
    assert_eq!(a.read, b.read, "{what}");
    assert_eq!(
        a.end.as_ref().map(|(why, usage)| (why, usage.made)),
        b.end.as_ref().map(|(why, usage)| (why, usage.made)),
        "{what}"
    );
}

/// Models with keys and values, windows, recurrences, experts, latents.
const MODELS: [&str; 2] = ["moe-q4_k_m.gguf", "qwen35moe.gguf"];

#[test]
fn answers_do_not_depend_on_others() {
    for name in MODELS {
        let model = model(name);
        let vocab = model.spec().vocab;
        let alone: Vec<Told> = (0..12).map(|n| alone(&model, n)).collect();
        for (turn, limits) in [
            LIMITS,
            SchedulerLimits { sequences: 2, chunk: 1, ..LIMITS },
            SchedulerLimits { sequences: 64, chunk: 500, ..LIMITS },
            SchedulerLimits { sequence_bytes: 1, ..LIMITS },
        ]
        .into_iter()
        .enumerate()
        {
            let mut scheduler = scheduler(&model, limits);
            // Twice: the second time much is remembered.
            for again in 0..2 {
                let asked: Vec<(usize, Listener)> = (0..12)
                    .map(|i| {
                        let n = (i * 5 + turn) % 12;
                        let (request, told) = ask(n, vocab);
                        scheduler.submit(request);
                        // Some come while others run.
                        (0..i % 3).for_each(|_| {
                            scheduler.step();
                        });
                        (n, told)
                    })
                    .collect();
                run(&mut scheduler);
                for (n, told) in asked {
                    same(&told.lock().unwrap(), &alone[n], &format!("{name}, limits {turn}, {n}, {again}"));
                }
            }
        }
    }
}

/// The comparison sees what it is there to see.
#[test]
fn another_seed_is_another_answer() {
    let model = model(MODELS[0]);
    let answer = |seed| {
        let mut scheduler = scheduler(&model, LIMITS);
        let (mut request, told) = ask(3, model.spec().vocab);
        let config = SamplerConfig { temperature: 0.8, seed, ..SamplerConfig::greedy() };
        request.sampler = Sampler::new(config).expect("a sampler");
        scheduler.submit(request);
        run(&mut scheduler);
        std::mem::take(&mut told.lock().unwrap().ids)
    };
    assert_eq!(answer(1), answer(1));
    assert_ne!(answer(1), answer(2));
}

/// A request for the greedy continuation of a prompt.
fn plain(prompt: Vec<u32>, max_tokens: usize) -> (Request, Listener) {
    let listener = Listener::default();
    let request = Request {
        prompt,
        text: None,
        sampler: Sampler::new(SamplerConfig::greedy()).expect("a sampler"),
        max_tokens,
        ends: Arc::new([]),
        logprobs: None,
        prompt_logprobs: None,
        sink: Box::new(Arc::clone(&listener)),
    };
    (request, listener)
}

fn prompt(of: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| 3 + (of * 17 + i * i) % 200).collect()
}

fn usage(told: &Listener) -> Usage {
    told.lock().unwrap().end.as_ref().expect("it is over").1
}

#[test]
fn what_has_been_read_is_not_read_again() {
    let model = model(MODELS[0]);
    let mut scheduler = scheduler(&model, LIMITS);
    let (request, first) = plain(prompt(1, 200), 4);
    scheduler.submit(request);
    run(&mut scheduler);
    assert_eq!(usage(&first), Usage { prompt: 200, cached: 0, made: 4 });
    // What was said, an answer, and a new question.
    let said = [prompt(1, 200), first.lock().unwrap().ids.clone(), prompt(2, 30)].concat();
    let (request, second) = plain(said, 4);
    scheduler.submit(request);
    run(&mut scheduler);
    assert_eq!(usage(&second).cached, 203, "the last token drawn has not been run");
    // Another text that begins as the first one.
    let (request, third) = plain([prompt(1, 150), prompt(3, 40)].concat(), 4);
    scheduler.submit(request);
    run(&mut scheduler);
    assert_eq!(usage(&third).cached, 150 + common(&prompt(3, 40), &prompt(1, 200)[150..]));
    // The same again: its last token gives the logits.
    let (request, again) = plain(prompt(1, 200), 4);
    scheduler.submit(request);
    run(&mut scheduler);
    assert_eq!(usage(&again).cached, 199);
    assert_eq!(again.lock().unwrap().ids, first.lock().unwrap().ids);
    assert_eq!(scheduler.stats().prefilled, 200 + 31 + 40 - (usage(&third).cached - 150) as u64 + 1);
}

#[test]
fn a_prompt_that_many_ask_for_at_once_is_read_once() {
    let model = model(MODELS[0]);
    let mut scheduler = scheduler(&model, LIMITS);
    let all: Vec<Listener> = (0..4)
        .map(|n| {
            let (request, told) = plain([prompt(1, 300), vec![5 + n]].concat(), 3);
            scheduler.submit(request);
            told
        })
        .collect();
    // Somebody else does not wait behind them.
    let (request, other) = plain(prompt(9, 10), 3);
    scheduler.submit(request);
    scheduler.step();
    assert_eq!((scheduler.running(), scheduler.waiting()), (2, 3));
    run(&mut scheduler);
    assert_eq!(usage(&other).cached, 0);
    let cached: Vec<usize> = all.iter().map(|told| usage(told).cached).collect();
    assert!(cached[0] == 0 && cached[1..].iter().all(|&n| 300 - n < WORTH), "{cached:?}");
    let again: usize = cached[1..].iter().map(|n| 301 - n).sum();
    assert_eq!(scheduler.stats().prefilled, (301 + again + 10) as u64);
}

#[test]
fn a_long_prompt_delays_nobody() {
    let model = model(MODELS[0]);
    let mut scheduler = scheduler(&model, LIMITS);
    let (request, running) = plain(prompt(1, 3), 40);
    scheduler.submit(request);
    scheduler.step();
    let made = |told: &Listener| told.lock().unwrap().ids.len();
    assert_eq!(made(&running), 1);
    let (request, long) = plain(prompt(2, 390), 3);
    scheduler.submit(request);
    for pass in 1..5 {
        scheduler.step();
        assert_eq!(made(&running), 1 + pass, "a token with each pass");
    }
    let (request, short) = plain(prompt(3, 10), 3);
    scheduler.submit(request);
    scheduler.step();
    assert_eq!((made(&short), made(&long)), (1, 0), "a short prompt comes whole beside a long one");
    run(&mut scheduler);
    assert_eq!((made(&running), made(&long), made(&short)), (40, 3, 3));
}

#[test]
fn one_that_fails_ends_alone() {
    let model = model(MODELS[1]);
    let vocab = model.spec().vocab;
    let alone = alone(&model, 5);
    let mut scheduler = scheduler(&model, LIMITS);
    let (request, good) = ask(5, vocab);
    scheduler.submit(request);
    // A token that there is not, in the midst of a prompt; nothing that may be drawn.
    let (request, bad) = plain([prompt(1, 40), vec![vocab as u32], prompt(1, 9)].concat(), 3);
    scheduler.submit(request);
    let (mut request, banned) = plain(prompt(2, 5), 3);
    request.sampler.ban(0..vocab as u32);
    scheduler.submit(request);
    run(&mut scheduler);
    let why = |told: &Listener| told.lock().unwrap().end.clone().expect("it is over").0;
    assert!(why(&bad).contains("outside the vocabulary"), "{}", why(&bad));
    assert!(why(&banned).contains("no token"), "{}", why(&banned));
    same(&good.lock().unwrap(), &alone, "beside two that fail");
}

#[test]
fn those_who_leave_make_room() {
    let model = model(MODELS[0]);
    let mut scheduler = scheduler(&model, SchedulerLimits { sequences: 1, ..LIMITS });
    let (request, leaves) = plain(prompt(1, 30), 300);
    leaves.lock().unwrap().leaves = Some(2);
    scheduler.submit(request);
    let (request, waits) = plain(prompt(2, 30), 2);
    scheduler.submit(request);
    let (request, gone) = plain(prompt(3, 30), 2);
    gone.lock().unwrap().gone = true;
    scheduler.submit(request);
    let (request, reads) = plain(prompt(4, 300), 2);
    scheduler.submit(request);
    run_until(&mut scheduler, || waits.lock().unwrap().end.is_some());
    let why = |told: &Listener| told.lock().unwrap().end.clone().map(|(why, _)| why);
    assert_eq!(why(&leaves).as_deref(), Some("Left"));
    assert_eq!(why(&waits).as_deref(), Some("MaxTokens"));
    assert_eq!(why(&gone).as_deref(), Some("Left"));
    assert!(gone.lock().unwrap().ids.is_empty());
    // One that leaves while its prompt is read.
    scheduler.step();
    reads.lock().unwrap().gone = true;
    assert_eq!(why(&reads), None);
    scheduler.step();
    assert_eq!(why(&reads).as_deref(), Some("Left"));
    assert!(!scheduler.step());
    // What was read of it is remembered.
    let (request, again) = plain(prompt(4, 300), 2);
    scheduler.submit(request);
    run(&mut scheduler);
    assert_eq!(usage(&again).cached, LIMITS.chunk);
    scheduler.stop();
}

fn run_until(scheduler: &mut Scheduler<'_>, done: impl Fn() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        assert!(scheduler.step(), "there is more to do");
    }
    panic!("it does not end");
}

#[test]
fn memory_is_set_aside_before_a_request_starts() {
    let model = model(MODELS[0]);
    let mut small = scheduler(&model, LIMITS);
    let two = 2 * small.sequence_bytes(60);
    small.limits.sequence_bytes = two;
    let told: Vec<Listener> = (0..6)
        .map(|n| {
            let (request, told) = plain(prompt(n, 50), 10);
            small.submit(request);
            told
        })
        .collect();
    let mut most = 0;
    while small.step() {
        most = most.max(small.running());
        assert!(small.held_bytes() <= two, "{} of {two}", small.held_bytes());
    }
    assert_eq!(most, 2);
    for told in told {
        assert_eq!(usage(&told).made, 10);
    }
    // One that is larger than all there is runs alone.
    let (request, large) = plain(prompt(8, 300), 90);
    small.submit(request);
    run(&mut small);
    assert_eq!(usage(&large).made, 90);
}

#[test]
fn a_stop_ends_all() {
    let model = model(MODELS[0]);
    let mut scheduler = scheduler(&model, SchedulerLimits { sequences: 1, ..LIMITS });
    let told: Vec<Listener> = (0..3)
        .map(|n| {
            let (request, told) = plain(prompt(n, 50), 10);
            scheduler.submit(request);
            told
        })
        .collect();
    scheduler.step();
    scheduler.stop();
    for told in told {
        assert_eq!(told.lock().unwrap().end.as_ref().map(|(why, _)| &**why), Some("Stopped"));
    }
    assert!(!scheduler.step());
}

/// What is told of a prompt is what an engine gives that runs it at once; a prompt is read alone too.
#[test]
fn tokens_of_a_prompt_are_as_probable_as_their_logits_say() {
    for name in MODELS {
        let model = model(name);
        let vocab = model.spec().vocab;
        let mut scheduler = scheduler(&model, LIMITS);
        let (mut request, told) = ask(5, vocab);
        let prompt = request.prompt.clone();
        assert!(prompt.len() > 3 * ROWS);
        (request.prompt_logprobs, request.max_tokens) = (Some(2), 0);
        scheduler.submit(request);
        // Another one reads beside it, and one that could be told of nothing.
        let (other, _) = ask(8, vocab);
        scheduler.submit(other);
        run(&mut scheduler);
        let options = EngineOptions {
            context: 400,
            batch: 300,
            kv: KvType::F16,
            threads: 1.into(),
            isa: None,
            drafts: 0,
            guesses: Guesses::Off,
        };
        let mut engine = Engine::new(&model, &options).expect("an engine");
        let mut sequence = engine.sequence();
        engine.feed(&mut sequence, &prompt, crate::model::Logits::All).expect("a pass");
        let rows = sequence.logits().chunks(vocab).zip(&prompt[1..]);
        let wanted: Vec<Drawn> = rows
            .map(|(row, &id)| Drawn { id, logprobs: Some(crate::engine::logprobs(row, id, 2)) })
            .collect();
        let told = told.lock().unwrap();
        assert_eq!(told.read, wanted, "{name}");
        assert_eq!(told.read.len(), prompt.len() - 1);
        let (why, usage) = told.end.as_ref().expect("an end");
        assert_eq!((why.as_str(), usage.made, usage.cached), ("MaxTokens", 0, 0));
        assert!(told.ids.is_empty());
        // The canary: the token before is not as probable.
        let shifted = crate::engine::logprobs(&sequence.logits()[vocab..2 * vocab], prompt[1], 2);
        assert_ne!(told.read[0].logprobs, Some(shifted));
    }
}
