//! Rows of activations as ggml's blocks, and back.

use half::{bf16, f16};

use crate::quant::{ActivationRow, ActivationType, Q8_0Row, Q8KRow, QK_K, QK8_0};

/// Bytes of a Q8_0 block: f16 scale, quants.
const Q8_0_BYTES: usize = 2 + QK8_0;
/// Bytes of a Q8_1 block: f16 scale, f16 sum, quants.
const Q8_1_BYTES: usize = 4 + QK8_0;
/// Bytes of a Q8_K block: f32 scale, quants, sums of 16 as i16.
const Q8_K_BYTES: usize = 4 + QK_K + 2 * (QK_K / 16);

/// Bytes of a row of `n` values.
pub fn row_bytes(ty: ActivationType, n: usize) -> usize {
    match ty {
        ActivationType::F32 => 4 * n,
        ActivationType::F16 | ActivationType::BF16 => 2 * n,
        ActivationType::Q8_0 => n / QK8_0 * Q8_0_BYTES,
        ActivationType::Q8_1 => n / QK8_0 * Q8_1_BYTES,
        ActivationType::Q8_K => n / QK_K * Q8_K_BYTES,
    }
}

/// ggml's name of the type.
pub fn ggml_name(ty: ActivationType) -> &'static str {
    match ty {
        ActivationType::F32 => "f32",
        ActivationType::F16 => "f16",
        ActivationType::BF16 => "bf16",
        ActivationType::Q8_0 => "q8_0",
        ActivationType::Q8_1 => "q8_1",
        ActivationType::Q8_K => "q8_K",
    }
}

/// A row as ggml lays it out.
pub fn to_bytes(row: ActivationRow<'_>) -> Vec<u8> {
    let quants = |qs: &[i8]| qs.iter().map(|q| *q as u8).collect::<Vec<u8>>();
    let half = |v: f32| f16::from_f32(v).to_le_bytes();
    match row {
        ActivationRow::Floats(ty, values) => values
            .iter()
            .flat_map(|&v| match ty {
                ActivationType::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
                ActivationType::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
                _ => v.to_le_bytes().to_vec(),
            })
            .collect(),
        ActivationRow::Q8_0(Q8_0Row { qs, d, .. }) => {
            let blocks = qs.chunks_exact(QK8_0).zip(d);
            blocks.flat_map(|(qs, d)| [&half(*d)[..], &quants(qs)].concat()).collect()
        }
        ActivationRow::Q8_1(Q8_0Row { qs, d, s, .. }) => {
            let blocks = qs.chunks_exact(QK8_0).zip(d).zip(s);
            blocks.flat_map(|((qs, d), s)| [&half(*d)[..], &half(*s), &quants(qs)].concat()).collect()
        }
        ActivationRow::Q8K(Q8KRow { qs, d, bsums }) => {
            let blocks = qs.chunks_exact(QK_K).zip(d).zip(bsums.chunks_exact(QK_K / 16));
            let sums = |sums: &[i16]| sums.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>();
            blocks.flat_map(|((qs, d), b)| [d.to_le_bytes().to_vec(), quants(qs), sums(b)].concat()).collect()
        }
    }
}

/// What byte `at` of a row belongs to, in words.
pub fn field_at(ty: ActivationType, at: usize) -> String {
    match ty {
        ActivationType::F32 => format!("value {}", at / 4),
        ActivationType::F16 | ActivationType::BF16 => format!("value {}", at / 2),
        ActivationType::Q8_0 => match (at / Q8_0_BYTES, at % Q8_0_BYTES) {
            (block, 0..2) => format!("scale of block {block}"),
            (block, at) => format!("value {}", block * QK8_0 + at - 2),
        },
        ActivationType::Q8_1 => match (at / Q8_1_BYTES, at % Q8_1_BYTES) {
            (block, 0..2) => format!("scale of block {block}"),
            (block, 2..4) => format!("sum of block {block}"),
            (block, at) => format!("value {}", block * QK8_0 + at - 4),
        },
        ActivationType::Q8_K => match (at / Q8_K_BYTES, at % Q8_K_BYTES) {
            (block, 0..4) => format!("scale of block {block}"),
            (block, at) if at < 4 + QK_K => format!("value {}", block * QK_K + at - 4),
            (block, at) => format!("sum {} of block {block}", (at - 4 - QK_K) / 2),
        },
    }
}

/// A row of activations of its own, parsed from ggml's blocks.
#[derive(Debug)]
pub struct OwnedRow {
    ty: ActivationType,
    values: Vec<f32>,
    qs: Vec<i8>,
    d: Vec<f32>,
    s: Vec<f32>,
    bsums: Vec<i16>,
}

impl OwnedRow {
    /// # Panics
    /// Where the bytes are no whole number of blocks.
    pub fn parse(ty: ActivationType, bytes: &[u8]) -> OwnedRow {
        let mut row = OwnedRow { ty, values: vec![], qs: vec![], d: vec![], s: vec![], bsums: vec![] };
        let block = row_bytes(ty, ty.block_len());
        assert!(bytes.len().is_multiple_of(block), "whole blocks of {ty:?}");
        for block in bytes.chunks_exact(block) {
            let half = || [block[0], block[1]];
            let word = || [block[0], block[1], block[2], block[3]];
            let quants = |qs: &[u8]| qs.iter().map(|q| *q as i8).collect::<Vec<i8>>();
            match ty {
                ActivationType::F32 => row.values.push(f32::from_le_bytes(word())),
                ActivationType::F16 => row.values.push(f16::from_le_bytes(half()).to_f32()),
                ActivationType::BF16 => row.values.push(bf16::from_le_bytes(half()).to_f32()),
                ActivationType::Q8_0 => {
                    row.d.push(f16::from_le_bytes(half()).to_f32());
                    row.qs.extend(quants(&block[2..]));
                }
                ActivationType::Q8_1 => {
                    row.d.push(f16::from_le_bytes(half()).to_f32());
                    row.s.push(f16::from_le_bytes([block[2], block[3]]).to_f32());
                    row.qs.extend(quants(&block[4..]));
                }
                ActivationType::Q8_K => {
                    row.d.push(f32::from_le_bytes(word()));
                    row.qs.extend(quants(&block[4..4 + QK_K]));
                    let sums = block[4 + QK_K..].as_chunks::<2>().0;
                    row.bsums.extend(sums.iter().map(|s| i16::from_le_bytes(*s)));
                }
            }
        }
        if matches!(ty, ActivationType::Q8_0 | ActivationType::Q8_1) {
            let sixteens = row.qs.as_chunks::<16>().0.iter();
            row.bsums = sixteens.map(|qs| qs.iter().map(|q| i16::from(*q)).sum()).collect();
        }
        row
    }

    /// The row for a dot.
    pub fn row(&self) -> ActivationRow<'_> {
        let (qs, d, bsums) = (&self.qs[..], &self.d[..], &self.bsums[..]);
        match self.ty {
            ActivationType::Q8_0 => ActivationRow::Q8_0(Q8_0Row { qs, d, s: &[], bsums }),
            ActivationType::Q8_1 => ActivationRow::Q8_1(Q8_0Row { qs, d, s: &self.s, bsums }),
            ActivationType::Q8_K => ActivationRow::Q8K(Q8KRow { qs, d, bsums }),
            ty => ActivationRow::Floats(ty, &self.values),
        }
    }

    /// What the row's values are, exactly.
    pub fn exact_values(&self) -> Vec<f64> {
        if self.d.is_empty() {
            return self.values.iter().map(|&v| f64::from(v)).collect();
        }
        let blocks = self.qs.chunks_exact(self.ty.block_len()).zip(&self.d);
        blocks.flat_map(|(qs, &d)| qs.iter().map(move |&q| f64::from(q) * f64::from(d))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Activations;
    use crate::quant::testing::Random;

    #[test]
    fn blocks_and_back() {
        let x = Random(4).activations(512);
        for ty in [
            ActivationType::F32,
            ActivationType::F16,
            ActivationType::BF16,
            ActivationType::Q8_0,
            ActivationType::Q8_1,
            ActivationType::Q8_K,
        ] {
            let mut rows = Activations::new();
            rows.quantize(ty, &x, 512).expect("finite");
            let bytes = to_bytes(rows.row(0));
            assert_eq!(bytes.len(), row_bytes(ty, 512));
            let parsed = OwnedRow::parse(ty, &bytes);
            assert_eq!(format!("{:?}", parsed.row()), format!("{:?}", rows.row(0)));
            assert_eq!(to_bytes(parsed.row()), bytes);
            // Each is off by half a step at most: of 4 / 127, or of eight bits of mantissa.
            let values = parsed.exact_values();
            assert!(values.iter().zip(&x).all(|(v, x)| (v - f64::from(*x)).abs() < 0.02), "{ty:?}");
        }
    }

    #[test]
    fn fields_are_named() {
        let fields = [0, 3, 4, 259, 260, 291, 292, 296].map(|at| field_at(ActivationType::Q8_K, at));
        let wanted = [
            "scale of block 0",
            "scale of block 0",
            "value 0",
            "value 255",
            "sum 0 of block 0",
            "sum 15 of block 0",
            "scale of block 1",
            "value 256",
        ];
        assert_eq!(fields, wanted);
        assert_eq!(field_at(ActivationType::Q8_0, 36), "value 32");
        let fields = [35, 36, 39, 40].map(|at| field_at(ActivationType::Q8_1, at));
        assert_eq!(fields, ["value 31", "scale of block 1", "sum of block 1", "value 32"]);
        assert_eq!(field_at(ActivationType::BF16, 3), "value 1");
    }
}
