//! What is chosen, and what never is.

use super::*;

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
