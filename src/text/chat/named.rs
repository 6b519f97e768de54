//! Templates by name, for models that come without one: the formats that most of them were trained on.

/// Name, source, and the texts that begin the user's next turn or end the answer: a model whose vocabulary
/// does not know them as tokens writes them out.
type Named = (&'static str, &'static str, &'static [&'static str]);

const NAMED: &[Named] = &[
    ("chatml", CHATML, &["<|im_end|>", "<|im_start|>"]),
    ("llama2", LLAMA2, &["[INST]"]),
    ("llama3", LLAMA3, &["<|eot_id|>", "<|start_header_id|>"]),
    ("gemma", GEMMA, &["<end_of_turn>", "<start_of_turn>"]),
    ("phi3", PHI3, &["<|end|>", "<|user|>"]),
    ("zephyr", ZEPHYR, &["<|user|>"]),
    ("vicuna", VICUNA, &["USER:"]),
    ("alpaca", ALPACA, &["\n### Instruction:"]),
];

/// The source of the template of this name, and the texts that end an answer in it.
pub fn named(name: &str) -> Option<(&'static str, &'static [&'static str])> {
    NAMED.iter().find(|(known, ..)| *known == name).map(|(_, source, stops)| (*source, *stops))
}

/// The names that there are.
pub fn names() -> impl Iterator<Item = &'static str> {
    NAMED.iter().map(|(name, ..)| *name)
}

const CHATML: &str = "\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}";

/// The system message goes into the first turn.
const LLAMA2: &str = "\
{%- set ns = namespace(system='') -%}
{%- for m in messages -%}
{%- if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' -%}
{%- elif m.role == 'user' %}{{ bos_token + '[INST] ' + ns.system + m.content + ' [/INST]' -}}
{% set ns.system = '' -%}
{%- else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif -%}
{%- endfor -%}";

const LLAMA3: &str = "\
{{- bos_token -}}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif -%}";

/// There is no turn of a system: its message stands before the first of the user.
const GEMMA: &str = "\
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- for m in messages -%}
{%- if m.role == 'system' %}{% set ns.system = m.content + '\n\n' -%}
{%- elif m.role == 'user' %}{{ '<start_of_turn>user\n' + ns.system + m.content + '<end_of_turn>\n' -}}
{% set ns.system = '' -%}
{%- else %}{{ '<start_of_turn>model\n' + m.content + '<end_of_turn>\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif -%}";

const PHI3: &str = "\
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}";

const ZEPHYR: &str = "\
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}";

const VICUNA: &str = "\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'system' %}{{ m.content + '\n\n' -}}
{%- elif m.role == 'user' %}{{ 'USER: ' + m.content + '\n' -}}
{%- else %}{{ 'ASSISTANT: ' + m.content + eos_token + '\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}";

const ALPACA: &str = "\
{%- for m in messages -%}
{%- if m.role == 'system' %}{{ m.content + '\n\n' -}}
{%- elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' -}}
{%- else %}{{ '### Response:\n' + m.content + eos_token + '\n\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif -%}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{spm, tokenizer};
    use crate::text::{ChatTemplate, Conversation, Message};

    /// Every turn is there once, in its order, and what begins the answer comes last.
    #[test]
    fn every_template_has_all_turns_in_order() {
        let texts = ["SYSTEM", "FIRST", "ANSWER", "SECOND"];
        let roles = ["system", "user", "assistant", "user"];
        let messages: Vec<Message> =
            roles.iter().zip(texts).map(|(role, text)| Message::new(*role, text)).collect();
        let tokenizer = tokenizer(&spm(&[("a", 0.0, 1)])).unwrap();
        for name in names() {
            let (source, stops) = named(name).unwrap();
            let template = ChatTemplate::new(source).unwrap();
            let conversation = |turn| Conversation::new(&messages, turn, &tokenizer);
            let text = template.render(&conversation(true)).unwrap();
            let places: Vec<usize> =
                texts.iter().map(|t| text.find(t).unwrap_or_else(|| panic!("{name}: {t}"))).collect();
            assert!(places.is_sorted(), "{name}: {text}");
            assert!(texts.iter().all(|t| text.matches(t).count() == 1), "{name}: {text}");
            // What comes after an answer in the template is what an answer ends at.
            let after = &text[places[2] + texts[2].len()..places[3]];
            assert!(stops.iter().any(|stop| after.contains(stop)), "{name}: {after:?}");
            let without = template.render(&conversation(false)).unwrap();
            assert!(text.starts_with(&without), "{name}: an answer is added to what stands");
        }
        assert_eq!(named("none of these"), None);
    }
}
