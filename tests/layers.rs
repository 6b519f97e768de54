//! The map of the layers in `src/lib.rs` is kept to: who imports whom, who asks the operating system, who
//! names instructions, who opens connections.

use std::fs;
use std::path::{Path, PathBuf};

/// As the map has them.
const LAYERS: [&str; 14] = [
    "gguf", "quant", "kernels", "device", "store", "text", "model", "engine", "verify", "show", "hub",
    "server", "cli", "python",
];

/// Every source file below `src`, with its path there.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                found.push((path.strip_prefix(root).expect("below it").to_owned(), text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    assert!(found.len() > 200, "{} files", found.len());
    found
}

/// What is wrong with a file.
fn problems(path: &Path, text: &str) -> Vec<String> {
    let path = path.to_str().expect("UTF-8").replace('\\', "/");
    let top = path.split(['/', '.']).next().unwrap_or_default();
    let layer = LAYERS.iter().position(|layer| *layer == top);
    // Tests ask for more: a small generator of numbers, say.
    let is_test = path.contains("tests") || path.ends_with("testing.rs");
    let code = if is_test { "" } else { text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default() };
    let code: String =
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (i, other) in LAYERS.iter().enumerate() {
        let import = format!("crate::{other}");
        for (at, _) in code.match_indices(&import) {
            let rest = &code[at + import.len()..];
            let is_whole = !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
            // The operating system is asked by all layers in one place.
            if is_whole && layer.is_some_and(|layer| i > layer) && !rest.starts_with("::os") {
                found.push(format!("{path}: {other} is below {top}"));
            }
        }
    }
    let uses = |words: &[&str]| words.iter().any(|word| code.contains(word));
    if !path.starts_with("store/os/") && uses(&["libc::", "windows_sys::", "std::os::"]) {
        found.push(format!("{path}: asks the operating system"));
    }
    if top != "kernels" && uses(&["std::arch::", "core::arch::"]) {
        found.push(format!("{path}: names instructions"));
    }
    if path != "hub/client.rs" && uses(&["ureq::", "rustls::", "TcpStream::connect"]) {
        found.push(format!("{path}: opens connections"));
    }
    found
}

#[test]
fn imports_go_down_the_map() {
    let map = include_str!("../src/lib.rs");
    let listed: Vec<_> = map
        .lines()
        .filter(|line| line.starts_with("//! ") && line.contains(". [`"))
        .filter_map(|line| line.split('`').nth(1))
        .collect();
    assert_eq!(listed, LAYERS, "the map");
    let found: Vec<_> = sources().iter().flat_map(|(path, text)| problems(path, text)).collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// The canary: each kind of fault is found, and what is allowed is not.
#[test]
fn faults_are_found() {
    let found = |path: &str, text: &str| problems(Path::new(path), text).len();
    assert_eq!(found("gguf/mod.rs", "use crate::store::Store;"), 1);
    assert_eq!(found("kernels/amx/mod.rs", "use crate::store::os::Os; use std::arch::x86_64::*;"), 0);
    assert_eq!(found("cli/mod.rs", "use crate::engine::Engine;\n// crate::gguf"), 0);
    assert_eq!(found("engine/mod.rs", "use crate::cli::main; fn f() { libc::getpid() }"), 2);
    assert_eq!(found("store/os/linux/mod.rs", "libc::getpid()"), 0);
    assert_eq!(found("quant/mod.rs", "core::arch::x86_64::_mm_pause()"), 1);
    assert_eq!(found("hub/client.rs", "use ureq::Agent; use rustls::crypto::ring;"), 0);
    assert_eq!(found("hub/pull.rs", "ureq::get(url)"), 1);
    assert_eq!(found("server/mod.rs", "std::net::TcpStream::connect(to)"), 1);
    assert_eq!(found("model/mod.rs", "use crate::hub::Hub;"), 1);
    assert_eq!(found("quant/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\nuse crate::store::Store;\n}"), 0);
}
