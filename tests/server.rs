//! The server from outside: what OpenAI's clients are answered, who is let in, what becomes of requests that
//! make no sense, and how it ends.

mod common;

use std::collections::BTreeSet;
#[cfg(unix)]
use std::io::BufRead;
use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

use common::runs::{Run, fixture, load, options};
use common::server::{Reply, Server, command, head};
use serde_json::{Value, json};
use wayinfer::engine::logprobs;
use wayinfer::model::Logits;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A conversation with nothing but this question.
fn question(text: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": text }], "temperature": 0 })
}

/// A request with more fields.
fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    body
}

/// The texts of one choice's pieces.
fn joined(pieces: &[Value], index: usize) -> String {
    let choices = pieces.iter().flat_map(|piece| piece["choices"].as_array().expect("choices"));
    let of = choices.filter(|choice| choice["index"] == index);
    of.filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str())).collect()
}

#[test]
fn a_chat_is_answered_whole() {
    let server = Server::demo(&["--alias", "tiny"]);
    let body = with(question("What is 2+2?"), json!({ "model": "gpt-4o", "user": "me" }));
    let answer = server.ask(CHAT, &body);
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "tiny");
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")), "{answer}");
    assert!(answer["created"].as_u64() > Some(1_700_000_000));
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(1));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"], json!({ "role": "assistant", "content": "The sum of 2 and 2 is 4." }));
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("stop")));
    assert_eq!(choice["logprobs"], Value::Null);
    let tokens = |name: &str| answer["usage"][name].as_u64().expect("a number");
    assert_eq!(tokens("prompt_tokens") + tokens("completion_tokens"), tokens("total_tokens"));
    // With the token that ends it.
    assert_eq!(tokens("completion_tokens"), 13);
    // Another one has another id; most of the prompt is remembered.
    let again = server.ask(CHAT, &body);
    assert_ne!(again["id"], answer["id"]);
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached, Some(tokens("prompt_tokens") - 1));
    assert_eq!(again["choices"], answer["choices"]);
}

#[test]
fn a_chat_comes_piece_by_piece() {
    let server = Server::demo(&[]);
    let body = question("What is 2+2?");
    let usage = with(body.clone(), json!({ "stream_options": { "include_usage": true } }));
    let (plain, mut pieces) = (server.pieces(CHAT, &body), server.pieces(CHAT, &usage));
    // Usage only where it is asked for: a piece without choices.
    assert!(plain.iter().all(|piece| piece.get("usage").is_none()));
    let last = pieces.pop().expect("a piece");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 13);
    for pieces in [&plain, &pieces] {
        let first = &pieces[0]["choices"][0]["delta"];
        assert_eq!(*first, json!({ "role": "assistant", "content": null }));
        assert_eq!(joined(pieces, 0), "The sum of 2 and 2 is 4.");
        let ids: BTreeSet<_> = pieces.iter().map(|piece| piece["id"].as_str()).collect();
        let created: BTreeSet<_> = pieces.iter().map(|piece| piece["created"].as_u64()).collect();
        assert_eq!((ids.len(), created.len()), (1, 1));
        assert!(pieces.iter().all(|piece| piece["object"] == "chat.completion.chunk"));
        let (end, before) = pieces.split_last().expect("pieces");
        assert_eq!(end["choices"][0]["delta"], json!({}));
        assert_eq!(end["choices"][0]["finish_reason"], "stop");
        assert!(before.iter().all(|piece| piece["choices"][0]["finish_reason"].is_null()));
        assert!(before[1..].iter().all(|piece| piece["choices"][0]["delta"].get("role").is_none()));
    }
    assert_eq!(pieces[0]["id"], last["id"]);
}

#[test]
fn a_text_is_continued() {
    let server = Server::demo(&[]);
    let body = json!({ "prompt": "Once", "max_tokens": 3, "seed": 3, "temperature": 1.0 });
    let answer = server.ask(TEXT, &body);
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    let text = answer["choices"][0]["text"].as_str().expect("a text");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let pieces = server.pieces(TEXT, &body);
    assert_eq!(joined(&pieces, 0), text);
    let end = &pieces.last().expect("a piece")["choices"][0];
    assert_eq!((&end["text"], &end["finish_reason"]), (&json!(""), &json!("length")));
    // A list of one, and the tokens of it, mean the same.
    let tokens =
        server.ask("/tokenize", &json!({ "content": "Once", "add_special": true }))["tokens"].clone();
    for prompt in [json!(["Once"]), tokens.clone(), json!([tokens])] {
        let same = server.ask(TEXT, &with(body.clone(), json!({ "prompt": prompt })));
        assert_eq!(same["choices"], answer["choices"], "{prompt}");
    }
}

#[test]
fn probabilities_tell_of_each_token() {
    let server = Server::demo(&[]);
    let chat = with(question("Spell the word cat."), json!({ "logprobs": true, "top_logprobs": 3 }));
    let answer = server.ask(CHAT, &chat);
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().expect("tokens").clone();
    let text: String = tokens.iter().map(|token| token["token"].as_str().expect("a text")).collect();
    assert_eq!(choice["message"]["content"], text);
    for token in &tokens {
        let top = token["top_logprobs"].as_array().expect("tokens");
        let logprobs: Vec<f64> = top.iter().map(|top| top["logprob"].as_f64().expect("a number")).collect();
        assert_eq!(top.len(), 3);
        assert!(logprobs.is_sorted_by(|a, b| a >= b) && logprobs[0] <= 0.0, "{logprobs:?}");
        // Without a temperature it is the most probable that is drawn.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&token["token"], &token["logprob"]));
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).expect("bytes");
        assert_eq!(String::from_utf8_lossy(&bytes), token["token"].as_str().unwrap_or_default());
    }
    let pieces = server.pieces(CHAT, &chat);
    let streamed = pieces.iter().filter_map(|piece| piece["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(streamed.flatten().cloned().collect::<Vec<_>>(), tokens);

    let body = json!({ "prompt": "Once", "max_tokens": 4, "seed": 3, "temperature": 1.0, "logprobs": 2 });
    let choice = server.ask(TEXT, &body)["choices"][0].clone();
    let logprobs = &choice["logprobs"];
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(choice["text"], tokens.concat());
    assert_eq!(tokens.len(), 4);
    for name in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[name].as_array().map(Vec::len), Some(4), "{name}");
    }
    let starts: Vec<usize> = (0..4).map(|n| tokens[..n].concat().chars().count()).collect();
    assert_eq!(logprobs["text_offset"], json!(starts));
    let offsets = server.pieces(TEXT, &body);
    let offsets =
        offsets.iter().filter_map(|piece| piece["choices"][0]["logprobs"]["text_offset"].as_array());
    assert_eq!(offsets.flatten().filter_map(Value::as_u64).map(|n| n as usize).collect::<Vec<_>>(), starts);
}

/// What an evaluation asks for: several prompts, given back with how probable their tokens are, and a token more.
#[test]
fn prompts_are_given_back_with_their_probabilities() {
    let server = Server::demo(&["-c", "256"]);
    let texts = ["What is 2+2? The sum of 2 and 2 is 4.", "Once upon a time ".repeat(12).leak()];
    let encoded = |text: &str| -> Vec<u32> {
        let asked = json!({ "prompt": text, "add_special_tokens": false });
        let told = server.ask("/tokenize", &asked);
        assert_eq!((&told["max_model_len"], told["count"].as_u64().is_some()), (&json!(256), true));
        serde_json::from_value(told["tokens"].clone()).expect("ids")
    };
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| encoded(text)).collect();
    assert!(ids[1].len() > 40, "{}", ids[1].len());
    let body = json!({ "prompt": ids, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": true });
    let answer = server.ask(TEXT, &body);
    let choices = answer["choices"].as_array().expect("choices").clone();
    assert_eq!(choices.len(), 2);
    assert_eq!(answer["usage"]["prompt_tokens"], ids[0].len() + ids[1].len());
    assert_eq!(answer["usage"]["completion_tokens"], 2);

    // To the last digit what the library gives.
    let model = load(&fixture("demo-q4_k_m"));
    let vocab = model.spec().vocab;
    let number = |value: &Value| value.as_f64().map(|number| number as f32);
    for (n, (ids, choice)) in ids.iter().zip(&choices).enumerate() {
        assert_eq!(choice["index"], n);
        let text = choice["text"].as_str().expect("a text");
        assert!(text.starts_with(texts[n]), "{text}");
        let list = |name: &str| choice["logprobs"][name].as_array().expect("a list").clone();
        let (told, top) = (list("token_logprobs"), list("top_logprobs"));
        assert_eq!((told.len(), top.len()), (ids.len() + 1, ids.len() + 1));
        assert_eq!((&told[0], &top[0]), (&Value::Null, &Value::Null));
        let mut run = Run::new(&model, &options(256, 256));
        run.feed(ids, Logits::All).expect("a pass");
        for (at, row) in run.sequence.logits().chunks(vocab).enumerate() {
            let id = ids.get(at + 1).copied();
            let wanted = logprobs(row, id.unwrap_or_default(), 1);
            let best = top[at + 1].as_object().and_then(|top| top.values().next()).and_then(number);
            assert_eq!(best, Some(wanted.top[0].1), "{n}, {at}");
            let chosen = if id.is_some() { wanted.chosen } else { wanted.top[0].1 };
            assert_eq!(number(&told[at + 1]), Some(chosen), "{n}, {at}");
        }
        // The canary: another model's are others.
        assert_ne!(told[1].as_f64(), told[2].as_f64());
        // Offsets are places in the text; what was made may be an end, which has none.
        let chars: Vec<char> = text.chars().collect();
        for (token, at) in list("tokens").iter().zip(list("text_offset")).take(ids.len()) {
            let token = token.as_str().expect("a text");
            let at = at.as_u64().expect("a number") as usize;
            let there: String = chars[at..].iter().take(token.chars().count()).collect();
            assert_eq!(there, token, "{n}");
        }
        // Alone it is the same, and so it is in pieces.
        let alone = with(body.clone(), json!({ "prompt": ids }));
        let whole = server.ask(TEXT, &alone)["choices"][0].clone();
        assert_eq!((&whole["text"], &whole["logprobs"]), (&choice["text"], &choice["logprobs"]));
        let pieces = server.pieces(TEXT, &alone);
        assert_eq!(joined(&pieces, 0), text);
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let all = pieces.iter().filter_map(|piece| piece["choices"][0]["logprobs"][name].as_array());
            assert_eq!(all.flatten().cloned().collect::<Vec<_>>(), list(name), "{name}");
        }
    }
    // The prompt alone, as text; and several answers to each.
    let alone = json!({ "prompt": texts[0], "max_tokens": 0, "logprobs": 0, "echo": true });
    let choice = server.ask(TEXT, &alone)["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(texts[0]), &json!("length")));
    let plain = json!({ "prompt": ["Once", "Two"], "n": 2, "max_tokens": 3, "seed": 5, "temperature": 1.0 });
    let four = server.ask(TEXT, &plain)["choices"].as_array().expect("choices").clone();
    assert_eq!(four.len(), 4);
    for (text, pair) in ["Once", "Two"].iter().zip(four.chunks(2)) {
        let one = server.ask(TEXT, &with(plain.clone(), json!({ "prompt": text })));
        for (choice, same) in pair.iter().zip(one["choices"].as_array().expect("choices")) {
            assert_eq!(choice["text"], same["text"], "{text}");
        }
    }
    let echoed = server.ask(TEXT, &with(plain, json!({ "echo": true })))["choices"].clone();
    for (n, choice) in four.iter().enumerate() {
        let wanted = format!("{}{}", ["Once", "Two"][n / 2], choice["text"].as_str().expect("a text"));
        assert_eq!((&echoed[n]["text"], &echoed[n]["logprobs"]), (&json!(wanted), &Value::Null));
    }
    // What is told of the vocabulary.
    let info = server.get("/tokenizer_info").json();
    assert_eq!(info["model_max_length"], 256);
    let end = info["eos_token"].as_str().expect("a token").to_owned();
    assert_eq!(encoded(&end).len(), 1);
    let back = server.ask("/detokenize", &json!({ "tokens": ids[0] }));
    assert_eq!((&back["prompt"], &back["content"]), (&json!(texts[0]), &json!(texts[0])));
    for wrong in [json!({}), json!({ "content": "a", "prompt": "b" })] {
        assert_eq!(server.post("/tokenize", &wrong).status, 400);
    }
}

/// A grammar has the model write it: apart in a chat, and text as any other where a text is continued.
#[test]
fn reasoning_is_told_apart_in_chats_alone() {
    let server = Server::demo(&[]);
    let grammar = json!({ "grammar": "root ::= \"<think>so</think> it is\"", "max_tokens": 40 });
    let chat = with(question("What is 2+2?"), grammar.clone());
    let message = server.ask(CHAT, &chat)["choices"][0]["message"].clone();
    assert_eq!(message, json!({ "role": "assistant", "content": "it is", "reasoning_content": "so" }));
    let pieces = server.pieces(CHAT, &chat);
    let reasoning =
        pieces.iter().filter_map(|piece| piece["choices"][0]["delta"]["reasoning_content"].as_str());
    assert_eq!((reasoning.collect::<String>(), joined(&pieces, 0)), ("so".to_owned(), "it is".to_owned()));
    let text = with(json!({ "prompt": "Once", "logprobs": 0 }), grammar);
    let choice = server.ask(TEXT, &text)["choices"][0].clone();
    assert_eq!(choice["text"], "<think>so</think> it is");
    let tokens = choice["logprobs"]["tokens"].as_array().into_iter().flatten().filter_map(Value::as_str);
    assert_eq!(tokens.collect::<String>(), "<think>so</think> it is");
    assert_eq!(joined(&server.pieces(TEXT, &text), 0), "<think>so</think> it is");
}

#[test]
fn texts_end_answers_whatever_tokens_they_lie_in() {
    let server = Server::demo(&[]);
    for (stop, want, reason) in [
        (json!(" and 2"), "The sum of 2", "stop"),
        (json!(["nothing", "um o"]), "The s", "stop"),
        (json!(["2 is 4.", "and"]), "The sum of 2 ", "stop"),
        (json!("The"), "", "stop"),
        (json!("4.\n"), "The sum of 2 and 2 is 4.", "stop"),
        (json!([]), "The sum of 2 and 2 is 4.", "stop"),
        (Value::Null, "The sum of 2 and 2 is 4.", "stop"),
    ] {
        let body = with(question("What is 2+2?"), json!({ "stop": stop }));
        let choice = server.ask(CHAT, &body)["choices"][0].clone();
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(want), &json!(reason)));
        let pieces = server.pieces(CHAT, &body);
        assert_eq!(joined(&pieces, 0), want, "{stop}");
        assert_eq!(pieces.last().expect("a piece")["choices"][0]["finish_reason"], reason, "{stop}");
    }
}

#[test]
fn several_answers_are_those_of_the_seeds_that_follow() {
    let server = Server::demo(&[]);
    let body = json!({ "prompt": "Once", "max_tokens": 12, "temperature": 1.5, "top_p": 1, "logprobs": 0 });
    let one =
        |seed: u64| server.ask(TEXT, &with(body.clone(), json!({ "seed": seed })))["choices"][0].clone();
    let single: Vec<Value> = (40..45).map(one).collect();
    assert!(single.iter().map(|choice| choice["text"].to_string()).collect::<BTreeSet<_>>().len() > 2);
    let five = with(body.clone(), json!({ "seed": 40, "n": 5 }));
    let answer = server.ask(TEXT, &five);
    for (n, single) in single.iter().enumerate() {
        assert_eq!(answer["choices"][n], with(single.clone(), json!({ "index": n })));
    }
    let made: u64 = answer["usage"]["completion_tokens"].as_u64().expect("a number");
    assert!((5..=60).contains(&made), "{made}");
    let pieces = server.pieces(TEXT, &five);
    for (n, single) in single.iter().enumerate() {
        assert_eq!(joined(&pieces, n), single["text"].as_str().unwrap_or_default(), "choice {n}");
    }
    let ends = pieces.iter().filter(|piece| !piece["choices"][0]["finish_reason"].is_null());
    assert_eq!(ends.count(), 5);
}

#[test]
fn limits_of_tokens() {
    let server = Server::demo(&[]);
    let whole = "The sum of 2 and 2 is 4.";
    for (limits, want, reason) in [
        (json!({ "max_tokens": 3 }), "The sum of", "length"),
        (json!({ "max_completion_tokens": 1 }), "The", "length"),
        (json!({ "max_completion_tokens": 2, "max_tokens": 9 }), "The sum", "length"),
        (json!({ "max_tokens": -1 }), whole, "stop"),
        (json!({ "max_tokens": null }), whole, "stop"),
        (json!({ "max_tokens": 1_000_000_000 }), whole, "stop"),
    ] {
        let choice = server.ask(CHAT, &with(question("What is 2+2?"), limits.clone()))["choices"][0].clone();
        assert_eq!(choice["message"]["content"], want, "{limits}");
        assert_eq!(choice["finish_reason"], reason, "{limits}");
    }
    let error = server.post(CHAT, &with(question("?"), json!({ "max_tokens": 0 }))).error();
    assert_eq!(error["param"], "max_tokens");
}

/// Every name that is no seed of its own means the same answer where a seed is given.
#[test]
fn what_is_null_or_unknown_is_as_if_it_was_not_there() {
    let server = Server::demo(&[]);
    let plain = with(question("What is 3+4?"), json!({ "temperature": 1.2, "seed": 5 }));
    let want = server.ask(CHAT, &plain)["choices"].clone();
    let more = json!({
        "store": false, "metadata": { "a": "b" }, "service_tier": "auto", "user": "u", "unheard_of": [{}],
        "model": null, "stream": null, "stream_options": null, "max_tokens": null, "top_p": null, "top_k": null,
        "min_p": null, "n": null, "stop": null, "logprobs": null, "top_logprobs": null, "logit_bias": null,
        "presence_penalty": null, "frequency_penalty": null, "repeat_penalty": null, "response_format": null,
        "tools": null, "tool_choice": null, "parallel_tool_calls": null, "reasoning_effort": null,
        "chat_template_kwargs": null,
    });
    assert_eq!(server.ask(CHAT, &with(plain, more))["choices"], want);
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    let server = Server::demo(&[]);
    let chat = question("What is 2+2?");
    let text = json!({ "prompt": "a", "max_tokens": 1 });
    for (path, body, fields, param) in [
        (CHAT, &chat, json!({ "max_tokens": "many" }), "max_tokens"),
        (CHAT, &chat, json!({ "temperature": "hot" }), "temperature"),
        (CHAT, &chat, json!({ "temperature": -1 }), "temperature"),
        (CHAT, &chat, json!({ "top_p": 1.5 }), "top_p"),
        (CHAT, &chat, json!({ "seed": 1.5 }), "seed"),
        (CHAT, &chat, json!({ "stream": "yes" }), "stream"),
        (CHAT, &chat, json!({ "stream_options": { "include_usage": 1 } }), "stream_options.include_usage"),
        (CHAT, &chat, json!({ "stop": 5 }), "stop"),
        (CHAT, &chat, json!({ "stop": [""] }), "stop"),
        (CHAT, &chat, json!({ "n": 0 }), "n"),
        (CHAT, &chat, json!({ "n": 1000 }), "n"),
        (CHAT, &chat, json!({ "logprobs": 2 }), "logprobs"),
        (CHAT, &chat, json!({ "top_logprobs": 2 }), "top_logprobs"),
        (CHAT, &chat, json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (CHAT, &chat, json!({ "messages": "hello" }), "messages"),
        (CHAT, &chat, json!({ "messages": [] }), "messages"),
        (CHAT, &chat, json!({ "messages": ["hello"] }), "messages[0]"),
        (CHAT, &chat, json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (CHAT, &chat, json!({ "messages": [{ "role": "king", "content": "" }] }), "messages[0].role"),
        (TEXT, &text, json!({ "prompt": { "a": 1 } }), "prompt"),
        (TEXT, &text, json!({ "prompt": [4_000_000_000u32] }), "prompt"),
        (TEXT, &text, json!({ "prompt": vec!["a"; 129] }), "prompt"),
        (TEXT, &text, json!({ "prompt": ["a", "b"], "n": 100 }), "prompt"),
        (TEXT, &text, json!({ "prompt": [[4], [4_000_000_000u32]] }), "prompt"),
        (TEXT, &text, json!({ "prompt": ["a", 1] }), "prompt"),
        (TEXT, &text, json!({ "max_tokens": 0 }), "max_tokens"),
        (TEXT, &text, json!({ "echo": "yes" }), "echo"),
        (TEXT, &text, json!({ "logprobs": -1 }), "logprobs"),
    ] {
        for stream in [false, true] {
            let fields = with(json!({ "stream": stream }), fields.clone());
            let reply = server.post(path, &with(body.clone(), fields.clone()));
            assert_eq!(reply.status, 400, "{fields}: {}", reply.text());
            assert_eq!(reply.error()["param"], param, "{fields}: {}", reply.text());
        }
    }
    // A picture is refused by name.
    let picture = json!({ "type": "image_url", "image_url": { "url": "data:image/png;base64,AA==" } });
    let parts = json!([{ "type": "text", "text": "What is this?" }, picture]);
    let reply = server.post(CHAT, &json!({ "messages": [{ "role": "user", "content": parts }] }));
    assert_eq!(reply.status, 400);
    assert_eq!(reply.error()["param"], "messages[0].content[1].type");
    assert!(reply.text().contains("image_url"), "{}", reply.text());
    server.is_well();
}

#[test]
fn bodies_that_are_no_requests() {
    let server = Server::demo(&[]);
    let deep = "[".repeat(100_000);
    let deep_field = format!("{{\"prompt\":\"a\",\"stop\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"\"prompt\"",
        b"null",
        b"{\"prompt\":\"a\"} x",
        b"{\"prompt\":\"a\",\"prompt\":\"b\"}",
        b"{\"prompt\":\"\xff\"}",
        b"{\"prompt\":\"\\ud800\"}",
        b"{\"prompt\":\"a\",\"temperature\":1e999}",
        b"{\"prompt\":\"a\",\"temperature\":NaN}",
        b"\x00\x01\x02",
        deep.as_bytes(),
        deep_field.as_bytes(),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let reply = server.request("POST", TEXT, "", body);
        assert_eq!(reply.status, 400, "{shown}");
        reply.error();
    }
    // The type that it is said to have does not matter.
    let body = br#"{"prompt":"a","max_tokens":1}"#;
    assert_eq!(server.request("POST", TEXT, "Content-Type: text/plain\r\n", body).status, 200);
    server.is_well();
}

#[test]
fn errors_are_those_of_the_dialect() {
    let server = Server::demo(&["--api-key", "k"]);
    for (path, key, status, ty) in [
        ("/v1/chat/completions", "k", 400, Some("invalid_request_error")),
        ("/v1/responses", "k", 400, Some("invalid_request_error")),
        ("/v1/messages", "k", 400, Some("invalid_request_error")),
        ("/v1/messages/count_tokens", "k", 400, Some("invalid_request_error")),
        ("/v1/messages/nothing", "k", 404, Some("not_found_error")),
        ("/v1/messages", "", 401, Some("authentication_error")),
        ("/v1/responses", "", 401, Some("authentication_error")),
        ("/api/chat", "k", 400, None),
        ("/api/generate", "k", 400, None),
        ("/api/show", "k", 400, None),
        ("/api/nothing", "k", 404, None),
        ("/api/chat", "", 401, None),
    ] {
        let headers = format!("X-Api-Key: {key}\r\n");
        for body in [&b"{"[..], b"[5]", b"{\"messages\":5,\"input\":5,\"prompt\":5,\"model\":5}"] {
            let reply = server.request("POST", path, &headers, body);
            let error = reply.json()["error"].clone();
            assert_eq!(reply.status, status, "{path}: {error}");
            assert_eq!(error["type"].as_str(), ty, "{path}: {error}");
            let message = error.as_str().or(error["message"].as_str());
            assert!(message.is_some_and(|message| !message.is_empty()), "{path}: {error}");
            let of_anthropic = path.starts_with("/v1/messages");
            assert_eq!(reply.json()["type"] == "error", of_anthropic, "{path}: {}", reply.text());
        }
    }
}

#[test]
fn bodies_that_are_too_large() {
    let server = Server::demo(&[]);
    // What it says of itself is enough.
    let head = format!("POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{{");
    let reply = server.raw(head.as_bytes());
    assert_eq!(reply.status, 413, "{}", reply.text());
    reply.error();
    // One that says nothing, in chunks: the reply comes though the client is still writing.
    let mut stream = server.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    let head = format!("POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it takes the head");
    let chunk = [format!("{:x}\r\n", 1 << 20).into_bytes(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    let writer = std::thread::spawn(move || (0..40).all(|_| stream.write_all(&chunk).is_ok()));
    let reply = Reply::read(&mut reader).expect("a reply");
    assert_eq!(reply.status, 413);
    reply.error();
    drop(reader);
    let _ = writer.join();
    server.is_well();
}

/// Clients that hold nearly all that they may of a body leave no room for another long one, but for short
/// ones.
#[test]
fn bodies_have_a_limit_together() {
    let server = Server::demo(&[]);
    let (all, each) = (128 << 20, 32 << 20);
    let head = format!("POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {each}\r\n\r\n");
    let blank = vec![b' '; each - 1];
    let hold = |_| {
        let mut stream = server.connect();
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&blank)).expect("it is read");
        stream
    };
    let long = json!({ "prompt": "a", "max_tokens": 1, "unknown": "x".repeat(1 << 20) });
    // One that comes before all others have been read takes what they would hold.
    let (held, refused) = (1..)
        .find_map(|n| {
            let held: Vec<_> = (0..all / each).map(hold).collect();
            std::thread::sleep(Duration::from_millis(200) * n);
            let reply = server.post(TEXT, &long);
            assert!(n < 12, "{}", reply.text());
            (reply.status == 503).then_some((held, reply))
        })
        .expect("a reply");
    assert_eq!(refused.error()["type"], "overloaded_error");
    assert_eq!(refused.header("retry-after"), Some("1"));
    server.is_well();
    drop(held);
    let began = Instant::now();
    while server.post(TEXT, &long).status != 200 {
        assert!(began.elapsed() < Duration::from_secs(60), "what was held is not given back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_there_is_not_is_said_in_json() {
    let server = Server::demo(&[]);
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/models/nothing", 404),
        ("GET", CHAT, 405),
        ("DELETE", TEXT, 405),
        ("POST", "/health", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
    ] {
        let reply = server.request(method, path, "", b"");
        assert_eq!(reply.status, status, "{method} {path}");
        assert_eq!(reply.header("content-type"), Some("application/json"), "{method} {path}");
        reply.error();
        assert!(status != 405 || reply.header("allow").is_some(), "{method} {path}");
    }
    // What is no HTTP at all ends the connection.
    for rubbish in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"hello\r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
    {
        let mut stream = server.connect();
        let _ = stream.write_all(rubbish);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let reply = String::from_utf8_lossy(&reply).into_owned();
        assert!(reply.is_empty() || reply.starts_with("HTTP/1.1 400"), "{reply}");
    }
    let long = format!("X-Long: {}\r\n", "x".repeat(200_000));
    assert_eq!(server.request("GET", "/health", &long, b"").status, 431);
    server.is_well();
}

#[test]
fn a_prompt_that_does_not_fit() {
    let server = Server::demo(&["--ctx", "64"]);
    let reply = server.post(CHAT, &question(&"What is 2+2? ".repeat(50)));
    let error = reply.error();
    assert_eq!((reply.status, &error["code"]), (400, &json!("context_length_exceeded")));
    assert_eq!(error["n_ctx"], 64);
    let tokens = error["n_prompt_tokens"].as_u64().expect("a number");
    // The words by which agents know it.
    let words =
        format!("maximum context length is 64 tokens. However, your messages resulted in {tokens} tokens");
    assert!(error["message"].as_str().is_some_and(|message| message.contains(&words)), "{error}");
    // The context may be filled, and ends the answer.
    let room = server.ask(TEXT, &json!({ "prompt": "a", "max_tokens": -1, "seed": 1, "temperature": 3 }));
    let usage = &room["usage"];
    assert!(usage["total_tokens"].as_u64() <= Some(64), "{usage}");
    let full: Vec<u64> = vec![5; 64];
    let reply = server.post(TEXT, &json!({ "prompt": full }));
    assert_eq!(reply.error()["code"], "context_length_exceeded");
    let reply = server.ask(TEXT, &json!({ "prompt": &full[1..], "max_tokens": 5 }));
    assert_eq!(reply["usage"]["completion_tokens"], 1);
}

#[test]
fn models_and_tokens() {
    let server = Server::demo(&["--alias", "some/name"]);
    server.is_well();
    let list = server.get("/v1/models").json();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("some/name")));
    assert_eq!(list["data"][0]["meta"]["n_ctx"], 512);
    assert_eq!(server.get("/v1/models/some/name").json(), list["data"][0]);
    let text = "What is 2+2? Zürich 你好 <|im_end|>";
    for special in [false, true] {
        let asked = json!({ "content": text, "parse_special": special, "with_pieces": true });
        let tokens = server.ask("/tokenize", &asked)["tokens"].clone();
        let ids: Vec<_> = tokens.as_array().into_iter().flatten().map(|token| token["id"].clone()).collect();
        let plain = server.ask("/tokenize", &with(asked, json!({ "with_pieces": false })))["tokens"].clone();
        assert_eq!(json!(ids), plain);
        assert_eq!(server.ask("/detokenize", &json!({ "tokens": ids }))["content"], text, "{special}");
    }
    let reply = server.post("/detokenize", &json!({ "tokens": [1, 99_999_999] }));
    assert_eq!(reply.error()["param"], "tokens[1]");
    let prompt = server.ask("/apply-template", &question("Hello"))["prompt"].clone();
    assert!(prompt.as_str().is_some_and(|prompt| prompt.contains("Hello")), "{prompt}");
    let health = server.get("/health");
    assert_eq!((health.status, health.json()["status"].clone()), (200, json!("ok")));
}

#[test]
fn keys_open_all_but_health() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, "# who\n  from-file  \n\n").expect("a file");
    let server = Server::demo(&["--api-key", "secret", "--api-key-file", file.to_str().expect("UTF-8")]);
    let body = with(question("What is 2+2?"), json!({ "max_tokens": 1 })).to_string();
    for path in ["/v1/models", "/metrics", "/residency", "/residency/demo", "/v1/nothing", "/v1/models/demo"]
    {
        let reply = server.get(path);
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(reply.error()["type"], "authentication_error");
    }
    for path in [CHAT, TEXT, "/tokenize", "/detokenize", "/apply-template", "/v1/nothing"] {
        assert_eq!(server.request("POST", path, "", body.as_bytes()).status, 401, "{path}");
    }
    assert_eq!(server.get("/health").status, 200);
    for right in ["Authorization: Bearer secret\r\n", "X-Api-Key: secret\r\n", "x-api-key: from-file\r\n"] {
        assert_eq!(server.request("POST", CHAT, right, body.as_bytes()).status, 200, "{right}");
    }
    for wrong in ["Authorization: Bearer secre\r\n", "Authorization: Basic secret\r\n", "X-Api-Key: \r\n"] {
        let reply = server.request("POST", CHAT, wrong, body.as_bytes());
        assert_eq!(reply.status, 401, "{wrong}");
        assert!(!reply.text().contains("secret"), "{}", reply.text());
    }
    assert!(!server.log().contains("secret") && !server.log().contains("from-file"), "{}", server.log());
}

/// A page of somebody else's can neither ask under a name of its own nor read what comes.
#[test]
fn pages_of_others_are_kept_out() {
    let server = Server::demo(&["--allow-host", "llm.example"]);
    for (host, status) in [
        ("localhost", 200),
        ("127.0.0.1:1234", 200),
        ("[::1]:8080", 200),
        ("LLM.example:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ] {
        let reply = server.request("GET", "/health", &format!("Host: {host}\r\n"), b"");
        assert_eq!(reply.status, status, "{host}");
    }
    assert!(server.raw(b"GET /health HTTP/1.1\r\n\r\n").status >= 400);
    let absolute = b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(server.raw(absolute).status, 403);
    let origin = "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n";
    for (method, path) in [("GET", "/health"), ("GET", "/v1/models"), ("OPTIONS", CHAT), ("POST", CHAT)] {
        let reply = server.request(method, path, origin, b"{}");
        let headers = &reply.headers;
        assert!(!headers.iter().any(|(name, _)| name.starts_with("access-control")), "{headers:?}");
        assert_eq!(reply.status, 403);
    }
}

#[test]
fn others_reach_it_with_a_key_or_where_they_are_let_in() {
    let refused = command(&["-m", "demo", "--host", "0.0.0.0", "--port", "0"]).output().expect("it starts");
    assert_eq!(refused.status.code(), Some(2));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("--api-key") && told.contains("--no-key"), "{told}");
    assert_eq!(Server::demo(&["--host", "0.0.0.0", "--api-key", "k"]).get("/v1/models").status, 401);
    assert_eq!(Server::demo(&["--host", "0.0.0.0", "--no-key"]).get("/v1/models").status, 200);
}

#[test]
fn what_is_wrong_at_the_start_is_told() {
    let server = Server::demo(&[]);
    let port = server.port.to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().to_str().expect("UTF-8");
    let rubbish = folder.path().join("rubbish.bin");
    std::fs::write(&rubbish, b"GGUF but not really").expect("a file");
    let rubbish = rubbish.to_str().expect("UTF-8");
    let fixture = fixture("dense-q8_0");
    let fixture = fixture.to_str().expect("UTF-8");
    for (args, code, words) in [
        (&["-m", "demo", "--port", &port][..], 1, "127.0.0.1"),
        (&["/no/such/model.gguf", "--port", "0"], 1, "/no/such/model.gguf"),
        (&[rubbish, "--port", "0"], 1, "rubbish.bin"),
        (&["--models", empty, "--port", "0"], 1, "no GGUF files"),
        (&["-m", "demo", "--port", "0", "--api-key", ""], 2, "--api-key"),
        (&["-m", "demo", "--port", "0", "--api-key-file", "/no/such/file"], 1, "/no/such/file"),
        (&["-m", "demo", "--models", empty, "--port", "0"], 2, "cannot be used with"),
        (&[fixture, "--port", "0", "--ram", "1M"], 1, "memory"),
        (&["-m", "demo", "--port", "0", "--template", "nothing"], 1, "nothing"),
    ] {
        let output = command(args).output().expect("it starts");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(told.contains(words) && !told.contains("listening"), "{args:?}: {told}");
        assert!(!told.contains("panicked"), "{told}");
    }
}

/// A model whose answers have no end: the context of 100000 takes it long.
fn endless(args: &[&str]) -> Server {
    Server::of(&fixture("dense-q8_0"), &[&["--ctx", "100000", "--ram", "4G"], args].concat())
}

/// A text that goes on for as long as the context does: tokens that end it are never drawn.
fn long() -> Value {
    json!({ "prompt": "a", "temperature": 0, "logit_bias": { "318": -100, "319": -100 } })
}

/// A request that is sent and not waited for.
fn sent(server: &Server, body: &Value) -> std::net::TcpStream {
    let mut stream = server.connect();
    stream.write_all(&head("POST", TEXT, "", body.to_string().as_bytes())).expect("it takes the request");
    stream
}

#[test]
fn a_client_that_leaves_makes_room() {
    let server = endless(&["--parallel", "1", "--queue", "1"]);
    let short = json!({ "prompt": "b", "max_tokens": 2, "temperature": 0 });
    let want = server.ask(TEXT, &short)["choices"].clone();
    let mut taken = 1;
    let mut another = || {
        taken += 1;
        server.has_taken_on(taken);
    };
    for stream in [false, true] {
        let body = with(long(), json!({ "stream": stream }));
        // One that runs and one that waits, which goes first.
        let running = sent(&server, &body);
        another();
        let mut first = running.try_clone().expect("a stream");
        if stream {
            first.read_exact(&mut [0; 700]).expect("some pieces");
        }
        let waiting = sent(&server, &body);
        another();
        server.until("wayinfer_waiting_requests", |waiting| waiting == 1.0);
        let reply = server.post(TEXT, &short);
        assert_eq!(reply.status, 503, "{}", reply.text());
        assert_eq!(reply.error()["type"], "overloaded_error");
        assert!(reply.header("retry-after").and_then(|seconds| seconds.parse::<u32>().ok()) >= Some(1));
        drop(waiting);
        // Its place is free, though nothing has been sent to it.
        server.until("wayinfer_waiting_requests", |waiting| waiting == 0.0);
        let next = sent(&server, &short);
        another();
        let began = Instant::now();
        drop((running, first));
        let reply = Reply::read(&mut BufReader::new(next)).expect("a reply");
        assert_eq!(reply.json()["choices"], want);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

/// Two requests on one connection, the second written before the first is answered.
#[test]
fn a_connection_is_used_again() {
    let server = Server::demo(&[]);
    let mut stream = server.connect();
    let body = with(question("What is 2+2?"), json!({ "max_tokens": 2 })).to_string();
    let request =
        format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.repeat(2).as_bytes()).expect("it takes both");
    let mut reader = BufReader::new(stream);
    for _ in 0..2 {
        let reply = Reply::read(&mut reader).expect("a reply");
        assert_eq!(reply.json()["choices"][0]["message"]["content"], "The sum");
    }
    // An answer in pieces, and one after it.
    let body = with(question("What is 2+2?"), json!({ "stream": true })).to_string();
    let request =
        format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    reader.get_mut().write_all(request.repeat(2).as_bytes()).expect("it takes both");
    for _ in 0..2 {
        assert!(Reply::read(&mut reader).expect("a reply").text().ends_with("data: [DONE]\n\n"));
    }
}

#[cfg(unix)]
#[test]
fn it_ends_when_it_is_asked_to() {
    let mut server = Server::demo(&[]);
    server.is_well();
    // A connection that says nothing holds nobody up.
    let _idle = server.connect();
    server.terminate();
    assert_eq!(server.wait(), Some(0));
    assert!(server.log().ends_with("ended\n"), "{}", server.log());
}

#[cfg(unix)]
#[test]
fn running_answers_are_ended_first() {
    let mut server = endless(&["--parallel", "1", "--drain", "60"]);
    let body = with(long(), json!({ "max_tokens": 400 }));
    let want = server.ask(TEXT, &body);
    let mut events = server.stream(TEXT, &with(body.clone(), json!({ "stream": true })));
    let first = events.next().expect("a piece");
    let waiting = sent(&server, &with(body, json!({ "seed": 7 })));
    server.has_taken_on(3);
    server.terminate();
    let pieces: Vec<String> = std::iter::once(first).chain(events).collect();
    assert_eq!(pieces.last().map(String::as_str), Some("[DONE]"));
    let values = pieces.iter().filter_map(|piece| serde_json::from_str(piece).ok()).collect::<Vec<Value>>();
    assert_eq!(joined(&values, 0), want["choices"][0]["text"].as_str().unwrap_or_default());
    // One that waited is answered as well.
    let reply = Reply::read(&mut BufReader::new(waiting)).expect("a reply");
    assert_eq!(reply.json()["choices"], want["choices"]);
    assert_eq!(server.wait(), Some(0));
}

/// Those of chats are told of it in the way of their dialects.
#[cfg(unix)]
#[test]
fn streams_of_every_dialect_tell_that_they_were_cut() {
    let mut server = endless(&["--drain", "1", "--template", "chatml"]);
    let messages = json!([{ "role": "user", "content": "a" }]);
    let chat = json!({ "messages": messages, "input": messages, "stream": true, "temperature": 0,
        "logit_bias": { "318": -100, "319": -100 }, "max_tokens": 90000,
        "options": { "temperature": 0, "num_predict": -1 } });
    let begun = |path: &str| {
        let mut stream = server.connect();
        stream.write_all(&head("POST", path, "", chat.to_string().as_bytes())).expect("it takes the request");
        let mut reader = BufReader::new(stream);
        reader.fill_buf().expect("the beginning of a reply");
        reader
    };
    let readers = [CHAT, "/v1/messages", "/v1/responses", "/api/chat"].map(|path| (path, begun(path)));
    server.terminate();
    for (path, mut reader) in readers {
        let reply = Reply::read(&mut reader).expect("a reply");
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        let text = reply.text();
        let last = text.trim_end().lines().last().expect("a line");
        let told: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap_or(last)).expect(last);
        let message = match path {
            CHAT => &told["error"]["message"],
            "/v1/messages" => {
                assert_eq!(
                    (&told["type"], &told["error"]["type"]),
                    (&json!("error"), &json!("overloaded_error"))
                );
                assert!(text.contains("event: error\n"), "{path}: {last}");
                &told["error"]["message"]
            }
            "/v1/responses" => {
                assert_eq!(
                    (&told["type"], &told["response"]["status"]),
                    (&json!("response.failed"), &json!("failed"))
                );
                &told["response"]["error"]["message"]
            }
            _ => &told["error"],
        };
        assert!(message.as_str().is_some_and(|told| told.contains("shut down")), "{path}: {last}");
    }
    assert_eq!(server.wait(), Some(0));
}

#[cfg(unix)]
#[test]
fn an_answer_without_an_end_is_cut() {
    let mut server = endless(&["--drain", "1"]);
    let mut events = server.stream(TEXT, &with(long(), json!({ "stream": true })));
    events.next().expect("a piece");
    let whole = sent(&server, &long());
    server.has_taken_on(2);
    let began = Instant::now();
    server.terminate();
    let last = events.last().expect("a piece");
    let last: Value = serde_json::from_str(&last).unwrap_or_else(|_| panic!("{last}"));
    assert!(last["error"]["message"].as_str().is_some_and(|told| told.contains("shut down")), "{last}");
    let reply = Reply::read(&mut BufReader::new(whole)).expect("a reply");
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);
    assert_eq!(server.wait(), Some(0));
    let took = began.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(10)).contains(&took), "{took:?}");
}
