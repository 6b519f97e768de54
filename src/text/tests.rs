//! What holds for a tokenizer as a whole.

use std::collections::HashMap;

use super::naive_spm::naive_spm;
use super::testing::{GgufBuilder, Kv, Rng, SPM_FIRST, bpe, metadata, spm, tokenizer, vocabulary};
use super::{EncodeOptions, Rendered, TextError, Tokenizer};

const PLAIN: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const PARSE: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const ADD: EncodeOptions = EncodeOptions { add_special: true, parse_special: false };

/// Pieces with many equal scores, so that the order of merges matters.
const PIECES: &[(&str, f32, i32)] = &[
    ("▁", -8.0, 1),
    ("a", -7.0, 1),
    ("b", -7.0, 1),
    ("é", -7.5, 1),
    ("ab", -2.0, 1),
    ("ba", -2.0, 1),
    ("aa", -2.0, 1),
    ("▁a", -1.0, 1),
    ("aab", -3.0, 1),
    ("bab", -1.5, 1),
    ("éa", -4.0, 1),
    ("▁▁", -2.0, 1),
    ("abab", -0.5, 1),
    // Of characters that are no tokens.
    ("xy", -2.5, 1),
];

#[test]
fn spm_joins_what_the_definition_joins() {
    let tokenizer = tokenizer(&spm(PIECES)).unwrap();
    let pieces: HashMap<&str, (u32, f32)> =
        (SPM_FIRST..).zip(PIECES).map(|(id, &(text, score, _))| (text, (id, score))).collect();
    let alphabet = ['a', 'b', 'a', 'b', ' ', 'é', 'x', 'y', '€', '\n'];
    let mut rng = Rng(1);
    let mut merged = 0;
    for _ in 0..3000 {
        let len = rng.below(24);
        let text: String = (0..len).map(|_| alphabet[rng.below(alphabet.len() as u64) as usize]).collect();
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        let escaped =
            if text.is_empty() { String::new() } else { format!("▁{}", text.replace(' ', "▁")) };
        assert_eq!(ids, naive_spm(&pieces, |b| 3 + u32::from(b), &escaped), "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), text);
        let joined = |&id: &u32| {
            let piece = id.checked_sub(SPM_FIRST).and_then(|i| PIECES.get(i as usize));
            piece.is_some_and(|(text, ..)| text.chars().nth(1).is_some())
        };
        merged += usize::from(ids.iter().any(joined));
    }
    assert!(merged > 2000, "only {merged} of the texts had anything to merge");
}

#[test]
fn a_stream_gives_whole_characters_and_all_of_the_text() {
    let tokenizer = tokenizer(&bpe(&[], &[])).unwrap();
    let text = "aé€𝄞 🙂b";
    let mut stream = tokenizer.stream(false);
    // Here the id of a byte is the byte.
    let parts: Vec<String> = text.bytes().map(|byte| stream.push(byte.into())).collect();
    assert_eq!(parts.concat() + &stream.finish(), text);
    assert!(parts.iter().all(|part| part.chars().count() <= 1 && !part.contains('\u{FFFD}')), "{parts:?}");
    let lost: Vec<String> = [0xE2, 0x82, 0x41, 0xFF, 0xF0].map(|byte| stream.push(byte)).into();
    assert_eq!(lost, ["", "", "\u{FFFD}A", "\u{FFFD}", ""]);
    assert_eq!((stream.finish(), stream.finish()), ("\u{FFFD}".to_owned(), String::new()));
    assert_eq!(stream.push(1_000_000), "", "an id outside the vocabulary");
}

#[test]
fn control_tokens_are_text_until_they_are_asked_for() {
    let tokenizer = tokenizer(&bpe(&[], &[("<end>", 3), ("<tool>", 4), ("<tool>x", 4)])).unwrap();
    let (end, tool, toolx) = (256, 257, 258);
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let text = "a<end><tool><tool>xb";
    let wanted = [bytes("a<end>"), vec![tool, toolx], bytes("b")].concat();
    assert_eq!(tokenizer.encode(text, PLAIN).unwrap(), wanted);
    let ids = tokenizer.encode(text, PARSE).unwrap();
    assert_eq!(ids, [bytes("a"), vec![end, tool, toolx], bytes("b")].concat());
    assert_eq!(tokenizer.decode(&ids, false), "a<tool><tool>xb");
    assert_eq!(tokenizer.decode(&ids, true), text);
    assert_eq!((tokenizer.piece(end, false), tokenizer.piece(999, true)), (Some(&b""[..]), None));
}

#[test]
fn spm_puts_its_space_before_text_alone() {
    let tokenizer = tokenizer(&spm(&[("▁a", -1.0, 1), ("a", -2.0, 1), ("<x>", 0.0, 4)])).unwrap();
    let (prefixed, bare, x) = (SPM_FIRST, SPM_FIRST + 1, SPM_FIRST + 2);
    assert_eq!(tokenizer.encode("a", PLAIN).unwrap(), [prefixed]);
    assert_eq!(tokenizer.encode("<x>a", PLAIN).unwrap(), [x, prefixed]);
    let file = spm(&[("▁a", -1.0, 1), ("a", -2.0, 1)]).kv("tokenizer.ggml.add_space_prefix", false);
    let without = super::testing::tokenizer(&file).unwrap();
    assert_eq!(without.encode("a a", PLAIN).unwrap(), [bare, prefixed]);
    assert_eq!(without.decode(&[prefixed], false), " a", "the space is the text's own");
}

#[test]
fn bos_and_eos_follow_the_metadata() {
    const BOS: &str = "tokenizer.ggml.add_bos_token";
    const EOS: &str = "tokenizer.ggml.add_eos_token";
    let a = || spm(&[("▁a", -1.0, 1)]);
    let ids = |file: GgufBuilder| tokenizer(&file).unwrap().encode("a", ADD).unwrap();
    assert_eq!(ids(a()), [1, SPM_FIRST], "BOS is SentencePiece's default");
    assert_eq!(ids(a().kv(BOS, false)), [SPM_FIRST]);
    assert_eq!(ids(a().kv(EOS, true)), [1, SPM_FIRST, 2]);
    assert_eq!(ids(a().kv("tokenizer.ggml.bos_token_id", 2u32)), [2, SPM_FIRST]);
    let b = || bpe(&[], &[("<bos>", 3)]).kv("tokenizer.ggml.bos_token_id", 256u32);
    assert_eq!(ids(b()), [97], "GPT-2 has none by default");
    assert_eq!(ids(b().kv(BOS, true)), [256, 97]);
    let error = tokenizer(&bpe(&[], &[]).kv(BOS, true)).unwrap_err();
    assert!(matches!(error, TextError::NoSpecialToken { .. }), "{error}");
}

#[test]
fn a_chat_has_one_bos() {
    let tokenizer = tokenizer(&spm(&[("▁a", -1.0, 1)])).unwrap();
    assert_eq!(
        tokenizer.encode_chat(&Rendered::new("<s>a</s>".to_owned(), &tokenizer)).unwrap(),
        [1, SPM_FIRST, 2]
    );
    assert_eq!(tokenizer.encode_chat(&Rendered::new("a".to_owned(), &tokenizer)).unwrap(), [1, SPM_FIRST]);
    assert_eq!(tokenizer.encode_chat(&Rendered::new("".to_owned(), &tokenizer)).unwrap(), [1]);
    assert!(tokenizer.is_end_of_generation(2) && !tokenizer.is_end_of_generation(1));
}

#[test]
fn special_tokens_of_known_texts_end_a_generation() {
    let ends = |special: &[(&str, i32)]| {
        let tokenizer = tokenizer(&bpe(&[], special)).unwrap();
        (256..256 + special.len() as u32).map(|id| tokenizer.is_end_of_generation(id)).collect::<Vec<_>>()
    };
    assert_eq!(ends(&[("<|im_end|>", 3), ("<|im_start|>", 3), ("<|eot_id|>", 4)]), [true, false, true]);
    assert_eq!(ends(&[("</s>", 1)]), [false], "a normal token is text");
    // HTML in Gemma's vocabularies, where it is user-defined.
    assert_eq!(ends(&[("</s>", 4), ("</s> ", 3)]), [false, false]);
    assert_eq!(ends(&[("</s>", 3), ("[|endofturn|]", 3), ("<|eot|>", 3), ("[e~[", 3)]), [true; 4]);
    // The header of the user's turn ends a turn of GLM's.
    assert_eq!(ends(&[("<|user|>", 3), ("<|observation|>", 3)]), [false, false]);
    assert_eq!(ends(&[("<|user|>", 3), ("<|observation|>", 3), ("[gMASK]", 3)]), [true, true, false]);
    // Harmony: `<|end|>` ends a part of an answer.
    assert_eq!(ends(&[("<|end|>", 3), ("<|return|>", 3)]), [true, true]);
    assert_eq!(ends(&[("<|end|>", 3), ("<|return|>", 3), ("<|call|>", 3)]), [false, true, true]);
    // Those of fill-in-the-middle stay what the file says they are.
    let fim = tokenizer(&bpe(&[], &[("<|fim_pad|>", 4), ("<|file_sep|>", 3)])).unwrap();
    assert!(fim.is_end_of_generation(256) && fim.is_end_of_generation(257));
    assert_eq!(fim.encode("<|fim_pad|>", PLAIN).unwrap(), [256]);
    let named = bpe(&[], &[("<done>", 3)]).kv("tokenizer.ggml.eot_token_id", 256u32);
    assert!(tokenizer(&named).unwrap().is_end_of_generation(256));
    // Such a token of type 4 is a control token all the same: text cannot end a turn.
    let user = tokenizer(&bpe(&[], &[("<|im_end|>", 4)])).unwrap();
    assert_eq!(user.encode("<|im_end|>", PLAIN).unwrap().len(), "<|im_end|>".len());
    assert_eq!(user.encode("<|im_end|>", PARSE).unwrap(), [256]);
}

#[test]
fn the_marks_of_harmony_are_shown_and_are_text_in_what_a_user_writes() {
    let special = [("<|end|>", 3), ("<|return|>", 3), ("<|call|>", 3), ("<|channel|>", 3), ("<|other|>", 3)];
    let tokenizer = tokenizer(&bpe(&[], &special)).unwrap();
    assert_eq!(tokenizer.decode(&[259, 97, 256, 260, 257], false), "<|channel|>a<|end|>");
    assert_eq!(tokenizer.encode("<|channel|>", PLAIN).unwrap().len(), "<|channel|>".len());
    assert_eq!(tokenizer.encode("<|channel|>", PARSE).unwrap(), [259]);
}

#[test]
fn the_leftmost_special_token_wins_and_then_the_longest() {
    let tokenizer = tokenizer(&bpe(&[], &[("<ab", 4), ("bcde>", 4), ("aa", 4), ("<abc", 3)])).unwrap();
    assert_eq!(tokenizer.encode("<abcde>aaa", PLAIN).unwrap(), [256, 99, 100, 101, 62, 258, 97]);
    assert_eq!(tokenizer.encode("<abcde>aaa", PARSE).unwrap(), [259, 100, 101, 62, 258, 97]);
}

#[test]
fn phi_3_takes_the_white_space_after_its_special_tokens() {
    let a = || spm(&[("▁a", -1.0, 1), ("▁", -2.0, 1), ("<|end|>", 0.0, 3)]);
    let (a_id, end) = (SPM_FIRST, SPM_FIRST + 2);
    let phi = tokenizer(&a().kv("general.name", "Phi-3 mini")).unwrap();
    assert_eq!(phi.encode("<|end|> \n\ta<|end|>\n", PARSE).unwrap(), [end, a_id, end]);
    assert_eq!(phi.encode("<s> a", PARSE).unwrap(), [1, SPM_FIRST + 1, a_id], "but not after BOS");
    let other = tokenizer(&a()).unwrap();
    assert_eq!(other.encode("<|end|> a", PARSE).unwrap(), [end, SPM_FIRST + 1, a_id]);
}

/// The error of a vocabulary that cannot be used.
fn refused(file: &GgufBuilder) -> TextError {
    tokenizer(file).expect_err("the vocabulary is refused")
}

/// A file with the value of one key replaced.
fn replaced(file: GgufBuilder, key: &str, value: impl Into<Kv>) -> GgufBuilder {
    file.with(|file| file.pairs.retain(|pair| pair.key != key.as_bytes())).kv(key, value)
}

#[test]
fn unsound_vocabularies_are_refused() {
    let a = || spm(&[("▁a", -1.0, 1)]);
    let empty = replaced(a(), "tokenizer.ggml.tokens", Vec::<&str>::new());
    assert!(matches!(refused(&empty), TextError::VocabularySize { len: 0 }));
    for (key, value) in [
        ("tokenizer.ggml.scores", Kv::from(vec![0.0f32; 3])),
        ("tokenizer.ggml.token_type", vec![1i32; 261].into()),
    ] {
        let error = refused(&replaced(a(), key, value));
        assert!(matches!(error, TextError::LengthMismatch { tokens: 260, .. }), "{key}: {error}");
    }
    let nan = replaced(a(), "tokenizer.ggml.scores", vec![f32::NAN; 260]);
    assert!(matches!(refused(&nan), TextError::BadScore { id: 0 }));
    for id in [Kv::from(260u32), u64::MAX.into(), 1_000_000i32.into()] {
        let error = refused(&a().kv("tokenizer.ggml.eos_token_id", id));
        assert!(matches!(error, TextError::SpecialOutOfRange { tokens: 260, .. }), "{error}");
    }
    assert!(matches!(refused(&a().kv("tokenizer.ggml.bos_token_id", "1")), TextError::Metadata(_)));
    assert_eq!(tokenizer(&a().kv("tokenizer.ggml.padding_token_id", -1i32)).unwrap().padding(), None);
    let texts = ["a", "a"].map(str::to_owned);
    let error = refused(&vocabulary("gpt2", &texts, vec![1, 1]));
    assert!(matches!(error, TextError::DuplicateToken { first: 0, second: 1, .. }), "{error}");
    let error = refused(&vocabulary("gpt2", &["<0xZZ>".to_owned()], vec![6]));
    assert!(matches!(error, TextError::BadByteToken { id: 0, .. }), "{error}");
    assert!(matches!(refused(&GgufBuilder::new()), TextError::Metadata(_)));
    assert!(matches!(refused(&vocabulary("bert", &texts, vec![1, 1])), TextError::UnsupportedModel { .. }));
}

#[test]
fn unsound_merges_are_refused() {
    for merge in ["ab", "", " a", "a "] {
        let error = refused(&replaced(bpe(&[], &[]), "tokenizer.ggml.merges", vec!["a b", merge]));
        // The first merge is of tokens, but its result is none; the malformed one is found before.
        assert!(matches!(&error, TextError::BadMerge { index: 1, text } if text == merge), "{error}");
    }
    for merge in ["a b", "a nonesuch", "a b c"] {
        let error = refused(&replaced(bpe(&[], &[]), "tokenizer.ggml.merges", vec![merge]));
        assert!(matches!(error, TextError::UnknownMergeToken { .. }), "{merge}: {error}");
    }
    let missing = bpe(&[], &[]).with(|file| file.pairs.retain(|pair| pair.key != b"tokenizer.ggml.merges"));
    assert!(matches!(refused(&missing), TextError::Metadata(_)));
}

#[test]
fn the_pre_tokenizer_can_be_overridden() {
    let meta = metadata(&replaced(bpe(&[], &[]), "tokenizer.ggml.pre", "nonesuch"));
    let error = Tokenizer::from_metadata(&meta, None).unwrap_err();
    assert!(matches!(error, TextError::UnknownPreTokenizer { .. }), "{error}");
    assert!(Tokenizer::from_metadata(&meta, Some("qwen2")).is_ok());
    let error = Tokenizer::from_metadata(&metadata(&spm(&[])), Some("qwen2")).unwrap_err();
    assert!(matches!(error, TextError::NoPreTokenizer { .. }), "{error}");
    let unnamed = bpe(&[], &[]).with(|file| file.pairs.retain(|pair| pair.key != b"tokenizer.ggml.pre"));
    assert_eq!(tokenizer(&unnamed).unwrap().warnings().len(), 1);
}

/// Work that grows with the square of the length would take minutes here.
#[test]
fn long_texts_come_back_whole() {
    const LEN: usize = 200_000;
    let merges = ["a a", "aa aa", "aaaa aaaa", "Ġ Ġ", "ĠĠ ĠĠ", "1 1", "11 11", "Ċ Ċ", "< <"];
    let special = [("  ", 4), ("    ", 4), ("<|x|>", 3), ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", 4)];
    let spm_pieces: Vec<_> = ["a", "aa", "aaaa", "aaaaaaaa", "▁", "▁▁", "▁▁▁▁", "1", "11", "1111"]
        .map(|text| (text, -(text.len() as f32), 1))
        .into();
    let mut rng = Rng(3);
    let random: String =
        (0..LEN).map(|_| ['a', 'Z', ' ', '1', '\n', 'é', '<', '|'][rng.below(8) as usize]).collect();
    let texts = [" ", "a", "1", "\n", "<", " \n", "あA", "\u{301}", "<|x|>"]
        .map(|part| part.repeat(LEN / part.len()));
    let mut files = vec![spm(&spm_pieces)];
    for pre in ["default", "gpt-2", "llama-bpe", "tekken", "gpt-4o", "deepseek-llm", "deepseek-v3", "bloom"] {
        files.push(replaced(bpe(&merges, &special), "tokenizer.ggml.pre", pre));
    }
    files.push(bpe(&merges, &special[2..]));
    for file in &files {
        let tokenizer = tokenizer(file).unwrap();
        for text in texts.iter().chain([&random]) {
            let ids = tokenizer.encode(text, PARSE).unwrap();
            let sample: String = text.chars().take(5).collect();
            assert_eq!(&tokenizer.decode(&ids, true), text, "{sample:?}");
        }
    }
}

/// `gemma4`: `<pad>`, `<eos>`, `<bos>`, `<unk>`, the bytes, then these pieces.
fn gemma(merges: &[&str], more: &[(&str, i32)]) -> GgufBuilder {
    let mut tokens: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>"].map(str::to_owned).into();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = ["▁", "a", "b", "é", "\n"].map(|text| (text, 1));
    tokens.extend(pieces.iter().chain(more).map(|(text, _)| (*text).to_owned()));
    let kinds = pieces.iter().chain(more).map(|(_, kind)| *kind);
    let types = [3, 3, 3, 2].into_iter().chain([6; 256]).chain(kinds).collect();
    vocabulary("gemma4", &tokens, types)
        .kv("tokenizer.ggml.merges", merges.to_vec())
        .kv("tokenizer.ggml.bos_token_id", 2u32)
}

#[test]
fn gemmas_merges_join_characters_and_the_rest_is_bytes() {
    let merges = ["a b", "▁ a", "▁a b"];
    let tokenizer = tokenizer(&gemma(&merges, &[("ab", 1), ("▁a", 1), ("▁ab", 1), ("<x>", 4)])).unwrap();
    let id = |text: &str| tokenizer.id_of(text).expect("a token");
    let byte = |byte: u32| 4 + byte;
    let cases: &[(&str, Vec<u32>)] = &[
        // The first merge comes first: no token `▁a` is left to join with `b`.
        (" ab", vec![id("▁"), id("ab")]),
        (" aé", vec![id("▁a"), id("é")]),
        ("a a", vec![id("a"), id("▁a")]),
        ("€c", [0xE2, 0x82, 0xAC, 0x63].map(byte).into()),
        ("b<x>b", vec![id("b"), id("<x>"), id("b")]),
        ("", vec![]),
    ];
    for (text, ids) in cases {
        assert_eq!(&tokenizer.encode(text, PLAIN).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids, false), *text);
    }
}

#[test]
fn line_ends_side_by_side_are_one_token_where_there_is_one() {
    let more = [("\n\n", 1), ("\n\n\n", 1), ("ab", 1)];
    let tokenizer = tokenizer(&gemma(&["\n \n", "a b"], &more)).unwrap();
    let id = |text: &str| tokenizer.id_of(text).expect("a token");
    // The merges alone would make two tokens of three line ends.
    assert_eq!(tokenizer.encode("ab\n\n\nab", PLAIN).unwrap(), [id("ab"), id("\n\n\n"), id("ab")]);
    assert_eq!(tokenizer.encode("\n\n\n\n", PLAIN).unwrap(), [id("\n\n"), id("\n\n")]);
    assert_eq!(tokenizer.encode("a\nb", PLAIN).unwrap(), [id("a"), id("\n"), id("b")]);
}

#[test]
fn gemmas_texts_begin_with_bos_whatever_the_file_says() {
    for said in [None, Some(false), Some(true)] {
        let file = gemma(&[], &[]);
        let file = said.into_iter().fold(file, |file, said| file.kv("tokenizer.ggml.add_bos_token", said));
        let tokenizer = tokenizer(&file).unwrap();
        assert_eq!(tokenizer.encode("a", ADD).unwrap(), [2, tokenizer.id_of("a").unwrap()]);
    }
}

#[test]
fn gemmas_vocabulary_may_lack_bytes() {
    let tokens = ["<pad>", "a"].map(str::to_owned);
    let file = vocabulary("gemma4", &tokens, vec![3, 1]).kv("tokenizer.ggml.merges", Vec::<&str>::new());
    let tokenizer = tokenizer(&file).unwrap();
    assert_eq!(tokenizer.encode("aa", PLAIN).unwrap(), [1, 1]);
    let error = tokenizer.encode("aé", PLAIN).unwrap_err();
    assert!(matches!(error, TextError::NoTokenForByte { byte: 0xC3 }), "{error}");
    let refused = Tokenizer::from_metadata(&metadata(&file), Some("gpt-2")).unwrap_err();
    assert!(matches!(refused, TextError::NoPreTokenizer { model: "gemma4" }), "{refused}");
}
