//! Which of a repository's files a name means.

use std::collections::BTreeMap;

use super::HubError;
use super::name::{ModelName, Selector, is_gguf};

/// The quantisation of a name that says none, as llama.cpp has it.
const DEFAULT: &str = "Q4_K_M";

/// Most files of a split.
const MAX_PARTS: usize = 1024;

/// A model: one file, or all of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its quantisation as its name has it, where that says any.
    pub quant: Option<String>,
    /// Its files, in the split's order: paths within the repository.
    pub files: Vec<String>,
    /// It serves a model (a projector of images, an importance matrix): only its file's name means it.
    pub is_aid: bool,
}

impl Choice {
    /// What it is listed as: its quantisation, or its first file.
    pub fn label(&self) -> &str {
        self.quant.as_deref().unwrap_or(&self.files[0])
    }
}

/// The models among a repository's files. A split of which parts are missing has fewer files than its names
/// say: see [`whole`].
pub fn models<'a>(files: impl Iterator<Item = &'a str>) -> Vec<Choice> {
    let mut found: BTreeMap<(&str, usize), Vec<(usize, &str)>> = BTreeMap::new();
    for file in files.filter(|file| is_gguf(file)) {
        let (stem, part, count) = split(file);
        found.entry((stem, count)).or_default().push((part, file));
    }
    let choice = |((stem, _), mut parts): ((&str, usize), Vec<(usize, &str)>)| {
        parts.sort();
        let files = parts.into_iter().map(|(_, file)| file.to_owned()).collect();
        Choice { quant: quant(stem), files, is_aid: is_aid(stem) }
    };
    found.into_iter().map(choice).collect()
}

fn is_aid(stem: &str) -> bool {
    let name = stem.rsplit('/').next().unwrap_or(stem).to_ascii_lowercase();
    name.contains("mmproj") || name.contains("imatrix")
}

/// The name without `-00001-of-00003.gguf`, the number of the part and that of all parts: 1 of 1 where it is
/// none.
fn split(file: &str) -> (&str, usize, usize) {
    let stem = &file[..file.len() - ".gguf".len()];
    let number = |text: &str| {
        let digits = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<usize>().ok()).flatten()
    };
    let parts = || {
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (name, part) = rest.rsplit_once('-')?;
        let (part, count) = (number(part)?, number(count)?);
        (1..=count).contains(&part).then_some((name, part, count))
    };
    parts().unwrap_or((stem, 1, 1))
}

/// The quantisation that a file's name says, its ending left out: `Q4_K_M`, `UD-IQ2_XXS`, `BF16`, `MXFP4`.
fn quant(stem: &str) -> Option<String> {
    let name = stem.rsplit('/').next().unwrap_or(stem);
    let starts = name.char_indices().map(|(at, _)| at).rev();
    let starts = starts.filter(|&at| at == 0 || !name.as_bytes()[at - 1].is_ascii_alphanumeric());
    for at in starts {
        let rest = &name[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let word = rest[..end].to_ascii_uppercase();
        if is_quantisation(&word) {
            let dynamic = name[..at].to_ascii_uppercase().ends_with("UD-");
            return Some(if dynamic { format!("UD-{word}") } else { word });
        }
    }
    None
}

/// `Q4_K_M`, `IQ2_XXS`, `TQ1_0`, `F16`, ..
fn is_quantisation(word: &str) -> bool {
    if ["BF16", "F16", "F32", "F64", "FP16", "FP32"].contains(&word) {
        return true;
    }
    let digits = ["IQ", "TQ", "Q", "MXFP", "NVFP"].iter().find_map(|kind| word.strip_prefix(kind));
    digits.is_some_and(|rest| {
        let end = rest.find('_').unwrap_or(rest.len());
        let is_number = (1..=2).contains(&end) && rest[..end].bytes().all(|b| b.is_ascii_digit());
        is_number && rest[end..].split('_').skip(1).all(|part| !part.is_empty())
    })
}

/// The one model that a name means.
///
/// # Errors
/// None, or several.
pub fn choose(name: &ModelName, mut models: Vec<Choice>) -> Result<Choice, HubError> {
    models.retain(|choice| !choice.is_aid || matches!(name.selector, Selector::File(_)));
    if models.is_empty() {
        return Err(HubError::NoGguf { repo: name.repo.clone(), aside: 0 });
    }
    let mut matching = matching(&name.selector, &models);
    match (matching.len(), &name.selector) {
        (1, _) => return whole(name, matching.remove(0).clone()),
        (0, Selector::File(file)) => {
            return Err(HubError::NoFile { repo: name.repo.clone(), file: file.clone() });
        }
        (0, Selector::Default) if models.len() == 1 => {
            return whole(name, models.remove(0));
        }
        _ => {}
    }
    let labels = |models: &[&Choice], by_file: bool| {
        let label =
            |choice: &&Choice| if by_file { choice.files[0].clone() } else { choice.label().to_owned() };
        let mut labels: Vec<_> = models.iter().map(label).collect();
        labels.dedup();
        labels
    };
    if matching.is_empty() {
        let wanted_quant = match &name.selector {
            Selector::Quant(quant) => Some(quant.clone()),
            _ => None,
        };
        let all: Vec<_> = models.iter().collect();
        return Err(HubError::NoMatch {
            name: Box::new(name.clone()),
            wanted_quant,
            choices: labels(&all, false),
        });
    }
    Err(HubError::Ambiguous { name: Box::new(name.clone()), choices: labels(&matching, true) })
}

/// The models that a name means; where one has just this quantisation, those alone.
pub fn matching<'a>(selector: &Selector, models: &'a [Choice]) -> Vec<&'a Choice> {
    let quant = match selector {
        Selector::Default => DEFAULT,
        Selector::Quant(quant) => quant,
        Selector::File(path) => {
            return models.iter().filter(|choice| choice.files.contains(path)).collect();
        }
    };
    let is_exact = |choice: &&Choice| choice.quant.as_deref().is_some_and(|q| q.eq_ignore_ascii_case(quant));
    let models = || models.iter().filter(|choice| !choice.is_aid);
    let exact: Vec<_> = models().filter(is_exact).collect();
    if !exact.is_empty() {
        return exact;
    }
    models().filter(|choice| has_word(&choice.files[0], quant)).collect()
}

/// Whether a file's name has this text as a word of its own, in whatever case.
fn has_word(file: &str, word: &str) -> bool {
    let (stem, word) = (split(file).0.to_ascii_lowercase(), word.to_ascii_lowercase());
    let is_part = |b: u8| b.is_ascii_alphanumeric();
    stem.match_indices(&word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|at| stem.as_bytes()[at]);
        let after = stem.as_bytes().get(at + word.len());
        // Q4_K is no part of Q4_K_M.
        !before.is_some_and(is_part) && !after.is_some_and(|&b| is_part(b) || b == b'_')
    })
}

/// A model of which no part is missing.
fn whole(name: &ModelName, choice: Choice) -> Result<Choice, HubError> {
    let file = &choice.files[0];
    let count = split(file).2;
    let fail = || (name.repo.clone(), file.clone());
    if count > MAX_PARTS {
        let (repo, file) = fail();
        return Err(HubError::Parts { repo, file, count, most: MAX_PARTS });
    }
    let numbers: Vec<_> = choice.files.iter().map(|file| split(file).1).collect();
    match (1..=count).find(|part| !numbers.contains(part)) {
        Some(part) => {
            let (repo, file) = fail();
            Err(HubError::NoPart { repo, file, part, count })
        }
        None => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 12] = [
        "README.md",
        "M-Q4_K_M.gguf",
        "M-UD-Q4_K_M.gguf",
        "M-UD-Q4_K_XL.gguf",
        "M-IQ4_XS.gguf",
        "M.q8_0.gguf",
        "mmproj-M-F16.gguf",
        "BF16/M-BF16-00002-of-00002.gguf",
        "BF16/M-BF16-00001-of-00002.gguf",
        "M-MXFP4_MOE.gguf",
        "imatrix_unsloth.gguf",
        "other-00001-of-00002.gguf",
    ];

    fn chosen(name: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let name = format!("a/b{name}").parse().unwrap();
        let choice = choose(&name, models(files.iter().copied()));
        choice.map(|choice| choice.files).map_err(|error| error.to_string())
    }

    #[test]
    fn quantisations_are_read_from_names() {
        for (name, wanted) in [
            ("Model-7B-Q4_K_M", Some("Q4_K_M")),
            ("model.q4_0", Some("Q4_0")),
            ("model_iq2_xxs", Some("IQ2_XXS")),
            ("M-UD-Q2_K_XL", Some("UD-Q2_K_XL")),
            ("Qwen3-0.6B-f16", Some("F16")),
            ("gpt-oss-20b-mxfp4", Some("MXFP4")),
            ("Q4/model", None),
            ("IQ-model", None),
            ("Model-7B", None),
        ] {
            assert_eq!(quant(name).as_deref(), wanted, "{name}");
        }
    }

    #[test]
    fn a_name_means_one_model() {
        let one = |file: &str| Ok(vec![file.to_owned()]);
        assert_eq!(chosen("", &FILES), one("M-Q4_K_M.gguf"));
        assert_eq!(chosen(":q4_k_m", &FILES), one("M-Q4_K_M.gguf"));
        assert_eq!(chosen(":UD-Q4_K_M", &FILES), one("M-UD-Q4_K_M.gguf"));
        assert_eq!(chosen(":Q4_K_XL", &FILES), one("M-UD-Q4_K_XL.gguf"));
        assert_eq!(chosen(":Q8_0", &FILES), one("M.q8_0.gguf"));
        assert_eq!(chosen(":mxfp4_moe", &FILES), one("M-MXFP4_MOE.gguf"));
        assert_eq!(chosen("/M-IQ4_XS.gguf", &FILES), one("M-IQ4_XS.gguf"));
        assert_eq!(chosen("/mmproj-M-F16.gguf", &FILES), one("mmproj-M-F16.gguf"));
        let split = ["BF16/M-BF16-00001-of-00002.gguf", "BF16/M-BF16-00002-of-00002.gguf"].map(str::to_owned);
        assert_eq!(chosen(":bf16", &FILES), Ok(split.to_vec()));
        assert_eq!(chosen("/BF16/M-BF16-00002-of-00002.gguf", &FILES), Ok(split.to_vec()));
        assert_eq!(chosen("", &["only-Q2_K.gguf", "mmproj.gguf"]), one("only-Q2_K.gguf"));
        assert_eq!(chosen("", &["tiny.gguf"]), one("tiny.gguf"));
    }

    #[test]
    fn what_means_none_or_several_lists_what_is_there() {
        let error = chosen(":Q4_K", &FILES).unwrap_err();
        assert!(error.contains("\"Q4_K\"") && error.contains("Q4_K_M, UD-Q4_K_M"), "{error}");
        let error = chosen(":Q4_XS", &FILES).unwrap_err();
        assert!(error.contains("IQ4_XS"), "{error}");
        let error = chosen("", &["x-Q2_K.gguf", "x-Q8_0.gguf"]).unwrap_err();
        assert!(error.contains("none is Q4_K_M; there are Q2_K, Q8_0"), "{error}");
        let error = chosen("", &["x-Q4_K_M.gguf", "y-Q4_K_M.gguf"]).unwrap_err();
        assert!(error.contains("any of x-Q4_K_M.gguf, y-Q4_K_M.gguf"), "{error}");
        let error = chosen("/other-00001-of-00002.gguf", &FILES).unwrap_err();
        assert!(error.contains("part 2 is missing"), "{error}");
        assert!(chosen("", &["a.txt"]).unwrap_err().contains("no GGUF"));
        let error = chosen("", &["x-00001-of-99999.gguf"]).unwrap_err();
        assert!(error.contains("99999 files, where at most"), "{error}");
    }
}
