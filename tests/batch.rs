//! `wayinfer batch` as a user runs it: answers as the server gives them, runs that end in their midst, and
//! files that are no batches.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::runs::fixture;
use common::server::Server;
use common::transcript;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a batch in it.
struct Batch {
    dir: TempDir,
}

impl Batch {
    fn new(lines: &[u8]) -> Batch {
        let dir = TempDir::new().expect("a folder");
        fs::write(dir.path().join("in.jsonl"), lines).expect("it is written");
        Batch { dir }
    }

    fn of(requests: &[Value]) -> Batch {
        Batch::new(requests.iter().map(|request| format!("{request}\n")).collect::<String>().as_bytes())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, input: &str, output: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
        command.current_dir(self.dir.path()).args(["batch", input, output]).args(args);
        command.env("WAYINFER_NO_CONFIG", "1").env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command("in.jsonl", "out.jsonl", args).output().expect("the program starts")
    }

    /// A run that has to end well.
    fn done(&self, args: &[&str]) -> BTreeMap<String, Value> {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{}", transcript(&output));
        self.answers()
    }

    fn out(&self) -> Vec<u8> {
        fs::read(self.path("out.jsonl")).unwrap_or_default()
    }

    /// The answers by their names, of which there is one each.
    fn answers(&self) -> BTreeMap<String, Value> {
        answers(&self.out())
    }
}

/// The lines of a file of answers by their names.
fn answers(bytes: &[u8]) -> BTreeMap<String, Value> {
    let text = std::str::from_utf8(bytes).expect("UTF-8");
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    let mut answers = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let id = line["custom_id"].as_str().expect("a name").to_owned();
        assert!(line["error"].is_null() && line["id"].is_string(), "{line}");
        assert!(answers.insert(id.clone(), line["response"].clone()).is_none(), "{id} comes twice");
    }
    answers
}

fn question(id: &str, text: &str) -> Value {
    let body = json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": 24 });
    json!({ "custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body })
}

/// So many questions that the demo knows, some with a temperature and a seed, some as texts.
fn questions(count: usize) -> Vec<Value> {
    let one = |n: usize| {
        let mut request = question(&format!("q{n}"), &format!("What is {}+{}?", n * 7 % 90, n % 9));
        match n % 4 {
            1 => {
                request["body"]["temperature"] = json!(1.2);
                request["body"]["seed"] = json!(n);
                request["body"]["n"] = json!(1 + n % 3);
            }
            2 => {
                request["url"] = json!("/v1/completions");
                request["body"] = json!({ "prompt": format!("Once upon {n}"), "max_tokens": 9, "seed": n });
            }
            _ => {}
        }
        request
    };
    (0..count).map(one).collect()
}

/// The choices of an answer that is well.
fn choices(response: &Value) -> &Value {
    assert_eq!(response["status_code"], 200, "{response}");
    &response["body"]["choices"]
}

/// The error of one that is not.
fn error(response: &Value, status: u16) -> &Value {
    assert_eq!(response["status_code"], status, "{response}");
    let error = &response["body"]["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{response}");
    error
}

#[test]
fn answers_are_the_servers_one_by_one() {
    let requests = questions(40);
    let batch = Batch::of(&requests);
    let answers = batch.done(&["-m", "demo"]);
    assert_eq!(answers.len(), 40);
    let server = Server::demo(&["--parallel", "1"]);
    for request in &requests {
        let id = request["custom_id"].as_str().expect("a name");
        let alone = server.ask(request["url"].as_str().expect("a path"), &request["body"]);
        assert_eq!(*choices(&answers[id]), alone["choices"], "{id}");
    }
    // And one by one here.
    let alone = Batch::of(&requests[..6]);
    for (id, answer) in alone.done(&["-m", "demo", "--parallel", "1", "-t", "1"]) {
        assert_eq!(choices(&answer), choices(&answers[&id]), "{id}");
    }
}

/// The comparison above sees another seed.
#[test]
fn another_seed_is_another_answer() {
    let mut requests = questions(2);
    requests[1]["body"] =
        json!({ "prompt": "Once", "temperature": 2.0, "seed": 1, "max_tokens": 24, "top_k": 0 });
    requests[1]["url"] = json!("/v1/completions");
    let before = Batch::of(&requests).done(&["-m", "demo"]);
    requests[1]["body"]["seed"] = json!(77);
    let after = Batch::of(&requests).done(&["-m", "demo"]);
    assert_eq!(choices(&before["q0"]), choices(&after["q0"]));
    assert_ne!(choices(&before["q1"]), choices(&after["q1"]));
}

/// Waits until a run has written so many lines.
fn until_lines(batch: &Batch, lines: usize, child: &mut Child) {
    let began = Instant::now();
    while batch.out().iter().filter(|&&b| b == b'\n').count() < lines {
        assert!(
            began.elapsed() < PATIENCE && child.try_wait().expect("a child").is_none(),
            "it writes nothing"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Long enough not to be over before they are killed.
fn long_questions(count: usize) -> Vec<Value> {
    let mut requests = questions(count);
    for request in &mut requests {
        request["body"]["max_tokens"] = json!(60);
    }
    requests
}

#[test]
fn a_run_that_was_killed_is_gone_on_with() {
    let requests = long_questions(40);
    let want = Batch::of(&requests).done(&["-m", "demo"]);
    let batch = Batch::of(&requests);
    let args = ["-m", "demo", "--parallel", "2", "-t", "1"];
    let mut lines_before = 0;
    for _ in 0..3 {
        let mut child = batch.command("in.jsonl", "out.jsonl", &args).spawn().expect("the program starts");
        until_lines(&batch, lines_before + 3, &mut child);
        child.kill().expect("a child");
        child.wait().expect("a child");
        lines_before = batch.out().iter().filter(|&&b| b == b'\n').count();
        // A line that is torn, as a machine that loses its power leaves it.
        let mut out = batch.out();
        out.extend_from_slice(b"{\"id\":\"batch_req_12\xc3");
        fs::write(batch.path("out.jsonl"), out).expect("it is written");
    }
    assert!(lines_before < 40, "it was over before it was killed");
    let output = batch.run(&args);
    let told = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(0), "{}", transcript(&output));
    assert!(told.contains("not written whole") && told.contains("of them before"), "{told}");
    let got = batch.answers();
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (id, answer) in &got {
        assert_eq!(choices(answer), choices(&want[id]), "{id}");
    }
    // There is nothing left to do, and nothing is done.
    let before = batch.out();
    let output = batch.run(&["-m", "demo"]);
    assert_eq!((output.status.code(), batch.out()), (Some(0), before), "{}", transcript(&output));
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_is_answered() {
    let batch = Batch::of(&long_questions(60));
    let args = ["-m", "demo", "--parallel", "2", "-t", "1"];
    let mut child = batch.command("in.jsonl", "out.jsonl", &args).spawn().expect("the program starts");
    until_lines(&batch, 3, &mut child);
    // Another run keeps away meanwhile.
    let other = batch.run(&args);
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("another run adds to it"));
    // SAFETY: sends a signal to a child of this process that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", transcript(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"), "{}", transcript(&output));
    let before = batch.answers();
    assert!((3..60).contains(&before.len()), "{}", before.len());
    let all = batch.done(&["-m", "demo"]);
    assert_eq!(all.len(), 60);
    assert!(before.iter().all(|(id, answer)| all[id] == *answer));
}

#[test]
fn what_makes_no_sense_is_answered_with_an_error() {
    let line = |id: &str, rest: &str| format!("{{\"custom_id\": \"{id}\", {rest}}}\n").into_bytes();
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    let long = format!("\"{}\"", "x".repeat(200_000));
    let path = "\"url\": \"/v1/chat/completions\"";
    let lines: [(&str, String); 13] = [
        ("nothing", "\"x\": 1".into()),
        ("no body", path.into()),
        ("no url", "\"body\": {}".into()),
        ("wrong url", "\"url\": [], \"body\": {}".into()),
        ("other url", "\"url\": \"/v1/embeddings\", \"body\": {}".into()),
        ("ours alone", "\"url\": \"/metrics\", \"body\": {}".into()),
        ("get", format!("\"method\": \"GET\", {path}, \"body\": {{}}")),
        ("no messages", format!("{path}, \"body\": {{}}")),
        ("a number", format!("{path}, \"body\": 3")),
        ("deep", format!("{path}, \"body\": {{\"messages\": {deep}}}")),
        ("wrong role", format!("{path}, \"body\": {{\"messages\": [{{\"role\": 3}}]}}")),
        ("stream", format!("{path}, \"body\": {{\"messages\": [], \"stream\": true}}")),
        (
            "too long",
            format!("{path}, \"body\": {{\"messages\": [{{\"role\": \"user\", \"content\": {long}}}]}}"),
        ),
    ];
    let mut bytes: Vec<u8> = lines.iter().flat_map(|(id, rest)| line(id, rest)).collect();
    bytes.extend_from_slice(format!("{}\n\r\n", question("well", "What is 2+2?")).as_bytes());
    // Without an end of line.
    bytes.extend_from_slice(question("w\u{e4}ll", "What is 2+2?").to_string().as_bytes());
    let batch = Batch::new(&bytes);
    let output = batch.run(&["-m", "demo"]);
    assert_eq!(output.status.code(), Some(0), "{}", transcript(&output));
    let answers = batch.answers();
    assert_eq!(answers.len(), lines.len() + 2);
    for id in ["well", "w\u{e4}ll"] {
        assert_eq!(choices(&answers[id])[0]["message"]["content"], "The sum of 2 and 2 is 4.");
    }
    for (id, _) in &lines {
        error(&answers[*id], 400);
    }
    assert_eq!(error(&answers["stream"], 400)["param"], "stream");
    assert_eq!(error(&answers["too long"], 400)["code"], "context_length_exceeded");
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(told.contains("13 of them with errors"), "{told}");
    // Errors are answers: they are not asked again.
    assert_eq!(batch.done(&["-m", "demo"]), answers);
}

/// What is wrong with IN ends the run before it begins.
#[test]
fn requests_without_names_end_the_run() {
    let good = question("a", "What is 2+2?").to_string();
    let deep = "[".repeat(100_000);
    let huge = format!("{{\"custom_id\": \"b\", \"x\": \"{}\"}}", "x".repeat(33 << 20));
    let cases: [(&[u8], &str); 10] = [
        (b"", "there are no requests"),
        (b"\n \n", "there are no requests"),
        (b"hello", "line 2: "),
        (b"{\"custom_id\": 3}", "line 2: invalid type"),
        (b"{\"url\": \"/v1/completions\"}", "line 2: missing field `custom_id`"),
        (b"[\"b\"]", "line 2: it is no JSON object"),
        (b"{\"custom_id\": \"b\xff\"}", "line 2: "),
        (deep.as_bytes(), "line 2: "),
        (huge.as_bytes(), "line 2: it is longer than"),
        (good.as_bytes(), "lines 1 and 2 have the same custom_id \"a\""),
    ];
    for (second, what) in cases {
        let bytes = match second.trim_ascii().is_empty() {
            true => second.to_vec(),
            false => [good.as_bytes(), b"\n", second].concat(),
        };
        let batch = Batch::new(&bytes);
        let output = batch.run(&["-m", "demo"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {told}");
        assert!(told.starts_with("error: in.jsonl: ") && told.contains(what), "{what}: {told}");
        assert!(told.len() < 1000 && !batch.path("out.jsonl").exists(), "{told}");
    }
    let batch = Batch::new(b"");
    let output = batch.command("nothing", "out.jsonl", &[]).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing: cannot be read"));
}

/// Files that something else lies in stay as they are.
#[test]
fn nothing_else_is_added_to() {
    let batch = Batch::of(&questions(2));
    let answer = |id: &str| {
        format!("{{\"id\":\"batch_req_1\",\"custom_id\":\"{id}\",\"response\":{{}},\"error\":null}}\n")
    };
    let cases = [
        ("hello".to_owned(), "line 1 is no answer"),
        ("hello\n".to_owned(), "line 1 is no answer"),
        ("\n".to_owned(), "line 1 is no answer"),
        ("{\"id\": 1}\n".to_owned(), "line 1 is no answer"),
        (format!("{}hello\n", answer("q0")), "line 2 is no answer"),
        (format!("{}hello", answer("q0")), "line 2 is no answer"),
        (format!("{}\n", answer("q0")), "line 2 is no answer"),
        // A torn line is the last one.
        (format!("{{\"id\":\"batch_req_1\n{}", answer("q0")), "line 1 is no answer"),
        (answer("x"), "it answers \"x\", which is not asked"),
    ];
    for (held, what) in cases {
        fs::write(batch.path("out.jsonl"), &held).expect("it is written");
        let output = batch.run(&["-m", "demo"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{held}: {told}");
        assert!(told.contains(what) && batch.out() == held.as_bytes(), "{held}: {told}");
    }
    // A whole line without its end is an answer.
    fs::write(batch.path("out.jsonl"), answer("q0").trim_end()).expect("it is written");
    let answers = batch.done(&["-m", "demo"]);
    assert!(answers["q0"] == json!({}) && answers["q1"]["status_code"] == 200);
    // The files that are read.
    fs::copy(fixture("dense-q8_0"), batch.path("model.gguf")).expect("it is copied");
    for (output, what) in [("in.jsonl", "the requests are in it"), ("model.gguf", "it is the model itself")] {
        let before = fs::read(batch.path(output)).expect("a file");
        let run = batch.command("in.jsonl", output, &["-m", "model.gguf"]).output().expect("it starts");
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.code() == Some(1) && told.contains(what), "{told}");
        assert_eq!(fs::read(batch.path(output)).expect("a file"), before);
    }
    for output in [".", "no/such/folder"] {
        let run = batch.command("in.jsonl", output, &["-m", "demo"]).output().expect("it starts");
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.code() == Some(1) && told.starts_with(&format!("error: {output}: ")), "{told}");
    }
}

/// From standard input to standard output, which hold no more than that.
#[test]
fn streams_stand_in_for_files() {
    let requests = questions(3);
    let batch = Batch::of(&requests);
    let mut child =
        batch.command("-", "-", &["-m", "demo"]).stdin(Stdio::piped()).spawn().expect("the program starts");
    let text: String = requests.iter().map(|request| format!("{request}\n")).collect();
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("requests");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", transcript(&output));
    let got = answers(&output.stdout);
    let want = batch.done(&["-m", "demo"]);
    let texts = |answers: &BTreeMap<String, Value>| -> BTreeSet<String> {
        answers.values().map(|answer| choices(answer).to_string()).collect()
    };
    assert_eq!(texts(&got), texts(&want));
}

/// Nothing can be added to it, and nothing is lost before.
#[cfg(unix)]
#[test]
fn a_file_that_cannot_be_written_ends_the_run() {
    let batch = Batch::of(&questions(3));
    if Path::new("/dev/full").exists() {
        let run = batch.command("in.jsonl", "/dev/full", &["-m", "demo"]).output().expect("it starts");
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.code() == Some(1) && told.contains("/dev/full: cannot be written"), "{told}");
    } else {
        common::say("a_file_that_cannot_be_written: there is no /dev/full");
    }
    use std::os::unix::fs::PermissionsExt;
    fs::write(batch.path("out.jsonl"), b"").expect("it is written");
    fs::set_permissions(batch.path("out.jsonl"), PermissionsExt::from_mode(0o444)).expect("a file");
    if fs::File::options().write(true).open(batch.path("out.jsonl")).is_ok() {
        return common::say("a_file_that_cannot_be_written: this user may write what is read-only");
    }
    let run = batch.run(&["-m", "demo"]);
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.code() == Some(1) && told.contains("out.jsonl: cannot be written"), "{told}");
}

/// However little memory there is for sequences, all is answered.
#[test]
fn little_memory_runs_few_at_a_time() {
    let requests = questions(12);
    let file = fixture("dense-q4_k_m");
    let file = file.to_str().expect("UTF-8");
    let texts: Vec<Value> = requests.into_iter().filter(|r| r["url"] == "/v1/completions").collect();
    let batch = Batch::of(&texts);
    let output = batch.run(&["-m", file, "-c", "256", "--ram", "1M"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let least = told.split("of memory: ").nth(1).and_then(|rest| rest.split(" MiB").next());
    let least: f64 = least.and_then(|least| least.parse().ok()).unwrap_or_else(|| panic!("{told}"));
    let want = Batch::of(&texts).done(&["-m", file, "-c", "256"]);
    let ram = format!("{}M", least + 1.0);
    let got = batch.done(&["-m", file, "-c", "256", "--ram", &ram]);
    assert_eq!(got.len(), texts.len());
    for (id, answer) in &got {
        assert_eq!(choices(answer), choices(&want[id]), "{id}");
    }
}
