//! Runs that are watched: a prompt, then some tokens one by one.

use std::ops::ControlFlow;

use crate::engine::{Engine, Sequence};
use crate::model::{Logits, Observer};

use super::VerifyError;

/// An observer of several passes.
pub trait PassObserver: Observer {
    /// A pass over so many tokens begins: `prefill`, `prefill.64` (from that position on), `decode.0`, ..
    fn begin(&mut self, pass: &str, tokens: usize);

    /// The pass is done.
    ///
    /// # Errors
    /// What went wrong while watching it.
    fn end(&mut self) -> Result<(), VerifyError> {
        Ok(())
    }

    /// The token to feed in this decode step, where the model would go on with `own`.
    ///
    /// # Errors
    /// Where another one was to be had and cannot.
    fn next_token(&mut self, step: usize, own: u32) -> Result<u32, VerifyError> {
        let _ = step;
        Ok(own)
    }
}

/// Feeds the prompt in the engine's batches, then `steps` tokens; the logits of all tokens are nodes.
///
/// # Errors
/// What the engine or the observer refuses.
pub fn run(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    prompt: &[u32],
    steps: usize,
    observer: &mut dyn PassObserver,
) -> Result<(), VerifyError> {
    let batch = engine.batch();
    for (i, chunk) in prompt.chunks(batch).enumerate() {
        let pass = if i == 0 { "prefill".to_owned() } else { format!("prefill.{}", i * batch) };
        watch(engine, sequence, chunk, &pass, observer)?;
    }
    for step in 0..steps {
        let id = observer.next_token(step, sequence.argmax()?)?;
        watch(engine, sequence, &[id], &format!("decode.{step}"), observer)?;
    }
    Ok(())
}

/// Runs the prompt, which fits a batch, then the model's block of multi-token prediction over it, whose nodes
/// are watched as the pass `prefill`.
///
/// # Errors
/// What the engine or the observer refuses.
pub fn run_block(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    prompt: &[u32],
    observer: &mut dyn PassObserver,
) -> Result<(), VerifyError> {
    observer.begin("prefill", prompt.len());
    let run = engine.observe_block(sequence, prompt, &mut *observer);
    observer.end()?;
    Ok(run?)
}

fn watch(
    engine: &mut Engine<'_>,
    sequence: &mut Sequence,
    tokens: &[u32],
    pass: &str,
    observer: &mut dyn PassObserver,
) -> Result<(), VerifyError> {
    observer.begin(pass, tokens.len());
    let go_on = |_| ControlFlow::Continue(());
    let fed = engine.feed_observed(sequence, tokens, Logits::All, &mut *observer, go_on);
    // What the observer could not read or write explains more than what followed from it.
    observer.end()?;
    Ok(fed?)
}
