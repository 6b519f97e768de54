//! An answer as this dialect's events tell of it, and the message that they make up.

use serde_json::{Value, json};

use super::super::answer::{Delta, Done, Reason, Timings};
use super::super::error::ApiError;
use super::super::openai::new_id;
use super::super::stream::{Writer, event};
use super::error_value;
use crate::engine::Usage;
use crate::text::Part;
use crate::text::tools::read_json;

/// See the module.
pub struct Events {
    id: String,
    model: String,
    prompt_tokens: usize,
    /// Texts that the request says end an answer; a template may have more.
    stops: Vec<String>,
    blocks: Vec<Block>,
    done: Option<Done>,
}

/// A block of the message; the last one may grow.
#[derive(Debug, PartialEq, Eq)]
enum Block {
    Thinking(String),
    Text(String),
    /// The arguments as text.
    ToolUse {
        id: String,
        name: String,
        input: String,
    },
}

impl Block {
    /// As it begins, where it is empty.
    fn begin(&self) -> Value {
        match self {
            Block::Thinking(_) => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Block::Text(_) => json!({ "type": "text", "text": "" }),
            Block::ToolUse { id, name, .. } => {
                json!({ "type": "tool_use", "id": id, "name": name, "input": {} })
            }
        }
    }

    /// Whole; none for a call that was cut off within its arguments: it must not be carried out.
    fn whole(&self) -> Option<Value> {
        let mut block = self.begin();
        match self {
            Block::Thinking(text) => block["thinking"] = text.trim().into(),
            Block::Text(text) => block["text"] = text.clone().into(),
            Block::ToolUse { input, .. } => {
                let text = if input.is_empty() { "{}" } else { input };
                block["input"] = read_json(text).ok().filter(Value::is_object)?;
            }
        }
        Some(block)
    }
}

impl Events {
    /// For an answer of this model to a prompt of so many tokens, which these texts end.
    pub fn new(model: String, prompt_tokens: usize, stops: Vec<String>) -> Events {
        Events { id: new_id("msg_"), model, prompt_tokens, stops, blocks: Vec::new(), done: None }
    }

    /// The whole message, once all has come.
    pub fn into_message(self) -> Value {
        let content: Vec<Value> = self.blocks.iter().filter_map(Block::whole).collect();
        self.message(content)
    }

    fn message(&self, content: Vec<Value>) -> Value {
        let mut message = json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
        });
        message["usage"] = match &self.done {
            None => usage_value(&Usage { prompt: self.prompt_tokens, ..Usage::default() }),
            Some(done) => {
                let (reason, stop) = self.reason(done);
                message["stop_reason"] = reason.into();
                message["stop_sequence"] = stop.into();
                usage_value(&done.usage)
            }
        };
        message
    }

    /// Why an answer ended, and the text of the request that ended it.
    fn reason<'d>(&self, done: &'d Done) -> (&'static str, Option<&'d str>) {
        let stop = done.stop.as_deref().filter(|stop| self.stops.iter().any(|own| own == stop));
        match done.reason {
            Reason::Stop if stop.is_some() => ("stop_sequence", stop),
            Reason::Stop => ("end_turn", None),
            Reason::Length => ("max_tokens", None),
            Reason::ToolCalls => ("tool_use", None),
        }
    }

    fn index(&self) -> usize {
        self.blocks.len().saturating_sub(1)
    }

    fn delta_event(&self, delta: Value) -> String {
        let data = json!({ "type": "content_block_delta", "index": self.index(), "delta": delta });
        event("content_block_delta", &data)
    }

    /// Ends the block that there is.
    fn stop_block(&self) -> String {
        let signed = match self.blocks.last() {
            None => return String::new(),
            // Clients send thoughts back where they are signed.
            Some(Block::Thinking(_)) => {
                self.delta_event(json!({ "type": "signature_delta", "signature": "" }))
            }
            Some(_) => String::new(),
        };
        signed + &event("content_block_stop", &json!({ "type": "content_block_stop", "index": self.index() }))
    }

    /// Ends the block that there is and begins another.
    fn start_block(&mut self, block: Block) -> String {
        let stopped = self.stop_block();
        let begun = block.begin();
        self.blocks.push(block);
        let data = json!({ "type": "content_block_start", "index": self.index(), "content_block": begun });
        stopped + &event("content_block_start", &data)
    }

    /// More text of a kind of block.
    fn text(&mut self, part: Part, text: &str) -> String {
        let goes_on = matches!(
            (self.blocks.last(), part),
            (Some(Block::Text(_)), Part::Answer) | (Some(Block::Thinking(_)), Part::Reasoning)
        );
        let mut out = String::new();
        if !goes_on {
            out = self.start_block(match part {
                Part::Answer => Block::Text(String::new()),
                Part::Reasoning => Block::Thinking(String::new()),
            });
        }
        if let Some(Block::Text(all) | Block::Thinking(all)) = self.blocks.last_mut() {
            all.push_str(text);
        }
        let delta = match part {
            Part::Answer => json!({ "type": "text_delta", "text": text }),
            Part::Reasoning => json!({ "type": "thinking_delta", "thinking": text }),
        };
        out + &self.delta_event(delta)
    }
}

impl Writer for Events {
    fn begin(&mut self) -> String {
        event("message_start", &json!({ "type": "message_start", "message": self.message(Vec::new()) }))
    }

    fn still(&mut self) -> String {
        event("ping", &json!({ "type": "ping" }))
    }

    fn delta(&mut self, delta: Delta, _: &Timings) -> String {
        match delta {
            Delta::Prefill { .. } | Delta::Read(_) => String::new(),
            Delta::Text(_, piece) if piece.text.is_empty() => String::new(),
            Delta::Text(part, piece) => self.text(part, &piece.text),
            Delta::Call { id, name, .. } => {
                self.start_block(Block::ToolUse { id, name, input: String::new() })
            }
            Delta::Arguments { delta, .. } => {
                if let Some(Block::ToolUse { input, .. }) = self.blocks.last_mut() {
                    input.push_str(&delta);
                }
                self.delta_event(json!({ "type": "input_json_delta", "partial_json": delta }))
            }
            Delta::Done(done) => {
                // A message has at least one block.
                let mut out = String::new();
                if self.blocks.is_empty() {
                    out = self.start_block(Block::Text(String::new()));
                }
                out += &self.stop_block();
                let (reason, stop) = self.reason(&done);
                let delta = json!({ "stop_reason": reason, "stop_sequence": stop });
                let data =
                    json!({ "type": "message_delta", "delta": delta, "usage": usage_value(&done.usage) });
                self.done = Some(done);
                out + &event("message_delta", &data)
                    + &event("message_stop", &json!({ "type": "message_stop" }))
            }
        }
    }

    fn error(&mut self, error: &ApiError) -> String {
        event("error", &error_value(error))
    }
}

/// Tokens of the prompt that were computed before count apart from those that were not.
fn usage_value(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.made,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::answer::Piece;
    use super::super::super::error::ErrorKind;
    use super::*;

    fn text(part: Part, text: &str) -> Delta {
        Delta::Text(part, Piece { text: text.to_owned(), logprobs: Vec::new() })
    }

    fn done(reason: Reason, stop: Option<&str>) -> Delta {
        let usage = Usage { prompt: 9, cached: 4, made: 3 };
        Delta::Done(Done { reason, stop: stop.map(str::to_owned), usage })
    }

    /// All events of an answer, and its message.
    fn events(deltas: Vec<Delta>) -> (Vec<Value>, Value) {
        let mut writer = Events::new("m".to_owned(), 9, vec!["END".to_owned()]);
        let mut all = writer.begin();
        for delta in deltas {
            all += &writer.delta(delta, &Timings::default());
        }
        let read = |event: &str| -> Value {
            let (name, data) = event.split_once('\n').expect("a name and data");
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            data
        };
        (all.split_terminator("\n\n").map(read).collect(), writer.into_message())
    }

    fn kinds(events: &[Value]) -> Vec<&str> {
        events.iter().map(|event| event["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn blocks_follow_each_other() {
        let (events, message) = events(vec![
            Delta::Prefill { done: 1, of: 9 },
            text(Part::Reasoning, "hm"),
            text(Part::Reasoning, "m"),
            text(Part::Answer, "So"),
            Delta::Call { index: 0, id: "t1".into(), name: "f".into() },
            Delta::Arguments { index: 0, delta: "{\"a\":".into() },
            Delta::Arguments { index: 0, delta: "1}".into() },
            Delta::Call { index: 1, id: "t2".into(), name: "g".into() },
            done(Reason::ToolCalls, None),
        ]);
        let (start, delta, stop) = ("content_block_start", "content_block_delta", "content_block_stop");
        let expected = [
            ["message_start"].as_slice(),
            &[start, delta, delta, delta, stop],
            &[start, delta, stop],
            &[start, delta, delta, stop],
            &[start, stop],
            &["message_delta", "message_stop"],
        ];
        assert_eq!(kinds(&events), expected.concat());
        assert_eq!(events[0]["message"]["usage"]["input_tokens"], 9);
        assert_eq!(events[2]["delta"], json!({ "type": "thinking_delta", "thinking": "hm" }));
        assert_eq!(events[4]["delta"]["type"], "signature_delta");
        assert_eq!(events[7]["delta"], json!({ "type": "text_delta", "text": "So" }));
        assert_eq!(
            events[9]["content_block"],
            json!({ "type": "tool_use", "id": "t1", "name": "f", "input": {} })
        );
        assert_eq!(events[11]["delta"], json!({ "type": "input_json_delta", "partial_json": "1}" }));
        assert_eq!(
            (&events[9]["index"], &events[12]["index"], &events[13]["index"]),
            (&2.into(), &2.into(), &3.into())
        );
        assert_eq!(events[15]["delta"], json!({ "stop_reason": "tool_use", "stop_sequence": null }));
        assert_eq!(events[15]["usage"]["output_tokens"], 3);
        let content = json!([
            { "type": "thinking", "thinking": "hmm", "signature": "" },
            { "type": "text", "text": "So" },
            { "type": "tool_use", "id": "t1", "name": "f", "input": { "a": 1 } },
            { "type": "tool_use", "id": "t2", "name": "g", "input": {} },
        ]);
        assert_eq!(message["content"], content);
        assert_eq!(message["stop_reason"], "tool_use");
        let usage = &message["usage"];
        assert_eq!((&usage["input_tokens"], &usage["cache_read_input_tokens"]), (&5.into(), &4.into()));
    }

    #[test]
    fn why_it_ended() {
        let ended = |reason, stop| {
            let (_, message) = events(vec![text(Part::Answer, "a"), done(reason, stop)]);
            (message["stop_reason"].clone(), message["stop_sequence"].clone())
        };
        assert_eq!(ended(Reason::Stop, None), ("end_turn".into(), Value::Null));
        assert_eq!(ended(Reason::Stop, Some("END")), ("stop_sequence".into(), "END".into()));
        // One of the template's own.
        assert_eq!(ended(Reason::Stop, Some("<|user|>")), ("end_turn".into(), Value::Null));
        assert_eq!(ended(Reason::Length, None), ("max_tokens".into(), Value::Null));
    }

    #[test]
    fn nothing_is_an_empty_text() {
        let (events, message) = events(vec![done(Reason::Stop, None)]);
        let expected =
            ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"];
        assert_eq!(kinds(&events), expected);
        assert_eq!(message["content"], json!([{ "type": "text", "text": "" }]));
    }

    #[test]
    fn a_call_that_was_cut_off_is_not_given() {
        let (_, message) = events(vec![
            Delta::Call { index: 0, id: "t".into(), name: "f".into() },
            Delta::Arguments { index: 0, delta: "{\"a".into() },
            done(Reason::Length, None),
        ]);
        assert_eq!(message["content"], json!([]));
    }

    #[test]
    fn signs_of_life_and_errors_are_events() {
        let mut writer = Events::new("m".to_owned(), 1, Vec::new());
        assert_eq!(writer.still(), "event: ping\ndata: {\"type\":\"ping\"}\n\n");
        let error = writer.error(&ApiError::new(ErrorKind::Overloaded, "full"));
        let data = error.strip_prefix("event: error\ndata: ").unwrap();
        let expected = json!({ "type": "error", "error": { "type": "overloaded_error", "message": "full" } });
        assert_eq!(serde_json::from_str::<Value>(data).unwrap(), expected);
        let long = error_value(&ApiError::context_length(9000, 8192));
        assert_eq!(long["error"]["message"], "prompt is too long: 9000 tokens > 8192 maximum");
    }
}
