//! `/residency`: what a server tells of where its weights are, and which experts it used.

mod common;

use std::path::Path;

use common::server::Server;
use common::{least_ram, runs::fixture};
use serde_json::{Value, json};

const TEXT: &str = "/v1/completions";

fn sum(values: &Value) -> u64 {
    values.as_array().expect("an array").iter().map(|value| value.as_u64().expect("a number")).sum()
}

fn titles(told: &Value) -> Vec<&str> {
    let pictures = told["pictures"].as_array().expect("pictures").iter();
    pictures.map(|picture| picture["title"].as_str().expect("a title")).collect()
}

/// What it tells once all that it has run is counted.
fn settled(server: &Server, name: &str) -> Value {
    server.until("wayinfer_running_requests", |running| running == 0.0);
    let reply = server.get(&format!("/residency/{name}"));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[test]
fn a_mapped_model_streams_nothing() {
    let server = Server::demo(&[]);
    let answer = server.ask(TEXT, &json!({ "prompt": "a", "max_tokens": 5, "temperature": 0 }));
    let made = answer["usage"]["completion_tokens"].as_u64().expect("a number");
    let told = settled(&server, "demo");
    assert_eq!(
        (&told["loaded"], &told["streamed"], &told["bytes_read"]),
        (&json!(true), &json!(false), &json!(0))
    );
    assert!(told["weights"].as_str().is_some_and(|weights| weights.ends_with("mapped")), "{told}");
    assert_eq!(told["by_token"].as_array().expect("an array").len() as u64, made, "{told}");
    assert_eq!(titles(&told), ["Time by token", "Experts by layer"]);
    // All that are loaded, without pictures.
    let all = server.get("/residency").json();
    assert_eq!((&all["models"][0]["model"], &all["models"][0]["pictures"]), (&json!("demo"), &Value::Null));
}

#[test]
fn a_streamed_model_tells_hits_reads_waits_and_experts() {
    let path = fixture("moe-q4_k_m");
    let file = path.to_str().expect("UTF-8");
    let args = ["serve", "-m", file, "--port", "0", "--parallel", "1", "--ctx", "256"];
    let ram = format!("{}M", least_ram(Path::new("."), &args));
    let server = Server::of(&path, &["--parallel", "1", "--ctx", "256", "--ram", &ram]);
    assert!(server.log().contains("streamed"), "--ram {ram}: {}", server.log());
    let body = json!({ "prompt": "a", "max_tokens": 20, "temperature": 0, "logit_bias": { "318": -100, "319": -100 } });
    let usage = server.ask(TEXT, &body)["usage"].clone();
    let tokens =
        [&usage["prompt_tokens"], &usage["completion_tokens"]].map(|n| n.as_u64().expect("a number"));
    let told = settled(&server, "any");
    assert_eq!((&told["streamed"], &told["model"]), (&json!(true), &json!("moe-q4_k_m")));
    assert!(told["bytes_read"].as_u64() > Some(0) && told["misses"].as_u64() > Some(0), "{told}");
    let titled =
        ["Time by token", "From disk by token", "Experts found in memory by token", "Experts by layer"];
    assert_eq!(titles(&told), titled);
    // Every token but the last one that was drawn was worked on, once by each expert that was chosen for it;
    // in the last layer only those whose logits are wanted.
    let experts = told["experts"].as_array().expect("layers");
    assert!(!experts.is_empty());
    for (i, layer) in experts.iter().enumerate() {
        let used = layer["used"].as_u64().expect("a number");
        let worked_on = if i + 1 == experts.len() { tokens[1] } else { tokens[0] + tokens[1] - 1 };
        assert_eq!(sum(&layer["counts"]), used * worked_on, "{layer}");
    }
    let steps = told["by_token"].as_array().expect("steps");
    let made: u64 = steps.iter().map(|step| step["tokens"].as_u64().expect("a number")).sum();
    assert_eq!(made, tokens[1]);
    let asked = |what: &str| steps.iter().map(|step| step[what].as_u64().expect("a number")).sum::<u64>();
    assert_eq!(
        asked("hits") + asked("misses"),
        told["hits"].as_u64().expect("n") + told["misses"].as_u64().expect("n")
    );
}

#[test]
fn models_that_are_not_loaded_or_not_there() {
    let server = Server::start(&["--models", "fixtures"]);
    let told = server.get("/residency/dense-q8_0");
    assert_eq!((told.status, told.json()), (200, json!({ "model": "dense-q8_0", "loaded": false })));
    assert_eq!(server.get("/residency").json(), json!({ "models": [] }), "looking on loads nothing");
    assert_eq!(server.get("/residency/nothing").status, 404);
}
