//! The server's other dialects from outside: Anthropic's messages, Ollama's chats and texts, OpenAI's
//! responses.

mod common;

use common::server::{Reply, Server};
use serde_json::{Value, json};

const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const QUESTION: &str = "What is 2+2?";
const ANSWER: &str = "The sum of 2 and 2 is 4.";

/// A request with more fields.
fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("fields").extend(more);
    body
}

/// The events of a streamed answer, each of the name that its data says.
fn events(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let reply = server.post(path, &with(body.clone(), json!({ "stream": true })));
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("text/event-stream")),
        "{}",
        reply.text()
    );
    let read = |event: &str| -> Value {
        let (name, data) = event.split_once('\n').unwrap_or_else(|| panic!("{event:?}"));
        let data = data.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"));
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str(), "{event:?}");
        data
    };
    let text = reply.text();
    assert!(text.ends_with("\n\n"), "{text:?}");
    text.split_terminator("\n\n").map(read).collect()
}

/// The lines of a streamed answer.
fn lines(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let reply = server.post(path, body);
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("application/x-ndjson")),
        "{}",
        reply.text()
    );
    reply.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What events of a type have in a field, as one text.
fn joined(events: &[Value], ty: &str, pointer: &str) -> String {
    let of = events.iter().filter(|event| event["type"] == ty);
    of.filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

/// The types of events, each run of a type once.
fn types(events: &[Value]) -> Vec<&str> {
    let mut types: Vec<&str> = events.iter().map(|event| event["type"].as_str().expect("a type")).collect();
    types.dedup();
    types
}

fn message(text: &str) -> Value {
    json!({ "model": "m", "max_tokens": 100, "temperature": 0,
        "messages": [{ "role": "user", "content": text }] })
}

fn chat(text: &str) -> Value {
    json!({ "model": "m", "options": { "temperature": 0 },
        "messages": [{ "role": "user", "content": text }] })
}

fn input(text: &str) -> Value {
    json!({ "model": "m", "temperature": 0, "input": text })
}

#[test]
fn a_message_is_answered_whole_and_in_events() {
    let server = Server::demo(&["--alias", "tiny"]);
    let body = with(message(QUESTION), json!({ "model": "claude", "metadata": { "user_id": "u" } }));
    let answer = server.ask(MESSAGES, &body);
    assert_eq!(
        (&answer["type"], &answer["role"], &answer["model"]),
        (&json!("message"), &json!("assistant"), &json!("tiny"))
    );
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("msg_")), "{answer}");
    assert_eq!(answer["content"], json!([{ "type": "text", "text": ANSWER }]));
    assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    let counted = server.ask("/v1/messages/count_tokens", &body)["input_tokens"].as_u64().expect("a number");
    let usage = |usage: &Value| -> Vec<u64> {
        let names =
            ["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"];
        names.iter().map(|name| usage[name].as_u64().expect("a number")).collect()
    };
    assert_eq!(usage(&answer["usage"]), [counted, 0, 0, 13]);
    let events = events(&server, MESSAGES, &body);
    let expected = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(types(&events), expected);
    let start = &events[0]["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
    assert_eq!(usage(&start["usage"])[0], counted);
    assert_eq!(joined(&events, "content_block_delta", "/delta/text"), ANSWER);
    let end = &events[events.len() - 2];
    assert_eq!(end["delta"]["stop_reason"], "end_turn");
    // What was read for the first answer was not read again.
    assert_eq!(usage(&end["usage"]), [1, counted - 1, 0, 13]);
}

#[test]
fn what_ends_a_message() {
    let server = Server::demo(&[]);
    let ended = |more: Value| {
        let answer = server.ask(MESSAGES, &with(message(QUESTION), more));
        (answer["content"][0]["text"].clone(), answer["stop_reason"].clone(), answer["stop_sequence"].clone())
    };
    let stopped = ended(json!({ "stop_sequences": ["is", " of "] }));
    assert_eq!(stopped, (json!("The sum"), json!("stop_sequence"), json!(" of ")));
    let (text, reason, _) = ended(json!({ "max_tokens": 3 }));
    assert!(ANSWER.starts_with(text.as_str().expect("a text")));
    assert_eq!(reason, "max_tokens");
    // Blocks are texts.
    let blocks =
        json!([{ "role": "user", "content": [{ "type": "text", "text": QUESTION, "cache_control": null }] }]);
    assert_eq!(ended(json!({ "messages": blocks })).0, ANSWER);
}

#[test]
fn what_is_wrong_with_a_message_is_told_in_its_dialect() {
    let server = Server::demo(&["--ctx", "64"]);
    let error = |reply: Reply, status: u16| {
        let value = reply.json();
        assert_eq!((reply.status, &value["type"]), (status, &json!("error")), "{value}");
        assert!(value["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{value}");
        value["error"].clone()
    };
    let asked = |body: Value| error(server.post(MESSAGES, &body), 400);
    let missing = asked(json!({ "messages": [{ "role": "user", "content": "a" }] }));
    assert_eq!(missing["type"], "invalid_request_error");
    assert!(missing["message"].as_str().unwrap().starts_with("max_tokens: "), "{missing}");
    let image = json!([{ "role": "user", "content": [{ "type": "image", "source": { "type": "base64" } }] }]);
    let image = asked(with(message(""), json!({ "messages": image })));
    assert!(image["message"].as_str().unwrap().contains("\"image\""), "{image}");
    let long = asked(message(&"What is 2+2? ".repeat(50)));
    let text = long["message"].as_str().unwrap();
    let tokens =
        text.strip_prefix("prompt is too long: ").and_then(|rest| rest.strip_suffix(" tokens > 64 maximum"));
    assert!(tokens.is_some_and(|tokens| tokens.parse::<u32>().is_ok()), "{text}");
    let wrong = asked(json!({ "max_tokens": 5, "messages": [{ "role": 3, "content": "a" }] }));
    assert!(wrong["message"].as_str().unwrap().contains("messages[0].role"), "{wrong}");
    assert_eq!(error(server.get("/v1/messages/batches"), 404)["type"], "not_found_error");
    assert_eq!(error(server.get(MESSAGES), 405)["type"], "invalid_request_error");
    assert_eq!(error(server.request("POST", MESSAGES, "", b"{"), 400)["type"], "invalid_request_error");
    server.is_well();
}

#[test]
fn chats_come_in_lines_or_whole() {
    let server = Server::demo(&[]);
    let lines = lines(&server, "/api/chat", &chat(QUESTION));
    let (last, rest) = lines.split_last().expect("lines");
    assert!(rest.iter().all(|line| line["done"] == false && line["message"]["role"] == "assistant"));
    let said: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!(said, ANSWER);
    assert_eq!(
        (&last["done"], &last["done_reason"], &last["model"]),
        (&json!(true), &json!("stop"), &json!("m"))
    );
    let whole =
        server.ask("/api/chat", &with(chat(QUESTION), json!({ "stream": false, "keep_alive": "5m" })));
    assert_eq!(whole["message"], json!({ "role": "assistant", "content": ANSWER }));
    for answer in [last, &whole] {
        assert_eq!(answer["eval_count"], 13);
        for name in
            ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_duration"]
        {
            assert!(answer[name].is_u64(), "{name}: {answer}");
        }
        let parts = ["load_duration", "prompt_eval_duration", "eval_duration"]
            .map(|name| answer[name].as_u64().unwrap());
        assert!(parts.iter().sum::<u64>() <= answer["total_duration"].as_u64().unwrap(), "{answer}");
    }
    let options = json!({ "temperature": 0, "num_predict": 3, "num_ctx": 100_000, "num_gpu": 1 });
    let cut = server.ask("/api/chat", &with(chat(QUESTION), json!({ "stream": false, "options": options })));
    assert_eq!((&cut["done_reason"], &cut["eval_count"]), (&json!("length"), &json!(3)));
    let options = json!({ "temperature": 0, "stop": [" of"] });
    let stopped =
        server.ask("/api/chat", &with(chat(QUESTION), json!({ "stream": false, "options": options })));
    assert_eq!(stopped["message"]["content"], "The sum");
    let loaded = server.ask("/api/chat", &json!({ "model": "m" }));
    assert_eq!((&loaded["done"], &loaded["done_reason"]), (&json!(true), &json!("load")));
    let body = with(chat(QUESTION), json!({ "stream": false, "logprobs": true, "top_logprobs": 2 }));
    let logprobs = server.ask("/api/chat", &body)["logprobs"].clone();
    let tokens =
        logprobs.as_array().expect("a list").iter().map(|token| token["token"].as_str().expect("a text"));
    assert_eq!(tokens.collect::<String>(), ANSWER);
    assert_eq!(logprobs[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
}

#[test]
fn texts_are_answered_or_continued() {
    let server = Server::demo(&[]);
    let body =
        json!({ "model": "m", "prompt": QUESTION, "options": { "temperature": 0, "num_predict": 20 } });
    let said =
        |lines: &[Value]| lines.iter().filter_map(|line| line["response"].as_str()).collect::<String>();
    assert_eq!(said(&lines(&server, "/api/generate", &body)), ANSWER);
    let whole =
        server.ask("/api/generate", &with(body.clone(), json!({ "stream": false, "system": "Be short." })));
    assert!(whole["response"].is_string() && whole["message"].is_null(), "{whole}");
    let raw = server.ask("/api/generate", &with(body.clone(), json!({ "stream": false, "raw": true })));
    let asked = json!({ "prompt": QUESTION, "temperature": 0, "max_tokens": 20 });
    assert_eq!(raw["response"], server.ask("/v1/completions", &asked)["choices"][0]["text"]);
    let refused = server.post("/api/generate", &with(body, json!({ "suffix": "x" })));
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().is_some_and(|text| text.starts_with("suffix: ")));
}

#[test]
fn ollama_is_told_of_models() {
    let server = Server::demo(&["--alias", "tiny", "--ctx", "256"]);
    let version = server.get("/api/version").json()["version"].as_str().expect("a text").to_owned();
    assert!(version.split('.').map(str::parse::<u32>).filter_map(Result::ok).count() == 3, "{version}");
    let tags = server.get("/api/tags").json();
    let listed = &tags["models"][0];
    assert_eq!((&listed["name"], &listed["model"]), (&json!("tiny:latest"), &json!("tiny:latest")));
    assert_eq!(listed["digest"].as_str().map(str::len), Some(64));
    assert!(listed["size"].as_u64() > Some(1_000_000) && listed["modified_at"].is_string(), "{listed}");
    let details = json!({ "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
        "parameter_size": "7.35M", "quantization_level": listed["details"]["quantization_level"] });
    assert_eq!(listed["details"], details);
    assert!(details["quantization_level"].as_str().is_some_and(|ty| ty.starts_with('Q')));
    for asked in [json!({ "model": "tiny:latest" }), json!({ "name": "tiny" })] {
        let shown = server.ask("/api/show", &asked);
        let info = &shown["model_info"];
        assert_eq!(
            (&info["general.architecture"], &info["llama.context_length"]),
            (&json!("llama"), &json!(256))
        );
        assert_eq!(info["general.parameter_count"], 7_350_528);
        assert_eq!(shown["capabilities"][0], "completion");
        assert_eq!(shown["details"], listed["details"]);
        assert!(shown["template"].as_str().is_some_and(|template| template.contains("messages")), "{shown}");
    }
    let running = server.get("/api/ps").json();
    assert_eq!(
        (&running["models"][0]["name"], &running["models"][0]["context_length"]),
        (&json!("tiny:latest"), &json!(256))
    );
    for (method, path) in [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/embed"),
        ("POST", "/api/embeddings"),
        ("POST", "/api/blobs/sha256:00"),
    ] {
        let reply = server.request(method, path, "", b"{}");
        assert_eq!(reply.status, 501, "{path}");
        assert!(
            method == "HEAD" || reply.json()["error"].as_str().is_some_and(|text| text.contains(path)),
            "{path}"
        );
    }
    let unknown = server.get("/api/nothing");
    assert_eq!((unknown.status, unknown.json()["error"].is_string()), (404, true));
    let role =
        server.post("/api/chat", &json!({ "model": "m", "messages": [{ "role": "me", "content": "a" }] }));
    assert_eq!(role.status, 400);
    assert!(role.json()["error"].as_str().is_some_and(|text| text.starts_with("messages[0].role: ")));
}

#[test]
fn a_response_is_given_whole_and_in_events() {
    let server = Server::demo(&["--alias", "tiny"]);
    let body = with(
        input(QUESTION),
        json!({ "store": true, "instructions": null, "metadata": { "a": "b" },
        "tools": [{ "type": "web_search" }, { "type": "custom", "name": "apply_patch" }] }),
    );
    let response = server.ask(RESPONSES, &body);
    assert_eq!(
        (&response["object"], &response["status"], &response["model"]),
        (&json!("response"), &json!("completed"), &json!("tiny"))
    );
    assert_eq!(
        (&response["store"], &response["error"], &response["metadata"]["a"]),
        (&json!(false), &Value::Null, &json!("b"))
    );
    let output = response["output"].as_array().expect("items");
    assert_eq!(output.len(), 1);
    assert_eq!(
        (&output[0]["type"], &output[0]["role"], &output[0]["status"]),
        (&json!("message"), &json!("assistant"), &json!("completed"))
    );
    let content = json!([{ "type": "output_text", "text": ANSWER, "annotations": [], "logprobs": [] }]);
    assert_eq!(output[0]["content"], content);
    assert_eq!(response["usage"]["output_tokens"], 13);
    let events = events(&server, RESPONSES, &body);
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(types(&events), expected);
    assert!(events.iter().enumerate().all(|(n, event)| event["sequence_number"] == n));
    assert_eq!(joined(&events, "response.output_text.delta", "/delta"), ANSWER);
    let last = &events.last().expect("events")["response"];
    assert_eq!((&last["output"][0]["content"], &last["status"]), (&content, &json!("completed")));
    assert_eq!(last["id"], events[0]["response"]["id"]);
    // Items say the same as a text.
    let part = json!({ "type": "input_text", "text": QUESTION });
    let items = json!([{ "type": "message", "role": "user", "content": [part] }]);
    let items = server.ask(RESPONSES, &with(body.clone(), json!({ "input": items })));
    assert_eq!(
        (&items["output"][0]["content"], &items["usage"]["input_tokens"]),
        (&content, &response["usage"]["input_tokens"])
    );
    let cut = server.ask(RESPONSES, &with(body, json!({ "max_output_tokens": 3 })));
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[test]
fn responses_have_no_memory() {
    let server = Server::demo(&["--ctx", "64"]);
    for (field, value) in [
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!({ "id": "conv_1" })),
        ("background", json!(true)),
    ] {
        let reply = server.post(RESPONSES, &with(input("a"), json!({ field: value })));
        let error = reply.error();
        assert_eq!(
            (reply.status, &error["param"], &error["code"]),
            (400, &json!(field), &json!("unsupported"))
        );
    }
    for method in ["GET", "DELETE"] {
        let reply = server.request(method, "/v1/responses/resp_1", "", b"");
        assert_eq!(reply.status, 404);
        assert!(reply.error()["message"].as_str().unwrap().contains("not stored"));
    }
    let reply = server.post(RESPONSES, &input(&"What is 2+2? ".repeat(50)));
    assert_eq!((reply.status, &reply.error()["code"]), (400, &json!("context_length_exceeded")));
    // Whether somebody is there.
    for empty in [json!({}), json!({ "input": [] }), json!({ "input": "" })] {
        let answer = server.ask(RESPONSES, &empty);
        assert_eq!((&answer["status"], &answer["output"]), (&json!("completed"), &json!([])));
    }
    let probed = events(&server, RESPONSES, &json!({ "model": "m", "input": [] }));
    assert_eq!(types(&probed), ["response.created", "response.in_progress", "response.completed"]);
    server.is_well();
}

#[test]
fn all_dialects_give_the_same_answer() {
    let server = Server::demo(&[]);
    for seed in [1, 7, 4_000_000_000u64] {
        let draws = json!({ "temperature": 2, "top_p": 0.95, "top_k": 50, "seed": seed });
        let asked = |path: &str, body: Value| server.ask(path, &with(body, draws.clone()));
        let messages = json!([{ "role": "user", "content": "Tell me something." }]);
        let most = 24;
        let openai = asked("/v1/chat/completions", json!({ "messages": messages, "max_tokens": most }));
        let openai = &openai["choices"][0]["message"]["content"];
        let anthropic = asked(MESSAGES, json!({ "messages": messages, "max_tokens": most }));
        assert_eq!(anthropic["content"][0]["text"], *openai);
        let responses = asked(RESPONSES, json!({ "input": messages, "max_output_tokens": most }));
        assert_eq!(responses["output"][0]["content"][0]["text"], *openai);
        let options = with(draws.clone(), json!({ "num_predict": most }));
        let ollama = json!({ "messages": messages, "stream": false, "options": options });
        assert_eq!(server.ask("/api/chat", &ollama)["message"]["content"], *openai);
    }
}

#[test]
fn keys_are_asked_for_in_each_dialect() {
    let server = Server::demo(&["--api-key", "secret"]);
    let refused = server.post(MESSAGES, &message(QUESTION));
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &json!("authentication_error")));
    let refused = server.get("/api/tags");
    assert_eq!((refused.status, refused.json()["error"].is_string()), (401, true));
    let refused = server.post(RESPONSES, &input(QUESTION));
    assert_eq!((refused.status, &refused.error()["code"]), (401, &json!("invalid_api_key")));
    let body = message(QUESTION).to_string();
    let headers = "X-Api-Key: secret\r\nAnthropic-Version: 2023-06-01\r\n";
    let answer = server.request("POST", "/v1/messages?beta=true", headers, body.as_bytes());
    assert_eq!(answer.json()["content"][0]["text"], ANSWER);
}

#[test]
fn late_system_messages_are_taken_by_templates_that_want_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join("strict.jinja");
    let source = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
                  {{ raise_exception('the system comes first') }}{% endif %}\
                  <{{ m.role }}>{{ m.content }}\n{% endfor %}";
    std::fs::write(&template, source).expect("a file");
    let server = Server::demo(&["--template", template.to_str().expect("UTF-8")]);
    let prompt =
        |messages: Value| server.ask("/apply-template", &json!({ "messages": messages }))["prompt"].clone();
    let said = |role: &str, text: &str| json!({ "role": role, "content": text });
    assert_eq!(prompt(json!([said("system", "a"), said("user", "b")])), "<system>a\n<user>b\n");
    let late = json!([said("system", "a"), said("user", "b"), said("developer", "c"), said("user", "d")]);
    assert_eq!(prompt(late), "<system>a\n\nc\n<user>b\n<user>d\n");
    assert_eq!(prompt(json!([said("user", "b"), said("system", "c")])), "<system>c\n<user>b\n");
    let counted = |messages: Value| {
        let body = json!({ "system": "a", "messages": messages });
        server.ask("/v1/messages/count_tokens", &body)["input_tokens"].as_u64().expect("a number")
    };
    assert!(counted(json!([said("system", "c"), said("user", "b")])) > counted(json!([said("user", "b")])));
    // A template that takes several is given them where they are.
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}";
    std::fs::write(&template, source).expect("a file");
    let server = Server::demo(&["--template", template.to_str().expect("UTF-8")]);
    let prompt =
        server.ask("/apply-template", &json!({ "messages": [said("user", "b"), said("system", "c")] }));
    assert_eq!(prompt["prompt"], "<user>b\n<system>c\n");
}

/// A conversation that ends with an answer: it is gone on with, and what has come of it is not said again.
#[test]
fn an_answer_that_has_begun_is_gone_on_with() {
    let server = Server::demo(&[]);
    let (begun, rest) = ("The sum of 2", " and 2 is 4.");
    let messages =
        json!([{ "role": "user", "content": QUESTION }, { "role": "assistant", "content": begun }]);
    let body = with(message(QUESTION), json!({ "messages": messages }));
    assert_eq!(server.ask(MESSAGES, &body)["content"], json!([{ "type": "text", "text": rest }]));
    assert_eq!(joined(&events(&server, MESSAGES, &body), "content_block_delta", "/delta/text"), rest);
    let chat = json!({ "temperature": 0, "messages": messages, "continue_final_message": true });
    let answer = |body: &Value| server.ask("/v1/chat/completions", body)["choices"][0]["message"].clone();
    assert_eq!(answer(&with(chat.clone(), json!({ "add_generation_prompt": false })))["content"], rest);
    // As many tokens as the answer that is made alone, but for its end.
    let counted = |messages: &Value| {
        let body = json!({ "messages": messages });
        server.ask("/v1/messages/count_tokens", &body)["input_tokens"].as_u64().expect("a number")
    };
    let alone = server.ask("/v1/chat/completions", &json!({ "temperature": 0, "messages": [messages[0]] }));
    let made = |usage: &Value| usage["completion_tokens"].as_u64().expect("a number");
    let all = json!([messages[0], { "role": "assistant", "content": ANSWER }]);
    assert_eq!(counted(&all) + 1, counted(&json!([messages[0]])) + made(&alone["usage"]));
    // Marks in it are text.
    let marked = json!([messages[0], { "role": "assistant", "content": "</think>" }]);
    assert!(counted(&marked) > counted(&json!([messages[0]])) + 1);
    // What has no meaning with it.
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": schema() } });
    for (more, field) in [
        (json!({ "add_generation_prompt": true }), "add_generation_prompt"),
        (json!({ "continue_final_message": false, "add_generation_prompt": false }), "add_generation_prompt"),
        (json!({ "messages": [messages[0]] }), "messages"),
        (json!({ "tools": [tool], "tool_choice": "required" }), "messages"),
        (json!({ "response_format": { "type": "json_object" } }), "messages"),
    ] {
        let reply = server.post("/v1/chat/completions", &with(chat.clone(), more));
        assert_eq!((reply.status, &reply.error()["param"]), (400, &json!(field)), "{}", reply.text());
    }
    let call = json!({ "type": "tool_use", "id": "t", "name": "f", "input": {} });
    let called = json!([messages[0], { "role": "assistant", "content": [call] }]);
    assert_eq!(server.post(MESSAGES, &with(body, json!({ "messages": called }))).status, 400);
}

/// A call that goes wrong behind its name is text where the answer is given whole.
#[test]
fn a_broken_call_is_text() {
    let server = Server::demo(&[]);
    let tool = json!({ "type": "function", "function": { "name": "f", "parameters": schema() } });
    let ask = |text: &str, more: Value| {
        // An answer that is held to one text.
        let grammar = format!("start: {}", json!(text));
        let body = json!({ "messages": [{ "role": "user", "content": QUESTION }], "temperature": 0,
            "tools": [tool], "grammar": grammar });
        with(body, more)
    };
    let whole = |body: &Value| server.ask("/v1/chat/completions", body)["choices"][0].clone();
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {\"on\": true}}</tool_call>";
    let broken = call.replace("true", "perhaps");
    let choice = whole(&ask(&broken, json!({})));
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(broken), &json!("stop")));
    assert!(choice["message"].get("tool_calls").is_none(), "{choice}");
    // Behind a call that is well.
    let choice = whole(&ask(&format!("{call}{broken}"), json!({})));
    let calls = choice["message"]["tool_calls"].as_array().expect("calls");
    assert_eq!((calls.len(), &choice["message"]["content"]), (1, &json!(broken)), "{choice}");
    assert_eq!(read(&calls[0]["function"]["arguments"]), json!({ "on": true }));
    // One that is cut.
    let choice = whole(&ask(call, json!({ "max_tokens": 40 })));
    assert_eq!((&choice["message"].get("tool_calls"), &choice["finish_reason"]), (&None, &json!("length")));
    assert!(call.starts_with(choice["message"]["content"].as_str().expect("a text")), "{choice}");
    // Where one call is wanted the answer ends as the second begins, whole or streamed.
    let body = ask(
        &format!("{call}{call}"),
        json!({ "parallel_tool_calls": false,
        "stream_options": { "include_usage": true } }),
    );
    let (choice, pieces) = (whole(&body), server.pieces("/v1/chat/completions", &body));
    assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(1), "{choice}");
    assert_eq!(choice["finish_reason"], "tool_calls");
    let usage = server.ask("/v1/chat/completions", &body)["usage"]["completion_tokens"].clone();
    assert_eq!(pieces.last().expect("pieces")["usage"]["completion_tokens"], usage);
}

/// The only object that the schema allows but for its value.
fn is_on(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| fields.len() == 1) && value["on"].is_boolean()
}

fn schema() -> Value {
    let on = json!({ "on": { "type": "boolean" } });
    json!({ "type": "object", "properties": on, "required": ["on"], "additionalProperties": false })
}

fn read(text: &Value) -> Value {
    serde_json::from_str(text.as_str().expect("a text")).expect("JSON")
}

#[test]
fn tools_are_called_in_each_dialect() {
    let server = Server::demo(&[]);
    let (name, parameters) = ("set_light", schema());
    // OpenAI's chats.
    let tool = json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
    let body = json!({ "temperature": 0, "seed": 1, "max_tokens": 100,
        "messages": [{ "role": "user", "content": QUESTION }],
        "tools": [tool], "tool_choice": "required", "parallel_tool_calls": false });
    let choice = server.ask("/v1/chat/completions", &body)["choices"][0].clone();
    let call = &choice["message"]["tool_calls"][0];
    let arguments = read(&call["function"]["arguments"]);
    assert!(call["type"] == "function" && call["function"]["name"] == name && is_on(&arguments), "{choice}");
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let pieces = server.pieces("/v1/chat/completions", &body);
    let calls: Vec<&Value> =
        pieces.iter().filter_map(|piece| piece.pointer("/choices/0/delta/tool_calls/0")).collect();
    assert_eq!(
        (&calls[0]["index"], &calls[0]["id"], &calls[0]["function"]["name"]),
        (&json!(0), &call["id"], &json!(name))
    );
    let parts = calls.iter().filter_map(|call| call["function"]["arguments"].as_str());
    assert_eq!(read(&parts.collect::<String>().into()), arguments);
    assert!(calls[1..].iter().all(|call| call.get("id").is_none() && call["function"].get("name").is_none()));
    assert!(pieces.iter().any(|piece| piece["choices"][0]["finish_reason"] == "tool_calls"));
    let said = json!([{ "role": "user", "content": QUESTION }, choice["message"],
        { "role": "tool", "tool_call_id": call["id"], "content": "done" }]);
    server.ask(
        "/v1/chat/completions",
        &with(body, json!({ "messages": said, "tool_choice": "auto", "max_tokens": 5 })),
    );
    // Anthropic's.
    let tool = json!({ "name": name, "input_schema": parameters });
    let body = with(
        message(QUESTION),
        json!({ "seed": 1, "tools": [tool],
            "tool_choice": { "type": "any", "disable_parallel_tool_use": true } }),
    );
    let answer = server.ask(MESSAGES, &body);
    let block = &answer["content"][0];
    assert_eq!(
        (&block["type"], &block["name"], &block["input"]),
        (&json!("tool_use"), &json!(name), &arguments)
    );
    assert_eq!(
        (&answer["stop_reason"], answer["content"].as_array().map(Vec::len)),
        (&json!("tool_use"), Some(1))
    );
    let events_ = events(&server, MESSAGES, &body);
    let begun = events_.iter().find(|event| event["type"] == "content_block_start").expect("a block");
    assert_eq!(
        begun["content_block"],
        json!({ "type": "tool_use", "id": block["id"], "name": name, "input": {} })
    );
    assert_eq!(read(&joined(&events_, "content_block_delta", "/delta/partial_json").into()), arguments);
    let result = json!({ "type": "tool_result", "tool_use_id": block["id"], "content": "done" });
    let said = json!([{ "role": "user", "content": QUESTION }, { "role": "assistant", "content": [block] },
        { "role": "user", "content": [result] }]);
    server.ask(
        MESSAGES,
        &with(body, json!({ "messages": said, "tool_choice": { "type": "none" }, "max_tokens": 5 })),
    );
    // OpenAI's responses.
    let tool = json!({ "type": "function", "name": name, "parameters": parameters });
    let choice = json!({ "type": "function", "name": name });
    let body = with(
        input(QUESTION),
        json!({ "tools": [tool, { "type": "web_search" }], "tool_choice": choice,
            "parallel_tool_calls": false }),
    );
    let response = server.ask(RESPONSES, &body);
    let item = &response["output"][0];
    assert_eq!(
        (&item["type"], &item["name"], &item["status"]),
        (&json!("function_call"), &json!(name), &json!("completed"))
    );
    assert_eq!(read(&item["arguments"]), arguments);
    assert_eq!(response["status"], "completed");
    let events = events(&server, RESPONSES, &body);
    let done = events
        .iter()
        .find(|event| event["type"] == "response.function_call_arguments.done")
        .expect("an event");
    assert_eq!(read(&done["arguments"]), arguments);
    assert_eq!(joined(&events, "response.function_call_arguments.delta", "/delta"), done["arguments"]);
    let said = json!([{ "role": "user", "content": QUESTION }, item,
        { "type": "function_call_output", "call_id": item["call_id"], "output": "done" }]);
    server
        .ask(RESPONSES, &with(body, json!({ "input": said, "tool_choice": "auto", "max_output_tokens": 5 })));
    // Ollama's, where calls are the model's choice: those of before and their results are read.
    let call = json!({ "function": { "name": name, "arguments": arguments } });
    let said = json!([{ "role": "user", "content": QUESTION },
        { "role": "assistant", "content": "", "tool_calls": [call] },
        { "role": "tool", "tool_name": name, "content": "done" }]);
    let tool = json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
    let body = json!({ "model": "m", "messages": said, "tools": [tool], "options": { "num_predict": 5 },
        "stream": false });
    assert_eq!(server.ask("/api/chat", &body)["done"], true);
}

#[test]
fn answers_are_held_to_a_schema_in_each_dialect() {
    let server = Server::demo(&[]);
    let messages = json!([{ "role": "user", "content": QUESTION }]);
    let chat = json!({ "temperature": 0, "messages": messages,
        "response_format": { "type": "json_schema",
            "json_schema": { "name": "light", "schema": schema() } } });
    let openai = server.ask("/v1/chat/completions", &chat)["choices"][0]["message"]["content"].clone();
    assert!(is_on(&read(&openai)), "{openai}");
    let format = json!({ "type": "json_schema", "name": "light", "schema": schema() });
    let anthropic =
        server.ask(MESSAGES, &with(message(QUESTION), json!({ "output_config": { "format": format } })));
    assert_eq!(anthropic["content"], json!([{ "type": "text", "text": openai }]));
    let responses = server.ask(RESPONSES, &with(input(QUESTION), json!({ "text": { "format": format } })));
    assert_eq!(responses["output"][0]["content"][0]["text"], openai);
    let body = with(self::chat(QUESTION), json!({ "format": schema(), "stream": false }));
    assert_eq!(server.ask("/api/chat", &body)["message"]["content"], openai);
    let body =
        json!({ "prompt": QUESTION, "format": schema(), "stream": false, "options": { "temperature": 0 } });
    assert_eq!(server.ask("/api/generate", &body)["response"], openai);
    let wrong = server
        .post("/api/chat", &with(body, json!({ "messages": messages, "format": { "type": "nothing" } })));
    assert_eq!((wrong.status, wrong.json()["error"].is_string()), (400, true));
}
