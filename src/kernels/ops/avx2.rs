//! Sixteen f32 lanes in two AVX2 registers, with FMA and F16C.

use std::arch::x86_64::*;

use super::lanes::{BytePanel, Isa, Lanes8, Lanes16, MAGIC, NibblePanel, QueryBlock};

/// The proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// Safe only for callers compiled for these features, which is the proof.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

/// Lanes 0..8 and 8..16; built only from an [`Avx2`].
#[derive(Clone, Copy)]
pub(super) struct F32x16(__m256, __m256);

/// Lanes 0..4 and 4..8; built only from an [`Avx2`].
#[derive(Clone, Copy)]
pub(super) struct F64x8(__m256d, __m256d);

/// Calls intrinsics on behalf of a value that proves the CPU's support.
macro_rules! with_avx2 {
    ($e:expr) => {
        // SAFETY: an `Avx2`, or lanes made from one, is in hand: the CPU has AVX2, FMA and F16C. Loads and
        // stores go through references to arrays of the full width.
        unsafe { $e }
    };
}

impl Isa for Avx2 {
    type F = F32x16;

    #[inline(always)]
    fn splat(self, x: f32) -> F32x16 {
        with_avx2!(F32x16(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> F32x16 {
        let x = x.as_ptr();
        with_avx2!(F32x16(_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))))
    }
    #[inline(always)]
    fn load_f16(self, bits: &[u16; 16]) -> F32x16 {
        let bits = bits.as_ptr().cast::<__m128i>();
        with_avx2!(F32x16(
            _mm256_cvtph_ps(_mm_loadu_si128(bits)),
            _mm256_cvtph_ps(_mm_loadu_si128(bits.add(1)))
        ))
    }
    #[inline(always)]
    fn zero64(self) -> F64x8 {
        with_avx2!(F64x8(_mm256_setzero_pd(), _mm256_setzero_pd()))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> F32x16 {
        with_avx2!(widen_bytes(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_nibbles(self, x: &[u8; 16], high: bool) -> F32x16 {
        with_avx2!({
            let x = _mm_loadu_si128(x.as_ptr().cast());
            let x = if high { _mm_srli_epi16::<4>(x) } else { x };
            widen_bytes(_mm_sub_epi8(_mm_and_si128(x, _mm_set1_epi8(15)), _mm_set1_epi8(8)))
        })
    }
    #[inline(always)]
    fn dot_bytes<const R: usize>(self, k: &BytePanel, q: [&QueryBlock; R]) -> [F32x16; R] {
        with_avx2!({
            let mut acc = [[_mm256_setzero_si256(); 2]; R];
            for (i, k) in k.iter().enumerate() {
                let k = k.as_ptr().cast::<__m256i>();
                let k = [_mm256_loadu_si256(k), _mm256_loadu_si256(k.add(1))];
                let sizes = [_mm256_abs_epi8(k[0]), _mm256_abs_epi8(k[1])];
                for (acc, q) in acc.iter_mut().zip(q) {
                    let q = four(q, i);
                    for half in 0..2 {
                        let q = _mm256_sign_epi8(q, k[half]);
                        acc[half] = _mm256_add_epi32(acc[half], fours(sizes[half], q));
                    }
                }
            }
            finish(acc)
        })
    }
    #[inline(always)]
    fn dot_nibbles<const R: usize>(self, k: &NibblePanel, q: [&QueryBlock; R]) -> [F32x16; R] {
        with_avx2!({
            let mut acc = [[_mm256_setzero_si256(); 2]; R];
            let nibble = _mm256_set1_epi8(15);
            for (i, k) in k.iter().enumerate() {
                let k = k.as_ptr().cast::<__m256i>();
                for half in 0..2 {
                    let k = _mm256_loadu_si256(k.add(half));
                    let low = _mm256_and_si256(k, nibble);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(k), nibble);
                    for (acc, q) in acc.iter_mut().zip(q) {
                        let both = _mm256_add_epi32(fours(low, four(q, i)), fours(high, four(q, i + 4)));
                        acc[half] = _mm256_add_epi32(acc[half], both);
                    }
                }
            }
            for (acc, q) in acc.iter_mut().zip(q) {
                let less = _mm256_set1_epi32(8 * q.sum);
                *acc = [_mm256_sub_epi32(acc[0], less), _mm256_sub_epi32(acc[1], less)];
            }
            finish(acc)
        })
    }
    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        with_avx2!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()));
    }
}

/// A lane-wise method from one intrinsic.
macro_rules! lanewise {
    ($($name:ident = $intrinsic:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self) -> Self {
            with_avx2!(Self($intrinsic(self.0, b.0), $intrinsic(self.1, b.1)))
        }
    )*};
}

/// Sixteen bytes as f32.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn widen_bytes(x: __m128i) -> F32x16 {
    // SAFETY: the caller's promise.
    unsafe {
        let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x));
        F32x16(low, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))))
    }
}

/// Sums of four products of bytes: those of `k` without signs, at most 128.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn fours(k: __m256i, q: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(k, q), _mm256_set1_epi16(1)) }
}

/// Four quants of a query, again and again.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn four(q: &QueryBlock, i: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set1_epi32(q.fours[i]) }
}

/// As f32.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn finish<const R: usize>(acc: [[__m256i; 2]; R]) -> [F32x16; R] {
    // SAFETY: the caller's promise.
    let zero = unsafe { _mm256_setzero_ps() };
    let mut out = [F32x16(zero, zero); R];
    for (out, [low, high]) in out.iter_mut().zip(acc) {
        // SAFETY: the caller's promise.
        *out = unsafe { F32x16(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)) };
    }
    out
}

/// Lanes 0..8 + lanes 8..16.
#[inline(always)]
fn fold(x: F32x16) -> __m256 {
    with_avx2!(_mm256_add_ps(x.0, x.1))
}

/// `x * 2^n`, `n` held as `MAGIC + n`.
#[inline(always)]
fn scale_by_power(x: __m256, n: __m256) -> __m256 {
    with_avx2!({
        let n = _mm256_sub_epi32(_mm256_castps_si256(n), _mm256_set1_epi32(MAGIC.to_bits() as i32));
        let half = _mm256_srai_epi32::<1>(n);
        let rest = _mm256_sub_epi32(n, half);
        let bias = _mm256_set1_epi32(127);
        let half = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
        let rest = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias)));
        _mm256_mul_ps(_mm256_mul_ps(x, half), rest)
    })
}

impl Lanes16 for F32x16 {
    type D = F64x8;

    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        // Not by the intrinsic, of which the compiler makes a call here.
        // SAFETY: it is as long.
        unsafe { to.as_mut_ptr().cast::<[__m256; 2]>().write_unaligned([self.0, self.1]) };
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; 16]) {
        let to = to.as_mut_ptr().cast::<__m128i>();
        with_avx2!({
            _mm_storeu_si128(to, _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(to.add(1), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
        });
    }
    #[inline(always)]
    fn round_f16(self) -> Self {
        // The conversion keeps denormals whatever MXCSR.FTZ says.
        with_avx2!(Self(
            _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)),
            _mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1))
        ))
    }
    lanewise! {
        add = _mm256_add_ps;
        sub = _mm256_sub_ps;
        mul = _mm256_mul_ps;
        div = _mm256_div_ps;
        min = _mm256_min_ps;
        max = _mm256_max_ps;
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        with_avx2!(Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)))
    }
    #[inline(always)]
    fn scale_by_power(self, n: Self) -> Self {
        Self(scale_by_power(self.0, n.0), scale_by_power(self.1, n.1))
    }
    #[inline(always)]
    fn widen(self) -> (F64x8, F64x8) {
        with_avx2!((
            F64x8(
                _mm256_cvtps_pd(_mm256_castps256_ps128(self.0)),
                _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.0))
            ),
            F64x8(
                _mm256_cvtps_pd(_mm256_castps256_ps128(self.1)),
                _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.1))
            )
        ))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let l = fold(self);
        with_avx2!({
            let l = _mm_add_ps(_mm256_castps256_ps128(l), _mm256_extractf128_ps::<1>(l));
            let l = _mm_add_ps(l, _mm_movehl_ps(l, l));
            _mm_cvtss_f32(_mm_add_ss(l, _mm_movehdup_ps(l)))
        })
    }
    #[inline(always)]
    fn sum4(x: [Self; 4]) -> [f32; 4] {
        let [a, b, c, d] = [fold(x[0]), fold(x[1]), fold(x[2]), fold(x[3])];
        with_avx2!({
            // Lanes i + (i + 4): `a` in the low half, `b` in the high half; `c` and `d` likewise.
            let ab =
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            let cd =
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d));
            // Within each half: (0 + 2) and (1 + 3) of the first operand, then of the second.
            let even_odd = _mm256_add_ps(_mm256_unpacklo_ps(ab, cd), _mm256_unpackhi_ps(ab, cd));
            // unpack interleaves: [ab0+ab2, cd0+cd2, ab1+ab3, cd1+cd3].
            let total = _mm256_add_ps(even_odd, _mm256_permute_ps::<0b1110>(even_odd));
            let (ac, bd) = (_mm256_castps256_ps128(total), _mm256_extractf128_ps::<1>(total));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm_unpacklo_ps(ac, bd));
            out
        })
    }
}

impl Lanes8 for F64x8 {
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        with_avx2!(Self(_mm256_fmadd_pd(self.0, b.0, c.0), _mm256_fmadd_pd(self.1, b.1, c.1)))
    }
    #[inline(always)]
    fn sum(self) -> f64 {
        with_avx2!({
            let l = _mm256_add_pd(self.0, self.1);
            let l = _mm_add_pd(_mm256_castpd256_pd128(l), _mm256_extractf128_pd::<1>(l));
            _mm_cvtsd_f64(_mm_add_sd(l, _mm_unpackhi_pd(l, l)))
        })
    }
}
