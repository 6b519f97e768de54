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
}

/// What a row of weights is made of.
#[derive(Clone, Copy)]
pub enum Values {
    /// Floats: random bits are seldom sane.
    Floats,
    /// Blocks with scales: any bits are good weights once the scales are.
    Blocks,
}

/// Where a block's scales stand (offsets of two bytes each), and how they are written.
#[derive(Clone, Copy)]
pub enum Scale {
    None,
    F16(&'static [usize]),
}

const fn floats(name: &'static str, id: FormatId) -> Row {
    Row { name, id, scale: Scale::None, values: Values::Floats, exact_units: Some(127) }
}

const fn blocks(name: &'static str, id: FormatId, offsets: &'static [usize], units: u32) -> Row {
    Row { name, id, scale: Scale::F16(offsets), values: Values::Blocks, exact_units: Some(units) }
}

/// Another format is another row here.
pub const FORMATS: &[Row] = &[
    floats("F32", id::F32),
    floats("F16", id::F16),
    floats("BF16", id::BF16),
    blocks("Q8_0", id::Q8_0, &[0], 128),
    // Sub-blocks: six-bit scales times quants, plus six-bit mins.
    blocks("Q4_K", id::Q4_K, &[0, 2], 63 * 15 + 63),
    blocks("Q5_K", id::Q5_K, &[0, 2], 63 * 31 + 63),
    // Sub-blocks: eight-bit signed scales times quants from -32.
    blocks("Q6_K", id::Q6_K, &[208], 128 * 32),
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
        let Scale::F16(offsets) = self.scale else { return };
        for block in bytes.chunks_mut(format.row_bytes(format.block_len())) {
            for (i, &at) in offsets.iter().enumerate() {
                block[at..at + 2].copy_from_slice(&bits(i).to_le_bytes());
            }
        }
    }
}

impl Scale {
    /// Scales at the ends of their range, by name.
    pub fn extremes(self) -> &'static [(&'static str, u16)] {
        match self {
            Scale::None => &[],
            Scale::F16(_) => &[
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
        }
    }

    /// A random scale of a usual size: 2^-12 to 2^-8, of either sign where it is the first (a min's factor is not
    /// negative in practice).
    pub fn sane(self, index: usize, random: u32) -> u16 {
        let exponent = 15 - 12 + (random & 3) as u16;
        let fraction = (random >> 2) as u16 & 0x3ff;
        let sign = if index == 0 { (random >> 31) as u16 } else { 0 };
        sign << 15 | exponent << 10 | fraction
    }

    /// 2^-6.
    pub fn power_of_two(self) -> u16 {
        (15 - 6) << 10
    }
}
