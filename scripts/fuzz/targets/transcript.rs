//! Transcripts of conversations: read and written again as they were, or refused; and text told apart from reasoning,
//! the same however it comes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wayinfer::text::{Part, Splitter, Transcript};

fuzz_target!(|data: &[u8]| {
    if let Ok(transcript) = Transcript::read(data) {
        let messages = transcript.messages();
        assert_eq!(messages.len(), 2 * transcript.exchanges.len() + usize::from(transcript.system.is_some()));
        let mut written = Vec::new();
        transcript.write("model", &mut written).expect("a vector takes all");
        assert_eq!(Transcript::read(written.as_slice()).expect("it was written so"), transcript);
    }
    // The first byte says in what pieces the text comes, its prompt is what stands before a zero.
    let Some((&size, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (prompt, text) = text.split_once('\0').unwrap_or(("", text));
    let whole = parts(prompt, &[text]);
    let chars: Vec<char> = text.chars().collect();
    let pieces: Vec<String> = chars.chunks(usize::from(size % 16) + 1).map(|piece| piece.iter().collect()).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    assert_eq!(parts(prompt, &pieces), whole);
});

/// Reasoning and answer.
fn parts(prompt: &str, pieces: &[&str]) -> [String; 2] {
    let mut splitter = Splitter::after(prompt);
    let mut all = Vec::new();
    for piece in pieces {
        all.extend(splitter.push(piece));
    }
    all.extend(splitter.finish());
    [Part::Reasoning, Part::Answer].map(|part| {
        all.iter().filter(|(of, _)| *of == part).map(|(_, text)| text.as_str()).collect()
    })
}
