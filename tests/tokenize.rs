//! Tokenizers against the ids that the vocabularies' own tokenizers give, and `wayinfer tokenize` as a
//! program.

mod common;
#[path = "../src/text/naive_spm.rs"]
mod naive_spm;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::gguf::{GgufBuilder, Rng, small_model};
use common::{test_data, transcript, wayinfer};
use insta::assert_snapshot;
use naive_spm::naive_spm;
use tempfile::TempDir;
use tokenizers::normalizers::NFC;
use tokenizers::{NormalizedString, Normalizer};
use wayinfer::gguf::Gguf;
use wayinfer::text::{EncodeOptions, Tokenizer};

/// Vocabularies of the test data, and whether BOS is put before a text.
const VOCABULARIES: [(&str, bool); 7] = [
    ("deepseek-v3", false),
    ("ggml-vocab-gpt-2", false),
    ("ggml-vocab-llama-bpe", true),
    ("ggml-vocab-llama-spm", true),
    ("ggml-vocab-phi-3", true),
    ("ggml-vocab-qwen2", false),
    ("qwen3", false),
];

/// A folder that `scripts/text/vocabularies.py` has filled.
const MORE_VOCABULARIES: &str = "WAYINFER_VOCABULARIES";

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// A vocabulary with its texts and their ids.
struct Golden {
    path: PathBuf,
    cases: Vec<(String, Vec<u32>)>,
    /// The ids with special tokens parsed.
    parsed: Option<Vec<Vec<u32>>>,
}

impl Golden {
    fn read(path: PathBuf) -> Golden {
        let beside = |ending: &str| PathBuf::from(format!("{}.{ending}", path.display()));
        let ids = |text: String| -> Vec<Vec<u32>> {
            let line = |line: &str| {
                line.split_whitespace().map(|id| id.parse().expect("an id")).collect::<Vec<u32>>()
            };
            text.lines().map(line).collect()
        };
        let inputs = fs::read_to_string(beside("inp")).expect("texts");
        let outputs = ids(fs::read_to_string(beside("out")).expect("ids"));
        let mut texts: Vec<&str> = inputs.split(SEPARATOR).collect();
        // In some files a separator ends the last text too.
        if texts.len() == outputs.len() + 1 && texts.last() == Some(&"") {
            texts.pop();
        }
        assert_eq!(texts.len(), outputs.len(), "{}: texts and lines of ids", path.display());
        assert!(texts.len() >= 40, "{}: only {} texts", path.display(), texts.len());
        let parsed = fs::read_to_string(beside("parsed")).ok().map(ids);
        assert!(parsed.as_ref().is_none_or(|parsed| parsed.len() == texts.len()));
        let cases = texts.into_iter().map(str::to_owned).zip(outputs).collect();
        Golden { path, cases, parsed }
    }

    fn tokenizer(&self) -> Tokenizer {
        let gguf = Gguf::open(&self.path).expect("the vocabulary opens");
        Tokenizer::from_metadata(gguf.metadata(), None).expect("a tokenizer")
    }

    /// What differs from the ids that are wanted, a line each; and texts that do not come back.
    fn problems(&self) -> Vec<String> {
        let tokenizer = self.tokenizer();
        let mut problems = Vec::new();
        for (index, (text, wanted)) in self.cases.iter().enumerate() {
            let ids = tokenizer.encode(text, EncodeOptions::default()).expect("ids");
            if &ids != wanted {
                problems.push(format!("{text:?}: {ids:?}, not {wanted:?}"));
            }
            let back = tokenizer.decode(&ids, false);
            // U+2581 is a space in SentencePiece's vocabularies, and comes back as one.
            if &back != text && back != composed(text) && !text.contains('\u{2581}') {
                problems.push(format!("{text:?}: comes back as {back:?}"));
            }
            if let Some(parsed) = &self.parsed {
                let options = EncodeOptions { add_special: false, parse_special: true };
                let ids = tokenizer.encode(text, options).expect("ids");
                if ids != parsed[index] {
                    problems
                        .push(format!("{text:?}, special tokens parsed: {ids:?}, not {:?}", parsed[index]));
                }
            }
        }
        problems
    }
}

/// The text composed (NFC), as some families' tokenizers do first.
fn composed(text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    NFC.normalize(&mut normalized).expect("NFC takes every text");
    normalized.get().to_owned()
}

/// The vocabularies of a folder that have texts beside them.
fn goldens_in(folder: &Path) -> Vec<Golden> {
    let entries = fs::read_dir(folder).expect("a folder of vocabularies");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "gguf"));
    paths.sort();
    paths.into_iter().map(Golden::read).collect()
}

fn golden(name: &str) -> Option<Golden> {
    test_data(&format!("vocab/{name}.gguf")).map(Golden::read)
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

/// Runs `wayinfer tokenize -m MODEL ARGS` and gives its stdout; the run must succeed.
fn tokenize(dir: &Path, model: &Path, args: &[&str]) -> String {
    let model = model.to_str().expect("a path in UTF-8");
    let output = wayinfer(dir, 100, &[&["tokenize", "-m", model], args].concat());
    assert!(output.status.success(), "{}", transcript(&output));
    String::from_utf8(output.stdout).expect("stdout is UTF-8")
}

fn parse(json: &str) -> Vec<u32> {
    serde_json::from_str(json).expect("one array of ids")
}

/// Every vocabulary of a folder gives the ids that are wanted.
fn check_all(folder: &Path) -> Vec<Golden> {
    let goldens = goldens_in(folder);
    let mut all = Vec::new();
    for golden in &goldens {
        let problems = golden.problems();
        eprintln!("{}: {} texts, {} problems", golden.path.display(), golden.cases.len(), problems.len());
        all.extend(problems.iter().take(20).map(|line| format!("{}: {line}", golden.path.display())));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
    goldens
}

#[test]
fn every_text_of_every_vocabulary_has_its_ids_and_comes_back() {
    let Some(folder) = test_data("vocab") else { return };
    check_all(&folder);
    for (name, bos) in VOCABULARIES {
        let Some(golden) = golden(name) else { return };
        let tokenizer = golden.tokenizer();
        assert_eq!(tokenizer.adds_bos(), bos, "{name}");
        for (text, wanted) in &golden.cases {
            let with_special = EncodeOptions { add_special: true, parse_special: false };
            let all = tokenizer.encode(text, with_special).expect("ids");
            let first = tokenizer.bos().filter(|_| bos);
            assert_eq!(all, first.into_iter().chain(wanted.clone()).collect::<Vec<_>>(), "{name}: {text:?}");
        }
    }
}

#[test]
fn more_vocabularies_have_their_ids() {
    let Some(folder) = std::env::var_os(MORE_VOCABULARIES) else {
        common::say(&format!(
            "skipped: {MORE_VOCABULARIES} does not name a folder of scripts/text/vocabularies.py"
        ));
        return;
    };
    assert!(!check_all(Path::new(&folder)).is_empty(), "no vocabulary in {folder:?}");
}

/// Canary: ids that are another pre-tokenizer's, or of a text that is not composed, are found.
#[test]
fn wrong_ids_are_found() {
    let Some(mut golden) = golden("qwen3") else { return };
    assert!(golden.problems().is_empty());
    let wrong = golden.cases.iter().position(|(_, ids)| ids.len() > 3).expect("a long text");
    golden.cases[wrong].1.swap(0, 1);
    assert_eq!(golden.problems().len(), 1);
    golden.cases[wrong].1.swap(0, 1);
    golden.path = test_data("vocab/ggml-vocab-gpt-2.gguf").expect("the test data");
    assert!(golden.problems().len() > 20);
}

#[test]
fn random_texts_are_joined_as_the_definition_says() {
    let Some(golden) = golden("ggml-vocab-llama-spm") else { return };
    let gguf = Gguf::open(&golden.path).expect("the vocabulary opens");
    let tokenizer = Tokenizer::from_metadata(gguf.metadata(), None).expect("a tokenizer");
    let scores = gguf.metadata().get("tokenizer.ggml.scores").and_then(|v| v.as_packed()).expect("scores");
    let pieces: HashMap<&str, (u32, f32)> = (0u32..)
        .zip(scores.iter())
        .map(|(id, score)| (tokenizer.token_text(id).expect("a token"), id, score.as_f64().expect("a float")))
        .map(|(text, id, score)| (text, (id, score as f32)))
        .collect();
    assert_eq!(pieces.len(), 32_000);
    let byte = |b: u8| pieces[&format!("<0x{b:02X}>")[..]].0;
    // Parts of real texts in any order, so that pieces of all lengths and languages meet.
    let source: Vec<char> = golden.cases.iter().flat_map(|(text, _)| text.chars()).collect();
    let mut rng = Rng(5);
    for _ in 0..1500 {
        let mut text = String::new();
        for _ in 0..rng.below(12) {
            let start = rng.below(source.len() as u64) as usize;
            text.extend(&source[start..source.len().min(start + 1 + rng.below(7) as usize)]);
        }
        let ids = tokenizer.encode(&text, EncodeOptions::default()).expect("ids");
        let escaped = if text.is_empty() { String::new() } else { format!(" {text}").replace(' ', "▁") };
        assert_eq!(ids, naive_spm(&pieces, byte, &escaped), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn a_megabyte_without_a_break_comes_back() {
    const LEN: usize = 1 << 20;
    // About a second each; work that grows with the square of the length would take hours.
    let mut rng = Rng(9);
    let noise: Vec<u8> = (0..LEN).map(|_| rng.below(256) as u8).collect();
    let noise = String::from_utf8_lossy(&noise).into_owned();
    for name in ["ggml-vocab-llama-spm", "ggml-vocab-llama-bpe"] {
        let Some(golden) = golden(name) else { return };
        let tokenizer = golden.tokenizer();
        for (what, text) in [("spaces", " ".repeat(LEN)), ("a", "a".repeat(LEN)), ("noise", noise.clone())] {
            let ids = tokenizer.encode(&text, EncodeOptions::default()).expect("ids");
            assert!(tokenizer.decode(&ids, false) == text, "{name}: {what} comes back as something else");
        }
    }
}

#[test]
fn the_program_gives_the_same_ids_as_json() {
    let dir = folder();
    let file = dir.path().join("text.txt");
    for (name, bos) in VOCABULARIES {
        let Some(golden) = golden(name) else { return };
        // The longest text, and one that ends in a newline.
        let longest = golden.cases.iter().max_by_key(|(text, _)| text.len());
        let newline = golden.cases.iter().find(|(text, _)| text.ends_with('\n'));
        for (text, wanted) in [longest, newline].map(|case| case.expect("such a text")) {
            fs::write(&file, text).expect("a file");
            let printed = tokenize(dir.path(), &golden.path, &["--file", "text.txt", "--json"]);
            assert_eq!(printed.lines().count(), 1, "{name}");
            assert_eq!(&parse(&printed), wanted, "{name}: {text:?}");
            let back = tokenize(dir.path(), &golden.path, &["--decode", printed.trim()]);
            assert_eq!(back, composed(text), "{name}");
        }
        let (text, wanted) = longest.expect("such a text");
        let special = tokenize(dir.path(), &golden.path, &["--text", text, "--special", "--json"]);
        assert_eq!(parse(&special)[usize::from(bos)..], wanted[..], "{name}");
    }
}

#[test]
fn a_text_comes_from_an_option_a_file_or_standard_input() {
    let dir = folder();
    let model = small_model().write(&dir.path().join("small.gguf"));
    fs::write(dir.path().join("a.txt"), " a a").expect("a file");
    assert_eq!(tokenize(dir.path(), &model, &["--text", "a", "--json"]), "[3]\n");
    assert_eq!(tokenize(dir.path(), &model, &["--text", "a", "--json", "--special"]), "[1,3]\n");
    assert_eq!(tokenize(dir.path(), &model, &["--text", "a"]), "3\t a\n");
    assert_eq!(tokenize(dir.path(), &model, &["--text", "", "--json"]), "[]\n");

    let mut child = Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .args(["tokenize", "--json", "small.gguf"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(b"a a").expect("a text");
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"[3,3]\n"[..]));
}

#[test]
fn ids_become_text() {
    let dir = folder();
    let model = small_model().write(&dir.path().join("small.gguf"));
    assert_eq!(tokenize(dir.path(), &model, &["--decode", "[1, 3, 3, 2]"]), "a a");
    assert_eq!(tokenize(dir.path(), &model, &["--decode", "1 3 3 2", "--special"]), "<s> a a</s>");
    assert_eq!(tokenize(dir.path(), &model, &["--decode", "3,3", "--json"]), "\"a a\"\n");
}

/// Nothing in a token controls a terminal, or turns the direction of text, but where the bytes are asked for.
#[test]
fn tokens_are_safe_to_print() {
    let dir = folder();
    let token = "a\u{202e}\u{7f}\u{9b}\u{1b}[31m";
    let tokens = vec!["<unk>", "<s>", "</s>", token];
    // One of the user's own is found whole.
    let model = small_model()
        .set("tokenizer.ggml.tokens", tokens)
        .set("tokenizer.ggml.token_type", vec![2i32, 3, 3, 4])
        .write(&dir.path().join("small.gguf"));
    let shown = "3\ta\\u{202e}\\u{7f}\\u{9b}\\u{1b}[31m\n";
    assert_eq!(tokenize(dir.path(), &model, &["--text", token]), shown);
    let json = tokenize(dir.path(), &model, &["--decode", "3", "--json"]);
    assert_eq!(json, "\"a\\u202e\\u007f\\u009b\\u001b[31m\"\n");
    assert_eq!(tokenize(dir.path(), &model, &["--decode", "3"]), token, "into a pipe, as they are");
}

/// What a run in the folder prints.
fn run(dir: &TempDir, args: &[&str]) -> String {
    transcript(&wayinfer(dir.path(), 100, &[&["tokenize"], args].concat()))
}

#[test]
fn errors_say_what_is_wrong() {
    let dir = folder();
    small_model().write(&dir.path().join("small.gguf"));
    fs::write(dir.path().join("latin1.txt"), b"caf\xe9 au lait").expect("a file");
    assert_snapshot!(run(&dir, &["small.gguf", "--decode", "3 4"]), @r"
    exit code: 1
    ----- stdout -----
    ----- stderr -----
    error: --decode: id 4 is not in the vocabulary of 4 tokens (the last is 3)
    ");
    assert_snapshot!(run(&dir, &["small.gguf", "--decode", "3 x"]), @r#"
    exit code: 2
    ----- stdout -----
    ----- stderr -----
    error: --decode: "x" is not the id of a token
    "#);
    assert_snapshot!(run(&dir, &["small.gguf", "--file", "latin1.txt"]), @r"
    exit code: 1
    ----- stdout -----
    ----- stderr -----
    error: latin1.txt: not UTF-8 at byte 3
    ");
    assert_snapshot!(run(&dir, &["small.gguf", "--file", "none.txt"]), @r"
    exit code: 1
    ----- stdout -----
    ----- stderr -----
    error: none.txt: cannot be read: No such file or directory (os error 2)
    ");
    assert_snapshot!(run(&dir, &["small.gguf", "--text", "a", "--pre", "gpt-2"]), @r#"
    exit code: 1
    ----- stdout -----
    ----- stderr -----
    error: small.gguf: the vocabulary is of the kind "llama", which has no pre-tokenizer to override
    hint: leave --pre out
    "#);
    assert_snapshot!(run(&dir, &["small.gguf", "--text", "b"]), @r"
    exit code: 1
    ----- stdout -----
    ----- stderr -----
    error: small.gguf: the vocabulary has no token for the byte 0xE2 of the text
    ");
}

#[test]
fn vocabularies_that_are_not_there_or_not_known_are_refused() {
    let dir = folder();
    GgufBuilder::new().kv("general.architecture", "llama").write(&dir.path().join("bare.gguf"));
    let bpe = GgufBuilder::new()
        .kv("tokenizer.ggml.model", "gpt2")
        .kv("tokenizer.ggml.tokens", vec!["a", "b", "ab"])
        .kv("tokenizer.ggml.merges", vec!["a b"])
        .kv("tokenizer.ggml.pre", "nonesuch");
    bpe.write(&dir.path().join("bpe.gguf"));
    GgufBuilder::new().kv("tokenizer.ggml.model", "bert").write(&dir.path().join("bert.gguf"));
    assert_snapshot!(run(&dir, &["bare.gguf", "--text", "a"]), @r"
    exit code: 1
    ----- stdout -----
    ----- stderr -----
    error: bare.gguf: metadata key tokenizer.ggml.model is missing
    ");
    assert_snapshot!(run(&dir, &["bert.gguf", "--text", "a"]), @r#"
    exit code: 1
    ----- stdout -----
    ----- stderr -----
    error: bert.gguf: tokenizer.ggml.model is "bert", which is not supported (supported: llama, gpt2, gemma4)
    "#);
    insta::with_settings!({filters => vec![(r"\(known: default, [^)]*\)", "(known: default, ...)")]}, {
        assert_snapshot!(run(&dir, &["bpe.gguf", "--text", "ab"]), @r#"
        exit code: 1
        ----- stdout -----
        ----- stderr -----
        error: bpe.gguf: pre-tokenizer "nonesuch" is not known (known: default, ...)
        hint: --pre NAME uses another one
        "#);
    });
    assert_eq!(tokenize(dir.path(), Path::new("bpe.gguf"), &["--text", "ab", "--pre", "gpt-2"]), "2\tab\n");
}
