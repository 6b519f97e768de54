//! That a request is answered alike alone and among others, whatever came before, and what becomes of those
//! that end early.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;
use crate::engine::{EngineOptions, Sampler, SamplerConfig};
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
        threads: 2,
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
            Event::Token(Drawn { id, logprobs }) => {
                told.ids.push(id);
                told.logprobs.push(logprobs);
                if told.leaves == Some(told.ids.len()) {
                    return ControlFlow::Break(());
                }
            }
            Event::End { why, usage } => {
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
        sampler: Sampler::new(config).expect("a sampler"),
        max_tokens: 5 + n % 7,
        ends: Arc::new([2]),
        logprobs: n.is_multiple_of(3).then_some(2),
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
