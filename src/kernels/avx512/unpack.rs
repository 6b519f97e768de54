//! Super-blocks of Q4_K, Q5_K and Q6_K in registers: of one row, and of sixteen rows side by side.

use std::arch::x86_64::*;

use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::kquants::first_of_quarters;
use super::{PANEL_ROWS, columns, join, load_16_bytes, load_32_bytes, load_64_bytes, widen_f16};
use crate::quant::{BlockQ4K, BlockQ5K, BlockQ6K, QK_K};

/// What stands beside the weights of four super-blocks; quarter `i` of a register is super-block `i`'s.
pub(in super::super) struct Heads {
    /// Q4_K and Q5_K: eight scales in bytes 8..16; Q6_K: sixteen signed ones.
    scales: __m512i,
    /// Q4_K and Q5_K: eight mins in bytes 0..8.
    pub mins: __m512i,
    /// `[d, dmin]` of each, `[d, 0]` of Q6_K.
    pub d: __m256,
}

/// Sixteen rows of a super-block; lane `r` (of 32 bits) belongs to row `r`.
pub(in super::super) struct Panel {
    /// Four weights each, unsigned; those of formats whose weights may be negative with an offset of 128.
    pub q: [__m512i; QK_K / 4],
    /// The scales: eight of 32 weights each or sixteen of 16 weights each.
    pub scales: [__m512i; QK_K / 16],
    /// The mins, as i16, of two groups of 16 weights each, or, the first four, of two groups of 32.
    pub mins: [__m512i; QK_K / 32],
    pub d: __m512,
    /// Negative.
    pub dmin: __m512,
    /// Where the next panel has these weights, where they are to be asked for with the products.
    pub next: [*const i8; PANEL_ROWS],
}

/// What the formats differ in.
///
/// All `unsafe` functions have one condition: the CPU has the features of this kernel set.
pub(in super::super) trait SuperBlock: Copy + FromZeros {
    /// Mins are in units of their own (`dmin`), for 32 weights each; otherwise in the scales', for 16, and
    /// part of the integer sum.
    const FLOAT_MINS: bool;
    /// Quads of weights that have a scale in common.
    const QUADS: usize;
    /// Quads of weights whose products a panel adds up before it multiplies by the scale.
    const CHAIN: usize;
    /// Whether such a sum fits i16 where weights are taken as less by 8.
    const LESS_8: bool = false;

    fn slice(bytes: &[u8]) -> &[Self];
    unsafe fn heads(blocks: &[Self; 4]) -> Heads;
    /// Weights in order, unsigned.
    unsafe fn unpack(&self) -> [__m512i; 4];
    /// Scales of super-block `I` of four as i16, in the order of the groups of 16 weights that `packs_epi32`
    /// makes of sums over quads: register `m` has in quarter `q` four times that of group `8 m + q` and of
    /// group `8 m + 4 + q`.
    unsafe fn scales<const I: usize>(heads: &Heads) -> [__m512i; 2];
    /// Takes the mins off the super-block's sum, where they are integers.
    unsafe fn offset(&self, sum: __m512i, bsums: __m256i) -> __m512i;
    /// Unpacks a super-block of sixteen rows.
    unsafe fn panel(blocks: [&Self; 16], panel: &mut Panel);
}

/// What Q4_K and Q5_K have in common, but for the weights.
macro_rules! with_mins {
    () => {
        const FLOAT_MINS: bool = true;
        const QUADS: usize = 8;

        #[inline(always)]
        fn slice(bytes: &[u8]) -> &[Self] {
            Self::slice(bytes)
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn heads(blocks: &[Self; 4]) -> Heads {
            heads_with_mins(array!(4, |i| head(&blocks[i])))
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn scales<const I: usize>(heads: &Heads) -> [__m512i; 2] {
            let own = quarter::<I>(heads.scales);
            array!(2, |m| _mm512_shuffle_epi8(own, load_64_bytes(&SCALES_OF_32[m])))
        }

        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn offset(&self, sum: __m512i, _: __m256i) -> __m512i {
            sum
        }
    };
}

impl SuperBlock for BlockQ4K {
    const CHAIN: usize = 8;
    const LESS_8: bool = true; // 4 * 8 * 8 * 127 = 32512
    with_mins!();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(&self) -> [__m512i; 4] {
        let w = nibbles(&self.qs);
        array!(4, |j| _mm512_and_si512(w[j], _mm512_set1_epi8(0x0f)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn panel(blocks: [&Self; 16], panel: &mut Panel) {
        panel_with_mins(array!(16, |r| head(blocks[r])), panel);
        let qs = array!(16, |r| blocks[r].qs.as_chunks::<16>().0);
        for c in 0..8 {
            for (k, bytes) in columns_at(&qs, c).into_iter().enumerate() {
                let (j, i) = (c / 2, c % 2 * 4 + k);
                let low = _mm512_set1_epi8(0x0f);
                panel.q[16 * j + i] = _mm512_and_si512(bytes, low);
                panel.q[16 * j + 8 + i] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low);
            }
        }
    }
}

impl SuperBlock for BlockQ5K {
    const CHAIN: usize = 8;
    with_mins!();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(&self) -> [__m512i; 4] {
        let w = nibbles(&self.qs);
        let bits = _mm512_broadcast_i64x4(load_32_bytes(&self.qh));
        array!(4, |j| {
            let own = bits_at_4(bits, 2 * j as i32, 2 * j as i32 + 1);
            with_high_bits::<0x1f>(w[j], own)
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn panel(blocks: [&Self; 16], panel: &mut Panel) {
        panel_with_mins(array!(16, |r| head(blocks[r])), panel);
        let qs = array!(16, |r| blocks[r].qs.as_chunks::<16>().0);
        let qh = array!(16, |r| blocks[r].qh.as_chunks::<16>().0);
        let bits = array!(2, |half| columns_at(&qh, half));
        for c in 0..8 {
            for (k, bytes) in columns_at(&qs, c).into_iter().enumerate() {
                let (j, i, bits) = (c / 2, c % 2 * 4 + k, bits[c % 2][k]);
                let bit = 2 * j as i32;
                panel.q[16 * j + i] = with_high_bits::<0x1f>(bytes, bits_at_4(bits, bit, bit));
                panel.q[16 * j + 8 + i] =
                    with_high_bits::<0x1f>(_mm512_srli_epi16::<4>(bytes), bits_at_4(bits, bit + 1, bit + 1));
            }
        }
    }
}

impl SuperBlock for BlockQ6K {
    const FLOAT_MINS: bool = false;
    const QUADS: usize = 4;
    const CHAIN: usize = 4;

    #[inline(always)]
    fn slice(bytes: &[u8]) -> &[BlockQ6K] {
        BlockQ6K::slice(bytes)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn heads(blocks: &[Self; 4]) -> Heads {
        let [a, b, c, d] = array!(4, |i| blocks[i].d);
        let d = _mm256_setr_epi16(
            i16::from_le_bytes(a),
            0,
            i16::from_le_bytes(b),
            0,
            i16::from_le_bytes(c),
            0,
            i16::from_le_bytes(d),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        );
        Heads {
            scales: quarters(array!(4, |i| scale_bytes(&blocks[i]))),
            mins: _mm512_setzero_si512(),
            d: _mm256_cvtph_ps(_mm256_castsi256_si128(d)),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn unpack(&self) -> [__m512i; 4] {
        let (ql, _) = self.ql.as_chunks::<64>();
        let (qh, _) = self.qh.as_chunks::<32>();
        array!(4, |j| {
            let (low, bits) = (load_64_bytes(&ql[j / 2]), _mm512_broadcast_i64x4(load_32_bytes(&qh[j / 2])));
            if j % 2 == 0 {
                with_high_bits::<0x3f>(low, bits_at_4(bits, 0, 2))
            } else {
                with_high_bits::<0x3f>(_mm512_srli_epi16::<4>(low), bits_at_4(bits, 4, 6))
            }
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn scales<const I: usize>(heads: &Heads) -> [__m512i; 2] {
        let own = quarter::<I>(heads.scales);
        let high = array!(2, |m| _mm512_shuffle_epi8(own, load_64_bytes(&SCALES_OF_16[m])));
        array!(2, |m| _mm512_srai_epi16::<8>(high[m]))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn offset(&self, sum: __m512i, bsums: __m256i) -> __m512i {
        let scales = _mm256_cvtepi8_epi16(load_16_bytes(scale_bytes(self)));
        let mins = _mm256_slli_epi32::<5>(_mm256_madd_epi16(scales, bsums));
        _mm512_sub_epi32(sum, _mm512_zextsi256_si512(mins))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn panel(blocks: [&Self; 16], panel: &mut Panel) {
        let ql = array!(16, |r| blocks[r].ql.as_chunks::<16>().0);
        let qh = array!(16, |r| blocks[r].qh.as_chunks::<16>().0);
        for half in 0..2 {
            let bits = array!(2, |i| columns_at(&qh, 2 * half + i));
            for c in 0..4 {
                for (k, bytes) in columns_at(&ql, 4 * half + c).into_iter().enumerate() {
                    // Sub-blocks 0 and 1 of 32 in the low nibbles, 2 and 3 in the high ones.
                    let (j, i, bits) = (c / 2, c % 2 * 4 + k, bits[c % 2][k]);
                    let bit = 2 * j as i32;
                    panel.q[32 * half + 8 * j + i] = with_high_bits::<0x3f>(bytes, bits_at_4(bits, bit, bit));
                    panel.q[32 * half + 16 + 8 * j + i] = with_high_bits::<0x3f>(
                        _mm512_srli_epi16::<4>(bytes),
                        bits_at_4(bits, bit + 4, bit + 4),
                    );
                }
            }
        }
        let scales = columns(array!(16, |r| scale_bytes(blocks[r])));
        for g in 0..16 {
            let up = _mm512_set1_epi32(24 - g as i32 % 4 * 8);
            panel.scales[g] = _mm512_srai_epi32::<24>(_mm512_sllv_epi32(scales[g / 4], up));
        }
        for p in 0..8 {
            let odd = _mm512_slli_epi32::<21>(panel.scales[2 * p + 1]);
            let even = _mm512_slli_epi32::<5>(panel.scales[2 * p]);
            panel.mins[p] = select(_mm512_set1_epi32(0xffff), even, odd);
        }
        panel.d = widen_f16(array!(16, |r| blocks[r].d));
    }
}

/// The first 16 bytes of a block of Q4_K or Q5_K: `d`, `dmin`, scales and mins.
#[inline(always)]
fn head<B: IntoBytes + Immutable>(block: &B) -> &[u8; 16] {
    block.as_bytes().first_chunk().unwrap_or(&[0; 16])
}

#[inline(always)]
fn scale_bytes(block: &BlockQ6K) -> &[u8; 16] {
    block.scales.as_bytes().first_chunk().unwrap_or(&[0; 16])
}

/// [`columns`] of the rows' parts `c` of 16 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn columns_at(rows: &[&[[u8; 16]]; 16], c: usize) -> [__m512i; 4] {
    columns(array!(16, |r| &rows[r][c]))
}

/// One of four to each quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn quarters(of: [&[u8; 16]; 4]) -> __m512i {
    let v = _mm512_castsi128_si512(load_16_bytes(of[0]));
    let v = _mm512_inserti32x4::<1>(v, load_16_bytes(of[1]));
    let v = _mm512_inserti32x4::<2>(v, load_16_bytes(of[2]));
    _mm512_inserti32x4::<3>(v, load_16_bytes(of[3]))
}

/// Quarter `I` in every quarter.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn quarter<const I: usize>(v: __m512i) -> __m512i {
    match I {
        0 => _mm512_shuffle_i64x2::<0b00_00_00_00>(v, v),
        1 => _mm512_shuffle_i64x2::<0b01_01_01_01>(v, v),
        2 => _mm512_shuffle_i64x2::<0b10_10_10_10>(v, v),
        _ => _mm512_shuffle_i64x2::<0b11_11_11_11>(v, v),
    }
}

/// The bits of `a` where the mask has ones, of `b` elsewhere.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn select(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0b1100_1010>(mask, a, b)
}

/// [`crate::quant::scales_and_mins`] of four super-blocks, of 32-bit words `[d, s, m, rest]`: scales and mins
/// 0..4 are in the low 6 bits of `s` and `m`, of the others 4 bits in `rest` and 2 bits atop the first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn heads_with_mins(heads: [&[u8; 16]; 4]) -> Heads {
    let h = quarters(heads);
    let (four, six) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x3f));
    let first = _mm512_and_si512(h, six);
    let rest = _mm512_shuffle_epi32::<0b11_11_11_11>(h);
    let rest = _mm512_srlv_epi32(rest, _mm512_set4_epi32(0, 4, 0, 0));
    let others = _mm512_and_si512(select(four, rest, _mm512_srli_epi32::<2>(h)), six);
    Heads {
        scales: _mm512_unpacklo_epi32(first, others),
        mins: _mm512_unpackhi_epi32(first, others),
        d: _mm256_cvtph_ps(first_of_quarters(h)),
    }
}

/// The same of sixteen rows, each in a lane of its own; weights are left open.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn panel_with_mins(heads: [&[u8; 16]; 16], panel: &mut Panel) {
    let [d, s, m, rest] = columns(heads);
    let (four, six) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x3f));
    let others = |rest, first| _mm512_and_si512(select(four, rest, _mm512_srli_epi32::<2>(first)), six);
    let scales = [_mm512_and_si512(s, six), others(rest, s)];
    let mins = [_mm512_and_si512(m, six), others(_mm512_srli_epi32::<4>(rest), m)];
    let byte = |words: [__m512i; 2], i: usize| {
        let down = _mm512_set1_epi32(i as i32 % 4 * 8);
        _mm512_and_si512(_mm512_srlv_epi32(words[i / 4], down), _mm512_set1_epi32(0xff))
    };
    for i in 0..8 {
        panel.scales[i] = byte(scales, i);
    }
    for p in 0..4 {
        panel.mins[p] = _mm512_or_si512(byte(mins, 2 * p), _mm512_slli_epi32::<16>(byte(mins, 2 * p + 1)));
    }
    panel.d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(d));
    let minus = _mm512_set1_epi32(i32::MIN);
    panel.dmin = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_xor_si512(d, minus))));
}

/// The nibbles of 4 x 32 bytes in the order of the weights; the bits above them are whatever.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn nibbles(qs: &[u8; QK_K / 2]) -> [__m512i; 4] {
    let (qs, _) = qs.as_chunks::<32>();
    let shift = join(_mm256_setzero_si256(), _mm256_set1_epi32(4));
    array!(4, |j| _mm512_srlv_epi32(_mm512_broadcast_i64x4(load_32_bytes(&qs[j])), shift))
}

/// Each byte rotated so that bit `low` of the lower half's bytes and bit `high` of the upper half's become
/// bit 4. (It is words that are rotated; the bits from that one to the byte's end keep to their byte.)
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn bits_at_4(bits: __m512i, low: i32, high: i32) -> __m512i {
    let counts = join(_mm256_set1_epi32((low + 28) % 32), _mm256_set1_epi32((high + 28) % 32));
    _mm512_rorv_epi32(bits, counts)
}

/// Bytes with the low four bits of `w` and those above of `high`, as far as the mask goes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn with_high_bits<const MASK: i8>(w: __m512i, high: __m512i) -> __m512i {
    _mm512_and_si512(select(_mm512_set1_epi8(0x0f), w, high), _mm512_set1_epi8(MASK))
}

/// Shuffles that make scales of bytes 8..16 of a quarter, one for 32 weights, in the order of
/// [`SuperBlock::scales`].
static SCALES_OF_32: [[u8; 64]; 2] = scale_shuffles(8, 2, 0);
/// The same of bytes 0..16, one for 16 weights, into the high bytes of the words.
static SCALES_OF_16: [[u8; 64]; 2] = scale_shuffles(0, 1, 1);

const fn scale_shuffles(first: usize, groups: usize, byte: usize) -> [[u8; 64]; 2] {
    const ZERO: u8 = 0x80;
    let mut shuffles = [[ZERO; 64]; 2];
    let mut i = 0;
    while i < 64 {
        let (m, word) = (i / 32, i % 32);
        let group = 8 * m + word % 8 / 4 * 4 + word / 8;
        shuffles[m][2 * word + byte] = (first + group / groups) as u8;
        i += 1;
    }
    shuffles
}
