//! SentencePiece BPE as its definition reads, for tests (those of the whole program include this file too).

use std::collections::HashMap;

/// Again and again the best pair of all is joined, the leftmost of equals. `pieces` has ids and scores,
/// `byte` the id of a byte of what is no piece.
pub fn naive_spm(pieces: &HashMap<&str, (u32, f32)>, byte: impl Fn(u8) -> u32, text: &str) -> Vec<u32> {
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(usize, f32)> = None;
        for left in 0..parts.len().saturating_sub(1) {
            let joined = parts[left].clone() + &parts[left + 1];
            if let Some(&(_, score)) = pieces.get(&joined[..])
                && best.is_none_or(|(_, other)| score > other)
            {
                best = Some((left, score));
            }
        }
        let Some((left, _)) = best else { break };
        let right = parts.remove(left + 1);
        parts[left].push_str(&right);
    }
    let ids = |part: &String| match pieces.get(&part[..]) {
        Some(&(id, _)) => vec![id],
        None => part.bytes().map(&byte).collect(),
    };
    parts.iter().flat_map(ids).collect()
}
