//! An answer as lines of JSON, and the one line that it is where it is not streamed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::answer::{Call, Delta, Done, Piece, Reason, Timings, TokenLogprobs};
use super::super::error::ApiError;
use super::super::openai::token_logprobs;
use super::super::stream::Writer;
use super::error_value;
use crate::text::Part;
use crate::text::tools::read_json;

/// Which of the two a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Text,
}

/// See the module.
pub struct Lines {
    kind: Kind,
    model: String,
    began: Instant,
    /// What loading the model took.
    load: Duration,
    /// A call whose arguments come.
    call: Option<Call>,
    whole: Said,
    /// Fields of the last line beside what is said.
    end: Value,
}

/// What is said in a line.
#[derive(Default)]
struct Said {
    text: String,
    thinking: String,
    calls: Vec<Value>,
    logprobs: Vec<TokenLogprobs>,
}

impl Lines {
    /// For an answer by the name that the client has for the model; its request came at `began`.
    pub fn new(kind: Kind, model: String, began: Instant, load: Duration) -> Lines {
        let (whole, end) = (Said::default(), Value::Null);
        Lines { kind, model, began, load, call: None, whole, end }
    }

    /// The only line where there is nothing to answer.
    pub fn loaded(self) -> String {
        self.line(&Said::default(), &json!({ "done": true, "done_reason": "load" }))
    }

    /// All in one line, once all has come.
    pub fn into_whole(self) -> String {
        self.line(&self.whole, &self.end)
    }

    fn line(&self, said: &Said, rest: &Value) -> String {
        let mut line = json!({ "model": self.model, "created_at": jiff::Timestamp::now().to_string() });
        let mut message = match self.kind {
            Kind::Chat => json!({ "role": "assistant", "content": said.text }),
            Kind::Text => json!({ "response": said.text }),
        };
        if !said.thinking.is_empty() {
            message["thinking"] = said.thinking.clone().into();
        }
        if !said.calls.is_empty() {
            message["tool_calls"] = said.calls.clone().into();
        }
        let mut add = |fields: &Value| {
            for (name, value) in fields.as_object().into_iter().flatten() {
                line[name] = value.clone();
            }
        };
        match self.kind {
            Kind::Chat => add(&json!({ "message": message })),
            Kind::Text => add(&message),
        }
        if !said.logprobs.is_empty() {
            add(&json!({ "logprobs": token_logprobs(&said.logprobs) }));
        }
        add(rest);
        format!("{line}\n")
    }

    fn say(&mut self, said: Said) -> String {
        let line = self.line(&said, &json!({ "done": false }));
        self.whole.text += &said.text;
        self.whole.thinking += &said.thinking;
        self.whole.calls.extend(said.calls);
        self.whole.logprobs.extend(said.logprobs);
        line
    }

    /// A call that has come whole. One that was cut off within its arguments must not be carried out.
    fn end_call(&mut self) -> String {
        let Some(Call { id, name, arguments }) = self.call.take() else { return String::new() };
        let text = if arguments.is_empty() { "{}" } else { &arguments };
        let Ok(arguments @ Value::Object(_)) = read_json(text) else { return String::new() };
        let function = json!({ "index": self.whole.calls.len(), "name": name, "arguments": arguments });
        self.say(Said { calls: vec![json!({ "id": id, "function": function })], ..Said::default() })
    }

    fn ended(&self, done: &Done, timings: &Timings) -> Value {
        let reason = match done.reason {
            Reason::Stop | Reason::ToolCalls => "stop",
            Reason::Length => "length",
        };
        json!({
            "done": true,
            "done_reason": reason,
            "total_duration": nanoseconds(self.began.elapsed()),
            "load_duration": nanoseconds(self.load),
            "prompt_eval_count": done.usage.prompt,
            "prompt_eval_duration": nanoseconds(timings.first.unwrap_or_default()),
            "eval_count": done.usage.made,
            "eval_duration": nanoseconds(timings.rest),
        })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap_or(u64::MAX)
}

impl Writer for Lines {
    fn begin(&mut self) -> String {
        String::new()
    }

    fn still(&mut self) -> String {
        self.line(&Said::default(), &json!({ "done": false }))
    }

    fn delta(&mut self, delta: Delta, timings: &Timings) -> String {
        match delta {
            Delta::Prefill { .. } | Delta::Read(_) => String::new(),
            Delta::Text(part, Piece { text, logprobs }) => {
                let ended = self.end_call();
                let said = Said { logprobs, ..Said::default() };
                ended
                    + &self.say(match part {
                        Part::Answer => Said { text, ..said },
                        Part::Reasoning => Said { thinking: text, ..said },
                    })
            }
            Delta::Call { id, name, .. } => {
                let ended = self.end_call();
                self.call = Some(Call { id, name, arguments: String::new() });
                ended
            }
            Delta::Arguments { delta, .. } => {
                if let Some(call) = &mut self.call {
                    call.arguments += &delta;
                }
                String::new()
            }
            Delta::Done(done) => {
                let ended = self.end_call();
                self.end = self.ended(&done, timings);
                ended + &self.line(&Said::default(), &self.end)
            }
        }
    }

    fn error(&mut self, error: &ApiError) -> String {
        format!("{}\n", error_value(error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::error::ErrorKind;
    use super::*;
    use crate::engine::Usage;

    fn text(part: Part, text: &str) -> Delta {
        Delta::Text(part, Piece { text: text.to_owned(), logprobs: Vec::new() })
    }

    fn done(reason: Reason) -> Delta {
        Delta::Done(Done { reason, stop: None, usage: Usage { prompt: 9, cached: 4, made: 3 } })
    }

    /// All lines of an answer, and the one that it is.
    fn lines(kind: Kind, deltas: Vec<Delta>) -> (Vec<Value>, Value) {
        let timings =
            Timings { first: Some(Duration::from_nanos(5)), rest: Duration::from_nanos(7), tokens: 3 };
        let mut writer = Lines::new(kind, "m".to_owned(), Instant::now(), Duration::from_nanos(2));
        let mut all = writer.begin();
        for delta in deltas {
            all += &writer.delta(delta, &timings);
        }
        let read = |line: &str| serde_json::from_str(line).expect("JSON");
        (all.lines().map(read).collect(), read(&writer.into_whole()))
    }

    #[test]
    fn a_chat_in_lines_and_whole() {
        let (lines, whole) = lines(
            Kind::Chat,
            vec![
                Delta::Prefill { done: 1, of: 9 },
                text(Part::Reasoning, "hm"),
                text(Part::Answer, "So"),
                Delta::Call { index: 0, id: "c0".into(), name: "f".into() },
                Delta::Arguments { index: 0, delta: "{\"a\":".into() },
                Delta::Arguments { index: 0, delta: "1}".into() },
                Delta::Call { index: 1, id: "c1".into(), name: "g".into() },
                done(Reason::ToolCalls),
            ],
        );
        let messages: Vec<&Value> = lines.iter().map(|line| &line["message"]).collect();
        assert_eq!(*messages[0], json!({ "role": "assistant", "content": "", "thinking": "hm" }));
        assert_eq!(*messages[1], json!({ "role": "assistant", "content": "So" }));
        let call = json!({ "id": "c0", "function": { "index": 0, "name": "f", "arguments": { "a": 1 } } });
        assert_eq!(messages[2]["tool_calls"], json!([call]));
        assert_eq!(messages[3]["tool_calls"][0]["function"]["arguments"], json!({}));
        assert_eq!(lines.len(), 5);
        assert!(lines[..4].iter().all(|line| line["done"] == false && line["model"] == "m"));
        let last = &lines[4];
        assert_eq!((&last["done"], &last["done_reason"]), (&true.into(), &"stop".into()));
        assert_eq!(last["message"], json!({ "role": "assistant", "content": "" }));
        let counts =
            ["prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration", "load_duration"];
        assert_eq!(counts.map(|name| last[name].as_u64().unwrap()), [9, 5, 3, 7, 2]);
        assert!(last["total_duration"].as_u64().is_some());
        assert_eq!(whole["message"]["content"], "So");
        assert_eq!(whole["message"]["thinking"], "hm");
        assert_eq!(whole["message"]["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(whole["eval_count"], 3);
    }

    #[test]
    fn a_text_in_lines_and_whole() {
        let (lines, whole) =
            lines(Kind::Text, vec![text(Part::Answer, "a"), text(Part::Answer, "b"), done(Reason::Length)]);
        let said: Vec<&str> = lines.iter().map(|line| line["response"].as_str().unwrap()).collect();
        assert_eq!(said, ["a", "b", ""]);
        assert_eq!((&whole["response"], &whole["done_reason"]), (&"ab".into(), &"length".into()));
        assert!(whole["created_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }

    #[test]
    fn a_call_that_was_cut_off_is_not_given() {
        let call = Delta::Call { index: 0, id: "c".into(), name: "f".into() };
        let arguments = Delta::Arguments { index: 0, delta: "{\"a".into() };
        let (lines, whole) = lines(Kind::Chat, vec![call, arguments, done(Reason::Length)]);
        assert_eq!(lines.len(), 1);
        assert_eq!(whole["message"].get("tool_calls"), None);
    }

    #[test]
    fn signs_of_life_errors_and_loads() {
        let mut writer = Lines::new(Kind::Chat, "m".to_owned(), Instant::now(), Duration::ZERO);
        let still: Value = serde_json::from_str(&writer.still()).unwrap();
        assert_eq!((&still["message"]["content"], &still["done"]), (&"".into(), &false.into()));
        let error = writer.error(&ApiError::new(ErrorKind::Internal, "broken"));
        assert_eq!(error, "{\"error\":\"broken\"}\n");
        let loaded: Value = serde_json::from_str(&writer.loaded()).unwrap();
        assert_eq!((&loaded["done"], &loaded["done_reason"]), (&true.into(), &"load".into()));
    }
}
