//! Hashes as text, one a line: what a model should have.
//!
//! A manifest of its own kind has lines of these forms, with a blank between the fields and `-` for a hash
//! that was not made:
//!
//! ```text
//! # a comment
//! file XXH3 SHA256 BYTES NAME
//! metadata XXH3 SHA256
//! model XXH3 SHA256
//! tensor XXH3 SHA256 TYPE SIZExSIZE NAME
//! ```
//!
//! In a name, a backslash is `\\` and what is neither ASCII nor a letter or digit is `\u{HEX}`. Lines of
//! sha256sum's two forms (`HASH  NAME` and `SHA256 (NAME) = HASH`) are read too, and so is a file that is the
//! pointer of Git LFS, which has the hash of one file without its name.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::digest::Digests;
use super::hash::ModelDigests;
use crate::gguf::{Gguf, MAX_DIMS, TensorInfo, TensorType};

/// Longest line, bytes: the longest path that systems have, each character escaped.
const MAX_LINE: u64 = 64 << 10;
/// Most bytes in all: as many tensors as a model may have, with the longest names.
const MAX_BYTES: u64 = 64 << 20;
/// Most entries.
const MAX_ENTRIES: usize = 1 << 18;
const LFS: &str = "version https://git-lfs.github.com/spec/v1";

/// What a manifest says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// `None` in a pointer of Git LFS.
    pub name: Option<String>,
    pub bytes: Option<u64>,
    pub digests: Digests,
    /// Whether the manifest is of one model, which must have the file: sha256sum's may list others.
    pub is_of_model: bool,
}

/// What a manifest says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    pub name: String,
    pub ty: TensorType,
    pub dims: Vec<u64>,
    pub digests: Digests,
}

/// What a model should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    pub files: Vec<FileEntry>,
    pub metadata: Option<Digests>,
    pub model: Option<Digests>,
    pub tensors: Vec<TensorEntry>,
}

/// A manifest that cannot be used, and the line, from 1.
#[derive(Debug, Error)]
#[error("{}{}: {kind}", path.display(), line.map_or_else(String::new, |n| format!(", line {n}")))]
pub struct ManifestError {
    pub path: PathBuf,
    pub line: Option<usize>,
    #[source]
    pub kind: ManifestErrorKind,
}

/// What is wrong with it.
#[derive(Debug, Error)]
pub enum ManifestErrorKind {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("has no hash at all")]
    Empty,
    #[error("over {0} bytes")]
    TooLong(u64),
    #[error("over {MAX_ENTRIES} hashes")]
    TooMany,
    #[error("not UTF-8")]
    NotUtf8,
    #[error(
        "neither a line of `wayinfer hash` (file, tensor, metadata or model) nor one of sha256sum \
         (HASH  NAME)"
    )]
    UnknownLine,
    #[error("a {0} line ends before its {1}")]
    Missing(&'static str, &'static str),
    #[error("{found:?} is no {algorithm} hash: {digits} hexadecimal digits are needed")]
    Hash { algorithm: &'static str, digits: usize, found: String },
    #[error("a line without any hash")]
    NoHash,
    #[error("{found:?} is no {what}")]
    Field { what: &'static str, found: String },
    #[error("a name that is escaped wrongly: {0:?}")]
    Escape(String),
    #[error("{0} is there twice")]
    Twice(String),
    #[error("a pointer of Git LFS without its hash (oid sha256:..)")]
    Pointer,
}

type Kind = ManifestErrorKind;

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// What cannot be read, what is no manifest, and names that are there twice, with the line.
    pub fn open(path: &Path) -> Result<Manifest, ManifestError> {
        let error = |line, kind| ManifestError { path: path.to_owned(), line, kind };
        let file = File::open(path).map_err(|e| error(None, e.into()))?;
        Manifest::read(BufReader::new(file)).map_err(|(line, kind)| error(line, kind))
    }

    /// Reads a manifest; an error comes with the number of its line.
    fn read(input: impl BufRead) -> Result<Manifest, (Option<usize>, ManifestErrorKind)> {
        let mut input = input.take(MAX_BYTES + 1);
        let mut parser = Parser::default();
        let (mut line, mut number) = (Vec::new(), 0);
        loop {
            line.clear();
            number += 1;
            let at = |kind| (Some(number), kind);
            let n =
                (&mut input).take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(|e| (None, e.into()))?;
            if n == 0 {
                break;
            }
            if input.limit() == 0 {
                return Err((None, Kind::TooLong(MAX_BYTES)));
            }
            if n as u64 > MAX_LINE {
                return Err(at(Kind::TooLong(MAX_LINE)));
            }
            let text = std::str::from_utf8(&line).map_err(|_| at(Kind::NotUtf8))?;
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            // Some editors begin a file with this mark.
            let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
            parser.line(number, text).map_err(at)?;
        }
        parser.finish().map_err(|kind| (None, kind))
    }
}

/// What has been read so far.
#[derive(Default)]
struct Parser {
    manifest: Manifest,
    /// Names by kind.
    seen: HashSet<(&'static str, String)>,
    is_pointer: bool,
}

impl Parser {
    fn line(&mut self, number: usize, line: &str) -> Result<(), ManifestErrorKind> {
        if number == 1 && line.trim_end() == LFS {
            self.is_pointer = true;
            self.manifest.files.push(FileEntry {
                name: None,
                bytes: None,
                digests: Digests::default(),
                is_of_model: true,
            });
            return Ok(());
        }
        if self.is_pointer {
            return self.pointer_line(line);
        }
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let known = self.own_line(line)? || self.tagged_line(line)? || self.sum_line(line)?;
        if known { Ok(()) } else { Err(Kind::UnknownLine) }
    }

    fn finish(self) -> Result<Manifest, ManifestErrorKind> {
        let Manifest { files, metadata, model, tensors } = &self.manifest;
        if self.is_pointer && files.iter().any(|file| file.digests.sha256.is_none()) {
            return Err(Kind::Pointer);
        }
        if files.is_empty() && metadata.is_none() && model.is_none() && tensors.is_empty() {
            return Err(Kind::Empty);
        }
        Ok(self.manifest)
    }

    /// Refuses a second entry of the same name.
    fn once(&mut self, kind: &'static str, name: &str) -> Result<(), ManifestErrorKind> {
        if self.seen.len() >= MAX_ENTRIES {
            return Err(Kind::TooMany);
        }
        match self.seen.insert((kind, name.to_owned())) {
            true => Ok(()),
            false if name.is_empty() => Err(Kind::Twice(kind.to_owned())),
            false => Err(Kind::Twice(format!("{kind} {:?}", shown(name)))),
        }
    }

    /// `oid sha256:HASH`, `size BYTES`, and what else a pointer may have.
    fn pointer_line(&mut self, line: &str) -> Result<(), ManifestErrorKind> {
        let file = &mut self.manifest.files[0];
        if let Some(hash) = line.strip_prefix("oid sha256:") {
            file.digests.sha256 = Some(sha256(hash.trim_end())?);
            self.once("oid", "")?;
        } else if let Some(bytes) = line.strip_prefix("size ") {
            file.bytes = Some(number("size", bytes.trim_end())?);
            self.once("size", "")?;
        }
        Ok(())
    }

    /// A line as [`write_manifest`] writes it; whether it is one.
    fn own_line(&mut self, line: &str) -> Result<bool, ManifestErrorKind> {
        let mut fields = Fields { kind: "", rest: Some(line) };
        fields.kind = match fields.next("kind")? {
            "file" => "file",
            "metadata" => "metadata",
            "model" => "model",
            "tensor" => "tensor",
            _ => return Ok(false),
        };
        let digests = fields.digests()?;
        match fields.kind {
            "file" => {
                let bytes = number("number of bytes", fields.next("bytes")?)?;
                let name = fields.name()?;
                self.once("file", &name)?;
                let (name, bytes) = (Some(name), Some(bytes));
                self.manifest.files.push(FileEntry { name, bytes, digests, is_of_model: true });
            }
            "tensor" => {
                let (ty, dims) = (tensor_type(fields.next("type")?)?, dims(fields.next("shape")?)?);
                let name = fields.name()?;
                self.once("tensor", &name)?;
                self.manifest.tensors.push(TensorEntry { name, ty, dims, digests });
            }
            kind => {
                if let Some(rest) = fields.rest {
                    return Err(Kind::Field { what: "end of the line", found: shown(rest) });
                }
                self.once(kind, "")?;
                let place = match kind {
                    "metadata" => &mut self.manifest.metadata,
                    _ => &mut self.manifest.model,
                };
                *place = Some(digests);
            }
        }
        Ok(true)
    }

    /// `SHA256 (NAME) = HASH`; whether it is such a line.
    fn tagged_line(&mut self, line: &str) -> Result<bool, ManifestErrorKind> {
        let (is_escaped, line) = escaped_line(line);
        let Some((name, hash)) = line.strip_prefix("SHA256 (").and_then(|rest| rest.rsplit_once(") = "))
        else {
            return Ok(false);
        };
        self.sum(name, is_escaped, hash)?;
        Ok(true)
    }

    /// `HASH  NAME` or `HASH *NAME`; whether it is such a line.
    fn sum_line(&mut self, line: &str) -> Result<bool, ManifestErrorKind> {
        let (is_escaped, line) = escaped_line(line);
        let digits = line.bytes().take_while(u8::is_ascii_hexdigit).count();
        let (hash, rest) = line.split_at(digits);
        let Some(name) = rest.strip_prefix("  ").or_else(|| rest.strip_prefix(" *")) else {
            return Ok(false);
        };
        if digits == 0 || name.is_empty() {
            return Ok(false);
        }
        self.sum(name, is_escaped, hash)?;
        Ok(true)
    }

    fn sum(&mut self, name: &str, is_escaped: bool, hash: &str) -> Result<(), ManifestErrorKind> {
        let sha256 = Some(sha256(hash)?);
        let name = if is_escaped { sum_name(name)? } else { name.to_owned() };
        self.once("file", &name)?;
        let digests = Digests { sha256, ..Digests::default() };
        let name = Some(name);
        self.manifest.files.push(FileEntry { name, bytes: None, digests, is_of_model: false });
        Ok(())
    }
}

/// Fields of a line, with a blank between two.
struct Fields<'a> {
    kind: &'static str,
    rest: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn next(&mut self, what: &'static str) -> Result<&'a str, ManifestErrorKind> {
        let rest = self.rest.ok_or(Kind::Missing(self.kind, what))?;
        let (field, rest) = rest.split_once(' ').map_or((rest, None), |(field, rest)| (field, Some(rest)));
        self.rest = rest;
        Ok(field)
    }

    fn digests(&mut self) -> Result<Digests, ManifestErrorKind> {
        let (xxh3, sha256) = (self.next("xxh3")?, self.next("sha256")?);
        let digests = Digests {
            xxh3: (xxh3 != "-").then(|| self::xxh3(xxh3)).transpose()?,
            sha256: (sha256 != "-").then(|| self::sha256(sha256)).transpose()?,
        };
        if digests == Digests::default() { Err(Kind::NoHash) } else { Ok(digests) }
    }

    /// The rest of the line.
    fn name(&mut self) -> Result<String, ManifestErrorKind> {
        let name = self.rest.take().ok_or(Kind::Missing(self.kind, "name"))?;
        unescaped(name).ok_or_else(|| Kind::Escape(shown(name)))
    }
}

/// So much of a text from a manifest as a message shows.
fn shown(text: &str) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

fn hash_error(algorithm: &'static str, digits: usize, found: &str) -> ManifestErrorKind {
    Kind::Hash { algorithm, digits, found: shown(found) }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn xxh3(text: &str) -> Result<u64, ManifestErrorKind> {
    let hash = u64::from_str_radix(text, 16).ok().filter(|_| is_hex(text, 16));
    hash.ok_or_else(|| hash_error("xxh3", 16, text))
}

fn sha256(text: &str) -> Result<[u8; 32], ManifestErrorKind> {
    if !is_hex(text, 64) {
        return Err(hash_error("sha256", 64, text));
    }
    // All digits are hexadecimal.
    let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap_or_default();
    Ok(std::array::from_fn(byte))
}

fn number(what: &'static str, text: &str) -> Result<u64, ManifestErrorKind> {
    let number = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    number.ok_or_else(|| Kind::Field { what, found: shown(text) })
}

fn tensor_type(text: &str) -> Result<TensorType, ManifestErrorKind> {
    let ty = TensorType::ALL.iter().find(|ty| ty.name() == text).copied();
    ty.ok_or_else(|| Kind::Field { what: "tensor type", found: shown(text) })
}

fn dims(text: &str) -> Result<Vec<u64>, ManifestErrorKind> {
    let sizes: Result<Vec<u64>, _> = text.split('x').take(MAX_DIMS + 1).map(|n| number("size", n)).collect();
    let sizes = sizes.ok().filter(|sizes| sizes.len() <= MAX_DIMS);
    sizes.ok_or_else(|| Kind::Field { what: "shape", found: shown(text) })
}

/// sha256sum begins a line with a backslash where the name in it is escaped.
fn escaped_line(line: &str) -> (bool, &str) {
    line.strip_prefix('\\').map_or((false, line), |line| (true, line))
}

/// A name that sha256sum has escaped.
fn sum_name(name: &str) -> Result<String, ManifestErrorKind> {
    let (mut out, mut chars) = (String::with_capacity(name.len()), name.chars());
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next() } else { None };
        out.push(match (c, escaped) {
            ('\\', Some('n')) => '\n',
            ('\\', Some('r')) => '\r',
            ('\\', Some('\\')) => '\\',
            ('\\', _) => return Err(Kind::Escape(shown(name))),
            (c, _) => c,
        });
    }
    Ok(out)
}

/// A name as a manifest has it: one line, and nothing in it that would control a terminal.
fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            c if c == ' ' || c.is_ascii_graphic() || c.is_alphanumeric() => out.push(c),
            c => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32); // a String takes all that is written
            }
        }
    }
    out
}

/// The name that is [`escaped`] so; `None` where there is none.
fn unescaped(text: &str) -> Option<String> {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        rest = match after.strip_prefix('\\') {
            Some(rest) => {
                out.push('\\');
                rest
            }
            None => {
                let (code, rest) = after.strip_prefix("u{")?.split_once('}')?;
                let code = u32::from_str_radix(code, 16).ok().filter(|_| is_hex(code, code.len()))?;
                out.push(char::from_u32(code)?);
                rest
            }
        };
    }
    out.push_str(rest);
    Some(out)
}

/// Writes a model's hashes as a manifest.
///
/// # Errors
/// What the system says.
pub fn write_manifest(gguf: &Gguf, digests: &ModelDigests, out: &mut impl Write) -> io::Result<()> {
    use super::Algorithm::{Sha256, Xxh3};
    let hashes = |digests: &Digests| {
        let hex = |algorithm| digests.hex(algorithm).unwrap_or_else(|| "-".to_owned());
        format!("{} {}", hex(Xxh3), hex(Sha256))
    };
    writeln!(out, "# made by `wayinfer hash`; its --check takes it. First xxh3, then sha256")?;
    for file in &digests.files {
        let part = &gguf.parts[file.part];
        writeln!(
            out,
            "file {} {} {}",
            hashes(&file.digests),
            part.file_bytes,
            escaped(&file_name(&part.path))
        )?;
    }
    for (kind, digests) in [("metadata", &digests.metadata), ("model", &digests.model)] {
        if let Some(digests) = digests {
            writeln!(out, "{kind} {}", hashes(digests))?;
        }
    }
    for tensor in &digests.tensors {
        let TensorInfo { name, ty, dims, .. } = &gguf.tensors[tensor.index];
        let dims = shape(dims);
        writeln!(out, "tensor {} {ty} {dims} {}", hashes(&tensor.digests), escaped(name))?;
    }
    Ok(())
}

/// The name by which a manifest knows a file: that within its folder.
pub fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Sizes as a manifest has them, the fastest-moving first.
pub fn shape(dims: &[u64]) -> String {
    dims.iter().map(u64::to_string).collect::<Vec<_>>().join("x")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(text: &str) -> Result<Manifest, String> {
        Manifest::read(text.as_bytes()).map_err(|(line, kind)| format!("{}: {kind}", line.unwrap_or(0)))
    }

    #[test]
    fn lines_of_every_form() {
        let own = format!(
            "\u{feff}# c\r\n\nfile - {SHA} 7 a b\\\\\\u{{a}}.gguf\r\nmetadata 00000000000000ff -\n\
             model 00000000000000FF {SHA}\ntensor 00000000000000ff - Q4_K 256x3 x\n"
        );
        let manifest = read(&own).unwrap();
        assert_eq!(manifest.files[0].name.as_deref(), Some("a b\\\n.gguf"));
        assert_eq!((manifest.files[0].bytes, manifest.files[0].digests.xxh3), (Some(7), None));
        assert_eq!(manifest.metadata, Some(Digests { xxh3: Some(255), sha256: None }));
        assert_eq!(manifest.model.unwrap().algorithms(), super::super::Algorithms::BOTH);
        assert_eq!(
            (manifest.tensors[0].ty, &manifest.tensors[0].dims[..]),
            (TensorType::Q4_K, &[256, 3][..])
        );
        let upper = SHA.to_uppercase();
        let sums =
            read(&format!("{SHA}  a b\n{upper} *./c\n\\{SHA}  d\\ne\\\\\nSHA256 (f (1)) = {SHA}")).unwrap();
        let names: Vec<_> = sums.files.iter().map(|file| file.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["a b", "./c", "d\ne\\", "f (1)"]);
        assert!(sums.files.iter().all(|file| file.digests == sums.files[0].digests));
        let pointer = read(&format!("{LFS}\noid sha256:{SHA}\nsize 0\n")).unwrap();
        assert_eq!((pointer.files[0].name.as_ref(), pointer.files[0].bytes), (None, Some(0)));
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_its_line() {
        let long = "a".repeat(MAX_LINE as usize + 1);
        let cases = [
            (String::new(), "0: has no hash at all"),
            ("# nothing\n\n".into(), "0: has no hash at all"),
            ("hello\n".into(), "1: neither a line"),
            (format!("{SHA}\n"), "1: neither a line"),
            (format!("{SHA} name\n"), "1: neither a line"),
            (format!("{SHA}  \n"), "1: neither a line"),
            (
                "d41d8cd98f00b204e9800998ecf8427e  a\n".into(),
                "1: \"d41d8cd98f00b204e9800998ecf8427e\" is no sha256",
            ),
            (format!("{}g  a\n", &SHA[1..]), "1: neither a line"),
            (format!("\\{SHA}  a\\x\n"), "1: a name that is escaped wrongly"),
            (format!("\n{SHA}  a\n{SHA}  a\n"), "3: file \"a\" is there twice"),
            (format!("model - {SHA}\nmodel - {SHA}\n"), "2: model is there twice"),
            (
                format!("tensor - {SHA} F32 1 a\ntensor - {SHA} F32 1 \\u{{61}}\n"),
                "2: tensor \"a\" is there twice",
            ),
            ("model - -\n".into(), "1: a line without any hash"),
            ("model\n".into(), "1: a model line ends before its xxh3"),
            (format!("model - {SHA} x\n"), "1: \"x\" is no end of the line"),
            (format!("model 1 {SHA}\n"), "1: \"1\" is no xxh3 hash: 16"),
            (format!("model +0000000000000ff {SHA}\n"), "is no xxh3 hash"),
            (format!("file - {SHA} +1 a\n"), "1: \"+1\" is no number of bytes"),
            (format!("file - {SHA} 99999999999999999999 a\n"), "is no number of bytes"),
            (format!("file - {SHA} 1\n"), "1: a file line ends before its name"),
            (format!("file - {SHA} 1 \\u{{d800}}\n"), "escaped wrongly"),
            (format!("file - {SHA} 1 \\u{{+41}}\n"), "escaped wrongly"),
            (format!("tensor - {SHA} Q9 1 a\n"), "1: \"Q9\" is no tensor type"),
            (format!("tensor - {SHA} F32 1x a\n"), "1: \"1x\" is no shape"),
            (format!("tensor - {SHA} F32 1x1x1x1x1 a\n"), "is no shape"),
            (format!("tensor - {SHA} F32 1\n"), "1: a tensor line ends before its name"),
            (format!("#\n{long}"), "2: over 65536 bytes"),
            (format!("{LFS}\nsize 1\n"), "0: a pointer of Git LFS without its hash"),
            (format!("{LFS}\noid sha256:12\n"), "2: \"12\" is no sha256"),
            (format!("{LFS}\noid sha256:{SHA}\noid sha256:{SHA}\n"), "3: oid is there twice"),
        ];
        for (text, wanted) in cases {
            let error = read(&text).unwrap_err();
            assert!(error.contains(wanted), "{text:?}: {error}");
            assert!(error.len() < 400, "{error}");
        }
        let error = Manifest::read(&b"ok\xff\n"[..]).unwrap_err();
        assert!(matches!(error, (Some(1), Kind::NotUtf8)));
        // What has no end is not read to it.
        let comments =
            format!("#{}\n", "a".repeat(MAX_LINE as usize - 2)).repeat((MAX_BYTES / MAX_LINE) as usize + 1);
        assert_eq!(read(&comments).unwrap_err(), format!("0: over {MAX_BYTES} bytes"));
        let many: String = (0..=MAX_ENTRIES).map(|i| format!("{SHA}  {i}\n")).collect();
        assert_eq!(read(&many).unwrap_err(), format!("{}: over {MAX_ENTRIES} hashes", MAX_ENTRIES + 1));
    }

    #[test]
    fn names_come_back_as_they_were() {
        for name in ["", " a ", "\\u{a}", "é漢 x", "\u{202e}\n\r\t\u{1b}[31m", "\\\\"] {
            assert_eq!(unescaped(&escaped(name)).as_deref(), Some(name));
            assert!(!escaped(name).chars().any(|c| c.is_control() || c == '\u{202e}'));
        }
    }
}
