//! What people say cannot become a control token: in a rendered chat their texts are told from the
//! template's.
//!
//! A control token's text that stands in a message is text. Once a template has put messages and its own
//! marks together nobody can tell who wrote which, so the messages are disguised before: each character
//! that some control token begins with becomes a noncharacter that stands for it (U+FDD1 to U+FDEF; those
//! that were in the text are left out, as Unicode has it for characters that are never interchanged). The
//! template may then cut, trim, join and escape the text as it likes: no control token begins in it. After
//! rendering, control tokens are looked for in the disguised text, and what lies between them is encoded
//! with the disguise off.
//!
//! A token may also begin in the template's words and go on in a message, as where a template writes `<`, a
//! name that it was given, and `>`. A text that could go on so gets U+FDD0 before it, which parts the two.

use serde_json::{Map, Value as Json};

use super::conversation::{Conversation, Message, REASONING};
use super::reasoning::{PAIRS, Splitter};
use crate::text::{TextError, Tokenizer};

/// Parts what must not be read together.
const BREAK: char = '\u{FDD0}';
/// They stand for characters, in the order of [`Disguise::opens`].
const STAND_INS: [char; 31] = {
    let mut chars = [BREAK; 31];
    let mut place = 0;
    while place < chars.len() {
        if let Some(c) = char::from_u32(BREAK as u32 + 1 + place as u32) {
            chars[place] = c;
        }
        place += 1;
    }
    chars
};

/// Bytes of the longest token whose inside is looked for.
const MAX_INSIDE: usize = 64;

/// Words that templates compare with: they stay as they are. Roles, types and keys of JSON schemas, kinds of
/// parts of messages.
const WORDS: &[&str] = &[
    "system",
    "user",
    "assistant",
    "tool",
    "developer",
    "function",
    "ipython",
    "observation",
    "type",
    "name",
    "id",
    "description",
    "parameters",
    "properties",
    "required",
    "items",
    "enum",
    "default",
    "title",
    "format",
    "arguments",
    "content",
    "object",
    "array",
    "string",
    "number",
    "integer",
    "boolean",
    "null",
    "text",
    "image",
    "image_url",
    "audio",
    "video",
    "tool_calls",
    "tool_call_id",
    "response",
    "output",
];

/// A rendered chat that still knows which texts are people's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    disguised: String,
    text: String,
}

impl Rendered {
    /// What a template made of a [disguised](Conversation::disguised) conversation.
    pub fn new(disguised: String, tokenizer: &Tokenizer) -> Rendered {
        let text = tokenizer.disguise().off(&disguised);
        Rendered { disguised, text }
    }

    /// The same with an answer that has begun: its thoughts, where the template has left reasoning open, and
    /// its text. Both are text, whatever they hold.
    pub fn with_answer(self, thoughts: &str, text: &str, tokenizer: &Tokenizer) -> Rendered {
        let disguise = tokenizer.disguise();
        let lead_in = Splitter::after(&self.text).lead_in(&disguise.on(thoughts, By::Other));
        Rendered::new(self.disguised + &lead_in + &disguise.on(text, By::Other), tokenizer)
    }

    /// The text as the model is to read it.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(in crate::text) fn disguised(&self) -> &str {
        &self.disguised
    }
}

/// How texts of a vocabulary's users are disguised.
#[derive(Debug, Default)]
pub struct Disguise {
    /// What control tokens begin with.
    opens: Vec<char>,
    /// What they end with.
    closes: Vec<char>,
    /// The control tokens without what they begin with, each with a NUL behind it.
    insides: String,
    /// User-defined tokens that mark parts of an answer.
    marks: Vec<String>,
}

/// Whose text it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The model's own: marks of parts of an answer, where they are no control tokens, stay.
    Model,
    /// A value that the template knows by name.
    Setting,
    /// Anybody's.
    Other,
}

impl Disguise {
    /// For a vocabulary with these control tokens, and these user-defined tokens that mark parts of an
    /// answer.
    pub fn new<'a>(control: impl Iterator<Item = &'a str>, marks: impl Iterator<Item = &'a str>) -> Disguise {
        let marks: Vec<String> = marks.map(str::to_owned).collect();
        // Those of one character first: nothing else keeps these apart.
        let mut tokens: Vec<&str> = control.filter(|token| !token.is_empty()).collect();
        tokens.extend(marks.iter().map(String::as_str));
        tokens.sort_by_key(|token| token.chars().count().min(2));
        let (mut opens, mut closes, mut insides) = (Vec::new(), Vec::new(), String::new());
        for token in &tokens {
            let open = token.chars().next().unwrap_or_default();
            if !opens.contains(&open) {
                opens.push(open);
            }
            let close = token.chars().next_back().unwrap_or_default();
            if !closes.contains(&close) {
                closes.push(close);
            }
            if token.len() <= MAX_INSIDE {
                insides.push_str(&token[open.len_utf8()..]);
                insides.push('\0');
            }
        }
        Disguise { opens, closes, insides, marks }
    }

    /// The text in disguise.
    fn on(&self, text: &str, by: By) -> String {
        let mut out = String::with_capacity(text.len() + 8);
        let blank = text.len() - text.trim_start().len();
        let apart = by != By::Setting && self.may_go_on(&text[blank..]);
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            if at == blank && apart {
                out.push(BREAK);
            }
            let own = match by {
                By::Model => self.marks.iter().find(|mark| text[at..].starts_with(mark.as_str())),
                By::Setting | By::Other => None,
            };
            if let Some(mark) = own {
                out.push_str(mark);
                at += mark.len();
                continue;
            }
            at += c.len_utf8();
            match self.opens.iter().position(|open| *open == c) {
                _ if is_disguise(c) => {}
                Some(place) => match STAND_INS.get(place) {
                    Some(stand_in) => out.push(*stand_in),
                    None => out.extend([c, BREAK]),
                },
                None => out.push(c),
            }
        }
        out
    }

    /// The text without its disguise.
    pub fn off(&self, text: &str) -> String {
        let clear = |c: char| match c {
            BREAK => None,
            c if is_disguise(c) => self.opens.get(c as usize - STAND_INS[0] as usize).copied(),
            c => Some(c),
        };
        text.chars().filter_map(clear).collect()
    }

    /// Whether a text could be the inside or the end of a control token that something else begins: the whole
    /// of it, or its start.
    fn may_go_on(&self, text: &str) -> bool {
        let whole = text.trim_end();
        if whole.is_empty() || WORDS.contains(&whole) {
            return false;
        }
        if whole.len() < MAX_INSIDE && self.insides.contains(whole) {
            return true;
        }
        let mut start = String::with_capacity(MAX_INSIDE + 1);
        text.chars().take(MAX_INSIDE).any(|c| {
            start.push(c);
            if !self.closes.contains(&c) {
                return false;
            }
            start.push('\0');
            let found = self.insides.contains(&start);
            start.pop();
            found
        })
    }

    /// A value whose texts, keys included, are in disguise.
    fn value(&self, value: &Json, by: By) -> Json {
        match value {
            Json::String(text) => Json::String(self.on(text, by)),
            Json::Array(items) => items.iter().map(|item| self.value(item, by)).collect(),
            Json::Object(fields) => {
                let field = |(key, value): (&String, &Json)| (self.on(key, By::Other), self.value(value, by));
                Json::Object(fields.iter().map(field).collect())
            }
            other => other.clone(),
        }
    }

    fn message(&self, message: &Map<String, Json>) -> Map<String, Json> {
        let role = message.get("role").and_then(Json::as_str).unwrap_or_default();
        let is_model = role == "assistant";
        let field = |(key, value): (&String, &Json)| {
            let by = if is_model && key == "content" { By::Model } else { By::Other };
            (key.clone(), self.value(value, by))
        };
        message.iter().map(field).collect()
    }
}

/// Whether it is one of the disguise's characters: writers of a template's values leave them as they are.
pub fn is_disguise(c: char) -> bool {
    (BREAK..=STAND_INS[30]).contains(&c)
}

impl Conversation {
    /// The conversation for a template of this source, so that no text of it becomes a control token:
    /// [`Rendered`] is what the template makes of it.
    pub fn disguised(&self, tokenizer: &Tokenizer, source: &str) -> Conversation {
        let disguise = tokenizer.disguise();
        let list = |list: &Option<Vec<Json>>| {
            list.as_ref().map(|list| list.iter().map(|value| disguise.value(value, By::Other)).collect())
        };
        let message = |message: &Message| {
            let message = reasoning_apart(&message.0, tokenizer, source);
            Message(disguise.message(&message))
        };
        let settings =
            self.settings.iter().map(|(key, value)| (key.clone(), disguise.value(value, By::Setting)));
        Conversation {
            messages: self.messages.iter().map(message).collect(),
            tools: list(&self.tools),
            documents: list(&self.documents),
            add_generation_prompt: self.add_generation_prompt,
            special_tokens: self.special_tokens.clone(),
            settings: settings.collect(),
        }
    }
}

impl super::ChatTemplate {
    /// As [`render`](Self::render), and no text of the conversation becomes a control token.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_apart(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
    ) -> Result<Rendered, TextError> {
        let template = self.render(&conversation.disguised(tokenizer, &self.source))?;
        Ok(Rendered::new(template, tokenizer))
    }
}

/// An answer with its reasoning in a field of its own, where the marks around reasoning are control tokens
/// and the template would look for them in the content: in disguise it does not find them there.
fn reasoning_apart(message: &Map<String, Json>, tokenizer: &Tokenizer, source: &str) -> Map<String, Json> {
    let mut message = message.clone();
    let told = REASONING.iter().any(|name| message.get(*name).is_some_and(|value| !value.is_null()));
    let content = match (message.get("role"), message.get("content")) {
        (Some(Json::String(role)), Some(Json::String(content))) if role == "assistant" && !told => content,
        _ => return message,
    };
    let is_control = |mark: &str| {
        let kind = tokenizer.id_of(mark).and_then(|id| tokenizer.token_kind(id));
        kind.is_some_and(crate::text::TokenKind::is_control)
    };
    let looks_for = |mark: &str| {
        source.contains("reasoning_content") && source.contains(mark)
            || source.contains(&format!("split('{mark}')"))
            || source.contains(&format!("split(\"{mark}\")"))
    };
    let pair = PAIRS.iter().find_map(|[open, close]| {
        let (thought, said) = content.trim_start().strip_prefix(open)?.split_once(close)?;
        (is_control(close) && looks_for(close)).then_some((thought, said))
    });
    let Some((thought, said)) = pair else { return message };
    let thought = thought.trim_matches('\n').to_owned();
    let said = said.trim_start_matches('\n').to_owned();
    message.insert("content".to_owned(), said.into());
    message.insert("reasoning_content".to_owned(), thought.into());
    message
}
