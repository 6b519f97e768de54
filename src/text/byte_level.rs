//! The byte-level alphabet of GPT-2: each byte is written as one printable character.
//!
//! Bytes that are printable characters of Latin-1 stand for themselves; the others, in rising order,
//! are U+0100, U+0101, ... Source: `bytes_to_unicode` of GPT-2's encoder.py.

/// The character of each byte.
pub const BYTE_TO_CHAR: [char; 256] = {
    let mut table = ['\0'; 256];
    let mut byte = 0;
    let mut others = 0;
    while byte < 256 {
        let code = if is_own_character(byte as u8) {
            byte as u32
        } else {
            others += 1;
            0x100 + others - 1
        };
        table[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("codes below 0x200 are characters"),
        };
        byte += 1;
    }
    table
};

/// The byte of each character below [`CHARS`], where it stands for one.
const CHAR_TO_BYTE: [Option<u8>; CHARS] = {
    let mut table = [None; CHARS];
    let mut byte = 0;
    while byte < 256 {
        table[BYTE_TO_CHAR[byte] as usize] = Some(byte as u8);
        byte += 1;
    }
    table
};

/// All characters of the alphabet are below this: 68 bytes are not their own character.
const CHARS: usize = 0x100 + 68;

const fn is_own_character(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte that a character stands for.
pub fn byte_of(c: char) -> Option<u8> {
    CHAR_TO_BYTE.get(c as usize).copied().flatten()
}

/// Writes text in the alphabet, into `out` (cleared first).
pub fn encode_into(text: &str, out: &mut String) {
    out.clear();
    out.extend(text.bytes().map(|b| BYTE_TO_CHAR[usize::from(b)]));
}

/// The bytes that a token's text stands for; `None` where a character is not of the alphabet.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let all: std::collections::HashSet<char> = BYTE_TO_CHAR.iter().copied().collect();
        assert_eq!(all.len(), 256);
        for byte in 0..=255u8 {
            assert_eq!(byte_of(BYTE_TO_CHAR[usize::from(byte)]), Some(byte));
        }
        // Known from any GPT-2 vocabulary.
        assert_eq!((BYTE_TO_CHAR[usize::from(b' ')], BYTE_TO_CHAR[usize::from(b'\n')]), ('Ġ', 'Ċ'));
        assert_eq!((BYTE_TO_CHAR[0xAD], CHARS), ('\u{143}', 0x144));
        assert_eq!(byte_of('▁'), None);
    }

    #[test]
    fn text_survives_the_alphabet() {
        let mut out = String::new();
        encode_into(" é\n", &mut out);
        assert_eq!(out, "ĠÃ©Ċ");
        assert_eq!(decode(&out).as_deref(), Some(" é\n".as_bytes()));
        assert_eq!(decode("a▁"), None);
    }
}
