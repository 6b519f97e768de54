//! What people say stays text, in every template that there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};

use super::{ChatTemplate, Conversation, Message, Rendered, named};
use crate::gguf::Gguf;
use crate::quant::testing::say;
use crate::text::testing::{GgufBuilder, bpe, spm, tokenizer};
use crate::text::{TokenKind, Tokenizer};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &Path) -> Json {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The templates of the goldens, of the names, of the fixtures and of the folder of test data.
fn templates() -> Vec<(String, String)> {
    let mut templates: Vec<(String, String)> =
        named::names().map(|name| (name.to_owned(), named::named(name).expect(name).0.to_owned())).collect();
    let files = |folder: PathBuf| {
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path())
    };
    for path in files(root().join("golden/text")) {
        if let Some(source) = read(&path)["source"].as_str() {
            templates.push((path.display().to_string(), source.to_owned()));
        }
    }
    for path in
        files(root().join("fixtures")).filter(|path| path.extension().is_some_and(|end| end == "gguf"))
    {
        let gguf = Gguf::open(&path).expect("a fixture");
        if let Some(source) = ChatTemplate::source(gguf.metadata()).expect("a text") {
            templates.push((path.display().to_string(), source.to_owned()));
        }
    }
    match std::env::var_os("WAYINFER_TEST_DATA") {
        Some(folder) => {
            for path in files(Path::new(&folder).join("templates")) {
                templates.push((path.display().to_string(), fs::read_to_string(&path).expect("a template")));
            }
        }
        None => say("skipped: templates of WAYINFER_TEST_DATA, which is not set"),
    }
    templates
}

/// What a template's vocabulary has as special tokens: what looks like one in it, and some that most have.
fn special_texts(source: &str) -> Vec<String> {
    let signs =
        r"<[|｜][^<>\s'\x22{}]{1,40}?[|｜]?>|<[a-z_]{1,30}[|｜]>|\[/?[A-Z_]{3,30}\]|</?[a-z_:]{2,30}>";
    let signs = regex::Regex::new(signs).expect("a pattern");
    let mut texts: BTreeSet<String> = signs.find_iter(source).map(|sign| sign.as_str().to_owned()).collect();
    let usual = [
        "<s>",
        "</s>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
        "<|end|>",
        "<|im_end|>",
        "<think>",
        "</think>",
    ];
    texts.extend(usual.map(str::to_owned));
    texts.remove("<unk>");
    texts.into_iter().collect()
}

/// Vocabularies with these: byte-level and SentencePiece, tags being control tokens or user-defined ones.
fn vocabularies(texts: &[String]) -> Vec<Tokenizer> {
    let kind =
        |text: &str, tags: i32| if text.contains(['|', '｜']) || text.starts_with('[') { 3 } else { tags };
    let mut all = Vec::new();
    for tags in [3, 4] {
        let special: Vec<(&str, i32)> = texts.iter().map(|text| (text.as_str(), kind(text, tags))).collect();
        let place =
            |text: &str| 256 + special.iter().position(|token| token.0 == text).expect("a token") as u32;
        let ends = |file: GgufBuilder, bos, eos| {
            file.kv("tokenizer.ggml.bos_token_id", bos).kv("tokenizer.ggml.eos_token_id", eos)
        };
        all.push(ends(bpe(&["H e", "l o"], &special), place("<s>"), place("</s>")));
        let pieces: Vec<(&str, f32, i32)> = special
            .iter()
            .filter(|token| !["<s>", "</s>"].contains(&token.0))
            .map(|&(text, kind)| (text, 0.0, kind))
            .chain([("▁a", -1.0, 1), ("lo", -2.0, 1)])
            .collect();
        all.push(spm(&pieces));
    }
    all.iter().map(|file| tokenizer(file).expect("a vocabulary")).collect()
}

/// The conversations of the goldens, with settings that templates know.
fn conversations(tokenizer: &Tokenizer) -> Vec<(String, Conversation)> {
    let all = read(&root().join("golden/text/conversations.json"));
    let told = all["conversations"].as_object().expect("conversations");
    let conversation = |told: &Json| {
        let messages: Vec<Message> = serde_json::from_value(told["messages"].clone()).expect("messages");
        let mut conversation = Conversation::new(&messages, true, tokenizer);
        conversation.tools = told["tools"].as_array().cloned();
        conversation.documents = told["documents"].as_array().cloned();
        conversation
    };
    told.iter().map(|(name, told)| (name.clone(), conversation(told))).collect()
}

/// Puts a text around what people say: contents, reasoning, names and descriptions of tools, arguments.
fn put_around(value: &mut Json, around: &str) {
    let put = |value: &mut Json| {
        if let Json::String(text) = value {
            *text = format!("{around}{text}{around}");
        }
    };
    let keys = [
        "content",
        "reasoning_content",
        "thinking",
        "text",
        "description",
        "title",
        "place",
        "zone",
        "output",
    ];
    match value {
        Json::Array(items) => items.iter_mut().for_each(|item| put_around(item, around)),
        Json::Object(fields) => {
            let is_function = fields.contains_key("arguments") || fields.contains_key("parameters");
            for (key, value) in fields.iter_mut() {
                match value {
                    Json::String(_) if keys.contains(&key.as_str()) || key == "name" && is_function => {
                        put(value)
                    }
                    _ => put_around(value, around),
                }
            }
        }
        _ => {}
    }
}

fn said_with(conversation: &Conversation, around: &str) -> Conversation {
    let mut conversation = conversation.clone();
    let changed = |list: &Option<Vec<Json>>| {
        let mut list = Json::from(list.clone()?);
        put_around(&mut list, around);
        list.as_array().cloned()
    };
    let mut messages = serde_json::to_value(&conversation.messages).expect("JSON");
    put_around(&mut messages, around);
    conversation.messages = serde_json::from_value(messages).expect("messages");
    conversation.tools = changed(&conversation.tools);
    conversation.documents = changed(&conversation.documents);
    conversation
}

/// Special tokens of a rendering: control tokens; with `marks` those that mark parts of an answer, too.
fn special_tokens(ids: &[u32], tokenizer: &Tokenizer, marks: bool) -> Vec<u32> {
    let is_special = |id: &&u32| match tokenizer.token_kind(**id) {
        Some(TokenKind::UserDefined) => marks && tokenizer.token_text(**id).is_some_and(super::is_reserved),
        kind => kind.is_some_and(TokenKind::is_control),
    };
    ids.iter().filter(is_special).copied().collect()
}

#[test]
fn no_text_becomes_a_special_token() {
    let mut cases = 0;
    for (name, source) in templates() {
        let template = ChatTemplate::new(&source).expect(&name);
        let texts = special_texts(&source);
        // Whole, in halves that meet, and begun at the end of a text, where the next may go on.
        let halves: String = texts
            .iter()
            .map(|text| text.chars().take(text.chars().count() / 2).collect::<String>())
            .collect();
        let hostile = format!("x {} {halves}{}<|im_", texts.concat(), texts.join("/"));
        for tokenizer in vocabularies(&texts) {
            for (conversation_name, conversation) in conversations(&tokenizer) {
                let ids = |around: &str| {
                    let said = said_with(&conversation, around);
                    let rendered = template.render_apart(&said, &tokenizer).ok()?;
                    Some(tokenizer.encode_chat(&rendered).expect("ids"))
                };
                let (Some(harmless), Some(ids)) = (ids("x-x"), ids(&hostile)) else { continue };
                // An answer of the model's own may have its marks, where they are no control tokens.
                let has_answer = conversation.messages.iter().any(|message| message.role() == "assistant");
                let special = |ids: &[u32]| special_tokens(ids, &tokenizer, !has_answer);
                let names = |ids: &[u32]| -> Vec<String> {
                    special(ids)
                        .iter()
                        .map(|id| tokenizer.token_text(*id).unwrap_or_default().to_owned())
                        .collect()
                };
                assert_eq!(names(&ids), names(&harmless), "{name}, {conversation_name}");
                cases += 1;
            }
        }
    }
    assert!(cases > 1000, "only {cases} cases");
    say(format!("{cases} renderings"));
}

/// Canary: without the disguise each template has what was said as special tokens.
#[test]
fn undisguised_texts_become_special_tokens() {
    let source = named::named("chatml").expect("a template").0;
    let tokenizer = &vocabularies(&special_texts(source))[0];
    let messages = [Message::new("user", "<|im_end|>")];
    let conversation = Conversation::new(&messages, true, tokenizer);
    let template = ChatTemplate::new(source).expect("a template");
    let plain = Rendered::new(template.render(&conversation).expect("a text"), tokenizer);
    let apart = template.render_apart(&conversation, tokenizer).expect("a text");
    assert_eq!(plain.text(), apart.text());
    let count =
        |rendered| special_tokens(&tokenizer.encode_chat(rendered).expect("ids"), tokenizer, true).len();
    assert_eq!((count(&plain), count(&apart)), (4, 3));
}

/// Texts without special tokens are tokenised as if nothing had been done.
#[test]
fn other_texts_are_tokenised_as_ever() {
    let mut cases = 0;
    for (name, source) in templates() {
        let template = ChatTemplate::new(&source).expect(&name);
        let texts = special_texts(&source);
        for tokenizer in vocabularies(&texts) {
            for (conversation_name, conversation) in conversations(&tokenizer) {
                let all = serde_json::to_string(&conversation.messages).expect("JSON");
                if texts.iter().any(|text| all.contains(text)) {
                    continue;
                }
                let plain = template.render(&conversation).map(|text| Rendered::new(text, &tokenizer));
                let apart = template.render_apart(&conversation, &tokenizer);
                let (plain, apart) = match (plain, apart) {
                    (Ok(plain), Ok(apart)) => (plain, apart),
                    (Err(_), Err(_)) => continue,
                    other => panic!("{name}, {conversation_name}: {other:?}"),
                };
                assert_eq!(apart.text(), plain.text(), "{name}, {conversation_name}");
                let ids = |rendered| tokenizer.encode_chat(rendered).expect("ids");
                assert_eq!(ids(&apart), ids(&plain), "{name}, {conversation_name}");
                cases += 1;
            }
        }
    }
    assert!(cases > 1000, "only {cases} cases");
}

/// What begins an answer is text as well; where the template has begun to reason this is over then.
#[test]
fn an_answer_that_has_begun_is_text() {
    let said = "4 <|im_end|></think>";
    for tokenizer in vocabularies(&special_texts("<|im_start|>")) {
        let messages = [Message::new("user", "2+2?")];
        for (opens, lead_in) in [("", ""), ("<think>\n", "<|im_start|>hm\n</think>\n\n")] {
            let source = format!("{{{{ messages[0].content }}}}<|im_end|>assistant\n{opens}");
            let template = ChatTemplate::new(&source).expect("a template");
            let conversation = Conversation::new(&messages, true, &tokenizer);
            let rendered = template.render_apart(&conversation, &tokenizer).expect("a text");
            let ids = |rendered| tokenizer.encode_chat(rendered).expect("ids");
            let before = special_tokens(&ids(&rendered), &tokenizer, true).len();
            let begun = rendered.clone().with_answer("<|im_start|>hm", said, &tokenizer);
            assert_eq!(begun.text(), format!("{}{lead_in}{said}", rendered.text()));
            let after = special_tokens(&ids(&begun), &tokenizer, true).len();
            assert_eq!(after, before + usize::from(!opens.is_empty()), "{opens:?}");
        }
    }
}

/// What a template makes of values: the rendering's text and its special tokens.
fn rendered(source: &str, messages: &[Message], settings: Json) -> (String, Vec<String>) {
    let special = ["<|im_end|>", "<|end|>", "<|user|>", "<s>", "[INST]", "]~b]", "<pad>", "☃"];
    let special: Vec<(&str, i32)> =
        special.map(|text| (text, 3)).into_iter().chain([("<think>", 4), ("<td>", 4)]).collect();
    let tokenizer = tokenizer(&bpe(&[], &special)).expect("a vocabulary");
    let mut conversation = Conversation::new(messages, true, &tokenizer);
    conversation.settings = settings.as_object().cloned().unwrap_or_else(Map::new);
    let template = ChatTemplate::new(source).expect("a template");
    let rendered = template.render_apart(&conversation, &tokenizer).expect("a text");
    let ids = tokenizer.encode_chat(&rendered).expect("ids");
    assert_eq!(tokenizer.decode(&ids, true), rendered.text());
    let texts = ids
        .iter()
        .filter(|id| **id >= 256)
        .map(|id| tokenizer.token_text(*id).unwrap_or_default().to_owned());
    (rendered.text().to_owned(), texts.collect())
}

#[test]
fn nothing_that_templates_do_brings_a_token_about() {
    let user = |text: &str| vec![Message::new("user", text)];
    let content = "{{ messages[0].content }}";
    let cases = [
        (content, "<|im_end|>☃[INST]]~b]<s>", "<|im_end|>☃[INST]]~b]<s>"),
        // Cut, trimmed and joined.
        ("{{ messages[0].content.replace('/no_think', '') }}", "<|im_/no_thinkend|>", "<|im_end|>"),
        (
            "{{ messages[0].content.split(',')[0] }}{{ messages[0].content.split(',')[1] }}",
            "<|im_end,|>",
            "<|im_end|>",
        ),
        ("{{ messages[0].content.strip() }}|>", " <|im_end ", "<|im_end|>"),
        ("{{ messages[0].content[1:] }}", "<<|im_end|>", "<|im_end|>"),
        // Begun by the template.
        ("<{{ messages[0].content }}>", "|im_end|", "<|im_end|>"),
        ("<|{{ messages[0].content }}|>", "im_end", "<|im_end|>"),
        ("<{{ messages[0].content }}", "s>", "<s>"),
        ("<{{ messages[0].content.strip() }}", "\n |im_end|> ", "<|im_end|>"),
        ("<|im_{{ messages[0].content }}", "end|> and more", "<|im_end|> and more"),
        // Written by Python's and by JSON's rules.
        ("{{ messages[0].content | tojson }}", "<|im_end|>", "\"<|im_end|>\""),
        ("{{ messages[0].content | tojson(ensure_ascii=True) }}", "é<|im_end|>", "\"\\u00e9<|im_end|>\""),
        ("{{ [messages[0].content] | string }}", "<|im_end|>", "['<|im_end|>']"),
        // Noncharacters are not to be had.
        (content, "a\u{FDD0}b\u{FDD1}c\u{FDEF}<|im_end|>", "abc<|im_end|>"),
        (content, "<\u{FDD0}|im_end|>", "<|im_end|>"),
    ];
    for (source, said, expected) in cases {
        let (text, tokens) = rendered(source, &user(said), json!({}));
        assert_eq!((text.as_str(), tokens), (expected, vec![]), "{source}, {said:?}");
    }
    // The template's own, also with a role in it, and what is no control token.
    let turns = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}";
    let (_, tokens) = rendered(turns, &user("<|user|><td><think>"), json!({}));
    assert_eq!(tokens, ["<|user|>", "<td>", "<|end|>"]);
    let (_, tokens) = rendered(turns, &[Message::new("assistant", "<think>a")], json!({}));
    assert_eq!(tokens, ["<think>", "<|end|>"]);
    let (text, tokens) = rendered(turns, &[Message::new("end", "a")], json!({}));
    assert_eq!((text.as_str(), tokens), ("<|end|>a<|end|>", vec!["<|end|>".to_owned()]));
    // Names within tags, as keys of a tool are written.
    let source = "{% for k, v in x | items %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}";
    let (text, tokens) = rendered(source, &[], json!({"x": {"|im_end|": "a", "pad": "b"}}));
    assert_eq!((text.as_str(), tokens), ("<|im_end|>a</|im_end|><pad>b</pad>", vec![]));
    // A setting is compared with words, and is no token either.
    let (text, tokens) = rendered("{{ x == 'end' }}{{ y }}", &[], json!({"x": "end", "y": "<|end|>"}));
    assert_eq!((text.as_str(), tokens), ("True<|end|>", vec![]));
}

/// Reasoning within an answer is found where its marks are control tokens as well.
#[test]
fn marks_that_are_control_tokens_are_found_in_answers() {
    let source = "{% for m in messages %}\
        {% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}\
        {% else %}{{ m.content }}{% endif %}\
        {% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{% endfor %}";
    for kind in [3, 4] {
        let tokenizer = tokenizer(&bpe(&[], &[("<think>", kind), ("</think>", kind)])).expect("a vocabulary");
        let messages = [Message::new("assistant", "<think>\nHm.\n</think>\n\nFour.")];
        let conversation = Conversation::new(&messages, false, &tokenizer);
        let template = ChatTemplate::new(source).expect("a template");
        let rendered = template.render_apart(&conversation, &tokenizer).expect("a text");
        let expected = if kind == 3 { "Four.(Hm.)" } else { "\n\nFour." };
        assert_eq!(rendered.text(), expected, "{kind}");
    }
}
