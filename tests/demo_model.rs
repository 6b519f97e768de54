//! The demo model answers what it was never trained on, as ggml answers it, from one file and from three.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::runs::{Run, load, options};
use serde_json::Value;
use wayinfer::engine::EngineOptions;
use wayinfer::gguf::Gguf;
use wayinfer::model::{KvType, Logits, Model, NoObserver, Node, Observer};
use wayinfer::text::{ChatTemplate, Conversation, Message, Tokenizer};
use wayinfer::verify::TensorFile;

const QUESTIONS: usize = 500;
/// The share of the held-out questions that must be answered right. Measured: 0.962, as with ggml.
const RIGHT: f64 = 0.95;
/// Where ggml's first logit lies further above its second one, at every token of an answer, ours must be the
/// same. Measured: no answer differs at all; logits by 0.0473 at most (the goldens' 96 rows), the smallest
/// margins of answers by 0.240.
const MARGIN: f32 = 0.47;
/// The share of ggml's answers with such a margin. Measured: 0.974.
const JUDGED: f64 = 0.97;
/// Tokens of an answer at most; ggml was given as many.
const ANSWER: usize = 64;

fn root(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn json(file: &str) -> Value {
    let bytes = fs::read(root(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn rows(file: &str) -> Vec<Value> {
    json(file).as_array().expect("a list").clone()
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_else(|| panic!("{field} is a text"))
}

/// The demo, from any of its files.
struct Demo {
    model: Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Demo {
    fn open(file: &str) -> Demo {
        let gguf = Gguf::open(&root(file)).unwrap_or_else(|e| panic!("{e}"));
        let template = ChatTemplate::from_metadata(gguf.metadata()).expect("a sound template");
        Demo {
            model: load(&root(file)),
            tokenizer: Tokenizer::from_metadata(gguf.metadata(), None).expect("a tokenizer"),
            template: template.expect("a chat template"),
        }
    }

    fn run(&self) -> Run<'_> {
        Run::new(&self.model, &EngineOptions { kv: KvType::F32, ..options(128, 128) })
    }

    /// The ids of a conversation: said by user and assistant in turns, the user last.
    fn prompt(&self, said: &[&str]) -> Vec<u32> {
        let roles = ["user", "assistant"].iter().cycle();
        let messages: Vec<Message> = roles.zip(said).map(|(&role, &text)| Message::new(role, text)).collect();
        let conversation = Conversation::new(&messages, true, &self.tokenizer);
        let rendered = self.template.render_apart(&conversation, &self.tokenizer).expect("a rendering");
        self.tokenizer.encode_chat(&rendered).expect("ids")
    }

    /// The greedy answer to one question.
    fn answer(&self, run: &mut Run<'_>, question: &str) -> Answer {
        self.answer_observed(run, question, &mut NoObserver)
    }

    fn answer_observed(&self, run: &mut Run<'_>, question: &str, observer: &mut dyn Observer) -> Answer {
        let mut feed = |run: &mut Run<'_>, ids: &[u32]| {
            run.feed_observed(ids, Logits::Last, observer).expect("a pass");
        };
        run.sequence.rewind(0);
        feed(run, &self.prompt(&[question]));
        let mut answer = Answer { ids: Vec::new(), margin: f32::INFINITY, text: String::new() };
        while answer.ids.len() < ANSWER {
            let id = run.sequence.argmax().expect("finite logits");
            answer.margin = answer.margin.min(margin(run.logits(), id));
            if self.tokenizer.is_end_of_generation(id) {
                answer.text = self.tokenizer.decode(&answer.ids, false);
                return answer;
            }
            answer.ids.push(id);
            feed(run, &[id]);
        }
        panic!("{question}: no end after {ANSWER} tokens");
    }
}

struct Answer {
    ids: Vec<u32>,
    /// The smallest margin of its tokens, the one that ends it included.
    margin: f32,
    text: String,
}

/// How far the logit of `id`, the largest, lies above the others.
fn margin(logits: &[f32], id: u32) -> f32 {
    let others = logits.iter().enumerate().filter(|&(i, _)| i != id as usize).map(|(_, &logit)| logit);
    logits[id as usize] - others.fold(f32::NEG_INFINITY, f32::max)
}

/// The largest difference between our logits and ggml's, at its own greedy tokens after each prompt.
fn largest_logit_difference(demo: &Demo) -> f32 {
    let manifest = json("golden/manifest.json");
    let mut largest = 0f32;
    for golden in manifest["fixtures"]["demo-q4_k_m"]["goldens"].as_array().expect("goldens") {
        let golden = TensorFile::open(&root(text(golden, "file"))).unwrap_or_else(|e| panic!("{e}"));
        let prompt = golden.tensor::<i32>("prompt").unwrap_or_else(|e| panic!("{e}")).values;
        let ids: Vec<u32> = prompt.into_iter().map(|id| id as u32).collect();
        let want = golden.tensor::<f32>("greedy/logits").unwrap_or_else(|e| panic!("{e}")).values;
        let greedy = golden.tensor::<i32>("greedy/ids").unwrap_or_else(|e| panic!("{e}")).values;
        let mut run = demo.run();
        run.feed(&ids, Logits::Last).expect("a pass");
        for (want, id) in want.chunks_exact(demo.model.spec().vocab).zip(greedy) {
            let differences = run.logits().iter().zip(want).map(|(a, b)| (a - b).abs());
            largest = differences.fold(largest, f32::max);
            run.feed(&[id as u32], Logits::Last).expect("a step");
        }
    }
    largest
}

/// How answers to held-out questions compare.
#[derive(Default)]
struct Tally {
    right: usize,
    right_there: usize,
    /// ggml's answers whose margins exceed the bound: ours must be the same.
    judged: usize,
    /// Answers that differ from ggml's, and those that may not, a line each.
    differ: Vec<String>,
    wrong: Vec<String>,
    /// The largest difference of an answer's smallest margin, where the texts are the same.
    drift: f32,
}

/// Asks every `step`th question.
fn ask(demo: &Demo, observer: &mut dyn Observer, step: usize) -> Tally {
    let (questions, answers) = (rows("fixtures/demo-held-out.json"), rows("golden/demo-q4_k_m/answers.json"));
    assert_eq!((questions.len(), answers.len()), (QUESTIONS, QUESTIONS));
    let mut run = demo.run();
    let mut tally = Tally::default();
    for (row, theirs) in questions.iter().zip(&answers).step_by(step) {
        let (question, wanted) = (text(row, "question"), text(row, "answer"));
        let (there, margin) = (text(theirs, "text"), theirs["margin"].as_f64().expect("a margin") as f32);
        let ours = demo.answer_observed(&mut run, question, observer);
        tally.right += usize::from(ours.text == wanted);
        tally.right_there += usize::from(there == wanted);
        tally.judged += usize::from(margin > MARGIN);
        if ours.text == there {
            tally.drift = tally.drift.max((ours.margin - margin).abs());
            continue;
        }
        let line = format!("{question} {} ({}), ggml: {there} ({margin})", ours.text, ours.margin);
        if margin > MARGIN {
            tally.wrong.push(line.clone());
        }
        tally.differ.push(line);
    }
    tally
}

#[test]
fn held_out_questions_are_answered_right_and_as_ggml_does() {
    let demo = Demo::open("fixtures/demo-q4_k_m.gguf");
    let Tally { right, right_there, judged, differ, wrong, drift } = ask(&demo, &mut NoObserver, 1);
    let largest = largest_logit_difference(&demo);
    println!(
        "{right} of {QUESTIONS} right, ggml {right_there}; {} answers differ, {judged} have margins over {MARGIN}; \
         largest difference of a logit {largest}, of an answer's smallest margin {drift}",
        differ.len()
    );
    differ.iter().for_each(|line| println!("{line}"));
    assert!(right as f64 >= RIGHT * QUESTIONS as f64, "{right} of {QUESTIONS} are right");
    assert!(judged as f64 >= JUDGED * QUESTIONS as f64, "{judged} of ggml's margins are over {MARGIN}");
    assert!(wrong.is_empty(), "other answers than ggml's:\n{}", wrong.join("\n"));
    assert!(largest.max(drift) <= MARGIN, "a logit differs by {largest}, a margin by {drift}");
    let measured = largest.max(drift);
    assert!(MARGIN <= 10.0 * measured, "the bound is more than ten times the measured {measured}");
}

/// Canaries: experts of one layer that are a tenth too strong leave every text as it was, and the margins
/// tell; without these experts the texts tell as well.
#[test]
fn faults_in_one_layer_are_found() {
    struct Scaled(f32);
    impl Observer for Scaled {
        fn active(&self) -> bool {
            true
        }

        fn node(&mut self, node: &Node<'_>, values: &mut [f32]) {
            if node.id.name == "ffn_moe_down" && node.id.layer == Some(1) {
                values.iter_mut().for_each(|value| *value *= self.0);
            }
        }
    }
    let demo = Demo::open("fixtures/demo-q4_k_m.gguf");
    let faint = ask(&demo, &mut Scaled(1.1), 5);
    assert!(faint.wrong.is_empty() && faint.drift > MARGIN, "margins drift by {}", faint.drift);
    let gross = ask(&demo, &mut Scaled(0.0), 5);
    assert!(!gross.wrong.is_empty(), "{} texts differ", gross.differ.len());
}

#[test]
fn two_and_two_is_four() {
    let demo = Demo::open("fixtures/demo-q4_k_m.gguf");
    let answer = demo.answer(&mut demo.run(), "What is 2+2?");
    assert_eq!(answer.text, "The sum of 2 and 2 is 4.");
}

/// Our template and tokenizer make the ids that ggml's tokenizer made of the goldens' prompts.
#[test]
fn prompts_have_the_ids_of_the_goldens() {
    let demo = Demo::open("fixtures/demo-q4_k_m.gguf");
    let prompts = json("golden/demo-prompts.json");
    assert_eq!(serde_json::json!(demo.prompt(&["What is 2+2?"])), prompts["short"]);
    for (name, ids) in prompts.as_object().expect("names and ids") {
        let ids: Vec<u32> = serde_json::from_value(ids.clone()).expect("ids");
        let text = demo.tokenizer.decode(&ids, true);
        let turns =
            text.strip_prefix("<|bos|>").and_then(|t| t.strip_suffix("<|assistant|>")).expect("turns");
        let said: Vec<&str> =
            turns.split_terminator("<|end|>").filter_map(|turn| Some(turn.split_once("|>")?.1)).collect();
        assert!(!said.is_empty() && demo.prompt(&said) == ids, "{name}: {text}");
    }
}

#[test]
fn three_files_are_the_same_model() {
    let bits = |file: &str| -> Vec<u32> {
        let model = load(&root(file));
        let mut run = Run::new(&model, &options(64, 64));
        let ids: Vec<u32> = (3..40).collect();
        run.feed(&ids, Logits::All).expect("a pass");
        assert_eq!(run.logits().len(), ids.len() * model.spec().vocab);
        run.logits().iter().map(|logit| logit.to_bits()).collect()
    };
    let truth = bits("fixtures/moe-q4_k_m.gguf");
    for no in 1..=3 {
        assert!(bits(&format!("fixtures/moe-q4_k_m-{no:05}-of-00003.gguf")) == truth, "other logits");
    }
}
