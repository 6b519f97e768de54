//! The run: windows through an engine, each scored token judged by itself and against a base.

use std::ops::{ControlFlow, Range};

use rayon::prelude::*;

use crate::engine::{Engine, EngineError, LogSoftmax};
use crate::model::{ForwardError, Logits};
use crate::verify::VerifyError;

use super::divergence::{BaseRow, Divergences, RowDivergence};
use super::measures::Perplexity;
use super::passes::{Passes, Shares};
use super::sources::{BaseRows, BaseSource};
use super::{BaseWriter, TopRow, Windows};

/// What a run is compared with.
pub enum Against<'a, 'm> {
    /// Another run, side by side: a model, kernel set or KV cache.
    Engine(&'a mut Engine<'m>),
    /// A base that has been checked to be of the same windows.
    Base(&'a mut BaseSource),
}

/// What a run has come to.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub perplexity: Perplexity,
    pub divergences: Option<Divergences>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Step<'s> {
    /// Tokens that have been run of all windows, each run counted.
    pub tokens: usize,
    /// Windows that are done.
    pub windows: usize,
    /// What they have come to.
    pub measured: &'s Measured,
}

/// Runs all windows. Logits of a whole window are never held, where its vocabulary is large; the figures are
/// the same however many windows share a pass. `progress` is told after every pass and may break off.
///
/// # Errors
/// What an engine refuses, logits that are not finite, a base that is not of these windows or cannot be read,
/// or a file that cannot be written.
pub fn measure(
    windows: &Windows,
    engine: &mut Engine<'_>,
    mut against: Option<Against<'_, '_>>,
    mut writer: Option<&mut BaseWriter>,
    progress: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<Measured, VerifyError> {
    let vocab = engine.model().spec().vocab;
    if let Some(&id) = windows.tokens().iter().find(|&&id| id as usize >= vocab) {
        return Err(EngineError::from(ForwardError::TokenRange { id, vocab }).into());
    }
    if let Some(Against::Engine(other)) = &against
        && other.model().spec().vocab != vocab
    {
        return Err(VerifyError::Vocabularies { found: other.model().spec().vocab, wanted: vocab });
    }
    let batch = match &against {
        Some(Against::Engine(other)) => engine.batch().min(other.batch()),
        _ => engine.batch(),
    };
    let shares = Shares::new(windows, batch, vocab);
    let keep = writer.as_ref().map(|writer| writer.top());
    let mut own = Passes::new(engine);
    let mut other = match &mut against {
        Some(Against::Engine(engine)) => Other::Passes(Passes::new(engine)),
        Some(Against::Base(base)) => Other::Base(base),
        None => Other::Nothing,
    };
    let mut measured = Measured::default();
    if !matches!(other, Other::Nothing) {
        measured.divergences = Some(Divergences::default());
    }
    let mut run = 0;
    let scored = windows.scored();
    for first in (0..windows.count()).step_by(shares.windows) {
        let group = first..windows.count().min(first + shares.windows);
        own.begin(windows, group.clone());
        other.begin(windows, group.clone())?;
        let mut done: Vec<Vec<Row>> = group.clone().map(|_| Vec::with_capacity(scored.len())).collect();
        let mut at = 0;
        while at < scored.end {
            let (n, logits) = match at < scored.start {
                true => ((scored.start - at).min(batch / group.len()).max(1), Logits::None),
                false => ((scored.end - at).min(shares.rows), Logits::All),
            };
            own.advance(n, logits)?;
            other.advance(n, logits)?;
            if logits == Logits::All {
                let rows = at - scored.start..at - scored.start + n;
                for (slot, i) in group.clone().enumerate() {
                    let base = other.rows(windows, [i, slot], rows.clone())?;
                    let part = Part { windows, i, rows: rows.clone(), keep };
                    done[slot].extend(part.judge(own.engine(), own.logits(slot), base)?);
                }
            }
            at += n;
            run += n * group.len() * other.runs();
            if progress(Step { tokens: run, windows: first, measured: &measured }).is_break() {
                return Err(EngineError::Interrupted.into());
            }
        }
        for (rows, i) in done.iter().zip(group.clone()) {
            measured.perplexity.add(rows.iter().map(|row| row.nll));
            if let Some(divergences) = &mut measured.divergences {
                divergences.add(rows.iter().filter_map(|row| row.divergence.as_ref()));
            }
            if let Some(writer) = &mut writer {
                writer.add(&windows.hash(i), rows.iter().filter_map(|row| row.top.as_ref()))?;
            }
        }
        if progress(Step { tokens: run, windows: group.end, measured: &measured }).is_break() {
            return Err(EngineError::Interrupted.into());
        }
    }
    Ok(measured)
}

/// The other side.
enum Other<'a, 'e, 'm> {
    Nothing,
    Passes(Passes<'e, 'm>),
    Base(&'a mut BaseSource),
}

/// Its rows.
enum Rows<'r> {
    Nothing,
    Logits(&'r [f32]),
    Base(BaseRows<'r>),
}

impl Other<'_, '_, '_> {
    fn begin(&mut self, windows: &Windows, group: Range<usize>) -> Result<(), VerifyError> {
        match self {
            Other::Nothing => {}
            Other::Passes(passes) => passes.begin(windows, group),
            Other::Base(base) => base.begin(windows, group)?,
        }
        Ok(())
    }

    fn advance(&mut self, n: usize, logits: Logits) -> Result<(), EngineError> {
        match self {
            Other::Passes(passes) => passes.advance(n, logits),
            Other::Nothing | Other::Base(_) => Ok(()),
        }
    }

    /// Engines that run each token.
    fn runs(&self) -> usize {
        if matches!(self, Other::Passes(_)) { 2 } else { 1 }
    }

    fn rows(
        &mut self,
        windows: &Windows,
        [i, slot]: [usize; 2],
        rows: Range<usize>,
    ) -> Result<Rows<'_>, VerifyError> {
        Ok(match self {
            Other::Nothing => Rows::Nothing,
            Other::Passes(passes) => Rows::Logits(passes.logits(slot)),
            Other::Base(base) => Rows::Base(base.rows(windows, [i, slot], rows)?),
        })
    }
}

/// What a scored token has come to.
struct Row {
    nll: f64,
    divergence: Option<RowDivergence>,
    top: Option<TopRow>,
}

/// Some scored rows of a window.
struct Part<'w> {
    windows: &'w Windows,
    i: usize,
    rows: Range<usize>,
    /// Tokens to keep of each.
    keep: Option<usize>,
}

impl Part<'_> {
    /// Judges rows, each on one thread.
    fn judge(&self, engine: &Engine<'_>, logits: &[f32], base: Rows<'_>) -> Result<Vec<Row>, VerifyError> {
        let vocab = engine.model().spec().vocab;
        let targets = &self.windows.targets(self.i)[self.rows.clone()];
        let judged: Vec<Result<Row, VerifyError>> = engine.on_threads(|| {
            let rows = logits.par_chunks_exact(vocab).zip(targets).enumerate();
            rows.map(|(at, (logits, &target))| {
                let own = at * vocab..(at + 1) * vocab;
                let base = match &base {
                    Rows::Nothing => None,
                    Rows::Logits(all) => {
                        self.check_finite(at, &all[own.clone()])?;
                        Some(BaseRow::Logits(&all[own]))
                    }
                    Rows::Base(BaseRows::Logits(all)) => Some(BaseRow::Logits(&all[own])),
                    Rows::Base(BaseRows::LnP(all)) => Some(BaseRow::LnP(&all[own])),
                    Rows::Base(BaseRows::Top(rows)) => Some(BaseRow::Top(&rows[at])),
                };
                self.check_finite(at, logits)?;
                Ok(judge_row(logits, base, target, self.keep))
            })
            .collect()
        });
        judged.into_iter().collect()
    }

    fn check_finite(&self, at: usize, logits: &[f32]) -> Result<(), VerifyError> {
        match logits.iter().position(|logit| !logit.is_finite()) {
            None => Ok(()),
            Some(id) => {
                let position = self.windows.scored().start + self.rows.start + at;
                Err(VerifyError::LogitsNotFinite { window: self.i, position, id })
            }
        }
    }
}

fn judge_row(logits: &[f32], base: Option<BaseRow<'_>>, target: u32, keep: Option<usize>) -> Row {
    let row = LogSoftmax::new(logits);
    let top = keep.map(|most| TopRow::new(&row, target, most));
    let divergence = base.map(|base| RowDivergence::new(&row, base, target));
    let nll = divergence.map_or_else(|| -row.ln_p(logits[target as usize]), |row| row.nll);
    Row { nll, divergence, top }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::WindowOptions;
    use super::*;
    use crate::engine::EngineOptions;
    use crate::gguf::Gguf;
    use crate::model::{KvType, Model};
    use crate::store::Guesses;

    /// A pass refuses what is not finite before its logits; what comes all the same is no figure.
    #[test]
    fn logits_that_are_not_finite_are_told_with_their_place() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/moe-q4_k_m.gguf");
        let model = Model::load(&Gguf::open(&path).expect("a model")).expect("it loads");
        let kv = KvType::F16;
        let options = EngineOptions {
            context: 8,
            batch: 8,
            kv,
            threads: 1.into(),
            isa: None,
            drafts: 0,
            guesses: Guesses::Off,
        };
        let engine = Engine::new(&model, &options).expect("an engine");
        let options = WindowOptions { context: 8, stride: None, most: None, bos: None };
        let windows = Windows::new(vec![3; 16], options).expect("windows");
        let vocab = model.spec().vocab;
        let part = Part { windows: &windows, i: 1, rows: 1..3, keep: Some(4) };
        let sound = vec![0.0; 2 * vocab];
        assert_eq!(part.judge(&engine, &sound, Rows::Nothing).expect("rows").len(), 2);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut broken = sound.clone();
            broken[vocab + 7] = value;
            for (own, base) in [(&broken, Rows::Nothing), (&sound, Rows::Logits(&broken))] {
                let error = part.judge(&engine, own, base).err().expect("no figure");
                let place = matches!(error, VerifyError::LogitsNotFinite { window: 1, position: 6, id: 7 });
                assert!(place, "{error}");
            }
        }
    }
}
