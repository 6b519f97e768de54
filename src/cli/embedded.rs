//! What a program that has this library within it takes of the command line: models opened as it opens them,
//! with its words for what is wrong.

use std::error::Error;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use super::placement::NoRoom;
use super::{CliError, inspect, model_arg, render_chat, serve, tensor_arg};
use crate::engine::EngineError;
use crate::gguf::{Gguf, GgufError, GgufErrorKind, TensorInfo};
use crate::model::{ForwardError, ModelError};
use crate::server::Local;
use crate::store::{OutOfMemory, StoreError};
use crate::text::TextError;
use crate::verify::{RowsError, VerifyError};

/// A server without a socket, of the one model that the arguments of `wayinfer serve` name; it is loaded.
/// Chat templates are run by the program `program`, which is WayInfer's own; it tells how it goes where
/// `verbose` is set.
///
/// # Errors
/// As [`CliError`] tells of them on the command line.
pub fn open(args: &[String], verbose: bool, program: PathBuf) -> Result<Local, CliError> {
    serve::local(args, verbose, render_chat::renderer(Some(program)))
}

/// The headers of a model that is named as on the command line.
///
/// # Errors
/// A file that cannot be opened, or is not sound.
pub fn headers(model: &Path) -> Result<Gguf, CliError> {
    model_arg::open(model_arg::source(model))
}

/// What `wayinfer inspect --json` prints, with the elements of the metadata's arrays where they are wanted.
///
/// # Errors
/// Where it cannot be written as JSON.
pub fn inspect(gguf: &Gguf, arrays: bool) -> Result<String, CliError> {
    inspect::as_json(gguf, arrays)
}

/// The tensor of this name.
///
/// # Errors
/// Where there is none.
pub fn tensor<'a>(gguf: &'a Gguf, name: &str) -> Result<&'a TensorInfo, CliError> {
    tensor_arg::find(gguf, name)
}

/// The user's folder for what can be computed again; none where there is no home.
pub fn cache_folder() -> Option<PathBuf> {
    Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("wayinfer"))
}

/// Of which kind a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Arguments that make no sense.
    Usage,
    /// A file that cannot be read or written, or is not sound.
    File,
    /// There is not the memory that is needed.
    OutOfMemory,
    /// Something that is sound and cannot be done here.
    Unsupported,
    /// It does not fit the context.
    ContextFull,
    /// Anything else.
    Other,
}

impl Kind {
    /// Of which kind a failure of a subcommand is.
    pub fn of(error: &CliError) -> Kind {
        if error.is_usage() { Kind::Usage } else { Kind::of_cause(error.cause()) }
    }

    /// Of which kind a layer's error is.
    pub fn of_cause(cause: &(dyn Error + 'static)) -> Kind {
        if cause.is::<OutOfMemory>() || cause.is::<NoRoom>() {
            Kind::OutOfMemory
        } else if cause.is::<std::io::Error>() {
            Kind::File
        } else if let Some(error) = cause.downcast_ref::<GgufError>() {
            let is_other = matches!(error.kind, GgufErrorKind::UnsupportedVersion(_));
            if is_other { Kind::Unsupported } else { Kind::File }
        } else if let Some(error) = cause.downcast_ref() {
            of_store(error)
        } else if let Some(error) = cause.downcast_ref() {
            of_model(error)
        } else if let Some(error) = cause.downcast_ref() {
            of_engine(error)
        } else if let Some(error) = cause.downcast_ref() {
            of_text(error)
        } else if let Some(error) = cause.downcast_ref::<RowsError>() {
            match error {
                RowsError::UnsupportedType { .. } => Kind::Unsupported,
                RowsError::Store(error) => of_store(error),
                _ => Kind::Usage,
            }
        } else if let Some(VerifyError::Engine(error)) = cause.downcast_ref() {
            of_engine(error)
        } else {
            Kind::Other
        }
    }
}

fn of_store(error: &StoreError) -> Kind {
    match error {
        StoreError::OutOfMemory(_) | StoreError::Shortage(_) => Kind::OutOfMemory,
        StoreError::Device(_) | StoreError::Threads(_) => Kind::Other,
        _ => Kind::File,
    }
}

fn of_model(error: &ModelError) -> Kind {
    match error {
        ModelError::OutOfMemory(_) => Kind::OutOfMemory,
        ModelError::Store(error) => of_store(error),
        ModelError::UnknownArchitecture { .. }
        | ModelError::UnsupportedKey { .. }
        | ModelError::UnsupportedType { .. }
        | ModelError::UnsupportedNextn { .. }
        | ModelError::UnknownTensor { .. } => Kind::Unsupported,
        _ => Kind::File,
    }
}

fn of_engine(error: &EngineError) -> Kind {
    match error {
        EngineError::OutOfMemory(_) | EngineError::Forward(ForwardError::OutOfMemory(_)) => Kind::OutOfMemory,
        EngineError::NoRoom { .. } => Kind::OutOfMemory,
        EngineError::Forward(ForwardError::Store(error)) => of_store(error),
        EngineError::Forward(ForwardError::TokenRange { .. }) => Kind::Usage,
        EngineError::Isa(_) | EngineError::Kv(_) => Kind::Unsupported,
        EngineError::ContextFull { .. } => Kind::ContextFull,
        EngineError::NoLogits => Kind::Usage,
        EngineError::Constraint(error) => of_text(error),
        _ => Kind::Other,
    }
}

fn of_text(error: &TextError) -> Kind {
    match error {
        TextError::UnsupportedModel { .. } | TextError::UnknownPreTokenizer { .. } => Kind::Unsupported,
        TextError::OutOfMemory { .. } => Kind::OutOfMemory,
        TextError::NoTokenForByte { .. }
        | TextError::TextTooLong { .. }
        | TextError::Grammar { .. }
        | TextError::GrammarTooLong { .. }
        | TextError::Message { .. }
        | TextError::Tool(_) => Kind::Usage,
        _ => Kind::File,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;
    use crate::engine::Scheduler;
    use crate::server::{Piece, Reply};

    #[test]
    fn failures_are_told_apart() {
        let of = |error: CliError| Kind::of(&error);
        assert_eq!(of(CliError::usage("a")), Kind::Usage);
        assert_eq!(of(CliError::new("a")), Kind::Other);
        assert_eq!(of(headers(Path::new("no such file.gguf")).expect_err("none")), Kind::File);
        let memory = || OutOfMemory { bytes: 1, what: "x" };
        assert_eq!(of(ModelError::from(memory()).into()), Kind::OutOfMemory);
        assert_eq!(of(EngineError::from(ForwardError::from(memory())).into()), Kind::OutOfMemory);
        assert_eq!(of(VerifyError::from(EngineError::NoLogits).into()), Kind::Usage);
        let full = EngineError::ContextFull { tokens: 2, past: 1, context: 2 };
        assert_eq!(of(full.into()), Kind::ContextFull);
    }

    /// Waits for the whole of a reply: its status and its body.
    fn whole(reply: &Reply) -> (u16, Vec<u8>) {
        let (mut head, mut body) = (0, Vec::new());
        loop {
            match reply.next_within(Duration::from_secs(60)) {
                Poll::Ready(Some(Piece::Head { status, .. })) => head = status,
                Poll::Ready(Some(Piece::Data(data))) => body.extend_from_slice(&data),
                Poll::Ready(None) => return (head, body),
                Poll::Pending => panic!("nothing comes"),
            }
        }
    }

    #[test]
    fn a_model_answers_without_a_socket() {
        let args = ["--model=demo", "--threads=1", "--ctx=64"].map(str::to_owned);
        let local = open(&args, false, PathBuf::new()).expect("the demo");
        let ask = |body: &str| whole(&local.ask("POST", "/v1/completions", body.into()).expect("a request"));
        let (status, body) = ask(r#"{"prompt": [1, 2], "max_tokens": 2, "temperature": 0}"#);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        assert_eq!(ask("{}").0, 400);
        assert!(local.ask("no method", "/", Vec::new()).is_none());
        let (sender, contexts) = channel();
        let work = move |scheduler: &mut Scheduler<'_>| {
            sender.send(scheduler.engine().context()).expect("somebody waits");
        };
        local.with_scheduler(Box::new(work)).expect("an engine");
        assert_eq!(contexts.recv(), Ok(64));
        let wanted = br#"{"max_tokens": 3, "stop": "x", "temperature": 0}"#;
        let continuation = local.continuation(wanted).expect("sound");
        assert_eq!((continuation.max_tokens, &continuation.stop[..]), (Some(3), &["x".to_owned()][..]));
        assert!(local.continuation(br#"{"temperature": -1}"#).is_err());
        // One that is left does not keep the end waiting.
        let endless = r#"{"prompt": [1], "stream": true}"#;
        drop(local.ask("POST", "/v1/completions", endless.into()));
        local.close();
        assert!(local.facts().is_err());
    }

    #[test]
    fn arguments_are_refused_in_the_command_lines_words() {
        let refused = |arg: &str| {
            let args = ["--model=demo".to_owned(), arg.to_owned()];
            open(&args, false, PathBuf::new()).err().expect("refused")
        };
        let error = refused("--ram=much");
        assert_eq!(Kind::of(&error), Kind::Usage);
        let message = error.message();
        assert!(message.starts_with("invalid value 'much' for '--ram <SIZE>'"), "{message}");
        assert!(!message.contains("--help"), "{message}");
        assert!(refused("--ram=12").message().contains("bytes run nothing"));
    }
}
