//! Sixteen f32 lanes in four NEON registers; fused multiply-add and conversions of f16 are part of NEON.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lanes::{BytePanel, Isa, Lanes8, Lanes16, MAGIC, NibblePanel, QueryBlock};

/// The proof that the CPU has NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    /// Safe only for callers compiled for this feature, which is the proof.
    #[target_feature(enable = "neon")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

/// Lanes 0..4, 4..8, 8..12 and 12..16; built only from a [`Neon`].
#[derive(Clone, Copy)]
pub(super) struct F32x16(float32x4_t, float32x4_t, float32x4_t, float32x4_t);

/// Lanes 0..2, 2..4, 4..6 and 6..8; built only from a [`Neon`].
#[derive(Clone, Copy)]
pub(super) struct F64x8(float64x2_t, float64x2_t, float64x2_t, float64x2_t);

/// Calls intrinsics on behalf of a value that proves the CPU's support.
macro_rules! with_neon {
    ($e:expr) => {
        // SAFETY: a `Neon`, or lanes made from one, is in hand: the CPU has NEON. Loads and stores go through
        // references to arrays of the full width.
        unsafe { $e }
    };
}

impl Isa for Neon {
    type F = F32x16;

    #[inline(always)]
    fn splat(self, x: f32) -> F32x16 {
        let x = with_neon!(vdupq_n_f32(x));
        F32x16(x, x, x, x)
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> F32x16 {
        let x = x.as_ptr();
        with_neon!(F32x16(vld1q_f32(x), vld1q_f32(x.add(4)), vld1q_f32(x.add(8)), vld1q_f32(x.add(12))))
    }
    #[inline(always)]
    fn load_f16(self, bits: &[u16; 16]) -> F32x16 {
        let bits = bits.as_ptr();
        with_neon!({
            let (low, high) = (vld1q_u16(bits), vld1q_u16(bits.add(8)));
            F32x16(
                widen_f16(vget_low_u16(low)),
                widen_f16(vget_high_u16(low)),
                widen_f16(vget_low_u16(high)),
                widen_f16(vget_high_u16(high)),
            )
        })
    }
    #[inline(always)]
    fn zero64(self) -> F64x8 {
        let zero = with_neon!(vdupq_n_f64(0.0));
        F64x8(zero, zero, zero, zero)
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> F32x16 {
        with_neon!(widen_bytes(vld1q_s8(x.as_ptr())))
    }
    #[inline(always)]
    fn load_nibbles(self, x: &[u8; 16], high: bool) -> F32x16 {
        with_neon!({
            let x = vld1q_u8(x.as_ptr());
            widen_bytes(nibbles(if high { vshrq_n_u8::<4>(x) } else { x }))
        })
    }
    #[inline(always)]
    fn dot_bytes<const R: usize>(self, k: &BytePanel, q: [&QueryBlock; R]) -> [F32x16; R] {
        with_neon!({
            let mut acc = [[vdupq_n_s32(0); 4]; R];
            for (i, k) in k.iter().enumerate() {
                let k = k.as_ptr().cast::<i8>();
                for quarter in 0..4 {
                    let k = vld1q_s8(k.add(16 * quarter));
                    for (acc, q) in acc.iter_mut().zip(q) {
                        acc[quarter] = vaddq_s32(acc[quarter], fours(k, four(q, i)));
                    }
                }
            }
            finish(acc)
        })
    }
    #[inline(always)]
    fn dot_nibbles<const R: usize>(self, k: &NibblePanel, q: [&QueryBlock; R]) -> [F32x16; R] {
        with_neon!({
            // The 8 that each quant is less is taken off the sum first.
            let mut acc = [[vdupq_n_s32(0); 4]; R];
            for (acc, q) in acc.iter_mut().zip(q) {
                *acc = [vdupq_n_s32(-8 * q.sum); 4];
            }
            for (i, k) in k.iter().enumerate() {
                let k = k.as_ptr().cast::<u8>();
                for quarter in 0..4 {
                    let k = vld1q_u8(k.add(16 * quarter));
                    let low = vreinterpretq_s8_u8(vandq_u8(k, vdupq_n_u8(15)));
                    let high = vreinterpretq_s8_u8(vshrq_n_u8::<4>(k));
                    for (acc, q) in acc.iter_mut().zip(q) {
                        let both = vaddq_s32(fours(low, four(q, i)), fours(high, four(q, i + 4)));
                        acc[quarter] = vaddq_s32(acc[quarter], both);
                    }
                }
            }
            finish(acc)
        })
    }
    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        let at = std::ptr::from_ref(at);
        // SAFETY: a hint, which touches nothing that a program could see; the intrinsic for it is not stable.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, readonly, preserves_flags)) };
    }
}

/// A lane-wise method from a function of a register.
macro_rules! lanewise {
    ($($name:ident = $function:path;)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self) -> Self {
            with_neon!(Self(
                $function(self.0, b.0),
                $function(self.1, b.1),
                $function(self.2, b.2),
                $function(self.3, b.3)
            ))
        }
    )*};
}

/// Sixteen bytes as f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen_bytes(x: int8x16_t) -> F32x16 {
    let (low, high) = (vmovl_s8(vget_low_s8(x)), vmovl_high_s8(x));
    F32x16(
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
        vcvtq_f32_s32(vmovl_high_s16(low)),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
        vcvtq_f32_s32(vmovl_high_s16(high)),
    )
}

/// The low nibbles, less 8.
#[inline]
#[target_feature(enable = "neon")]
fn nibbles(x: uint8x16_t) -> int8x16_t {
    vsubq_s8(vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(15))), vdupq_n_s8(8))
}

/// Sums of four products of bytes.
#[inline]
#[target_feature(enable = "neon")]
fn fours(k: int8x16_t, q: int8x16_t) -> int32x4_t {
    let low = vpaddlq_s16(vmull_s8(vget_low_s8(k), vget_low_s8(q)));
    vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(k, q)))
}

/// Four quants of a query, again and again.
#[inline]
#[target_feature(enable = "neon")]
fn four(q: &QueryBlock, i: usize) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(q.fours[i]))
}

/// As f32.
#[inline]
#[target_feature(enable = "neon")]
fn finish<const R: usize>(acc: [[int32x4_t; 4]; R]) -> [F32x16; R] {
    let zero = vdupq_n_f32(0.0);
    let mut out = [F32x16(zero, zero, zero, zero); R];
    for (out, [a, b, c, d]) in out.iter_mut().zip(acc) {
        *out = F32x16(vcvtq_f32_s32(a), vcvtq_f32_s32(b), vcvtq_f32_s32(c), vcvtq_f32_s32(d));
    }
    out
}

/// Four f16, widened exactly.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(bits: uint16x4_t) -> float32x4_t {
    vcvt_f32_f16(vreinterpret_f16_u16(bits))
}

/// Four f32, rounded to f16: to nearest even, denormals kept.
#[inline]
#[target_feature(enable = "neon")]
fn narrow_f16(x: float32x4_t) -> uint16x4_t {
    vreinterpret_u16_f16(vcvt_f16_f32(x))
}

/// `b` where either is NaN, for which NEON's own minimum gives NaN.
#[inline]
#[target_feature(enable = "neon")]
fn lesser(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    vbslq_f32(vcltq_f32(a, b), a, b)
}

/// `b` where either is NaN.
#[inline]
#[target_feature(enable = "neon")]
fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    vbslq_f32(vcgtq_f32(a, b), a, b)
}

/// `x * 2^n`, `n` held as `MAGIC + n`.
#[inline]
#[target_feature(enable = "neon")]
fn scale_by_power(x: float32x4_t, n: float32x4_t) -> float32x4_t {
    let n = vsubq_s32(vreinterpretq_s32_f32(n), vdupq_n_s32(MAGIC.to_bits() as i32));
    let half = vshrq_n_s32::<1>(n);
    let rest = vsubq_s32(n, half);
    let bias = vdupq_n_s32(127);
    let half = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(half, bias)));
    let rest = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(rest, bias)));
    vmulq_f32(vmulq_f32(x, half), rest)
}

/// Lanes i + (i + 8), of these i + (i + 4): the first two steps of the tree.
#[inline]
#[target_feature(enable = "neon")]
fn fold(x: F32x16) -> float32x4_t {
    vaddq_f32(vaddq_f32(x.0, x.2), vaddq_f32(x.1, x.3))
}

/// Lanes 0 + 2 and 1 + 3 of `a`, then of `b`.
#[inline]
#[target_feature(enable = "neon")]
fn fold2(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
    vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)))
}

impl Lanes16 for F32x16 {
    type D = F64x8;

    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        let to = to.as_mut_ptr();
        with_neon!({
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
            vst1q_f32(to.add(8), self.2);
            vst1q_f32(to.add(12), self.3);
        });
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; 16]) {
        let to = to.as_mut_ptr();
        with_neon!({
            vst1q_u16(to, vcombine_u16(narrow_f16(self.0), narrow_f16(self.1)));
            vst1q_u16(to.add(8), vcombine_u16(narrow_f16(self.2), narrow_f16(self.3)));
        });
    }
    #[inline(always)]
    fn round_f16(self) -> Self {
        with_neon!(Self(
            widen_f16(narrow_f16(self.0)),
            widen_f16(narrow_f16(self.1)),
            widen_f16(narrow_f16(self.2)),
            widen_f16(narrow_f16(self.3))
        ))
    }
    lanewise! {
        add = vaddq_f32;
        sub = vsubq_f32;
        mul = vmulq_f32;
        div = vdivq_f32;
        min = lesser;
        max = greater;
        scale_by_power = scale_by_power;
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        with_neon!(Self(
            vfmaq_f32(c.0, self.0, b.0),
            vfmaq_f32(c.1, self.1, b.1),
            vfmaq_f32(c.2, self.2, b.2),
            vfmaq_f32(c.3, self.3, b.3)
        ))
    }
    #[inline(always)]
    fn widen(self) -> (F64x8, F64x8) {
        with_neon!((
            F64x8(
                vcvt_f64_f32(vget_low_f32(self.0)),
                vcvt_high_f64_f32(self.0),
                vcvt_f64_f32(vget_low_f32(self.1)),
                vcvt_high_f64_f32(self.1)
            ),
            F64x8(
                vcvt_f64_f32(vget_low_f32(self.2)),
                vcvt_high_f64_f32(self.2),
                vcvt_f64_f32(vget_low_f32(self.3)),
                vcvt_high_f64_f32(self.3)
            )
        ))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        with_neon!({
            let l = fold(self);
            vpadds_f32(vadd_f32(vget_low_f32(l), vget_high_f32(l)))
        })
    }
    #[inline(always)]
    fn sum4(x: [Self; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        with_neon!({
            let (ab, cd) = (fold2(fold(x[0]), fold(x[1])), fold2(fold(x[2]), fold(x[3])));
            vst1q_f32(out.as_mut_ptr(), vpaddq_f32(ab, cd));
        });
        out
    }
}

impl Lanes8 for F64x8 {
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        with_neon!(Self(
            vfmaq_f64(c.0, self.0, b.0),
            vfmaq_f64(c.1, self.1, b.1),
            vfmaq_f64(c.2, self.2, b.2),
            vfmaq_f64(c.3, self.3, b.3)
        ))
    }
    #[inline(always)]
    fn sum(self) -> f64 {
        with_neon!({
            let l = vaddq_f64(vaddq_f64(self.0, self.2), vaddq_f64(self.1, self.3));
            vpaddd_f64(l)
        })
    }
}
