//! llama.cpp's side of a comparison, measured as `wayinfer bench` measures itself.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::{Load, Measured, median, require_native};
use crate::capture::argmax;
use crate::error::{Result, refuse};
use crate::ffi::{self, Batch, Context, ContextOptions, Flash, KvType, Model, ModelOptions, Mtp};

#[derive(clap::Args, Debug)]
pub struct PeerArgs {
    #[command(flatten)]
    load: Load,
    /// Measured rounds
    #[arg(short, long, default_value_t = 5)]
    rounds: usize,
    /// Measure from the first round on, with nothing done before: the files may not be in memory yet
    #[arg(long)]
    no_warmup: bool,
    /// Type of the KV cache
    #[arg(long, default_value = "f16")]
    kv: KvType,
    /// For the sake of `wayinfer bench`'s arguments: JSON is all that there is
    #[arg(long)]
    json: bool,
}

/// Tokens a batch: llama.cpp's own limit by default.
const BATCH: usize = 2048;

/// Prints one measurement: one round warms up unless there is to be none, the medians of the others are given.
pub fn run_peer(args: &PeerArgs) -> Result<()> {
    require_native()?;
    let load = &args.load;
    let depth = load.depth.unwrap_or(load.prompt);
    if load.prompt == 0 || load.tokens == 0 || depth == 0 || args.rounds == 0 {
        return refuse("nothing to measure: prompt, tokens, depth and rounds are at least 1");
    }
    let start = Instant::now();
    let model = Model::load(&load.model, ModelOptions { mmap: true, mtp: false })?;
    let options = ContextOptions {
        n_ctx: (load.prompt.max(depth) + load.tokens).next_multiple_of(256),
        n_batch: None,
        threads: load.threads,
        kv: args.kv,
        flash: Flash::Auto,
        mtp: Mtp::Off,
    };
    let mut context = Context::new(&model, &options, None)?;
    let load_s = start.elapsed().as_secs_f64();

    let id = |i: usize| prompt_id(i, model.n_vocab());
    let ids: Vec<i32> = (0..load.prompt.max(depth)).map(id).collect();
    let (mut prefill, mut steps) = (Vec::new(), Vec::new());
    let (mut prefill_began, mut decode_began) = (None, None);
    let warmup = usize::from(!args.no_warmup);
    for round in 0..args.rounds + warmup {
        context.forget(0)?;
        prefill_began = unix_s();
        let start = Instant::now();
        feed(&mut context, &ids[..load.prompt], 0)?;
        let prompt_s = start.elapsed().as_secs_f64();
        let shared = load.prompt.min(depth);
        context.forget(shared)?;
        feed(&mut context, &ids[shared..depth], shared)?;
        decode_began = unix_s();
        let start = Instant::now();
        decode(&mut context, depth, load.tokens)?;
        let decode_s = start.elapsed().as_secs_f64();
        if round >= warmup {
            prefill.push(load.prompt as f64 / prompt_s);
            steps.push(load.tokens as f64 / decode_s);
        }
    }
    let measured = Measured {
        load_s,
        prefill_tok_s: median(prefill),
        decode_tok_s: median(steps),
        prefill_began_unix_s: prefill_began,
        decode_began_unix_s: decode_began,
        peak_rss_bytes: ffi::peak_rss_bytes(),
        isa: isa(),
        threads: load.threads,
        model: load.model.display().to_string(),
    };
    println!("{}", serde_json::json!(measured));
    Ok(())
}

/// The time now, in seconds of Unix time.
fn unix_s() -> Option<f64> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

/// Id `i` of the prompt.
fn prompt_id(i: usize, n_vocab: usize) -> i32 {
    ((100 + 7919 * i % 20000) % n_vocab) as i32
}

/// Feeds ids from position `at` on; the last one's logits alone are computed, and read.
fn feed(context: &mut Context, ids: &[i32], at: usize) -> Result<()> {
    for (i, part) in ids.chunks(BATCH).enumerate() {
        context.decode(&mut Batch::new(part, at + i * BATCH, false))?;
        context.logits(-1)?;
    }
    Ok(())
}

/// Feeds the prompt's first id and then the argmax, `n` tokens in all.
fn decode(context: &mut Context, at: usize, n: usize) -> Result<()> {
    let mut id = prompt_id(0, context.n_vocab());
    for i in 0..n {
        context.decode(&mut Batch::new(&[id], at + i, true))?;
        id = argmax(context.logits(-1)?).0;
    }
    Ok(())
}

/// The widest of ggml's instruction sets in this build.
fn isa() -> String {
    let features = ffi::features();
    let widest = ["AMX_INT8", "AVX512", "AVX2", "AVX"].into_iter().find(|n| features.iter().any(|f| f == n));
    widest.unwrap_or("scalar").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::prompt_id;

    #[test]
    fn ids_are_those_of_wayinfer_bench() {
        assert_eq!([0, 1, 2, 3].map(|i| prompt_id(i, 1 << 20)), [100, 8019, 15938, 3857]);
        assert_eq!(prompt_id(1, 512), 8019 % 512);
    }
}
