//! Two runs side by side: one hands each node to the other as it comes, so that only one of them is in memory
//! twice.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::engine::Engine;
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
struct Sender(SyncSender<Message>);

impl Sender {
    /// Where the other run has ended, so does the watching: its error is the one to tell.
    fn send(&self, message: Message) {
        let _ = self.0.send(message);
    }
}

impl Observer for Sender {
    fn active(&self) -> bool {
        true
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
            run(reference, &mut sequence, prompt, steps, &mut Sender(sender))
        });
        let own = run(engine, &mut sequence, prompt, steps, &mut comparer);
        let (reports, _, receiver) = comparer.finish();
        drop(receiver);
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (own, other) {
            // The first run's own error comes first: the second's is that it had nothing to compare with.
            (Err(VerifyError::OtherRunEnded), Err(error)) | (Ok(()), Err(error)) => Err(error),
            (Err(error), _) => Err(error),
            (Ok(()), Ok(())) => Ok(reports),
        }
    })
}
