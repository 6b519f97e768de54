//! Two runs side by side: one hands each node to the other as it comes, so that only one of them is in memory
//! twice.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::engine::{Engine, EngineError};
use crate::model::{Node, NodeId, Observer};

use super::VerifyError;
use super::compare::Comparer;
use super::nodes::NodeGraph;
use super::reference::{Reference, Values};
use super::report::{CompareOptions, NodeReport};
use super::run::{PassObserver, run};

enum Message {
    Floats(Vec<f32>),
    Indices(Vec<u32>),
    Token(u32),
}

/// Hands everything on.
struct Sender {
    to: SyncSender<Message>,
    /// Whether the other run has ended: so does this one, and the other's error is the one to tell.
    alone: bool,
}

impl Sender {
    fn send(&mut self, message: Message) {
        self.alone |= self.to.send(message).is_err();
    }
}

impl Observer for Sender {
    fn active(&self) -> bool {
        true
    }

    fn interrupted(&self) -> bool {
        self.alone
    }

    fn node(&mut self, _: &Node<'_>, values: &mut [f32]) {
        self.send(Message::Floats(values.to_vec()));
    }

    fn indices(&mut self, _: &Node<'_>, values: &mut [u32]) {
        self.send(Message::Indices(values.to_vec()));
    }
}

impl PassObserver for Sender {
    fn begin(&mut self, _: &str, _: usize) {}

    fn next_token(&mut self, _: usize, own: u32) -> Result<u32, VerifyError> {
        self.send(Message::Token(own));
        Ok(own)
    }
}

impl Reference for Receiver<Message> {
    fn floats(&mut self, _: &str, _: &NodeId<'_>) -> Result<Option<Values<f32>>, VerifyError> {
        match self.recv() {
            Ok(Message::Floats(values)) => Ok(Some(Values { rows: None, values })),
            _ => Err(VerifyError::OtherRunEnded),
        }
    }

    fn indices(&mut self, _: &str, _: &NodeId<'_>) -> Result<Option<Values<u32>>, VerifyError> {
        match self.recv() {
            Ok(Message::Indices(values)) => Ok(Some(Values { rows: None, values })),
            _ => Err(VerifyError::OtherRunEnded),
        }
    }

    fn token(&mut self, _: usize) -> Result<Option<u32>, VerifyError> {
        match self.recv() {
            Ok(Message::Token(id)) => Ok(Some(id)),
            _ => Err(VerifyError::OtherRunEnded),
        }
    }
}

/// Runs the same tokens through two engines, a sequence in each, and compares every node of the second with
/// the first's.
///
/// # Errors
/// What either engine refuses.
pub fn compare_runs(
    reference: &mut Engine<'_>,
    engine: &mut Engine<'_>,
    graph: &NodeGraph<'static>,
    prompt: &[u32],
    steps: usize,
    options: CompareOptions,
) -> Result<Vec<NodeReport<'static>>, VerifyError> {
    // One node may wait while the next is computed.
    let (sender, receiver) = sync_channel(1);
    let mut sequence = engine.sequence();
    let mut comparer = Comparer::new(graph, receiver, options);
    std::thread::scope(|scope| {
        let other = scope.spawn(move || {
            let mut sequence = reference.sequence();
            let mut sender = Sender { to: sender, alone: false };
            run(reference, &mut sequence, prompt, steps, &mut sender)
        });
        let own = run(engine, &mut sequence, prompt, steps, &mut comparer);
        let (reports, _, receiver) = comparer.finish();
        drop(receiver);
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (own, other) {
            // The first run's own error comes first: the second's is that it had nothing to compare with.
            (Err(VerifyError::OtherRunEnded), Err(error)) => Err(error),
            (Err(error), _) => Err(error),
            // It was broken off behind the last node that there was to compare.
            (Ok(()), Ok(()) | Err(VerifyError::Engine(EngineError::Interrupted))) => Ok(reports),
            (Ok(()), Err(error)) => Err(error),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has nobody to hand its nodes to any more is not computed to its end.
    #[test]
    fn a_run_that_is_left_alone_is_broken_off() {
        let (to, receiver) = sync_channel(1);
        let mut sender = Sender { to, alone: false };
        sender.send(Message::Token(1));
        assert!(!sender.interrupted());
        drop(receiver);
        sender.send(Message::Token(2));
        assert!(sender.interrupted());
    }
}
