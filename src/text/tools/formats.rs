//! The formats in which models write calls of tools: a row each.
//!
//! Where they come from: the models' own chat templates and documentation.

use super::types::Kinds;

/// How calls are written. White space between marks is free.
#[derive(Debug)]
pub struct Layout {
    pub name: &'static str,
    /// A template that has all texts of one of these lists is of this format; the first row that fits counts.
    pub signs: &'static [&'static [&'static str]],
    /// Around one or several calls; empty: nothing. Models leave it out at times.
    pub section: [&'static str; 2],
    /// Whether each call gets a section of its own.
    pub apart: bool,
    /// Whether models begin calls while they think, without an end to their reasoning.
    pub ends_thought: bool,
    /// Around a call; empty: nothing.
    pub call: [&'static str; 2],
    pub head: Head,
    pub body: Body,
    /// What models write between marks, where white space is free.
    pub gap: &'static str,
}

/// What a call begins with.
#[derive(Debug)]
pub enum Head {
    /// An object with name and arguments, under these keys, or a list of such; `list`: always a list.
    /// `bare`: an answer may begin with one, with nothing before it.
    Object { keys: [&'static str; 2], list: bool, bare: bool },
    /// A name, until one of these texts; `stops` belong to what follows.
    Name { prefixes: &'static [&'static str], ends: &'static [&'static str], stops: &'static [&'static str] },
    /// Either: lists of objects were written once, names are today.
    Either { ends: &'static [&'static str], stops: &'static [&'static str] },
    /// The name is told by the header of a part of the answer.
    Header,
    /// A list of calls as Python writes them, with which an answer may begin; with marks around it also a
    /// call alone.
    Python,
}

/// What follows the name.
#[derive(Debug)]
pub enum Body {
    /// Nothing: the object has said all.
    None,
    /// An object, perhaps with marks around it.
    Json([&'static str; 2]),
    Parameters(Parameters),
    /// As JSON, but for bare keys and texts within `<|"|>`.
    Dict,
    /// Elements by the parameters' names, this before each of their tags.
    Elements(&'static str),
}

/// Arguments one by one.
#[derive(Debug)]
pub struct Parameters {
    /// What begins a parameter's name.
    pub key: &'static str,
    /// What ends it, and what that says of the value.
    pub key_ends: &'static [(&'static str, Typed)],
    /// What stands between name and value.
    pub open: &'static str,
    /// What ends the value.
    pub end: &'static str,
    /// Whether a value stands on lines of its own.
    pub lines: bool,
}

/// What says whether a value is a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    Schema,
    Text,
    Json,
}

impl Typed {
    /// The kinds that the value may be of.
    pub fn kinds(self, schema: Kinds) -> Kinds {
        match self {
            Typed::Schema => schema,
            Typed::Text => Kinds::TEXT,
            Typed::Json => Kinds { text: false, ..Kinds::ALL },
        }
    }
}

/// What begins and ends a text of Gemma's.
pub const GEMMA_QUOTE: &str = "<|\"|>";

/// Marks of templates for what is never part of an answer: nobody's text may be taken for them.
pub const PROMPT_MARKS: &[&str] =
    &["<tool_response>", "</tool_response>", "<tools>", "</tools>", "<tool_result>", "</tool_result>"];

const QWEN_PARAMETERS: Parameters = Parameters {
    key: "<parameter=",
    key_ends: &[(">", Typed::Schema)],
    open: "",
    end: "</parameter>",
    lines: true,
};

const DSML_PARAMETERS: Parameters = Parameters {
    key: "<｜DSML｜parameter name=\"",
    key_ends: &[("\" string=\"true\">", Typed::Text), ("\" string=\"false\">", Typed::Json)],
    open: "",
    end: "</｜DSML｜parameter>",
    lines: false,
};

/// A name within quotes of an attribute.
const QUOTED: Head = Head::Name { prefixes: &[], ends: &["\">"], stops: &[] };
/// A name within a tag.
const TAGGED: Head = Head::Name { prefixes: &[], ends: &[">"], stops: &[] };

pub const LAYOUTS: &[Layout] = &[
    Layout {
        name: "harmony",
        signs: &[&["<|channel|>", "to=functions."]],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["", ""],
        head: Head::Header,
        body: Body::Json(["", ""]),
        gap: "",
    },
    Layout {
        name: "gemma4",
        signs: &[&["<|tool_call>call:"]],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["<|tool_call>call:", "<tool_call|>"],
        head: Head::Name { prefixes: &[], ends: &[], stops: &["{"] },
        body: Body::Dict,
        gap: "",
    },
    Layout {
        name: "deepseek-v3.2",
        signs: &[&["DSML", "function_calls"]],
        section: ["<｜DSML｜function_calls>", "</｜DSML｜function_calls>"],
        apart: false,
        ends_thought: true,
        call: ["<｜DSML｜invoke name=\"", "</｜DSML｜invoke>"],
        head: QUOTED,
        body: Body::Parameters(DSML_PARAMETERS),
        gap: "\n",
    },
    Layout {
        name: "deepseek-v4",
        signs: &[&["DSML", "tool_calls"]],
        section: ["<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"],
        apart: false,
        ends_thought: true,
        call: ["<｜DSML｜invoke name=\"", "</｜DSML｜invoke>"],
        head: QUOTED,
        body: Body::Parameters(DSML_PARAMETERS),
        gap: "\n",
    },
    Layout {
        name: "deepseek-v3",
        signs: &[&["<｜tool▁calls▁begin｜>", "```json"]],
        section: ["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
        apart: false,
        ends_thought: false,
        call: ["<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"],
        head: Head::Name { prefixes: &["function<｜tool▁sep｜>"], ends: &[], stops: &["\n", "```json"] },
        body: Body::Json(["```json", "```"]),
        gap: "\n",
    },
    Layout {
        name: "deepseek-v3.1",
        signs: &[&["<｜tool▁calls▁begin｜>"]],
        section: ["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
        apart: false,
        ends_thought: false,
        call: ["<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"],
        head: Head::Name { prefixes: &[], ends: &["<｜tool▁sep｜>"], stops: &[] },
        body: Body::Json(["", ""]),
        gap: "",
    },
    Layout {
        name: "kimi-k2",
        signs: &[&["<|tool_calls_section_begin|>"]],
        section: ["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"],
        apart: false,
        ends_thought: true,
        call: ["<|tool_call_begin|>", "<|tool_call_end|>"],
        head: Head::Name { prefixes: &["functions."], ends: &["<|tool_call_argument_begin|>"], stops: &[] },
        body: Body::Json(["", ""]),
        gap: "",
    },
    Layout {
        name: "minimax-m3",
        signs: &[&["]<]minimax[>["]],
        section: ["]<]minimax[>[<tool_call>", "]<]minimax[>[</tool_call>"],
        apart: false,
        ends_thought: false,
        call: ["]<]minimax[>[<invoke name=\"", "]<]minimax[>[</invoke>"],
        head: QUOTED,
        body: Body::Elements("]<]minimax[>["),
        gap: "\n",
    },
    Layout {
        name: "minimax-m2",
        signs: &[&["<minimax:tool_call>", "<invoke"]],
        section: ["<minimax:tool_call>", "</minimax:tool_call>"],
        apart: false,
        ends_thought: false,
        call: ["<invoke name=\"", "</invoke>"],
        head: QUOTED,
        body: Body::Parameters(Parameters {
            key: "<parameter name=\"",
            key_ends: &[("\">", Typed::Schema)],
            open: "",
            end: "</parameter>",
            lines: false,
        }),
        gap: "\n",
    },
    Layout {
        name: "glm",
        signs: &[&["<arg_key>", "<tool_call>"]],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["<tool_call>", "</tool_call>"],
        head: Head::Name { prefixes: &[], ends: &[], stops: &["\n", "<arg_key>", "</tool_call>"] },
        body: Body::Parameters(Parameters {
            key: "<arg_key>",
            key_ends: &[("</arg_key>", Typed::Schema)],
            open: "<arg_value>",
            end: "</arg_value>",
            lines: false,
        }),
        gap: "\n",
    },
    Layout {
        name: "seed-oss",
        signs: &[&["<seed:tool_call>", "<function="]],
        section: ["<seed:tool_call>", "</seed:tool_call>"],
        apart: true,
        ends_thought: false,
        call: ["<function=", "</function>"],
        head: TAGGED,
        body: Body::Parameters(Parameters { lines: false, ..QWEN_PARAMETERS }),
        gap: "\n",
    },
    Layout {
        name: "qwen3-coder",
        signs: &[&["<tool_call>", "<function=", "<parameter="]],
        section: ["<tool_call>", "</tool_call>"],
        apart: true,
        ends_thought: true,
        call: ["<function=", "</function>"],
        head: TAGGED,
        body: Body::Parameters(QWEN_PARAMETERS),
        gap: "\n",
    },
    Layout {
        name: "mistral",
        signs: &[&["[TOOL_CALLS]"]],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["[TOOL_CALLS]", ""],
        head: Head::Either { ends: &["[ARGS]"], stops: &["{"] },
        body: Body::Json(["", ""]),
        gap: "",
    },
    Layout {
        name: "command",
        signs: &[&["<|START_ACTION|>"]],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["<|START_ACTION|>", "<|END_ACTION|>"],
        head: Head::Object { keys: ["tool_name", "parameters"], list: true, bare: false },
        body: Body::None,
        gap: "",
    },
    Layout {
        name: "granite",
        signs: &[&["<|tool_call|>"]],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["<|tool_call|>", ""],
        head: Head::Object { keys: ["name", "arguments"], list: true, bare: false },
        body: Body::None,
        gap: "",
    },
    // Llama 4's and Gemma 3's.
    Layout {
        name: "pythonic",
        signs: &[&["func_name1(params_name1"]],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["<|python_start|>", "<|python_end|>"],
        head: Head::Python,
        body: Body::None,
        gap: "",
    },
    Layout {
        name: "hermes",
        signs: &[&["<tool_call>"]],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["<tool_call>", "</tool_call>"],
        head: Head::Object { keys: ["name", "arguments"], list: false, bare: false },
        body: Body::None,
        gap: "\n",
    },
    Layout {
        name: "llama3",
        signs: &[
            &["<|python_tag|>"],
            &["<|start_header_id|>", "\"parameters\": "],
            &["<|start_header_id|>", "\\\"parameters\\\": "],
            // Llama 4's own.
            &["<|header_start|>", "\"parameters\": "],
        ],
        section: ["", ""],
        apart: false,
        ends_thought: false,
        call: ["<|python_tag|>", ""],
        head: Head::Object { keys: ["name", "parameters"], list: false, bare: true },
        body: Body::None,
        gap: "",
    },
];

impl Layout {
    /// All texts that the format writes around names and values.
    pub fn marks(&self) -> Vec<&'static str> {
        let mut marks: Vec<&str> = self.section.iter().chain(&self.call).copied().collect();
        match &self.head {
            Head::Name { prefixes, ends, stops } => marks.extend(prefixes.iter().chain(*ends).chain(*stops)),
            Head::Either { ends, stops } => marks.extend(ends.iter().chain(*stops)),
            Head::Object { .. } | Head::Header | Head::Python => {}
        }
        match &self.body {
            Body::Json(around) => marks.extend(around),
            Body::Parameters(parameters) => {
                marks.extend([parameters.key, parameters.open, parameters.end]);
                marks.extend(parameters.key_ends.iter().map(|(end, _)| end));
            }
            Body::Dict => marks.push(GEMMA_QUOTE),
            Body::Elements(mark) => marks.push(mark),
            Body::None => {}
        }
        marks.retain(|mark| mark.len() > 1);
        marks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is looked for at one place is told apart by its first differing character.
    #[test]
    fn no_mark_begins_another_of_its_place() {
        let check = |name: &str, texts: &[&str]| {
            let texts: Vec<&&str> = texts.iter().filter(|text| !text.is_empty()).collect();
            for (place, text) in texts.iter().enumerate() {
                let others = texts.iter().enumerate().filter(|(other, _)| *other != place);
                for (_, other) in others {
                    assert!(!other.starts_with(**text), "{name}: {text:?} and {other:?}");
                }
            }
        };
        for layout in LAYOUTS {
            check(layout.name, &[layout.section[0], layout.call[0]]);
            check(layout.name, &[layout.section[1], layout.call[0]]);
            if let Body::Parameters(parameters) = &layout.body {
                check(layout.name, &[parameters.key, layout.call[1]]);
                check(layout.name, &parameters.key_ends.iter().map(|end| end.0).collect::<Vec<_>>());
            }
            if let Head::Name { ends, stops, .. } | Head::Either { ends, stops } = &layout.head {
                check(layout.name, &[*ends, *stops].concat());
            }
            assert!(layout.section[0].is_empty() || !layout.call[0].is_empty(), "{}", layout.name);
            assert_eq!(LAYOUTS.iter().filter(|other| other.name == layout.name).count(), 1);
        }
    }
}
