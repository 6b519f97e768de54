//! The README against the program: its lists are the program's, its examples are what the program prints.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::goldens::cases;
use common::rebuilt::rebuilt;
use common::{say, test_data, wayinfer};
use wayinfer::gguf::{Gguf, TensorType};
use wayinfer::kernels::{Isa, Kernels};
use wayinfer::model::{
    KvElement, KvType, MemorySpec, Model, ModelSpec, NodeKind, SequenceState, architectures,
};
use wayinfer::quant::FORMATS;
use wayinfer::verify::Golden;
use wayinfer::verify::bounds::{ISOLATED, LONG, Of};

const README: &str = include_str!("../README.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands between two words of a text.
fn between<'t>(text: &'t str, before: &str, after: &str) -> &'t str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?}"));
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?} behind {before:?}")).0
}

/// A section, its heading left out, up to the next one of any level.
fn section(heading: &str) -> &'static str {
    between(README, &format!("\n{heading}\n"), "\n#")
}

/// What stands in backticks.
fn names(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The same text, each run of white space a blank.
fn in_a_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_formats_are_all_that_can_be_computed_with() {
    let text = in_a_line(between(README, "in every block format that ggml reads:", ". (F64"));
    let mut told = BTreeSet::new();
    for name in text.split([',', ' ']).filter(|name| !["", "and", "to"].contains(name)) {
        told.insert(name.to_owned());
    }
    assert!(text.contains("Q2_K to Q6_K"));
    told.extend(["Q3_K", "Q4_K", "Q5_K"].map(str::to_owned));
    let known: BTreeSet<_> = FORMATS.iter().map(|format| format.ty.to_string()).collect();
    assert_eq!(told, known);
}

#[test]
fn the_families_are_all_that_can_be_run() {
    let text = section("## Families");
    let told = names(between(text, "|---|---|\n", "\n\n"));
    assert_eq!(told, architectures().collect());
    assert!(told.len() > 40, "over forty");
    let missing = names(between(text, "Not there yet: ", " and other"));
    assert!(!missing.is_empty() && missing.is_disjoint(&told), "{missing:?}");
}

/// Of each family's fixture the last layer is said to be a block: who can draft misses the block's tensors,
/// or has them; who cannot says so, or misses the layer.
#[test]
fn the_families_that_draft_are_named() {
    let text = in_a_line(section("### generate"));
    let told = names(between(&text, "Blocks of ", " can draft"));
    let dir = tempfile::tempdir().expect("a folder");
    let mut found = BTreeMap::new();
    for case in cases() {
        let gguf = Gguf::open(&case.fixture).expect("a fixture");
        let family = gguf.metadata().str("general.architecture").expect("text").expect("a family").to_owned();
        if gguf.parts.len() > 1 || found.contains_key(&family) {
            continue;
        }
        let bytes = std::fs::read(&case.fixture).expect("a fixture");
        let mut model = rebuilt(&gguf, &bytes).set(&format!("{family}.nextn_predict_layers"), 1u32);
        if family == "glm-dsa" {
            // One a layer; there is a layer less.
            model = model.set("glm-dsa.attention.indexer.types", vec![1u32]);
        }
        let path = model.write(&dir.path().join("m.gguf"));
        let drafts = match Model::load_with_nextn(&Gguf::open(&path).expect("a file")) {
            Err(error) => {
                let error = error.to_string();
                error.contains(".nextn.") && error.contains("is missing")
            }
            Ok(_) => true,
        };
        found.insert(family, drafts);
    }
    assert!(architectures().all(|name| found.contains_key(name)));
    let drafting = found.iter().filter(|(_, drafts)| **drafts).map(|(name, _)| name.as_str());
    assert_eq!(told, drafting.collect());
}

#[test]
fn the_kernel_sets_are_all_that_there_are() {
    let text = section("## Kernels");
    let known: Vec<_> = Isa::ALL.iter().rev().map(|isa| isa.name()).collect();
    assert_eq!(between(text, "--isa ", "`").split('|').collect::<Vec<_>>(), known);
    let listed: BTreeSet<_> = text.split("\n- `").skip(1).filter_map(|item| item.split('`').next()).collect();
    assert_eq!(listed, known.into_iter().filter(|name| *name != "scalar").collect());
}

#[test]
fn the_compiler_is_the_one_that_the_package_asks_for() {
    assert_eq!(between(README, "You need Rust ", " and a C compiler"), env!("CARGO_PKG_RUST_VERSION"));
}

#[test]
fn the_demo_is_of_the_size_that_is_told() {
    let gguf = Gguf::open(&root().join("fixtures/demo-q4_k_m.gguf")).expect("the demo");
    let parameters: u64 = gguf.tensors.iter().map(|tensor| tensor.dims.iter().product::<u64>()).sum();
    let experts = gguf.metadata().u64("llama.expert_count").expect("a number").expect("experts");
    let told = format!("({:.0} million parameters, {experts} experts)", parameters as f64 / 1e6);
    assert!(in_a_line(README).contains(&told), "{told}");
}

const COMMANDS: [&str; 10] = [
    "inspect",
    "generate",
    "chat",
    "tokenize",
    "bench",
    "trace",
    "perplexity",
    "dot-check",
    "dequant",
    "hash",
];

/// Who takes the model as an argument, too.
#[test]
fn commands_take_a_model_as_it_is_told() {
    let told = in_a_line(section("## Commands"));
    let (option_only, _) = told.split_once(" as their argument as well").expect("what commands take");
    let option_only = names(option_only.rsplit_once("all but ").expect("the exceptions").1);
    for command in COMMANDS {
        let help = wayinfer(root(), 100, &[command, "--help"]);
        let help = String::from_utf8(help.stdout).expect("UTF-8");
        assert!(help.contains("-m, --model <"), "{command}");
        let has_argument = help.contains("\nArguments:\n  [MODEL]");
        assert_eq!(has_argument, !option_only.contains(command), "{command}: {help}");
    }
}

/// Every option that a command's section names is one of its own.
#[test]
fn options_are_the_commands_own() {
    for command in COMMANDS.into_iter().chain(["diff"]) {
        let help = wayinfer(root(), 100, &[command, "--help"]);
        let help = String::from_utf8(help.stdout).expect("UTF-8");
        let known: BTreeSet<_> = help.split([' ', '\n', ',']).filter(|word| word.starts_with("--")).collect();
        let text = section(&format!("### {command}"));
        // What cargo is told, and another command.
        let others = ["cargo bench --bench kernels", "`--bench regions`", "`inspect --plan`"];
        let text = others.iter().fold(text.to_owned(), |text, other| text.replace(other, ""));
        let is_part = |c: char| c.is_ascii_lowercase() || c == '-';
        let told = text.match_indices("--").map(|(at, _)| text[at..].split(|c| !is_part(c)).next());
        let mut count = 0;
        for option in told.flatten().filter(|option| option.len() > 2) {
            assert!(known.contains(option), "{command} {option}");
            count += 1;
        }
        assert!(count >= 3, "{command}: {count} options");
    }
}

/// The program in a conversation of these lines: what it answers and what it tells.
fn conversation(lines: &str) -> [String; 2] {
    let mut program = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    program.arg("chat").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("lines");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", common::transcript(&output));
    [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
}

#[test]
fn the_commands_of_a_conversation_are_all_that_there_are() {
    let text = in_a_line(between(section("### chat"), "Commands: ", "Two slashes"));
    let [_, help] = conversation("/help\n");
    let (usages, settings): (Vec<_>, Vec<_>) =
        help.lines().filter(|line| line.starts_with('/')).map(|line| line.split_at(18)).unzip();
    assert!(usages.len() > 10, "{help}");
    let told: BTreeSet<_> = names(&text).into_iter().filter(|name| name.starts_with('/')).collect();
    assert_eq!(told, usages.iter().map(|usage| usage.trim()).collect());
    let set = between(&text, "`/set [NAME VALUE]` (", ")");
    assert!(settings.iter().any(|what| what.trim() == set), "{set}");
}

#[test]
fn the_conversation_is_the_demos() {
    let example = between(section("### chat"), "    $ printf '", "\n\n");
    let (lines, printed) = example.split_once("' | wayinfer chat\n").expect("a conversation");
    let [answers, told] = conversation(&lines.replace("\\n", "\n"));
    let printed: Vec<_> = printed.lines().map(str::trim).collect();
    assert_eq!(format!("{told}{answers}").lines().collect::<Vec<_>>(), printed);
}

#[test]
fn the_templates_that_have_a_name_are_listed() {
    let told = names(between(section("### chat"), "or by name ", ".\n"));
    assert_eq!(told, wayinfer::text::template_names().collect());
}

/// A command line's words; quotes hold some together.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in line.chars() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (' ', None) => words.push(String::new()),
            (c, _) => words.last_mut().expect("a word").push(c),
        }
    }
    words
}

/// What is not the same everywhere: names of kernel sets, and in measurements all numbers.
fn masked(text: &str, measures: bool) -> String {
    let mut text = text.to_owned();
    let mut names: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    for name in names {
        text = text.replace(name, "ISA");
    }
    if !measures {
        return text;
    }
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '.' | ',' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    // Whether drafts pay is measured as well.
    out.replace(" in # passes, # of # drafted accepted", "")
}

/// The lines of an example that are not found in a text, in their order; `..` stands for what is left out.
fn not_found<'e>(example: &[&'e str], text: &str, measures: bool) -> Vec<&'e str> {
    let text = masked(&in_a_line(text), measures);
    let mut rest = text.as_str();
    let mut missing = Vec::new();
    for line in example {
        let sought = masked(&in_a_line(line.trim_end().trim_end_matches("..")), measures);
        match rest.find(sought.trim_end_matches([',', ' '])) {
            Some(at) => rest = &rest[at + sought.trim_end_matches([',', ' ']).len()..],
            None => missing.push(*line),
        }
    }
    missing
}

/// The examples: a command line each, and what it prints.
fn examples() -> Vec<(Vec<String>, Vec<&'static str>)> {
    let mut all: Vec<(Vec<String>, Vec<&str>)> = Vec::new();
    let mut open = false;
    for line in README.lines() {
        match (line.strip_prefix("    "), line.strip_prefix("    $ wayinfer ")) {
            (_, Some(command)) => {
                all.push((words(command), Vec::new()));
                open = true;
            }
            (Some(printed), None) if open => all.last_mut().expect("an example").1.push(printed),
            _ => open = open && line.is_empty(),
        }
    }
    all
}

const STORY: &str = "stories260K.gguf";
/// Nobody has it at hand.
const LARGE: &str = "mixtral-8x7b.gguf";

#[test]
fn examples_print_what_they_say() {
    let examples = examples();
    assert!(examples.len() >= 10, "{} examples", examples.len());
    let sets: Vec<_> = Kernels::available().map(|set| set.isa()).collect();
    for (mut args, mut printed) in examples {
        let command = args.join(" ");
        let needs = Isa::ALL.iter().filter(|isa| args.iter().any(|arg| arg == isa.name()));
        if let Some(lacking) = needs.copied().find(|isa| !sets.contains(isa)) {
            say(&format!("skipped: this CPU lacks {lacking} for the README's {command}"));
            continue;
        }
        if args.iter().any(|arg| arg == LARGE) {
            // Of a small model the same things are told, but for a disk that it is too small to measure.
            const SMALL: [&str; 3] = ["inspect", "fixtures/moe-q4_k_m.gguf", "--plan"];
            let ram = ((common::least_ram(root(), &SMALL) + 0.2) * 1024.0) as u64;
            args = SMALL.map(str::to_owned).into();
            args.extend(["--ram".to_owned(), format!("{ram}K")]);
            printed.retain(|line| !line.starts_with("disk ") && !line.starts_with("expected "));
            printed = printed.iter().map(|line| line.split("  ").next().unwrap_or_default()).collect();
        }
        if let Some(arg) = args.iter_mut().find(|arg| *arg == STORY) {
            let Some(path) = test_data(&format!("models/{STORY}")) else { continue };
            *arg = path.to_str().expect("UTF-8").to_owned();
        }
        // What is said of the sets of the CPU that it was printed on.
        printed.retain(|line| !line.starts_with("not checked: "));
        if sets != [Isa::Avx2, Isa::Scalar] && args[0] == "dot-check" {
            printed.retain(|line| !line.contains("avx"));
        }
        let arguments: Vec<_> = args.iter().map(String::as_str).collect();
        let output = wayinfer(root(), 140, &arguments);
        let said = common::transcript(&output);
        // Files that differ are no failure to print what is said.
        let differs = args[0] == "diff" && output.status.code() == Some(1);
        assert!(output.status.success() || differs, "{command}: {said}");
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
        let text = match stderr.split_once('\n') {
            Some((line, rest)) if line.starts_with("the demo answers") => {
                format!("{line}\n{stdout}\n{rest}")
            }
            _ => format!("{stdout}\n{stderr}"),
        };
        let measures = ["generate", "bench"].contains(&args[0].as_str());
        let missing = not_found(&printed, &text, measures);
        assert!(missing.is_empty(), "{command} does not print {missing:#?}, but\n{said}");
        // The canary: lines in another order are not found.
        let turned: Vec<_> = printed.iter().rev().filter(|line| **line != "..").copied().collect();
        assert!(turned.len() < 2 || !not_found(&turned, &text, measures).is_empty(), "{command}");
    }
}

/// The measured figures of the table are those of the gate.
#[test]
fn the_distance_from_ggml_is_the_measured_one() {
    let text = section("## How far from ggml");
    let weights = |types: &[TensorType]| -> Vec<f64> {
        types.iter().map(|&ty| measured(NodeKind::Product, Of::Weight(ty))).collect()
    };
    let of = |kinds: &[NodeKind]| kinds.iter().map(|&kind| measured(kind, Of::All)).collect::<Vec<_>>();
    let caches = |kind, kvs: &[KvType]| kvs.iter().map(|&kv| measured(kind, Of::Kv(kv))).collect::<Vec<_>>();
    let floats = [KvType::F32, KvType::F16];
    let quantised = KvType { keys: KvElement::Q8_0, values: KvElement::Q4_0 };
    use NodeKind::{
        Attention, Convolution, Elementwise, GatedNorm, Gelu, Hadamard, L2Norm, LayerNorm, LinearAttention,
        Lookup, ProductGelu, Recurrence, RmsNorm, Rope, RowSum, Scan, Sigmoid, Silu, SinkAttention, SoftCap,
        Softmax, Softplus, SwiGlu, TopK,
    };
    use TensorType::{BF16, F16, F32, Q4_K, Q5_K, Q6_K, Q8_0};
    let rows = [
        ("products with F32, F16, BF16 weights", weights(&[F32, F16, BF16])),
        ("products with Q8_0, Q4_K, Q5_K, Q6_K weights", weights(&[Q8_0, Q4_K, Q5_K, Q6_K])),
        (
            "RMS norm, layer norm, RoPE, SwiGLU, softmax, sigmoid",
            of(&[RmsNorm, LayerNorm, Rope, SwiGlu, Softmax, Sigmoid]),
        ),
        ("gated norm, L2 norm, sum of a row, Hadamard transform", of(&[GatedNorm, L2Norm, RowSum, Hadamard])),
        ("SiLU, softplus, soft cap, convolution", of(&[Silu, Softplus, SoftCap, Convolution])),
        ("delta rule, selective scan, lightning attention", of(&[Recurrence, Scan, LinearAttention])),
        ("GELU of a product that ggml does not name", of(&[ProductGelu])),
        ("attention over a KV cache in F32, in F16", caches(Attention, &floats)),
        ("attention over one of Q8_0 keys and Q4_0 values", caches(Attention, &[quantised])),
        ("attention with sinks, in F32, in F16", caches(SinkAttention, &floats)),
    ];
    for (row, measured) in &rows {
        let told = between(text, &format!("| {row} | "), " |");
        let measured: Vec<_> = measured.iter().map(|nmse| format!("{nmse:.1e}")).collect();
        assert_eq!(told, measured.join(", "), "{row}");
    }
    let exact = of(&[Lookup, Elementwise, TopK, Gelu]);
    let told = "embedding rows, sums, choice and weights of experts, GELU | 0, the same bits |";
    assert!(text.contains(told) && exact.iter().all(|nmse| *nmse == 0.0));
    let all = rows.iter().map(|(_, measured)| measured.len()).sum::<usize>() + exact.len();
    assert_eq!(all, ISOLATED.len(), "every figure is told");
    for (of, row) in ["F16", "Q8_0", "Q4_0"].into_iter().zip(LONG) {
        let told = format!("over {of} values {:.1e}", row.measured);
        assert!(text.replace('\n', " ").contains(&told), "{row:?}");
    }
}

fn measured(kind: NodeKind, of: Of) -> f64 {
    let row = ISOLATED.iter().find(|row| row.kind == kind && row.of == of);
    row.unwrap_or_else(|| panic!("{kind:?} {of:?}")).measured
}

/// How long the prompts of the goldens are, and what follows them.
#[test]
fn the_goldens_are_what_is_said_of_them() {
    let text = in_a_line(section("## How far from ggml"));
    let (mut prompts, mut steps, mut greedy) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for case in cases() {
        let golden = Golden::open(&case.golden).unwrap_or_else(|e| panic!("{e}"));
        prompts.insert(golden.prompt().len());
        steps.insert(golden.description().decode_steps);
        greedy.insert(golden.greedy().len());
    }
    let range = |set: &BTreeSet<usize>| (set.first().copied(), set.last().copied());
    let ((Some(short), Some(long)), (Some(few), Some(many)), (Some(least), Some(most))) =
        (range(&prompts), range(&steps), range(&greedy))
    else {
        panic!("no goldens")
    };
    let told = format!("on prompts of {short} to {long} tokens and {few} to {many} decode steps");
    assert!(text.contains(&told), "{told}");
    assert_eq!(least, most);
    assert!(text.contains(&format!("the logits of {least} greedy tokens")), "{least}");
}

#[test]
fn the_counts_of_texts_are_those_of_the_goldens() {
    let text = in_a_line(section("## How far from the authors' text"));
    let mut cases = 0;
    for entry in std::fs::read_dir(root().join("golden/text")).expect("the folder") {
        let bytes = std::fs::read(entry.expect("a file").path()).expect("a file");
        let golden: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        if golden["source"].is_string() {
            cases += golden["cases"].as_array().map_or(0, Vec::len);
        }
    }
    assert!(text.contains(&format!("in {cases} cases with tools")), "{cases}");
}

/// What the README says a token of Llama 3.2 1B takes.
#[test]
fn bytes_of_a_token_are_those_of_the_cache() {
    let memory = MemorySpec::Pages { kv_heads: 8, key_len: 64, value_len: 64, window: None };
    let any =
        Model::load(&Gguf::open(&root().join("fixtures/dense-q8_0.gguf")).expect("a file")).expect("a model");
    let spec = ModelSpec { memories: vec![memory; 16], trunk_memories: 16, ..any.spec().clone() };
    let text = README.replace('\n', " ");
    let pair = KvType { keys: KvElement::Q8_0, values: KvElement::Q4_0 };
    for (kv, told) in [
        (KvType::F16, "32,768 bytes as f16"),
        (KvType::F32, "65,536 as f32"),
        (KvType::Q8_0, "17,408 as q8_0"),
        (KvType::Q4_0, "9,216 as q4_0"),
        (pair, "13,312 with q8_0 keys"),
    ] {
        let bytes = SequenceState::bytes(&spec, 1024, 1, 0, kv) / 1024;
        let digits: String = told.chars().take_while(|c| *c != ' ').filter(char::is_ascii_digit).collect();
        assert_eq!(digits, bytes.to_string(), "{kv}");
        assert!(text.contains(told), "{told}");
    }
}
