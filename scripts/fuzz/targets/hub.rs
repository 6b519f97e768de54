//! The hub's answers, and the cache folder with whatever may lie in it: names lead to what is there, no path leads out, and
//! nothing else is removed.
#![no_main]

mod common;

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use wayinfer::hub::{Hub, ModelName, Settings, understood};

/// Files that are made at most, and their folders' depth.
const FILES: usize = 24;
const DEPTH: usize = 12;

fuzz_target!(|data: &[u8]| {
    // A name, and what comes behind the line.
    let Some(end) = data.iter().position(|&byte| byte == b'\n') else { return };
    let (name, rest) = (&data[..end], &data[end + 1..]);
    let Some(name) = std::str::from_utf8(name).ok().and_then(|name| name.parse::<ModelName>().ok()) else {
        return;
    };
    assert_eq!(name.to_string().parse::<ModelName>().expect("it was written so"), name);
    if let Ok(files) = understood(rest, &name) {
        assert!(!files.is_empty());
        for (path, _, etag) in files {
            let is_plain =
                |path: &str| Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
            assert!(is_plain(&path) && is_plain(&etag) && !etag.contains('/'), "{path:?} {etag:?}");
        }
    }
    if let Ok(text) = std::str::from_utf8(rest) {
        cached(text, &name);
    }
});

/// Each line is a file of the cache, and after a `=` what is in it; after a `>` where it links to.
fn cached(text: &str, name: &ModelName) {
    let root = common::path("cache");
    let _ = fs::remove_dir_all(&root);
    let outside = common::write("outside", b"GGUF");
    for line in text.lines().take(FILES) {
        let at = line.find(['=', '>']).unwrap_or(line.len());
        let path: PathBuf =
            line[..at].split('/').filter(|part| !["", ".", ".."].contains(part)).take(DEPTH).collect();
        let path = root.join(path);
        let Some(folder) = path.parent().filter(|_| path != root) else { continue };
        let content = line[at..].get(1..).unwrap_or_default();
        let _ = fs::create_dir_all(folder);
        match line[at..].starts_with('>') {
            true => drop(std::os::unix::fs::symlink(content, &path)),
            // What a link leads to is not written.
            false if path.symlink_metadata().is_err() => drop(fs::write(&path, content)),
            false => {}
        }
    }
    let settings = Settings {
        cache: root.clone(),
        endpoint: "http://127.0.0.1:1".to_owned(),
        token: None,
        offline: true,
        pause: Duration::ZERO,
    };
    let hub = Hub::new(settings);
    if let Ok((models, _)) = hub.list() {
        for model in &models {
            assert_eq!(hub.cached(&model.name).expect("it was listed"), model.files[0]);
        }
    }
    let _ = hub.cached(name);
    if let Ok(removal) = hub.removal(name) {
        assert!(removal.files().iter().all(|file| file.starts_with(&root)), "{:?}", removal.files());
        let _ = removal.remove();
    }
    assert_eq!(fs::read(outside).expect("it is none of the hub's"), b"GGUF");
}
