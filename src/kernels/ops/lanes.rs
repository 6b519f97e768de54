//! What an instruction set gives the operations: sixteen f32 lanes and eight f64 lanes.
//!
//! Each operation is written once over [`Isa`]; every method here rounds exactly once, lane by lane, so two
//! implementations cannot differ in a bit (a NaN's payload aside). The value of an `Isa` proves that the CPU
//! has its instructions, and lanes come only from it; hence the methods are safe.

use half::f16;

/// Applies an expression to each lane.
macro_rules! each {
    ($n:literal, $i:ident => $value:expr) => {{
        let mut out = [Default::default(); $n];
        let mut $i = 0;
        while $i < $n {
            out[$i] = $value;
            $i += 1;
        }
        out
    }};
}

/// A block of a query, rounded to Q8_0, and what instruction sets want to know of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QueryBlock {
    /// The bytes of four neighbours each.
    pub fours: [i32; 8],
    pub scale: f32,
    /// The sum of all quants.
    pub sum: i32,
}

impl QueryBlock {
    pub fn new(quants: &[i8; 32], scale: f32) -> QueryBlock {
        let mut fours = [0; 8];
        for (four, quants) in fours.iter_mut().zip(quants.as_chunks::<4>().0) {
            *four = i32::from_ne_bytes(each!(4, i => quants[i] as u8));
        }
        QueryBlock { fours, scale, sum: quants.iter().map(|&q| i32::from(q)).sum() }
    }
}

/// A block of the keys of sixteen positions: of each four neighbours those of all positions, one position
/// behind the other.
pub(super) type BytePanel = [[[i8; 4]; 16]; 8];
/// The same in nibbles, less 8: a byte holds a quant of four i low, of four i + 4 high.
pub(super) type NibblePanel = [[[u8; 4]; 16]; 4];

/// An instruction set. Its value is a proof that the CPU supports it.
pub(super) trait Isa: Copy {
    /// Whether there are registers for sixteen sums of sixteen lanes beside what they are made of.
    const MANY_REGISTERS: bool = false;

    type F: Lanes16;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 16]) -> Self::F;
    /// Sixteen f16, widened exactly.
    fn load_f16(self, bits: &[u16; 16]) -> Self::F;
    /// Eight f64 zeros.
    fn zero64(self) -> <Self::F as Lanes16>::D;
    /// Asks for a cache line that will be read soon; changes no result.
    fn prefetch<T>(self, at: &T);

    /// Sixteen bytes as f32.
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> Self::F {
        self.load(&each!(16, i => f32::from(x[i])))
    }

    /// The low or the high nibbles of sixteen bytes, less 8, as f32.
    #[inline(always)]
    fn load_nibbles(self, x: &[u8; 16], high: bool) -> Self::F {
        let shift = if high { 4 } else { 0 };
        self.load(&each!(16, i => f32::from((x[i] >> shift & 15) as i8 - 8)))
    }

    /// Products of a block of sixteen positions' keys with some queries' blocks, as f32, exact.
    #[inline(always)]
    fn dot_bytes<const R: usize>(self, k: &BytePanel, q: [&QueryBlock; R]) -> [Self::F; R] {
        let dot = |q: &QueryBlock, position: usize| {
            let fours = k.iter().zip(&q.fours).map(|(k, q)| {
                let products = k[position].iter().zip(q.to_ne_bytes());
                products.map(|(&k, q)| i32::from(k) * i32::from(q as i8)).sum::<i32>()
            });
            fours.sum::<i32>() as f32
        };
        q.map(|q| self.load(&each!(16, i => dot(q, i))))
    }

    /// The same of nibbles less 8.
    #[inline(always)]
    fn dot_nibbles<const R: usize>(self, k: &NibblePanel, q: [&QueryBlock; R]) -> [Self::F; R] {
        let mut bytes = [[[0; 4]; 16]; 8];
        for (i, fours) in bytes.iter_mut().enumerate() {
            for (four, k) in fours.iter_mut().zip(&k[i % 4]) {
                *four = each!(4, j => (k[j] >> (i / 4 * 4) & 15) as i8 - 8);
            }
        }
        self.dot_bytes(&bytes, q)
    }

    /// The first `len` lanes (at most 16) from the beginning of `x`, the others zero.
    #[inline(always)]
    fn load_first(self, x: &[f32], len: usize) -> Self::F {
        match x.first_chunk::<16>() {
            Some(x) if len == 16 => self.load(x),
            _ => self.load_head(&x[..len]),
        }
    }

    /// The first lanes from `x` (at most 16 values), the others zero.
    #[inline(always)]
    fn load_head(self, x: &[f32]) -> Self::F {
        let mut lanes = [0.0; 16];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }
}

/// Sixteen f32 lanes.
pub(super) trait Lanes16: Copy {
    type D: Lanes8;

    fn store(self, to: &mut [f32; 16]);
    /// Rounds each lane to f16, to nearest even; what is denormal there is kept.
    fn store_f16(self, to: &mut [u16; 16]);
    /// Rounds each lane to f16 as [`Lanes16::store_f16`] does, and widens it again.
    fn round_f16(self) -> Self;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `if self < b { self } else { b }`: `b` where either is NaN.
    fn min(self, b: Self) -> Self;
    /// `if self > b { self } else { b }`: `b` where either is NaN.
    fn max(self, b: Self) -> Self;
    /// `self * 2^n` where `n` is held as `MAGIC + n` (see [`MAGIC`]), in two steps so that the result
    /// overflows to infinity and underflows through the denormals by itself.
    fn scale_by_power(self, n: Self) -> Self;
    /// Lanes 0..8 and 8..16 in f64.
    fn widen(self) -> (Self::D, Self::D);
    /// Lanes 8..16 added to 0..8, then `((0+4)+(2+6)) + ((1+5)+(3+7))`.
    fn sum(self) -> f32;

    /// [`Lanes16::sum`] of each.
    #[inline(always)]
    fn sum4(x: [Self; 4]) -> [f32; 4] {
        [x[0].sum(), x[1].sum(), x[2].sum(), x[3].sum()]
    }

    /// Stores the first `to.len()` lanes (at most 16).
    #[inline(always)]
    fn store_head(self, to: &mut [f32]) {
        let mut lanes = [0.0; 16];
        self.store(&mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }
}

/// Eight f64 lanes.
pub(super) trait Lanes8: Copy {
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `((0+4)+(2+6)) + ((1+5)+(3+7))`.
    fn sum(self) -> f64;
}

/// 1.5 * 2^23: added to a small f32, it leaves the nearest integer in the low bits of the mantissa.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// Plain Rust: the definition of every result.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Isa for Scalar {
    type F = [f32; 16];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }
    #[inline(always)]
    fn load_f16(self, bits: &[u16; 16]) -> [f32; 16] {
        each!(16, i => f16::from_bits(bits[i]).to_f32_const())
    }
    #[inline(always)]
    fn zero64(self) -> [f64; 8] {
        [0.0; 8]
    }
    #[inline(always)]
    fn prefetch<T>(self, _: &T) {}
}

impl Lanes16 for [f32; 16] {
    type D = [f64; 8];

    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        *to = self;
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; 16]) {
        *to = each!(16, i => f16::from_f32_const(self[i]).to_bits());
    }
    #[inline(always)]
    fn round_f16(self) -> Self {
        each!(16, i => f16::from_f32_const(self[i]).to_f32_const())
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        each!(16, i => self[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        each!(16, i => self[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        each!(16, i => self[i] * b[i])
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        each!(16, i => self[i] / b[i])
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        each!(16, i => self[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        each!(16, i => if self[i] < b[i] { self[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        each!(16, i => if self[i] > b[i] { self[i] } else { b[i] })
    }
    #[inline(always)]
    fn scale_by_power(self, n: Self) -> Self {
        each!(16, i => {
            let n = (n[i].to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
            let half = n >> 1;
            let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
            self[i] * power(half) * power(n.wrapping_sub(half))
        })
    }
    #[inline(always)]
    fn widen(self) -> ([f64; 8], [f64; 8]) {
        (each!(8, i => f64::from(self[i])), each!(8, i => f64::from(self[i + 8])))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let l: [f32; 8] = each!(8, i => self[i] + self[i + 8]);
        ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
    }
}

impl Lanes8 for [f64; 8] {
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        each!(8, i => self[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn sum(self) -> f64 {
        let l = self;
        ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
    }
}
