//! Sixteen f32 lanes in one AVX-512 register.

use std::arch::x86_64::*;

use super::lanes::{BytePanel, Isa, Lanes8, Lanes16, MAGIC, NibblePanel, QueryBlock};

/// The proof that the CPU has AVX-512 F and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// Safe only for callers compiled for these features, which is the proof.
    #[target_feature(enable = "avx512f,avx512vnni")]
    #[inline]
    pub(super) fn new() -> Self {
        Self(())
    }
}

/// Built only from an [`Avx512`].
#[derive(Clone, Copy)]
pub(super) struct F32x16(__m512);

/// Built only from an [`Avx512`].
#[derive(Clone, Copy)]
pub(super) struct F64x8(__m512d);

/// Calls intrinsics on behalf of a value that proves the CPU's support.
macro_rules! with_avx512 {
    ($e:expr) => {
        // SAFETY: an `Avx512`, or lanes made from one, is in hand: the CPU has AVX-512 VNNI and F, which
        // includes AVX2. Loads and stores go through references to arrays of the full width.
        unsafe { $e }
    };
}

impl Isa for Avx512 {
    const MANY_REGISTERS: bool = true;

    type F = F32x16;

    #[inline(always)]
    fn splat(self, x: f32) -> F32x16 {
        with_avx512!(F32x16(_mm512_set1_ps(x)))
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> F32x16 {
        with_avx512!(F32x16(_mm512_loadu_ps(x.as_ptr())))
    }
    #[inline(always)]
    fn load_f16(self, bits: &[u16; 16]) -> F32x16 {
        with_avx512!(F32x16(_mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast()))))
    }
    #[inline(always)]
    fn zero64(self) -> F64x8 {
        with_avx512!(F64x8(_mm512_setzero_pd()))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; 16]) -> F32x16 {
        with_avx512!(widen_bytes(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_nibbles(self, x: &[u8; 16], high: bool) -> F32x16 {
        with_avx512!({
            let x = _mm_loadu_si128(x.as_ptr().cast());
            let x = if high { _mm_srli_epi16::<4>(x) } else { x };
            widen_bytes(_mm_sub_epi8(_mm_and_si128(x, _mm_set1_epi8(15)), _mm_set1_epi8(8)))
        })
    }
    #[inline(always)]
    fn dot_bytes<const R: usize>(self, k: &BytePanel, q: [&QueryBlock; R]) -> [F32x16; R] {
        with_avx512!({
            // The instruction wants one side without signs: 128 is added, and taken off the sum.
            let mut acc = begin(q, 128);
            for (i, k) in k.iter().enumerate() {
                let k = _mm512_loadu_si512(k.as_ptr().cast());
                add_products(&mut acc, _mm512_xor_si512(k, _mm512_set1_epi8(-128)), q, i);
            }
            finish(acc)
        })
    }
    #[inline(always)]
    fn dot_nibbles<const R: usize>(self, k: &NibblePanel, q: [&QueryBlock; R]) -> [F32x16; R] {
        with_avx512!({
            let (mut acc, nibble) = (begin(q, 8), _mm512_set1_epi8(15));
            for (i, k) in k.iter().enumerate() {
                let k = _mm512_loadu_si512(k.as_ptr().cast());
                add_products(&mut acc, _mm512_and_si512(k, nibble), q, i);
                add_products(&mut acc, _mm512_and_si512(_mm512_srli_epi32::<4>(k), nibble), q, i + 4);
            }
            finish(acc)
        })
    }
    #[inline(always)]
    fn prefetch<T>(self, at: &T) {
        with_avx512!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()));
    }
}

/// A lane-wise method from one intrinsic.
macro_rules! lanewise {
    ($($name:ident = $intrinsic:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, b: Self) -> Self {
            with_avx512!(Self($intrinsic(self.0, b.0)))
        }
    )*};
}

/// Sixteen bytes as f32.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn widen_bytes(x: __m128i) -> F32x16 {
    // SAFETY: the caller's promise.
    unsafe { F32x16(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))) }
}

/// Sums of products with keys that so much is added to.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn begin<const R: usize>(q: [&QueryBlock; R], added: i32) -> [__m512i; R] {
    // SAFETY: the caller's promise.
    let mut acc = [unsafe { _mm512_setzero_si512() }; R];
    for (acc, q) in acc.iter_mut().zip(q) {
        // SAFETY: the caller's promise.
        *acc = unsafe { _mm512_set1_epi32(-added * q.sum) };
    }
    acc
}

/// Adds the products of sixteen positions' four quants without signs with four of each query.
///
/// # Safety
/// The CPU must have AVX-512 VNNI and F.
#[inline(always)]
unsafe fn add_products<const R: usize>(acc: &mut [__m512i; R], k: __m512i, q: [&QueryBlock; R], i: usize) {
    for (acc, q) in acc.iter_mut().zip(q) {
        // SAFETY: the caller's promise.
        *acc = unsafe { _mm512_dpbusd_epi32(*acc, k, _mm512_set1_epi32(q.fours[i])) };
    }
}

/// As f32.
///
/// # Safety
/// The CPU must have AVX-512 F.
#[inline(always)]
unsafe fn finish<const R: usize>(acc: [__m512i; R]) -> [F32x16; R] {
    // SAFETY: the caller's promise.
    let mut out = [unsafe { F32x16(_mm512_setzero_ps()) }; R];
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: the caller's promise.
        *out = unsafe { F32x16(_mm512_cvtepi32_ps(acc)) };
    }
    out
}

/// Lanes 0..8 + lanes 8..16.
#[inline(always)]
fn fold(x: F32x16) -> __m256 {
    with_avx512!({
        let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x.0)));
        _mm256_add_ps(_mm512_castps512_ps256(x.0), high)
    })
}

/// Rounds each lane to f16, to nearest even, denormals kept.
#[inline(always)]
fn narrow(x: F32x16) -> __m256i {
    with_avx512!(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0))
}

impl Lanes16 for F32x16 {
    type D = F64x8;

    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        // Not by the intrinsic, of which the compiler makes a call here.
        // SAFETY: it is as long.
        unsafe { to.as_mut_ptr().cast::<__m512>().write_unaligned(self.0) };
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; 16]) {
        with_avx512!(_mm256_storeu_si256(to.as_mut_ptr().cast(), narrow(self)));
    }
    #[inline(always)]
    fn round_f16(self) -> Self {
        with_avx512!(Self(_mm512_cvtph_ps(narrow(self))))
    }
    lanewise! {
        add = _mm512_add_ps;
        sub = _mm512_sub_ps;
        mul = _mm512_mul_ps;
        div = _mm512_div_ps;
        min = _mm512_min_ps;
        max = _mm512_max_ps;
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        with_avx512!(Self(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn scale_by_power(self, n: Self) -> Self {
        // Not `scalef`: the definition multiplies twice.
        with_avx512!({
            let n = _mm512_sub_epi32(_mm512_castps_si512(n.0), _mm512_set1_epi32(MAGIC.to_bits() as i32));
            let half = _mm512_srai_epi32::<1>(n);
            let rest = _mm512_sub_epi32(n, half);
            let bias = _mm512_set1_epi32(127);
            let half = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(half, bias)));
            let rest = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(rest, bias)));
            Self(_mm512_mul_ps(_mm512_mul_ps(self.0, half), rest))
        })
    }
    #[inline(always)]
    fn widen(self) -> (F64x8, F64x8) {
        with_avx512!({
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            (F64x8(_mm512_cvtps_pd(_mm512_castps512_ps256(self.0))), F64x8(_mm512_cvtps_pd(high)))
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let l = fold(self);
        with_avx512!({
            let l = _mm_add_ps(_mm256_castps256_ps128(l), _mm256_extractf128_ps::<1>(l));
            let l = _mm_add_ps(l, _mm_movehl_ps(l, l));
            _mm_cvtss_f32(_mm_add_ss(l, _mm_movehdup_ps(l)))
        })
    }
    #[inline(always)]
    fn sum4(x: [Self; 4]) -> [f32; 4] {
        let [a, b, c, d] = [x[0].0, x[1].0, x[2].0, x[3].0];
        with_avx512!({
            // Lanes i + (i + 8): `a` in the low half, `b` in the high half; `c` and `d` likewise.
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
            );
            // Then i + (i + 4): quarters of a, b, c, d.
            let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd);
            let l = _mm512_add_ps(low, high);
            // Within each quarter 0 + 2 and 1 + 3, then their sum.
            let l = _mm512_add_ps(l, _mm512_permute_ps::<0b01_00_11_10>(l));
            let l = _mm512_add_ps(l, _mm512_permute_ps::<0b10_11_00_01>(l));
            let firsts =
                _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), l);
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(firsts));
            out
        })
    }
}

impl Lanes8 for F64x8 {
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        with_avx512!(Self(_mm512_fmadd_pd(self.0, b.0, c.0)))
    }
    #[inline(always)]
    fn sum(self) -> f64 {
        with_avx512!({
            let l = _mm256_add_pd(_mm512_castpd512_pd256(self.0), _mm512_extractf64x4_pd::<1>(self.0));
            let l = _mm_add_pd(_mm256_castpd256_pd128(l), _mm256_extractf128_pd::<1>(l));
            _mm_cvtsd_f64(_mm_add_sd(l, _mm_unpackhi_pd(l, l)))
        })
    }
}
