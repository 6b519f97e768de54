//! What a parameter's value is, where a format writes values as plain text: the tool's JSON schema says it.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::numbers::read;

/// References within references, and alternatives within alternatives.
const MAX_DEPTH: usize = 16;

/// The tools of a request by their names.
#[derive(Clone, Debug, Default)]
pub struct Tools(HashMap<String, Json>);

/// The kinds of values that a schema allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    pub text: bool,
    pub number: bool,
    pub boolean: bool,
    pub null: bool,
    pub array: bool,
    pub object: bool,
}

impl Kinds {
    const NONE: Kinds =
        Kinds { text: false, number: false, boolean: false, null: false, array: false, object: false };
    pub const TEXT: Kinds = Kinds { text: true, ..Kinds::NONE };
    pub const ALL: Kinds =
        Kinds { text: true, number: true, boolean: true, null: true, array: true, object: true };

    /// Whether only a text is allowed.
    pub fn is_text(self) -> bool {
        self == Kinds::TEXT
    }

    /// Whether only true and false are allowed.
    pub fn is_boolean(self) -> bool {
        self == Kinds { boolean: true, ..Kinds::NONE }
    }

    fn or(self, other: Kinds) -> Kinds {
        Kinds {
            text: self.text || other.text,
            number: self.number || other.number,
            boolean: self.boolean || other.boolean,
            null: self.null || other.null,
            array: self.array || other.array,
            object: self.object || other.object,
        }
    }

    fn and(self, other: Kinds) -> Kinds {
        Kinds {
            text: self.text && other.text,
            number: self.number && other.number,
            boolean: self.boolean && other.boolean,
            null: self.null && other.null,
            array: self.array && other.array,
            object: self.object && other.object,
        }
    }

    fn named(name: &str) -> Kinds {
        let none = Kinds::NONE;
        match name {
            "string" => Kinds { text: true, ..none },
            "number" | "integer" => Kinds { number: true, ..none },
            "boolean" => Kinds { boolean: true, ..none },
            "null" => Kinds { null: true, ..none },
            "array" => Kinds { array: true, ..none },
            "object" => Kinds { object: true, ..none },
            _ => Kinds::ALL,
        }
    }

    fn of_value(value: &Json) -> Kinds {
        Kinds::named(match value {
            Json::Null => "null",
            Json::Bool(_) => "boolean",
            Json::Number(_) => "number",
            Json::String(_) => "string",
            Json::Array(_) => "array",
            Json::Object(_) => "object",
        })
    }

    /// What a schema allows; `root` is the schema that its references point into.
    pub fn of_schema(schema: &Json, root: &Json) -> Kinds {
        Kinds::within(schema, root, 0)
    }

    fn within(schema: &Json, root: &Json, depth: usize) -> Kinds {
        let Some(fields) = schema.as_object().filter(|_| depth < MAX_DEPTH) else { return Kinds::ALL };
        let mut kinds = match fields.get("type") {
            Some(Json::String(name)) => Kinds::named(name),
            Some(Json::Array(names)) => {
                let named = names.iter().filter_map(Json::as_str).map(Kinds::named);
                named.fold(Kinds::NONE, Kinds::or)
            }
            _ => Kinds::ALL,
        };
        if let Some(values) = fields.get("enum").and_then(Json::as_array) {
            kinds = kinds.and(values.iter().map(Kinds::of_value).fold(Kinds::NONE, Kinds::or));
        }
        if let Some(value) = fields.get("const") {
            kinds = kinds.and(Kinds::of_value(value));
        }
        for alternatives in ["anyOf", "oneOf"] {
            if let Some(schemas) = fields.get(alternatives).and_then(Json::as_array) {
                let each = schemas.iter().map(|schema| Kinds::within(schema, root, depth + 1));
                kinds = kinds.and(each.fold(Kinds::NONE, Kinds::or));
            }
        }
        if let Some(schemas) = fields.get("allOf").and_then(Json::as_array) {
            let each = schemas.iter().map(|schema| Kinds::within(schema, root, depth + 1));
            kinds = kinds.and(each.fold(Kinds::ALL, Kinds::and));
        }
        if let Some(target) = fields.get("$ref").and_then(Json::as_str) {
            let target = target.strip_prefix('#').and_then(|path| root.pointer(path));
            kinds = kinds.and(target.map_or(Kinds::ALL, |schema| Kinds::within(schema, root, depth + 1)));
        }
        // Nothing fits a schema that contradicts itself.
        if kinds == Kinds::NONE { Kinds::ALL } else { kinds }
    }
}

impl Tools {
    /// Tools as OpenAI's API has them: `{"type": "function", "function": {"name", "parameters"}}`, or without
    /// the wrapping.
    pub fn new(tools: &[Json]) -> Tools {
        let parameters = |tool: &Json| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?.to_owned();
            Some((name, function.get("parameters").cloned().unwrap_or_default()))
        };
        Tools(tools.iter().filter_map(parameters).collect())
    }

    /// The schema of a tool's parameter, and that of all of them.
    pub fn schema(&self, tool: &str, parameter: &str) -> Option<(&Json, &Json)> {
        let root = self.0.get(tool)?;
        Some((root.get("properties")?.get(parameter)?, root))
    }

    /// What a tool's parameter may be: anything where the tool or the parameter is not known.
    pub fn kinds(&self, tool: &str, parameter: &str) -> Kinds {
        let Some(root) = self.0.get(tool) else { return Kinds::ALL };
        let schema = root.get("properties").and_then(|properties| properties.get(parameter));
        schema.map_or(Kinds::ALL, |schema| Kinds::of_schema(schema, root))
    }
}

/// The JSON text of a value that was written as plain text: one of the kinds that are allowed and no text, or
/// else a text.
pub fn value(text: &str, kinds: Kinds) -> String {
    let trimmed = text.trim();
    // As Python writes them.
    let python = match trimmed {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    match read(python) {
        Ok(value) if !value.is_string() && kinds.and(Kinds::of_value(&value)) != Kinds::NONE => {
            python.to_owned()
        }
        // A text where none is allowed, and quoted.
        Ok(Json::String(_)) if !kinds.text => python.to_owned(),
        _ => Json::from(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_says_what_a_text_is() {
        let parameters = json!({
            "properties": {
                "s": {"type": "string"},
                "n": {"type": "integer"},
                "maybe": {"type": ["string", "null"]},
                "either": {"anyOf": [{"type": "string"}, {"type": "object"}]},
                "one": {"enum": ["1", "2"]},
                "list": {"$ref": "#/$defs/list"},
                "loop": {"$ref": "#/properties/loop"},
                "any": {},
            },
            "$defs": {"list": {"type": "array", "items": {"type": "number"}}},
        });
        let tools = Tools::new(&[
            json!({"type": "function", "function": {"name": "f", "parameters": parameters}}),
            json!({"name": "bare"}),
        ]);
        let cases = [
            ("s", "5", "\"5\""),
            ("s", " null\n", "\" null\\n\""),
            ("n", " 5\n", "5"),
            ("n", "five", "\"five\""),
            ("n", "True", "\"True\""),
            ("maybe", "null", "null"),
            ("maybe", "None", "null"),
            ("maybe", "5", "\"5\""),
            ("either", "{\"a\": 1}", "{\"a\": 1}"),
            ("either", "[1]", "\"[1]\""),
            ("one", "1", "\"1\""),
            ("list", "[1, 2]", "[1, 2]"),
            ("loop", "7", "7"),
            ("any", "False", "false"),
            ("any", "x", "\"x\""),
            ("unknown", "1.5", "1.5"),
            ("unknown", "\"q\"", "\"\\\"q\\\"\""),
        ];
        for (name, text, expected) in cases {
            assert_eq!(value(text, tools.kinds("f", name)), expected, "{name}: {text}");
        }
        assert!(tools.kinds("f", "s").is_text() && tools.kinds("f", "one").is_text());
        assert!(!tools.kinds("bare", "x").is_text() && !tools.kinds("none", "x").is_text());
    }
}
