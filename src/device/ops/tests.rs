//! Operations on a device against the scalar code, bit for bit, on a device that is a CPU or another.

use std::sync::OnceLock;

use super::self_test::{AttentionTrial, KvTrial, TRIALS};
use super::*;
use crate::device::cuda;
use crate::device::nvrtc::{Nvrtc, Target};
use crate::device::source::source_of_ops;
use crate::device::tests::driver_for_kernels;
use crate::kernels::ops::{AttentionShape, Window};
use crate::quant::testing::{Random, say};

/// The operations of a device with this source.
fn opened(source: &str) -> Option<DeviceOps> {
    Some(DeviceOps::new(driver_for_kernels(source)?).expect("it answers"))
}

fn ops() -> Option<&'static DeviceOps> {
    static OPS: OnceLock<Option<DeviceOps>> = OnceLock::new();
    OPS.get_or_init(|| opened(&source_of_ops())).as_ref()
}

#[test]
fn all_operations_pass_their_test() {
    let Some(ops) = ops() else { return };
    assert_eq!(ops.verdicts().len(), TRIALS.len());
    for verdict in ops.verdicts() {
        assert_eq!(verdict.fault, None, "{}", verdict.name);
        assert!(ops.has(verdict.name));
    }
    assert!(!ops.has("nothing"));
}

/// Around sixteen lanes, groups, and what norms have at hand at once.
#[test]
fn operations_give_the_scalar_bits_at_every_length() {
    let Some(ops) = ops() else { return };
    // Keys and values have tests of their own.
    for (name, trial) in TRIALS.iter().filter(|(name, _)| !["store_kv", "attention"].contains(name)) {
        for n in (1..=34).chain([127, 128, 129, 255, 256, 257, 1023, 1024, 1040, 2500]) {
            let fault = trial(ops, &mut Random(n as u64), n).expect("it runs");
            assert_eq!(fault, None, "{name}, {n} values");
        }
    }
}

/// The canary: faults in the source are found, and only what they are in is refused.
#[test]
fn a_wrong_kernel_is_not_used() {
    let faults = [
        ("dots[r] * scale", "(dots[r] + 1e-7f) * scale", "attention"),
        ("&& a_at < b_at", "&& a_at > b_at", "top_k"),
        (
            "xs[x_at + i] = gelu_of(xs[x_at + i], table);",
            "xs[x_at + i] = gelu_of(xs[x_at + i], table) + 0.0f;",
            "gelu",
        ),
        ("x[i] = x[i] * by * weight[i];", "x[i] = x[i] * (by * weight[i]);", "rms_norm"),
        ("x0 * cos - x1 * sin", "fma(x0, cos, -(x1 * sin))", "rope"),
        (
            "acc = acc + biases[bias_at + channel];",
            "acc = fma(1.0001f, biases[bias_at + channel], acc);",
            "causal_conv",
        ),
        (
            "a_each ? 0.0f : exp_of(dt * rates[0])",
            "a_each ? 0.0f : exp_of(dt * rates[0]) * 1.0001f",
            "selective_scan",
        ),
        ("decay = exp_of(dt * rates[j]);", "decay = exp_of(dt * rates[j]) * 1.0001f;", "channel_scan"),
        ("(sum_of_16(qs + lane) & 0xffff) |", "(sum_of_16(qs + lane) & 0xfffe) |", "round_q8_k"),
        ("= given * scale", "= given / (1.0f / scale)", "delta_rule"),
        ("ys[y_at + (ulong)head * stride + i % len]", "ys[y_at + head * len + i % len]", "copy_heads"),
    ];
    let mut source = source_of_ops();
    for (right, wrong, name) in faults {
        assert!(source.contains(right), "{name}");
        source = source.replace(right, wrong);
    }
    let Some(ops) = opened(&source) else { return };
    for verdict in ops.verdicts() {
        let is_wrong = faults.iter().any(|(.., name)| *name == verdict.name);
        assert_eq!(verdict.fault.is_some(), is_wrong, "{}: {:?}", verdict.name, verdict.fault);
        assert_eq!(ops.has(verdict.name), !is_wrong);
    }
}

/// Shapes of models, every window, pages before which some are gone, many chunks and tokens.
#[test]
fn attention_gives_the_scalar_bits() {
    let Some(ops) = ops() else { return };
    let shape = |heads, kv_heads, [key_len, value_len]: [usize; 2], first_pos, tokens| AttentionShape {
        heads,
        kv_heads,
        key_len,
        value_len,
        tokens,
        first_pos,
        window: None,
        scale: 1.0 / (key_len as f32).sqrt(),
        soft_cap: None,
    };
    let all = [KvKind::F32, KvKind::F16, KvKind::Q8_0, KvKind::Q4_0];
    let mut random = Random(11);
    let mut n = 0;
    for shape in [
        shape(1, 1, [1, 1], 0, 1),
        shape(3, 3, [16, 8], 0, 130),
        shape(8, 2, [64, 64], 127, 2),
        shape(14, 2, [64, 64], 500, 9),
        shape(32, 8, [128, 128], 1000, 1),
        shape(9, 1, [80, 80], 300, 3),
        shape(4, 4, [256, 256], 250, 7),
        shape(16, 1, [576, 512], 260, 2),
        shape(5, 5, [33, 130], 640, 3),
    ] {
        let windows =
            [None, Some(Window::Sliding(1)), Some(Window::Sliding(200)), Some(Window::Chunked(150))];
        for window in windows {
            n += 1;
            let all = if shape.key_len % 32 + shape.value_len % 32 == 0 { &all[..] } else { &all[..2] };
            let kinds = [all[n % all.len()], all[(n / 4 + n) % all.len()]];
            let soft_cap = (n % 3 == 1).then_some(5.0);
            let shape = AttentionShape { window, soft_cap, ..shape };
            let latent = shape.value_len <= shape.key_len && n % 3 == 0;
            let trial = AttentionTrial { shape, kinds, latent, sinks: n % 5 < 2 };
            assert_eq!(trial.check(ops, &mut random).expect("it runs"), None);
        }
    }
}

/// Ends of pages, one and several heads.
#[test]
fn keys_and_values_are_stored_where_the_cpu_has_them() {
    let Some(ops) = ops() else { return };
    for (kv_heads, key_len, value_len, first_page, end) in [
        (1, 1, 1, 0, 1),
        (3, 32, 96, 0, 128),
        (2, 64, 0, 2, 257),
        (3, 576, 32, 0, 130),
        (8, 128, 128, 0, 390),
    ] {
        let (f32s, f16s, q8, q4) = (KvKind::F32, KvKind::F16, KvKind::Q8_0, KvKind::Q4_0);
        for kinds in [[f32s, f16s], [f16s, f32s], [q8, q4], [q4, q8]] {
            if key_len % 32 != 0 && (kinds[0] == q8 || kinds[0] == q4) {
                continue;
            }
            let layout = KvLayout { kv_heads, key_len, value_len, kinds };
            let trial = KvTrial { layout, first_page, end };
            assert_eq!(trial.check_stored(ops, &mut Random(4)).expect("it runs"), None, "{layout:?}");
        }
    }
}

/// CUDA's compiler needs no card.
#[test]
fn operations_compile_for_cuda() {
    let Some(nvrtc) = Nvrtc::load() else { return say("skipped: NVRTC's library is not installed") };
    let Some(Target::Machine(arch)) = nvrtc.target(90) else { panic!("{}", nvrtc.version()) };
    let source = format!("{}\n{}", cuda::MACROS, source_of_ops());
    let ptx = nvrtc.compile(&source, &cuda::OPTIONS, Target::Ptx(arch)).expect("it compiles");
    let ptx = String::from_utf8(ptx).expect("text");
    let kernels = ["add", "gelu", "rms_norm", "softmax", "rope", "round_q8_k", "top_k", "attend", "combine"];
    let of_recurrences = ["causal_conv", "selective_scan", "delta_rule", "delta_rule_long", "copy_heads"];
    for kernel in kernels.into_iter().chain(of_recurrences) {
        assert!(ptx.contains(&format!(".entry op_{kernel}(")), "{kernel}");
    }
    assert!(ptx.contains("fma.rn.f64") && !ptx.contains("ftz") && !ptx.contains("approx"));
}
