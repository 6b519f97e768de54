//! What stands in `fixtures/` and `golden/` is what `golden/manifest.json` says: every file, its size and hash, and the
//! version of the reference that made it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

const LIMIT_FILE: u64 = 8_000_000;
const LIMIT_ALL: u64 = 40 << 20;

/// The two files that the manifest does not list: a description, written along with it, and itself.
const UNLISTED: [&str; 2] = ["fixtures/README.md", "golden/manifest.json"];
/// Goldens that other scripts make, as text that is read in diffs; they count towards the limits too.
const TEXT_GOLDENS: &str = "golden/text/";
const PACKAGE: &str = "llama-cpp-sys-2";

/// What the manifest says of a file.
struct Listed {
    bytes: u64,
    sha256: String,
}

/// All that is wrong below `root`, a line each.
fn problems(root: &Path) -> Vec<String> {
    let text = fs::read(root.join("golden/manifest.json")).expect("the manifest");
    let manifest: Value = serde_json::from_slice(&text).expect("the manifest is JSON");
    let mut problems = Vec::new();
    let mut listed = BTreeMap::new();
    list(&manifest, &mut listed, &mut problems);
    check_files(root, &listed, &mut problems);
    check_goldens(&manifest, &mut problems);
    check_reference(root, &manifest, &mut problems);
    problems
}

/// Collects every object of the manifest that describes a file.
fn list(value: &Value, listed: &mut BTreeMap<String, Listed>, problems: &mut Vec<String>) {
    if let Some(file) = value["file"].as_str() {
        match (value["bytes"].as_u64(), value["sha256"].as_str()) {
            (Some(bytes), Some(sha256)) => {
                if listed.insert(file.into(), Listed { bytes, sha256: sha256.into() }).is_some() {
                    problems.push(format!("{file}: listed twice"));
                }
            }
            _ => problems.push(format!("{file}: listed without size and hash")),
        }
    }
    match value {
        Value::Array(values) => values.iter().for_each(|v| list(v, listed, problems)),
        Value::Object(fields) => fields.values().for_each(|v| list(v, listed, problems)),
        _ => {}
    }
}

/// Holds the files against the list, both ways, and against the limits.
fn check_files(root: &Path, listed: &BTreeMap<String, Listed>, problems: &mut Vec<String>) {
    let mut total = 0;
    let found: BTreeMap<String, u64> = ["fixtures", "golden"].iter().flat_map(|f| files(root, f)).collect();
    for (file, &bytes) in &found {
        total += bytes;
        if bytes > LIMIT_FILE {
            problems.push(format!("{file}: {bytes} bytes, more than {LIMIT_FILE}"));
        }
        match listed.get(file) {
            None if UNLISTED.contains(&&file[..]) || file.starts_with(TEXT_GOLDENS) => {}
            None => problems.push(format!("{file}: not listed")),
            Some(entry) if entry.bytes != bytes => {
                problems.push(format!("{file}: {bytes} bytes, listed with {}", entry.bytes));
            }
            Some(entry) => {
                let hash = sha256(&root.join(file));
                if hash != entry.sha256 {
                    problems.push(format!("{file}: sha256 {hash}, listed with {}", entry.sha256));
                }
            }
        }
    }
    if total > LIMIT_ALL {
        problems.push(format!("{total} bytes in all, more than {LIMIT_ALL}"));
    }
    let missing = listed.keys().filter(|file| !found.contains_key(*file));
    problems.extend(missing.map(|file| format!("{file}: listed, but not there")));
}

/// Every model has goldens, or names the model whose goldens are its own, or says why there are none.
fn check_goldens(manifest: &Value, problems: &mut Vec<String>) {
    let models = &manifest["fixtures"];
    let captured = |name: &str| models[name]["goldens"].as_array().is_some_and(|g| !g.is_empty());
    for (name, entry) in models.as_object().into_iter().flatten() {
        let excused = entry["without_goldens"].as_str().is_some_and(|why| !why.is_empty());
        if !captured(name) && !entry["goldens_of"].as_str().is_some_and(captured) && !excused {
            problems.push(format!("{name}: without goldens"));
        }
    }
}

/// The manifest's reference is the one that `scripts/ggml` is pinned to.
fn check_reference(root: &Path, manifest: &Value, problems: &mut Vec<String>) {
    let cargo = fs::read_to_string(root.join("scripts/ggml/Cargo.toml")).expect("the reference's Cargo.toml");
    let pin = cargo.lines().find_map(|line| {
        let (name, rest) = line.split_once(" = { version = \"")?;
        (name == PACKAGE).then(|| rest.split_once('"'))?.map(|(version, _)| version)
    });
    let pinned = pin.map(|version| format!("{PACKAGE} {version}"));
    let captured = manifest["reference"]["package"].as_str();
    if pinned.is_none() || pinned.as_deref() != captured {
        problems.push(format!("the goldens are of {captured:?}, scripts/ggml is pinned to {pinned:?}"));
    }
}

/// The files below a folder of `root`, named from `root` on with `/`, and their sizes.
fn files(root: &Path, folder: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join(folder)).expect("a folder") {
        let entry = entry.expect("an entry of the folder");
        let path = format!("{folder}/{}", entry.file_name().to_str().expect("a name of UTF-8"));
        let about = entry.metadata().expect("its metadata");
        match about.is_dir() {
            true => found.extend(files(root, &path)),
            false => found.push((path, about.len())),
        }
    }
    found
}

fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).expect("a file"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_file_is_what_the_manifest_says() {
    let problems = problems(&repository());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Canaries: each kind of damage to a copy is found, and named.
#[test]
fn damage_is_found() {
    let copy = tempfile::tempdir().expect("a folder");
    let root = copy.path();
    for (file, _) in ["fixtures", "golden"].iter().flat_map(|f| files(&repository(), f)) {
        fs::create_dir_all(root.join(&file).parent().expect("a parent")).expect("a folder");
        fs::copy(repository().join(&file), root.join(&file)).expect("a copy");
    }
    fs::create_dir_all(root.join("scripts/ggml")).expect("a folder");
    fs::copy(repository().join("scripts/ggml/Cargo.toml"), root.join("scripts/ggml/Cargo.toml"))
        .expect("a copy");
    assert!(problems(root).is_empty(), "the copy itself");

    let changed = |file: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = root.join(file);
        let before = fs::read(&path).expect("a file");
        let mut bytes = before.clone();
        change(&mut bytes);
        fs::write(&path, bytes).expect("a file that can be written");
        let found = problems(root).join("\n");
        fs::write(&path, before).expect("a file that can be written");
        found
    };
    let model = "fixtures/dense-q4_k_m.gguf";
    let found = changed(model, &|bytes| bytes[400_000] ^= 1);
    assert!(found.starts_with(&format!("{model}: sha256 ")), "a changed byte: {found}");
    let found = changed("golden/formats/Q6_K.safetensors", &|bytes| bytes.push(0));
    assert!(found.contains("Q6_K.safetensors: ") && found.contains(", listed with "), "one more: {found}");
    let found = changed("golden/prompts.json", &|bytes| bytes[30] = b'0');
    assert!(found.starts_with("golden/prompts.json: sha256 "), "prompts: {found}");
    let found = changed("scripts/ggml/Cargo.toml", &|bytes| {
        let text = String::from_utf8(bytes.clone()).expect("UTF-8").replace("\"=0.1.", "\"=0.9.");
        *bytes = text.into_bytes();
    });
    assert!(found.starts_with("the goldens are of "), "another reference: {found}");

    let (part, away) = (root.join("fixtures/moe-q4_k_m-00002-of-00003.gguf"), root.join("away"));
    fs::rename(&part, &away).expect("a rename");
    assert!(problems(root)[0].ends_with(": listed, but not there"), "a missing file");
    fs::rename(&away, &part).expect("a rename");

    let stray = root.join("golden/dense-f32/stray.bin");
    File::create(&stray).and_then(|file| file.set_len(LIMIT_ALL)).expect("a sparse file");
    let found = problems(root).join("\n");
    let large = format!("stray.bin: {LIMIT_ALL} bytes, more than {LIMIT_FILE}");
    for what in ["stray.bin: not listed", &large, " bytes in all, "] {
        assert!(found.contains(what), "{what}: {found}");
    }
}
