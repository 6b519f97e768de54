//! Bodies of requests, whatever is sent to whichever path: an answer or an error that says what is wrong, never one of
//! the server's own.
#![no_main]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use wayinfer::engine::{Engine, EngineOptions, SamplerConfig, SchedulerLimits};
use wayinfer::gguf::{Gguf, Source, StaticBytes};
use wayinfer::model::{KvType, Model};
use wayinfer::server::{
    Access, Config, Described, Facts, Listed, Local, Models, NotOpened, Opened, Piece, Template,
};
use wayinfer::store::Guesses;
use wayinfer::text::{ChatTemplate, Tokenizer};

/// Where bodies go; the first byte of an input says to which.
const PATHS: [&str; 11] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/show",
];

/// Short: with the sanitizer a token takes a tenth of a second.
const CONTEXT: usize = 96;
/// Calls of tools are those of Hermes.
const TEMPLATE: &str = "{% for t in tools or [] %}<tools>{{ t | tojson }}</tools>\n{% endfor %}\
    {% for m in messages %}{{ m.role }}: {{ m.content }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}\n\
    {% endfor %}assistant:";

fuzz_target!(|data: &[u8]| {
    let Some((&path, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(path) % PATHS.len()];
    let Some((status, reply)) = post(path, body.to_vec()) else { return };
    // 503: more answers are asked for than may wait.
    assert!(
        [200, 400, 404, 413, 501, 503].contains(&status),
        "{path}: {status}: {}",
        String::from_utf8_lossy(&reply)
    );
    let text = std::str::from_utf8(&reply).expect("UTF-8");
    if status != 200 {
        let error: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let message = error["error"]["message"].as_str().or(error["error"].as_str());
        assert!(message.is_some_and(|message| !message.is_empty()), "{path}: {text}");
    }
});

/// The status and the body that a body is answered with; none where the path is none.
fn post(path: &str, body: Vec<u8>) -> Option<(u16, Vec<u8>)> {
    let reply = server().ask("POST", path, body)?;
    let mut answer = (0, Vec::new());
    loop {
        match reply.next_within(Duration::from_secs(60)) {
            Poll::Ready(Some(Piece::Head { status, .. })) => answer.0 = status,
            Poll::Ready(Some(Piece::Data(more))) => answer.1.extend_from_slice(&more),
            Poll::Ready(None) => return Some(answer),
            Poll::Pending => panic!("{path}: no answer"),
        }
    }
}

fn server() -> &'static Local {
    static SERVER: OnceLock<Local> = OnceLock::new();
    SERVER.get_or_init(|| {
        let config = Config {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            access: Access::default(),
            queue: 4,
            any_name: true,
            drain: Duration::ZERO,
            render: Arc::new(|source, conversation| {
                let template = ChatTemplate::new(source).map_err(|error| error.to_string())?;
                template.render(conversation).map_err(|error| error.to_string())
            }),
        };
        Local::new(config, Arc::new(Tiny)).expect("threads")
    })
}

/// One model, in memory, whose vocabulary has every byte.
struct Tiny;

const FILE: &[u8] = include_bytes!("../../../fixtures/dense-q8_0.gguf");

fn not_opened(error: &dyn std::fmt::Display) -> NotOpened {
    NotOpened { why: error.to_string(), for_memory: false }
}

impl Models for Tiny {
    fn list(&self) -> Vec<Listed> {
        vec![Listed { name: "tiny".to_owned(), file_bytes: 0, created: 0 }]
    }

    fn describe(&self, _: &str) -> Result<Described, String> {
        Ok(Described::default())
    }

    fn bytes(&self, _: &str) -> u64 {
        0
    }

    fn budget(&self) -> u64 {
        u64::MAX
    }

    fn open(&self, name: &str, _: u64, run: &mut dyn FnMut(Opened<'_>)) -> Result<(), NotOpened> {
        let bytes: &'static [u8] = Vec::leak(FILE.to_vec());
        let gguf = Gguf::open(Source::Memory { name: "tiny", bytes: StaticBytes(bytes) })
            .map_err(|error| not_opened(&error))?;
        let model = Model::load(&gguf).map_err(|error| not_opened(&error))?;
        let tokenizer =
            Tokenizer::from_metadata(gguf.metadata(), None).map_err(|error| not_opened(&error))?;
        let (batch, kv) = (16, KvType::F16);
        let options = EngineOptions {
            context: CONTEXT,
            batch,
            kv,
            threads: 1.into(),
            isa: None,
            drafts: 0,
            guesses: Guesses::Off,
        };
        let engine = Engine::new(&model, &options).map_err(|error| not_opened(&error))?;
        let spec = model.spec();
        let facts = Facts {
            name: name.to_owned(),
            template: Some(Template::new(TEMPLATE.to_owned(), Vec::new())),
            grammars: OnceLock::new(),
            context: CONTEXT,
            trained_context: spec.context,
            vocab: spec.vocab,
            embd: spec.embd,
            ends: (0..spec.vocab as u32).filter(|&id| tokenizer.is_end_of_generation(id)).collect(),
            sampling: SamplerConfig::greedy(),
            drawing: SamplerConfig::greedy(),
            architecture: spec.architecture.clone(),
            parameters: 0,
            file_bytes: 0,
            quantization: "F32".to_owned(),
            created: 0,
            tokenizer,
        };
        let limits = SchedulerLimits { sequences: 4, chunk: 16, sequence_bytes: 1 << 20 };
        run(Opened { engine, cache: None, limits, facts });
        Ok(())
    }

    fn warn(&self, _: &str) {}
}
