//! The pre-tokenizers by their names in `tokenizer.ggml.pre`, and what goes with each name.
//!
//! A new pre-tokenizer is a row of [`TABLE`], or one more name in a row. The patterns are those of the
//! models' own tokenizer.json; llama.cpp's llama-vocab.cpp says which name stands for which, and for what
//! flags. Where llama.cpp has to approximate a pattern the model's own is used.
//!
//! The patterns are written for engines that backtrack, and most end in `\s+(?!\S)|\s+`: white space
//! before a word leaves its last character to the word. An engine that backtracks gives up on long
//! texts, so they run on the crate `regex`, which takes linear time and knows no look-ahead; the
//! look-aheads are done by hand, see [`Split`].

use crate::text::normal_form::NormalForm;

/// One cut: the matches and what is between them become pieces.
pub enum Split {
    /// A pattern as it is.
    Pattern(&'static str),
    /// A pattern that is to be followed by `|\s+(?!\S)|\s+`.
    Words(&'static str),
    /// A pattern of digits, whose matches are cut into groups of three from the right.
    Thousands(&'static str),
}

/// A pre-tokenizer and what goes with its name.
pub struct Row {
    /// The names in `tokenizer.ggml.pre`.
    pub names: &'static [&'static str],
    pub normal_form: NormalForm,
    /// Cuts one after the other, each within the pieces that the one before has left.
    pub splits: &'static [Split],
    /// A word that is a token is that token, whatever the merges would make of it.
    pub ignore_merges: bool,
    /// Whether BOS is put before a text where the metadata does not say.
    pub add_bos: bool,
}

/// What most rows have in common.
const PLAIN: Row =
    Row { names: &[], normal_form: NormalForm::AsWritten, splits: &[], ignore_merges: false, add_bos: false };

pub const TABLE: &[Row] = &[
    Row {
        names: &["default"],
        splits: &[
            Split::Pattern(r"[\p{P}\$\+<=>\^~\|]+"),
            GPT2,
            Split::Pattern(r"\p{N}+"),
            Split::Pattern(r"[0-9][0-9][0-9]"),
        ],
        ..PLAIN
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
            "jais",
            "trillion",
            "granite-docling",
        ],
        splits: &[GPT2],
        ..PLAIN
    },
    // The tokenizer of GPT-NeoX, whose authors compose texts.
    Row { names: &["olmo"], normal_form: NormalForm::Nfc, splits: &[GPT2], ..PLAIN },
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
        ..PLAIN
    },
    Row { names: &["glm4", "glm5"], splits: &[LLAMA3], ignore_merges: true, ..PLAIN },
    Row { names: &["chatglm-bpe", "dbrx", "smaug-bpe"], splits: &[LLAMA3], ..PLAIN },
    Row { names: &["qwen2"], normal_form: NormalForm::Nfc, splits: &[QWEN2], ..PLAIN },
    Row { names: &["qwen35"], normal_form: NormalForm::Nfc, splits: &[QWEN35], ..PLAIN },
    Row {
        names: &[
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
        ..PLAIN
    },
    Row { names: &["command-r"], normal_form: NormalForm::Nfc, splits: &[DIGIT, GPT2], ..PLAIN },
    Row {
        names: &["starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        splits: &[DIGIT, GPT2],
        ..PLAIN
    },
    Row {
        names: &["falcon"],
        splits: &[Split::Pattern(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, Split::Pattern(r"[0-9][0-9][0-9]")],
        ..PLAIN
    },
    Row { names: &["tekken"], splits: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
    Row { names: &["gpt-4o", "llama4"], splits: &[GPT4O], ignore_merges: true, ..PLAIN },
    Row { names: &["kanana2", "talkie", "minimax-m2"], splits: &[GPT4O], ..PLAIN },
    Row { names: &["tiny_aya", "cohere2moe"], splits: &[Split::Thousands(r"\d+\b"), GPT4O], ..PLAIN },
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
        ..PLAIN
    },
    Row {
        names: &["deepseek-coder"],
        splits: &[
            Split::Pattern(r"[\r\n]"),
            Split::Pattern(r"\s?\p{L}+"),
            Split::Pattern(r"\s?\p{P}+"),
            Split::Pattern(DEEPSEEK_CJK),
            DIGIT,
        ],
        ..PLAIN
    },
    Row {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        splits: &[Split::Pattern(r"\p{N}{1,3}"), Split::Pattern(CJK), DEEPSEEK_V3],
        ..PLAIN
    },
    Row {
        names: &["afmoe"],
        splits: &[Split::Thousands(r"\p{N}+"), Split::Pattern(AFMOE_SCRIPTS), DEEPSEEK_V3],
        ..PLAIN
    },
    Row { names: &["bailingmoe", "bailingmoe2", "llada-moe"], splits: &[BAILING], ..PLAIN },
    Row { names: &["exaone-moe"], splits: &[EXAONE_MOE], ..PLAIN },
    Row { names: &["seed-coder"], splits: &[SEED_CODER], ..PLAIN },
    Row {
        names: &["minicpm5"],
        splits: &[Split::Pattern(r"\p{N}{1,3}"), LLAMA3_ANY_NUMBER],
        ignore_merges: true,
        ..PLAIN
    },
    Row { names: &["bloom", "poro-chat", "gpt3-finnish"], splits: &[BLOOM], ..PLAIN },
    Row { names: &["viking"], splits: &[BLOOM, DIGIT], ..PLAIN },
];

const DIGIT: Split = Split::Pattern(r"\p{N}");

const GPT2: Split = Split::Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");

/// Llama 3: words with one character before them, numbers of up to three digits.
const LLAMA3: Split = Split::Words(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
));

/// As Llama 3, for numbers that are cut already.
const LLAMA3_ANY_NUMBER: Split = Split::Words(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+",
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
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
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

/// K-EXAONE: words with single spaces between them stay together.
const EXAONE_MOE: Split = Split::Words(concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]",
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

/// AFMoE: blocks of scripts that write no spaces between words.
const AFMOE_SCRIPTS: &str = concat!(
    r"[\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{F900}-\u{FAFF}\u{3040}-\u{309F}\u{30A0}-\u{30FF}",
    r"\u{FF65}-\u{FF9F}\u{2F00}-\u{2FDF}\u{0E40}-\u{0E7F}\u{0E80}-\u{0EFF}\u{1780}-\u{17FF}",
    r"\u{1000}-\u{109F}\u{AA60}-\u{AA7F}\u{A9E0}-\u{A9FF}\u{AC00}-\u{D7AF}\u{1100}-\u{11FF}]+",
);
