//! Names of models on the hub.

use std::fmt;
use std::str::FromStr;

use super::HubError;

/// What all names begin with where a file could stand.
pub const PREFIX: &str = "hf:";

/// Longest part of a path, as most file systems have it, and longest path, bytes.
const MAX_PART: usize = 255;
const MAX_PATH: usize = 1024;

/// A repository, `USER/REPO`. Both parts are letters, digits, `.`, `_` and `-`, and make no other path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RepoName {
    user: String,
    repo: String,
}

impl RepoName {
    /// From its two parts.
    pub fn new(user: &str, repo: &str) -> Option<RepoName> {
        let is_sound = |part: &str| {
            let chars = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            let ends = !part.starts_with(['.', '-']) && !part.ends_with(['.', '-']);
            // Two of them stand for a slash in the cache's folders.
            chars && ends && (1..=96).contains(&part.len()) && !part.contains("--") && !part.contains("..")
        };
        let sound = is_sound(user) && is_sound(repo);
        sound.then(|| RepoName { user: user.to_owned(), repo: repo.to_owned() })
    }

    /// The folder of the cache that is its.
    pub fn folder(&self) -> String {
        format!("models--{}--{}", self.user, self.repo)
    }

    /// The repository whose folder is called so.
    pub fn of_folder(name: &str) -> Option<RepoName> {
        let (user, repo) = name.strip_prefix("models--")?.split_once("--")?;
        RepoName::new(user, repo)
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.repo)
    }
}

/// Which of a repository's models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// That of Q4_K_M, or the only one.
    Default,
    /// That of a quantisation, in whatever case.
    Quant(String),
    /// That of a file.
    File(String),
}

/// `hf:USER/REPO`, `hf:USER/REPO:QUANT` or `hf:USER/REPO/FOLDER/FILE.gguf`, each with `@REVISION` behind the
/// repository or at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    pub repo: RepoName,
    /// A branch, tag or commit; `main` where there is none.
    pub revision: Option<String>,
    pub selector: Selector,
}

impl ModelName {
    /// What `-m` was given, where that is a name of the hub and not a file's.
    ///
    /// # Errors
    /// A text with the names' prefix that is none.
    pub fn of_argument(text: &str) -> Option<Result<ModelName, HubError>> {
        text.starts_with(PREFIX).then(|| text.parse())
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The same repository and revision, another model.
    pub fn with(&self, selector: Selector) -> ModelName {
        ModelName { selector, ..self.clone() }
    }
}

impl FromStr for ModelName {
    type Err = HubError;

    /// The prefix may be left out.
    fn from_str(text: &str) -> Result<ModelName, HubError> {
        let fail = |why| HubError::Name { name: text.to_owned(), why };
        let (before, after) = match text.strip_prefix(PREFIX).unwrap_or(text).split_once('@') {
            Some((before, after)) => (before, Some(after)),
            None => (text.strip_prefix(PREFIX).unwrap_or(text), None),
        };
        let (before, quant) = split_quant(before);
        let (revision, late_quant) = match after.map(split_quant) {
            Some((revision, quant)) => (Some(revision), quant),
            None => (None, None),
        };
        if quant.is_some() && late_quant.is_some() {
            return Err(fail("it names two quantisations"));
        }
        let quant = quant.or(late_quant);
        let mut parts = before.splitn(3, '/');
        let repo = parts.next().zip(parts.next()).and_then(|(user, repo)| RepoName::new(user, repo));
        let repo = repo.ok_or_else(|| fail("it begins with USER/REPO"))?;
        let selector = match (quant, parts.next()) {
            (None, None) => Selector::Default,
            (Some(quant), None) if is_quant(quant) => Selector::Quant(quant.to_owned()),
            (Some(_), None) => return Err(fail("a quantisation is letters, digits, '.', '_' and '-'")),
            (None, Some(path)) if is_safe_path(path) && is_gguf(path) => Selector::File(path.to_owned()),
            (None, Some(_)) => return Err(fail("a file of a repository is a path that ends in .gguf")),
            (Some(_), Some(_)) => return Err(fail("it names a file and a quantisation")),
        };
        if revision.is_some_and(|revision| !is_revision(revision)) {
            return Err(fail("a revision is the name of a branch or tag, or a commit"));
        }
        Ok(ModelName { repo, revision: revision.map(str::to_owned), selector })
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.repo)?;
        match &self.selector {
            Selector::Default => {}
            Selector::Quant(quant) => write!(f, ":{quant}")?,
            Selector::File(path) => write!(f, "/{path}")?,
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

fn split_quant(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(text, quant)| (text, Some(quant)))
}

fn is_quant(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_revision(text: &str) -> bool {
    let chars = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+/".contains(&b));
    chars && text.len() <= 200 && is_safe_path(text)
}

/// Whether a file's name ends as those of models do.
pub fn is_gguf(path: &str) -> bool {
    path.len() > 5 && path.as_bytes()[path.len() - 5..].eq_ignore_ascii_case(b".gguf")
}

/// Whether a path from elsewhere stays below the folder that it is joined to, on every system.
pub fn is_safe_path(path: &str) -> bool {
    path.len() <= MAX_PATH && path.split('/').all(is_safe_part)
}

fn is_safe_part(part: &str) -> bool {
    // Windows has devices by these names, whatever ending they have.
    let stem = part.split('.').next().unwrap_or_default().to_ascii_uppercase();
    let numbered = |name: &str| {
        let number = stem.strip_prefix(name).and_then(|number| number.parse::<u8>().ok());
        number.is_some_and(|number| number < 10)
    };
    let is_device =
        ["CON", "PRN", "AUX", "NUL"].contains(&stem.as_str()) || numbered("COM") || numbered("LPT");
    !part.is_empty()
        && part.len() <= MAX_PART
        && !part.ends_with(['.', ' '])
        && !part.contains(|c: char| c.is_control() || "\\:*?\"<>|".contains(c))
        && !is_device
}

/// Whether it names a commit: 40 hexadecimal digits.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Whether it is the SHA-256 of something: 64 hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, selector, revision) in [
            ("hf:some-one/Model.v1-GGUF", Selector::Default, None),
            ("hf:a/b:q4_k_m", Selector::Quant("q4_k_m".to_owned()), None),
            ("hf:a/b/c/d.gguf", Selector::File("c/d.gguf".to_owned()), None),
            ("hf:a/b@refs/pr/1", Selector::Default, Some("refs/pr/1")),
            ("hf:a/b:Q8_0@v1.0", Selector::Quant("Q8_0".to_owned()), Some("v1.0")),
        ] {
            let name: ModelName = text.parse().unwrap();
            assert_eq!((&name.selector, name.revision.as_deref()), (&selector, revision), "{text}");
            assert_eq!(name.to_string(), text);
            assert_eq!(text[3..].parse::<ModelName>().unwrap(), name);
        }
        assert_eq!("a/b@v1:Q8_0".parse::<ModelName>().unwrap(), "a/b:Q8_0@v1".parse::<ModelName>().unwrap());
        assert!(ModelName::of_argument("a/b").is_none() && ModelName::of_argument("hf:a/b").is_some());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "hf:",
            "hf:a",
            "hf:a/",
            "hf:/b",
            "hf:a/../b.gguf",
            "hf:../a/b.gguf",
            "hf:a/b/",
            "hf:a/b:",
            "hf:a/b/c.bin",
            "hf:a/b/../c.gguf",
            "hf:a/b//c.gguf",
            "hf:a/b/c\\d.gguf",
            "hf:a/b/nul.gguf",
            "hf:a/b:Q4/x",
            "hf:a/b:Q4@v1:Q8",
            "hf:a/b@",
            "hf:a/b@../x",
            "hf:a/b@a b",
            "hf:a--x/b",
            "hf:a/b c",
            "hf:.a/b",
            "hf:a/b-",
            "hf:a/b/c.gguf@v1:Q8_0",
            "hf:a/é",
            "https://example.com/a/b",
        ] {
            let found = text.parse::<ModelName>();
            assert!(matches!(&found, Err(HubError::Name { .. })), "{text:?}: {found:?}");
        }
    }

    #[test]
    fn folders_and_repositories_belong_together() {
        let repo = RepoName::new("a", "b-c").unwrap();
        assert_eq!(RepoName::of_folder(&repo.folder()), Some(repo));
        for folder in ["models--a", "datasets--a--b", "models--a--b--c", "models--..--b", "x"] {
            assert_eq!(RepoName::of_folder(folder), None, "{folder}");
        }
    }
}
