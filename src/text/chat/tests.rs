use super::*;
use crate::text::testing::{spm, tokenizer};

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
        {% set content = '<|head|>' + message['role'] + '<|/head|>\n\n' + message['content'] | trim %}\
        {% set content = content + '<|eot|>' %}\
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
    let source = "{% for message in messages %}\
        {% if message['role'] in ['system', 'user'] and message['content'] %}\
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

/// Each with its text in Python's Jinja.
#[test]
fn numbers_and_cycles_are_pythons() {
    for (source, text) in [
        (
            "{{ 'x'|int }} {{ 'x'|int(7) }} {{ 'x'|int(default=8) }} {{ [1]|int }} {{ {}|int(3) }}",
            "0 7 8 0 3",
        ),
        (
            "{{ '42'|int + 1 }} {{ ' 42 '|int }} {{ '42.9'|int }} {{ '-3.7'|int }} {{ 3.9|int }}",
            "43 42 42 -3 3",
        ),
        ("{{ '0x1F'|int(0, 16) }} {{ 'ff'|int(base=16) }} {{ 'z'|int(default=2, base=36) }}", "31 255 35"),
        ("{{ true|int }} {{ none|int }} {{ none|int(5) }} {{ ''|int }} {{ '1e3'|int }}", "1 0 5 0 1000"),
        ("{{ 'inf'|int }} {{ 'nan'|int(4) }} {{ '1e999'|int(base=10, default=6) }}", "0 4 6"),
        (
            "{% set c = cycler('a', 'b') %}{{ c.current }}{{ c.next() }}{{ c.current }}{{ c.next() }}\
             {{ c.next() }}{{ c.current }}{% set _ = c.reset() %}{{ c.current }}",
            "aabbaba",
        ),
    ] {
        assert_eq!(render(source).unwrap(), text, "{source}");
    }
    assert!(message(render("{{ cycler() }}")).contains("at least one value"));
    assert!(!message(render("{{ 'x'|int(radix=3) }}")).is_empty());
}

#[test]
fn what_a_template_raises_is_an_error() {
    let error = message(render("{{ raise_exception('no system message, please') }}"));
    assert!(error.contains("no system message, please"), "{error}");
    for broken in ["{% for %}", "{{ 1 + }}", "{{ messages[0].content.nonesuch() }}", "{% include 'x' %}"] {
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
