//! Tools and formats of answers, as OpenAI's chats have them and other dialects nearly so.

use serde_json::{Map, Value, json};

use super::ask::ToolChoice;
use super::error::ApiError;

/// Most tools of a request.
const MAX_TOOLS: usize = 1024;

/// Refuses more tools than anybody needs.
///
/// # Errors
/// More than 1024.
pub fn check_count(tools: &[Value]) -> Result<(), ApiError> {
    match tools.len() {
        ..=MAX_TOOLS => Ok(()),
        n => Err(ApiError::invalid("tools", format!("{n} are more than {MAX_TOOLS}"))),
    }
}

/// The tools of a chat: functions, each in a field of that name.
///
/// # Errors
/// Tools of other types; functions without a name.
pub fn functions(tools: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    check_count(&tools)?;
    let function_of = |(i, mut tool): (usize, Value)| {
        let at = format!("tools[{i}]");
        match tool["type"].as_str() {
            None | Some("function") => {}
            Some(other) => {
                let message = format!("tools of the type {other:?} are not known: functions are");
                return Err(ApiError::unsupported(format!("{at}.type"), message));
            }
        }
        match tool.get_mut("function").map(Value::take) {
            Some(Value::Object(fields)) => function(fields, &format!("{at}.function")),
            _ => Err(ApiError::invalid(format!("{at}.function"), "a function is needed")),
        }
    };
    tools.into_iter().enumerate().map(function_of).collect()
}

/// A tool that is a function of these fields: `name`, `description`, `parameters`, `strict`.
///
/// # Errors
/// No name; parameters that are no schema.
pub fn function(mut fields: Map<String, Value>, at: &str) -> Result<Value, ApiError> {
    if fields.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(ApiError::invalid(format!("{at}.name"), "a name is needed"));
    }
    match fields.get("parameters") {
        Some(Value::Object(_)) => {}
        // Templates write it out without a look.
        None | Some(Value::Null) => {
            fields.insert("parameters".to_owned(), json!({ "type": "object", "properties": {} }));
        }
        Some(_) => return Err(ApiError::invalid(format!("{at}.parameters"), "a JSON schema is needed")),
    }
    fields.retain(|_, value| !value.is_null());
    Ok(json!({ "type": "function", "function": fields }))
}

/// What `tool_choice` says: `auto`, `none`, `required`, or a function, whose name may be nested.
///
/// # Errors
/// Anything else.
pub fn tool_choice(choice: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let Some(choice) = choice.filter(|choice| !choice.is_null()) else { return Ok(ToolChoice::Auto) };
    match choice.as_str() {
        Some("auto") => return Ok(ToolChoice::Auto),
        Some("none") => return Ok(ToolChoice::None),
        Some("required" | "any") => return Ok(ToolChoice::Required),
        _ => {}
    }
    let name = choice["function"]["name"].as_str().or(choice["name"].as_str());
    match (choice["type"].as_str(), name) {
        (Some("function"), Some(name)) => Ok(ToolChoice::Named(name.to_owned())),
        (Some("function"), None) => Err(ApiError::invalid("tool_choice", "a name of a function is needed")),
        _ => {
            let known = "it is auto, none, required or a function here";
            Err(ApiError::unsupported("tool_choice", format!("{choice} is not known: {known}")))
        }
    }
}

/// What a field of this name says of an answer's format: of type `text`, `json_object` or `json_schema`,
/// whose schema may be nested. `{}` stands for any object.
///
/// # Errors
/// Another type; no schema where there has to be one.
pub fn format(format: Option<&Value>, at: &str) -> Result<Option<Value>, ApiError> {
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    let schema = [&format["json_schema"]["schema"], &format["schema"]].into_iter().find(|s| !s.is_null());
    match (format["type"].as_str(), schema) {
        (Some("text"), _) => Ok(None),
        (Some("json_object"), None) => Ok(Some(json!({}))),
        (Some("json_object" | "json_schema"), Some(schema @ Value::Object(_))) => Ok(Some(schema.clone())),
        (Some("json_object" | "json_schema"), _) => {
            Err(ApiError::invalid(format!("{at}.schema"), "a JSON schema is needed"))
        }
        _ => {
            let message = format!("{} is not known: text, json_object and json_schema are", format["type"]);
            Err(ApiError::unsupported(format!("{at}.type"), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_names_and_parameters() {
        let tools = vec![
            json!({ "type": "function", "function": { "name": "f", "description": null, "strict": true } }),
            json!({ "function": { "name": "g", "parameters": { "type": "object", "x": 1 } } }),
        ];
        let made = functions(tools).unwrap();
        let none = json!({ "type": "object", "properties": {} });
        let function = json!({ "name": "f", "strict": true, "parameters": none });
        assert_eq!(made[0], json!({ "type": "function", "function": function }));
        assert_eq!(made[1]["type"], "function");
        assert_eq!(made[1]["function"]["parameters"]["x"], 1);
        for (wrong, field) in [
            (json!({ "type": "function", "function": { "name": "" } }), "tools[0].function.name"),
            (json!({ "type": "function" }), "tools[0].function"),
            (json!({ "type": "custom", "custom": {} }), "tools[0].type"),
            (json!({ "function": { "name": "f", "parameters": [] } }), "tools[0].function.parameters"),
            (json!(3), "tools[0].function"),
        ] {
            assert_eq!(functions(vec![wrong]).unwrap_err().field.as_deref(), Some(field));
        }
        assert!(functions(vec![json!({}); MAX_TOOLS + 1]).is_err());
    }

    #[test]
    fn choices_in_both_nestings() {
        let choice = |choice: Value| tool_choice(Some(&choice));
        assert_eq!(tool_choice(None), Ok(ToolChoice::Auto));
        assert_eq!(choice(Value::Null), Ok(ToolChoice::Auto));
        assert_eq!(choice(json!("none")), Ok(ToolChoice::None));
        assert_eq!(choice(json!("required")), Ok(ToolChoice::Required));
        let named = Ok(ToolChoice::Named("f".into()));
        assert_eq!(choice(json!({ "type": "function", "function": { "name": "f" } })), named);
        assert_eq!(choice(json!({ "type": "function", "name": "f" })), named);
        for wrong in
            [json!("some"), json!({ "type": "function" }), json!({ "type": "allowed_tools" }), json!(1)]
        {
            assert!(choice(wrong).is_err());
        }
    }

    #[test]
    fn formats_in_both_nestings() {
        let of = |value: Value| format(Some(&value), "response_format");
        let schema = json!({ "type": "object" });
        assert_eq!(format(None, ""), Ok(None));
        assert_eq!(of(json!({ "type": "text" })), Ok(None));
        assert_eq!(of(json!({ "type": "json_object" })), Ok(Some(json!({}))));
        let with_schema = json!({ "type": "json_object", "schema": schema });
        assert_eq!(of(with_schema), Ok(Some(schema.clone())));
        let nested = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
        assert_eq!(of(nested), Ok(Some(schema.clone())));
        let flat = json!({ "type": "json_schema", "name": "x", "schema": schema });
        assert_eq!(of(flat), Ok(Some(schema)));
        assert_eq!(
            of(json!({ "type": "json_schema" })).unwrap_err().field.unwrap(),
            "response_format.schema"
        );
        let error = of(json!({ "type": "xml" })).unwrap_err();
        assert_eq!(error.field.unwrap(), "response_format.type");
        assert!(error.message.contains("\"xml\" is not known"), "{}", error.message);
        assert!(of(json!("json")).is_err());
    }
}
