//! Messages as OpenAI's API has them, made into what a chat template expects.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::Format;
use super::numbers::read;
use crate::text::{Message, TextError};

/// Bytes of an id of Mistral's.
const MISTRAL_ID: usize = 9;

/// What a template wants of messages, read from its source.
struct Wants {
    /// Arguments as text, not as an object.
    text_arguments: bool,
    /// No content where there are calls, rather than an empty one.
    no_content: bool,
    /// A role for developers.
    developer: bool,
    /// Results in a field of the message that calls.
    responses: bool,
    ids: Ids,
}

/// How calls are numbered.
enum Ids {
    Any,
    /// Nine letters and digits.
    Nine,
    /// `functions.name:0`, by which the model knows the function.
    Function,
}

impl Wants {
    fn of_template(source: &str) -> Wants {
        let source: String = source.chars().filter(|c| !c.is_whitespace()).collect();
        let has = |text: &str| source.contains(text);
        let joins = ["['arguments']+", ".arguments+", "['arguments']~", ".arguments~"];
        let is_json =
            [".arguments|tojson", "['arguments']|tojson", "argumentsisstring", "['arguments']isstring"];
        let nine = ["id|length!=9", "id|length<9", "['id']|length!=9", "['id']|length<9"];
        Wants {
            text_arguments: joins.iter().any(|sign| has(sign)) && !is_json.iter().any(|sign| has(sign)),
            no_content: has("['content']isnone") || has("message.contentisnone"),
            developer: has("developer"),
            responses: has("tool_responses") && !has("'tool'") && !has("\"tool\""),
            ids: if nine.iter().any(|sign| has(sign)) {
                Ids::Nine
            } else if Format::of_template(&source).is_some_and(|format| format.name() == "kimi-k2") {
                Ids::Function
            } else {
                Ids::Any
            },
        }
    }
}

/// The messages of a request for the template of this source: arguments of calls as it wants them, ids that
/// it accepts, the names of the tools that results are of, parts of text as one text.
///
/// # Errors
/// [`TextError::Message`] with the index of a message that is none, of parts that are not text, and of calls
/// whose arguments are no object.
pub fn messages(messages: &[Json], source: &str) -> Result<Vec<Message>, TextError> {
    let wants = Wants::of_template(source);
    let mut called = Called::default();
    let mut out: Vec<Map<String, Json>> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let wrong = |what: String| TextError::Message { index, what };
        let message = message.as_object().ok_or_else(|| wrong("it is no object".to_owned()))?;
        let role =
            message.get("role").and_then(Json::as_str).ok_or_else(|| wrong("it has no role".to_owned()))?;
        let mut fields = message.clone();
        fields.retain(|_, value| !value.is_null());
        if role == "developer" && !wants.developer {
            fields.insert("role".to_owned(), "system".into());
        }
        fields.insert("content".to_owned(), content(message.get("content")).map_err(wrong)?.into());
        let calls = message.get("tool_calls").filter(|calls| !calls.is_null());
        if let Some(calls) = calls {
            let calls = calls.as_array().ok_or_else(|| wrong("tool_calls is no list".to_owned()))?;
            let calls: Result<Vec<Json>, String> =
                calls.iter().map(|call| called.call(call, &wants)).collect();
            let calls = calls.map_err(wrong)?;
            if calls.is_empty() {
                fields.remove("tool_calls");
            } else {
                if wants.no_content && fields["content"] == "" {
                    fields.insert("content".to_owned(), Json::Null);
                }
                fields.insert("tool_calls".to_owned(), calls.into());
            }
        }
        if role == "tool" {
            called.answer(&mut fields);
            if wants.responses
                && let Some(caller) = out.last_mut().filter(|last| last["role"] == "assistant")
            {
                respond(caller, &fields);
                continue;
            }
        }
        out.push(fields);
    }
    Ok(out.into_iter().map(Message::from).collect())
}

/// The content as one text.
fn content(content: Option<&Json>) -> Result<String, String> {
    let part = |part: &Json| {
        let kind = part.get("type").and_then(Json::as_str).unwrap_or("text");
        match (kind, part.get("text").and_then(Json::as_str)) {
            ("text" | "input_text" | "output_text", Some(text)) => Ok(text.to_owned()),
            _ => Err(format!("a part of the content is of type {kind:?}, which is not supported")),
        }
    };
    match content {
        None | Some(Json::Null) => Ok(String::new()),
        Some(Json::String(text)) => Ok(text.clone()),
        Some(Json::Array(parts)) => Ok(parts.iter().map(part).collect::<Result<Vec<_>, _>>()?.join("\n")),
        Some(_) => Err("its content is neither a text nor a list of parts".to_owned()),
    }
}

/// The calls so far: by the ids that they came with, the ids that the template gets and the names.
#[derive(Default)]
struct Called {
    by_id: HashMap<String, (String, String)>,
    count: usize,
}

impl Called {
    /// A call for the template.
    fn call(&mut self, call: &Json, wants: &Wants) -> Result<Json, String> {
        let function = call.get("function").unwrap_or(call);
        let name = function.get("name").and_then(Json::as_str).ok_or("a call has no name")?;
        let arguments = match function.get("arguments") {
            None | Some(Json::Null) => json!({}),
            Some(Json::String(text)) if text.trim().is_empty() => json!({}),
            Some(Json::String(text)) => read(text)
                .map_err(|error| format!("the arguments of its call of {name:?} are no JSON: {error}"))?,
            Some(other) => other.clone(),
        };
        if !arguments.is_object() {
            return Err(format!("the arguments of its call of {name:?} are no object"));
        }
        let arguments = if wants.text_arguments { arguments.to_string().into() } else { arguments };
        let given = call.get("id").and_then(Json::as_str).unwrap_or_default();
        let id = match wants.ids {
            Ids::Any => given.to_owned(),
            Ids::Nine if given.len() == MISTRAL_ID && given.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                given.to_owned()
            }
            Ids::Nine => {
                let text = if given.is_empty() { self.count.to_string() } else { given.to_owned() };
                blake3::hash(text.as_bytes()).to_hex()[..MISTRAL_ID].to_owned()
            }
            Ids::Function => format!("functions.{name}:{}", self.count),
        };
        self.count += 1;
        self.by_id.insert(given.to_owned(), (id.clone(), name.to_owned()));
        Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
    }

    /// A result gets the id and the name of its call.
    fn answer(&self, result: &mut Map<String, Json>) {
        let given = result.get("tool_call_id").and_then(Json::as_str).unwrap_or_default();
        let Some((id, name)) = self.by_id.get(given) else { return };
        let (id, name) = (id.clone(), name.clone());
        result.insert("tool_call_id".to_owned(), id.into());
        result.entry("name").or_insert(name.into());
    }
}

/// A result within the message that called.
fn respond(caller: &mut Map<String, Json>, result: &Map<String, Json>) {
    let text = result["content"].as_str().unwrap_or_default();
    let response = serde_json::from_str::<Json>(text).ok().filter(Json::is_object);
    let response = json!({
        "name": result.get("name").cloned().unwrap_or_default(),
        "response": response.unwrap_or_else(|| text.into()),
    });
    match caller.get_mut("tool_responses").and_then(Json::as_array_mut) {
        Some(responses) => responses.push(response),
        None => {
            caller.insert("tool_responses".to_owned(), json!([response]));
        }
    }
}
