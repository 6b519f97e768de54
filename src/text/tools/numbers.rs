//! JSON with numbers beyond those that a double holds. JSON has them, and so have the grammars of schemas:
//! a model that is held to one may write `1e999`, which is a call all the same.

use serde_json::Value as Json;

/// Reads JSON. A number that is too large for a double becomes the largest that there is.
///
/// # Errors
/// What is no JSON.
pub fn read(text: &str) -> Result<Json, serde_json::Error> {
    serde_json::from_str(text).or_else(|_| serde_json::from_str(&bounded(text)))
}

/// The text with the numbers in it brought within the bounds of a double.
fn bounded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_text) = (text, false);
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '\\' if in_text => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            '-' | '0'..='9' if !in_text => {
                let is_part = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
                rest.find(|c| !is_part(c)).unwrap_or(rest.len())
            }
            _ => c.len_utf8(),
        };
        in_text ^= c == '"';
        let (piece, after) = rest.split_at(len);
        match piece.parse::<f64>() {
            Ok(number) if !in_text && number.is_infinite() => {
                out.push_str(&Json::from(f64::MAX.copysign(number)).to_string());
            }
            _ => out.push_str(piece),
        }
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_have_bounds() {
        let text = r#"{"a": 4.06e64066, "b": [-1e999, 1e-999, 2], "c\"1e999": "1e999\\", "d": infinity}"#;
        let read_ = |text: &str| read(text).map_err(|error| error.to_string());
        assert!(read_(text).is_err(), "a word is no number");
        let text = text.replace("infinity", "7");
        let expected = json!({ "a": f64::MAX, "b": [-f64::MAX, 0.0, 2], "c\"1e999": "1e999\\", "d": 7 });
        assert_eq!(read_(&text).unwrap(), expected);
        let long = format!("[{}, -{}.5]", "9".repeat(400), "9".repeat(400));
        assert_eq!(read_(&long).unwrap(), json!([f64::MAX, -f64::MAX]));
        for other in ["", "1e", "[1e999", "1e999x", "\"1e999", "{\"é\\"] {
            assert!(read_(other).is_err(), "{other}");
        }
    }
}
