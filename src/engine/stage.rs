//! A stage at work: a part of a model's layers, between others that run elsewhere, and how stages know that
//! they belong together.
//!
//! Stages pass rows on, `[T][values]` in f32 as they are computed, so that all of them together give the bits
//! of one machine. Each is given the tokens too: some layers look at them, and a stage that is started again
//! is fed its sequences from their tokens.

use std::fmt;
use std::io::{self, ErrorKind};

use super::prefixes::settings_with;
use super::{Engine, EngineError, Feed};
use crate::gguf::{Gguf, Part, PartBytes};
use crate::model::NoObserver;
use crate::store::os::{Os, System};

impl Engine<'_> {
    /// Runs tokens of some sequences through the layers of a stage in one pass. `rows` are what the stage
    /// before gave for these tokens in this order, nothing where passes begin here. Gives the rows for the
    /// next stage; nothing where passes end here: the sequences have the logits then.
    ///
    /// # Errors
    /// Tokens that do not fit a pass or a context, rows that are not those of the tokens (nothing is run), or
    /// what the forward pass refuses.
    pub fn feed_stage(&mut self, feeds: &mut [Feed<'_>], rows: &[f32]) -> Result<Vec<f32>, EngineError> {
        let tokens = feeds.iter().map(|feed| feed.tokens.len()).sum();
        if tokens > self.batch {
            return Err(EngineError::PassFull { tokens, batch: self.batch });
        }
        for feed in &*feeds {
            feed.sequence.check_room(feed.tokens.len())?;
        }
        self.pass(feeds, rows, &mut NoObserver)?;
        Ok(self.buffers.take_border())
    }
}

/// Raised with every change of the arithmetic, or of what stages pass on, within a version of the program.
const ARITHMETIC: u32 = 1;

/// Stretches of each file that are looked at, and bytes of one.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 4096;

/// What stages of one model have in common: the program's version, the arithmetic, the settings that results
/// depend on, the headers of the model's files, their sizes, and samples of their weights. Stages that differ
/// in it must not work together.
///
/// The samples are 64 stretches of 4 KiB of each file, so that a model is not read whole to know it: they tell
/// another quantisation or another training apart, not a file that was altered in a few places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageId([u8; 32]);

impl StageId {
    /// Of an engine that runs layers of this model.
    ///
    /// # Errors
    /// Files that cannot be read, or have changed since they were opened.
    pub fn of(gguf: &Gguf, engine: &Engine<'_>) -> io::Result<StageId> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&ARITHMETIC.to_le_bytes());
        hasher.update(&settings_with(engine, &[]));
        hasher.update(&(engine.model().all_layers() as u64).to_le_bytes());
        for part in &gguf.parts {
            hasher.update(&part.file_bytes.to_le_bytes());
            for [start, end] in stretches(part) {
                let mut at = start;
                while at < end {
                    let n = (end - at).min(1 << 20);
                    hasher.update(&read(part, at, n as usize)?);
                    at += n;
                }
            }
            if let PartBytes::File(file) = &part.bytes {
                file.check_unchanged()?;
            }
        }
        Ok(StageId(*hasher.finalize().as_bytes()))
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The header, and samples of what follows it.
fn stretches(part: &Part) -> impl Iterator<Item = [u64; 2]> {
    let (header, end) = (part.data_offset.min(part.file_bytes), part.file_bytes);
    let step = ((end - header) / SAMPLES).max(SAMPLE);
    let samples = (0..SAMPLES).map(move |i| header + i * step).take_while(move |at| *at < end);
    std::iter::once([0, header]).chain(samples.map(move |at| [at, (at + SAMPLE).min(end)]))
}

fn read(part: &Part, at: u64, n: usize) -> io::Result<Vec<u8>> {
    let file = match &part.bytes {
        PartBytes::Memory(bytes) => return Ok(bytes[at as usize..][..n].to_vec()),
        PartBytes::File(file) => file.file(),
    };
    let (mut bytes, mut done) = (vec![0; n], 0);
    while done < n {
        match Os::read_at(file, &mut bytes[done..], at + done as u64) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(more) => done += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
