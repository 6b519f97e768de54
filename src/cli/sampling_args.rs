//! How `generate` chooses tokens.

use clap::Args;

use crate::engine::SamplerConfig;

#[derive(Args, Debug)]
pub struct SamplingArgs {
    /// Always take the most probable token; the demo does where no option of sampling is given
    #[arg(long, conflicts_with_all = ["temp", "top_k", "top_p", "min_p"])]
    greedy: bool,

    /// Temperature; 0 is --greedy [default: 0.7]
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = at_least_0)]
    temp: Option<f32>,

    /// Choose among the K most probable tokens (0: all) [default: 40]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<usize>,

    /// Choose among the fewest tokens that together reach this probability (1: all) [default: 0.95]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = fraction)]
    top_p: Option<f32>,

    /// Choose among tokens at least this fraction as probable as the best (0: all) [default: 0.05]
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = fraction)]
    min_p: Option<f32>,

    /// Make tokens of the last 64 less probable (1: do not) [default: 1]
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = above_0)]
    repeat_penalty: Option<f32>,

    /// Seed of the random numbers [default: random, printed]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
}

/// How tokens are drawn where nothing else is said.
pub const SAMPLING: SamplerConfig = SamplerConfig {
    bias: Vec::new(),
    repeat_penalty: 1.0,
    repeat_last: 64,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    top_k: 40,
    top_p: 0.95,
    min_p: 0.05,
    temperature: 0.7,
    seed: 0,
};

fn number(text: &str, range: &str, fits: impl Fn(f32) -> bool) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|&v: &f32| v.is_finite() && fits(v))
        .ok_or_else(|| format!("a number {range} is needed"))
}

fn at_least_0(text: &str) -> Result<f32, String> {
    number(text, "of at least 0", |v| v >= 0.0)
}

fn above_0(text: &str) -> Result<f32, String> {
    number(text, "above 0", |v| v > 0.0)
}

fn fraction(text: &str) -> Result<f32, String> {
    number(text, "from 0 to 1", |v| (0.0..=1.0).contains(&v))
}

impl SamplingArgs {
    /// Whether any option says how to choose tokens.
    fn any(&self) -> bool {
        let numbers = [self.temp, self.top_p, self.min_p, self.repeat_penalty];
        self.greedy || numbers.iter().any(Option::is_some) || self.top_k.is_some() || self.seed.is_some()
    }

    /// The sampler's configuration; where no option is given, `greedy` decides between the defaults.
    pub fn config(&self, greedy: bool) -> SamplerConfig {
        let repeat_penalty = self.repeat_penalty.unwrap_or(SAMPLING.repeat_penalty);
        if self.greedy || self.temp == Some(0.0) || (greedy && !self.any()) {
            return SamplerConfig { repeat_penalty, ..SamplerConfig::greedy() };
        }
        self.drawing()
    }

    /// The configuration of a sampler that draws.
    pub fn drawing(&self) -> SamplerConfig {
        SamplerConfig {
            repeat_penalty: self.repeat_penalty.unwrap_or(SAMPLING.repeat_penalty),
            top_k: self.top_k.unwrap_or(SAMPLING.top_k),
            top_p: self.top_p.unwrap_or(SAMPLING.top_p),
            min_p: self.min_p.unwrap_or(SAMPLING.min_p),
            temperature: self.temp.unwrap_or(SAMPLING.temperature),
            seed: self.seed.unwrap_or_else(random_seed),
            ..SAMPLING
        }
    }
}

/// A seed that differs from run to run: the standard library keys its hashers at random.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // 32 bits are easier to type again.
    RandomState::new().hash_one(std::process::id()) & u64::from(u32::MAX)
}
