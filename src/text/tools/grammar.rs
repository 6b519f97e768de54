//! A grammar for answers that have to be calls, in the Lark of llguidance.
//!
//! Control tokens stand in it by their ids (`<[7]>`), all else as text; user-defined tokens are text to the
//! grammar too. Arguments follow the tools' JSON schemas.

use std::fmt::Write;

use serde_json::{Map, Value as Json, json};

use super::Format;
use super::elements;
use super::formats::{Body, GEMMA_QUOTE, Head, Layout, Parameters, Typed};
use super::types::Kinds;
use crate::text::chat::{PAIRS, Splitter};
use crate::text::grammar::with_options;
use crate::text::{TextError, Tokenizer};

/// Schemas within schemas that Gemma's grammar follows.
const MAX_DEPTH: usize = 8;

/// Which tools an answer may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Any,
    Named(String),
}

impl Format {
    /// The grammar of an answer to this prompt that calls one of the tools, or several where `parallel` is
    /// set; reasoning may come first.
    ///
    /// # Errors
    /// No tools, a tool without a name, none of the name that is chosen, or parameters that are no object.
    pub fn grammar(
        self,
        tools: &[Json],
        choice: &Choice,
        parallel: bool,
        prompt: &str,
        tokenizer: &Tokenizer,
    ) -> Result<String, TextError> {
        let mut chosen = Vec::new();
        for tool in tools {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name").and_then(Json::as_str);
            let name = name.ok_or_else(|| TextError::Tool("a tool has no name".to_owned()))?;
            if matches!(choice, Choice::Any) || *choice == Choice::Named(name.to_owned()) {
                chosen.push((name, function.get("parameters").cloned().unwrap_or_else(|| json!({}))));
            }
        }
        if chosen.is_empty() {
            let what = match choice {
                Choice::Any => "there are no tools to call".to_owned(),
                Choice::Named(name) => format!("there is no tool {name:?} to call"),
            };
            return Err(TextError::Tool(what));
        }
        let mut writer = Writer { layout: self.0, tokenizer, rules: String::new(), count: 0 };
        let mut names = Vec::new();
        for (name, schema) in &chosen {
            names.push(writer.call(name, &object_schema(name, schema)?));
        }
        let call = writer.rule("call", &names.join(" | "));
        let calls = writer.calls(&call, parallel);
        let thought = writer.thought(prompt);
        Ok(format!("start: {thought}{calls}\n{}", writer.rules))
    }
}

/// The grammar of an answer to this prompt that is JSON of a schema once reasoning, which comes first, is
/// over;
/// `None` where the model cannot reason, so that the answer is JSON from its beginning.
pub fn json_after_thought(
    format: Option<Format>,
    schema: &Json,
    prompt: &str,
    tokenizer: &Tokenizer,
) -> Option<String> {
    let layout = format.or_else(|| Format::named("hermes"))?.0;
    let mut writer = Writer { layout, tokenizer, rules: String::new(), count: 0 };
    let mut thought = writer.thought(prompt);
    if thought.is_empty() {
        return None;
    }
    if matches!(layout.head, Head::Header) {
        thought += &writer.text("<|channel|>final<|message|>");
    }
    let any = schema.as_object().is_some_and(Map::is_empty);
    let json = writer.json(&if any { json!({ "type": "object" }) } else { schema.clone() });
    Some(format!("start: {thought} {json}\n{}", writer.rules))
}

/// A schema of an object. One that may be null as well is an object here.
///
/// # Errors
/// Where a tool wants something else.
fn object_schema(name: &str, schema: &Json) -> Result<Json, TextError> {
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    let object = Json::from("object");
    match schema.get("type") {
        Some(ty @ Json::String(_)) if *ty == object => {}
        Some(Json::Array(all)) if all.contains(&object) => {}
        None => {}
        Some(other) => {
            let what = format!("the parameters of {name:?} are of the type {other}: an object is needed");
            return Err(TextError::Tool(what));
        }
    }
    schema.insert("type".to_owned(), object);
    Ok(schema.into())
}

struct Writer<'t> {
    layout: &'static Layout,
    tokenizer: &'t Tokenizer,
    rules: String,
    count: usize,
}

impl Writer<'_> {
    /// Another rule, by a name of its own.
    fn rule(&mut self, name: &str, body: &str) -> String {
        let name = format!("{name}_{}", self.count);
        self.count += 1;
        let _ = writeln!(self.rules, "{name}: {body}");
        name
    }

    /// A text with the control tokens in it.
    fn text(&self, text: &str) -> String {
        let item = |part| match part {
            TextPart::Token(id) => format!("<[{id}]>"),
            TextPart::Text(text) => quoted(&text),
        };
        self.tokenizer.text_parts(text).into_iter().map(item).collect::<Vec<_>>().join(" ")
    }

    /// Any text and what ends it.
    fn until(&mut self, end: &str) -> String {
        let parts = self.tokenizer.text_parts(end);
        let (mut before, mut rest) = (String::new(), Vec::new());
        for part in parts {
            match part {
                TextPart::Text(text) if rest.is_empty() => before.push_str(&text),
                TextPart::Text(text) => rest.push(quoted(&text)),
                TextPart::Token(id) => rest.push(format!("<[{id}]>")),
            }
        }
        let regex = format!("/(?s:.*){}/", regex::escape(&before).replace('/', "\\/").replace('\n', "\\n"));
        if rest.is_empty() {
            // As short as can be: to the first end.
            let name = format!("until_{}", self.count);
            self.count += 1;
            let _ = writeln!(self.rules, "{name}[lazy]: {regex}");
            return name;
        }
        self.rule("until", &format!("{regex} {}", rest.join(" ")))
    }

    fn json(&mut self, schema: &Json) -> String {
        self.rule("json", &format!("%json {}", with_options(schema)))
    }

    /// One call or several, with what stands around them.
    fn calls(&mut self, call: &str, parallel: bool) -> String {
        let Layout { section, apart, call: [open, close], head, body, gap, .. } = self.layout;
        let several = |call: &str, between: &str| match (parallel, between.is_empty()) {
            (false, _) => call.to_owned(),
            (true, true) => format!("{call}+"),
            (true, false) => format!("{call} ({} {call})*", quoted(between)),
        };
        // Those of tags have lines of their own.
        let gap_within = if matches!(body, Body::Parameters(_) | Body::Elements(_)) { gap } else { "" };
        let begin = self.text(&format!("{}{gap_within}", section[0]));
        let end = self.text(section[1]);
        match head {
            // The answer ends with it.
            Head::Header => call.to_owned(),
            Head::Object { list: true, .. } => {
                let (begin, end) = (self.text(&format!("{open}[")), self.text(&format!("]{close}")));
                format!("{begin} {} {end}", several(call, ", "))
            }
            Head::Object { bare: true, .. } => several(call, "; "),
            Head::Python => format!("\"[\" {} \"]\"", several(call, ", ")),
            _ if section[0].is_empty() => several(call, gap),
            _ if *apart => {
                let call = self.rule("section", &format!("{begin} {call} {end}"));
                several(&call, gap)
            }
            _ => format!("{begin} {} {end}", several(call, if gap_within.is_empty() { gap } else { "" })),
        }
    }

    /// A call of a tool.
    fn call(&mut self, name: &str, schema: &Json) -> String {
        let Layout { call: [open, close], head, body, gap, .. } = self.layout;
        let text = match (head, body) {
            (Head::Object { bare, list, keys: [name_key, arguments_key] }, _) => {
                let arguments = self.json(schema);
                let begin = format!("{{\"{name_key}\": {}, \"{arguments_key}\": ", Json::from(name));
                match *bare || *list {
                    true => format!("{} {arguments} \"}}\"", quoted(&begin)),
                    false => {
                        let begin = self.text(&format!("{open}{gap}{begin}"));
                        format!("{begin} {arguments} {}", self.text(&format!("}}{gap}{close}")))
                    }
                }
            }
            (Head::Header, _) => {
                let arguments = self.json(schema);
                let begin = format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>");
                format!("{} {arguments}", self.text(&begin))
            }
            (Head::Python, _) => {
                let arguments = self.arguments(schema);
                format!("{} {arguments} \")\"", quoted(&format!("{name}(")))
            }
            (_, Body::Parameters(parameters)) => {
                let Head::Name { ends, .. } = head else { return String::new() };
                let begin = self.text(&format!("{open}{name}{}{gap}", ends.first().unwrap_or(&"")));
                let arguments = self.parameters(parameters, schema);
                // With the line's end, which could begin what comes next: tokens are told apart by their
                // longest.
                let gap = if self.layout.section[0].is_empty() { "" } else { gap };
                format!("{begin} {arguments} {}", self.text(&format!("{close}{gap}")))
            }
            (_, Body::Elements(mark)) => {
                let begin = self.text(&format!("{open}{name}\">"));
                let arguments = self.elements(mark, schema);
                format!("{begin} {arguments} {}", self.text(&format!("{close}{gap}")))
            }
            (_, Body::Dict) => {
                let dict = self.dict(schema, schema, 0);
                format!("{} {dict} {}", self.text(&format!("{open}{name}")), self.text(close))
            }
            (_, Body::Json([fence, fence_end])) => {
                let (prefix, end) = match head {
                    Head::Name { prefixes, ends, .. } => (prefixes.first(), ends.first()),
                    Head::Either { ends, .. } => (None, ends.first()),
                    _ => (None, None),
                };
                let prefix = prefix.unwrap_or(&"");
                let begin = self.text(&format!("{open}{prefix}{name}"));
                // Kimi numbers its calls.
                let number = if *prefix == "functions." { "\":\" /[0-9]+/" } else { "" };
                let lines = if fence.is_empty() { ["", ""] } else { ["\n", "\n"] };
                let before = format!("{}{}{fence}{}", end.unwrap_or(&""), lines[0], lines[1]);
                let before = self.text(&before);
                let after = self.text(&format!("{}{fence_end}{close}", lines[0]));
                let arguments = self.json(schema);
                format!("{begin} {number} {before} {arguments} {after}")
            }
            (_, Body::None) => String::new(),
        };
        self.rule("tool", &text)
    }

    /// Parameters one by one, in the schema's order.
    fn parameters(&mut self, layout: &Parameters, schema: &Json) -> String {
        let Parameters { key, key_ends, open, end, lines } = layout;
        let gap = self.layout.gap;
        let line = if *lines { "\n" } else { "" };
        let between = if open.is_empty() { "" } else { gap };
        let mut items = Vec::new();
        for (name, property) in properties(schema) {
            let kinds = Kinds::of_schema(property, schema);
            let wanted = if kinds.text { Typed::Text } else { Typed::Json };
            let told = key_ends.iter().find(|(_, typed)| *typed == wanted).or(key_ends.first());
            let key_end = told.map_or("", |(end, _)| end);
            let begin = self.text(&format!("{key}{name}{key_end}{between}{open}{line}"));
            let close = format!("{line}{end}");
            let value = self.value_until(property, schema, &close);
            let gap = if gap.is_empty() { String::new() } else { quoted(gap) };
            let rule = self.rule("parameter", &format!("{begin} {value} {gap}"));
            items.push(if is_required(schema, name) { rule } else { format!("{rule}?") });
        }
        items.join(" ")
    }

    /// A parameter's value and what ends it: a text, or JSON.
    fn value_until(&mut self, property: &Json, schema: &Json, close: &str) -> String {
        let kinds = Kinds::of_schema(property, schema);
        match texts_of(property) {
            Some(texts) if kinds.is_text() => {
                let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
                format!("({}) {}", texts.join(" | "), self.text(close))
            }
            _ if kinds.text => self.until(close),
            _ => {
                let json = self.json(&with_definitions(property, schema));
                format!("{json} {}", self.text(close))
            }
        }
    }

    /// Parameters as elements, in the schema's order. What is no text is JSON in them, so that it is of its
    /// schema to the last.
    fn elements(&mut self, mark: &str, schema: &Json) -> String {
        let mut items = Vec::new();
        for (name, property) in properties(schema) {
            let [open, close] = elements::tags(mark, name);
            let value = self.value_until(property, schema, &close);
            let rule = self.rule("element", &format!("{} {value}", self.text(&open)));
            items.push(if is_required(schema, name) { rule } else { format!("{rule}?") });
        }
        items.join(" ")
    }

    /// An object as Gemma writes it.
    fn dict(&mut self, schema: &Json, root: &Json, depth: usize) -> String {
        let properties: Vec<(String, Json)> =
            properties(schema).map(|(name, property)| (name.clone(), property.clone())).collect();
        if properties.is_empty() {
            return if depth == 0 { "\"{}\"".to_owned() } else { self.any_dict() };
        }
        let mut items = Vec::new();
        for (name, property) in &properties {
            let value = self.dict_value(property, root, depth + 1);
            items.push((is_required(schema, name), format!("{} {value}", quoted(&format!("{name}:")))));
        }
        format!("\"{{\" {} \"}}\"", self.separated(&items, ","))
    }

    /// Items in their order with a separator between them; those that are not required may be left out.
    fn separated(&mut self, items: &[(bool, String)], separator: &str) -> String {
        // `first`: from here on where nothing has come before; `more`: where something has.
        let (mut first, mut more) = (String::new(), String::new());
        let separator = quoted(separator);
        for (required, item) in items.iter().rev() {
            let item = self.rule("item", &format!("{item} {more}"));
            (first, more) = if *required {
                (item.clone(), format!("{separator} {item}"))
            } else {
                let or = |rest: &str, item: &str| match rest {
                    "" => format!("({item})?"),
                    rest => format!("({item} | {rest})"),
                };
                (or(&first, &item), or(&more, &format!("{separator} {item}")))
            };
            first = self.rule("first", &first);
            more = self.rule("more", &more);
        }
        first
    }

    /// Arguments of a call as Python writes them: JSON but for true and false alone.
    fn arguments(&mut self, schema: &Json) -> String {
        let mut items = Vec::new();
        for (name, property) in properties(schema) {
            let is_free = property.get("enum").is_none() && property.get("const").is_none();
            let value = match Kinds::of_schema(property, schema).is_boolean() && is_free {
                true => "(\"True\" | \"False\")".to_owned(),
                false => self.json(&with_definitions(property, schema)),
            };
            items.push((is_required(schema, name), format!("{} {value}", quoted(&format!("{name}=")))));
        }
        self.separated(&items, ", ")
    }

    fn dict_value(&mut self, schema: &Json, root: &Json, depth: usize) -> String {
        let kinds = Kinds::of_schema(schema, root);
        if kinds == Kinds::ALL || depth > MAX_DEPTH {
            return self.any_value();
        }
        let mut alternatives = Vec::new();
        if kinds.text {
            alternatives.push(match texts_of(schema) {
                Some(texts) => {
                    let text = |text: &String| self.text(&format!("{GEMMA_QUOTE}{text}{GEMMA_QUOTE}"));
                    format!("({})", texts.iter().map(text).collect::<Vec<_>>().join(" | "))
                }
                None => self.any_text(),
            });
        }
        let plain = [(kinds.number, NUMBER), (kinds.boolean, BOOLEAN), (kinds.null, "\"null\"")];
        alternatives.extend(plain.iter().filter(|(allowed, _)| *allowed).map(|(_, text)| (*text).to_owned()));
        if kinds.array {
            let item = match schema.get("items") {
                Some(items) => self.dict_value(items, root, depth + 1),
                None => self.any_value(),
            };
            alternatives.push(format!("\"[\" ({item} (\",\" {item})*)? \"]\""));
        }
        if kinds.object {
            alternatives.push(self.dict(schema, root, depth));
        }
        self.rule("value", &alternatives.join(" | "))
    }

    fn any_text(&mut self) -> String {
        let rest = self.until(GEMMA_QUOTE);
        format!("{} {rest}", self.text(GEMMA_QUOTE))
    }

    /// Any value of Gemma's, by rules that know each other.
    fn any_value(&mut self) -> String {
        if !self.rules.contains("\nany_value: ") {
            let text = self.any_text();
            let _ = writeln!(
                self.rules,
                "\nany_value: {text} | {NUMBER} | {BOOLEAN} | \"null\" | any_dict | any_list\n\
                 any_list: \"[\" (any_value (\",\" any_value)*)? \"]\"\n\
                 any_dict: \"{{\" (any_item (\",\" any_item)*)? \"}}\"\n\
                 any_item: /[A-Za-z_][A-Za-z0-9_.-]*/ \":\" any_value"
            );
        }
        "any_value".to_owned()
    }

    fn any_dict(&mut self) -> String {
        self.any_value();
        "any_dict".to_owned()
    }

    /// What may come before the calls.
    fn thought(&mut self, prompt: &str) -> String {
        if matches!(self.layout.head, Head::Header) {
            let begin = self.text("<|channel|>analysis<|message|>");
            let end = self.until("<|end|>");
            let rule = self.rule("thought", &format!("{begin} {end} {}", self.text("<|start|>assistant")));
            return format!("{rule}? ");
        }
        let blank = "/[ \\n]+/?";
        if let Some(close) = Splitter::after(prompt).close() {
            let thought = self.until(close);
            return format!("{thought} {blank} ");
        }
        let pair = PAIRS.iter().find(|[open, _]| self.tokenizer.id_of(open).is_some());
        let Some([open, close]) = pair else { return String::new() };
        let rest = self.until(close);
        let rule = self.rule("thought", &format!("{} {rest} {blank}", self.text(open)));
        format!("{rule}? ")
    }
}

const NUMBER: &str = "/-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]+)?/";
const BOOLEAN: &str = "\"true\" | \"false\"";

/// A part of a text: a control token, or text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextPart {
    Token(u32),
    Text(String),
}

/// A text in Lark.
fn quoted(text: &str) -> String {
    Json::from(text).to_string()
}

fn properties(schema: &Json) -> impl Iterator<Item = (&String, &Json)> {
    schema.get("properties").and_then(Json::as_object).into_iter().flatten()
}

fn is_required(schema: &Json, name: &str) -> bool {
    let required = schema.get("required").and_then(Json::as_array);
    required.is_some_and(|required| required.iter().any(|required| required == name))
}

/// The texts that a schema lists, where it lists texts alone.
fn texts_of(schema: &Json) -> Option<Vec<String>> {
    let values = schema.get("enum")?.as_array()?;
    values.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

/// A part of a schema with what its references point to.
fn with_definitions(schema: &Json, root: &Json) -> Json {
    let mut schema = schema.clone();
    for key in ["$defs", "definitions"] {
        if let (Some(fields), Some(definitions)) = (schema.as_object_mut(), root.get(key)) {
            fields.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    schema
}
