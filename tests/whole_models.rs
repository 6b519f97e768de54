//! `hash`, `diff` and `doctor` as a user runs them.

mod common;

use std::fs;
use std::path::Path;

use common::gguf::{Data, GgufBuilder, Kv, small_model, split_name, ty, write_split};
use common::{code_unread, transcript, wayinfer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

fn folder() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    small_model().write(&dir.path().join("m.gguf"));
    dir
}

fn run(dir: &TempDir, args: &[&str]) -> String {
    transcript(&wayinfer(dir.path(), 100, args))
}

/// Exit code and stdout.
fn output(dir: &TempDir, args: &[&str]) -> (i32, String) {
    let output = wayinfer(dir.path(), 100, args);
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    (output.status.code().expect("a code"), text)
}

fn stdout(dir: &TempDir, args: &[&str]) -> String {
    let (code, text) = output(dir, args);
    assert_eq!(code, 0, "{text}");
    text
}

fn json(dir: &TempDir, args: &[&str], code: i32) -> Value {
    let (found, text) = output(dir, args);
    assert_eq!((found, text.lines().count()), (code, 1), "{text}");
    serde_json::from_str(&text).expect("JSON")
}

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).expect("a file")).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Changes one value of the builder's model.
fn with(change: impl FnOnce(&mut GgufBuilder)) -> GgufBuilder {
    small_model().with(change)
}

fn set(model: &mut GgufBuilder, key: &str, value: impl Into<Kv>) {
    let pair = model.pairs.iter_mut().find(|pair| pair.key == key.as_bytes()).expect("the key");
    pair.value = value.into();
}

#[test]
fn a_split_has_the_same_hashes_but_for_its_files() {
    let dir = folder();
    write_split(&small_model().split(3), dir.path(), "s");
    let aligned = small_model().alignment(128).with(|model| model.pairs.rotate_right(1));
    aligned.write(&dir.path().join("a.gguf"));
    let whole = stdout(&dir, &["hash", "m.gguf"]);
    let without_files = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with("file "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(whole.lines().filter(|line| line.starts_with("tensor ")).count(), 6);
    for other in [&split_name("s", 1, 3), "a.gguf"] {
        let text = stdout(&dir, &["hash", "-m", other]);
        assert_eq!(without_files(&text), without_files(&whole), "{other}");
        // Read each on its own, not with their files.
        let only = stdout(&dir, &["hash", other, "--only", "tensors"]);
        assert_eq!(without_files(&only), without_files(&whole), "{other}");
        fs::write(dir.path().join("whole"), &whole).expect("written");
        assert_eq!(output(&dir, &["hash", other, "--check", "whole", "--only", "tensors"]).0, 0);
        let text = run(&dir, &["hash", other, "--check", "whole"]);
        assert!(text.starts_with("exit code: 1\n") && text.contains("hint: --only tensors"), "{text}");
    }
    // The canaries: what is in the model changes its hash, and that of the metadata.
    let hash_of = |model: &GgufBuilder, kind: &str| {
        model.write(&dir.path().join("c.gguf"));
        let text = stdout(&dir, &["hash", "c.gguf"]);
        text.lines().find(|line| line.starts_with(kind)).expect("the hash").to_owned()
    };
    let same = hash_of(&small_model(), "model ");
    assert!(whole.contains(&same));
    let changes: [fn(&mut GgufBuilder); 4] = [
        |model| model.tensors[1].name.push(b'x'),
        |model| model.tensors[1].dims = vec![128, 2],
        |model| model.tensors[1].ty = ty::I32,
        |model| model.tensors[1].data = Data::Random(99),
    ];
    for change in changes {
        assert_ne!(hash_of(&with(change), "model "), same);
    }
    let metadata = hash_of(&small_model(), "metadata ");
    for (key, value) in [("llama.block_count", Kv::from(3u32)), ("llama.block_count", Kv::from(2i32))] {
        assert_ne!(hash_of(&with(|model| set(model, key, value)), "metadata "), metadata);
    }
    assert_eq!(hash_of(&with(|model| set(model, "general.name", "else")), "model "), same);
}

#[test]
fn what_is_printed_by_hash() {
    let dir = folder();
    let text = run(&dir, &["hash", "m.gguf"]);
    assert!(text.contains(&sha256(&dir.path().join("m.gguf"))), "{text}");
    insta::assert_snapshot!("hash", text);
    insta::assert_snapshot!("hash_json", run(&dir, &["hash", "m.gguf", "--algorithm", "xxh3", "--json"]));
    insta::assert_snapshot!("hash_help", run(&dir, &["hash", "--help"]));
    let demo = json(&dir, &["hash", "demo", "--json"], 0);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo-q4_k_m.gguf");
    assert_eq!(demo["files"][0]["sha256"], sha256(&file), "what is in memory is hashed as a file is");
}

/// What differs, is missing or is there beyond the manifest is named.
#[test]
fn a_check_names_what_is_wrong() {
    let dir = folder();
    let path = dir.path().join("m.gguf");
    let sound = fs::read(&path).expect("the model");
    fs::write(dir.path().join("manifest"), stdout(&dir, &["hash", "m.gguf"])).expect("written");
    let check = |args: &[&str]| output(&dir, &[&["hash", "m.gguf", "--check", "manifest"], args].concat());
    let ok = "m.gguf: 1 file, 6 tensors, metadata, model checked: as the manifest says\n";
    assert_eq!(check(&[]), (0, ok.to_owned()));
    for args in [&["--algorithm", "xxh3"][..], &["--only", "files"], &["--only", "tensors"]] {
        assert_eq!(check(args).0, 0, "{args:?}");
    }
    // The canary: any byte, of headers or data, by either algorithm.
    for at in [30, sound.len() / 2, sound.len() - 1] {
        let mut spoiled = sound.clone();
        spoiled[at] ^= 1;
        fs::write(&path, &spoiled).expect("written");
        let file = |algorithm| check(&["--only", "files", "--algorithm", algorithm]);
        if at > 30 {
            for algorithm in ["xxh3", "sha256"] {
                let (code, text) = file(algorithm);
                assert!(
                    code == 1 && text.starts_with(&format!("DIFFERS: file m.gguf: {algorithm} ")),
                    "{text}"
                );
            }
        } else {
            assert_eq!(file("xxh3").0, 1, "a header that is refused, or hashes differ");
        }
    }
    // Another tensor, another type of the same bytes, one that is gone, one more.
    let changed = with(|model| {
        model.tensors[1].data = Data::Random(98);
        model.tensors[2].ty = ty::IQ4_XS;
        model.tensors[2].data = Data::Zero;
        model.tensors[5].name = b"evil\x1b[31m".to_vec();
    });
    changed.write(&path);
    insta::assert_snapshot!(
        "check",
        run(&dir, &["hash", "m.gguf", "--check", "manifest", "--only", "tensors"])
    );
    let found = json(&dir, &["hash", "m.gguf", "--check", "manifest", "--json"], 1);
    assert_eq!((&found["ok"], &found["tensors"]), (&false.into(), &5.into()));
    assert_eq!(found["missing"][0]["name"], "output.weight");
    assert_eq!(found["extra"][0]["name"], "evil\u{1b}[31m");
    let named = |what: &str| {
        let all = found["differing"].as_array().expect("a list");
        all.iter().filter(|row| row["what"] == what).map(|row| row["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(named("type"), ["blk.0.attn_q.weight"]);
    assert_eq!(named("sha256").len(), 4, "file, model, two tensors: {found}");
    assert_eq!(code_unread(dir.path(), &["hash", "m.gguf", "--check", "manifest"]), Some(1));
}

/// As sha256sum and Git LFS write them.
#[test]
fn sums_of_other_programs_are_taken() {
    let dir = folder();
    write_split(&small_model().split(2), dir.path(), "s");
    let names = [split_name("s", 0, 2), split_name("s", 1, 2)];
    let sums = names.each_ref().map(|name| sha256(&dir.path().join(name)));
    let whole = sha256(&dir.path().join("m.gguf"));
    let zeros = "0".repeat(64);
    let check = |model: &str, manifest: String| {
        fs::write(dir.path().join("sums"), manifest).expect("written");
        let output = wayinfer(dir.path(), 100, &["hash", model, "--check", "sums"]);
        transcript(&output)
    };
    let ok = check("m.gguf", format!("{whole}  m.gguf\n{zeros} *README.md\n"));
    assert!(
        ok.contains("code: 0\n") && ok.contains("m.gguf: 1 file checked: as the manifest says\n"),
        "{ok}"
    );
    assert!(ok.contains("of other files: 1 line of the manifest, not checked"), "{ok}");
    let ok = check(&names[1], format!("{}  ./x/{}\r\n{}  {}\r\n", sums[0], names[0], sums[1], names[1]));
    assert!(ok.contains("code: 0\n") && ok.contains("2 files checked"), "{ok}");
    let half = check(&names[0], format!("{}  {}\n", sums[0], names[0]));
    assert!(half.contains("code: 1\n") && half.contains(&format!("EXTRA: file {}", names[1])), "{half}");
    let none = check("m.gguf", format!("{whole}  other.gguf\n"));
    assert!(none.contains("code: 1\n") && none.contains("EXTRA: file m.gguf"), "{none}");
    // Of several of one name the one whose folder it is.
    let folder = dir.path().file_name().expect("a name").to_str().expect("UTF-8");
    let several = format!("{zeros}  a/m.gguf\n{whole}  {folder}/m.gguf\n");
    assert!(check("m.gguf", several).contains("code: 0\n"));
    assert!(check("m.gguf", format!("{zeros}  a/m.gguf\n{whole}  b/m.gguf\n")).contains("code: 1\n"));
    let bytes = fs::metadata(dir.path().join("m.gguf")).expect("the model").len();
    let pointer =
        |bytes| format!("version https://git-lfs.github.com/spec/v1\noid sha256:{whole}\nsize {bytes}\n");
    assert!(check("m.gguf", pointer(bytes)).contains("code: 0\n"));
    let other = check("m.gguf", pointer(bytes + 1));
    assert!(other.contains("code: 1\n") && other.contains("DIFFERS: file m.gguf: bytes"), "{other}");
    // What cannot be used is an error, with its line.
    let twice = check("m.gguf", format!("{whole}  m.gguf\n{whole}  m.gguf\n"));
    assert!(
        twice.contains("code: 1\n") && twice.contains("error: sums, line 2: file \"m.gguf\" is there twice")
    );
    let wrong = check("m.gguf", "d41d8cd98f00b204e9800998ecf8427e  m.gguf\n".into());
    assert!(
        wrong.contains("error: sums, line 1: \"d41d8cd98f00b204e9800998ecf8427e\" is no sha256 hash"),
        "{wrong}"
    );
    let only = run(&dir, &["hash", "m.gguf", "--check", "sums2"]);
    assert!(only.contains("error: sums2: cannot be read: No such file"), "{only}");
    fs::write(dir.path().join("sums"), format!("{whole}  m.gguf\n")).expect("written");
    let only = run(&dir, &["hash", "m.gguf", "--check", "sums", "--only", "tensors"]);
    assert!(
        only.contains("code: 1\n") && only.contains("error: sums: there is no hash of tensors"),
        "{only}"
    );
    let only = run(&dir, &["hash", "m.gguf", "--check", "sums", "--algorithm", "xxh3"]);
    assert!(only.contains("there is no hash of file m.gguf by the algorithm asked for"), "{only}");
}

#[test]
fn what_is_printed_by_diff() {
    let dir = folder();
    let other = with(|model| {
        set(model, "general.name", "other");
        set(model, "llama.block_count", 2u64);
        set(model, "tokenizer.ggml.tokens", vec!["<unk>", "<s>", "<eos>", "▁b", "\u{1b}[31m"]);
        set(model, "tokenizer.ggml.scores", vec![0.0f32, 0.0, 0.5, -1.5]);
        set(model, "tokenizer.ggml.token_type", vec![2u32, 3, 3, 1]);
        let template = "{% for m in messages %}\n{{ m.role }}: {{ m.content }}\n{% endfor %}";
        set(model, "tokenizer.chat_template", template);
        model.pairs.retain(|pair| pair.key != b"llama.context_length");
        model.tensors[1].data = vec![0.5f32; 256].into();
        model.tensors[2].ty = ty::Q6_K;
        model.tensors[2].data = Data::Zero;
        model.tensors[3].dims = vec![128, 2];
        model.tensors[5].name = b"new\x1b.weight".to_vec();
    });
    let other = other.kv("general.url", "https://example.org");
    other.write(&dir.path().join("o.gguf"));
    insta::assert_snapshot!("diff", run(&dir, &["diff", "m.gguf", "o.gguf"]));
    insta::assert_snapshot!("diff_headers", run(&dir, &["diff", "m.gguf", "o.gguf", "--headers"]));
    insta::assert_snapshot!("diff_json", {
        let json = json(&dir, &["diff", "m.gguf", "o.gguf", "--json"], 1);
        serde_json::to_string_pretty(&json).expect("JSON")
    });
    insta::assert_snapshot!("diff_help", run(&dir, &["diff", "--help"]));
    assert_eq!(code_unread(dir.path(), &["diff", "m.gguf", "o.gguf"]), Some(1));
}

#[test]
fn the_same_model_has_no_differences() {
    let dir = folder();
    write_split(&small_model().split(3), dir.path(), "s");
    small_model().alignment(64).write(&dir.path().join("a.gguf"));
    for other in [&split_name("s", 0, 3), "a.gguf", "m.gguf"] {
        let text = stdout(&dir, &["diff", "m.gguf", other]);
        assert!(text.contains("Tensors (6 the same)") && text.ends_with("\nno differences\n"), "{text}");
    }
    assert_eq!(json(&dir, &["diff", "demo", "demo", "--json"], 0)["equal"], true);
}

/// The canary: one bit of the data, wherever it is; what is not asked for is not compared.
#[test]
fn a_single_bit_is_found() {
    let dir = TempDir::new().expect("a folder");
    let model = |spoil: Option<usize>| {
        let mut bytes = vec![0u8; 3 << 20];
        spoil.into_iter().for_each(|at| bytes[at] ^= 4);
        GgufBuilder::new()
            .tensor("first", ty::Q8_0, &[32, 4], Data::Random(1))
            .tensor("long", ty::F32, &[1024, 768], Data::Bytes(bytes.clone()))
            .tensor("opaque", ty::Q8_K, &[256, 1024], Data::Bytes(bytes[..1024 * 292].to_vec()))
            .tensor("none", ty::F32, &[0, 4], Data::Zero)
    };
    model(None).write(&dir.path().join("a.gguf"));
    for at in [0, 100_001, (2 << 20) - 1, 2 << 20, (3 << 20) - 1] {
        model(Some(at)).write(&dir.path().join("b.gguf"));
        let report = json(&dir, &["diff", "a.gguf", "b.gguf", "--json"], 1);
        let rows = report["tensors"]["differing"].as_array().expect("rows");
        let long = rows.iter().find(|row| row["name"] == "long").expect("the tensor");
        assert_eq!(long["values"]["differing"], 1, "{at}");
        assert_eq!(long["values"]["elements"], 1024 * 768, "{at}");
        let place = &long["values"]["largest_error"];
        let index =
            place["row"].as_u64().zip(place["column"].as_u64()).map(|(row, column)| row * 1024 + column);
        assert_eq!(index, Some(at as u64 / 4));
        let opaque = rows.iter().find(|row| row["name"] == "opaque");
        assert_eq!(
            opaque.map(|row| row["first_differing_byte"].as_u64()),
            (at < 1024 * 292).then_some(Some(at as u64))
        );
        assert_eq!(output(&dir, &["diff", "a.gguf", "b.gguf", "--tensor", "fir*"]).0, 0);
        assert_eq!(output(&dir, &["diff", "a.gguf", "b.gguf", "--headers"]).0, 0);
    }
}

/// Files that the reader of headers refuses are refused as `inspect` does, whichever side they are on.
#[test]
fn broken_models_are_refused_as_elsewhere() {
    let dir = folder();
    let sound = fs::read(dir.path().join("m.gguf")).expect("the model");
    fs::write(dir.path().join("cut.gguf"), &sound[..sound.len() - 1000]).expect("written");
    fs::write(dir.path().join("text.gguf"), "no model").expect("written");
    with(|model| model.tensors[1].type_id = Some(999)).write(&dir.path().join("type.gguf"));
    small_model().split(2)[1].write(&dir.path().join(split_name("s", 1, 2)));
    for broken in ["cut.gguf", "text.gguf", "type.gguf", "missing.gguf", &split_name("s", 1, 2)] {
        let told = |args: &[&str]| {
            let output = wayinfer(dir.path(), 100, args);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            String::from_utf8(output.stderr).expect("UTF-8")
        };
        let wanted = told(&["inspect", broken]);
        assert_eq!(told(&["diff", broken, "m.gguf"]), wanted);
        assert_eq!(told(&["diff", "m.gguf", broken]), wanted);
        assert_eq!(told(&["hash", broken]), wanted);
    }
    assert_eq!(output(&dir, &["diff", "m.gguf", "m.gguf", "--tensor", "[x"]).0, 2);
}

/// Every speed is a number, nothing is written but to the folder that was named, and there nothing is left.
#[test]
fn a_machine_is_measured_with_a_model() {
    let dir = TempDir::new().expect("a folder");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/dense-q8_0.gguf");
    fs::copy(model, dir.path().join("m.gguf")).expect("copied");
    let report = json(&dir, &["doctor", "m.gguf", "--json"], 0);
    let names: Vec<_> =
        fs::read_dir(dir.path()).expect("the folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["m.gguf"]);
    let positive = |value: &Value| value.as_f64().is_some_and(|n| n > 0.0);
    let speeds = &report["speeds"];
    assert_eq!(speeds["weights"], "Q8_0");
    let threads = speeds["threads"].as_array().expect("a list");
    assert!(
        threads.iter().all(|t| positive(&t["read_bytes_s"]) && positive(&t["weights_bytes_s"])),
        "{report}"
    );
    let cores = std::thread::available_parallelism().expect("cores").get();
    assert_eq!(
        (&threads[0]["threads"], threads.last().map(|t| &t["threads"])),
        (&1.into(), Some(&cores.into()))
    );
    let best = wayinfer::kernels::Kernels::detect_best().isa().name();
    assert_eq!((&report["kernels"]["chosen"], &speeds["sets"][0]["isa"]), (&best.into(), &best.into()));
    let found = &report["model"];
    assert!(positive(&found["decode_tok_s"]) && positive(&found["prefill_tok_s"]), "{found}");
    assert_eq!((&found["mode"], &found["kv"][0]["type"]), (&"mapped".into(), &"f16".into()));
    assert!(report["disks"][0]["ways"].as_array().expect("ways").iter().all(|way| way["bytes_s"].is_null()));
    // Refused as elsewhere.
    let output = wayinfer(dir.path(), 100, &["doctor", "missing.gguf"]);
    assert_eq!(output.stderr, wayinfer(dir.path(), 100, &["inspect", "missing.gguf"]).stderr);
}
