//! Drafts by a model's block of multi-token prediction: the tokens are those without, the drafts depend on
//! the text alone, and a block that knows what comes is believed.

mod common;

use std::path::Path;

use common::gguf::{Data, GgufBuilder};
use common::nextn::{Says, all, next, parrot, with_block};
use common::runs::{bits, options};
use common::state_spaces::StateSpaces;
use common::tiny::TOKENS;
use common::{delta_nets, nextn, wayinfer};
use tempfile::TempDir;
use wayinfer::engine::{
    Engine, EngineOptions, Sampler, SamplerConfig, Sequence, Speculation, SpeculationStats,
};
use wayinfer::gguf::Gguf;
use wayinfer::model::{Logits, Model};
use wayinfer::store::open_file;

const CONTEXT: usize = 300;

fn text(seed: usize, n: usize) -> Vec<u32> {
    (0..n)
        .map(|i| ((3 + 7919 * (i + 1) * (seed + 1) + 31 * seed + i * i % 7) % TOKENS as usize) as u32)
        .collect()
}

fn load(path: &Path, block: bool) -> Model {
    let gguf = Gguf::open(path).expect("a file");
    let model = if block { Model::load_with_nextn(&gguf) } else { Model::load(&gguf) };
    model.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Runs a test on a model of each kind, with its block and without.
fn with_models(test: impl Fn(&str, &Model, &Model)) {
    let dir = TempDir::new().expect("a folder");
    for (name, builder) in all() {
        let path = builder.write(&dir.path().join(format!("{name}.gguf")));
        test(name, &load(&path, true), &load(&path, false));
    }
}

fn engine(model: &Model, batch: usize) -> Engine<'_> {
    Engine::new(model, &EngineOptions { context: CONTEXT, ..options(CONTEXT, batch) }).expect("an engine")
}

/// What a run gave: its tokens, the logits behind them, what was drafted.
struct Ran {
    tokens: Vec<u32>,
    logits: Vec<u32>,
    stats: SpeculationStats,
}

fn run(
    engine: &mut Engine<'_>,
    prompt: &[u32],
    config: &SamplerConfig,
    speculation: Speculation,
    most: usize,
) -> (Ran, Sequence) {
    let mut sequence = engine.sequence();
    engine.feed(&mut sequence, prompt, Logits::Last).expect("the prompt");
    let mut sampler = Sampler::new(config.clone()).expect("a configuration");
    let mut generation = engine.generate(&mut sequence, &mut sampler).speculate(speculation, most);
    let drawn: Result<Vec<_>, _> = generation.by_ref().take(most).collect();
    let tokens = drawn.expect("tokens").iter().map(|candidate| candidate.id).collect();
    let stats = generation.stats();
    let logits = bits(sequence.logits());
    (Ran { tokens, logits, stats }, sequence)
}

fn samplers() -> [SamplerConfig; 2] {
    [SamplerConfig::greedy(), SamplerConfig { temperature: 0.9, seed: 7, ..SamplerConfig::greedy() }]
}

#[test]
fn tokens_are_those_without() {
    with_models(|name, model, plain| {
        assert!(model.spec().nextn.is_some() && plain.spec().nextn.is_none());
        let mut stats = SpeculationStats::default();
        for (length, batch) in [(1, 64), (5, 4), (40, 16), (126, 64), (131, 512)] {
            for config in samplers() {
                let prompt = text(length, length);
                let what = format!("{name}, {length} tokens, {config:?}");
                let (truth, _) = run(&mut engine(plain, batch), &prompt, &config, Speculation::Off, 24);
                let with_block = &mut engine(model, batch);
                let (off, _) = run(with_block, &prompt, &config, Speculation::Off, 24);
                assert_eq!((&off.tokens, &off.logits), (&truth.tokens, &truth.logits), "{what}");
                let block = [1, 2, 3, 4].map(|n| Speculation::Block(Some(n)));
                for mode in block.into_iter().chain([Speculation::Block(None), Speculation::Auto]) {
                    let (got, _) = run(with_block, &prompt, &config, mode, 24);
                    assert_eq!(got.tokens, truth.tokens, "{what}, {mode}");
                    assert_eq!(got.logits, truth.logits, "{what}, {mode}");
                    assert_eq!(got.stats.passes + got.stats.accepted, 23, "{what}, {mode}");
                    stats.drafted += got.stats.drafted;
                    stats.accepted += got.stats.accepted;
                }
            }
        }
        assert!(stats.drafted > 500 && stats.accepted > 0, "{name}: {stats:?}");
        println!("{name}: {stats:?}");
    });
}

#[test]
fn tokens_are_those_without_to_the_end_of_the_context() {
    with_models(|name, model, plain| {
        let prompt = text(3, CONTEXT - 20);
        let config = SamplerConfig::greedy();
        let (truth, _) = run(&mut engine(plain, 512), &prompt, &config, Speculation::Off, 100);
        assert_eq!(truth.tokens.len(), 21);
        let (got, _) = run(&mut engine(model, 512), &prompt, &config, Speculation::Block(Some(4)), 100);
        assert_eq!((got.tokens, got.logits), (truth.tokens, truth.logits), "{name}");
    });
}

/// The block remembers what it would remember had the text been fed at once, whatever was drafted, taken and
/// taken back on the way.
#[test]
fn drafts_depend_on_the_text_alone() {
    with_models(|name, model, _| {
        let mut differing = 0;
        for (length, tokens) in [(7, 5), (20, 13), (33, 30), (120, 20), (131, 9)] {
            for (n, config) in [1, 3, 4].into_iter().zip(samplers().into_iter().cycle()) {
                let (mut drafting, mut fresh) = (engine(model, 16), engine(model, 512));
                let prompt = text(length + n, length);
                let mode = Speculation::Block(Some(n));
                let (ran, mut sequence) = run(&mut drafting, &prompt, &config, mode, tokens);
                let last = *ran.tokens.last().expect("a token");
                let drafts = drafting.draft(&mut sequence, last, 4).expect("drafts");
                let mut again = fresh.sequence();
                fresh.feed(&mut again, sequence.tokens(), Logits::None).expect("the text");
                let expected = fresh.draft(&mut again, last, 4).expect("drafts");
                assert_eq!((drafts.len(), &drafts), (4, &expected), "{name}, {length} and {tokens}, by {n}");
                // Asked again, it says the same.
                assert_eq!(drafting.draft(&mut sequence, last, 4).expect("drafts"), drafts);
                // The canary: what the block remembers of the text matters.
                let mut other = fresh.sequence();
                let changed: Vec<u32> = sequence.tokens().iter().map(|id| (id + 5) % TOKENS as u32).collect();
                let (own, whole) = (sequence.past() - 1, sequence.tokens());
                let changed = [&changed[..own], &whole[own..]].concat();
                fresh.feed(&mut other, &changed, Logits::None).expect("the text");
                differing += usize::from(fresh.draft(&mut other, last, 4).expect("drafts") != drafts);
            }
        }
        assert!(differing >= 5, "{name}: {differing} of 15 differ with another text");
    });
}

/// After going back to the beginning, or to a position whose hidden row is not known any more, the text goes
/// on as without, and a whole text fed anew gives the drafts of a new sequence.
#[test]
fn a_sequence_goes_back_with_its_block() {
    with_models(|name, model, _| {
        let mut drafting = engine(model, 64);
        let config = SamplerConfig::greedy();
        let prompt = text(9, 70);
        let (truth, _) = run(&mut drafting, &prompt, &config, Speculation::Off, 30);
        let (_, mut sequence) = run(&mut drafting, &prompt, &config, Speculation::Block(Some(3)), 25);
        for to in [69, 64, 30, 1, 0] {
            let kept = sequence.rewind(to);
            assert!(kept <= to);
            drafting.feed(&mut sequence, &prompt[kept..], Logits::Last).expect("the rest");
            let mut sampler = Sampler::new(config.clone()).expect("a configuration");
            let generation =
                drafting.generate(&mut sequence, &mut sampler).speculate(Speculation::Block(Some(3)), 30);
            let tokens: Vec<u32> = generation.take(30).map(|token| token.expect("a token").id).collect();
            assert_eq!(tokens, truth.tokens, "{name}: back to {to}");
        }
        sequence.rewind(0);
        drafting.feed(&mut sequence, &prompt, Logits::None).expect("the prompt");
        let mut new = drafting.sequence();
        drafting.feed(&mut new, &prompt, Logits::None).expect("the prompt");
        let again = drafting.draft(&mut sequence, 3, 4).expect("drafts");
        assert_eq!(drafting.draft(&mut new, 3, 4).expect("drafts"), again, "{name}");
        // A fork drafts as the sequence does.
        let mut fork = new.fork();
        assert_eq!(drafting.draft(&mut fork, 3, 4).expect("drafts"), again, "{name}");
    });
}

/// Drafted and accepted of 30 tokens behind a prompt that goes as the model does.
fn accepted(dir: &Path, model: nextn::Says, most: usize) -> SpeculationStats {
    let path = parrot(delta_nets::qwen35moe(), model).write(&dir.join("parrot.gguf"));
    let model = load(&path, true);
    let prompt: Vec<u32> = std::iter::successors(Some(4u64), |&token| Some(next(token)))
        .take(9)
        .map(|token| token as u32)
        .collect();
    let (ran, _) =
        run(&mut engine(&model, 64), &prompt, &SamplerConfig::greedy(), Speculation::Block(Some(most)), 31);
    let first = u64::from(prompt[8]);
    let expected: Vec<u32> = std::iter::successors(Some(next(first)), |&token| Some(next(token)))
        .take(31)
        .map(|t| t as u32)
        .collect();
    assert_eq!(ran.tokens, expected);
    ran.stats
}

#[test]
fn a_block_that_knows_what_comes_is_believed() {
    let dir = TempDir::new().expect("a folder");
    for most in 1..=5 {
        let stats = accepted(dir.path(), Says::RIGHT, most);
        assert_eq!(stats.drafted, stats.accepted, "{most}");
        assert_eq!(stats.passes, 30usize.div_ceil(most + 1), "{most}: {stats:?}");
    }
}

/// Faults of the block that the count of accepted drafts shows.
#[test]
fn a_block_that_sees_something_else_is_not() {
    let dir = TempDir::new().expect("a folder");
    // The hidden row of another position: of the token itself, of the one two before.
    let own = Says { of_hidden: |token| next(next(token)), ..Says::RIGHT };
    let earlier = Says { of_hidden: |token| token, ..Says::RIGHT };
    // The norms in each other's place: what is said of the token is of weight.
    let swapped = Says { hnorm: Says::RIGHT.enorm, enorm: Says::RIGHT.hnorm, ..Says::RIGHT };
    for (what, says) in [("own", own), ("earlier", earlier), ("swapped", swapped)] {
        let stats = accepted(dir.path(), says, 2);
        assert_eq!(stats.accepted, 0, "{what}: {stats:?}");
        assert!(stats.drafted > 30, "{what}: {stats:?}");
    }
}

#[test]
fn streamed_models_draft_the_same() {
    let dir = TempDir::new().expect("a folder");
    for (name, builder) in all() {
        let path = builder.write(&dir.path().join(format!("{name}.gguf")));
        let model = load(&path, true);
        let prompt = text(1, 50);
        for config in samplers() {
            let mode = Speculation::Block(Some(3));
            let (truth, _) = run(&mut engine(&model, 64), &prompt, &config, mode, 30);
            let least = model.store().plan_for(0).expect_err("no model runs in nothing").least;
            let total = model.store().plan_for(u64::MAX).expect("a plan").total_bytes;
            for budget in [least, least.midpoint(total), total - 1] {
                let mut streamed = load(&path, true);
                let plan = streamed.store().plan_for(budget).expect("a plan");
                assert!(!plan.is_mapped());
                streamed.settle_reading(plan, &open_file).expect("it opens");
                let (got, _) = run(&mut engine(&streamed, 64), &prompt, &config, mode, 30);
                assert_eq!((got.tokens, got.logits), (truth.tokens.clone(), truth.logits.clone()), "{name}");
                assert_eq!(got.stats, truth.stats, "{name}: the same drafts");
            }
        }
    }
}

#[test]
fn the_block_is_counted_where_it_is_loaded() {
    with_models(|name, model, plain| {
        assert_eq!(model.spec().memories.len(), plain.spec().memories.len() + 1, "{name}: a slot of its own");
        let bytes = |model: &Model| {
            let store = model.store().plan_for(u64::MAX).expect("a plan").total_bytes;
            (options(CONTEXT, 64).memory_bytes(model.spec(), 1), store)
        };
        let ((engine, weights), (less, fewer)) = (bytes(model), bytes(plain));
        assert!(engine > less && weights > fewer, "{name}");
    });
}

/// The second of two is left aside.
#[test]
fn the_first_of_several_blocks_drafts() {
    let dir = TempDir::new().expect("a folder");
    let one = with_block(delta_nets::qwen35moe());
    let with_second = |first: u8, second: u8| {
        let mut two = one.clone();
        for tensor in two.tensors.iter_mut().filter(|tensor| tensor.name.starts_with(b"blk.2.")) {
            tensor.name[4] = first;
        }
        for tensor in one.tensors.iter().filter(|tensor| tensor.name.starts_with(b"blk.2.")) {
            let mut tensor = tensor.clone();
            tensor.name[4] = second;
            // Other weights.
            if let Data::Bytes(bytes) = &mut tensor.data {
                bytes.rotate_left(4);
            }
            two.tensors.push(tensor);
        }
        two.key("block_count", 4u32).key("nextn_predict_layers", 2u32)
    };
    let drafts = |builder: &GgufBuilder| {
        let model = load(&builder.write(&dir.path().join("m.gguf")), true);
        let mut engine = engine(&model, 64);
        let all = (0..10).flat_map(|seed| {
            let mut sequence = engine.sequence();
            engine.feed(&mut sequence, &text(seed, 40), Logits::Last).expect("it runs");
            let id = sequence.argmax().expect("a token");
            engine.draft(&mut sequence, id, 4).expect("drafts")
        });
        all.collect::<Vec<_>>()
    };
    let wanted = drafts(&one);
    assert_eq!(wanted.len(), 40);
    assert_eq!(drafts(&with_second(b'2', b'3')), wanted);
    // The canary: the other one drafts otherwise.
    assert_ne!(drafts(&with_second(b'3', b'2')), wanted);
}

// ---- The program -----------------------------------------------------------------------------------------

fn generate(dir: &Path, mode: &str) -> (Option<i32>, String, String) {
    let output = wayinfer(
        dir,
        100,
        &["generate", "-m", "m.gguf", "-p", "ab", "-n", "12", "--greedy", "--speculate", mode, "--json"],
    );
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_program_counts_drafts() {
    let dir = TempDir::new().expect("a folder");
    with_block(delta_nets::qwen35moe()).write(&dir.path().join("m.gguf"));
    let [off, block, auto] = ["off", "mtp:2", "auto"].map(|mode| {
        let (code, stdout, stderr) = generate(dir.path(), mode);
        assert_eq!(code, Some(0), "{mode}: {stderr}");
        serde_json::from_str::<serde_json::Value>(&stdout).expect("JSON")
    });
    assert_eq!(off["ids"], block["ids"]);
    assert_eq!(off["ids"], auto["ids"]);
    assert_eq!(off["drafted"], 0);
    assert!(block["drafted"].as_u64() > Some(5), "{block}");
    let count = |name: &str| block[name].as_u64().expect("a count");
    assert_eq!(count("passes") + count("accepted") + 1, block["ids"].as_array().expect("ids").len() as u64);
}

/// What `--speculate mtp` refuses, by name; by itself (`auto`) the model runs without the block.
#[test]
fn what_cannot_draft_is_refused_by_name() {
    let dir = TempDir::new().expect("a folder");
    let model = || with_block(delta_nets::qwen35moe());
    let zeros = |name: &str, dims: &[u64]| model().without_tensor(name).weights(name, dims);
    use common::state_spaces::EMBD;
    let eh_proj = "blk.2.nextn.eh_proj.weight";
    for (builder, warned, error) in [
        (
            delta_nets::qwen35moe(),
            false,
            "key qwen35moe.nextn_predict_layers is 0 or missing: the model has no block",
        ),
        (
            model().key("nextn_predict_layers", 3u32),
            true,
            "key qwen35moe.nextn_predict_layers is 3, where there are 3 blocks",
        ),
        (common::tiny::tiny_model(), false, "key llama.nextn_predict_layers is 0 or missing"),
        (
            common::tiny::layers(common::tiny::tiny_model(), 2).set("llama.nextn_predict_layers", 1u32),
            false,
            "blocks of multi-token prediction of the architecture llama cannot draft yet",
        ),
        (model().without_tensor(eh_proj), false, "tensor blk.2.nextn.eh_proj.weight is missing"),
        (
            model().without_tensor("blk.2.nextn.hnorm.weight"),
            true,
            "tensor blk.2.nextn.hnorm.weight is missing",
        ),
        (
            model().without_tensor("blk.2.nextn.enorm.weight"),
            true,
            "tensor blk.2.nextn.enorm.weight is missing",
        ),
        (model().without_tensor("blk.2.attn_norm.weight"), true, "tensor blk.2.attn_norm.weight is missing"),
        (
            model().without_tensor("blk.2.ffn_gate_inp.weight"),
            true,
            "tensor blk.2.ffn_gate_inp.weight is missing",
        ),
        (
            zeros(eh_proj, &[EMBD, EMBD]),
            true,
            "tensor blk.2.nextn.eh_proj.weight has the shape 32 x 32, where 64 x 32 is needed",
        ),
        (
            zeros(eh_proj, &[EMBD, 2 * EMBD]),
            true,
            "tensor blk.2.nextn.eh_proj.weight has the shape 32 x 64, where 64 x 32 is needed",
        ),
        (
            zeros("blk.2.nextn.hnorm.weight", &[2 * EMBD]),
            true,
            "tensor blk.2.nextn.hnorm.weight has the shape 64, where 32 is needed",
        ),
        (
            model().values("blk.2.nextn.enorm.weight", |v| v.fill(0.0)),
            true,
            "tensor blk.2.nextn.enorm.weight holds zeros alone",
        ),
        (
            model().values("blk.2.nextn.hnorm.weight", |v| v[3] = f32::NAN),
            true,
            "tensor blk.2.nextn.hnorm.weight holds NaN",
        ),
        (
            model().weights("blk.2.nextn.embed_tokens.weight", &[EMBD, 15]),
            true,
            "tensor blk.2.nextn.embed_tokens.weight has the shape 32 x 15, where 32 x 16 is needed",
        ),
        (
            model().weights("blk.2.nextn.shared_head_head.weight", &[EMBD, 17]),
            true,
            "tensor blk.2.nextn.shared_head_head.weight has the shape 32 x 17, where 32 x 16 is needed",
        ),
        (
            model().weights("blk.2.nextn.shared_head_norm.weight", &[31]),
            true,
            "tensor blk.2.nextn.shared_head_norm.weight has the shape 31, where 32 is needed",
        ),
    ] {
        builder.write(&dir.path().join("m.gguf"));
        let (code, stdout, stderr) = generate(dir.path(), "mtp");
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{error}: {stderr}");
        assert!(stderr.starts_with("error: m.gguf: ") && stderr.contains(error), "{error}: {stderr}");
        let (code, _, stderr) = generate(dir.path(), "auto");
        let runs = !error.contains("3 blocks");
        assert_eq!(code, Some(i32::from(!runs)), "{error}: {stderr}");
        let says = stderr.contains("warning: the block of multi-token prediction is left aside");
        assert_eq!(says, warned && runs, "{error}: {stderr}");
    }
}

/// A block that overflows drafts nothing; the tokens are those without.
#[test]
fn a_block_that_overflows_is_left_alone() {
    let dir = TempDir::new().expect("a folder");
    let path = with_block(delta_nets::qwen35moe())
        .values("blk.2.nextn.eh_proj.weight", |v| v.fill(f32::MAX))
        .write(&dir.path().join("m.gguf"));
    let (model, plain) = (load(&path, true), load(&path, false));
    for length in [5, 70] {
        let prompt = text(2, length);
        let config = SamplerConfig::greedy();
        let (truth, _) = run(&mut engine(&plain, 64), &prompt, &config, Speculation::Off, 20);
        let (got, _) = run(&mut engine(&model, 64), &prompt, &config, Speculation::Block(Some(3)), 20);
        assert_eq!((got.tokens, got.logits, got.stats.drafted), (truth.tokens, truth.logits, 0));
    }
}

#[test]
fn the_plan_counts_the_block() {
    let dir = TempDir::new().expect("a folder");
    with_block(delta_nets::qwen35moe()).write(&dir.path().join("m.gguf"));
    let bytes = |mode: &str| {
        let args = ["inspect", "m.gguf", "--plan", "--json", "--speculate", mode];
        let output = wayinfer(dir.path(), 100, &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (plan["weights_bytes"].as_u64().expect("bytes"), plan["other_bytes"].as_u64().expect("bytes"))
    };
    let ((with, other), (without, less)) = (bytes("mtp"), bytes("off"));
    assert!(with > without && other > less, "{with} {other}, {without} {less}");
    assert_eq!(bytes("auto").0, with);
}
