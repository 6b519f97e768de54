//! Transcripts of conversations: read and written again as they were, or refused; and text told apart from reasoning,
//! the same however it comes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wayinfer::text::Transcript;
use wayinfer::text::tools::{AnswerParser, AnswerPart};

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
    let pieces: Vec<String> =
        chars.chunks(usize::from(size % 16) + 1).map(|piece| piece.iter().collect()).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    assert_eq!(parts(prompt, &pieces), whole);
});

/// Reasoning and answer.
fn parts(prompt: &str, pieces: &[&str]) -> [String; 2] {
    let mut parser = AnswerParser::new(None, prompt, &[]);
    let mut parts: Vec<_> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    let mut all = [String::new(), String::new()];
    for part in parts {
        match part {
            AnswerPart::Reasoning(text) => all[0] += &text,
            AnswerPart::Text(text) => all[1] += &text,
            AnswerPart::Call { .. } | AnswerPart::Arguments { .. } => unreachable!("no format of calls"),
        }
    }
    all
}
