//! What the tokens of a text say against their repetition.

use std::collections::HashMap;

use super::SamplerConfig;

/// The last tokens of a text, and how often its answer has each.
#[derive(Clone, Debug, Default)]
pub struct Past {
    last: Vec<u32>,
    counts: HashMap<u32, u32>,
}

impl Past {
    /// A token of the prompt.
    pub fn read(&mut self, id: u32, config: &SamplerConfig) {
        if self.last.len() >= config.repeat_last.max(1).saturating_mul(2) {
            let keep = self.last.len() - config.repeat_last;
            self.last.drain(..keep);
        }
        self.last.push(id);
    }

    /// A token of the answer.
    pub fn accept(&mut self, id: u32, config: &SamplerConfig) {
        self.read(id, config);
        if counts(config) {
            *self.counts.entry(id).or_default() += 1;
        }
    }

    /// Whether penalties are asked for.
    pub fn changes(config: &SamplerConfig) -> bool {
        repeats(config) || counts(config)
    }

    /// Makes the tokens so far less probable.
    pub fn penalise(&self, config: &SamplerConfig, logits: &mut [f32]) {
        if repeats(config) {
            let mut recent = self.last[self.last.len().saturating_sub(config.repeat_last)..].to_vec();
            recent.sort_unstable();
            recent.dedup();
            let penalty = config.repeat_penalty;
            for id in recent {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        for (&id, &count) in &self.counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= config.presence_penalty + count as f32 * config.frequency_penalty;
            }
        }
    }
}

fn repeats(config: &SamplerConfig) -> bool {
    config.repeat_penalty != 1.0 && config.repeat_last > 0
}

fn counts(config: &SamplerConfig) -> bool {
    config.presence_penalty != 0.0 || config.frequency_penalty != 0.0
}
