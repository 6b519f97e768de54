//! What `/set` changes.

use std::num::NonZeroUsize;
use std::str::FromStr;

use clap::ValueEnum;

use super::OnFull;
use crate::cli::sampling_args::SAMPLING;
use crate::engine::SamplerConfig;

/// How answers are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub sampler: SamplerConfig,
    pub max_tokens: Option<NonZeroUsize>,
    pub on_full: OnFull,
}

/// What a setting changes beyond the settings.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    Settings,
    /// The context, in tokens: it takes another engine.
    Context(usize),
}

impl Settings {
    /// Sets one by name.
    ///
    /// # Errors
    /// A name that is none, and a value that is none of it.
    pub fn set(&mut self, name: &str, value: &str) -> Result<Change, String> {
        let mut other = self.clone();
        let sampler = &mut other.sampler;
        match name {
            "temp" => {
                // What chose the best token alone would now choose among all.
                if *sampler
                    == (SamplerConfig { repeat_penalty: sampler.repeat_penalty, ..SamplerConfig::greedy() })
                {
                    let repeat_penalty = sampler.repeat_penalty;
                    *sampler = SamplerConfig { repeat_penalty, ..SAMPLING };
                }
                sampler.temperature = number(name, value)?;
            }
            "top-k" => sampler.top_k = number(name, value)?,
            "top-p" => sampler.top_p = number(name, value)?,
            "min-p" => sampler.min_p = number(name, value)?,
            "repeat-penalty" => sampler.repeat_penalty = number(name, value)?,
            "seed" => sampler.seed = number(name, value)?,
            "max-tokens" if value == "off" => other.max_tokens = None,
            "max-tokens" => other.max_tokens = Some(number(name, value)?),
            "on-full" => {
                other.on_full = OnFull::from_str(value, true).map_err(|_| "on-full is stop or drop")?
            }
            "ctx" => return Ok(Change::Context(number::<NonZeroUsize>(name, value)?.get())),
            _ => return Err(format!("{name} is no setting; /help lists them")),
        }
        other.sampler.check().map_err(|error| error.to_string())?;
        *self = other;
        Ok(Change::Settings)
    }

    /// All of them, on a line.
    pub fn line(&self, context: usize) -> String {
        let SamplerConfig { repeat_penalty, top_k, top_p, min_p, temperature, seed, .. } = &self.sampler;
        let most = self.max_tokens.map_or_else(|| "off".to_owned(), |most| most.to_string());
        let on_full =
            self.on_full.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        format!(
            "temp {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}, \
             repeat-penalty {repeat_penalty}, seed {seed}, max-tokens {most}, ctx {context}, \
             on-full {on_full}"
        )
    }
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name} cannot be {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_set_by_name_or_refused_and_left() {
        let mut settings =
            Settings { sampler: SamplerConfig::greedy(), max_tokens: None, on_full: OnFull::Stop };
        for (name, value) in
            [("temp", "0.5"), ("top-k", "7"), ("seed", "3"), ("max-tokens", "9"), ("on-full", "drop")]
        {
            assert_eq!(settings.set(name, value), Ok(Change::Settings), "{name}");
        }
        assert_eq!(settings.set("ctx", "512"), Ok(Change::Context(512)));
        let line = settings.line(64);
        assert!(
            line.starts_with("temp 0.5, top-k 7,") && line.ends_with("max-tokens 9, ctx 64, on-full drop"),
            "{line}"
        );
        let before = settings.clone();
        let wrong = [
            ("temp", "-1"),
            ("temp", "NaN"),
            ("top-p", "2"),
            ("seed", "x"),
            ("ctx", "0"),
            ("max-tokens", "0"),
            ("no", "1"),
        ];
        for (name, value) in wrong {
            assert!(settings.set(name, value).is_err(), "{name} {value}");
        }
        assert_eq!(settings, before);
    }
}
