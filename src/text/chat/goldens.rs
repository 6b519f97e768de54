//! Templates against transformers: the goldens of `golden/text/`, made by `scripts/text/templates.py`.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Map, Value as Json};

use super::{ChatTemplate, Conversation};
use crate::quant::testing::say;
use crate::text::TextError;

/// More goldens than those of the repository, made by the script of other templates.
const MORE_TEMPLATES: &str = "WAYINFER_TEMPLATES";

/// The moment at which the script renders.
fn now() -> Timestamp {
    "2024-02-29T13:04:05Z".parse().expect("a time")
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/text")
}

fn read(path: &Path) -> Json {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A list, or none.
fn list(value: &Json) -> Option<Vec<Json>> {
    value.as_array().cloned()
}

/// The conversation of a case, as the script gives it to transformers.
fn conversation(all: &Json, case: &Json) -> Conversation {
    let told = &all["conversations"][case["conversation"].as_str().expect("a name")];
    let mut settings = case["settings"].as_object().expect("settings").clone();
    let add_generation_prompt = settings.remove("add_generation_prompt").is_some_and(|value| value == true);
    Conversation {
        messages: serde_json::from_value(told["messages"].clone()).expect("messages"),
        tools: list(&told["tools"]),
        documents: list(&told["documents"]),
        add_generation_prompt,
        special_tokens: all["special_tokens"].as_object().expect("tokens").clone(),
        settings,
    }
}

/// What is wrong with a case.
fn problem(outcome: Result<String, TextError>, case: &Json) -> Option<String> {
    match (outcome, case["rendered"].as_str(), case["raised"].as_str()) {
        (Ok(text), Some(wanted), _) if text == wanted => None,
        (Err(TextError::Template(message)), None, Some(raised)) if message.contains(raised) => None,
        (outcome, rendered, raised) => {
            Some(format!("{outcome:?}\n  not {:?}", rendered.or(raised).expect("an outcome")))
        }
    }
}

/// All that differs in the goldens of a folder, and how many cases there are.
fn problems(folder: &Path) -> (Vec<String>, usize) {
    let all = read(&folder.join("conversations.json"));
    let (mut problems, mut cases) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let golden = read(&path);
        let Some(source) = golden["source"].as_str() else { continue };
        let template = ChatTemplate::with_clock(source, now);
        for case in golden["cases"].as_array().expect("cases") {
            let outcome = match &template {
                Ok(template) => template.render(&conversation(&all, case)),
                Err(error) => Err(TextError::Template(error.to_string())),
            };
            let found = problem(outcome, case);
            let name = path.file_stem().unwrap_or_default().display();
            problems.extend(
                found.map(|found| {
                    format!("{name}, {}, {}:\n  {found}", case["conversation"], case["settings"])
                }),
            );
            cases += 1;
        }
    }
    (problems, cases)
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let (found, cases) = problems(&folder());
    assert!(found.is_empty(), "{} of {cases}\n{}", found.len(), found.join("\n"));
    assert!(cases > 500, "only {cases} cases");
}

#[test]
fn more_templates_render_as_transformers_renders_them() {
    let Some(folder) = std::env::var_os(MORE_TEMPLATES) else {
        say(format!("skipped: {MORE_TEMPLATES} does not name a folder of scripts/text/templates.py"));
        return;
    };
    let (found, cases) = problems(Path::new(&folder));
    assert!(found.is_empty(), "{} of {cases}\n{}", found.len(), found.join("\n"));
    assert!(cases > 0, "no templates in {folder:?}");
}

#[test]
fn expressions_have_their_values_in_python() {
    let golden = read(&folder().join("python.json"));
    let settings = golden["context"].as_object().expect("values");
    let mut found = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let source = case["source"].as_str().expect("a source");
        let conversation = Conversation {
            messages: Vec::new(),
            tools: None,
            documents: None,
            add_generation_prompt: false,
            special_tokens: Map::new(),
            settings: settings.clone(),
        };
        let outcome =
            ChatTemplate::with_clock(source, now).and_then(|template| template.render(&conversation));
        found.extend(problem(outcome, case).map(|problem| format!("{source:?}: {problem}")));
    }
    assert!(found.is_empty(), "{}\n{}", found.len(), found.join("\n"));
}

/// Canary: a template that is not the golden's, and a text that is not its, are found.
#[test]
fn another_text_is_found() {
    let all = read(&folder().join("conversations.json"));
    let golden = read(&folder().join("qwen3.json"));
    let source = golden["source"].as_str().expect("a source").replace("'<|im_start|>'", "'<|im_begin|>'");
    let template = ChatTemplate::with_clock(&source, now).expect("a template");
    let cases = golden["cases"].as_array().expect("cases");
    let wrong =
        cases.iter().filter(|case| problem(template.render(&conversation(&all, case)), case).is_some());
    assert!(wrong.count() > cases.len() / 2);
    let raised = serde_json::json!({"raised": "no system message"});
    assert!(problem(Ok(String::new()), &raised).is_some());
    assert!(problem(Err(TextError::Template("no user message".into())), &raised).is_some());
}
