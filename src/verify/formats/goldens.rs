//! What ggml made of a format's blocks, from a file of `golden/formats` (its layout:
//! `scripts/ggml/src/formats`).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::{activation_blocks, same};
use crate::quant::Format;
use crate::verify::{Element, Tensor, TensorFile, TensorFileError};

/// A file of goldens that cannot be used.
#[derive(Debug, Error)]
pub enum GoldenError {
    #[error(transparent)]
    File(#[from] TensorFileError),
    #[error("{}: no description of goldens: {why}", path.display())]
    Description { path: PathBuf, why: String },
    #[error("{}: it is of {found}, where {wanted} is needed", path.display())]
    Other { path: PathBuf, found: String, wanted: String },
    #[error("{}: tensor {name} has shape {found:?}, where {wanted:?} is needed", path.display())]
    Shape { path: PathBuf, name: String, found: Vec<usize>, wanted: Vec<usize> },
}

/// ggml's results for one format.
#[derive(Clone, Debug)]
pub struct FormatGoldens {
    /// Names of the cases of decoding.
    pub decode_cases: Vec<String>,
    /// Values of a case, of decoding as of quantising.
    pub case_len: usize,
    /// `[decode_cases][bytes of case_len weights]`
    pub blocks: Vec<u8>,
    /// `[decode_cases][case_len]`, or nothing where there are digests.
    pub values: Vec<f32>,
    /// `[decode_cases]`: digests of the values, or nothing where those are there.
    pub digests: Vec<u64>,
    /// Names of the cases of quantising activations.
    pub activation_cases: Vec<String>,
    /// `[activation_cases][case_len]`
    pub inputs: Vec<f32>,
    /// `[activation_cases][bytes of case_len activations]`
    pub quantised: Vec<u8>,
    /// Dots of ordinary rows.
    pub dots: Vec<DotSet>,
    /// Dots into which float rounding cannot enter.
    pub exact: Vec<DotSet>,
}

/// Dots of rows of one length.
#[derive(Clone, Debug)]
pub struct DotSet {
    pub cols: usize,
    /// `[rows][bytes of cols weights]`
    pub weights: Vec<u8>,
    /// `[rows][cols]`
    pub inputs: Vec<f32>,
    /// `[rows][bytes of cols activations]`
    pub quantised: Vec<u8>,
    /// `[rows]`: row by row, weights with quantised activations.
    pub dots: Vec<f32>,
}

#[derive(Deserialize)]
struct Description {
    name: String,
    activation_format: String,
    decode_cases: Vec<String>,
    activation_cases: Vec<String>,
    lengths: Vec<usize>,
    /// The format in whose file the inputs stand.
    activations_of: Option<String>,
}

impl FormatGoldens {
    /// Reads the goldens of a format from a folder of them; `None` where it has none for it.
    ///
    /// # Errors
    /// A file that is not of this format or that does not hold what it should.
    pub fn find(folder: &Path, format: &Format) -> Result<Option<FormatGoldens>, GoldenError> {
        let path = folder.join(format!("{}.safetensors", format.ty));
        if !path.exists() {
            return Ok(None);
        }
        Reader::open(folder, &path, format)?.read().map(Some)
    }
}

impl FormatGoldens {
    /// Whether these are the values of a case of decoding, to the bit (any NaN is any NaN).
    ///
    /// # Panics
    /// Where there is no such case.
    pub fn decodes_to(&self, case: usize, values: &[f32]) -> bool {
        match self.digests.get(case) {
            Some(&wanted) => digest(values) == wanted,
            None => {
                let wanted = &self.values[case * self.case_len..][..self.case_len];
                values.len() == wanted.len() && values.iter().zip(wanted).all(|(a, b)| same(*a, *b))
            }
        }
    }
}

struct Reader<'a> {
    file: TensorFile,
    /// The file that has the inputs, where it is another; whether it has them quantised as well.
    owner: Option<(TensorFile, bool)>,
    format: &'a Format,
    description: Description,
}

impl<'a> Reader<'a> {
    fn open(folder: &Path, path: &Path, format: &'a Format) -> Result<Reader<'a>, GoldenError> {
        let file = TensorFile::open(path)?;
        let bad = |why: String| GoldenError::Description { path: path.to_owned(), why };
        let description = description(&file)?;
        let wanted = format!("{} with {}", format.ty, activation_blocks::ggml_name(format.activation));
        let found = format!("{} with {}", description.name, description.activation_format);
        if found != wanted {
            return Err(GoldenError::Other { path: path.to_owned(), found, wanted });
        }
        if let Some(n) = description.lengths.iter().find(|&&n| !Reader::is_whole(format, n)) {
            return Err(bad(format!("{n} values are no whole blocks")));
        }
        if description.decode_cases.is_empty() || description.activation_cases.is_empty() {
            return Err(bad("it has no cases".into()));
        }
        let owner = match &description.activations_of {
            None => None,
            Some(name) => {
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    return Err(bad(format!("{name:?} is no format")));
                }
                let owner = TensorFile::open(&folder.join(format!("{name}.safetensors")))?;
                let same = self::description(&owner)?.activation_format == description.activation_format;
                Some((owner, same))
            }
        };
        Ok(Reader { file, owner, format, description })
    }

    /// Whether `n` values are whole blocks, of weights and of activations, of a size that bears multiplying.
    fn is_whole(format: &Format, n: usize) -> bool {
        let blocks = |len: usize| n.is_multiple_of(len);
        n > 0
            && n < 1 << 24
            && blocks(format.ty.block_len() as usize)
            && blocks(format.activation.block_len())
    }

    fn read(self) -> Result<FormatGoldens, GoldenError> {
        let (decode_cases, activation_cases) =
            (self.description.decode_cases.clone(), self.description.activation_cases.clone());
        let case_len = match self.inputs().shape("activations/inputs") {
            Some(&[_, n]) if Reader::is_whole(self.format, n) => n,
            _ => return Err(shape(self.inputs(), "activations/inputs", vec![activation_cases.len(), 256])),
        };
        let of_digests = self.file.contains("decode/digests");
        let weights = self.format.row_bytes(case_len);
        let quantised = activation_blocks::row_bytes(self.format.activation, case_len);
        let (decode, activation) = (decode_cases.len(), activation_cases.len());
        let sets = |folder: &str| -> Result<Vec<DotSet>, GoldenError> {
            // A format may have no exact dots of a length.
            let there = |n: &&usize| self.file.contains(&format!("{folder}/{n}/dots"));
            self.description.lengths.iter().filter(there).map(|&n| self.dots(folder, n)).collect()
        };
        let (dots, exact) = (sets("dots")?, sets("exact")?);
        if dots.is_empty() && exact.is_empty() {
            let path = self.file.path().to_owned();
            return Err(GoldenError::Description { path, why: "it has no dots".into() });
        }
        Ok(FormatGoldens {
            blocks: values(&self.file, "decode/blocks", &[decode, weights])?,
            values: match of_digests {
                false => values(&self.file, "decode/values", &[decode, case_len])?,
                true => vec![],
            },
            digests: match of_digests {
                false => vec![],
                true => digests(values(&self.file, "decode/digests", &[decode, 8])?),
            },
            inputs: values(self.inputs(), "activations/inputs", &[activation, case_len])?,
            quantised: values(self.quantised(), "activations/quantised", &[activation, quantised])?,
            dots,
            exact,
            decode_cases,
            activation_cases,
            case_len,
        })
    }

    /// The file that has the inputs.
    fn inputs(&self) -> &TensorFile {
        self.owner.as_ref().map_or(&self.file, |(owner, _)| owner)
    }

    /// The file that has them quantised.
    fn quantised(&self) -> &TensorFile {
        self.owner.as_ref().filter(|(_, same)| *same).map_or(&self.file, |(owner, _)| owner)
    }

    fn dots(&self, folder: &str, cols: usize) -> Result<DotSet, GoldenError> {
        let name = |what: &str| format!("{folder}/{cols}/{what}");
        let dots: Tensor<f32> = self.file.tensor(&name("dots"))?;
        let rows = dots.values.len();
        if rows == 0 {
            return Err(shape(&self.file, &name("dots"), vec![1]));
        }
        let quantised = activation_blocks::row_bytes(self.format.activation, cols);
        Ok(DotSet {
            cols,
            weights: values(&self.file, &name("weights"), &[rows, self.format.row_bytes(cols)])?,
            inputs: values(self.inputs(), &name("inputs"), &[rows, cols])?,
            quantised: values(self.quantised(), &name("quantised"), &[rows, quantised])?,
            dots: dots.values,
        })
    }
}

fn description(file: &TensorFile) -> Result<Description, GoldenError> {
    let bad = |why: String| GoldenError::Description { path: file.path().to_owned(), why };
    let text = file.text("wayinfer").ok_or_else(|| bad("the header has no key wayinfer".into()))?;
    serde_json::from_str(text).map_err(|e| bad(e.to_string()))
}

/// A tensor of this shape.
fn values<T: Element>(file: &TensorFile, name: &str, wanted: &[usize]) -> Result<Vec<T>, GoldenError> {
    let tensor = file.tensor(name)?;
    if tensor.shape != wanted {
        return Err(shape(file, name, wanted.to_vec()));
    }
    Ok(tensor.values)
}

fn shape(file: &TensorFile, name: &str, wanted: Vec<usize>) -> GoldenError {
    let found = file.shape(name).unwrap_or_default().to_vec();
    GoldenError::Shape { path: file.path().to_owned(), name: name.to_owned(), found, wanted }
}

fn digests(bytes: Vec<u8>) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|digest| u64::from_le_bytes(*digest)).collect()
}

/// FNV-1a of 64 bits (Fowler, Noll, Vo) over the values' bytes; any NaN counts as the same.
pub(super) fn digest(values: &[f32]) -> u64 {
    let bits = |v: &f32| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() };
    let bytes = values.iter().flat_map(|v| bits(v).to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
