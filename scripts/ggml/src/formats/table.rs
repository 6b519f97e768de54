//! The formats that goldens are made for: a row each.

use crate::ffi::{Format, FormatId, format_ids as id};

/// A format's blocks, as far as making interesting ones needs to know them.
pub struct Row {
    pub name: &'static str,
    pub id: FormatId,
    pub scale: Scale,
    pub values: Values,
    /// The largest weight in units of the scale, mins included: bounds the rows of the exact class. None where the
    /// format has no scale that could be made one power of two in all blocks.
    pub exact_units: Option<u32>,
    /// The format in whose file the inputs stand: the same serve here. None: in this one's.
    pub activations_of: Option<&'static str>,
}

/// What a row of weights is made of.
#[derive(Clone, Copy)]
pub enum Values {
    /// Floats: random bits are seldom sane.
    Floats,
    /// Blocks with scales: any bits are good weights once the scales are.
    Blocks,
}

/// Where a block's scales stand, and how they are written.
#[derive(Clone, Copy)]
pub enum Scale {
    None,
    /// f16 at these offsets.
    F16(&'static [usize]),
    /// The first byte is a power of two, biased by 127.
    E8M0,
    /// The first four bytes are floats without a sign: 4 bits of exponent, biased by 7, 3 of mantissa.
    Ue4m3,
    /// An f16 in the highest nibbles of the last four words (IQ1_M).
    Nibbles,
}

const fn floats(name: &'static str, id: FormatId) -> Row {
    Row { name, id, scale: Scale::None, values: Values::Floats, exact_units: Some(127), activations_of: None }
}

const fn blocks(name: &'static str, id: FormatId, offsets: &'static [usize], units: u32) -> Row {
    let scale = Scale::F16(offsets);
    Row { name, id, scale, values: Values::Blocks, exact_units: Some(units), activations_of: None }
}

/// A format whose inputs are another one's; the largest weight of that one in units is no smaller.
const fn like(owner: &'static str, row: Row) -> Row {
    Row { activations_of: Some(owner), ..row }
}

const fn scaled(scale: Scale, row: Row) -> Row {
    Row { scale, ..row }
}

/// Another format is another row here.
pub const FORMATS: &[Row] = &[
    floats("F32", id::F32),
    like("F32", floats("F16", id::F16)),
    like("F32", floats("BF16", id::BF16)),
    blocks("Q8_0", id::Q8_0, &[0], 128),
    // Sub-blocks: six-bit scales times quants, plus six-bit mins.
    blocks("Q4_K", id::Q4_K, &[0, 2], 63 * 15 + 63),
    // Sub-blocks: eight-bit signed scales times quants from -32.
    blocks("Q6_K", id::Q6_K, &[208], 128 * 32),
    like("Q6_K", blocks("Q5_K", id::Q5_K, &[0, 2], 63 * 31 + 63)),
    like("Q8_0", blocks("Q4_0", id::Q4_0, &[0], 8)),
    like("Q8_0", blocks("Q4_1", id::Q4_1, &[0, 2], 15 + 1)),
    like("Q8_0", blocks("Q5_0", id::Q5_0, &[0], 16)),
    like("Q8_0", blocks("Q5_1", id::Q5_1, &[0, 2], 31 + 1)),
    like("Q4_K", blocks("Q2_K", id::Q2_K, &[80, 82], 15 * 3 + 15)),
    like("Q4_K", blocks("Q3_K", id::Q3_K, &[108], 32 * 4)),
    like("Q8_0", blocks("IQ4_NL", id::IQ4_NL, &[0], 127)),
    like("Q6_K", blocks("IQ4_XS", id::IQ4_XS, &[0], 32 * 127)),
    like("Q8_0", scaled(Scale::E8M0, blocks("MXFP4", id::MXFP4, &[], 12))),
    // In units of an eighth or a quarter of the scale, which is then multiplied by an odd number.
    like("Q6_K", blocks("IQ2_XXS", id::IQ2_XXS, &[0], 31 * 43)),
    like("Q6_K", blocks("IQ2_XS", id::IQ2_XS, &[0], 31 * 43)),
    like("Q6_K", blocks("IQ2_S", id::IQ2_S, &[0], 31 * 43)),
    like("Q6_K", blocks("IQ3_XXS", id::IQ3_XXS, &[0], 31 * 62)),
    like("Q4_K", blocks("IQ3_S", id::IQ3_S, &[0], 31 * 15)),
    like("Q4_K", blocks("IQ1_S", id::IQ1_S, &[0], 15 * 9)),
    like("Q4_K", scaled(Scale::Nibbles, blocks("IQ1_M", id::IQ1_M, &[], 15 * 9))),
    like("Q4_K", blocks("TQ1_0", id::TQ1_0, &[52], 1)),
    like("Q4_K", blocks("TQ2_0", id::TQ2_0, &[64], 2)),
    like("Q8_0", scaled(Scale::Ue4m3, blocks("NVFP4", id::NVFP4, &[], 12))),
    like("Q8_0", blocks("Q1_0", id::Q1_0, &[0], 1)),
    like("Q8_0", blocks("Q2_0", id::Q2_0, &[0], 2)),
];

impl Row {
    /// A seed of its own, so that a new row leaves the others' files alone.
    pub fn seed(&self) -> u64 {
        self.name.bytes().fold(0, |seed, b| seed * 131 + u64::from(b))
    }

    /// Writes the same two bytes to every scale.
    pub fn set_scales(&self, bytes: &mut [u8], format: &Format, bits: u16) {
        self.set_scales_with(bytes, format, |_| bits);
    }

    /// Writes every scale; the function takes the scale's index in its block.
    pub fn set_scales_with(&self, bytes: &mut [u8], format: &Format, mut bits: impl FnMut(usize) -> u16) {
        for block in bytes.chunks_mut(format.row_bytes(format.block_len())) {
            match self.scale {
                Scale::None => {}
                Scale::F16(offsets) => {
                    for (i, &at) in offsets.iter().enumerate() {
                        block[at..at + 2].copy_from_slice(&bits(i).to_le_bytes());
                    }
                }
                Scale::E8M0 => block[0] = bits(0) as u8,
                Scale::Ue4m3 => block[..4].iter_mut().for_each(|byte| *byte = bits(0) as u8),
                Scale::Nibbles => {
                    let (bits, at) = (bits(0), block.len() - 8);
                    for (i, word) in block[at..].chunks_mut(2).enumerate() {
                        word[1] = word[1] & 0x0f | ((bits >> (4 * i)) as u8 & 0x0f) << 4;
                    }
                }
            }
        }
    }
}

impl Scale {
    /// Scales at the ends of their range, by name.
    pub fn extremes(self) -> &'static [(&'static str, u16)] {
        match self {
            Scale::None => &[],
            Scale::F16(_) | Scale::Nibbles => &[
                ("zero", 0x0000),
                ("minus zero", 0x8000),
                ("smallest subnormal", 0x0001),
                ("largest subnormal", 0x03ff),
                ("smallest normal", 0x0400),
                ("one", 0x3c00),
                ("largest", 0x7bff),
                ("largest negative", 0xfbff),
                ("infinity", 0x7c00),
                ("NaN", 0x7e00),
            ],
            Scale::E8M0 => &[
                ("smallest", 0),
                ("second", 1),
                ("third", 2),
                ("one", 127),
                ("last but one", 254),
                ("largest", 255),
            ],
            Scale::Ue4m3 => &[
                ("zero", 0),
                ("smallest subnormal", 1),
                ("largest subnormal", 7),
                ("smallest normal", 8),
                ("one", 0x38),
                ("largest", 0x7e),
                ("NaN", 0x7f),
                ("zero, sign bit", 0x80),
                ("NaN, sign bit", 0xff),
            ],
        }
    }

    /// A random scale of a usual size: 2^-12 to 2^-8, of either sign where it is the first (a min's factor is not
    /// negative in practice).
    pub fn sane(self, index: usize, random: u32) -> u16 {
        match self {
            Scale::E8M0 => return 127 - 12 + (random & 3) as u16,
            Scale::Ue4m3 => return 8 + (random & 0x1f) as u16,
            _ => {}
        }
        let exponent = 15 - 12 + (random & 3) as u16;
        let fraction = (random >> 2) as u16 & 0x3ff;
        let sign = if index == 0 { (random >> 31) as u16 } else { 0 };
        sign << 15 | exponent << 10 | fraction
    }

    /// 2^-6, as the weights are multiplied by it.
    pub fn power_of_two(self) -> u16 {
        match self {
            // Half of 2^-5: weights are in halves.
            Scale::E8M0 => 127 - 5,
            Scale::Ue4m3 => (7 - 5) << 3,
            _ => (15 - 6) << 10,
        }
    }
}
