//! Where in a JSON schema what was refused is.

use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value};

/// Most parts of a schema that are tried, and bytes of the largest schema whose parts are.
const MAX_TRIES: usize = 64;
const MAX_BYTES: usize = 32 << 10;

/// Most characters of a place that are shown: its last ones.
const MAX_SHOWN: usize = 160;

/// Keywords whose value is a schema or a list of schemas, and those whose value maps names to schemas.
const SCHEMAS: [&str; 9] = [
    "items",
    "additionalProperties",
    "additionalItems",
    "prefixItems",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "contains",
];
const MAPS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// The JSON pointer of the smallest part that is refused for the same reason by itself; `None` for the whole.
pub fn find(
    schema: &Value,
    reason: &str,
    compiles: &mut dyn FnMut(TopLevelGrammar) -> Option<String>,
) -> Option<String> {
    if super::size(schema, super::MAX_DEPTH).is_none_or(|size| size > MAX_BYTES) {
        return None;
    }
    let (mut place, mut part, mut tries) = (String::new(), schema, 0);
    'down: loop {
        for (pointer, child) in children(part) {
            tries += 1;
            if tries > MAX_TRIES {
                break 'down;
            }
            let alone =
                TopLevelGrammar::from_json_schema(super::with_options(&with_definitions(child, schema)));
            if compiles(alone).is_some_and(|other| other == reason) {
                place += &pointer;
                part = child;
                continue 'down;
            }
        }
        break;
    }
    (!place.is_empty()).then(|| shown(&place))
}

fn shown(place: &str) -> String {
    match place.char_indices().rev().nth(MAX_SHOWN) {
        Some((at, _)) => format!("..{}", &place[at..]),
        None => format!("#{place}"),
    }
}

/// The JSON pointer of a part of a schema, not the whole, that has an `$id`.
pub fn with_id(schema: &Value) -> Option<String> {
    let mut parts = children(schema);
    while let Some((place, part)) = parts.pop() {
        if part.get("$id").is_some_and(Value::is_string) {
            return Some(shown(&place));
        }
        parts.extend(children(part).into_iter().map(|(pointer, child)| (format!("{place}{pointer}"), child)));
    }
    None
}

/// The schemas directly within one, each with its pointer from there.
fn children(schema: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        match value {
            Value::Object(map) if MAPS.contains(&key.as_str()) => {
                found.extend(map.iter().map(|(name, value)| (format!("/{key}/{}", escaped(name)), value)));
            }
            Value::Object(_) if SCHEMAS.contains(&key.as_str()) => found.push((format!("/{key}"), value)),
            Value::Array(list) if SCHEMAS.contains(&key.as_str()) => {
                found.extend(list.iter().enumerate().map(|(i, value)| (format!("/{key}/{i}"), value)));
            }
            _ => {}
        }
    }
    found
}

/// A part by itself, with the definitions that it may refer to.
fn with_definitions(part: &Value, whole: &Value) -> Value {
    let Some(part) = part.as_object() else { return part.clone() };
    let mut alone: Map<String, Value> = part.clone();
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = whole.get(key) {
            alone.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(alone)
}

/// A name within a JSON pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
