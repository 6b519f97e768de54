//! Files of settings: what they set, or what is wrong with them.
#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use wayinfer::cli::settings_of;

fuzz_target!(|data: &[u8]| {
    // What is shown holds nothing that moves a cursor, and so does what is wrong.
    let is_plain = |text: &str| !text.contains(|c: char| c.is_control() && c != '\n');
    if let Ok(shown) = settings_of(&common::write("config.toml", data)) {
        assert!(is_plain(&shown), "{shown:?}");
    }
});
