//! What is chosen, and what never is.

use super::*;
use crate::text::{Grammar, GrammarFactory, Tokenizer};

fn config() -> SamplerConfig {
    SamplerConfig { temperature: 1.0, seed: 7, ..SamplerConfig::greedy() }
}

fn ids(sampler: &Sampler) -> Vec<u32> {
    sampler.candidates().iter().map(|c| c.id).collect()
}

#[test]
fn greedy_takes_the_first_of_equals_and_skips_nan() {
    let mut s = Sampler::new(SamplerConfig::greedy()).unwrap();
    assert_eq!(s.sample(&[f32::NAN, 1.0, 3.0, 3.0]).unwrap().id, 2);
    assert!(matches!(s.sample(&[f32::NAN, f32::NAN]), Err(EngineError::NoToken)));
    assert!(matches!(s.sample(&[]), Err(EngineError::NoToken)));
}

#[test]
fn filters_keep_what_they_say() {
    let logits = [0.5f32, 0.25, 0.125, 0.0625, 0.0625].map(f32::ln);
    let mut s = Sampler::new(SamplerConfig { top_k: 2, ..config() }).unwrap();
    s.sample(&logits).unwrap();
    assert_eq!(ids(&s), [0, 1]);
    let mut s = Sampler::new(SamplerConfig { top_p: 0.7, ..config() }).unwrap();
    s.sample(&logits).unwrap();
    assert_eq!(ids(&s), [0, 1]);
    let mut s = Sampler::new(SamplerConfig { min_p: 0.2, ..config() }).unwrap();
    s.sample(&logits).unwrap();
    assert_eq!(ids(&s), [0, 1, 2]);
    let mut s = Sampler::new(config()).unwrap();
    s.ban([0]);
    s.sample(&logits).unwrap();
    assert_eq!(ids(&s), [1, 2, 3, 4]);
}

#[test]
fn the_best_of_many_are_those_of_a_full_sort() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut logits: Vec<f32> = (0..5000).map(|_| (rng.next_u32() % 700) as f32 - 350.0).collect();
    logits.extend([f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -0.0, 0.0, -f32::NAN]);
    let rising: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    for logits in [&logits[..], &logits[4990..], &rising, &[f32::NEG_INFINITY; 300], &[1.0; 300], &[]] {
        let mut sorted: Vec<u32> =
            (0..logits.len() as u32).filter(|&i| !logits[i as usize].is_nan()).collect();
        let logit = |i: u32| logits[i as usize];
        sorted.sort_by(|&a, &b| logit(b).partial_cmp(&logit(a)).unwrap().then(a.cmp(&b)));
        for k in [1, 2, 40, 64, 65, 1000, 4000, 10_000, usize::MAX / 2, 0] {
            let mut best = Vec::new();
            keep_top(logits, k, &mut best);
            let want = &sorted[..if k == 0 { sorted.len() } else { k.min(sorted.len()) }];
            assert_eq!(best.iter().map(|c| c.id).collect::<Vec<_>>(), want, "{k} of {}", logits.len());
        }
    }
}

#[test]
fn draws_follow_the_probabilities_and_the_seed() {
    let logits = [0.7f32, 0.2, 0.1].map(f32::ln);
    let draw = |seed| {
        let mut s = Sampler::new(SamplerConfig { seed, ..config() }).unwrap();
        (0..20_000).map(|_| s.sample(&logits).unwrap().id).collect::<Vec<_>>()
    };
    let drawn = draw(1);
    assert_eq!(drawn, draw(1));
    assert_ne!(drawn, draw(2));
    for (id, p) in [0.7, 0.2, 0.1].into_iter().enumerate() {
        let share = drawn.iter().filter(|&&d| d == id as u32).count() as f64 / 20_000.0;
        // Three standard deviations of a binomial share at 20,000 draws are 0.0097.
        assert!((share - p).abs() < 0.0097, "{id}: {share} for {p}");
    }
}

#[test]
fn the_penalty_looks_back_only_so_far() {
    let mut s =
        Sampler::new(SamplerConfig { repeat_penalty: 2.0, repeat_last: 2, ..SamplerConfig::greedy() })
            .unwrap();
    let logits = [3.0, 2.0, -1.0];
    for id in [0, 0, 0] {
        s.accept(id).unwrap();
    }
    assert_eq!(s.sample(&logits).unwrap().id, 1);
    for id in [2, 2] {
        s.accept(id).unwrap();
    }
    assert_eq!(s.sample(&logits).unwrap().id, 0);
}

/// The same choice as [`Sequence::argmax`](super::super::Sequence::argmax): the lower id of equals.
#[test]
fn zero_and_minus_zero_are_equal() {
    let mut greedy = Sampler::new(SamplerConfig::greedy()).unwrap();
    assert_eq!(greedy.sample(&[-1.0, -0.0, 0.0]).unwrap().id, 1);
    assert_eq!(greedy.sample(&[-1.0, 0.0, -0.0]).unwrap().id, 1);
}

#[test]
fn numbers_that_nothing_can_be_chosen_by_are_refused() {
    let wrong = |config: SamplerConfig| Sampler::new(config).unwrap_err().field;
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5] {
        assert_eq!(wrong(SamplerConfig { temperature: value, ..config() }), "temperature");
        assert_eq!(wrong(SamplerConfig { top_p: value, ..config() }), "top_p");
        assert_eq!(wrong(SamplerConfig { min_p: value, ..config() }), "min_p");
        assert_eq!(wrong(SamplerConfig { repeat_penalty: value, ..config() }), "repeat_penalty");
    }
    let error = Sampler::new(SamplerConfig { repeat_penalty: 0.0, ..config() }).unwrap_err().to_string();
    assert_eq!(error, "repeat_penalty is 0, where a number above 0 is needed");
    // However far back: no overflow.
    let far = SamplerConfig { repeat_penalty: 2.0, repeat_last: usize::MAX, top_k: usize::MAX, ..config() };
    let mut sampler = Sampler::new(far).unwrap();
    sampler.read([0; 300]);
    assert!(sampler.sample(&[1.0, 0.5]).is_ok());
}

#[test]
fn infinite_logits_do_not_make_nan() {
    let mut s = Sampler::new(config()).unwrap();
    assert_eq!(s.sample(&[f32::INFINITY, 1.0]).unwrap().id, 0);
    assert!(s.sample(&[f32::NEG_INFINITY; 3]).unwrap().probability > 0.3);
}

#[test]
fn biases_are_added_before_all_else() {
    let bias = vec![(2, 3.0), (0, -1.0), (2, 1.0), (99, 5.0)];
    let mut s = Sampler::new(SamplerConfig { bias, repeat_penalty: 2.0, ..SamplerConfig::greedy() }).unwrap();
    let chosen = s.sample(&[3.0, 2.5, 0.0]).unwrap();
    assert_eq!((chosen.id, chosen.logit), (2, 4.0));
    s.read([2]);
    assert_eq!(s.sample(&[3.0, 2.5, 0.0]).unwrap().id, 1, "halved after the bias");
    let wrong = Sampler::new(SamplerConfig { bias: vec![(1, 0.0), (1, 101.0)], ..config() }).unwrap_err();
    assert_eq!(wrong.to_string(), "bias is 101, where a number from -100 to 100 is needed");
}

/// OpenAI's formula, over the answer and not the prompt.
#[test]
fn presence_and_frequency_count_the_answers_tokens() {
    let config = SamplerConfig { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplerConfig::greedy() };
    let mut s = Sampler::new(config.clone()).unwrap();
    let logits = [1.0, 0.9, -5.0];
    s.read([0, 0, 0]);
    assert_eq!(s.sample(&logits).unwrap().logit, 1.0, "the prompt does not count");
    s.accept(0).unwrap();
    assert_eq!(s.sample(&logits).unwrap().id, 1);
    s.accept(0).unwrap();
    s.accept(1).unwrap();
    let mut wide = s.clone();
    wide.config.temperature = 1.0;
    wide.sample(&logits).unwrap();
    let adjusted: Vec<(u32, f32)> = wide.candidates().iter().map(|c| (c.id, c.logit)).collect();
    assert_eq!(adjusted, [(1, 0.9 - 0.75), (0, 1.0 - 1.0), (2, -5.0)]);
    assert_eq!(
        Sampler::new(SamplerConfig { presence_penalty: f32::NAN, ..config }).unwrap_err().field,
        "presence_penalty"
    );
}

#[test]
fn logprobs_are_of_the_plain_softmax() {
    let logits = [0.5f32, 0.25, 0.25, f32::NAN].map(f32::ln);
    let found = logprobs(&logits, 1, 2);
    assert_eq!(found.chosen, 0.25f32.ln());
    assert_eq!(found.top, [(0, 0.5f32.ln()), (1, 0.25f32.ln())]);
    let sum: f64 = logprobs(&logits, 0, 9).top.iter().map(|&(_, p)| f64::from(p).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    // No overflow, and nothing of what has no logit.
    let high = logprobs(&[1e38, 0.0, -1e38], 0, 1);
    assert_eq!((high.chosen, high.top), (0.0, vec![(0, 0.0)]));
    assert_eq!(logprobs(&[f32::INFINITY, 1.0], 1, 0), Logprobs { chosen: f32::NEG_INFINITY, top: vec![] });
    assert_eq!(logprobs(&logits, 3, 0).chosen, f32::NEG_INFINITY);
    assert_eq!(logprobs(&logits, 4, 0).chosen, f32::NEG_INFINITY);
    assert_eq!(logprobs(&[], 0, 5), Logprobs { chosen: f32::NEG_INFINITY, top: vec![] });
}

/// The demo's tokenizer, and a constraint over it.
fn demo(grammar: &Grammar) -> (Tokenizer, Constraint) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo-q4_k_m.gguf");
    let gguf = crate::gguf::Gguf::open(&path).unwrap();
    let tokenizer = Tokenizer::from_metadata(gguf.metadata(), None).unwrap();
    let constraint = GrammarFactory::new(&tokenizer).unwrap().constraint(grammar).unwrap();
    (tokenizer, constraint)
}

#[test]
fn nothing_but_what_a_constraint_allows_is_chosen() {
    let (tokenizer, mut constraint) = demo(&Grammar::regex("[ab]c").unwrap());
    let mask = constraint.mask().unwrap().clone();
    let vocab = tokenizer.vocab_len();
    let piece = |id| String::from_utf8(tokenizer.piece(id, true).unwrap().to_vec()).unwrap();
    // What is allowed is among the worst, and the vocabulary of the model is padded.
    let logits: Vec<f32> =
        (0..vocab + 40).map(|id| if mask.allows(id as u32) { -9.0 } else { id as f32 }).collect();
    for config in [SamplerConfig::greedy(), config(), SamplerConfig { top_k: 1, ..config() }] {
        let mut s = Sampler::new(config).unwrap();
        // The prompt does not count.
        s.read([5, 6]);
        s.constrain(constraint.clone());
        let mut text = String::new();
        let end = loop {
            let id = s.sample(&logits).unwrap().id;
            s.accept(id).unwrap();
            if tokenizer.is_end_of_generation(id) {
                break id;
            }
            text += &piece(id);
        };
        assert!(text == "ac" || text == "bc", "{text}");
        // It ends again and again, and where that is banned there is nothing left.
        assert!(tokenizer.is_end_of_generation(s.sample(&logits).unwrap().id));
        s.accept(end).unwrap();
        s.ban((0..vocab as u32).filter(|&id| tokenizer.is_end_of_generation(id)));
        assert!(matches!(s.sample(&logits), Err(EngineError::NoToken)));
    }
    let mut s = Sampler::new(config()).unwrap();
    s.constrain(constraint);
    assert!(matches!(s.accept(vocab as u32 + 1), Err(EngineError::Constraint(_))));
    assert!(matches!(s.sample(&logits), Err(EngineError::Constraint(_))));
}

#[test]
fn masks_leave_the_allowed_logits_as_they_are() {
    let (_, mut constraint) = demo(&Grammar::regex("(?s:.*)").unwrap());
    let mask = constraint.mask().unwrap();
    let bits = mask.words().len() * 32;
    for len in [0, 1, 31, 32, 33, 100, bits, bits + 70] {
        let mut logits: Vec<f32> = (0..len).map(|i| i as f32).collect();
        mask_out(mask, &mut logits);
        for (id, logit) in logits.iter().enumerate() {
            let wanted = if mask.allows(id as u32) { id as f32 } else { f32::NAN };
            assert!(*logit == wanted || (logit.is_nan() && wanted.is_nan()), "{id} of {len}: {logit}");
        }
    }
}
