//! Which tokens end a generation: by the metadata's keys, and by texts that are known.
//!
//! Files name one end of a text, while most models that chat have several: the end of a turn, the end of a
//! text, the call of a tool. Source of the keys and of most texts: llama.cpp's llama-vocab.cpp; the
//! others are the ends of turns in the families' own chat templates.

use tokenizers::models::bpe::Vocab as IdsByText;

use super::TextError;
use super::vocabulary::{TokenKind, special_id};
use crate::gguf::Metadata;

/// The keys that name ends: of a turn, of a message that calls a tool, and those of fill-in-the-middle.
const KEYS: &[&str] = &[
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
];

/// Special tokens that end a generation whatever the metadata says, by their texts: ends of turns and of
/// texts.
const TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_sentence|>",
    "<|endofresponse|>",
    "<|role_end|>",
    "<|END_OF_TURN_TOKEN|>",
    "[|endofturn|]",
    "<end_of_utterance>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<seed:eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Special tokens of fill-in-the-middle (padding, repository, file), which never belong to an answer.
const FIM_TEXTS: &[&str] = &[
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// As [`TEXTS`], but text where they are user-defined: `</s>` is HTML in Gemma's vocabularies.
const CONTROL_TEXTS: &[&str] = &["</s>"];

/// Headers of the turns of others, which end a turn of GLM's; other models have the same headers and an
/// end besides.
const GLM_HEADERS: &[&str] = &["<|user|>", "<|observation|>"];
const GLM_PREFIX: &str = "[gMASK]";

/// Special tokens of the Harmony format that are shown: an answer has its parts by them.
const SHOWN_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Tokens with a part of their own in a generation, each list in rising order.
#[derive(Debug, Default)]
pub struct Roles {
    /// They end it.
    pub ends: Vec<u32>,
    /// Control tokens that are shown all the same.
    pub shown: Vec<u32>,
}

/// Finds these tokens, and sets right the types of ends that say they are text.
pub fn find(
    meta: &Metadata,
    ids: &IdsByText,
    kinds: &mut [TokenKind],
    eos: Option<u32>,
) -> Result<Roles, TextError> {
    let mut ends: Vec<u32> = eos.into_iter().collect();
    for key in KEYS {
        ends.extend(special_id(meta, key, kinds.len())?);
    }
    // A normal token of such a text is text.
    let of_kind = |text: &str, kinds: &[TokenKind], wanted: &[TokenKind]| {
        ids.get(text).copied().filter(|&id| wanted.contains(&kinds[id as usize]))
    };
    let (control, special) = (&[TokenKind::Control], &[TokenKind::Control, TokenKind::UserDefined]);
    let glm: &[&str] = if ids.contains_key(GLM_PREFIX) { GLM_HEADERS } else { &[] };
    for text in TEXTS.iter().chain(glm) {
        if let Some(id) = of_kind(text, kinds, special) {
            // No text of a user's may end a turn.
            kinds[id as usize] = TokenKind::Control;
            ends.push(id);
        }
    }
    ends.extend(FIM_TEXTS.iter().filter_map(|text| of_kind(text, kinds, special)));
    ends.extend(CONTROL_TEXTS.iter().filter_map(|text| of_kind(text, kinds, control)));
    let mut shown: Vec<u32> = SHOWN_TEXTS.iter().filter_map(|text| of_kind(text, kinds, control)).collect();
    // In Harmony and its like `<|end|>` ends a part of an answer, not the answer.
    let has = |text: &str| ids.get(text).is_some_and(|id| ends.contains(id));
    if (has("<|call|>") || has("<|calls|>"))
        && (has("<|return|>") || has("<|flush|>"))
        && let Some(end) = of_kind("<|end|>", kinds, control)
    {
        shown.push(end);
        ends.retain(|&id| id != end);
    }
    for list in [&mut ends, &mut shown] {
        list.sort_unstable();
        list.dedup();
    }
    Ok(Roles { ends, shown })
}
