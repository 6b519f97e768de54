//! What Python's Jinja understands in a template's source and `minijinja` does not, rewritten.
//!
//! - `{% generation %}`, a tag of transformers that marks the assistant's own words: a scope and no more.
//! - Escapes in strings that only Python has, among them the backslash that continues a line.
//! - Line ends: any of `\r\n`, `\r` and `\n` is `\n`.

use std::borrow::Cow;

/// The template with what only Python's Jinja understands rewritten.
pub fn adapted(source: &str) -> String {
    let source = if source.contains('\r') {
        Cow::Owned(source.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(source)
    };
    let mut out = String::with_capacity(source.len());
    let mut rest = &source[..];
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let len = match from.as_bytes().get(1) {
            Some(b'#') => comment_len(from),
            Some(b'%') if is_tag(from, "raw") => raw_len(from),
            Some(b'%' | b'{') => push_tag(from, &mut out),
            _ => 1,
        };
        // What is not rewritten stays as it is.
        if !matches!(from.as_bytes().get(1), Some(b'%' | b'{')) || is_tag(from, "raw") {
            out.push_str(&from[..len]);
        }
        rest = &from[len..];
    }
    out + rest
}

/// Bytes of the comment that begins the text.
fn comment_len(text: &str) -> usize {
    text.find("#}").map_or(text.len(), |end| end + 2)
}

/// Bytes of the block between `{% raw %}` and `{% endraw %}` that begins the text, its first tag included.
fn raw_len(text: &str) -> usize {
    let mut at = 2;
    while let Some(next) = text[at..].find("{%") {
        at += next;
        if is_tag(&text[at..], "endraw") {
            return at;
        }
        at += 2;
    }
    text.len()
}

/// Whether the text begins with a tag that is only this word.
fn is_tag(text: &str, word: &str) -> bool {
    let inside = text.strip_prefix("{%").and_then(|text| text.split_once("%}"));
    inside.is_some_and(|(inside, _)| tag_word(inside) == word)
}

/// What is inside a tag, without the signs for white space.
fn tag_word(inside: &str) -> &str {
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    inside.strip_suffix(['-', '+']).unwrap_or(inside).trim()
}

/// Writes the tag or expression that begins the text; returns its bytes in the text.
fn push_tag(text: &str, out: &mut String) -> usize {
    let (open, rest) = text.split_at(2);
    for (word, instead) in [("generation", "with"), ("endgeneration", "endwith")] {
        if is_tag(text, word) {
            let len = text.find("%}").map_or(text.len(), |end| end + 2);
            out.push_str(&text[..len].replacen(word, instead, 1));
            return len;
        }
    }
    out.push_str(open);
    let close = if open == "{%" { "%}" } else { "}}" };
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(c) = rest[at..].chars().next() {
        if depth == 0 && rest[at..].starts_with(close) {
            out.push_str(close);
            return 2 + at + 2;
        }
        match c {
            '\'' | '"' => {
                at += push_string(&rest[at..], c, out);
                continue;
            }
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        out.push(c);
        at += c.len_utf8();
    }
    text.len()
}

/// Writes the string literal that begins the text; returns its bytes in the text.
fn push_string(text: &str, quote: char, out: &mut String) -> usize {
    out.push(quote);
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c != '\\' {
            out.push(c);
            if c == quote {
                return at + 1;
            }
            continue;
        }
        match chars.next() {
            // The line goes on.
            Some((_, '\n')) => {}
            Some((_, 'v')) => out.push_str("\\u000b"),
            Some((_, 'a')) => out.push_str("\\u0007"),
            // To Python no escape.
            Some((_, '/')) => out.push_str("\\\\/"),
            Some((at, 'U')) => {
                let code = text.get(at + 1..at + 9).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                match code.and_then(char::from_u32) {
                    Some(c) => {
                        out.push(c);
                        chars.nth(7);
                    }
                    None => out.push_str("\\U"),
                }
            }
            Some((_, other)) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_is_a_scope() {
        assert_eq!(adapted("a{%- generation -%}b{% endgeneration %}c"), "a{%- with -%}b{% endwith %}c");
        assert_eq!(adapted("{%generation%}{%+ endgeneration +%}"), "{%with%}{%+ endwith +%}");
        // A variable of that name is none of it.
        let other = "{% if generation %}{{ generation }}{% endif %}";
        assert_eq!(adapted(other), other);
    }

    #[test]
    fn escapes_of_python_become_others() {
        assert_eq!(adapted("{{ 'a\\\nb' }}\\\n"), "{{ 'ab' }}\\\n");
        assert_eq!(adapted(r#"{% set x = "\v\/\'\U0001F600" %}"#), r#"{% set x = "\u000b\\/\'😀" %}"#);
        assert_eq!(adapted(r"{{ '\\a' ~ '\U12' }} \v"), r"{{ '\\a' ~ '\U12' }} \v");
        assert_eq!(
            adapted("{{ '}}\\\n' ~ {'a': {'b': \"%}\\\n\"}} }}\\\n"),
            "{{ '}}' ~ {'a': {'b': \"%}\"}} }}\\\n"
        );
    }

    #[test]
    fn text_comments_and_raw_blocks_stay() {
        for same in [
            "",
            "{",
            "{ 'a\\\n' }",
            "{# {{ 'a\\\n' }} #}",
            "{% raw %}{% generation %}{{ 'a\\\n' }}{% endraw %}",
            "{{ 'open",
            "{% open",
            "{# open",
            "{% raw %} open \\\n",
            "{{ a }} é {% if b %}'{% endif %}",
        ] {
            assert_eq!(adapted(same), same);
        }
        assert_eq!(adapted("a\r\nb\rc"), "a\nb\nc");
        assert_eq!(adapted("{% raw %}{% endraw %}{{ '\\v' }}"), "{% raw %}{% endraw %}{{ '\\u000b' }}");
    }
}
