//! An answer as this API's events tell of it, and the response that they make up.

use serde_json::{Map, Value, json};

use super::super::super::answer::{Delta, Piece, Reason, Timings};
use super::super::super::error::ApiError;
use super::super::super::stream::{Writer, event};
use super::super::{error_value, new_id, now, token_logprobs};
use crate::engine::Usage;
use crate::text::Part;
use crate::text::tools::read_json;

/// See the module.
pub struct Events {
    /// The response, all but its output.
    response: Map<String, Value>,
    items: Vec<Item>,
    /// Whether the last item may grow.
    open: bool,
    sequence: u64,
}

/// An item of the output.
struct Item {
    id: String,
    kind: Kind,
    /// What it says, or the arguments of a call.
    text: String,
    logprobs: Vec<Value>,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call { call_id: String, name: String },
}

impl Item {
    fn new(kind: Kind) -> Item {
        let prefix = match kind {
            Kind::Reasoning => "rs_",
            Kind::Message => "msg_",
            Kind::Call { .. } => "fc_",
        };
        let (text, logprobs) = (String::new(), Vec::new());
        Item { id: new_id(prefix), kind, text, logprobs, status: "in_progress" }
    }

    /// Its only part; none where it is a call.
    fn part(&self) -> Option<Value> {
        let text = &self.text;
        match self.kind {
            Kind::Reasoning => Some(json!({ "type": "reasoning_text", "text": text })),
            Kind::Message => {
                let logprobs = &self.logprobs;
                Some(json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs }))
            }
            Kind::Call { .. } => None,
        }
    }

    /// With its part once it has been begun.
    fn value(&self) -> Value {
        let content: Vec<Value> = self.part().filter(|_| self.status != "in_progress").into_iter().collect();
        let mut value = json!({ "id": self.id, "type": "message", "status": self.status });
        match &self.kind {
            Kind::Reasoning => {
                value["type"] = "reasoning".into();
                value["summary"] = json!([]);
                value["content"] = content.into();
                value["encrypted_content"] = Value::Null;
            }
            Kind::Message => {
                value["role"] = "assistant".into();
                value["content"] = content.into();
            }
            Kind::Call { call_id, name } => {
                value["type"] = "function_call".into();
                value["call_id"] = call_id.clone().into();
                value["name"] = name.clone().into();
                value["arguments"] = self.text.clone().into();
            }
        }
        value
    }

    /// The first word of the names of its events.
    fn events(&self) -> &'static str {
        match self.kind {
            Kind::Reasoning => "response.reasoning_text",
            Kind::Message => "response.output_text",
            Kind::Call { .. } => "response.function_call_arguments",
        }
    }
}

impl Events {
    /// For an answer of this model, which says this of its request.
    pub fn new(echo: Map<String, Value>, model: &str) -> Events {
        let head = json!({
            "id": new_id("resp_"),
            "object": "response",
            "created_at": now(),
            "status": "in_progress",
            "error": null,
            "incomplete_details": null,
            "model": model,
            "output": [],
            "usage": null,
        });
        let mut response = head.as_object().cloned().unwrap_or_default();
        response.extend(echo);
        Events { response, items: Vec::new(), open: false, sequence: 0 }
    }

    /// The whole response, once all has come.
    pub fn into_response(self) -> Value {
        self.response.into()
    }

    /// Ends an answer that says nothing.
    pub fn nothing(&mut self) -> String {
        self.end("completed", None, &Usage::default())
    }

    fn emit(&mut self, name: &str, fields: Value) -> String {
        let mut data = json!({ "type": name, "sequence_number": self.sequence });
        for (name, value) in fields.as_object().into_iter().flatten() {
            data[name] = value.clone();
        }
        self.sequence += 1;
        event(name, &data)
    }

    fn emit_response(&mut self, name: &str) -> String {
        self.emit(name, json!({ "response": self.response }))
    }

    /// An event about the last item, which has these fields beside the item's place.
    fn emit_of_item(&mut self, name: &str, fields: Value) -> String {
        let Some(item) = self.items.last() else { return String::new() };
        let mut data = json!({ "item_id": item.id, "output_index": self.items.len() - 1 });
        if !matches!(item.kind, Kind::Call { .. }) {
            data["content_index"] = 0.into();
        }
        for (name, value) in fields.as_object().into_iter().flatten() {
            data[name] = value.clone();
        }
        self.emit(name, data)
    }

    fn emit_item(&mut self, name: &str) -> String {
        let Some(item) = self.items.last() else { return String::new() };
        self.emit(name, json!({ "output_index": self.items.len() - 1, "item": item.value() }))
    }

    /// Ends the item that there is and begins another.
    fn begin_item(&mut self, kind: Kind) -> String {
        let mut out = self.end_item("completed");
        self.items.push(Item::new(kind));
        self.open = true;
        out += &self.emit_item("response.output_item.added");
        if let Some(part) = self.items.last().and_then(Item::part) {
            out += &self.emit_of_item("response.content_part.added", json!({ "part": part }));
        }
        out
    }

    /// Ends the last item. A call that was cut off within its arguments must not be carried out: nobody is
    /// told that it is done.
    fn end_item(&mut self, status: &'static str) -> String {
        if !std::mem::take(&mut self.open) {
            return String::new();
        }
        let Some(item) = self.items.last_mut() else { return String::new() };
        let (name, text) = (format!("{}.done", item.events()), item.text.clone());
        item.status = status;
        let mut out = match item.part() {
            Some(part) => {
                let mut fields = json!({ "text": text });
                if item.kind == Kind::Message {
                    fields["logprobs"] = item.logprobs.clone().into();
                }
                let done = self.emit_of_item(&name, fields);
                done + &self.emit_of_item("response.content_part.done", json!({ "part": part }))
            }
            None => {
                if text.is_empty() {
                    item.text.push_str("{}");
                }
                if !read_json(&item.text).is_ok_and(|value| value.is_object()) {
                    self.items.pop();
                    return String::new();
                }
                let Kind::Call { name: tool, .. } = item.kind.clone() else { return String::new() };
                let arguments = item.text.clone();
                self.emit_of_item(&name, json!({ "name": tool, "arguments": arguments }))
            }
        };
        out += &self.emit_item("response.output_item.done");
        out
    }

    /// More text of a kind of item.
    fn text(&mut self, kind: Kind, Piece { text, logprobs }: Piece) -> String {
        let mut out = String::new();
        if !self.open || self.items.last().is_none_or(|item| item.kind != kind) {
            out = self.begin_item(kind.clone());
        }
        let Some(item) = self.items.last_mut() else { return out };
        item.text.push_str(&text);
        let mut fields = json!({ "delta": text });
        if kind == Kind::Message {
            fields["logprobs"] = token_logprobs(&logprobs);
            item.logprobs.extend(fields["logprobs"].as_array().into_iter().flatten().cloned());
        }
        let name = format!("{}.delta", item.events());
        out += &self.emit_of_item(&name, fields);
        out
    }

    /// Ends the response with this status, and why it is not whole.
    fn end(&mut self, status: &'static str, why: Option<&str>, usage: &Usage) -> String {
        let items: Vec<Value> = self.items.iter().map(Item::value).collect();
        self.response["output"] = items.into();
        self.response["status"] = status.into();
        self.response["incomplete_details"] = why.map(|reason| json!({ "reason": reason })).into();
        self.response["usage"] = usage_value(usage);
        self.emit_response(&format!("response.{status}"))
    }
}

impl Writer for Events {
    fn begin(&mut self) -> String {
        let created = self.emit_response("response.created");
        created + &self.emit_response("response.in_progress")
    }

    fn still(&mut self) -> String {
        self.emit_response("response.in_progress")
    }

    fn delta(&mut self, delta: Delta, _: &Timings) -> String {
        match delta {
            Delta::Prefill { .. } | Delta::Read(_) => String::new(),
            Delta::Text(_, piece) if piece.text.is_empty() && piece.logprobs.is_empty() => String::new(),
            Delta::Text(Part::Answer, piece) => self.text(Kind::Message, piece),
            Delta::Text(Part::Reasoning, piece) => self.text(Kind::Reasoning, piece),
            Delta::Call { id, name, .. } => self.begin_item(Kind::Call { call_id: id, name }),
            Delta::Arguments { delta, .. } => {
                if let Some(item) = self.items.last_mut() {
                    item.text.push_str(&delta);
                }
                self.emit_of_item("response.function_call_arguments.delta", json!({ "delta": delta }))
            }
            Delta::Done(done) => {
                let (status, why) = match done.reason {
                    Reason::Stop | Reason::ToolCalls => ("completed", None),
                    Reason::Length => ("incomplete", Some("max_output_tokens")),
                };
                let begun = match self.items.is_empty() {
                    true => self.begin_item(Kind::Message),
                    false => String::new(),
                };
                let ended = self.end_item(status);
                begun + &ended + &self.end(status, why, &done.usage)
            }
        }
    }

    fn error(&mut self, error: &ApiError) -> String {
        let value = &error_value(error)["error"];
        let code = if value["code"].is_null() { "server_error".into() } else { value["code"].clone() };
        self.response["status"] = "failed".into();
        self.response["error"] = json!({ "code": code, "message": error.message });
        self.emit_response("response.failed")
    }
}

fn usage_value(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": { "cached_tokens": usage.cached },
        "output_tokens": usage.made,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.prompt + usage.made,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::super::answer::Done;
    use super::*;

    fn text(part: Part, text: &str) -> Delta {
        Delta::Text(part, Piece { text: text.to_owned(), logprobs: Vec::new() })
    }

    fn done(reason: Reason) -> Delta {
        Delta::Done(Done { reason, stop: None, usage: Usage { prompt: 9, cached: 4, made: 3 } })
    }

    fn read(all: &str) -> Vec<Value> {
        let read = |(n, event): (usize, &str)| -> Value {
            let (name, data) = event.split_once('\n').expect("a name and data");
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            assert_eq!(data["sequence_number"], n);
            data
        };
        all.split_terminator("\n\n").enumerate().map(read).collect()
    }

    /// All events of an answer, and its response.
    fn events(deltas: Vec<Delta>) -> (Vec<Value>, Value) {
        let mut writer = Events::new(Map::new(), "m");
        let mut all = writer.begin();
        for delta in deltas {
            all += &writer.delta(delta, &Timings::default());
        }
        (read(&all), writer.into_response())
    }

    fn kinds(events: &[Value]) -> Vec<&str> {
        events
            .iter()
            .map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap())
            .collect()
    }

    #[test]
    fn items_follow_each_other() {
        let (events, response) = events(vec![
            Delta::Prefill { done: 1, of: 9 },
            text(Part::Reasoning, "hm"),
            text(Part::Answer, "S"),
            text(Part::Answer, "o"),
            Delta::Call { index: 0, id: "c0".into(), name: "f".into() },
            Delta::Arguments { index: 0, delta: "{\"a\":".into() },
            Delta::Arguments { index: 0, delta: "1}".into() },
            Delta::Call { index: 1, id: "c1".into(), name: "g".into() },
            done(Reason::ToolCalls),
        ]);
        let (added, ended) =
            (["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]);
        let arguments = "function_call_arguments.delta";
        let expected = [
            ["created", "in_progress"].as_slice(),
            &added,
            &["reasoning_text.delta", "reasoning_text.done"],
            &ended,
            &added,
            &["output_text.delta", "output_text.delta", "output_text.done"],
            &ended,
            &[added[0], arguments, arguments, "function_call_arguments.done", ended[1]],
            &[added[0], "function_call_arguments.done", ended[1]],
            &["completed"],
        ];
        assert_eq!(kinds(&events), expected.concat());
        let output = response["output"].as_array().unwrap();
        let types: Vec<&str> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["reasoning", "message", "function_call", "function_call"]);
        assert_eq!(output[0]["content"][0]["text"], "hm");
        assert_eq!(
            output[1]["content"][0],
            json!({ "type": "output_text", "text": "So", "annotations": [], "logprobs": [] })
        );
        assert_eq!((&output[2]["call_id"], &output[2]["arguments"]), (&"c0".into(), &"{\"a\":1}".into()));
        assert_eq!((&output[3]["name"], &output[3]["arguments"]), (&"g".into(), &"{}".into()));
        assert!(output.iter().all(|item| item["status"] == "completed"));
        assert_eq!(
            (&response["status"], &response["usage"]["total_tokens"]),
            (&"completed".into(), &12.into())
        );
        let last = events.last().unwrap();
        assert_eq!(last["response"], response);
        // The deltas of an item bear its id and place.
        let delta = &events[10];
        assert_eq!((&delta["item_id"], &delta["output_index"]), (&output[1]["id"], &1.into()));
        assert_eq!(events[9]["item_id"], output[1]["id"]);
        let begun = &events[8]["item"];
        assert_eq!((&begun["status"], &begun["content"]), (&"in_progress".into(), &json!([])));
    }

    #[test]
    fn an_answer_that_was_cut_off_is_incomplete() {
        let (events_, response) = events(vec![text(Part::Answer, "a"), done(Reason::Length)]);
        assert_eq!(kinds(&events_).last(), Some(&"incomplete"));
        assert_eq!(response["incomplete_details"], json!({ "reason": "max_output_tokens" }));
        assert_eq!(response["output"][0]["status"], "incomplete");
        let (events, response) = events(vec![
            Delta::Call { index: 0, id: "c".into(), name: "f".into() },
            Delta::Arguments { index: 0, delta: "{\"a".into() },
            done(Reason::Length),
        ]);
        assert!(!kinds(&events).contains(&"output_item.done"));
        assert_eq!(response["output"], json!([]));
    }

    #[test]
    fn nothing_is_an_empty_message_or_no_item() {
        let (_, response) = events(vec![done(Reason::Stop)]);
        assert_eq!(response["output"][0]["content"][0]["text"], "");
        let mut writer = Events::new(Map::new(), "m");
        let all = writer.begin() + &writer.nothing();
        assert_eq!(kinds(&read(&all)), ["created", "in_progress", "completed"]);
        assert_eq!(writer.into_response()["output"], json!([]));
    }

    #[test]
    fn signs_of_life_and_errors_are_events() {
        let mut writer = Events::new(Map::new(), "m");
        let all = writer.begin() + &writer.still() + &writer.error(&ApiError::internal("broken"));
        let events = read(&all);
        assert_eq!(kinds(&events), ["created", "in_progress", "in_progress", "failed"]);
        let response = &events[3]["response"];
        assert_eq!(response["status"], "failed");
        assert_eq!(response["error"], json!({ "code": "server_error", "message": "broken" }));
    }
}
