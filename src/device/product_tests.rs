//! Products on a device against the scalar dots, bit for bit, on a device that is a CPU or another.

use std::sync::OnceLock;

use super::nvrtc::{Nvrtc, Target};
use super::source::{Task, kernel, source_of};
use super::tests::driver_for_kernels;
use super::{Device, DeviceMatrix, Product, Queue, cuda, source};
use crate::gguf::TensorType;
use crate::quant::testing::{KINDS, Kind, Random, difference, reference, say, weights};
use crate::quant::{Activations, FORMATS, Format, format};

/// A device with this source.
fn opened(source: &str) -> Option<Device> {
    Some(Device::new(driver_for_kernels(source)?).expect("it answers"))
}

fn device() -> Option<&'static Device> {
    static DEVICE: OnceLock<Option<Device>> = OnceLock::new();
    DEVICE.get_or_init(|| opened(&source())).as_ref()
}

fn activations(format: &Format, tokens: usize, cols: usize, random: &mut Random) -> Activations {
    let mut x = Activations::new();
    x.quantize(format.activation, &random.activations(tokens * cols), cols).expect("finite");
    x
}

fn first(x: &Activations, tokens: usize) -> Activations {
    let mut few = Activations::new();
    x.gather_into(&(0..tokens).collect::<Vec<_>>(), &mut few);
    few
}

#[test]
fn all_kernels_pass_their_test() {
    let Some(device) = device() else { return };
    assert_eq!(device.verdicts().len(), FORMATS.len());
    for verdict in device.verdicts() {
        assert_eq!(verdict.fault, None, "{}", verdict.ty);
        let block = verdict.ty.block_len() as usize;
        assert!(device.takes(verdict.ty, 3 * block) && !device.takes(verdict.ty, 0));
        assert!(block == 1 || !device.takes(verdict.ty, block + 1));
    }
    assert!(!device.takes(TensorType::Q8_K, 256) && !device.takes(TensorType::I8, 256));
}

/// All of these numbers of rows with all of these numbers of tokens.
fn check(device: &Device, format: &'static Format, cols: usize, rows: &[usize], tokens: &[usize]) {
    let (most_rows, most_tokens) = (rows[rows.len() - 1], tokens[tokens.len() - 1]);
    let mut random = Random((cols + most_rows) as u64);
    let row_bytes = format.row_bytes(cols);
    let mut bytes = Vec::new();
    for row in 0..most_rows {
        // One row of an extreme kind after two ordinary ones.
        let kind = if row % 3 == 2 { KINDS[row / 3 % KINDS.len()] } else { Kind::Ordinary };
        bytes.extend(weights(format, kind, 1, cols, &mut random));
    }
    let x = activations(format, most_tokens, cols, &mut random);
    let want = reference(format, &bytes, most_rows, &x);
    for &rows in rows {
        // Its last rows, so that matrices begin anywhere.
        let skipped = most_rows - rows;
        let whole = device.upload(Queue::Copies, format.ty, most_rows, cols, &bytes).expect("memory");
        let memory = whole.memory().clone();
        let matrix = DeviceMatrix::new(memory, skipped * row_bytes, format.ty, rows, cols);
        for &tokens in tokens {
            let x = first(&x, tokens);
            let mut out = vec![0.5; rows * tokens];
            let product = Product { matrix: &matrix, x: &x, out: &mut out };
            device.begin(vec![product]).and_then(|pending| pending.finish()).expect("it runs");
            let want: Vec<f32> =
                want.chunks(most_rows).take(tokens).flat_map(|token| token[skipped..].to_vec()).collect();
            if let Some(at) = difference(&out, &want) {
                let (ty, token, row) = (format.ty, at / rows, at % rows);
                let (got, want) = (out[at], want[at]);
                panic!("{ty}, {rows} x {cols}, {tokens} tokens: token {token}, row {row}: {got:e}, {want:e}");
            }
        }
    }
}

#[test]
fn products_are_the_scalar_dots() {
    let Some(device) = device() else { return };
    for format in FORMATS {
        let block = format.ty.block_len() as usize;
        let (one, several, many) = match block {
            // Whole pages, which the host keeps more than that apart.
            1 => (1, 100, 4096),
            block => (block, 288usize.next_multiple_of(block), 4096 + block),
        };
        check(device, format, one, &[1, 31, 150], &[1, 2, 3, 8, 9, 33, 70]);
        check(device, format, several, &[5, 64, 70], &[1, 9, 17, 33]);
        check(device, format, many, &[6], &[1, 3, 8, 18]);
    }
}

/// Several shapes and types, inputs that are shared, nothing at all; and two batches at once.
#[test]
fn a_batch_is_its_products() {
    let Some(device) = device() else { return };
    let mut random = Random(3);
    let shapes = [
        (TensorType::Q4_K, 40, 512),
        (TensorType::Q6_K, 7, 512),
        (TensorType::F16, 9, 33),
        (TensorType::Q4_K, 5, 512),
        (TensorType::Q8_0, 0, 96),
        (TensorType::Q4_1, 12, 96),
    ];
    let mut of = |ty, rows, cols| {
        let format = format(ty).expect("a format");
        let bytes = weights(format, Kind::Ordinary, rows, cols, &mut random);
        let matrix = device.upload(Queue::Copies, ty, rows, cols, &bytes).expect("memory");
        (format, bytes, matrix)
    };
    let matrices = shapes.map(|(ty, rows, cols)| of(ty, rows, cols));
    let mut random = Random(4);
    let shared = activations(matrices[0].0, 3, 512, &mut random);
    let own: Vec<_> = matrices
        .iter()
        .enumerate()
        .map(|(i, (format, _, matrix))| activations(format, i % 3, matrix.cols(), &mut random))
        .collect();
    let xs = |i: usize| if i < 2 { &shared } else { &own[i] };
    let outs = || (0..shapes.len()).map(|i| vec![0.5; shapes[i].1 * xs(i).rows()]).collect::<Vec<_>>();
    let (mut first, mut second) = (outs(), outs());
    let pending = [&mut first, &mut second].map(|outs| {
        let products = matrices.iter().zip(outs.iter_mut()).enumerate();
        let products = products.map(|(i, ((_, _, matrix), out))| Product { matrix, x: xs(i), out });
        device.begin(products.collect()).expect("it runs")
    });
    pending.into_iter().rev().for_each(|pending| pending.finish().expect("it ran"));
    for (i, (format, bytes, matrix)) in matrices.iter().enumerate() {
        let want = reference(format, bytes, matrix.rows(), xs(i));
        assert_eq!(difference(&first[i], &want), None, "{}", format.ty);
        assert_eq!(difference(&second[i], &want), None, "{}", format.ty);
    }
    device.begin(Vec::new()).and_then(|pending| pending.finish()).expect("nothing to do");
}

/// Of activations that were rounded there, to where they stay.
#[test]
fn products_of_what_is_there_are_the_same() {
    let Some(device) = device() else { return };
    let ops = device.ops().expect("memory for them");
    let mut random = Random(9);
    for format in FORMATS {
        let (rows, cols, most) = (37, 288usize.next_multiple_of(format.ty.block_len() as usize), 20);
        let bytes = weights(format, Kind::Ordinary, rows, cols, &mut random);
        let matrix = device.upload(Queue::Copies, format.ty, rows, cols, &bytes).expect("memory");
        let values = random.activations(most * cols);
        let mut x = Activations::new();
        x.quantize(format.activation, &values, cols).expect("finite");
        let want = reference(format, &bytes, rows, &x);
        let on = ops.upload(&values).expect("memory");
        let there = ops.allocate_activations(format.activation, most + 3, cols).expect("memory");
        ops.round(&on, &there, &ops.upload(&[u32::MAX]).expect("memory")).expect("it runs");
        for tokens in [0..1, 0..8, 3..4, 5..20, 0..most] {
            let n = tokens.len() * rows;
            let out = ops.allocate(n + 5).expect("memory").part(5, n);
            device.multiply(&matrix, &there, tokens.clone(), &out).expect("it runs");
            let mut got = vec![0.5f32; n];
            ops.read(&out, &mut got).expect("it ran");
            let want = &want[tokens.start * rows..tokens.end * rows];
            assert_eq!(difference(&got, want), None, "{}, tokens {tokens:?}", format.ty);
        }
    }
}

/// The canary: faults of kernels are found, and other formats are used nevertheless.
#[test]
fn faulty_kernels_are_found() {
    use TensorType::{IQ2_S, IQ2_XS, Q4_K, Q5_0, Q6_K, Q8_0};
    let formats = [IQ2_S, IQ2_XS, Q4_K, Q5_0, Q6_K, Q8_0].map(|ty| format(ty).expect("a format"));
    let mut text = source_of(formats);
    // The first place after `after`.
    let mut replace = |after: &str, fault: [&str; 2]| {
        let start = text.find(after).expect("what it comes after");
        let at = start + text[start..].find(fault[0]).expect("what is replaced");
        text.replace_range(at..at + fault[0].len(), fault[1]);
    };
    replace(
        "#define FORMAT Q4_K\n",
        ["fma(terms[at], terms[at + 1], acc)", "terms[at] * terms[at + 1] + acc"],
    );
    replace("uint iq2_s_grid[", ["0x808082bu", "0x808082cu"]);
    replace("#define FORMAT Q5_0\n", ["(float)(low + high)", "(float)low"]);
    let Some(device) = opened(&text) else { return };
    let taken: Vec<_> = device.verdicts().iter().filter(|verdict| verdict.fault.is_none()).collect();
    let taken: Vec<_> = taken.iter().map(|verdict| verdict.ty).collect();
    assert_eq!(taken, [Q8_0, Q6_K, IQ2_XS], "{:?}", device.verdicts());
    let of = |ty| device.verdicts().iter().find(|verdict| verdict.ty == ty);
    let fault = |ty| of(ty).and_then(|verdict| verdict.fault.clone()).unwrap_or_default();
    assert!(fault(Q4_K).starts_with("product "), "{}", fault(Q4_K));
    // That kernel is not there at all.
    assert!(fault(TensorType::F32).contains("dot_F32"), "{}", fault(TensorType::F32));
}

/// CUDA's compiler needs no card. All families and templates; all formats take long.
#[test]
fn kernels_compile_for_cuda() {
    let Some(nvrtc) = Nvrtc::load() else { return say("skipped: NVRTC's library is not installed") };
    use TensorType::{F16, IQ1_M, MXFP4, NVFP4, Q2_0, Q4_K, Q5_1, TQ1_0};
    let formats = [F16, IQ1_M, MXFP4, NVFP4, Q2_0, Q4_K, Q5_1, TQ1_0];
    let source = source_of(formats.map(|ty| format(ty).expect("a format")));
    let Some(Target::Machine(arch)) = nvrtc.target(90) else { panic!("{}", nvrtc.version()) };
    let source = format!("{}\n{source}", cuda::MACROS);
    let ptx = nvrtc.compile(&source, &cuda::OPTIONS, Target::Ptx(arch)).expect("it compiles");
    let ptx = String::from_utf8(ptx).expect("text");
    for ty in formats {
        for task in [Task::Decode, Task::Dot, Task::Tile] {
            assert!(ptx.contains(&format!(".entry {}(", kernel(task, ty))), "{task:?} {ty}");
        }
    }
    assert!(ptx.contains("fma.rn.f32") && ptx.contains("dp4a") && !ptx.contains("ftz"));
}
