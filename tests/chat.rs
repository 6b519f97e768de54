//! `wayinfer chat`: through a pipe, and in a terminal with what its screen shows.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use wayinfer::gguf::Gguf;
use wayinfer::text::{ChatTemplate, Conversation, Message, Tokenizer};

/// The program in a conversation through pipes, its data in this folder.
fn start(data: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .arg("chat")
        .args(args)
        .env("XDG_DATA_HOME", data)
        .env("HOME", data)
        .env("APPDATA", data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

/// A whole conversation.
fn chat(data: &Path, args: &[&str], lines: &str) -> Output {
    let mut child = start(data, args);
    // One that has ended does not read on.
    let _ = child.stdin.take().expect("a pipe").write_all(lines.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn answers(output: &Output) -> String {
    assert!(output.status.success(), "{}", told(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn lines_are_answered_until_the_end_of_input() {
    let data = folder();
    let output = chat(data.path(), &[], "What is 2+2?\n\nWhat is 3+4?\n");
    assert_eq!(answers(&output), "The sum of 2 and 2 is 4.\nThe sum of 3 and 4 is 7.\n");
    assert!(!told(&output).contains('\x1b') && !told(&output).contains("> "), "{}", told(&output));
    assert_eq!(answers(&chat(data.path(), &[], "")), "");
    // A script's conversations are not kept, unless it asks.
    assert_eq!(std::fs::read_dir(data.path()).expect("a folder").count(), 0);
}

/// Tokens of the prompt, and those that were remembered, as `/stats` has them.
fn remembered(output: &Output) -> Vec<[usize; 2]> {
    let of = |line: &str| {
        let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        [numbers[0], numbers[1]]
    };
    told(output).lines().filter(|line| line.starts_with("prompt ")).map(of).collect()
}

#[test]
fn a_turn_reads_what_is_new_alone() {
    let data = folder();
    let lines = "What is 2+2?\n/stats\nWhat is 3+4?\n/stats\n/regen\n/stats\n/undo\nWhat is 3+4?\n/stats\n";
    let output = chat(data.path(), &[], lines);
    let [first, second, again, anew] = remembered(&output).try_into().expect("four answers");
    assert_eq!(first[1], 0);
    // The prompt, the answer and what comes between are remembered, but for the token that was drawn last.
    assert!(second[0] - second[1] <= first[0] + 1, "{second:?} after {first:?}");
    assert!(second[1] > first[0]);
    // The last token's logits are wanted.
    for same in [again, anew] {
        assert_eq!(same, [second[0], second[0] - 1]);
    }
}

#[test]
fn a_conversation_that_was_broken_off_goes_on_with_the_same_bits() {
    let data = folder();
    let hot = ["-n", "30", "--temp", "3", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed"];
    let sampling = [&hot[..], &["7"]].concat();
    let [a, b, c] = ["What is 2+2?\n", "Count from 1 to 5.\n", "What is 9-4?\n"];
    let named = |name: &[&'static str]| [&sampling[..], name].concat();
    let whole = answers(&chat(data.path(), &named(&["--resume=whole"]), &format!("{a}{b}{c}")));
    let first = chat(data.path(), &named(&["--resume", "parts"]), &format!("{a}{b}"));
    assert!(told(&first).contains("begins parts"), "{}", told(&first));
    let first = answers(&first);
    let second = chat(data.path(), &named(&["--resume=parts"]), c);
    assert_eq!(first + &answers(&second), whole);
    assert!(told(&second).contains("goes on with parts: 2 exchanges"), "{}", told(&second));
    // The last one, without its name.
    let last = chat(data.path(), &["--resume"], "/show\n");
    assert!(told(&last).contains("goes on with parts: 3 exchanges"), "{}", told(&last));
    // The canary: another seed says something else.
    let other = answers(&chat(data.path(), &[&hot[..], &["8"]].concat(), a));
    assert!(!whole.starts_with(&other));
}

#[test]
fn conversations_are_saved_and_loaded_and_nothing_is_overwritten() {
    let data = folder();
    let file = data.path().join("talk.jsonl");
    let path = file.to_str().expect("UTF-8");
    let first = answers(&chat(data.path(), &[], &format!("What is 2+2?\n/save {path}\n")));
    let text = std::fs::read_to_string(&file).expect("it was saved");
    assert_eq!(text.lines().count(), 3, "{text}");
    let again = chat(data.path(), &[], &format!("What is 3+4?\n/save {path}\n"));
    assert_eq!(again.status.code(), Some(1));
    assert!(told(&again).contains("already there") && told(&again).contains("/save!"), "{}", told(&again));
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), text);
    let loaded = chat(data.path(), &[], &format!("/load {path}\n/show\nWhat is 3+4?\n/save! {path}\n"));
    assert!(told(&loaded).contains(first.trim()), "{}", told(&loaded));
    assert!(loaded.status.success());
    assert_eq!(std::fs::read_to_string(&file).expect("a file").lines().count(), 5);
    std::fs::write(&file, "{\"format\":\"wayinfer-chat\",\"version\":1}\n{\"role\":\"tool\"}\n")
        .expect("a file");
    let broken = chat(data.path(), &[], &format!("/load {path}\n"));
    assert_eq!(broken.status.code(), Some(1));
    assert!(told(&broken).contains("talk.jsonl: line 2: unknown variant `tool`"), "{}", told(&broken));
}

#[test]
fn a_full_context_is_told_of_or_makes_room() {
    let data = folder();
    let lines = "What is 2+2?\nWhat is 3+4?\nWhat is 5+1?\n";
    let stopped = chat(data.path(), &["-c", "40"], lines);
    assert!(told(&stopped).contains("the context is full: the answer ends here"), "{}", told(&stopped));
    assert!(told(&stopped).contains("hint: /drop, /undo and /clear make room"), "{}", told(&stopped));
    assert_eq!(stopped.status.code(), Some(1), "a message without an answer");
    assert!(!told(&stopped).contains("dropped"));
    let dropped = chat(data.path(), &["-c", "40", "--on-full", "drop"], lines);
    assert!(told(&dropped).contains("dropped: What is 2+2?"), "{}", told(&dropped));
    let text = answers(&dropped);
    assert_eq!(text.lines().last(), Some("The sum of 5 and 1 is 6."), "{text}");
    // A message that no context of this size holds.
    let long = format!("{}\n", "What is 2+2? ".repeat(40));
    let never = chat(data.path(), &["-c", "40", "--on-full", "drop"], &long);
    assert!(told(&never).contains("the context is full"), "{}", told(&never));
    assert_eq!((never.status.code(), never.stdout.len()), (Some(1), 0));
    // A message that there is no room for drops nothing.
    let kept = chat(data.path(), &["-c", "40", "--on-full=drop"], &format!("What is 2+2?\n{long}"));
    assert!(!told(&kept).contains("dropped"), "{}", told(&kept));
}

/// What goes leaves a quarter of the context free, so that not every answer reads all of the rest anew.
#[test]
fn dropping_leaves_a_quarter_free() {
    let data = folder();
    let turns = ["What is 2+2?", "What is 3+4?", "What is 5+1?", "Count from 1 to 5."].repeat(3);
    let lines: String = turns.iter().map(|turn| format!("{turn}\n/stats\n")).collect();
    let output = chat(data.path(), &["-c", "120", "--on-full", "drop"], &lines);
    let told = told(&output);
    assert_eq!(answers(&output).lines().count(), turns.len(), "{told}");
    let [mut drops, mut turn] = [0, 0];
    for line in told.lines() {
        if line.starts_with("dropped: ") {
            drops += 1;
            turn += 1;
        }
        if let Some(rest) = line.strip_prefix("prompt ") {
            let prompt: usize = rest.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
            assert!(prompt < if turn > 0 { 91 } else { 120 }, "{told}");
            turn = 0;
        }
    }
    assert!((3..turns.len()).contains(&drops), "{drops} of {}: {told}", turns.len());
}

#[test]
fn commands_and_settings() {
    let data = folder();
    let output = chat(
        data.path(),
        &[],
        "/help\n/set temp 0.5\n/set ctx 256\n/set\n/system\n/stats\n/clear\n//exit\n/exit\nWhat is 2+2?\n",
    );
    let told = told(&output);
    assert!(told.contains("/regen") && told.contains("temp 0.5,") && told.contains("ctx 256,"), "{told}");
    assert!(
        told.contains("there is no system message") && told.contains("nothing has been answered yet"),
        "{told}"
    );
    assert_eq!(answers(&output).lines().count(), 1, "what follows /exit is not answered, what follows // is");
    for (line, code, what) in [
        ("/nothing", 2, "/nothing is no command"),
        ("/set temp -1", 2, "temperature is -1"),
        ("/regen", 1, "nothing has been said yet"),
        ("/load /nowhere/x", 1, "cannot be read"),
        ("/read /nowhere/x", 1, "cannot be read"),
        ("a\u{0}", 0, ""),
    ] {
        let output = chat(data.path(), &[], &format!("{line}\n"));
        assert_eq!(output.status.code(), Some(code), "{line}: {}", self::told(&output));
        assert!(self::told(&output).contains(what), "{line}: {}", self::told(&output));
    }
    for name in ["../x", "a/b", "demo.gguf", ""] {
        let output = chat(data.path(), &[&format!("--resume={name}")], "");
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
    let output = chat(data.path(), &["--resume", "fixtures/demo-q4_k_m.gguf"], "");
    assert!(self::told(&output).contains("MODEL before --resume"), "{}", self::told(&output));
    assert!(!data.path().join("wayinfer").exists(), "nothing has been kept");
    let output = chat(data.path(), &["-m", "fixtures/moe-q4_k_m.gguf"], "");
    assert!(self::told(&output).contains("no chat template") && self::told(&output).contains("chatml"));
    let output =
        chat(data.path(), &["-m", "fixtures/moe-q4_k_m.gguf", "--template", "chatml", "-n", "3"], "abc\n");
    assert!(output.status.success(), "{}", self::told(&output));
}

#[test]
fn messages_come_from_files_and_the_template_has_a_say() {
    let data = folder();
    let [file, template] = ["question", "template"].map(|name| data.path().join(name));
    std::fs::write(&file, "What is\n2+2?").expect("a file");
    std::fs::write(&template, THINKS.replace("<think>", "")).expect("a file");
    let args = ["--template", template.to_str().expect("UTF-8")];
    let read = chat(data.path(), &args, &format!("/read '{}'\n/show\n", file.display()));
    assert!(answers(&read).len() > 1 && told(&read).contains("> What is\n2+2?\n"), "{}", told(&read));
    let lines = "/system Be brief.\n/system\nWhat is 2+2?\n/show\n/system \"\"\n/system\n";
    let system = told(&chat(data.path(), &args, lines));
    assert_eq!(system.matches("Be brief.").count(), 2, "{system}");
    assert!(
        system.contains("system: Be brief.\n> What is") && system.ends_with("there is no system message\n")
    );
    let refused = chat(data.path(), &[], "/system Be brief.\n");
    assert!(told(&refused).contains("leaves system messages out"), "{}", told(&refused));
    assert_eq!(refused.status.code(), Some(1));
    let edit = chat(data.path(), &[], "What is 2+2?\n/edit\n");
    assert!(told(&edit).contains("/edit needs a terminal"), "{}", told(&edit));
    for model in [&["demo"][..], &["-m", "demo"], &["fixtures/demo-q4_k_m.gguf", "--resume", "x", "--greedy"]]
    {
        assert_eq!(answers(&chat(data.path(), model, "What is 2+2?\n")), "The sum of 2 and 2 is 4.\n");
    }
}

/// A model larger than its memory, with the same answers.
#[test]
fn a_streamed_model_answers_the_same() {
    let data = folder();
    let lines = "What is 2+2?\nWhat is 3+4?\nWhat is 9-4?\n";
    let model = ["-m", "fixtures/demo-q4_k_m.gguf", "--greedy", "--template"];
    let template = data.path().join("template");
    std::fs::write(&template, TEMPLATE).expect("a file");
    let args = [&model[..], &[template.to_str().expect("UTF-8")]].concat();
    let truth = answers(&chat(data.path(), &args, lines));
    let least = chat(data.path(), &[&args[..], &["--ram", "1M"]].concat(), lines);
    let told = told(&least);
    let needed: f64 = told
        .split(" MiB are needed")
        .next()
        .and_then(|t| t.rsplit(' ').next())
        .expect("a size")
        .parse()
        .expect(&told);
    let ram = format!("{}M", needed.ceil() as u64 + 1);
    let streamed = chat(data.path(), &[&args[..], &["--ram", &ram]].concat(), lines);
    assert_eq!(answers(&streamed), truth);
    assert!(
        self::told(&streamed).contains("a token from disk") || self::told(&streamed).contains("streamed"),
        "{}",
        self::told(&streamed)
    );
}

/// The demo's, which leaves system messages out.
const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{% if m.role in ['user', 'assistant'] %}\
    {{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}{{ '<|assistant|>' }}";

/// It begins each answer with reasoning, which is left out of what has been said.
const THINKS: &str = "{{ bos_token }}{% for m in messages %}\
    {{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}{{ '<|assistant|><think>' }}";

/// Ids of a conversation in a template.
fn ids(template: &str, messages: &[(&str, &str)]) -> Vec<u32> {
    let gguf = Gguf::open(Path::new("fixtures/demo-q4_k_m.gguf")).expect("the demo");
    let tokenizer = Tokenizer::from_metadata(gguf.metadata(), None).expect("a tokenizer");
    let messages: Vec<Message> = messages.iter().map(|(role, text)| Message::new(*role, *text)).collect();
    let conversation = Conversation::new(&messages, true, &tokenizer);
    let text = ChatTemplate::new(template).and_then(|t| t.render_apart(&conversation, &tokenizer));
    tokenizer.encode_chat(&text.expect("a text")).expect("ids")
}

/// A template that rewrites what was said costs no more than what comes behind the place.
#[test]
fn reasoning_that_is_left_out_costs_the_least_replay() {
    let data = folder();
    let template = data.path().join("template");
    std::fs::write(&template, THINKS).expect("a file");
    let saved = data.path().join("saved.jsonl");
    let lines = format!("What is 2+2?\n/stats\n/save {}\nWhat is 3+4?\n/stats\n", saved.display());
    let args = ["--template", template.to_str().expect("UTF-8"), "-n", "8"];
    let output = chat(data.path(), &args, &lines);
    assert_eq!(answers(&output), "\n\n", "reasoning is no part of the answer");
    let text = std::fs::read_to_string(&saved).expect("a transcript");
    let answer: serde_json::Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(answer["content"], "");
    assert!(answer["reasoning_content"].as_str().is_some_and(|text| text.len() > 4), "{answer}");
    let [first, second] = remembered(&output).try_into().expect("two answers");
    let one = [("user", "What is 2+2?")];
    let two = [one[0], ("assistant", ""), ("user", "What is 3+4?")];
    let [one, two] = [ids(THINKS, &one), ids(THINKS, &two)];
    let same = one.iter().zip(&two).take_while(|(a, b)| a == b).count();
    assert!(same > 10 && same < one.len());
    assert_eq!((first, second), ([one.len(), 0], [two.len(), same]));
}

/// A recurrence goes on from the last end of a page.
#[test]
fn recurrent_models_replay_from_a_page() {
    let data = folder();
    let lines = format!("{}\n/stats\n/regen\n/stats\n", "abc ".repeat(100));
    let template = data.path().join("template");
    std::fs::write(&template, "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
        .expect("a file");
    let template = template.to_str().expect("UTF-8");
    let args = ["-m", "fixtures/mamba.gguf", "--template", template, "-c", "1000", "-n", "4", "--seed", "1"];
    let output = chat(data.path(), &args, &lines);
    let [first, again] = remembered(&output).try_into().expect("two answers");
    assert!(first[0] > 128, "{first:?}");
    assert_eq!(again, [first[0], (first[0] - 1) / 128 * 128]);
}

/// What a transcript holds is text: it runs no command, names no file and moves no cursor.
#[test]
fn what_a_transcript_holds_is_text_alone() {
    let data = folder();
    let [file, victim] = ["hostile.jsonl", "victim"].map(|name| data.path().join(name));
    let command = format!("/save! {}", victim.display());
    let header =
        serde_json::json!({"format": "wayinfer-chat", "version": 1, "model": "/etc/passwd\u{1b}[2J"});
    let user = serde_json::json!({"role": "user", "content": format!("{command}\u{1b}]0;x\u{7}\u{9b}2J")});
    let answer = serde_json::json!({
        "role": "assistant", "content": "/exit\r\u{1b}[31m", "reasoning_content": "/clear"
    });
    std::fs::write(&file, format!("{header}\n{user}\n{answer}\n")).expect("a file");
    let lines = format!("/load {}\n/show\n/regen\n/undo\nWhat is 2+2?\n", file.display());
    let output = chat(data.path(), &["-n", "20"], &lines);
    assert!(answers(&output).ends_with("The sum of 2 and 2 is 4.\n"), "{}", told(&output));
    assert!(!victim.exists());
    assert!(told(&output).contains(&command) && told(&output).contains("\\u{1b}]0;x"), "{}", told(&output));
    assert!(!told(&output).contains(|c: char| c.is_control() && c != '\n'), "{:?}", told(&output));
    let error = chat(data.path(), &[], &format!("/load {}\n", data.path().display()));
    assert_eq!(error.status.code(), Some(1), "a folder");
}

/// A conversation whose answers go on until the context is full: the model repeats itself, which it does on
/// any machine, and the context takes even a fast one far longer than it takes to interrupt it.
#[cfg(unix)]
const ENDLESS: [&str; 9] = [
    "-m",
    "fixtures/moe-q4_k_m.gguf",
    "--template",
    "chatml",
    "-c",
    "100000",
    "--greedy",
    "--repeat-penalty",
    "0.1",
];

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_conversation_in_pipes() {
    use std::io::{BufRead, BufReader, Read};
    // SAFETY: sends a signal to a child of this process that has not been waited for.
    let interrupt = |child: &Child| assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    // While it waits for a line.
    let data = folder();
    let mut child = start(data.path(), &[]);
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"What is 2+2?\n").expect("a line");
    let mut answer = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    stdout.read_line(&mut answer).expect("an answer");
    assert_eq!(answer, "The sum of 2 and 2 is 4.\n");
    std::thread::sleep(std::time::Duration::from_millis(300));
    interrupt(&child);
    assert_eq!(child.wait().expect("an end").code(), Some(130));
    // While it answers: what is there is kept.
    let mut child = start(data.path(), &[&ENDLESS[..], &["--resume=x"]].concat());
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"abc\nabc\n").expect("lines");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut text = vec![0; 1];
    stdout.read_exact(&mut text).expect("an answer begins");
    interrupt(&child);
    stdout.read_to_end(&mut text).expect("an answer");
    assert_eq!(child.wait().expect("an end").code(), Some(130));
    assert!(text.ends_with(b"\n"));
    let kept = std::fs::read_to_string(data.path().join("wayinfer/chats/x.jsonl")).expect("a transcript");
    assert_eq!(kept.lines().count(), 3, "{kept}");
}

#[cfg(unix)]
mod terminal {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

    /// A conversation in a terminal of 100 columns.
    struct Terminal {
        child: Box<dyn Child + Send + Sync>,
        keys: Box<dyn Write + Send>,
        screen: Arc<Mutex<vt100::Parser>>,
        /// All that was sent to it.
        sent: Arc<Mutex<Vec<u8>>>,
        master: Box<dyn MasterPty + Send>,
    }

    impl Terminal {
        fn open(data: &Path, args: &[&str]) -> Terminal {
            let size = PtySize { rows: 40, cols: 100, pixel_width: 0, pixel_height: 0 };
            let pair = native_pty_system().openpty(size).expect("a terminal");
            let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_wayinfer"));
            command.args([&["chat"], args].concat());
            command.env("XDG_DATA_HOME", data);
            command.env("TERM", "xterm-256color");
            command.env("EDITOR", "sed -i s/2+2/3+4/");
            command.env_remove("VISUAL");
            command.cwd(env!("CARGO_MANIFEST_DIR"));
            let child = pair.slave.spawn_command(command).expect("it starts");
            let screen = Arc::new(Mutex::new(vt100::Parser::new(40, 100, 0)));
            let mut reader = pair.master.try_clone_reader().expect("output");
            let shown = Arc::clone(&screen);
            let sent = Arc::new(Mutex::new(Vec::new()));
            let all = Arc::clone(&sent);
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = reader.read(&mut bytes) {
                    all.lock().expect("bytes").extend_from_slice(&bytes[..n]);
                    shown.lock().expect("a screen").process(&bytes[..n]);
                }
            });
            let keys = pair.master.take_writer().expect("keys");
            Terminal { child, keys, screen, sent, master: pair.master }
        }

        fn text(&self) -> String {
            self.screen.lock().expect("a screen").screen().contents()
        }

        /// Waits until the screen shows a text.
        fn wait(&self, wanted: impl Fn(&str) -> bool, what: &str) -> String {
            let started = Instant::now();
            loop {
                let text = self.text();
                if wanted(&text) {
                    return text;
                }
                assert!(started.elapsed() < Duration::from_secs(60), "{what} never came:\n{text}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }

        fn shows(&self, what: &str) -> String {
            self.wait(|text| text.contains(what), what)
        }

        /// Waits for a prompt on the last line.
        fn prompt(&self) -> String {
            self.wait(at_prompt, "the prompt")
        }

        /// Types a line and waits for the next prompt.
        fn enter(&mut self, line: &str) -> String {
            let typed = format!("> {line}");
            let count = |text: &str| text.matches(&typed).count();
            let before = count(&self.text());
            self.press(&format!("{line}\r"));
            self.wait(|text| count(text) > before && at_prompt(text), line)
        }

        /// Waits for so many answers, and the prompt after the last.
        fn answered(&self, count: usize) -> String {
            let done = |text: &str| text.matches(" new tokens read").count() == count;
            self.wait(
                |text| done(text) && text.lines().last().is_some_and(|line| line.trim_end() == ">"),
                "answers",
            )
        }

        fn press(&mut self, keys: &str) {
            self.keys.write_all(keys.as_bytes()).expect("keys");
            self.keys.flush().expect("keys");
        }

        fn end(mut self) -> u32 {
            let started = Instant::now();
            loop {
                if let Some(status) = self.child.try_wait().expect("a child") {
                    return status.exit_code();
                }
                assert!(started.elapsed() < Duration::from_secs(60), "it does not end:\n{}", self.text());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// One that a test leaves.
    impl Drop for Terminal {
        fn drop(&mut self) {
            let _ = self.child.kill();
        }
    }

    fn at_prompt(text: &str) -> bool {
        text.lines().last().is_some_and(|line| line.trim_end() == ">")
    }

    #[test]
    fn a_conversation_and_what_the_screen_shows() {
        let data = tempfile::tempdir().expect("a folder");
        let mut terminal = Terminal::open(data.path(), &[]);
        terminal.prompt();
        let text = terminal.enter("What is 2+2?");
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let [.., typed, answer, status, prompt] = &lines[..] else { panic!("{text}") };
        assert_eq!((*typed, *answer, *prompt), ("> What is 2+2?", "The sum of 2 and 2 is 4.", ">"));
        assert!(status.starts_with("context 23 of 512 | 11 new tokens read, "), "{text}");
        assert!(status.contains(" tok/s | 13 made, ") && status.ends_with(" tok/s"), "{text}");
        assert!(terminal.enter("/edit").contains("The sum of 3 and 4 is 7."));
        // A wrong command ends nothing.
        assert!(terminal.enter("/wrong").contains("/wrong is no command"));
        // Ctrl-C takes away what was typed, and leaves where there is nothing.
        terminal.press("abc");
        terminal.shows("> abc");
        terminal.press("\x03");
        terminal.prompt();
        terminal.press("\x04");
        let text = terminal.shows("kept as ");
        assert!(text.contains("--resume="), "{text}");
        assert_eq!(terminal.end(), 0);
        let kept: Vec<_> = std::fs::read_dir(data.path().join("wayinfer/chats")).expect("a folder").collect();
        assert_eq!(kept.len(), 1);
        let typed = std::fs::read_to_string(data.path().join("wayinfer/typed.txt")).expect("a history");
        assert!(typed.contains("What is 2+2?"), "{typed}");
        let mode =
            |path: &str| data.path().join(path).metadata().expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode("wayinfer/typed.txt"), mode("wayinfer/chats")), (0o600, 0o700));
        // It goes on with what was kept, and with what was typed.
        let mut terminal = Terminal::open(data.path(), &["--resume"]);
        terminal.shows("1 exchanges");
        terminal.prompt();
        terminal.press("\x1b[A\x1b[A\x1b[A");
        terminal.shows("> What is 2+2?");
        terminal.press("\r");
        assert!(terminal.answered(1).contains("The sum of 2 and 2 is 4."));
        terminal.press("/exit\r");
        assert_eq!(terminal.end(), 0);
    }

    /// The messages of the only conversation that is kept.
    fn kept(data: &Path) -> Vec<String> {
        let mut files = std::fs::read_dir(data.join("wayinfer/chats")).expect("a folder");
        let text =
            std::fs::read_to_string(files.next().expect("a file").expect("a file").path()).expect("a text");
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let users = lines.filter(|line| line["role"] == "user");
        users.map(|line| line["content"].as_str().expect("a text").to_owned()).collect()
    }

    #[test]
    fn texts_of_several_lines_are_one_message() {
        let data = tempfile::tempdir().expect("a folder");
        let mut terminal = Terminal::open(data.path(), &["-n", "2"]);
        terminal.prompt();
        let typed = [
            // Pasted, as it is; a backslash and Enter; Alt-Enter; quotes.
            ("\x1b[200~for x \\\n  in y\r\n/exit\x1b[201~\r", "for x \\\n  in y\n/exit"),
            ("one \\\rtwo\r", "one \ntwo"),
            ("one\x1b\rtwo\r", "one\ntwo"),
            ("\"\"\"\rone\r\rtwo\r\"\"\"\r", "one\n\ntwo"),
            ("//exit\r", "/exit"),
        ];
        for (i, (keys, _)) in typed.iter().enumerate() {
            terminal.press(keys);
            terminal.answered(i + 1);
        }
        assert_eq!(kept(data.path()), typed.map(|(_, message)| message));
    }

    #[test]
    fn reasoning_is_dim_and_what_is_loaded_moves_no_cursor() {
        let data = tempfile::tempdir().expect("a folder");
        let template = data.path().join("template");
        std::fs::write(&template, super::THINKS).expect("a file");
        let args = ["--template", template.to_str().expect("UTF-8"), "-n", "8", "--no-history"];
        let mut terminal = Terminal::open(data.path(), &args);
        terminal.prompt();
        terminal.enter("What is 2+2?");
        {
            let screen = terminal.screen.lock().expect("a screen");
            let screen = screen.screen();
            let row = (0..40).find(|&row| screen.cell(row, 0).is_some_and(|cell| cell.contents() == ">"));
            let [typed, thought] =
                [0, 1].map(|more| screen.cell(row.expect("a prompt") + more, 2).expect("a cell"));
            assert!(!typed.dim() && thought.dim() && !thought.contents().is_empty());
        }
        let file = data.path().join("hostile.jsonl");
        let lines = [
            serde_json::json!({"format": "wayinfer-chat", "version": 1}),
            serde_json::json!({"role": "user", "content": "\u{1b}]0;taken\u{7}"}),
            serde_json::json!({"role": "assistant", "content": "\u{1b}[2Jgone"}),
        ];
        std::fs::write(&file, lines.map(|line| format!("{line}\n")).concat()).expect("a file");
        assert!(terminal.enter(&format!("/load {}", file.display())).contains("1 exchanges"));
        assert!(terminal.enter("/show").contains("\\u{1b}[2Jgone"));
        assert!(terminal.enter("/undo").contains("taken back: \\u{1b}]0;taken"));
        let sent = terminal.sent.lock().expect("bytes");
        assert!(!sent.windows(4).any(|bytes| bytes == b"\x1b]0;" || bytes == b"\x1b[2J"));
    }

    /// A context that is too large for the memory ends nothing.
    #[test]
    fn a_context_that_cannot_be_leaves_the_one_that_is() {
        let data = tempfile::tempdir().expect("a folder");
        let args = ["-m", "fixtures/moe-q4_k_m.gguf", "--template", "chatml", "-n", "3", "--seed", "1"];
        let mut terminal =
            Terminal::open(data.path(), &[&args[..], &["--ram", "150M", "--no-history"]].concat());
        terminal.prompt();
        terminal.enter("abc");
        assert!(terminal.enter("/set ctx 1000000").contains("cannot be run in 150.0 MiB of memory"));
        assert!(terminal.enter("/set").contains("ctx 512,"));
        terminal.enter("abc");
        terminal.answered(2);
        terminal.enter("/set ctx 256");
        assert!(terminal.enter("/set").contains("ctx 256,"));
        assert_eq!(terminal.enter("/show").matches("> abc").count(), 4, "two typed, and two shown");
    }

    /// A signal to end, while a line is edited: the terminal is left as it was.
    #[test]
    fn a_signal_at_the_prompt_leaves_the_terminal_as_it_was() {
        let data = tempfile::tempdir().expect("a folder");
        let mut terminal = Terminal::open(data.path(), &[]);
        let lines = || terminal.master.get_termios().expect("a terminal").local_flags.bits();
        let cooked = libc::ICANON | libc::ECHO | libc::ISIG;
        terminal.prompt();
        assert_eq!(lines() & cooked, 0);
        let id = terminal.child.process_id().expect("it runs") as i32;
        // SAFETY: sends a signal to a child of this process that has not been waited for.
        assert_eq!(unsafe { libc::kill(id, libc::SIGTERM) }, 0);
        while terminal.child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(terminal.master.get_termios().expect("a terminal").local_flags.bits() & cooked, cooked);
        assert_eq!(terminal.end(), 130);
    }

    #[test]
    fn ctrl_c_stops_the_answer_and_keeps_what_is_there() {
        let data = tempfile::tempdir().expect("a folder");
        let mut terminal = Terminal::open(data.path(), &[&super::ENDLESS[..], &["--no-history"]].concat());
        terminal.prompt();
        terminal.press("abc\r");
        terminal.wait(
            |text| {
                text.lines()
                    .skip_while(|line| !line.contains("> abc"))
                    .nth(1)
                    .is_some_and(|line| !line.is_empty() && !line.starts_with("prefill"))
            },
            "an answer",
        );
        terminal.press("\x03");
        terminal.answered(1);
        assert!(terminal.enter("/stats").contains("held by the context"));
        terminal.press("\x03");
        assert_eq!(terminal.end(), 0);
        assert!(!data.path().join("wayinfer").exists(), "nothing is kept");
    }
}
