//! A model's chat template: Jinja as transformers runs it, in `minijinja`.
//!
//! Templates come with the file and are not trusted: they see the conversation and nothing else, have no
//! loader, and run on fuel, which bounds how many instructions they run and how much text they make. It does not bound
//! all that a template can cost: deep expressions and values that hold themselves exhaust the stack, lists of lists of
//! lists can be compared and printed for ever. Who does not know the template renders it in a process of its own, which
//! may take little ([`confine`](crate::store::confine)), as the command line does.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::{TextError, Tokenizer};
use crate::gguf::Metadata;

const KEY: &str = "tokenizer.chat_template";
const NAME: &str = "chat_template";

/// Bytes of the longest template. The longest in use are some tens of kilobytes.
const MAX_TEMPLATE: usize = 1 << 20;

/// Fuel of a rendering: instructions, of which each also pays for 64 bytes of data, so that the memory a
/// template can fill is 32 MB at most. Real templates use some hundreds a message.
const FUEL: u64 = 500_000;

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, ..
    pub role: String,
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// What a template sees: messages, and the texts of the model's special tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    bos_token: String,
    eos_token: String,
    unk_token: String,
    pad_token: String,
}

impl Conversation {
    /// A conversation with a model of this vocabulary. With `add_generation_prompt` its text ends with what begins the
    /// assistant's answer.
    pub fn new(messages: &[Message], add_generation_prompt: bool, tokenizer: &Tokenizer) -> Conversation {
        let text =
            |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default().to_owned();
        Conversation {
            messages: messages.to_vec(),
            add_generation_prompt,
            bos_token: text(tokenizer.bos()),
            eos_token: text(tokenizer.eos()),
            unk_token: text(tokenizer.unknown()),
            pad_token: text(tokenizer.padding()),
        }
    }
}

/// The template that turns a conversation into the text that the model was trained on.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// The model's template (`tokenizer.chat_template`), where it has one.
    ///
    /// # Errors
    /// A template over 1 MiB, or one that cannot be parsed.
    pub fn from_metadata(meta: &Metadata) -> Result<Option<ChatTemplate>, TextError> {
        ChatTemplate::source(meta)?.map(ChatTemplate::new).transpose()
    }

    /// The source of the model's template, where it has one.
    ///
    /// # Errors
    /// A key that is not a text.
    pub fn source(meta: &Metadata) -> Result<Option<&str>, TextError> {
        Ok(meta.str(KEY)?)
    }

    /// A template from its source.
    ///
    /// # Errors
    /// As [`from_metadata`](Self::from_metadata).
    pub fn new(source: &str) -> Result<ChatTemplate, TextError> {
        if source.len() > MAX_TEMPLATE {
            return Err(TextError::TemplateTooLong { len: source.len(), max: MAX_TEMPLATE });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(failed)?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(failed)?;
        Ok(ChatTemplate { environment })
    }

    /// The conversation as text for [`Tokenizer::encode_chat`].
    ///
    /// # Errors
    /// What the template raises, an error in it, or more work than it is allowed.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TextError> {
        let Conversation { messages, add_generation_prompt, bos_token, eos_token, unk_token, pad_token } =
            conversation;
        let message = |m: &Message| context! { role => &m.role[..], content => &m.content[..] };
        let values = context! {
            messages => messages.iter().map(message).collect::<Vec<Value>>(),
            add_generation_prompt,
            bos_token,
            eos_token,
            unk_token,
            pad_token,
            tools => (),
            documents => (),
        };
        self.environment.get_template(NAME).and_then(|template| template.render(values)).map_err(failed)
    }
}

/// The message of an error and of what caused it.
fn failed(error: Error) -> TextError {
    let mut message = match error.kind() {
        ErrorKind::OutOfFuel => "it takes too much time or memory".to_owned(),
        _ => error.to_string(),
    };
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    TextError::Template(message)
}

/// How templates refuse a conversation.
fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// The date and time now, UTC, in the format given.
fn strftime_now(format: &str) -> Result<String, Error> {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `tojson` as transformers has it: Python's `json.dumps` without escapes for HTML or beyond ASCII.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = match indent {
        None => serialized(value, PythonFormatter),
        Some(width @ 0..=16) => serialized(value, PrettyFormatter::with_indent(&[b' '; 16][..width])),
        Some(width) => {
            let message = format!("tojson: an indent of {width} is more than 16");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    json.map(Value::from_safe_string)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

fn serialized(value: &Value, formatter: impl Formatter) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Python's separators: `, ` and `: `.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{spm, tokenizer};
    use super::*;

    /// A conversation, rendered with the opening of an answer.
    fn render(source: &str) -> Result<String, TextError> {
        let tokenizer = tokenizer(&spm(&[])).unwrap();
        let messages = [
            Message::new("system", "Be brief."),
            Message::new("user", " Hi <b>\n"),
            Message::new("assistant", "Yes?"),
        ];
        ChatTemplate::new(source)?.render(&Conversation::new(&messages, true, &tokenizer))
    }

    fn message(error: Result<String, TextError>) -> String {
        match error {
            Err(TextError::Template(message)) => message,
            other => panic!("not a template's error: {other:?}"),
        }
    }

    #[test]
    fn llama_3_trims_and_heads_every_message() {
        let source = "{% set loop_messages = messages %}{% for message in loop_messages %}\
            {% set content = '<|head|>' + message['role'] + '<|/head|>\n\n' + message['content'] | trim + '<|eot|>' %}\
            {% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}";
        assert_eq!(
            render(source).unwrap(),
            "<s><|head|>system<|/head|>\n\nBe brief.<|eot|><|head|>user<|/head|>\n\nHi <b><|eot|>\
             <|head|>assistant<|/head|>\n\nYes?<|eot|><|head|>assistant<|/head|>\n\n"
        );
    }

    #[test]
    fn mistral_joins_the_system_message_to_the_first_question() {
        let source = "{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must take turns') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system is defined %}
            {{- '[INST] ' + system + '\\n\\n' + message['content'].strip() + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
";
        assert_eq!(render(source).unwrap(), "<s>[INST] Be brief.\n\nHi <b> [/INST] Yes?</s>");
    }

    #[test]
    fn chatml_keeps_contents_as_they_are() {
        let source = "{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{% endif %}";
        assert_eq!(
            render(source).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <b>\n<|im_end|>\n\
             <|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>assistant\n\n"
        );
    }

    #[test]
    fn phi_3_chooses_by_role() {
        let source = "{% for message in messages %}{% if message['role'] in ['system', 'user'] and message['content'] %}\
            {{ '<|' + message['role'] + '|>\n' + message['content'].strip() + '<|end|>\n' }}\
            {% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' ~ message['content'] ~ '<|end|>\n' }}\
            {% endif %}{% endfor %}\
            {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}";
        assert_eq!(
            render(source).unwrap(),
            "<|system|>\nBe brief.<|end|>\n<|user|>\nHi <b><|end|>\n<|assistant|>\nYes?<|end|>\n<|assistant|>\n"
        );
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(
            render("{{ {'a': [1, 'é<'], 'b': none} | tojson }}").unwrap(),
            r#"{"a": [1, "é<"], "b": null}"#
        );
        assert_eq!(render("{{ [1] | tojson(indent=2) }}").unwrap(), "[\n  1\n]");
        assert!(message(render("{{ [1] | tojson(indent=99) }}")).contains("more than 16"));
    }

    #[test]
    fn what_a_template_raises_is_an_error() {
        let error = message(render("{{ raise_exception('no system message, please') }}"));
        assert!(error.contains("no system message, please"), "{error}");
        for broken in ["{% for %}", "{{ 1 + }}", "{{ messages[0].content.nonesuch() }}", "{% include 'x' %}"]
        {
            assert!(!message(render(broken)).is_empty());
        }
    }

    #[test]
    fn a_template_without_end_runs_out_of_fuel() {
        let nested = "{% for a in range(9999) %}".repeat(4) + "x" + &"{% endfor %}".repeat(4);
        let growing = "{% set ns = namespace(s='0123456789abcdef') %}{% for i in range(9999) %}\
            {% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
        let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        for endless in [&nested[..], growing, "{{ 'x' * 9999999999 }}"] {
            let start = std::time::Instant::now();
            let error = message(render(endless));
            assert!(start.elapsed().as_secs() < 20, "{error}");
        }
        assert!(message(render(&nested)).contains("too much time or memory"));
        assert!(!message(render(recursive)).is_empty());
    }

    #[test]
    fn output_is_bounded() {
        let large = "{% for a in range(9999) %}{{ '".to_owned() + &"x".repeat(100_000) + "' }}{% endfor %}";
        assert!(message(render(&large)).contains("too much time or memory"));
        let long = "x".repeat(MAX_TEMPLATE + 1);
        assert!(matches!(ChatTemplate::new(&long), Err(TextError::TemplateTooLong { .. })));
    }
}
