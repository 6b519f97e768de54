//! Settings of files and of the environment, completions, pages of the manual, flags typed from habit; reports.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::say;

/// The program with these variables and no other settings.
fn run(dir: &Path, variables: &[(&str, &str)], args: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    program.current_dir(dir).args(args).stdin(std::process::Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WAYINFER_") {
            program.env_remove(name);
        }
    }
    for folder in ["XDG_CONFIG_HOME", "APPDATA"] {
        program.env(folder, dir.join("configs"));
    }
    program.env_remove("RUST_BACKTRACE").envs(variables.iter().copied()).output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Exit code and stderr.
fn failure(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), String::from_utf8(output.stderr.clone()).expect("UTF-8"))
}

/// The user's own file.
fn users_file(dir: &Path, text: &str) {
    let folder = dir.join("configs").join("wayinfer");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("config.toml"), text).expect("a file");
}

/// What `--show-config` says of a key, with where it is from.
fn shown(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    line.unwrap_or_else(|| panic!("no {key} in {text}")).to_owned()
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let text = "threads = 2\nram = \"3G\"\nctx = 64\n[generate]\nthreads = 3\nstop = [\"a\", 'b\"\\']\n\
                greedy = true\nmax_tokens = 5\n[serve]\nport = 1\n";
    users_file(dir.path(), text);
    let show = |variables: &[(&str, &str)], args: &[&str]| {
        stdout(&run(dir.path(), variables, &[args, &["--show-config"]].concat()))
    };
    let file = dir.path().join("configs").join("wayinfer").join("config.toml");
    let at = |line: usize| format!("  # {}, line {line}", file.display());

    let plain = show(&[], &["generate"]);
    assert!(plain.starts_with(&format!("# {}\n[generate]\n", file.display())), "{plain}");
    assert_eq!(shown(&plain, "threads"), format!("3{}", at(5)));
    assert_eq!(shown(&plain, "ram"), format!("\"3G\"{}", at(2)));
    assert_eq!(shown(&plain, "stop"), format!("[\"a\", \"b\\\"\\\\\"]{}", at(6)));
    assert_eq!(shown(&plain, "max-tokens"), format!("5{}", at(8)));
    assert_eq!(shown(&plain, "speculate"), "\"auto\"  # default");
    assert!(plain.contains("\n# temp: 0.7  # default\n"), "{plain}");
    assert!(plain.contains("\n# model: not set\n"), "{plain}");
    // Another subcommand has what is not in a table.
    assert_eq!(shown(&show(&[], &["chat"]), "threads"), format!("2{}", at(1)));
    assert!(!show(&[], &["tokenize"]).contains("threads"));

    let variables = [("WAYINFER_THREADS", "7"), ("WAYINFER_MODEL", "a.gguf"), ("WAYINFER_CTX", "")];
    let all = show(&variables, &["generate", "-t", "9", "--temp", "0.5"]);
    assert_eq!(shown(&all, "threads"), "9  # typed");
    assert_eq!(shown(&all, "model"), "\"a.gguf\"  # WAYINFER_MODEL");
    assert_eq!(shown(&all, "ctx"), format!("64{}", at(3)));
    // What is typed excludes it.
    assert_eq!(shown(&all, "greedy"), "false  # default");
    assert_eq!(shown(&show(&variables, &["generate"]), "threads"), "7  # WAYINFER_THREADS");
    let positional = show(&variables, &["generate", "b.gguf"]);
    assert!(positional.contains("# MODEL: \"b.gguf\"  # typed\n# model: not set\n"), "{positional}");
    // It needs another flag, which is not there; and there.
    assert!(show(&[], &["inspect", "demo"]).contains("# ram: what is available"));
    assert_eq!(shown(&show(&[], &["inspect", "demo", "--plan"]), "ram"), format!("\"3G\"{}", at(2)));

    let without = show(&[], &["generate", "--no-config"]);
    assert!(without.starts_with("# no file of settings\n"), "{without}");
    let without = show(&[("WAYINFER_NO_CONFIG", "1")], &["generate"]);
    assert!(
        without.contains(
            "# threads: one a core, or another number where that is found to be faster  # default\n"
        ),
        "{without}"
    );

    // What is shown is a file that says the same.
    let other = dir.path().join("other.toml");
    fs::write(&other, &all).unwrap();
    let path = other.to_str().unwrap();
    let again = show(&[], &["generate", "--config", path]);
    let values = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split("  # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(values(&again), values(&all));
    assert_eq!(values(&show(&[("WAYINFER_CONFIG", path)], &["generate"])), values(&all));
    // The whole file.
    let whole = stdout(&run(dir.path(), &[], &["--show-config"]));
    assert!(whole.contains("\nctx = 64  # line 3\n\n[generate]\nthreads = 3  # line 5\n"), "{whole}");
    assert!(whole.contains("[serve]\nport = 1  # line 10\n"), "{whole}");
}

#[test]
fn a_run_is_the_one_that_was_set() {
    let dir = tempfile::tempdir().unwrap();
    let answer = |variables: &[(&str, &str)], args: &[&str]| stdout(&run(dir.path(), variables, args));
    let flags = "--temp 5 --top-k 0 --top-p 1 --min-p 0 --seed 3 -t 1 -n 12".split(' ').collect::<Vec<_>>();
    let typed = answer(&[], &[&["generate", "-p", "What is 2+2?"], &flags[..]].concat());
    let text = "model = 'demo'\ntop-k = 0\n[generate]\nprompt = 'What is 2+2?'\ntemp = 5.0\ntop-p = 1\n\
                min-p = '0'\nseed = 3\nmax-tokens = 0xc\n";
    users_file(dir.path(), text);
    assert_eq!(answer(&[("WAYINFER_THREADS", "1")], &["generate"]), typed);
    assert_ne!(answer(&[], &["generate", "--seed", "4"]), typed);
    // A model where one is needed; the one that is typed goes first.
    assert_eq!(answer(&[], &["inspect", "--kv", "general.architecture"]), "llama\n");
    let output = run(dir.path(), &[], &["inspect", "no.gguf"]);
    assert!(failure(&output).1.contains("no.gguf"));
    // What cannot go with what is typed is named where the parser does not see it.
    let (code, told) = failure(&run(dir.path(), &[], &["generate", "--system", "x", "-m", "other.gguf"]));
    assert_eq!(code, Some(2));
    assert!(told.contains("note: not typed: --prompt ("), "{told}");
}

#[test]
fn secrets_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    users_file(dir.path(), "[serve]\napi-key = ['sesame', '']\n");
    let variables = [("WAYINFER_API_KEY", "alibaba"), ("WAYINFER_PORT", "x")];
    let mut told = Vec::new();
    for args in [&["serve", "--show-config"][..], &["--show-config"], &["serve", "--help"], &["serve", "-h"]]
    {
        for variables in [&[][..], &variables[..1], &variables] {
            let output = run(dir.path(), variables, args);
            told.push(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned());
        }
    }
    let all = told.join("\n");
    assert!(!all.contains("sesame") && !all.contains("alibaba"), "{all}");
    assert!(all.contains("# api-key: is set, and not shown  # WAYINFER_API_KEY"), "{all}");
    assert!(all.contains("# api-key: is set, and not shown  # line 2"), "{all}");
    assert!(all.contains("config.toml: line 2: api-key: the value cannot be"), "{all}");
    assert!(all.contains("error: WAYINFER_PORT: invalid value 'x' for '--port <PORT>'"), "{all}");
}

#[test]
fn what_is_wrong_with_a_file_is_told_by_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let path = file.to_str().unwrap();
    let with = |text: &[u8]| {
        fs::write(&file, text).unwrap();
        failure(&run(dir.path(), &[], &["generate", "-p", "x", "--config", path]))
    };
    let deep = format!("threads = {}", "[".repeat(100_000));
    let tables = format!("[{}]\n", vec!["generate"; 50_000].join("."));
    let many = "x = 1\n".repeat(200_000);
    let long = format!("{} = 1", "k".repeat(100_000));
    let cases: Vec<(&[u8], &str)> = vec![
        (b"threads = 2\nthread = 3\n", "line 2: thread: there is no such flag\nhint: there is threads"),
        (b"\n[generat]\n", "line 2: [generat]: there is no such subcommand\nhint: there is [generate]"),
        (b"[generate]\nport = 1\n", "line 2: generate.port: generate has no such flag\nhint: serve has it"),
        (b"[generate.x]\na = 1", "line 1: [generate.x]: there is no such subcommand"),
        (b"[[generate]]\nthreads = 1", "line 1: generate: there is no such flag"),
        (b"threads = true", "line 1: threads: a text or a number is needed, not true or false"),
        (b"threads = [1]", "line 1: threads: it is set once: an array is too much"),
        (b"threads = 1979-05-27", "line 1: threads: a text or a number is needed, not a time"),
        (b"threads = {a = 1}", "line 1: [threads]: there is no such subcommand"),
        (b"greedy = 1", "line 1: greedy: true or false is needed, not a number"),
        (
            b"threads = 4000",
            "line 1: threads: invalid value '4000' for '--threads <N>': 4000 is not in 1..=1024",
        ),
        (b"ctx = -4", "line 1: ctx: invalid value '-4'"),
        (b"isa = 'x\x1b[31m'", "line 1: "),
        (b"temp = 1\n[generate]\ntemp = 1\ngreedy = true", "line 4: greedy cannot be set beside temp, "),
        (b"threads = 1\nthreads = 2", "line 2: duplicate key"),
        (b"top-k = 1\ntop_k = 2", "line 2: top_k: set in line 1 as well"),
        (b"config = 'x'", "line 1: config: stands on the command line alone"),
        (b"threads = ", "line 1: "),
        (b"a\n\xff", "line 2: not UTF-8"),
        (b"\x7fELF\0\0\0", "line 1: "),
        (deep.as_bytes(), "line 1: "),
        (tables.as_bytes(), "line 1: "),
        (many.as_bytes(), "has over 1048576 bytes"),
        (long.as_bytes(), "line 1: kkkk"),
    ];
    for (text, wanted) in cases {
        let began = std::time::Instant::now();
        let (code, told) = with(text);
        let start: String = String::from_utf8_lossy(text).chars().take(60).collect();
        assert_eq!(code, Some(1), "{start}: {told}");
        let shown: String = told.chars().take(2000).collect();
        assert!(told.starts_with(&format!("error: {path}: {wanted}")), "{start}\n{shown}\nwanted {wanted}");
        assert!(told.len() < 2000 && !told.contains('\x1b'), "{start}: {shown}");
        assert!(began.elapsed().as_secs() < 10, "{start}");
    }
    // Other tables are held to their flags as well, and their values to nothing; help needs no file.
    fs::write(&file, "[chat]\nthreads = 0\n").unwrap();
    let run = |args: &[&str]| run(dir.path(), &[("WAYINFER_CONFIG", path)], args);
    stdout(&run(&["generate", "--show-config"]));
    fs::write(&file, "[chat]\nx = 0\n").unwrap();
    assert!(failure(&run(&["generate", "--show-config"])).1.contains("line 2: chat.x: "));
    for args in [&["--help"][..], &["generate", "-h"], &["--version"], &["completions", "bash"]] {
        stdout(&run(args));
    }
    // What is named has to be there, and be a file.
    fs::remove_file(&file).unwrap();
    assert!(failure(&run(&["generate"])).1.contains("c.toml: cannot be read: "));
    fs::create_dir(&file).unwrap();
    assert!(failure(&run(&["generate"])).1.contains("c.toml: is no regular file"));
    let both = ["generate", "--no-config", "--config", path];
    assert_eq!(failure(&run(&both)).0, Some(2));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_file_of_settings() {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("mkfifo").arg(dir.path().join("pipe")).status();
    if !made.is_ok_and(|status| status.success()) {
        return say("skipped: no mkfifo");
    }
    let (code, told) = failure(&run(dir.path(), &[], &["generate", "--config", "pipe"]));
    assert_eq!((code, &*told), (Some(1), "error: pipe: is no regular file\n"));
}

/// Variables that tests go by are no settings, and settings no variables of tests.
#[test]
fn variables_of_tests_are_no_settings() {
    let help = stdout(&run(Path::new("."), &[], &["serve", "--help"]));
    let settings: Vec<&str> =
        help.split("[env: ").skip(1).filter_map(|rest| rest.split([']', '=']).next()).collect();
    assert!(settings.len() > 10 && settings.contains(&"WAYINFER_MODEL"), "{settings:?}");
    let tests = ["BIG_MODELS", "FIXTURES", "NATIVE", "NEEDS_ISA", "TEMPLATES", "VOCABULARIES"];
    for name in settings {
        let own = name.strip_prefix("WAYINFER_").expect("a name of the program");
        assert!(!tests.contains(&own) && !own.starts_with("TEST_"), "{name}");
    }
}

#[test]
fn flags_from_habit_are_read_or_explained() {
    let run = |args: &[&str]| run(Path::new("."), &[], args);
    let shown_of = |args: &[&str]| stdout(&run(&[args, &["--show-config", "--no-config"]].concat()));
    let text = shown_of(&["generate", "-ctk", "q8_0", "-ctv", "f16", "-s", "3", "-n", "-1"]);
    assert_eq!(shown(&text, "kv-k"), "\"q8_0\"  # typed");
    assert_eq!(shown(&text, "seed"), "3  # typed");
    let (code, told) = failure(&run(&["generate", "-m", "demo", "-ngl", "99"]));
    let wanted = "error: -ngl is a flag of llama.cpp: a graphics card takes what its memory holds\n\
                  hint: `wayinfer generate --vram 8G`\n";
    assert_eq!((code, &*told), (Some(2), wanted));
    let (code, told) = failure(&run(&["-m", "x.gguf", "-p", "y"]));
    assert_eq!((code, told.lines().next()), (Some(2), Some("error: -m before a subcommand")));
}

#[test]
fn a_page_of_the_manual_for_each_subcommand() {
    let dir = tempfile::tempdir().unwrap();
    stdout(&run(dir.path(), &[("WAYINFER_THREADS", "123")], &["man", "."]));
    let page =
        |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let main = page("wayinfer.1");
    let help = stdout(&run(dir.path(), &[], &["--help"]));
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<_> =
        listed.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    assert!(names.contains(&"generate"));
    for name in names.into_iter().filter(|name| !["", "help"].contains(name)) {
        let listed = format!("wayinfer\\-{}(1)", name.replace('-', "\\-"));
        assert!(main.contains(&listed), "{name}");
        let page = page(&format!("wayinfer-{name}.1"));
        assert!(page.contains(".SH SYNOPSIS") && !page.contains("123"), "{name}");
    }
    assert!(page("wayinfer-generate.1").contains("WAYINFER_THREADS"));
    let gone = dir.path().join("gone");
    assert!(failure(&run(dir.path(), &[], &["man", gone.to_str().unwrap()])).1.contains("gone: "));
}

#[cfg(unix)]
#[test]
fn bash_completes() {
    let dir = tempfile::tempdir().unwrap();
    let script = stdout(&run(dir.path(), &[], &["completions", "bash"]));
    fs::write(dir.path().join("c.bash"), script).unwrap();
    let ask = |words: &str| {
        let line = format!(
            "source ./c.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _wayinfer wayinfer \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let bash = Command::new("bash").current_dir(dir.path()).args(["--norc", "-c", &line]).output();
        bash.ok().filter(|output| output.status.success()).map(|output| stdout(&output))
    };
    let Some(subcommands) = ask("wayinfer gen") else { return say("skipped: no bash") };
    assert_eq!(subcommands, "generate\n");
    assert_eq!(ask("wayinfer generate --top").unwrap(), "--top-k --top-p\n");
    assert_eq!(ask("wayinfer chat --on-full ''").unwrap(), "stop drop\n");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&run(dir.path(), &[], &["completions", shell]));
        assert!(script.contains("top-p") && script.contains("dot-check"), "{shell}");
    }
}

/// What is wrong with a page as XML and as a thing that stands alone: nothing may be fetched, nothing may run.
fn problems(page: &str) -> Vec<String> {
    let (mut open, mut found) = (Vec::new(), Vec::new());
    for tag in page.split('<').skip(1) {
        let Some((tag, _)) = tag.split_once('>') else {
            found.push(format!("<{}", tag.chars().take(40).collect::<String>()));
            continue;
        };
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap_or_default();
        match tag {
            _ if tag.starts_with('!') || ["meta", "html"].contains(&name) || tag.ends_with('/') => {}
            _ if tag.starts_with('/') => {
                if open.pop() != Some(name) {
                    found.push(format!("<{tag}>"));
                }
            }
            _ => open.push(name),
        }
        let fetches =
            ["src", "href", "srcset", "xlink:href"].iter().any(|it| tag.contains(&format!(" {it}=")));
        let runs = name == "script" || tag.contains(" on");
        if fetches || runs || ["link", "iframe", "object", "img"].contains(&name) {
            found.push(format!("<{tag}>"));
        }
    }
    found.extend(open.into_iter().map(|name| format!("<{name}> is open")));
    let numbers = ["NaN", "inf\"", "width=\"-"];
    found.extend(numbers.into_iter().filter(|it| page.contains(it)).map(str::to_owned));
    found
}

#[test]
fn a_trace_is_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.html");
    let path = file.to_str().unwrap();
    let golden = "golden/moe-q4_k_m/short.safetensors";
    let args = ["trace", "-m", "fixtures/moe-q4_k_m.gguf", "--golden", golden, "--report", path];
    let output = run(root, &[], &[&args[..], &["--tolerance", "0"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let page = fs::read_to_string(&file).unwrap();
    assert_eq!(problems(&page), [""; 0]);
    // What is printed is told there, and where it begins is marked once in each picture.
    let summary = said.lines().last().unwrap();
    assert!(page.contains(&summary.replace('"', "&quot;")), "{summary}");
    assert_eq!(page.matches("class=\"first").count(), 2, "{page}");
    assert_eq!(page.matches("the first that is beyond it").count(), 2);
    assert!(page.matches("class=\"beyond").count() > 20);
    for text in ["ffn_moe_down", "result_output", ">decode.1<", "light-dark(", "NMSE "] {
        assert!(page.contains(text), "{text}");
    }
    // Not twice unasked; and nothing where all is within.
    let (code, told) = failure(&run(root, &[], &args));
    assert_eq!(code, Some(1));
    assert!(told.contains("already there\nhint: --force overwrites it"), "{told}");
    stdout(&run(root, &[], &[&args[..], &["--force", "--tolerance", "1"]].concat()));
    let page = fs::read_to_string(&file).unwrap();
    assert!(!page.contains("class=\"first") && page.contains("class=\"good\""));
    assert_eq!(problems(&page), [""; 0]);
    // Without a reference there is nothing to draw.
    let alone = ["trace", "-m", "demo", "-p", "x", "--report", "other.html"];
    let (code, told) = failure(&run(dir.path(), &[], &alone));
    assert_eq!(code, Some(2));
    assert!(told.starts_with("error: --report without a reference\n"), "{told}");
    assert!(!dir.path().join("other.html").exists());
    // The canary.
    let evil = page.replace("<h1>", "<script src=\"x\"><h1>");
    assert_eq!(problems(&evil).len(), 3, "{:?}", problems(&evil));
}

#[test]
fn bytes_and_speeds_are_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (bytes, speed) = (path("bytes.html"), path("speed.html"));
    stdout(&run(root, &[], &["inspect", "fixtures/moe-q4_k_m.gguf", "--no-tensors", "--report", &bytes]));
    let page = fs::read_to_string(&bytes).unwrap();
    assert_eq!(problems(&page), [""; 0]);
    for text in ["blk 0", "no layer", "Q4_K", "Q6_K", "token_embd.weight", "fill=\"url(#p1)\""] {
        assert!(page.contains(text), "{text}");
    }
    let none = ["inspect", "demo", "--filter", "nothing", "--report", &bytes, "--force"];
    stdout(&run(root, &[], &none));
    assert!(fs::read_to_string(&bytes).unwrap().contains("There are no tensors to draw."));
    let args =
        ["bench", "demo", "-p", "520", "-n", "4", "-r", "1", "--no-warmup", "--json", "--report", &speed];
    stdout(&run(root, &[], &args));
    let page = fs::read_to_string(&speed).unwrap();
    assert_eq!(problems(&page), [""; 0]);
    for text in ["Prefill by position", "Decode by position", "Prefill by kind of work", "polyline", "tok/s"]
    {
        assert!(page.contains(text), "{text}");
    }
    let both = ["inspect", "demo", "--report", &bytes, "--force", "--check"];
    assert_eq!(failure(&run(root, &[], &both)).0, Some(2));
    // The model stays what it is.
    let model = path("m.gguf");
    fs::copy(root.join("fixtures/moe-q4_k_m.gguf"), &model).unwrap();
    let (code, told) = failure(&run(root, &[], &["inspect", &model, "--report", &model, "--force"]));
    assert_eq!(code, Some(1));
    assert!(told.contains("it is the model itself"), "{told}");
}

#[test]
fn a_perplexity_is_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (report, base) = (path("report.html"), path("base"));
    let text = ["-f", "fixtures/demo-held-out.json", "-c", "32", "--chunks", "4"];
    let args = [&["perplexity", "demo"], &text[..], &["--report", &report]].concat();
    let figures = |output: &Output| -> serde_json::Value { serde_json::from_str(&stdout(output)).unwrap() };
    let fixed = |value: &serde_json::Value, digits: usize| {
        let [mean, error] = ["mean", "error"].map(|name| value[name].as_f64().unwrap());
        format!("{mean:.digits$} ± {error:.digits$}")
    };
    // Alone, beside a base that is written in the same run.
    let alone = figures(&run(root, &[], &[&args[..], &["--json", "--base", &base]].concat()));
    let page = fs::read_to_string(&report).unwrap();
    assert_eq!(problems(&page), [""; 0]);
    assert!(page.contains(&format!("<dd>{}</dd>", fixed(&alone["perplexity"], 4))), "{page}");
    assert_eq!(page.matches("<svg ").count(), 3, "{page}");
    assert!(!page.contains("percentile"), "{page}");
    // A window's figure is that of --json, as a row; a position's, as a point.
    let exp = |part: &serde_json::Value| part["nll"].as_f64().unwrap().exp();
    assert!(
        page.contains(&format!("<td class=\"n\">1</td><td class=\"n\">{:.4} ±", exp(&alone["windows"][0])))
    );
    // One more is in the patterns.
    assert_eq!(page.matches("<circle").count(), 1 + 3 * 4 + alone["positions"].as_array().unwrap().len());
    // Against a base: what is printed is in the page.
    assert!(failure(&run(root, &[], &args)).1.contains("already there\nhint: --force overwrites it"));
    let against = [&args[..], &["--force", "--against", &base]].concat();
    let said = stdout(&run(root, &[], &against));
    let page = fs::read_to_string(&report).unwrap();
    assert_eq!(problems(&page), [""; 0]);
    assert_eq!(page.matches("<svg ").count(), 5, "{page}");
    let mut told = 0;
    for line in said.lines().filter_map(|line| line.strip_prefix("  ")) {
        let mut cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        assert!(cells.all(|cell| page.contains(&format!(">{}<", cell.replace('\'', "&#39;")))), "{line}");
        told += 1;
    }
    assert!(told > 10, "{said}");
    // Another cache: the spread is drawn.
    let other = [&args[..], &["--force", "--json", "--against-kv", "q8_0"]].concat();
    let other = figures(&run(root, &[], &other));
    let page = fs::read_to_string(&report).unwrap();
    assert_eq!(problems(&page), [""; 0]);
    assert_eq!(page.matches("<svg ").count(), 6, "{page}");
    let divergence = &other["divergence"];
    for (what, digits) in [("base_perplexity", 4), ("ratio", 6)] {
        assert!(page.contains(&format!(">{}<", fixed(&divergence[what], digits))), "{what}");
    }
    for row in divergence["percentiles"].as_array().unwrap() {
        let delta = format!("{:.3}", 100.0 * row["delta_p"].as_f64().unwrap());
        let delta = if delta == "-0.000" { "0.000" } else { &delta };
        assert!(page.contains(&format!("<td class=\"n\">{delta} %</td>")), "{delta}");
    }
    // One file cannot be both, and the model stays what it is.
    let both = [&args[..], &["--base", &report]].concat();
    assert_eq!(
        failure(&run(root, &[], &both)),
        (Some(2), "error: --base and --report are the same file\n".into())
    );
    let model = path("m.gguf");
    fs::copy(root.join("fixtures/demo-q4_k_m.gguf"), &model).unwrap();
    let itself = [&["perplexity", &model], &text[..], &["--report", &model, "--force"]].concat();
    assert!(failure(&run(root, &[], &itself)).1.contains("it is the model itself"));
}

#[test]
fn a_generation_is_drawn() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.html").to_str().unwrap().to_owned();
    let args = [
        "generate",
        "-m",
        "fixtures/moe-q4_k_m.gguf",
        "-p",
        "ab",
        "-n",
        "12",
        "-c",
        "64",
        "--greedy",
        "--ignore-eos",
        "--json",
    ];
    let plain: serde_json::Value = serde_json::from_str(&stdout(&run(root, &[], &args))).unwrap();
    let drawn = |more: &[&str]| {
        let args = [&args[..], &["--report", &report], more].concat();
        let told: serde_json::Value = serde_json::from_str(&stdout(&run(root, &[], &args))).unwrap();
        // Who watches changes nothing.
        assert_eq!(told["ids"], plain["ids"]);
        let page = fs::read_to_string(&report).unwrap();
        assert_eq!(problems(&page), [""; 0]);
        for text in ["Time by token", "Experts by layer", ">blk 1<", "12 tokens, "] {
            assert!(page.contains(text), "{text}");
        }
        (told, page)
    };
    // Mapped: nothing is streamed. Each of 11 passes has two of the experts of each of two layers.
    let (_, page) = drawn(&["--speculate", "off"]);
    assert!(page.contains("this run streamed nothing") && !page.contains("From disk by token"));
    let times = |page: &str| -> u64 {
        let cells = page.split("chosen for ").skip(1).map(|cell| cell.split(' ').next().unwrap());
        cells.map(|times| times.parse::<u64>().unwrap()).sum()
    };
    assert_eq!(times(&page), 11 * 2 * 2);
    assert_eq!(page.matches("of 11 tokens").count(), 2 * 8);
    // A little more than the least memory that is enough.
    let ram = format!("{}K", ((common::least_ram(root, &args) + 0.2) * 1024.0) as u64);
    // Streamed: the figures of all tokens are those of --json.
    let (told, page) = drawn(&["--speculate", "off", "--force", "--ram", &ram]);
    let decode = &told["residency"]["decode"];
    assert_eq!(told["residency"]["plan"]["mode"], "streamed", "{told}");
    assert!(page.contains("From disk by token"), "{page}");
    {
        let column = |i: usize| -> u64 {
            let rows = page.split("<tr><td class=\"n\">").skip(1);
            let cells = rows.map(|row| row.split("<td class=\"n\">").nth(i).unwrap());
            cells.map(|cell| cell.split('<').next().unwrap().replace(',', "").parse::<u64>().unwrap()).sum()
        };
        assert_eq!([column(2), column(3)].map(Some), [decode["hits"].as_u64(), decode["misses"].as_u64()]);
    }
    let again = [&args[..], &["--report", &report]].concat();
    assert!(failure(&run(root, &[], &again)).1.contains("already there\nhint: --force overwrites it"));
}
