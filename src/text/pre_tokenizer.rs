//! How byte-level vocabularies cut a text into words, no token crossing from one to the next.
//!
//! The names are those of `tokenizer.ggml.pre`; the patterns are those of the models' own
//! tokenizer.json, in the form and with the flags that llama.cpp's llama-vocab.cpp gives a name (where
//! that has to approximate a pattern, the model's own is used).
//!
//! The patterns are written for engines that backtrack, and all end in `\s+(?!\S)|\s+`: white space
//! before a word leaves its last character to the word. An engine that backtracks gives up on long
//! texts, so the patterns run on the crate `regex`, which takes linear time and knows no look-ahead;
//! the one look-ahead is done by hand, see [`Split::Words`].

use std::ops::Range;

use regex::{Regex, RegexBuilder};

use super::TextError;

/// One cut: the matches and what is between them become pieces.
enum Split {
    /// A pattern as it is.
    Pattern(&'static str),
    /// A pattern that is to be followed by `|\s+(?!\S)|\s+`.
    Words(&'static str),
}

/// A pre-tokenizer and what goes with its name.
struct Row {
    /// The names in `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Cuts one after the other, each within the pieces that the one before has left.
    splits: &'static [Split],
    /// A word that is a token is that token, whatever the merges would make of it.
    ignore_merges: bool,
    /// Whether BOS is put before a text where the metadata does not say.
    add_bos: bool,
}

const GPT2: Split = Split::Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");

/// Llama 3: words with one character before them, numbers of up to three digits.
const LLAMA3: Split = Split::Words(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
));

/// Qwen 2: as Llama 3, but each digit is by itself.
const QWEN2: Split = Split::Words(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
));

/// Qwen 3.5: marks belong to the letters.
const QWEN35: Split = Split::Words(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
));

/// Mistral's Tekken: a capital begins a word.
const TEKKEN: Split = Split::Words(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
));

/// GPT-4o (o200k): as Tekken, with endings such as 's and numbers of up to three digits.
const GPT4O: Split = Split::Words(concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
));

/// DeepSeek V3: an ASCII sign belongs to the ASCII letters after it.
const DEEPSEEK_V3: Split = Split::Words(concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+",
));

const BAILING: Split = Split::Words(concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]",
));

const SEED_CODER: Split = Split::Words(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+",
));

/// Letters that have a case, as the DeepSeek tokenizers list them.
const DEEPSEEK_WORD: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-",
    r"ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ",
    r"-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ",
    r"-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);

const DEEPSEEK_SIGNS: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";
const DEEPSEEK_CJK: &str = r"[一-龥ࠀ-一가-퟿]+";
const CJK: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const BLOOM: Split = Split::Pattern(r" ?[^(\s|.,!?…。，、।۔،)]+");

const TABLE: &[Row] = &[
    Row {
        names: &["default"],
        splits: &[
            Split::Pattern(r"[\p{P}\$\+<=>\^~\|]+"),
            GPT2,
            Split::Pattern(r"\p{N}+"),
            Split::Pattern(r"[0-9][0-9][0-9]"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
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
        splits: &[GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        splits: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Row { names: &["glm4", "glm5"], splits: &[LLAMA3], ignore_merges: true, add_bos: false },
    Row {
        names: &["chatglm-bpe", "dbrx", "smaug-bpe"],
        splits: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &[
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
        splits: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    Row { names: &["qwen35"], splits: &[QWEN35], ignore_merges: false, add_bos: false },
    Row {
        names: &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        splits: &[Split::Pattern(r"\p{N}"), GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &["falcon"],
        splits: &[Split::Pattern(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, Split::Pattern(r"[0-9][0-9][0-9]")],
        ignore_merges: false,
        add_bos: false,
    },
    Row { names: &["tekken"], splits: &[TEKKEN], ignore_merges: true, add_bos: true },
    Row {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        splits: &[GPT4O],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &["deepseek-llm"],
        splits: &[
            Split::Pattern(r"[\r\n]"),
            Split::Pattern(DEEPSEEK_WORD),
            Split::Pattern(DEEPSEEK_SIGNS),
            Split::Pattern(r"\s+$"),
            Split::Pattern(DEEPSEEK_CJK),
            Split::Pattern(r"\p{N}+"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &["deepseek-coder"],
        splits: &[
            Split::Pattern(r"[\r\n]"),
            Split::Pattern(r"\s?\p{L}+"),
            Split::Pattern(r"\s?\p{P}+"),
            Split::Pattern(DEEPSEEK_CJK),
            Split::Pattern(r"\p{N}"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        splits: &[Split::Pattern(r"\p{N}{1,3}"), Split::Pattern(CJK), DEEPSEEK_V3],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        splits: &[BAILING],
        ignore_merges: false,
        add_bos: false,
    },
    Row { names: &["seed-coder"], splits: &[SEED_CODER], ignore_merges: false, add_bos: false },
    Row {
        names: &["bloom", "poro-chat", "gpt3-finnish"],
        splits: &[BLOOM],
        ignore_merges: false,
        add_bos: false,
    },
    Row {
        names: &["viking"],
        splits: &[BLOOM, Split::Pattern(r"\p{N}")],
        ignore_merges: false,
        add_bos: false,
    },
];

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
    /// For [`Split::Words`].
    spaces: Option<Spaces>,
}

/// What white space that matched by itself does.
#[derive(Clone, Copy)]
struct Spaces {
    /// The pattern takes white space up to a line's end, which then leaves nothing to the next word.
    whole_lines: bool,
}

impl Splitter {
    fn new(split: &Split) -> Result<Splitter, TextError> {
        let (pattern, spaces) = match *split {
            Split::Pattern(pattern) => (pattern.to_owned(), None),
            Split::Words(pattern) => {
                let spaces = Spaces { whole_lines: pattern.contains(r"\s*[\r\n]") };
                (format!(r"{pattern}|\s+"), Some(spaces))
            }
        };
        let regex = RegexBuilder::new(&pattern)
            // Classes of Unicode are large: with the default the automaton is rebuilt all the time.
            .dfa_size_limit(16 << 20)
            .build()
            .map_err(|error| TextError::Tokenizer(error.to_string()))?;
        Ok(Splitter { regex, spaces })
    }

    /// Cuts one piece of the text; nothing outside of the piece is seen.
    fn split(&self, text: &str, piece: Range<usize>, out: &mut Vec<Range<usize>>) {
        let base = piece.start;
        let piece = &text[piece];
        let mut at = 0;
        while let Some(found) = self.regex.find_at(piece, at) {
            let end = match self.spaces {
                Some(spaces) => found.start() + spaces.kept(found.as_str(), found.end() < piece.len()),
                None => found.end(),
            };
            if found.start() > at {
                out.push(base + at..base + found.start());
            }
            out.push(base + found.start()..base + end);
            at = end;
        }
        if at < piece.len() {
            out.push(base + at..base + piece.len());
        }
    }
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
