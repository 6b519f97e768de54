//! llama.cpp and wayinfer on the same model, in turns: each measurement in a process of its own, which warms up with one
//! round of its work and measures the next; one uncounted turn first; the order turned round every time; medians.

mod dots;
mod peer;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result, refuse};
use crate::ffi;
pub use dots::{DotArgs, run_dots};
pub use peer::{PeerArgs, run_peer};

/// What both sides measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Load {
    /// The model file
    #[arg(short, long)]
    model: PathBuf,
    /// Prompt tokens
    #[arg(short, long, default_value_t = 512)]
    prompt: usize,
    /// Decode steps
    #[arg(short = 'n', long, default_value_t = 64)]
    tokens: usize,
    /// Decode follows a prompt of this many tokens, else of those above
    #[arg(short, long)]
    depth: Option<usize>,
    #[arg(short, long, default_value_t = 1)]
    threads: usize,
}

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    load: Load,
    /// The wayinfer binary
    #[arg(long)]
    wayinfer: PathBuf,
    /// Counted rounds
    #[arg(short, long, default_value_t = 5)]
    rounds: usize,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// One measurement, in the JSON of `wayinfer bench`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub load_s: f64,
    pub prefill_tok_s: f64,
    pub decode_tok_s: f64,
    /// When the last round's phases began, for meters outside: seconds of Unix time.
    #[serde(default)]
    pub prefill_began_unix_s: Option<f64>,
    #[serde(default)]
    pub decode_began_unix_s: Option<f64>,
    pub peak_rss_bytes: u64,
    pub isa: String,
    pub threads: usize,
    pub model: String,
}

/// The two sides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Peer,
    Ours,
}

pub fn run(args: &Args) -> Result<()> {
    require_native()?;
    if args.rounds == 0 {
        return refuse("no rounds");
    }
    let (mut peer, mut ours) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let order = if round % 2 == 0 { [Side::Peer, Side::Ours] } else { [Side::Ours, Side::Peer] };
        for side in order {
            let measured = measure(side, args)?;
            if round == 0 {
                continue; // both sides' files are in the page cache now
            }
            match side {
                Side::Peer => peer.push(measured),
                Side::Ours => ours.push(measured),
            }
        }
        eprintln!("round {round} of {}", args.rounds);
    }
    report(args, &peer, &ours);
    Ok(())
}

/// Runs one side once.
fn measure(side: Side, args: &Args) -> Result<Measured> {
    let own = std::env::current_exe().map_err(|e| Error::Refused(format!("this program's path: {e}")))?;
    let mut command = match side {
        Side::Peer => Command::new(own),
        Side::Ours => Command::new(&args.wayinfer),
    };
    command.arg(if side == Side::Peer { "bench-peer" } else { "bench" });
    command.arg("-m").arg(&args.load.model);
    command.args(["-p", &args.load.prompt.to_string(), "-n", &args.load.tokens.to_string()]);
    command.args(["-t", &args.load.threads.to_string(), "-r", "1"]);
    if let Some(depth) = args.load.depth {
        command.args(["-d", &depth.to_string()]);
    }
    if cfg!(feature = "avx2") && side == Side::Ours {
        command.args(["--isa", "avx2"]);
    }
    let output = command.arg("--json").stderr(Stdio::inherit()).output();
    let output = output.map_err(|e| Error::Refused(format!("{command:?}: {e}")))?;
    if !output.status.success() {
        return refuse(format!("{command:?}: {}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| Error::Refused(format!("{command:?}: its JSON: {e}")))
}

fn report(args: &Args, peer: &[Measured], ours: &[Measured]) {
    type Get = fn(&Measured) -> f64;
    let rows: [(&str, Get); 4] = [
        ("load_s", |m| m.load_s),
        ("prefill_tok_s", |m| m.prefill_tok_s),
        ("decode_tok_s", |m| m.decode_tok_s),
        ("peak_rss_bytes", |m| m.peak_rss_bytes as f64),
    ];
    let medians = |side: &[Measured], get: Get| median(side.iter().map(get).collect());
    if args.json {
        let of = |side: &[Measured]| {
            let middle: serde_json::Map<_, _> =
                rows.iter().map(|(name, get)| (name.to_string(), json!(medians(side, *get)))).collect();
            json!({ "median": middle, "isa": side[0].isa, "runs": side })
        };
        let l = &args.load;
        println!(
            "{}",
            json!({
                "model": l.model, "prompt": l.prompt, "tokens": l.tokens, "depth": l.depth, "threads": l.threads,
                "rounds": args.rounds, "llama.cpp": of(peer), "wayinfer": of(ours),
            })
        );
        return;
    }
    println!("{:<16}{:>16}{:>16}{:>10}", "median", "llama.cpp", "wayinfer", "ratio");
    for (name, get) in rows {
        let (a, b) = (medians(peer, get), medians(ours, get));
        println!("{name:<16}{a:>16.3}{b:>16.3}{:>10.3}", b / a);
    }
    println!("{:<16}{:>16}{:>16}", "isa", peer[0].isa, ours[0].isa);
}

/// The middle value, or the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n % 2 == 1 { values[n / 2] } else { (values[n / 2 - 1] + values[n / 2]) / 2.0 }
}

/// ggml's names of what a CPU has, beside the kernel's.
const FEATURES: &[(&str, &str)] = &[
    ("AVX", "avx"),
    ("AVX2", "avx2"),
    ("F16C", "f16c"),
    ("FMA", "fma"),
    ("BMI2", "bmi2"),
    ("AVX_VNNI", "avx_vnni"),
    ("AVX512", "avx512f"),
    ("AVX512_VBMI", "avx512_vbmi"),
    ("AVX512_VNNI", "avx512_vnni"),
    ("AVX512_BF16", "avx512_bf16"),
    ("AMX_INT8", "amx_int8"),
];

/// How many of them CPUs have that have AVX2 and no more: all that a build for such a CPU is asked for.
const OF_AVX2: usize = 5;

/// Refuses unless ggml was built for all that this CPU has, with OpenMP: a slower peer would flatter. A build for
/// AVX2 alone is compared with `--isa avx2`.
fn require_native() -> Result<()> {
    let has = std::fs::read_to_string("/proc/cpuinfo")
        .map_err(|source| Error::Io { path: "/proc/cpuinfo".into(), source })?;
    let flags = has.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let built = ffi::features();
    let known = if cfg!(feature = "avx2") { &FEATURES[..OF_AVX2] } else { FEATURES };
    let mut wanted: Vec<&str> =
        known.iter().filter(|(_, flag)| flags.contains(flag)).map(|(name, _)| *name).collect();
    wanted.push("OPENMP");
    let lacking: Vec<&str> = wanted.into_iter().filter(|name| !built.iter().any(|b| b == name)).collect();
    if !lacking.is_empty() {
        return refuse(format!(
            "ggml was built without {}: the peer is measured from `scripts/ggml/build.sh native` alone",
            lacking.join(", ")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
