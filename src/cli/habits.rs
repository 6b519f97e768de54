//! Flags that people type from habit: llama.cpp's. Those that mean something here are read as what is meant;
//! of the others it is said what to do in their place.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

use super::CliError;

/// What is meant by a flag.
#[derive(Clone, Copy, Debug)]
enum Meant {
    /// The same as this one of ours.
    Ours(&'static str),
    /// Something that is done otherwise: why, and a command line that does it.
    Otherwise(&'static str, &'static str),
    /// Nothing that is needed, or nothing that there is.
    Nothing(&'static str),
}
use Meant::{Nothing, Otherwise, Ours};

/// Flags of one meaning.
type Row = (&'static [&'static str], Meant);

const CARD: &str = "a graphics card takes what its memory holds";
const HOST: &str = "keys and values lie in memory";
const PLACED: &str = "where weights lie follows from the memory that a run may take";
const EXPERTS: &str = "experts lie in memory or are streamed, as the memory that a run may take allows";
const CHOSEN: &str = "there is no such way to choose tokens";
const ROPE: &str = "positions are encoded as the model's file says";
const DRAFTS: &str = "drafts come from what the text repeats or from the model's own block";
const PASS: &str = "passes have the size that pays";
const CORES: &str = "the operating system places the threads";
const LOG: &str = "progress and statistics go to stderr, and the text alone to stdout";

/// All flags that are known from elsewhere, and what they mean here.
const ROWS: &[Row] = &[
    // Models.
    (&["-hf", "-hfr", "--hf-repo"], Otherwise("a model is named by -m", "generate -m hf:USER/REPO:Q4_K_M")),
    (&["-hff", "--hf-file", "-hft", "--hf-token"], Otherwise("a model is named by -m", "generate -m FILE")),
    (&["-mu", "--model-url"], Otherwise("a model is a file", "generate -m FILE")),
    (&["-a"], Ours("--alias")),
    (&["--models-dir"], Ours("--models")),
    (&["-mm", "--mmproj", "-mmu", "--mmproj-url", "--image", "--audio"], Nothing("models read text alone")),
    (&["--lora", "--lora-scaled", "--control-vector"], Nothing("a model runs as its file has it")),
    // Where it runs.
    (&["-ngl", "--gpu-layers", "--n-gpu-layers"], Otherwise(CARD, "generate --vram 8G")),
    (
        &["-mg", "--main-gpu", "-sm", "--split-mode", "-ts", "--tensor-split", "-dev", "--device"],
        Otherwise(CARD, "generate --gpu 0"),
    ),
    (&["-nkvo", "--no-kv-offload", "-kvo", "--kv-offload", "--no-op-offload"], Nothing(HOST)),
    (&["-ot", "--override-tensor"], Otherwise(PLACED, "generate --ram 12G")),
    (&["-cmoe", "--cpu-moe", "-ncmoe", "--n-cpu-moe"], Otherwise(EXPERTS, "generate --ram 12G")),
    (
        &["--mlock", "--no-mmap", "--mmap", "-dio", "--direct-io"],
        Otherwise(PLACED, "inspect --plan --ram 12G demo"),
    ),
    (&["-fit", "--fit", "-fitt", "-fitc"], Otherwise(PLACED, "inspect --plan demo")),
    (&["--no-repack", "--no-host"], Nothing(PLACED)),
    (&["--numa", "-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict"], Nothing(CORES)),
    (&["--prio", "--poll", "-Cb", "--cpu-mask-batch", "-Crb", "--cpu-range-batch"], Nothing(CORES)),
    (&["-tb", "--threads-batch"], Otherwise("prompts and answers have the same threads", "generate -t 8")),
    (&["--threads-http"], Nothing("the server has the threads that it needs")),
    // Passes and caches.
    (&["-b", "--batch-size", "-ub", "--ubatch-size"], Nothing(PASS)),
    (&["-fa", "--flash-attn"], Nothing("attention is computed in one pass over keys and values always")),
    (&["-cb", "--cont-batching", "-nocb", "--no-cont-batching"], Nothing("requests always run together")),
    (&["--ctx-size"], Ours("--ctx")),
    (&["-ctk", "--cache-type-k"], Ours("--kv-k")),
    (&["-ctv", "--cache-type-v"], Ours("--kv-v")),
    (&["-np"], Ours("--parallel")),
    (&["--prompt-cache", "--slot-save-path"], Otherwise("a cache is a folder", "generate --cache DIR")),
    (&["--prompt-cache-all", "--prompt-cache-ro"], Otherwise("a cache is a folder", "generate --cache DIR")),
    (
        &["--keep", "--context-shift"],
        Otherwise("a full context is the chat's to handle", "chat --on-full drop"),
    ),
    (&["-kvu", "--kv-unified", "--swa-full", "--cache-reuse", "-cram", "--cache-ram"], Nothing(PASS)),
    (&["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale"], Nothing(ROPE)),
    (&["--yarn-orig-ctx", "--yarn-ext-factor", "--yarn-attn-factor"], Nothing(ROPE)),
    // Drafts.
    (&["-md", "--model-draft", "-hfd", "--hf-repo-draft"], Otherwise(DRAFTS, "generate --speculate auto")),
    (&["--draft", "--draft-n", "--draft-max"], Ours("--speculate")),
    (&["--draft-min", "--draft-p-min", "-ngld", "-cd"], Otherwise(DRAFTS, "generate --speculate auto")),
    // How tokens are chosen.
    (&["-s"], Ours("--seed")),
    (&["--predict", "--n-predict"], Ours("--max-tokens")),
    (&["--temperature"], Ours("--temp")),
    (&["-r", "--reverse-prompt"], Ours("--stop")),
    (&["--grammar-file"], Ours("--grammar")),
    (&["-jf", "--json-schema-file"], Ours("--json-schema")),
    (&["-j"], Otherwise("a schema is a file", "generate --json-schema FILE")),
    (&["--repeat-last-n"], Otherwise("the last 64 tokens are penalised", "generate --repeat-penalty 1.1")),
    (
        &["--presence-penalty", "--frequency-penalty", "-l", "--logit-bias"],
        Otherwise("requests to the server have it as a field", "serve"),
    ),
    (&["--samplers", "--sampler-seq", "--typical", "--top-nsigma", "--mirostat"], Nothing(CHOSEN)),
    (&["--mirostat-lr", "--mirostat-ent", "--dynatemp-range", "--dynatemp-exp"], Nothing(CHOSEN)),
    (&["--xtc-probability", "--xtc-threshold", "--dry-multiplier", "--dry-base"], Nothing(CHOSEN)),
    (&["--dry-allowed-length", "--dry-penalty-last-n", "--dry-sequence-breaker"], Nothing(CHOSEN)),
    // Chats.
    (&["-sys", "--system-prompt"], Ours("--system")),
    (&["-sysf", "--system-prompt-file"], Otherwise("the message is an argument", "chat --system TEXT")),
    (
        &["-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first"],
        Otherwise("a conversation is a subcommand", "chat"),
    ),
    (&["-no-cnv", "--no-conversation"], Nothing("a prompt is continued as it is unless --chat is given")),
    (&["-st", "--single-turn"], Otherwise("one answer is generate's", "generate --chat -p TEXT")),
    (&["-mli", "--multiline-input"], Otherwise("lines end with a backslash to go on", "chat")),
    (&["--chat-template", "--chat-template-file"], Ours("--template")),
    (&["--jinja", "--no-jinja"], Nothing("templates are always Jinja's")),
    (&["--chat-template-kwargs"], Otherwise("requests to the server have it as a field", "serve")),
    (
        &["--reasoning-format", "--reasoning-budget", "-rea", "--reasoning"],
        Otherwise("reasoning is told apart always; requests to the server say how much is wanted", "serve"),
    ),
    (&["-bf", "--binary-file"], Otherwise("a file is read as it is", "generate -f FILE")),
    (&["-e", "--escape", "--no-escape"], Otherwise("a prompt is read as it is", "generate -f FILE")),
    (&["--in-prefix", "--in-suffix", "--in-prefix-bos"], Nothing("the chat template says what stands there")),
    (&["-sp", "--special"], Otherwise("ids and pieces are shown by --debug", "generate --debug")),
    // Serving.
    (&["--metrics", "--slots", "--props", "--no-slots"], Nothing("the server tells of them always")),
    (&["--no-webui", "--path", "--webui"], Nothing("the page at / is part of the program")),
    (&["-to", "--timeout"], Nothing("a request takes as long as it takes")),
    (&["--ssl-key-file", "--ssl-cert-file"], Nothing("a proxy before the server speaks TLS")),
    (&["--embedding", "--embeddings", "--pooling", "--rerank", "--reranking"], Nothing("text alone is made")),
    // What is shown.
    (&["--no-display-prompt", "--display-prompt", "-nodp"], Nothing("the prompt is not repeated")),
    (&["-co", "--color"], Nothing("a terminal has colours unless NO_COLOR is set")),
    (&["--log-disable", "--log-file", "-lv", "--verbosity", "--log-verbosity"], Nothing(LOG)),
    (&["--no-perf", "--perf", "--show-timings", "--log-timestamps", "--log-colors"], Nothing(LOG)),
    (&["--warmup", "--no-warmup", "--check-tensors", "--offline"], Nothing("nothing of this kind is done")),
];

/// Values that mean to others what holds here where nothing is given: by our flag and value.
const AS_WITHOUT: &[(&str, &str)] = &[("max-tokens", "-1"), ("max-tokens", "-2"), ("seed", "-1")];

/// The command line with what is typed from habit as it is typed here.
///
/// # Errors
/// A flag that cannot be had so, with what to do in its place; exit code 2.
pub fn read(program: &Command, argv: Vec<OsString>) -> Result<Vec<OsString>, CliError> {
    let mut out = Vec::with_capacity(argv.len());
    let mut typed = argv.into_iter();
    out.extend(typed.next());
    let mut command = program;
    while let Some(token) = typed.next() {
        let text = token.to_str().unwrap_or_default();
        if text == "--" {
            out.push(token);
            break;
        }
        if !text.starts_with('-') || text.len() < 2 {
            // Subcommands stand before all else.
            command = command.find_subcommand(text).unwrap_or(command);
            out.push(token);
            continue;
        }
        let token = match translated(program, command, text)? {
            Some(ours) => OsString::from(ours),
            None => token,
        };
        let text = token.to_str().unwrap_or_default();
        let (flag, value) = parts(text);
        let Some(arg) = known(command, flag) else {
            let elsewhere = program.find_subcommand("generate").and_then(|generate| known(generate, flag));
            if std::ptr::eq(command, program) && elsewhere.is_some() {
                return Err(no_subcommand(flag));
            }
            out.push(token);
            continue;
        };
        let attached = value.is_some() || (!flag.starts_with("--") && flag.len() > 2);
        let given = if takes_next(arg) && !attached { typed.next() } else { None };
        let is_default = |of: &OsStr| {
            AS_WITHOUT.iter().any(|(long, value)| arg.get_long() == Some(long) && of == OsStr::new(value))
        };
        if given.as_deref().or(value.map(OsStr::new)).is_some_and(is_default) {
            continue;
        }
        out.push(token);
        out.extend(given);
    }
    out.extend(typed);
    Ok(out)
}

/// A flag, and the value that is written to it.
fn parts(text: &str) -> (&str, Option<&str>) {
    text.split_once('=').map_or((text, None), |(flag, value)| (flag, Some(value)))
}

/// A flag that this subcommand does not have, in ours.
fn translated(program: &Command, command: &Command, text: &str) -> Result<Option<String>, CliError> {
    let (flag, value) = parts(text);
    let row = ROWS.iter().find(|(names, _)| names.contains(&flag));
    let Some((_, meant)) = row.filter(|_| known(command, flag).is_none()) else { return Ok(None) };
    if std::ptr::eq(command, program) {
        return Err(no_subcommand(flag));
    }
    let ours = ours(program, command, flag, *meant)?;
    Ok(Some(value.map_or_else(|| ours.to_owned(), |value| format!("{ours}={value}"))))
}

/// The argument that a flag is, as the parser reads it: a long one, or a short one with what is attached.
fn known<'c>(command: &'c Command, flag: &str) -> Option<&'c Arg> {
    let mut all = command.get_arguments();
    match flag.strip_prefix("--") {
        Some(long) => all.find(|arg| arg.get_long() == Some(long)),
        // `-fa` is no file named "a", and `-ngl` not three flags.
        None if is_habit(flag) && flag.len() > 2 => None,
        None => all.find(|arg| arg.get_short() == flag.chars().nth(1)),
    }
}

fn is_habit(flag: &str) -> bool {
    ROWS.iter().any(|(names, _)| names.contains(&flag))
}

/// Whether what follows is its value.
fn takes_next(arg: &Arg) -> bool {
    let least = arg.get_num_args().map_or(1, |range| range.min_values());
    arg.get_action().takes_values() && least > 0 && !arg.is_require_equals_set()
}

fn no_subcommand(flag: &str) -> CliError {
    let error = CliError::usage(format!("{flag} before a subcommand"));
    error.hint(format!("wayinfer generate {flag} .., or chat, or serve"))
}

/// What to put in the place of a flag.
fn ours(program: &Command, command: &Command, flag: &str, meant: Meant) -> Result<&'static str, CliError> {
    let not_here = |why: &str| CliError::usage(format!("{flag} is a flag of llama.cpp: {why}"));
    match meant {
        Ours(ours) if known(command, ours).is_some() => Ok(ours),
        Ours(ours) => {
            let has = program.get_subcommands().filter(|sub| known(sub, ours).is_some());
            let has: Vec<&str> = has.filter(|sub| !sub.is_hide_set()).map(Command::get_name).collect();
            let error = CliError::usage(format!("{} takes no {flag}", command.get_name()));
            Err(error.hint(format!("{ours} is a flag of {}", has.join(", "))))
        }
        Otherwise(why, instead) => Err(not_here(why).hint(format!("`wayinfer {instead}`"))),
        Nothing(why) => Err(not_here(why).hint("leave it out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        crate::cli::command()
    }

    fn read_text(line: &str) -> Result<String, String> {
        let argv = line.split(' ').map(OsString::from).collect();
        let read = read(&program(), argv).map_err(|error| error.message())?;
        Ok(read.iter().map(|token| token.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn each_row_names_something_that_parses() {
        let parses = |line: &str| program().try_get_matches_from(line.split(' ')).is_ok();
        for (names, meant) in ROWS {
            match meant {
                Ours(ours) => {
                    let value = match *ours {
                        "--kv-k" | "--kv-v" => "q8_0",
                        "--stop" | "--system" | "--alias" => "text",
                        "--grammar" | "--json-schema" | "--template" | "--models" => "FILE",
                        _ => "1",
                    };
                    let subs = ["generate", "chat", "serve"];
                    let taken = |sub: &&str| parses(&format!("wayinfer {sub} {ours} {value}"));
                    assert!(subs.iter().any(taken), "{names:?}: {ours} {value}");
                }
                Otherwise(_, instead) => {
                    assert!(parses(&format!("wayinfer {instead}")), "{names:?}: {instead}")
                }
                Nothing(why) => assert!(!why.is_empty()),
            }
        }
        // The canary: what is no flag does not parse.
        assert!(!parses("wayinfer generate --no-such-flag 1"));
    }

    #[test]
    fn each_flag_has_one_row() {
        let mut seen = std::collections::BTreeSet::new();
        for name in ROWS.iter().flat_map(|(names, _)| *names) {
            assert!(name.starts_with('-') && seen.insert(name), "{name} twice");
            // A row that no subcommand lets come to its turn would be dead.
            let generate = program();
            let generate = generate.find_subcommand("generate").unwrap();
            assert!(known(generate, name).is_none(), "generate has {name} itself");
        }
    }

    #[test]
    fn what_is_meant_is_read() {
        let cases = [
            ("w generate -ctk q8_0 -ctv=f16", "w generate --kv-k q8_0 --kv-v=f16"),
            ("w generate -s -1 -sys -ngl --n-predict=-1", "w generate --system -ngl"),
            ("w chat -sys -x -s 3", "w chat --system -x --seed 3"),
            ("w serve -np 2 -a x", "w serve --parallel 2 --alias x"),
            ("w generate -n -1 --seed=-1 -c 64", "w generate -c 64"),
            // Values and what stands behind `--` are no flags.
            ("w generate -p -ngl -m -ctk", "w generate -p -ngl -m -ctk"),
            ("w generate -- -ngl", "w generate -- -ngl"),
            ("w trace -b 4 -p x", "w trace -b 4 -p x"),
            ("w bench --no-warmup -n 4", "w bench --no-warmup -n 4"),
            ("w generate -p-ngl", "w generate -p-ngl"),
        ];
        for (typed, meant) in cases {
            assert_eq!(read_text(typed).as_deref(), Ok(meant), "{typed}");
        }
    }

    #[test]
    fn what_is_not_had_is_told() {
        let cases = [
            ("w generate -ngl 99", "-ngl is a flag of llama.cpp"),
            ("w generate -m x -fa", "-fa is a flag of llama.cpp"),
            ("w generate --flash-attn=on", "--flash-attn is a flag of llama.cpp"),
            ("w inspect -np 2", "inspect takes no -np"),
            ("w -m x -p y", "-m before a subcommand"),
            ("w -hf x", "-hf before a subcommand"),
        ];
        for (typed, told) in cases {
            let error = read_text(typed).unwrap_err();
            assert!(error.starts_with(told), "{typed}: {error}");
        }
    }
}
