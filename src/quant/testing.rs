//! Blocks and activations for tests, for `dot-check` and for the test of devices, random and extreme.

use super::{Activations, Format};
use crate::gguf::TensorType;

/// A line that is to be seen when the test passes, such as what it skips and why: past the harness, which
/// keeps `println!` back.
#[cfg(test)]
pub(crate) fn say(line: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Values that arithmetic is likely to get wrong: infinities, NaN, signed zeros, denormals, the largest and
/// smallest, and where `exp` ends.
pub(crate) const EXTREMES: [f32; 12] = [
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    0.0,
    -0.0,
    1e-45,
    -1e-40,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    88.7,
    -103.9,
];

/// SplitMix64 (Steele, Lea, Flood 2014): short, and the same everywhere.
pub(crate) struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// -1 to 1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Most of them small, -4 to 4.
    pub fn activations(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float() * self.float().abs() * 4.0).collect()
    }
}

/// What a block's bytes are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Random bits, scales of ordinary size.
    Ordinary,
    /// Any bits at all, infinite and NaN scales among them.
    AnyBits,
    AllOnes,
    AllZeros,
    /// Random bits, scales of zero, subnormal, largest, infinite or NaN.
    OddScales,
    /// The largest magnitudes that the integers can have: 0x80 bytes are -128 as i8.
    Extreme,
    /// Random bits, scales of zero of either sign (of types without scales, values).
    ZeroScales,
    /// Random bits, subnormal scales (of types without scales, values).
    SubnormalScales,
    /// Random bits, the largest finite scales of either sign (of types without scales, values).
    LargestScales,
}

pub(crate) const KINDS: [Kind; 9] = [
    Kind::Ordinary,
    Kind::AnyBits,
    Kind::AllOnes,
    Kind::AllZeros,
    Kind::OddScales,
    Kind::Extreme,
    Kind::ZeroScales,
    Kind::SubnormalScales,
    Kind::LargestScales,
];

impl Kind {
    /// The words of a report.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ordinary => "ordinary",
            Kind::AnyBits => "any bits",
            Kind::AllOnes => "all bits set",
            Kind::AllZeros => "all bits zero",
            Kind::OddScales => "odd scales",
            Kind::Extreme => "largest integers",
            Kind::ZeroScales => "zero scales",
            Kind::SubnormalScales => "subnormal scales",
            Kind::LargestScales => "largest scales",
        }
    }
}

/// Where a block's scales stand, and how they are written.
#[derive(Clone, Copy)]
enum Scales {
    None,
    /// f16 at these offsets.
    F16(&'static [usize]),
    /// The first byte: a power of two (MXFP4).
    E8M0,
    /// The first four bytes: floats of 4 + 3 bits (NVFP4).
    Ue4m3,
    /// An f16 in the highest nibbles of the last four words (IQ1_M).
    Nibbles,
}

fn scales(ty: TensorType) -> Scales {
    match ty {
        TensorType::Q2_K => Scales::F16(&[80, 82]),
        TensorType::Q3_K => Scales::F16(&[108]),
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => Scales::F16(&[0, 2]),
        TensorType::Q6_K => Scales::F16(&[208]),
        TensorType::TQ1_0 => Scales::F16(&[52]),
        TensorType::TQ2_0 => Scales::F16(&[64]),
        TensorType::IQ1_M => Scales::Nibbles,
        TensorType::MXFP4 => Scales::E8M0,
        TensorType::NVFP4 => Scales::Ue4m3,
        ty if ty.block_len() == 1 => Scales::None,
        _ => Scales::F16(&[0]),
    }
}

impl Scales {
    /// Writes scales of this kind into a block, where the kind does not leave them as they come.
    fn write(self, kind: Kind, block: &mut [u8], random: &mut Random) {
        match self {
            Scales::None => {}
            Scales::F16(offsets) => {
                for &at in offsets {
                    if let Some(scale) = scale(kind, random) {
                        block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                    }
                }
            }
            Scales::Nibbles => {
                if let Some(scale) = scale(kind, random) {
                    let at = block.len() - 8;
                    for (i, word) in block[at..].chunks_mut(2).enumerate() {
                        word[1] = word[1] & 0x0f | ((scale >> (4 * i)) as u8 & 0x0f) << 4;
                    }
                }
            }
            Scales::E8M0 => {
                block[0] = match kind {
                    Kind::Ordinary | Kind::Extreme => 127 - 12 + random.below(4) as u8,
                    Kind::OddScales => [0, 1, 2, 127, 254, 255][random.below(6)],
                    Kind::ZeroScales => 0,
                    Kind::SubnormalScales => random.below(2) as u8,
                    Kind::LargestScales => 255,
                    Kind::AnyBits | Kind::AllOnes | Kind::AllZeros => return,
                }
            }
            Scales::Ue4m3 => {
                for byte in &mut block[..4] {
                    *byte = match kind {
                        Kind::Ordinary | Kind::Extreme => 8 + random.below(0x20) as u8,
                        Kind::OddScales => [0, 1, 7, 8, 0x7e, 0x7f, 0x80, 0xff][random.below(8)],
                        Kind::ZeroScales => [0, 0x7f, 0x80][random.below(3)],
                        Kind::SubnormalScales => 1 + random.below(7) as u8,
                        Kind::LargestScales => 0x7e,
                        Kind::AnyBits | Kind::AllOnes | Kind::AllZeros => return,
                    }
                }
            }
        }
    }
}

/// An f16 scale of this kind; `None` where the kind leaves scales as they come.
fn scale(kind: Kind, random: &mut Random) -> Option<u16> {
    const ODD: [u16; 10] = [0, 0x8000, 1, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e01];
    let sign = |random: &mut Random| (random.bits() & 0x8000) as u16;
    Some(match kind {
        Kind::Ordinary | Kind::Extreme => half::f16::from_f32(random.float() * 0.01).to_bits(),
        Kind::OddScales => ODD[random.below(ODD.len())],
        Kind::ZeroScales => sign(random),
        Kind::SubnormalScales => sign(random) | (1 + random.below(0x3ff) as u16),
        Kind::LargestScales => sign(random) | 0x7bff,
        Kind::AnyBits | Kind::AllOnes | Kind::AllZeros => return None,
    })
}

/// The bits of a value of a float type; `None` where any bits will do.
fn float_bits(kind: Kind, ty: TensorType, random: &mut Random) -> Option<u32> {
    let mantissa = match ty {
        TensorType::F32 => 23,
        TensorType::F16 => 10,
        TensorType::BF16 => 7,
        _ => return None,
    };
    let sign_at = ty.block_bytes() as u32 * 8 - 1;
    let sign = |random: &mut Random| ((random.bits() & 1) as u32) << sign_at;
    Some(match kind {
        Kind::Ordinary => match (ty, random.float() * 0.1) {
            (TensorType::F32, value) => value.to_bits(),
            (TensorType::F16, value) => half::f16::from_f32(value).to_bits().into(),
            (_, value) => half::bf16::from_f32(value).to_bits().into(),
        },
        Kind::ZeroScales => sign(random),
        Kind::SubnormalScales => sign(random) | (1 + random.below((1 << mantissa) - 1) as u32),
        // One below infinity, whose exponent is all ones and whose mantissa is zero.
        Kind::LargestScales => sign(random) | (((1 << sign_at) - (1 << mantissa)) - 1),
        _ => return None,
    })
}

/// The bytes of a matrix of weights.
pub(crate) fn weights(format: &Format, kind: Kind, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0u8; rows * format.row_bytes(cols)];
    for block in bytes.chunks_exact_mut(format.ty.block_bytes() as usize) {
        let fill = if random.bits() & 1 == 0 { 0x80 } else { 0xff };
        for byte in &mut *block {
            *byte = match kind {
                Kind::AllOnes => 0xff,
                Kind::AllZeros => 0,
                Kind::Extreme => fill,
                _ => random.bits() as u8,
            };
        }
        scales(format.ty).write(kind, block, random);
        if let Some(bits) = float_bits(kind, format.ty, random) {
            let len = block.len();
            block.copy_from_slice(&bits.to_le_bytes()[..len]);
        }
    }
    bytes
}

/// The definition: one scalar dot for each place of `[tokens][rows]`.
pub(crate) fn reference(format: &Format, w: &[u8], rows: usize, x: &Activations) -> Vec<f32> {
    let row_bytes = format.row_bytes(x.cols());
    let mut out = Vec::new();
    for t in 0..x.rows() {
        out.extend((0..rows).map(|r| (format.dot)(&w[r * row_bytes..][..row_bytes], x.row(t))));
    }
    out
}

/// The first place where the bits differ; any NaN equals any NaN.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()))
}
