//! Values written as elements, each tag with a token before it: `<days>3</days>`, lists as `<item>`s.

use serde_json::Value as Json;

use super::types::{self, Kinds};

/// Elements within elements.
const MAX_DEPTH: usize = 32;
/// The name of an element of a list.
const ITEM: &str = "item";

/// The tags of an element of this name.
pub fn tags(mark: &str, name: &str) -> [String; 2] {
    [format!("{mark}<{name}>"), format!("{mark}</{name}>")]
}

/// An element that a text begins with: its name, what is in it, and what is behind it. `None` where it does
/// not begin with one that ends in it.
pub fn first<'t>(text: &'t str, mark: &str) -> Option<(&'t str, &'t str, &'t str)> {
    let inner = text.strip_prefix(mark)?.strip_prefix('<')?;
    let (name, rest) = inner.split_once('>')?;
    let [open, close] = tags(mark, name);
    let (mut depth, mut at) = (1, 0);
    loop {
        let end = at + rest[at..].find(&close)?;
        depth += rest[at..end].matches(&open).count();
        depth -= 1;
        at = end + close.len();
        if depth == 0 {
            return Some((name, &rest[..end], &rest[at..]));
        }
    }
}

/// The JSON text of a value of this schema; `root` is the schema that its references point into.
pub fn value(text: &str, mark: &str, schema: &Json, root: &Json) -> String {
    within(text, mark, schema, root, 0)
}

fn within(text: &str, mark: &str, schema: &Json, root: &Json, depth: usize) -> String {
    let kinds = Kinds::of_schema(schema, root);
    if kinds.is_text() {
        return types::value(text, kinds);
    }
    let nothing = Json::Null;
    let plain = || match text.trim() {
        "" if kinds.array && !kinds.text => "[]".to_owned(),
        "" if kinds.object && !kinds.text => "{}".to_owned(),
        _ => types::value(text, kinds),
    };
    let Some(all) = elements(text, mark).filter(|all| !all.is_empty() && depth < MAX_DEPTH) else {
        return plain();
    };
    if kinds.array && all.iter().all(|(name, _)| *name == ITEM) {
        let schema = part(schema, root, &|schema| schema.get("items")).unwrap_or(&nothing);
        let items: Vec<String> =
            all.iter().map(|(_, inner)| within(inner, mark, schema, root, depth + 1)).collect();
        return format!("[{}]", items.join(","));
    }
    if !kinds.object {
        return plain();
    }
    let member = |(name, inner): &(&str, &str)| {
        let schema = part(schema, root, &|schema| schema.get("properties")?.get(*name)).unwrap_or(&nothing);
        format!("{}:{}", Json::from(*name), within(inner, mark, schema, root, depth + 1))
    };
    format!("{{{}}}", all.iter().map(member).collect::<Vec<_>>().join(","))
}

/// The elements of a text that has nothing else.
fn elements<'t>(text: &'t str, mark: &str) -> Option<Vec<(&'t str, &'t str)>> {
    let (mut all, mut rest) = (Vec::new(), text.trim());
    while !rest.is_empty() {
        let (name, inner, behind) = first(rest, mark)?;
        all.push((name, inner));
        rest = behind.trim_start();
    }
    Some(all)
}

/// A part of a schema, which may be in what it refers to and in its alternatives.
fn part<'s>(schema: &'s Json, root: &'s Json, of: &dyn Fn(&'s Json) -> Option<&'s Json>) -> Option<&'s Json> {
    fn find<'s>(
        schema: &'s Json,
        root: &'s Json,
        of: &dyn Fn(&'s Json) -> Option<&'s Json>,
        depth: usize,
    ) -> Option<&'s Json> {
        if depth > MAX_DEPTH {
            return None;
        }
        let referred = || {
            let path = schema.get("$ref")?.as_str()?.strip_prefix('#')?;
            find(root.pointer(path)?, root, of, depth + 1)
        };
        let alternatives = || {
            let lists = ["anyOf", "oneOf", "allOf"].iter().filter_map(|key| schema.get(*key)?.as_array());
            lists.flatten().find_map(|schema| find(schema, root, of, depth + 1))
        };
        of(schema).or_else(referred).or_else(alternatives)
    }
    find(schema, root, of, 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn elements_are_values_of_their_schema() {
        let root = json!({
            "$defs": {"node": {"type": "object", "properties": {
                "name": {"type": "string"}, "next": {"$ref": "#/$defs/node"}}}},
            "properties": {
                "node": {"$ref": "#/$defs/node"},
                "list": {"type": "array", "items": {"type": ["integer", "null"]}},
                "lists": {"anyOf": [{"type": "null"},
                    {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}]},
                "text": {"type": "string"},
                "any": {},
            },
        });
        for (name, text, expected) in [
            (
                "node",
                "!<name>5!</name>\n!<next>!<name>a!</name>!<next>!</next>!</next>",
                json!({"name": "5", "next": {"name": "a", "next": {}}}),
            ),
            ("list", "!<item>1!</item>!<item>null!</item>", json!([1, null])),
            ("list", "", json!([])),
            ("list", "[1, 2]", json!([1, 2])),
            ("lists", "!<item>!<item>1!</item>!</item>!<item>!</item>", json!([["1"], []])),
            ("lists", "null", json!(null)),
            ("text", "!<item>1!</item>", json!("!<item>1!</item>")),
            ("any", "!<item>1!</item>", json!([1])),
            ("any", "!<a>1!</a>", json!({"a": 1})),
            ("any", "!<a>1!</a> and more", json!("!<a>1!</a> and more")),
            ("any", "!<a>1", json!("!<a>1")),
        ] {
            let made = value(text, "!", &root["properties"][name], &root);
            assert_eq!(serde_json::from_str::<Json>(&made).expect(&made), expected, "{name}: {text}");
        }
        assert_eq!(first("!<a>!<a>!</a>!</a>b", "!"), Some(("a", "!<a>!</a>", "b")));
        assert_eq!(first("!<a>!<a>!</a>", "!"), None);
    }
}
