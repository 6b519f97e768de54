//! How byte-level vocabularies cut a text into words, no token crossing from one to the next.

mod table;

use std::ops::Range;

use regex::{Regex, RegexBuilder};

use self::table::{Row, Split, TABLE};
use super::TextError;
use super::normal_form::NormalForm;

/// The names that are known, in the table's order.
pub fn pre_tokenizer_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|row| row.names).copied()
}

/// Cuts texts into words.
pub struct PreTokenizer {
    row: &'static Row,
    splitters: Vec<Splitter>,
}

impl PreTokenizer {
    /// The pre-tokenizer of this name.
    pub fn by_name(name: &str) -> Result<PreTokenizer, TextError> {
        let Some(row) = TABLE.iter().find(|row| row.names.contains(&name)) else {
            let known = pre_tokenizer_names().collect::<Vec<_>>().join(", ");
            return Err(TextError::UnknownPreTokenizer { name: name.to_owned(), known });
        };
        let splitters = row.splits.iter().map(Splitter::new).collect::<Result<_, _>>()?;
        Ok(PreTokenizer { row, splitters })
    }

    /// A word that is a token is that token, whatever the merges would make of it.
    pub fn ignore_merges(&self) -> bool {
        self.row.ignore_merges
    }

    /// What is done to a text before it is cut.
    pub fn normal_form(&self) -> NormalForm {
        self.row.normal_form
    }

    /// Whether BOS is put before a text where the metadata does not say.
    pub fn add_bos(&self) -> bool {
        self.row.add_bos
    }

    /// The words, in order; together they are the whole text.
    pub fn words(&self, text: &str) -> Vec<Range<usize>> {
        let mut words: Vec<_> = std::iter::once(0..text.len()).collect();
        for splitter in &self.splitters {
            let mut cut = Vec::with_capacity(words.len());
            for word in words {
                splitter.split(text, word, &mut cut);
            }
            words = cut;
        }
        words
    }
}

struct Splitter {
    regex: Regex,
    matches: Matches,
}

/// What becomes of a match.
#[derive(Clone, Copy)]
enum Matches {
    /// It is one piece.
    Whole,
    /// It is one piece, but white space by itself leaves its last character to the next word.
    Words(Spaces),
    /// It is cut into groups of three characters from the right.
    Thousands,
}

/// What white space that matched by itself does.
#[derive(Clone, Copy)]
struct Spaces {
    /// The pattern takes white space up to a line's end, which then leaves nothing to the next word.
    whole_lines: bool,
}

impl Splitter {
    fn new(split: &Split) -> Result<Splitter, TextError> {
        let (pattern, matches) = match *split {
            Split::Pattern(pattern) => (pattern.to_owned(), Matches::Whole),
            Split::Thousands(pattern) => (pattern.to_owned(), Matches::Thousands),
            Split::Words(pattern) => {
                let spaces = Spaces { whole_lines: pattern.contains(r"\s*[\r\n]") };
                (format!(r"{pattern}|\s+"), Matches::Words(spaces))
            }
        };
        let regex = RegexBuilder::new(&pattern)
            // Classes of Unicode are large: with the default the automaton is rebuilt all the time.
            .dfa_size_limit(16 << 20)
            .build()
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        Ok(Splitter { regex, matches })
    }

    /// Cuts one piece of the text; nothing outside of the piece is seen.
    fn split(&self, text: &str, piece: Range<usize>, out: &mut Vec<Range<usize>>) {
        let base = piece.start;
        let piece = &text[piece];
        let mut at = 0;
        while let Some(found) = self.regex.find_at(piece, at) {
            if found.start() > at {
                out.push(base + at..base + found.start());
            }
            let start = base + found.start();
            let len = match self.matches {
                Matches::Whole => found.len(),
                Matches::Words(spaces) => spaces.kept(found.as_str(), found.end() < piece.len()),
                Matches::Thousands => {
                    push_thousands(found.as_str(), start, out);
                    at = found.end();
                    continue;
                }
            };
            out.push(start..start + len);
            at = found.start() + len;
        }
        if at < piece.len() {
            out.push(base + at..base + piece.len());
        }
    }
}

/// Cuts digits that begin at `start` into groups of three from the right.
fn push_thousands(digits: &str, start: usize, out: &mut Vec<Range<usize>>) {
    let count = digits.chars().count();
    let mut group = start;
    for (index, (at, _)) in digits.char_indices().enumerate().skip(1) {
        if (count - index).is_multiple_of(3) {
            out.push(group..start + at);
            group = start + at;
        }
    }
    out.push(group..start + digits.len());
}

impl Spaces {
    /// How many bytes of a match stay: `\s+(?!\S)|\s+` is a run of white space without its last
    /// character where a word follows and more than that character is there.
    fn kept(self, found: &str, more: bool) -> usize {
        let by_itself = || found.chars().all(char::is_whitespace);
        match found.chars().next_back() {
            Some('\r' | '\n') if self.whole_lines => found.len(),
            Some(last) if more && last.is_whitespace() && found.len() > last.len_utf8() && by_itself() => {
                found.len() - last.len_utf8()
            }
            _ => found.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
        PreTokenizer::by_name(name).unwrap().words(text).into_iter().map(|word| &text[word]).collect()
    }

    #[test]
    fn the_common_names_cut_as_their_models_do() {
        let text = "Hello  world's 12345\n\n x";
        let wanted = |names: &[&str], words: &str| {
            for name in names {
                assert_eq!(cut(name, text).join("·"), words, "{name}");
            }
        };
        wanted(&["gpt-2", "mpt"], "Hello· · world·'s· 12345·\n\n· x");
        wanted(&["llama-bpe"], "Hello· · world·'s· ·123·45·\n\n· x");
        wanted(
            &["qwen2", "starcoder", "command-r", "refact", "smollm", "tekken"],
            "Hello· · world·'s· ·1·2·3·4·5·\n\n· x",
        );
        wanted(&["gpt-4o", "llama4"], "Hello· · world's· ·123·45·\n\n· x");
        wanted(&["default", "falcon"], "Hello· · world·'·s· ·123·45·\n\n· x");
        wanted(&["deepseek-llm"], "Hello· · world·'·s· ·12345·\n·\n· x");
        wanted(&["deepseek-coder"], "Hello· · world·'·s· ·1·2·3·4·5·\n·\n· x");
    }

    #[test]
    fn numbers_are_cut_into_thousands_from_the_right() {
        let text = "12345678 and 123456a ٣٤٥٦ ½1234";
        assert_eq!(cut("afmoe", text).join("·"), "12·345·678· and· ·123·456·a· ·٣·٤٥٦· ·½1·234");
        // Only where the number ends a word; else the next cut takes them from the left.
        assert_eq!(cut("cohere2moe", text).join("·"), "12·345·678· and· ·123·456·a· ·٣·٤٥٦· ·½·1·234");
        assert_eq!(cut("cohere2moe", "1234x 1234").join("·"), "123·4·x· ·1·234");
        assert_eq!(cut("afmoe", "1234x 1234").join("·"), "1·234·x· ·1·234");
        assert_eq!(cut("afmoe", "1").join("·"), "1");
    }

    /// Against the authors' pre-tokenizers, which `scripts/text/pre_tokenizers.py` has run.
    #[test]
    fn texts_are_cut_as_the_authors_cut_them() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/text/pre-tokenizers.json");
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let list =
            |value: &serde_json::Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
        let texts = list(&golden["texts"]);
        let mut problems = Vec::new();
        let mut cuts = 0;
        for row in golden["rows"].as_array().unwrap() {
            for name in list(&row["names"]) {
                let pre = PreTokenizer::by_name(&name).unwrap();
                for (text, wanted) in texts.iter().zip(list(&row["cuts"])) {
                    let text = pre.normal_form().apply(text).unwrap();
                    let lengths: Vec<_> = pre
                        .words(&text)
                        .iter()
                        .map(|word| word.len().to_string())
                        .filter(|len| len != "0")
                        .collect();
                    if lengths.join(" ") != wanted {
                        problems.push(format!("{name}: {text:?}: {}, not {wanted}", lengths.join(" ")));
                    }
                    cuts += 1;
                }
            }
        }
        assert!(problems.is_empty(), "{} of {cuts}\n{}", problems.len(), problems.join("\n"));
        assert!(cuts > 20 * 300, "only {cuts} cuts");
    }

    #[test]
    fn every_name_is_known_once_and_loses_nothing() {
        let names: Vec<_> = pre_tokenizer_names().collect();
        assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), names.len());
        let text = " I'LL  pay €12.50 — Ünïcödé, 한국어 ひらがな 中文\r\n\t{x+=1};\u{3000}\u{301}e \n  ";
        for name in names {
            let words = cut(name, text);
            assert_eq!(words.concat(), text, "{name}");
            assert!(words.len() > 9 && words.iter().all(|word| !word.is_empty()), "{name}: {words:?}");
            assert!(cut(name, "").concat().is_empty());
        }
    }

    /// The names by the pattern that llama.cpp (llama-vocab.cpp) has for them, read from there and not from
    /// the table: two that cut alike stand together.
    const ALIKE: &[&[&str]] = &[
        &["default"],
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
            "dbrx",
            "smaug-bpe",
            "chatglm-bpe",
            "glm4",
            "glm5",
        ],
        &[
            // Written another way, and the same.
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &["qwen35"],
        &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &["falcon"],
        &["tekken"],
        &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        &["tiny_aya", "cohere2moe"],
        &["deepseek-llm"],
        &["deepseek-coder"],
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &["afmoe"],
        &["exaone-moe"],
        &["seed-coder"],
        &["minicpm5"],
        &["bloom", "poro-chat", "gpt3-finnish"],
        &["viking"],
    ];

    #[test]
    fn names_of_one_pattern_cut_alike_and_no_others() {
        let texts = [
            "Hello  world's 12345\n\n x",
            " I'LL  pay €12.50 — Ünïcödé, 한국어 ひらがな 中文\r\n\t{x+=1};\u{3000}\u{301}e \n  ",
            "CamelCase don'T 1234567 a.b,c/\n\n  ½x ٣٤٥ .dot !Bang `tick` e\u{301}x a b  c",
            "  \n \n\n  x\r\n(1)",
        ];
        let cuts = |name: &str| texts.map(|text| cut(name, text).join("·"));
        let mut names: Vec<_> = ALIKE.iter().copied().flatten().copied().collect();
        for alike in ALIKE {
            for name in *alike {
                assert_eq!(cuts(name), cuts(alike[0]), "{name} as {}", alike[0]);
            }
        }
        for (i, one) in ALIKE.iter().enumerate() {
            for other in &ALIKE[..i] {
                assert_ne!(cuts(one[0]), cuts(other[0]), "{} and {}", one[0], other[0]);
            }
        }
        let mut known: Vec<_> = pre_tokenizer_names().collect();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_that_are_known() {
        let error = PreTokenizer::by_name("nonesuch").err().expect("refused").to_string();
        assert!(
            error.starts_with("pre-tokenizer \"nonesuch\" is not known (known: default, gpt-2, "),
            "{error}"
        );
        assert!(pre_tokenizer_names().all(|name| error.contains(name)));
    }
}
