//! An answer depends on the model, the request and its seed alone: one by one, all at once, in another order
//! with much remembered, with other kernels and threads, streamed from disk, and over a restart.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use common::runs::fixture;
use common::server::Server;
use common::{least_ram, say, say_kernel_sets, test_data};
use serde_json::{Value, json};
use wayinfer::kernels::Kernels;

/// Requests of a set.
const REQUESTS: usize = 32;

/// A request, and where it goes.
type Request = (&'static str, Value);

/// How a model is asked.
#[derive(Clone, Copy)]
enum Kind {
    /// Conversations, and texts between them.
    Chats,
    Texts,
}

/// Requests that have all in common that is remembered, and nothing that ought to matter: every other one
/// begins as the one before does, some with prompts of more than a page, each with a seed of its own.
fn requests(kind: Kind) -> Vec<Request> {
    (0..REQUESTS).map(|n| request(kind, n)).collect()
}

fn request(kind: Kind, n: usize) -> Request {
    let temperature = [0.0, 0.8, 1.3, 2.0][n % 4];
    let mut body = json!({
        "seed": 1000 + n, "temperature": temperature, "max_tokens": 4 + n % 9, "top_k": n % 3 * 20,
        "top_p": 1.0 - (n % 5) as f64 / 50.0, "min_p": (n % 2) as f64 / 50.0,
    });
    if n % 7 == 3 {
        body["repeat_penalty"] = json!(1.3);
    }
    if n % 11 == 5 {
        body["n"] = json!(3);
    }
    if n % 6 == 1 {
        body["stop"] = json!(["e", "4."]);
    }
    if n % 9 == 4 {
        body["presence_penalty"] = json!(0.6);
        body["frequency_penalty"] = json!(0.4);
    }
    if n % 10 == 6 {
        body["logit_bias"] = json!({ "100": 3, "101": -100 });
    }
    let subject = n / 2;
    if matches!(kind, Kind::Chats) && n % 4 != 3 {
        let mut messages =
            vec![json!({ "role": "user", "content": format!("What is {subject}+{}?", n % 10) })];
        if n.is_multiple_of(5) {
            let answer = format!("The sum of {subject} and {} is {}.", n % 10, subject + n % 10);
            messages.push(json!({ "role": "assistant", "content": answer }));
            messages.push(
                json!({ "role": "user", "content": format!("Spell the word {}.", ["cat", "tree"][n % 2]) }),
            );
        }
        body["messages"] = json!(messages);
        if n % 8 == 2 {
            let number = json!({ "type": "integer", "minimum": 0, "maximum": 999 });
            let schema = json!({ "type": "object", "properties": { "sum": number }, "required": ["sum"] });
            let schema = json!({ "name": "sum", "schema": schema });
            body["response_format"] = json!({ "type": "json_schema", "json_schema": schema });
            body["max_tokens"] = json!(24);
        }
        if n.is_multiple_of(3) {
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(3);
        }
        return ("/v1/chat/completions", body);
    }
    // Every fourth text is longer than a page, and some share more than one.
    let long = format!("Number {}. ", n / 8).repeat(if n.is_multiple_of(4) { 22 } else { 2 });
    body["prompt"] = json!(format!("{long}Once upon {subject} {}", n % 2));
    if n.is_multiple_of(3) {
        body["logprobs"] = json!(2);
        body["echo"] = json!(n % 4 == 2);
    }
    ("/v1/completions", body)
}

/// What is left of an answer without names, times and what was remembered.
fn essence(mut answer: Value) -> Value {
    let fields = answer.as_object_mut().expect("an object");
    ["id", "created", "wayinfer", "model"].iter().for_each(|name| {
        fields.remove(*name);
    });
    fields["usage"].as_object_mut().expect("an object").remove("prompt_tokens_details");
    answer
}

/// Asks for all, in this order, so many at a time.
fn answers(server: &Server, requests: &[Request], order: &[usize], at_once: usize) -> Vec<Value> {
    let mut all = vec![Value::Null; requests.len()];
    for part in order.chunks(at_once) {
        std::thread::scope(|scope| {
            let ask = |&n: &usize| (n, scope.spawn(move || server.ask(requests[n].0, &requests[n].1)));
            let asked: Vec<_> = part.iter().map(ask).collect();
            asked.into_iter().for_each(|(n, answer)| all[n] = essence(answer.join().expect("an answer")));
        });
    }
    all
}

/// Numbers that differ.
fn differing(a: &[Value], b: &[Value]) -> Vec<usize> {
    assert_eq!((a.len(), b.len()), (REQUESTS, REQUESTS));
    // The text of the JSON has every digit.
    let bytes = |answer: &Value| answer.to_string();
    (0..a.len()).filter(|&n| bytes(&a[n]) != bytes(&b[n])).collect()
}

fn assert_same(want: &[Value], got: &[Value], what: &str) {
    if let Some(&n) = differing(want, got).first() {
        panic!("{what}: answer {n} is another one:\n{}\n{}", want[n], got[n]);
    }
}

fn in_order() -> Vec<usize> {
    (0..REQUESTS).collect()
}

/// Another order, in which no two neighbours are the same.
fn shuffled() -> Vec<usize> {
    (0..REQUESTS).map(|n| n * 13 % REQUESTS).rev().collect()
}

/// Cold one by one, warm all at once, warm in another order; the answers.
fn one_by_one_and_together(server: &Server, requests: &[Request], what: &str) -> Vec<Value> {
    let want = answers(server, requests, &in_order(), 1);
    // They are answers, and not all one.
    let texts: BTreeSet<String> = want.iter().map(|answer| answer["choices"][0].to_string()).collect();
    assert!(texts.len() > REQUESTS / 2, "{what}: {texts:?}");
    assert_same(&want, &answers(server, requests, &in_order(), REQUESTS), &format!("{what}, at once"));
    assert_same(&want, &answers(server, requests, &shuffled(), 5), &format!("{what}, in another order"));
    want
}

/// The same from a server that is started so, cold and all at once.
fn assert_same_from(server: &Server, want: &[Value], requests: &[Request], what: &str) {
    let began = Instant::now();
    assert_same(want, &answers(server, requests, &shuffled(), REQUESTS), what);
    say(&format!("{what}: the same, {:.1} s", began.elapsed().as_secs_f64()));
}

/// Kernel sets beside the best, which is what servers take.
fn other_sets() -> Vec<&'static str> {
    let best = Kernels::detect_best().isa();
    Kernels::available().map(|set| set.isa()).filter(|&isa| isa != best).map(|isa| isa.name()).collect()
}

#[test]
fn the_demo() {
    say_kernel_sets("the demo");
    let requests = requests(Kind::Chats);
    let server = Server::demo(&["--parallel", "7", "--chunk", "16"]);
    let want = one_by_one_and_together(&server, &requests, "the demo");
    drop(server);
    let sets = other_sets();
    // The fastest of the others; the scalar one runs smaller models below.
    let isa = sets.first().map_or(vec![], |set| vec!["--isa", *set]);
    let server = Server::demo(&[&["--threads", "1", "--parallel", "3"], &isa[..]].concat());
    assert_same_from(&server, &want, &requests, &format!("the demo, one thread, {isa:?}"));
}

/// A set of requests to a model that is mapped, run by every kernel set and, where it is large enough to be,
/// streamed.
fn in_every_way(path: &Path, streams: bool) {
    let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
    let requests = requests(Kind::Texts);
    let server = Server::of(path, &["--parallel", "6", "--chunk", "40"]);
    let want = one_by_one_and_together(&server, &requests, &name);
    drop(server);
    for (turn, isa) in other_sets().into_iter().enumerate() {
        let threads = (1 + turn % 3).to_string();
        let server = Server::of(path, &["--isa", isa, "--threads", &threads, "--parallel", "32"]);
        assert_same_from(&server, &want, &requests, &format!("{name}, {isa}, {threads} threads"));
    }
    if !streams {
        return;
    }
    let file = path.to_str().expect("UTF-8");
    let args = ["serve", "-m", file, "--port", "0", "--parallel", "4", "--threads", "2"];
    let least = least_ram(Path::new("."), &args);
    let ram = format!("{least}M");
    let server = Server::of(path, &["--parallel", "4", "--threads", "2", "--ram", &ram]);
    assert!(server.log().contains("streamed"), "--ram {ram}: {}", server.log());
    assert_same_from(&server, &want, &requests, &format!("{name}, streamed, --ram {ram}"));
}

#[test]
fn a_model_with_experts() {
    in_every_way(&fixture("moe-q4_k_m"), true);
}

#[test]
fn a_model_with_recurrences() {
    // With the least memory all of it is in memory.
    in_every_way(&fixture("qwen35moe"), false);
}

#[test]
fn stories() {
    if let Some(path) = test_data("models/stories260K.gguf") {
        in_every_way(&path, true);
    }
}

/// Prompts of more than a page are read back from a folder.
#[cfg(unix)]
#[test]
fn a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = fixture("dense-q4_k_m");
    let requests = requests(Kind::Texts);
    let want = answers(&Server::of(&path, &[]), &requests, &in_order(), 1);
    let cache = ["--cache", folder.path().to_str().expect("UTF-8")];
    for turn in 0..2 {
        let mut server = Server::of(&path, &cache);
        // The first one is longer than a page; nothing is in memory when it comes.
        let (path, body) = &requests[0];
        let first = server.ask(path, body);
        let cached = first["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
        assert_eq!(cached, if turn == 0 { 0 } else { 128 }, "{first}");
        assert_same(&want, &answers(&server, &requests, &shuffled(), REQUESTS), &format!("start {turn}"));
        server.terminate();
        assert_eq!(server.wait(), Some(0));
    }
}

/// The comparison above sees a seed that is another one, and a probability of another last digit.
#[test]
fn another_seed_is_seen() {
    let server = Server::of(&fixture("moe-q4_k_m"), &[]);
    let mut requests = requests(Kind::Texts);
    let want = answers(&server, &requests, &in_order(), 8);
    // One whose temperature is high.
    requests[3].1["seed"] = json!(1);
    assert_eq!(differing(&want, &answers(&server, &requests, &in_order(), 8)), [3]);
    let mut other = want.clone();
    let logprob = &mut other[3]["choices"][0]["logprobs"]["token_logprobs"][0];
    let bits = logprob.as_f64().expect("a number") as f32;
    *logprob = json!(f32::from_bits(bits.to_bits() + 1));
    assert_eq!(differing(&want, &other), [3]);
}

/// What is remembered comes sooner: without it the tests above would show nothing.
#[test]
fn prompts_are_remembered() {
    let server = Server::of(&fixture("moe-q4_k_m"), &[]);
    let (path, body) = request(Kind::Texts, 4);
    let cached = || server.ask(path, &body)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached(), Some(0));
    assert!(cached() > Some(128));
    // Another one that begins alike.
    let (path, body) = request(Kind::Texts, 0);
    let other = server.ask(path, &body)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(other > Some(100), "{other:?}");
}
