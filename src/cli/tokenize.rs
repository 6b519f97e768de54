//! `wayinfer tokenize`: text to token ids and back.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use super::input::Input;
use super::model_arg::ModelArg;
use super::tokenizer_arg::TokenizerArg;
use super::{CliError, InFile, safe_text};
use crate::text::{EncodeOptions, Tokenizer};

/// Show how a model's tokenizer cuts a text into tokens, or turn token ids back into text
///
/// The text comes from one of --text, --file and --decode, or else from standard input. It is taken as it
/// is, a newline at its end included. Without --special no token is added and none is recognised in it.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    input: InputArgs,

    /// Print one array of ids (with --decode: the text as a string) on one line
    #[arg(long)]
    json: bool,

    /// Add BOS and EOS as the model wants them, and recognise special tokens in the text; with --decode,
    /// show them
    #[arg(long)]
    special: bool,

    #[command(flatten)]
    tokenizer: TokenizerArg,
}

#[derive(clap::Args, Debug)]
#[group(multiple = false)]
#[allow(rustdoc::broken_intra_doc_links)] // ids in brackets, in a help text
struct InputArgs {
    /// Text to tokenize
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    text: Option<String>,

    /// File whose bytes to tokenize, all of them
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Token ids to turn into text: "1 2 3", "1,2,3" or "[1,2,3]"
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    decode: Option<String>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Result<ExitCode, CliError> {
    // The arguments are looked at before the model is, which may take longer.
    let ids = args.input.decode.as_deref().map(parse_ids).transpose()?;
    if ids.is_none() {
        args.input.check()?;
    }
    let gguf = args.model.open()?;
    let tokenizer = args.tokenizer.tokenizer(&gguf)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    match ids {
        Some(ids) => print_text(&tokenizer, &ids, args, &mut out)?,
        None => print_tokens(&tokenizer, &args.input.read()?, args, &mut out)?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

impl InputArgs {
    /// Whether there is a text to come.
    fn check(&self) -> Result<(), CliError> {
        if self.text.is_none() && self.file.is_none() && io::stdin().is_terminal() {
            return Err(CliError::usage("no text to tokenize")
                .hint("give one of --text, --file and --decode, or pipe a text in"));
        }
        Ok(())
    }

    fn read(&self) -> Result<String, CliError> {
        match &self.text {
            Some(text) => Ok(text.clone()),
            None => Input::of(self.file.as_ref()).text(),
        }
    }
}

/// Ids separated by white space or commas, in brackets or not.
fn parse_ids(list: &str) -> Result<Vec<u32>, CliError> {
    let list = list.trim();
    let inner = list.strip_prefix('[').and_then(|l| l.strip_suffix(']')).unwrap_or(list);
    inner
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|id| !id.is_empty())
        .map(|id| {
            id.parse().map_err(|_| CliError::usage(format!("--decode: {id:?} is not the id of a token")))
        })
        .collect()
}

fn print_text(tokenizer: &Tokenizer, ids: &[u32], args: &Args, out: &mut impl Write) -> Result<(), CliError> {
    let tokens = tokenizer.vocab_len();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= tokens) {
        return Err(CliError::new(format!(
            "--decode: id {id} is not in the vocabulary of {tokens} tokens (the last is {})",
            tokens - 1
        )));
    }
    if args.json {
        safe_text::write_json(&tokenizer.decode(ids, args.special), out)?;
    } else if io::stdout().is_terminal() {
        write!(out, "{}", safe_text::escape_text(&tokenizer.decode(ids, args.special)))?;
    } else {
        out.write_all(&tokenizer.decode_bytes(ids, args.special))?;
    }
    Ok(())
}

fn print_tokens(
    tokenizer: &Tokenizer,
    text: &str,
    args: &Args,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let options = EncodeOptions { add_special: args.special, parse_special: args.special };
    let ids = tokenizer.encode(text, options).in_file(args.model.path())?;
    if args.json {
        safe_text::write_json(&ids, out)?;
        return Ok(());
    }
    for id in ids {
        writeln!(out, "{id}\t{}", safe_text::escape_bytes(tokenizer.piece(id, true).unwrap_or_default()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_in_every_form() {
        for list in ["1 2 3", "1,2,3", "[1,2,3]", " [1, 2,\n3] ", "1,\t2 3,"] {
            assert_eq!(parse_ids(list).unwrap(), [1, 2, 3], "{list}");
        }
        assert_eq!(parse_ids("[]").unwrap(), [0u32; 0]);
        for list in ["1 -2", "x", "[1", "4294967296", "1;2"] {
            assert!(parse_ids(list).is_err(), "{list}");
        }
    }
}
