//! Blocks and activations for tests, random and extreme.

use super::Format;
use crate::gguf::TensorType;

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
}

pub(crate) const KINDS: [Kind; 6] =
    [Kind::Ordinary, Kind::AnyBits, Kind::AllOnes, Kind::AllZeros, Kind::OddScales, Kind::Extreme];

/// Offsets of a block's f16 scales.
fn scale_offsets(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::Q8_0 => &[0],
        TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q6_K => &[208],
        _ => &[],
    }
}

/// The bytes of a matrix of weights.
pub(crate) fn weights(format: &Format, kind: Kind, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    const ODD: [u16; 10] = [0, 0x8000, 1, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e01];
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
        if let Kind::Ordinary | Kind::OddScales | Kind::Extreme = kind {
            for &at in scale_offsets(format.ty) {
                let ordinary = half::f16::from_f32(random.float() * 0.01);
                let scale = if kind == Kind::OddScales { ODD[random.below(10)] } else { ordinary.to_bits() };
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        if let (Kind::Ordinary, 2 | 4) = (kind, block.len()) {
            let value = random.float() * 0.1;
            match format.ty {
                TensorType::F32 => block.copy_from_slice(&value.to_le_bytes()),
                TensorType::F16 => block.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                _ => block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            }
        }
    }
    bytes
}
