//! The source of our kernels, put together: what all share, the tables of `quant`, the formats' functions by
//! family, and for each format of [`FORMATS`] the template of kernels that goes with its activations. A new
//! format needs its functions in its family's file, and nothing else.

use std::fmt::Write;

use super::ops::{MOST_DELTA_LEN, MOST_KEY_LEN, MOST_STATE_LEN};
use crate::gguf::TensorType;
use crate::kernels::ops::PAGE;
use crate::quant::grids::{IQ1_GRID, IQ2_S_GRID, IQ2_XS_GRID, IQ2_XXS_GRID, IQ3_S_GRID, IQ3_XXS_GRID};
use crate::quant::{ActivationType, FORMATS, FP4_VALUES, Format, IQ4_VALUES};

/// What the kernels of a format do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// To f32.
    Decode,
    /// Products with a few tokens.
    Dot,
    /// Products with many tokens.
    Tile,
}

const TASKS: [(Task, &str); 3] = [(Task::Decode, "decode"), (Task::Dot, "dot"), (Task::Tile, "tile")];

/// The name of a kernel.
pub(super) fn kernel(task: Task, ty: TensorType) -> String {
    let name = TASKS.iter().find(|(of, _)| *of == task).map_or("", |(_, name)| name);
    format!("{name}_{ty}")
}

/// Who launches a kernel knows what its template is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    text: &'static str,
    /// Elements that a lane decodes.
    pub decoded: usize,
    /// From so many tokens on, tiles are used.
    pub tiled_from: usize,
    /// Tokens that a group of [`DOT_LANES`] lanes has; rows are [`DOT_ROWS`].
    pub dot_tokens: usize,
    /// Rows and tokens that a group of [`TILE_LANES`] lanes has.
    pub tile: [usize; 2],
}

/// As in the source's `common.cl`.
pub(super) const DOT_LANES: u32 = 64;
pub(super) const DOT_ROWS: usize = 4;
pub(super) const TILE_LANES: u32 = 256;
pub(super) const DECODE_LANES: u32 = 64;

/// The template of a format's kernels.
pub(super) fn template(format: &Format) -> Template {
    let quantised = |text, tile| Template { text, decoded: 32, tiled_from: 17, dot_tokens: 8, tile };
    match format.activation {
        ActivationType::F32 | ActivationType::F16 | ActivationType::BF16 => Template {
            text: include_str!("source/float_dots.cl"),
            decoded: 1,
            tiled_from: 5,
            dot_tokens: 1,
            tile: [16, 16],
        },
        ActivationType::Q8_0 | ActivationType::Q8_1 => {
            quantised(include_str!("source/blocks32.cl"), [32, 16])
        }
        ActivationType::Q8_K => quantised(include_str!("source/super_blocks.cl"), [64, 64]),
    }
}

const COMMON: &str = include_str!("source/common.cl");

const FAMILIES: [&str; 7] = [
    include_str!("source/floats.cl"),
    include_str!("source/legacy.cl"),
    include_str!("source/kquants.cl"),
    include_str!("source/iquants.cl"),
    include_str!("source/codebooks.cl"),
    include_str!("source/ternary.cl"),
    include_str!("source/low_bits.cl"),
];

/// Operations other than products.
const OPS: [&str; 9] = [
    include_str!("source/ops_math.cl"),
    include_str!("source/ops_elements.cl"),
    include_str!("source/ops_norms.cl"),
    include_str!("source/ops_rounding.cl"),
    include_str!("source/ops_router.cl"),
    include_str!("source/ops_recurrent.cl"),
    include_str!("source/ops_kv.cl"),
    include_str!("source/ops_attention.cl"),
    include_str!("source/ops_delta.cl"),
];

/// The source of all kernels.
pub fn source() -> String {
    let mut text = source_of(FORMATS);
    add_ops(&mut text);
    text
}

/// The source of the operations alone.
#[cfg(test)]
pub(super) fn source_of_ops() -> String {
    let mut text = COMMON.to_owned();
    add_ops(&mut text);
    text
}

fn add_ops(text: &mut String) {
    let sizes = [
        ("PAGE", PAGE),
        ("MOST_KEY_LEN", MOST_KEY_LEN),
        ("MOST_STATE_LEN", MOST_STATE_LEN),
        ("MOST_DELTA_LEN", MOST_DELTA_LEN),
    ];
    for (name, value) in sizes {
        let _ = writeln!(text, "#define {name} {value}");
    }
    OPS.iter().for_each(|part| text.push_str(part));
}

/// The source of these formats' kernels.
pub(super) fn source_of<'a>(formats: impl IntoIterator<Item = &'a Format>) -> String {
    let mut text = COMMON.to_owned();
    tables(&mut text);
    FAMILIES.iter().for_each(|family| text.push_str(family));
    for format in formats {
        let (ty, template) = (format.ty, template(format));
        let _ = write!(
            text,
            "#define FORMAT {ty}\n#define BLOCK_LEN {}\n#define BLOCK_BYTES {}\n{}\
             #undef FORMAT\n#undef BLOCK_LEN\n#undef BLOCK_BYTES\n",
            ty.block_len(),
            ty.block_bytes(),
            template.text
        );
    }
    text
}

/// Grids as words, and tables of sixteen values as four words each.
fn tables(text: &mut String) {
    let two = |grid: &[u64]| grid.iter().flat_map(|point| [*point as u32, (point >> 32) as u32]).collect();
    let grids: [(&str, Vec<u32>); 6] = [
        ("iq2_xxs_grid", two(&IQ2_XXS_GRID)),
        ("iq2_xs_grid", two(&IQ2_XS_GRID)),
        ("iq2_s_grid", two(&IQ2_S_GRID)),
        ("iq3_xxs_grid", IQ3_XXS_GRID.to_vec()),
        ("iq3_s_grid", IQ3_S_GRID.to_vec()),
        ("iq1_grid", two(&IQ1_GRID)),
    ];
    for (name, words) in grids {
        let _ = writeln!(text, "TABLE uint {name}[{}] = {{{}}};", words.len(), listed(&words));
    }
    for (name, values) in [("IQ4_VALUES", IQ4_VALUES), ("FP4_VALUES", FP4_VALUES)] {
        let bytes = values.map(|value| value as u8);
        let words: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let _ = writeln!(text, "#define {name} {}", listed(&words));
    }
}

fn listed(words: &[u32]) -> String {
    let mut text = String::new();
    for (i, word) in words.iter().enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        let _ = write!(text, "{separator}{word:#x}u");
    }
    text
}
