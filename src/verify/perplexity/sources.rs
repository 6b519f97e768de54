//! Where a base comes from: a file of ours, llama.cpp's own, or logits as an array.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::verify::npy;

use super::base::{self, BaseFile, BaseHeader, read_array};
use super::{TopRow, Windows};

/// Why a base is not used.
#[derive(Debug, Error)]
#[error("{}: {problem}", path.display())]
pub struct BaseError {
    pub path: PathBuf,
    pub problem: BaseProblem,
}

/// What is wrong with a base.
#[derive(Debug, Error)]
pub enum BaseProblem {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error(
        "neither a model nor a base: bases are written by --base, by llama-perplexity's --kl-divergence-base \
             or as .npy"
    )]
    Unknown,
    #[error("a base of format {found}, where {} is known", base::MAGIC[7])]
    Version { found: u8 },
    #[error("its header is not one: {0}")]
    Header(String),
    #[error("it ends within {}", part(.window))]
    Truncated { window: Option<usize> },
    #[error("the checksum of {} does not match: it was altered", part(.window))]
    Checksum { window: Option<usize> },
    #[error("row {row} of window {window}: {problem}")]
    Row { window: usize, row: usize, problem: &'static str },
    #[error("it is of {found} tokens of a vocabulary, where the model has {wanted}")]
    Vocabulary { found: usize, wanted: usize },
    #[error("it is of {found}, where {wanted} was asked for")]
    Context { found: String, wanted: String },
    #[error("it has {found} windows, where the text has {wanted}")]
    Windows { found: usize, wanted: usize },
    #[error("window {window} is of other tokens: of another text, or cut by another tokenizer")]
    Text { window: usize },
}

fn part(window: &Option<usize>) -> String {
    window.map_or_else(|| "its header".to_owned(), |window| format!("window {window}"))
}

/// A base in a file.
#[derive(Debug)]
pub enum BaseSource {
    /// With the rows of the windows that run now.
    Top(BaseFile, Vec<Vec<TopRow>>),
    Dense(Dense),
}

/// Some rows of a window of a base.
#[derive(Debug)]
pub enum BaseRows<'b> {
    Top(&'b [TopRow]),
    /// `[rows][vocabulary]`
    LnP(Vec<f32>),
    Logits(Vec<f32>),
}

impl BaseSource {
    /// Opens a base, of which kind its first bytes say.
    ///
    /// # Errors
    /// What is no base, or one with a broken header.
    pub fn open(path: &Path) -> Result<BaseSource, BaseError> {
        let refuse = |problem| BaseError { path: path.to_owned(), problem };
        let mut file = File::open(path).map_err(|error| refuse(error.into()))?;
        let mut magic = Vec::new();
        file.by_ref().take(8).read_to_end(&mut magic).map_err(|error| refuse(error.into()))?;
        if magic.starts_with(&base::MAGIC[..7]) {
            return Ok(BaseSource::Top(BaseFile::open(path)?, Vec::new()));
        }
        let dense = match &magic[..] {
            b"_logits_" => Dense::open_llama(file),
            magic if magic.starts_with(npy::MAGIC) => Dense::open_npy(file),
            _ => Err(BaseProblem::Unknown),
        };
        Ok(BaseSource::Dense(dense.map_err(refuse)?.at(path)))
    }

    /// What it says of itself, where it is of ours.
    pub fn header(&self) -> Option<&BaseHeader> {
        match self {
            BaseSource::Top(file, _) => Some(file.header()),
            BaseSource::Dense(_) => None,
        }
    }

    /// Whether it can be of these windows.
    ///
    /// # Errors
    /// Where it is of another vocabulary, context or text, or has too few windows.
    pub fn check(&mut self, windows: &Windows, vocab: usize) -> Result<(), BaseError> {
        match self {
            BaseSource::Top(file, _) => file.check(windows, vocab),
            BaseSource::Dense(dense) => {
                let checked = dense.check(windows, vocab);
                checked.map_err(|problem| BaseError { path: dense.path.clone(), problem })
            }
        }
    }

    /// Begins with these windows, which follow those before.
    ///
    /// # Errors
    /// As [`BaseFile::window`].
    pub fn begin(&mut self, windows: &Windows, group: Range<usize>) -> Result<(), BaseError> {
        if let BaseSource::Top(file, held) = self {
            held.clear();
            for i in group {
                held.push(file.window(windows, i)?);
            }
        }
        Ok(())
    }

    /// Some of the scored rows of window `i`, the `slot`th of those that were begun with.
    ///
    /// # Errors
    /// Where they cannot be read, or are no logits.
    pub fn rows(
        &mut self,
        windows: &Windows,
        [i, slot]: [usize; 2],
        rows: Range<usize>,
    ) -> Result<BaseRows<'_>, BaseError> {
        match self {
            BaseSource::Top(_, held) => Ok(BaseRows::Top(&held[slot][rows])),
            BaseSource::Dense(dense) => {
                let read = dense.rows(i, windows.rows(), rows);
                read.map_err(|problem| BaseError { path: dense.path.clone(), problem })
            }
        }
    }
}

/// Rows of a whole vocabulary.
#[derive(Debug)]
pub struct Dense {
    path: PathBuf,
    file: BufReader<File>,
    vocab: usize,
    /// Where the rows begin.
    start: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// llama.cpp's: a scale and the least logarithm of a probability (f32), then a number of steps for each
    /// token (u16), of an even number of tokens.
    Llama { context: u64, windows: u64 },
    /// Logits as f32.
    Npy { rows: u64 },
}

impl Dense {
    fn new(file: BufReader<File>, vocab: usize, start: u64, kind: Kind) -> Dense {
        Dense { path: PathBuf::new(), file, vocab, start, kind }
    }

    fn at(self, path: &Path) -> Dense {
        Dense { path: path.to_owned(), ..self }
    }

    /// After `_logits_`: context, vocabulary and windows as i32, then the tokens of all windows.
    fn open_llama(file: File) -> Result<Dense, BaseProblem> {
        let mut file = BufReader::new(file);
        let mut number = || -> Result<u64, BaseProblem> {
            let value = i32::from_le_bytes(read_array(&mut file).map_err(cut)?);
            u64::try_from(value).map_err(|_| BaseProblem::Header(format!("it holds {value}")))
        };
        let [context, vocab, windows] = [number()?, number()?, number()?];
        let tokens = context.saturating_mul(windows).saturating_mul(4);
        let kind = Kind::Llama { context, windows };
        Ok(Dense::new(file, vocab as usize, tokens.saturating_add(20), kind))
    }

    fn open_npy(mut file: File) -> Result<Dense, BaseProblem> {
        file.rewind()?;
        let mut file = BufReader::new(file);
        let (shape, start) = npy::read_header(&mut file).map_err(|error| match error {
            npy::HeaderError::Io(error) => cut(error),
            npy::HeaderError::Other(problem) => BaseProblem::Header(problem),
        })?;
        let Some((&vocab, rows)) = shape.split_last().filter(|(_, rows)| !rows.is_empty()) else {
            return Err(BaseProblem::Header("an array of rows and tokens is needed".to_owned()));
        };
        let rows = rows.iter().fold(1u64, |all, &n| all.saturating_mul(n));
        let vocab = usize::try_from(vocab).unwrap_or(usize::MAX);
        Ok(Dense::new(file, vocab, start, Kind::Npy { rows }))
    }

    fn row_bytes(&self) -> u64 {
        match self.kind {
            Kind::Llama { .. } => 8 + 2 * (self.vocab as u64).next_multiple_of(2),
            Kind::Npy { .. } => 4 * self.vocab as u64,
        }
    }

    fn check(&mut self, windows: &Windows, vocab: usize) -> Result<(), BaseProblem> {
        if self.vocab != vocab {
            return Err(BaseProblem::Vocabulary { found: self.vocab, wanted: vocab });
        }
        let (count, rows) = (windows.count() as u64, windows.rows() as u64);
        match self.kind {
            Kind::Llama { context, windows: found } => {
                let options = windows.options();
                if options.stride.is_some() || context != options.context as u64 {
                    let found = format!("a context of {context} without a stride");
                    let stride = options.stride.map(|stride| format!(" with a stride of {stride}"));
                    let wanted = format!("one of {}{}", options.context, stride.unwrap_or_default());
                    return Err(BaseProblem::Context { found, wanted });
                }
                if found < count {
                    return Err(BaseProblem::Windows { found: found as usize, wanted: windows.count() });
                }
                self.check_tokens(windows)?;
            }
            Kind::Npy { rows: found } => {
                if !found.is_multiple_of(rows) {
                    let problem =
                        format!("{found} rows are no whole number of windows of {rows} scored tokens");
                    return Err(BaseProblem::Header(problem));
                }
                if found / rows < count {
                    let found = (found / rows) as usize;
                    return Err(BaseProblem::Windows { found, wanted: windows.count() });
                }
            }
        }
        // What is wanted of it is there.
        let wanted = count.saturating_mul(rows).saturating_mul(self.row_bytes()).saturating_add(self.start);
        let found = self.file.get_ref().metadata()?.len();
        if found < wanted {
            let window = found.saturating_sub(self.start) / (rows * self.row_bytes());
            return Err(BaseProblem::Truncated { window: Some(window as usize) });
        }
        Ok(())
    }

    /// llama.cpp's files hold the text's tokens, without a BOS put in.
    fn check_tokens(&mut self, windows: &Windows) -> Result<(), BaseProblem> {
        self.file.seek(SeekFrom::Start(20))?;
        for i in 0..windows.count() {
            for &token in windows.text(i) {
                let found = u32::from_le_bytes(read_array(&mut self.file).map_err(cut)?);
                if found != token {
                    return Err(BaseProblem::Text { window: i });
                }
            }
        }
        Ok(())
    }

    fn rows(&mut self, i: usize, of: usize, rows: Range<usize>) -> Result<BaseRows<'static>, BaseProblem> {
        let count = rows.len();
        let first = i as u64 * of as u64 + rows.start as u64;
        let bytes = self.row_bytes();
        self.file.seek(SeekFrom::Start(self.start + first * bytes))?;
        let mut row = vec![0; bytes as usize];
        let mut values = Vec::with_capacity(count * self.vocab);
        for at in rows {
            let cut = |error: std::io::Error| match error.kind() {
                ErrorKind::UnexpectedEof => BaseProblem::Truncated { window: Some(i) },
                _ => BaseProblem::Io(error),
            };
            self.file.read_exact(&mut row).map_err(cut)?;
            let before = values.len();
            match self.kind {
                Kind::Npy { .. } => values.extend(row.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
                Kind::Llama { .. } => decode_llama(&row, self.vocab, &mut values),
            }
            if !values[before..].iter().all(|value| value.is_finite()) {
                return Err(BaseProblem::Row { window: i, row: at, problem: "it holds what is not finite" });
            }
        }
        Ok(match self.kind {
            Kind::Npy { .. } => BaseRows::Logits(values),
            Kind::Llama { .. } => BaseRows::LnP(values),
        })
    }
}

fn decode_llama(row: &[u8], vocab: usize, values: &mut Vec<f32>) {
    let float = |at: usize| f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]);
    let (scale, least) = (float(0), float(4));
    let steps = row[8..].as_chunks().0.iter().take(vocab).map(|b| f32::from(u16::from_le_bytes(*b)));
    values.extend(steps.map(|steps| scale * steps + least));
}

fn cut(error: std::io::Error) -> BaseProblem {
    match error.kind() {
        ErrorKind::UnexpectedEof => BaseProblem::Truncated { window: None },
        _ => BaseProblem::Io(error),
    }
}
