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

/// Sixty-four bytes of a query, two blocks of Q8_0, and what instruction sets want to know of them. Elements that
/// are not there are 0, and so is the scale of a block that is not.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct QueryUnit {
    pub quants: [i8; 64],
    /// Lane l: -128 times the sum of the bytes 4l to 4l + 3.
    pub less_128: [i32; 16],
    /// Lane l: -8 times that sum.
    pub less_8: [i32; 16],
    /// The scale of the block that a lane belongs to.
    pub scales: [f32; 16],
}

impl QueryUnit {
    pub const ZERO: QueryUnit =
        QueryUnit { quants: [0; 64], less_128: [0; 16], less_8: [0; 16], scales: [0.0; 16] };

    /// Of bytes and of the scales of their two blocks.
    pub fn new(quants: &[i8; 64], scales: [f32; 2]) -> QueryUnit {
        let mut unit = QueryUnit { quants: *quants, ..QueryUnit::ZERO };
        for (lane, four) in quants.as_chunks::<4>().0.iter().enumerate() {
            let sum: i32 = four.iter().map(|&q| i32::from(q)).sum();
            (unit.less_128[lane], unit.less_8[lane]) = (-128 * sum, -8 * sum);
            unit.scales[lane] = scales[lane / 8];
        }
        unit
    }
}

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

    /// `low` in lanes 0..8, `high` in 8..16.
    #[inline(always)]
    fn halves(self, low: f32, high: f32) -> Self::F {
        let mut lanes = [low; 16];
        lanes[8..].fill(high);
        self.load(&lanes)
    }

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

    /// Lane l: the sum of the products of bytes 4l to 4l + 3, exact.
    #[inline(always)]
    fn dot_bytes(self, k: &[i8; 64], q: &QueryUnit) -> Self::F {
        let product = |i: usize| i32::from(k[i]) * i32::from(q.quants[i]);
        self.load(&each!(16, l => (4 * l..4 * l + 4).map(product).sum::<i32>() as f32))
    }

    /// The same of nibbles less 8: the low ones are elements 0 to 31, the high ones 32 to 63.
    #[inline(always)]
    fn dot_nibbles(self, k: &[u8; 32], q: &QueryUnit) -> Self::F {
        self.dot_bytes(&each!(64, i => (k[i % 32] >> (i / 32 * 4) & 15) as i8 - 8), q)
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
