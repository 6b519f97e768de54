//! Rows of activations arranged for panels of weights: what a group of tokens has in a super-block lies
//! side by side, in the order in which kernels read it.
//!
//! Rows of activations are often a multiple of 4096 bytes apart, which a cache puts into the same few places;
//! a kernel that goes over several rows at once then waits for memory. Here it reads one stream.

use std::array::from_fn;

use rayon::prelude::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use super::{ActivationType, Activations, PART, Q8_0Row, Q8KRow, QK_K};

/// A super-block (Q8_K) of `T` tokens.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Group<const T: usize> {
    /// `[quad][token]`: four values each.
    pub quads: [[[i8; 4]; T]; QK_K / 4],
    /// `[pair][token]`: the sums of 16 values, of two times 16 that follow one another.
    pub sums_of_16: [[[i16; 2]; T]; QK_K / 32],
    /// `[pair][token]`: the same of 32 values.
    pub sums_of_32: [[[i16; 2]; T]; QK_K / 64],
    /// `[16 values][token]`: -32 times the sums of the first and of the last two of each quad, which is what
    /// an offset of 32 is taken off by where pairs of products are added up.
    pub less_32: [[[i16; 2]; T]; QK_K / 16],
    /// `[32 values][token]`: -8 times their sum, which is what an offset of 8 is taken off by.
    pub less_8: [[i32; T]; QK_K / 32],
    pub d: [f32; T],
}

/// Eight blocks of 32 (Q8_0, Q8_1) of `T` tokens; where a row ends before, zeros.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Parts<const T: usize> {
    /// `[block][quad][token]`: four values each.
    pub quads: [[[[i8; 4]; T]; PART / 4]; 8],
    /// `[block][token]`: the sums of the first and of the second 16 values.
    pub sums: [[[i16; 2]; T]; 8],
    /// `[block][token]`
    pub d: [[f32; T]; 8],
    /// `[block][token]`: Q8_1's sums; otherwise zeros.
    pub s: [[f32; T]; 8],
}

/// Columns of a group.
const COLS: usize = QK_K;

/// Bytes that a row of so many columns takes at most.
pub const fn bytes_of_row(cols: usize) -> usize {
    let (group, parts) = (size_of::<Group<1>>(), size_of::<Parts<1>>());
    cols.div_ceil(COLS) * if group > parts { group } else { parts }
}

/// The numbers of tokens that groups may have, the most first.
macro_rules! group_sizes {
    ($derive:ident) => {
        $derive! { 8 4 3 2 1 }
    };
}
pub(crate) use group_sizes;

macro_rules! sizes {
    ($($size:literal)*) => {
        /// The groups that this many tokens make, of at most `most`: where each begins, and how many it has.
        pub fn groups(tokens: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
            let mut at = 0;
            std::iter::from_fn(move || {
                let size = [$($size),*].into_iter().find(|&size| size <= most && at + size <= tokens)?;
                at += size;
                Some((at - size, size))
            })
        }
    };
}
group_sizes!(sizes);

/// Rows of a quantised type, arranged in groups.
#[derive(Debug)]
pub struct Arranged {
    /// `[256 columns][token]`: `words_each` for each, group after group.
    words: Vec<u32>,
    words_each: usize,
    tokens: usize,
    /// Tokens of a group at most.
    most: usize,
}

impl Arranged {
    pub fn most(&self) -> usize {
        self.most
    }

    /// Arranges rows in groups of at most `most`; large ones by the current thread pool.
    ///
    /// # Panics
    /// Where the rows are of a float type.
    pub(super) fn of(x: &Activations, most: usize) -> Arranged {
        match x.ty() {
            ActivationType::Q8_K => Arranged::with(x, most, size_of::<Group<1>>(), |words, at, t, unit| {
                fill_group(words, at, x.row(t).q8_k(), unit);
            }),
            ActivationType::Q8_1 => Arranged::with(x, most, size_of::<Parts<1>>(), |words, at, t, unit| {
                fill_parts(words, at, x.row(t).q8_1(), unit);
            }),
            _ => Arranged::with(x, most, size_of::<Parts<1>>(), |words, at, t, unit| {
                fill_parts(words, at, x.row(t).q8_0(), unit);
            }),
        }
    }

    /// `fill` writes what token `t` has in unit `unit` into a group's words, at its place of so many.
    fn with(
        x: &Activations,
        most: usize,
        bytes_each: usize,
        fill: impl Fn(&mut [u32], [usize; 2], usize, usize) + Sync,
    ) -> Arranged {
        let (tokens, each) = (x.rows(), bytes_each / 4);
        let mut words = vec![0; x.cols().div_ceil(COLS) * tokens * each];
        words.par_chunks_mut((tokens * each).max(1)).enumerate().for_each(|(unit, words)| {
            for (at, size) in groups(tokens, most) {
                let words = &mut words[at * each..][..size * each];
                (0..size).for_each(|t| fill(words, [t, size], at + t, unit));
            }
        });
        Arranged { words, words_each: each, tokens, most }
    }

    fn words<const T: usize>(&self, unit: usize, first: usize) -> &[u8] {
        self.words[(unit * self.tokens + first) * self.words_each..][..T * self.words_each].as_bytes()
    }

    /// Super-block `unit` of the group that begins with token `first`.
    ///
    /// # Panics
    /// Where there is no group of this size, or the rows are not of type Q8_K.
    #[inline(always)]
    pub fn group<const T: usize>(&self, unit: usize, first: usize) -> &Group<T> {
        match Group::ref_from_bytes(self.words::<T>(unit, first)) {
            Ok(group) => group,
            Err(_) => unreachable!("words of a group"),
        }
    }

    /// Blocks `8 * unit` to `8 * unit + 7` of the group that begins with token `first`.
    ///
    /// # Panics
    /// Where there is no group of this size, or the rows are not of type Q8_0 or Q8_1.
    #[inline(always)]
    pub fn parts<const T: usize>(&self, unit: usize, first: usize) -> &Parts<T> {
        match Parts::ref_from_bytes(self.words::<T>(unit, first)) {
            Ok(parts) => parts,
            Err(_) => unreachable!("words of a group"),
        }
    }
}

/// Writes one token's part of a field of `len` values, token `t` of a group of `tokens`; returns the words of
/// the fields behind it.
#[inline(always)]
fn put<'w, V: Copy>(
    words: &'w mut [u32],
    len: usize,
    [t, tokens]: [usize; 2],
    values: &[V],
    word: impl Fn(V) -> u32,
) -> &'w mut [u32] {
    let (field, rest) = words.split_at_mut(len * tokens);
    for (to, value) in field.chunks_exact_mut(tokens).zip(values) {
        to[t] = word(*value);
    }
    rest
}

/// Fills a token's place in a [`Group`] with super-block `unit` of its row.
fn fill_group(words: &mut [u32], at: [usize; 2], row: Q8KRow<'_>, unit: usize) {
    let quads: &[[i8; 4]] = row.qs.as_chunks::<QK_K>().0[unit].as_chunks().0;
    let sums: &[[i16; 2]] = row.bsums.as_chunks::<16>().0[unit].as_chunks().0;
    let sums_of_32: [[i16; 2]; QK_K / 64] = from_fn(|p| from_fn(|i| sums[2 * p + i][0] + sums[2 * p + i][1]));
    let less_32: [[i16; 2]; QK_K / 16] = from_fn(|g| {
        let quads = quads[4 * g..][..4].iter().map(|quad| quad.map(i16::from));
        let [a, b] = quads.fold([0, 0], |[x, y], [a, b, c, d]| [x + a + b, y + c + d]);
        [-32 * a, -32 * b]
    });
    let less_8: [i32; QK_K / 32] = from_fn(|g| -8 * i32::from(sums_of_32[g / 2][g % 2]));
    let words = put(words, QK_K / 4, at, quads, |quad| transmute!(quad));
    let words = put(words, QK_K / 32, at, sums, |pair| transmute!(pair));
    let words = put(words, QK_K / 64, at, &sums_of_32, |pair| transmute!(pair));
    let words = put(words, QK_K / 16, at, &less_32, |pair| transmute!(pair));
    let words = put(words, QK_K / 32, at, &less_8, i32::cast_unsigned);
    put(words, 1, at, &[row.d[unit]], f32::to_bits);
}

/// Fills a token's place in [`Parts`], which has zeros so far, with the eight blocks from `8 * unit` on of
/// its row.
fn fill_parts(words: &mut [u32], at: [usize; 2], row: Q8_0Row<'_>, unit: usize) {
    let here = 8 * unit..row.d.len().min(8 * unit + 8);
    let quads: &[[i8; 4]] = row.qs[PART * here.start..PART * here.end].as_chunks().0;
    let sums: &[[i16; 2]] = row.bsums[2 * here.start..2 * here.end].as_chunks().0;
    let words = put(words, 8 * PART / 4, at, quads, |quad| transmute!(quad));
    let words = put(words, 8, at, sums, |pair| transmute!(pair));
    let words = put(words, 8, at, &row.d[here.clone()], f32::to_bits);
    put(words, 8, at, row.s.get(here).unwrap_or_default(), f32::to_bits);
}

#[cfg(test)]
mod tests {
    use super::super::ActivationType;
    use super::*;

    #[test]
    fn groups_are_as_large_as_they_may_be() {
        let groups = |tokens, most| groups(tokens, most).collect::<Vec<_>>();
        assert_eq!(groups(23, 8), [(0, 8), (8, 8), (16, 4), (20, 3)]);
        assert_eq!(groups(6, 4), [(0, 4), (4, 2)]);
        assert_eq!(groups(0, 8), []);
    }

    #[test]
    fn each_value_is_where_its_token_and_place_say() {
        let (tokens, cols) = (7, 3 * QK_K);
        let values: Vec<f32> = (0..tokens * cols).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
        let mut x = Activations::new();
        x.quantize(ActivationType::Q8_K, &values, cols).unwrap();
        let arranged = x.arranged(4);
        type Values = ([[i8; 4]; 64], [[i16; 2]; 8], [[i16; 2]; 4], [[i16; 2]; 16], [i32; 8], f32);
        let check = |t: usize, of: &dyn Fn(usize) -> Values| {
            let row = x.row(t).q8_k();
            for unit in 0..3 {
                let (quads, of_16, of_32, less_32, less_8, d) = of(unit);
                let qs = &row.qs[unit * QK_K..][..QK_K];
                assert_eq!(quads.as_flattened(), qs);
                assert_eq!(of_16.as_flattened(), &row.bsums[unit * 16..][..16]);
                let sums = qs.chunks(32).map(|of| of.iter().map(|&q| i16::from(q)).sum());
                assert_eq!(of_32.as_flattened(), sums.collect::<Vec<i16>>());
                for (q, less) in qs.as_chunks::<16>().0.iter().zip(less_32) {
                    let sum = |low: usize| (0..16).filter(move |i| i / 2 % 2 == low).map(|i| i16::from(q[i]));
                    assert_eq!(less, [-32 * sum(0).sum::<i16>(), -32 * sum(1).sum::<i16>()]);
                }
                let sums = qs.chunks(32).map(|of| of.iter().map(|&q| i32::from(q)).sum::<i32>());
                assert_eq!(less_8.to_vec(), sums.map(|sum| -8 * sum).collect::<Vec<i32>>());
                assert_eq!(d, row.d[unit]);
            }
        };
        fn of_token<const T: usize>(group: &Group<T>, t: usize) -> Values {
            let Group { quads, sums_of_16, sums_of_32, less_32, less_8, d } = group;
            let (less_32, less_8) = (less_32.map(|s| s[t]), less_8.map(|s| s[t]));
            (quads.map(|q| q[t]), sums_of_16.map(|s| s[t]), sums_of_32.map(|s| s[t]), less_32, less_8, d[t])
        }
        for t in 0..4 {
            check(t, &|unit| of_token(arranged.group::<4>(unit, 0), t));
        }
        for t in 0..3 {
            check(4 + t, &|unit| of_token(arranged.group::<3>(unit, 4), t));
        }
    }

    /// What was arranged before is gone with the rows that it was of.
    #[test]
    fn it_is_of_the_rows_at_hand() {
        let mut x = Activations::new();
        for factor in [37, 41] {
            let values: Vec<f32> = (0..2 * QK_K).map(|i| (i * factor % 101) as f32 - 50.0).collect();
            x.quantize(ActivationType::Q8_K, &values, QK_K).unwrap();
            let quads: [[i8; 4]; 2] = std::array::from_fn(|t| x.qs().as_chunks().0[t * QK_K / 4]);
            assert_eq!(x.arranged(8).group::<2>(0, 0).quads[0], quads);
            assert_eq!(x.arranged(1).group::<1>(0, 1).quads[0], quads[1..]);
            assert_eq!(x.arranged(1).most(), 1);
        }
    }

    #[test]
    fn blocks_of_32_end_with_zeros() {
        let (tokens, cols) = (3, 320);
        let values: Vec<f32> = (0..tokens * cols).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
        for ty in [ActivationType::Q8_0, ActivationType::Q8_1] {
            let mut x = Activations::new();
            x.quantize(ty, &values, cols).unwrap();
            let arranged = x.arranged(2);
            for t in 0..tokens {
                let row = if ty == ActivationType::Q8_0 { x.row(t).q8_0() } else { x.row(t).q8_1() };
                for (block, (d, q)) in row.d.iter().zip(row.qs.as_chunks::<PART>().0).enumerate() {
                    let (quads, sums, own, s) = of_block(&arranged, t, block);
                    assert_eq!((quads.as_flattened(), own), (&q[..], *d));
                    assert_eq!(sums, row.bsums[2 * block..][..2]);
                    assert_eq!(s, row.s.get(block).copied().unwrap_or(0.0));
                }
                for block in 10..16 {
                    assert_eq!(of_block(&arranged, t, block), ([[0; 4]; 8], [0; 2], 0.0, 0.0));
                }
            }
        }
    }

    type Block = ([[i8; 4]; 8], [i16; 2], f32, f32);

    /// Of three tokens in groups of two.
    fn of_block(arranged: &Arranged, t: usize, block: usize) -> Block {
        fn of<const T: usize>(parts: &Parts<T>, t: usize, b: usize) -> Block {
            (parts.quads[b].map(|q| q[t]), parts.sums[b][t], parts.d[b][t], parts.s[b][t])
        }
        let (unit, b) = (block / 8, block % 8);
        if t < 2 { of(arranged.parts::<2>(unit, 0), t, b) } else { of(arranged.parts::<1>(unit, 2), 0, b) }
    }
}
