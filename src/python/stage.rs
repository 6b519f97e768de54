//! A part of a model's layers, for those who carry rows from one to the next themselves.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use serde_json::json;

use super::arrays;
use super::errors::{Fault, caught};
use super::wait::{apart, lock, wait_for};
use crate::cli::stage;
use crate::engine::{EngineError, Feed, Sampler, Sequence};
use crate::model::Logits;
use crate::text::EncodeOptions;

/// A sequence, and what chooses its tokens in the last stage.
struct One {
    sequence: Sequence,
    sampler: Option<Sampler>,
}

/// What the stage's thread has.
struct Held<'m> {
    stage: stage::Stage<'m>,
    sequences: HashMap<u64, One>,
}

/// Something that is done with it.
type Work = Box<dyn for<'m> FnOnce(&mut Held<'m>) + Send>;

/// Tokens of a sequence in a pass: its number, how many tokens it has had, the new ones, whether the logits behind
/// the last of them are wanted. With none before, the sequence begins.
type Part = (u64, usize, Vec<u32>, bool);

impl Held<'_> {
    fn one(&mut self, number: u64) -> Result<&mut One, Fault> {
        self.sequences.get_mut(&number).ok_or_else(|| unknown(number))
    }

    /// Takes a sequence for a pass.
    fn take(&mut self, number: u64, past: usize) -> Result<One, Fault> {
        if past == 0 {
            self.sequences.remove(&number);
            return Ok(One { sequence: self.stage.engine.sequence(), sampler: None });
        }
        let there = self.one(number)?.sequence.past();
        if there != past {
            let message = format!("sequence {number} has {there} tokens here, and {past} elsewhere");
            return Err(Fault::usage(message));
        }
        self.sequences.remove(&number).ok_or_else(|| unknown(number))
    }

    fn feed(&mut self, parts: &[Part], rows: &[f32]) -> Result<Vec<f32>, Fault> {
        let mut taken = Vec::with_capacity(parts.len());
        let mut result = parts.iter().try_for_each(|(number, past, ..)| {
            if taken.iter().any(|(other, _)| other == number) {
                return Err(Fault::usage(format!("sequence {number} comes twice in a pass")));
            }
            taken.push((*number, self.take(*number, *past)?));
            Ok(())
        });
        let mut out = Vec::new();
        if result.is_ok() {
            let mut feeds: Vec<Feed<'_>> = taken
                .iter_mut()
                .zip(parts)
                .map(|((_, one), (_, _, tokens, wanted))| Feed {
                    sequence: &mut one.sequence,
                    tokens,
                    logits: if *wanted { Logits::Last } else { Logits::None },
                })
                .collect();
            match self.stage.engine.feed_stage(&mut feeds, rows) {
                Ok(rows) => out = rows,
                Err(error) => result = Err(error.into()),
            }
        }
        self.sequences.extend(taken);
        result.map(|()| out)
    }

    /// The next token of a sequence, which it does not get, how far the random numbers are, and whether it ends the
    /// text.
    fn draw(&mut self, number: u64) -> Result<(u32, u64, bool), Fault> {
        let Held { stage, sequences } = self;
        let one = sequences.get_mut(&number).ok_or_else(|| unknown(number))?;
        let sampler = one.sampler.as_mut();
        let sampler = sampler.ok_or_else(|| Fault::usage(format!("sequence {number} has no sampler")))?;
        let drawn = stage.engine.generate(&mut one.sequence, sampler).next();
        let id = drawn.ok_or(EngineError::NoLogits)??.id;
        Ok((id, sampler.position(), stage.ends.contains(&id)))
    }

    fn facts(&self, name: &str) -> String {
        let (engine, tokenizer) = (&self.stage.engine, &self.stage.tokenizer);
        let (model, spec) = (engine.model(), engine.model().spec());
        json!({
            "name": name,
            "version": env!("CARGO_PKG_VERSION"),
            "id": self.stage.id.to_string(),
            "architecture": spec.architecture,
            "layers": [model.layers().start, model.layers().end],
            "all_layers": model.all_layers(),
            "borders": model.borders(),
            "row_in": model.row_in(),
            "row_out": model.row_out(),
            "vocab": spec.vocab,
            "embd": spec.embd,
            "context": engine.context(),
            "batch": engine.batch(),
            "sequences": self.stage.sequences,
            "sequence_bytes": self.stage.sequence_bytes,
            "threads": engine.threads(),
            "bos": tokenizer.bos(),
            "ends": self.stage.ends,
        })
        .to_string()
    }
}

fn unknown(number: u64) -> Fault {
    Fault::usage(format!("there is no sequence {number}"))
}

/// Little-endian f32.
fn floats(bytes: &[u8]) -> Result<Vec<f32>, Fault> {
    match bytes.as_chunks::<4>() {
        (values, []) => Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect()),
        _ => Err(Fault::usage(format!("{} bytes are no whole number of f32", bytes.len()))),
    }
}

fn arguments(options: Vec<(String, String)>) -> Vec<String> {
    options.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

/// See the module.
#[pyclass(frozen, module = "wayinfer._native")]
pub struct Stage {
    work: Mutex<Option<Sender<Work>>>,
    facts: String,
}

impl Stage {
    /// Has something done on the stage's thread, and waits for it.
    fn on_thread<R: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl for<'m> FnOnce(&mut Held<'m>) -> Result<R, Fault> + Send + 'static,
    ) -> PyResult<R> {
        let (sender, results) = channel();
        let work: Work = Box::new(move |held| {
            let _ = sender.send(caught(|| work(held)));
        });
        let closed = || Fault::usage("the stage is closed");
        let sent = lock(&self.work).as_ref().ok_or_else(closed)?.send(work);
        sent.map_err(|_| Fault::ended())?;
        wait_for(py, results, || ())
    }
}

#[pymethods]
impl Stage {
    /// Opens these layers of a model, all where none are given; options are those of `wayinfer generate`, and
    /// `sequences`.
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        layers: Option<(usize, usize)>,
        options: Vec<(String, String)>,
    ) -> PyResult<Stage> {
        let (ready, opened) = channel();
        let (work, todo) = channel::<Work>();
        let run = move || {
            let layers = layers.map(|(first, end)| first..end);
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let told = ready.clone();
            let done = stage::open(&path, layers, &arguments(options), |stage| {
                let mut held = Held { stage, sequences: HashMap::new() };
                let _ = told.send(Ok(held.facts(&name)));
                while let Ok(work) = todo.recv() {
                    work(&mut held);
                }
            });
            if let Err(error) = done {
                let _ = ready.send(Err(Fault::from(error)));
            }
        };
        thread::Builder::new().name("stage".to_owned()).spawn(run).map_err(Fault::of)?;
        let facts = wait_for(py, opened, || ())?;
        Ok(Stage { work: Mutex::new(Some(work)), facts })
    }

    /// What is known of it, as JSON.
    fn facts(&self) -> &str {
        &self.facts
    }

    /// Runs a pass: tokens of some sequences, and the rows that the stage before gave for them, little-endian f32.
    /// The rows for the next stage.
    fn feed<'py>(&self, py: Python<'py>, parts: Vec<Part>, rows: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let rows = floats(rows)?;
        let out = self.on_thread(py, move |held| held.feed(&parts, &rows))?;
        PyBytes::new_with(py, size_of_val(&*out), |bytes| {
            for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(&out) {
                *bytes = value.to_le_bytes();
            }
            Ok(())
        })
    }

    /// The logits that the last pass left of a sequence: `[vocabulary]`, little-endian f32.
    fn logits<'py>(&self, py: Python<'py>, number: u64) -> PyResult<Bound<'py, PyByteArray>> {
        let logits = self.on_thread(py, move |held| {
            let logits = held.one(number)?.sequence.logits().to_vec();
            if logits.is_empty() { Err(EngineError::NoLogits.into()) } else { Ok(logits) }
        })?;
        arrays::bytes(py, &logits)
    }

    /// Says how the tokens of a sequence are chosen: by options of `wayinfer generate`, after this prompt and what
    /// was answered so far, `position` random numbers into its sequence of them.
    fn sampler(
        &self,
        py: Python<'_>,
        number: u64,
        options: Vec<(String, String)>,
        prompt: Vec<u32>,
        answer: Vec<u32>,
        position: u64,
    ) -> PyResult<()> {
        let config = stage::sampler(&arguments(options)).map_err(Fault::from)?;
        self.on_thread(py, move |held| {
            let mut sampler = Sampler::new(config).map_err(Fault::of)?;
            sampler.read(prompt);
            answer.into_iter().try_for_each(|id| sampler.accept(id))?;
            sampler.go_to(position);
            held.one(number)?.sampler = Some(sampler);
            Ok(())
        })
    }

    /// Draws the next token of a sequence from the logits that the last pass has left; the sequence does not get it.
    /// With it comes how many random numbers were used so far, and whether it ends the text.
    fn draw(&self, py: Python<'_>, number: u64) -> PyResult<(u32, u64, bool)> {
        self.on_thread(py, move |held| held.draw(number))
    }

    /// Takes a sequence back to its first tokens; to how many it went, which may be fewer.
    fn rewind(&self, py: Python<'_>, number: u64, past: usize) -> PyResult<usize> {
        self.on_thread(py, move |held| Ok(held.one(number)?.sequence.rewind(past)))
    }

    /// Forgets sequences; all where none are given.
    fn forget(&self, py: Python<'_>, numbers: Option<Vec<u64>>) -> PyResult<()> {
        self.on_thread(py, move |held| {
            match numbers {
                Some(numbers) => numbers.iter().for_each(|number| {
                    held.sequences.remove(number);
                }),
                None => held.sequences.clear(),
            }
            Ok(())
        })
    }

    /// The ids of a text's tokens.
    fn encode(
        &self,
        py: Python<'_>,
        text: String,
        add_special: bool,
        parse_special: bool,
    ) -> PyResult<Vec<u32>> {
        let options = EncodeOptions { add_special, parse_special };
        self.on_thread(py, move |held| held.stage.tokenizer.encode(&text, options).map_err(Fault::of))
    }

    /// The text of tokens; where it begins with them, without the space that the tokenizer puts before texts.
    fn decode(&self, py: Python<'_>, ids: Vec<u32>, special: bool, begins: bool) -> PyResult<String> {
        self.on_thread(py, move |held| {
            let vocab = held.stage.engine.model().spec().vocab;
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
                return Err(Fault::usage(format!("token {id} is outside the vocabulary of {vocab}")));
            }
            let mut stream = held.stage.tokenizer.stream(special);
            if begins {
                stream = stream.at_start();
            }
            let text: String = ids.iter().map(|&id| stream.push(id)).collect();
            Ok(text + &stream.finish())
        })
    }

    /// Ends it and frees its memory.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.work).take()));
    }
}

/// What a model takes layer by layer that is run with these options, as JSON.
#[pyfunction]
pub fn stage_costs(py: Python<'_>, path: PathBuf, options: Vec<(String, String)>) -> PyResult<String> {
    apart(py, move || {
        let costs = stage::costs(&path, &arguments(options))?;
        serde_json::to_string(&costs).map_err(Fault::of)
    })
}
