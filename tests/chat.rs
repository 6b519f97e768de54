//! `wayinfer chat`: through a pipe, and in a terminal with what its screen shows.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A conversation through a pipe, its data in this folder.
fn chat(data: &Path, args: &[&str], lines: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wayinfer"))
        .arg("chat")
        .args(args)
        .env("XDG_DATA_HOME", data)
        .env("HOME", data)
        .env("APPDATA", data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
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
    let sampling = ["--temp", "1.5", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "7"];
    let [a, b, c] = ["What is 2+2?\n", "Count from 1 to 5.\n", "What is 9-4?\n"];
    let named = |name: &'static str| [&sampling[..], &[name]].concat();
    let whole = answers(&chat(data.path(), &named("--resume=whole"), &format!("{a}{b}{c}")));
    let first = answers(&chat(data.path(), &named("--resume=parts"), &format!("{a}{b}")));
    let second = chat(data.path(), &named("--resume=parts"), c);
    assert_eq!(first + &answers(&second), whole);
    assert!(told(&second).contains("goes on with parts: 2 exchanges"), "{}", told(&second));
    // The last one, without its name.
    let last = chat(data.path(), &["--resume"], "/show\n");
    assert!(told(&last).contains("goes on with parts: 3 exchanges"), "{}", told(&last));
    // The canary: another seed says something else.
    let other =
        answers(&chat(data.path(), &["--temp", "1.5", "--top-k", "0", "--top-p", "1", "--seed", "8"], a));
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
    assert!(told(&stopped).contains("the context is full"), "{}", told(&stopped));
    assert!(!told(&stopped).contains("dropped"));
    let dropped = chat(data.path(), &["-c", "40", "--on-full", "drop"], lines);
    assert!(told(&dropped).contains("dropped: What is 2+2?"), "{}", told(&dropped));
    let text = answers(&dropped);
    assert_eq!(text.lines().last(), Some("The sum of 5 and 1 is 6."), "{text}");
    // A message that no context of this size holds.
    let long = format!("{}\n", "What is 2+2? ".repeat(40));
    let never = chat(data.path(), &["-c", "40", "--on-full", "drop"], &long);
    assert!(told(&never).contains("the context is full") && answers(&never).is_empty(), "{}", told(&never));
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
    let output = chat(data.path(), &["--resume=../x"], "");
    assert_eq!(output.status.code(), Some(2));
    let output = chat(data.path(), &["-m", "fixtures/moe-q4_k_m.gguf"], "");
    assert!(self::told(&output).contains("no chat template") && self::told(&output).contains("chatml"));
    let output =
        chat(data.path(), &["-m", "fixtures/moe-q4_k_m.gguf", "--template", "chatml", "-n", "3"], "abc\n");
    assert!(output.status.success(), "{}", self::told(&output));
}

/// A model larger than its memory, with the same answers.
#[test]
fn a_streamed_model_answers_the_same() {
    let data = folder();
    let lines = "What is 2+2?\nWhat is 3+4?\nWhat is 9-4?\n";
    let model = ["-m", "fixtures/demo-q4_k_m.gguf", "--greedy", "--template"];
    let template = data.path().join("template");
    let gguf = wayinfer::gguf::Gguf::open(Path::new("fixtures/demo-q4_k_m.gguf")).expect("the demo");
    let source =
        wayinfer::text::ChatTemplate::source(gguf.metadata()).expect("a template").expect("a template");
    std::fs::write(&template, source).expect("a file");
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

#[cfg(unix)]
mod terminal {
    use std::io::{Read, Write};
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

    /// A conversation in a terminal of 100 columns.
    struct Terminal {
        child: Box<dyn Child + Send + Sync>,
        keys: Box<dyn Write + Send>,
        screen: Arc<Mutex<vt100::Parser>>,
        _master: Box<dyn MasterPty + Send>,
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
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = reader.read(&mut bytes) {
                    shown.lock().expect("a screen").process(&bytes[..n]);
                }
            });
            let keys = pair.master.take_writer().expect("keys");
            Terminal { child, keys, screen, _master: pair.master }
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
            self.wait(|text| text.lines().last().is_some_and(|line| line.trim_end() == ">"), "the prompt")
        }

        fn press(&mut self, keys: &str) {
            self.keys.write_all(keys.as_bytes()).expect("keys");
            self.keys.flush().expect("keys");
        }

        fn end(mut self) -> u32 {
            self.child.wait().expect("an end").exit_code()
        }
    }

    #[test]
    fn a_conversation_and_what_the_screen_shows() {
        let data = tempfile::tempdir().expect("a folder");
        let mut terminal = Terminal::open(data.path(), &[]);
        terminal.prompt();
        terminal.press("What is 2+2?\r");
        let text = terminal.shows("The sum of 2 and 2 is 4.");
        assert!(text.contains("> What is 2+2?"), "{text}");
        assert!(terminal.shows(" of 512 | ").contains("11 new tokens read"));
        terminal.prompt();
        terminal.press("/edit\r");
        terminal.shows("The sum of 3 and 4 is 7.");
        terminal.prompt();
        // A wrong command ends nothing.
        terminal.press("/wrong\r");
        terminal.shows("/wrong is no command");
        terminal.prompt();
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
    }

    #[test]
    fn ctrl_c_stops_the_answer_and_keeps_what_is_there() {
        let data = tempfile::tempdir().expect("a folder");
        let args = [
            "-m",
            "fixtures/moe-q4_k_m.gguf",
            "--template",
            "chatml",
            "-c",
            "512",
            "--seed",
            "1",
            "--no-history",
        ];
        let mut terminal = Terminal::open(data.path(), &args);
        terminal.prompt();
        terminal.press("abc\r");
        terminal.wait(
            |text| {
                text.lines()
                    .skip_while(|line| !line.contains("> abc"))
                    .nth(1)
                    .is_some_and(|line| !line.is_empty())
            },
            "an answer",
        );
        terminal.press("\x03");
        terminal.shows(" of 512 | ");
        terminal.prompt();
        terminal.press("/show\r");
        terminal.prompt();
        terminal.press("\x03");
        assert_eq!(terminal.end(), 0);
        assert!(!data.path().join("wayinfer").exists(), "nothing is kept");
    }
}
