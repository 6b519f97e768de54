//! Which options help, by what was measured and planned.

use serde::Serialize;

use super::machine::Speeds;
use super::model::ModelReport;
use crate::cli::output;
use crate::model::KvType;

/// Options, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    pub options: String,
    pub reason: String,
}

/// Less is within what measurements are off by.
const GAIN: f64 = 1.05;

/// All that helps.
pub fn all(speeds: &Speeds, model: Option<&ModelReport>) -> Vec<Advice> {
    let mut advice = Vec::new();
    advice.extend(threads(speeds));
    advice.extend(kernel_set(speeds));
    advice.extend(model.and_then(context));
    advice
}

fn rate(bytes_s: f64) -> String {
    format!("{}/s", output::bytes(bytes_s as u64))
}

/// Fewer threads, where they are faster.
fn threads(speeds: &Speeds) -> Option<Advice> {
    let (enough, all) = (speeds.enough_threads(), speeds.default_threads());
    (enough.weights_bytes_s > GAIN * all.weights_bytes_s).then(|| Advice {
        options: format!("-t {}", enough.threads),
        reason: format!(
            "{} threads read weights at {}, the {} of the default at {}",
            enough.threads,
            rate(enough.weights_bytes_s),
            all.threads,
            rate(all.weights_bytes_s)
        ),
    })
}

/// Another kernel set, where it is faster than the chosen one.
fn kernel_set(speeds: &Speeds) -> Option<Advice> {
    let (chosen, others) = speeds.sets.split_first()?;
    let best = others.iter().max_by(|a, b| a.weights_bytes_s.total_cmp(&b.weights_bytes_s))?;
    (best.weights_bytes_s > GAIN * chosen.weights_bytes_s).then(|| Advice {
        options: format!("--isa {}", best.isa),
        reason: format!(
            "it reads {} weights at {}, {} at {}",
            speeds.ty,
            rate(best.weights_bytes_s),
            chosen.isa,
            rate(chosen.weights_bytes_s)
        ),
    })
}

/// The longest context that needs no streaming, where the default is another.
fn context(model: &ModelReport) -> Option<Advice> {
    let f16 = model.roomy.iter().find(|roomy| roomy.kv == KvType::F16);
    let best = model.roomy.iter().max_by_key(|roomy| (roomy.context, roomy.kv == KvType::F16))?;
    if best.context == model.context {
        // The default is as good, unless its cache alone makes the weights be streamed.
        return (f16.is_none_or(|f16| f16.context < best.context)).then(|| context_with(best));
    }
    Some(context_with(best))
}

fn context_with(roomy: &super::model::Roomy) -> Advice {
    let kv = if roomy.kv == KvType::F16 { String::new() } else { format!(" --kv {}", roomy.kv) };
    Advice {
        options: format!("-c {}{kv}", roomy.context),
        reason: format!(
            "the longest context (by halves of the model's own) with which all weights stay in the memory \
             that is available now; its KV cache takes {}",
            output::binary_bytes(roomy.kv_bytes)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::{SetSpeed, ThreadSpeed};
    use super::*;
    use crate::gguf::TensorType;
    use crate::kernels::Isa;

    fn speeds(threads: &[(usize, f64)], sets: &[(Isa, f64)]) -> Speeds {
        let thread = |&(threads, speed): &(usize, f64)| ThreadSpeed {
            threads,
            read_bytes_s: speed,
            weights_bytes_s: speed,
        };
        let set = |&(isa, weights_bytes_s): &(Isa, f64)| SetSpeed { isa, weights_bytes_s };
        Speeds {
            ty: TensorType::Q4_K,
            threads: threads.iter().map(thread).collect(),
            default: threads.last().expect("one at the least").0,
            sets: sets.iter().map(set).collect(),
            products_s: 1e9,
        }
    }

    fn options(speeds: &Speeds) -> Vec<String> {
        all(speeds, None).into_iter().map(|advice| advice.options).collect()
    }

    #[test]
    fn only_what_measured_better_is_suggested() {
        let sets = [(Isa::Avx512, 9e9), (Isa::Avx2, 9.2e9)];
        assert_eq!(options(&speeds(&[(1, 5e9), (2, 9e9), (4, 9.1e9)], &sets)), [""; 0]);
        assert_eq!(options(&speeds(&[(1, 5e9), (2, 9e9), (4, 7e9)], &sets)), ["-t 2"]);
        let sets = [(Isa::Avx512, 9e9), (Isa::AvxVnni, 9.1e9), (Isa::Avx2, 10e9)];
        assert_eq!(options(&speeds(&[(1, 9e9)], &sets)), ["--isa avx2"]);
    }
}
