//! Greedy continuations of a list of prompts, to compare another program's with.

use std::path::PathBuf;

use serde::Serialize;

use crate::capture::argmax;
use crate::error::{Error, Result, read_json, refuse, write};
use crate::ffi::{Batch, Context, ContextOptions, Flash, KvType, Model, ModelOptions, Mtp, require_portable};

/// Which prompts, and how they are answered.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model file
    #[arg(short, long)]
    model: PathBuf,
    /// A JSON list of texts, a chat template already applied: special tokens written out are parsed
    #[arg(long)]
    prompts: PathBuf,
    /// The JSON file to write: a list of objects with prompt, prompt_ids, text, ids, margins, ended
    #[arg(long)]
    out: PathBuf,
    /// Tokens at most, the one that ends the text not counted
    #[arg(short = 'n', long, default_value_t = 64)]
    max_tokens: usize,
    /// Let the model put what it begins texts with before each prompt
    #[arg(long)]
    special: bool,
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
    /// Type of the KV cache
    #[arg(long, default_value = "f32")]
    kv: KvType,
}

/// One answer. `ids` leaves out the token that ended the text.
#[derive(Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    prompt_ids: Vec<i32>,
    text: String,
    ids: Vec<i32>,
    /// First minus second logit: of each id and, where the model ended the text, of the token that ended it.
    margins: Vec<f32>,
    /// The model ended the text itself.
    ended: bool,
}

/// Answers all prompts with one context, which is cut back between them.
pub fn run(args: &Args) -> Result<()> {
    require_portable()?;
    let texts: Vec<String> = read_json(&args.prompts)?;
    let model = Model::load(&args.model, ModelOptions::default())?;
    let prompts: Vec<Vec<i32>> =
        texts.iter().map(|text| model.tokenize(text, args.special)).collect::<Result<_>>()?;
    if let Some(empty) = prompts.iter().position(Vec::is_empty) {
        return refuse(format!("prompt {empty} has no tokens"));
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let options = ContextOptions {
        n_ctx: (longest + args.max_tokens + 1).next_multiple_of(256),
        n_batch: Some(longest),
        threads: args.threads,
        kv: args.kv,
        flash: Flash::Off,
        mtp: Mtp::Off,
    };
    let mut context = Context::new(&model, &options, None)?;
    let mut answers = Vec::with_capacity(texts.len());
    for (prompt, prompt_ids) in texts.iter().zip(prompts) {
        answers.push(answer(&model, &mut context, args.max_tokens, prompt, prompt_ids)?);
    }
    let path = &args.out;
    let json =
        serde_json::to_vec_pretty(&answers).map_err(|source| Error::Json { path: path.into(), source })?;
    write(path, &json)
}

fn answer<'a>(
    model: &Model,
    context: &mut Context,
    max: usize,
    prompt: &'a str,
    prompt_ids: Vec<i32>,
) -> Result<Answer<'a>> {
    context.forget(0)?;
    let (mut ids, mut margins, mut ended) = (Vec::new(), Vec::new(), false);
    context.decode(&mut Batch::new(&prompt_ids, 0, false))?;
    while ids.len() < max {
        let (id, margin) = argmax(context.logits(-1)?);
        margins.push(margin);
        ended = model.ends(id);
        if ended {
            break;
        }
        context.decode(&mut Batch::new(&[id], prompt_ids.len() + ids.len(), false))?;
        ids.push(id);
    }
    Ok(Answer { prompt, prompt_ids, text: model.detokenize(&ids)?, ids, margins, ended })
}
