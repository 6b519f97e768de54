//! The K-quants in registers.

use std::arch::x86_64::*;

use super::places::Places;
use super::super_blocks::{EightRows, Mins, Scales, SuperBlock, Unpacked};
use super::{load_16_bytes, load_u8, panels};
use crate::quant::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, QK_K, scales_and_mins, six_bit_scales};

/// Q4_K's and Q5_K's scales and mins with given weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpacked_with_mins(q: [__m256i; 8], packed: &[u8; 12]) -> Unpacked {
    let (scales, mins) = scales_and_mins(packed);
    let scales = _mm_cvtsi64_si128(i64::from_le_bytes(scales));
    let mins = _mm_cvtsi64_si128(i64::from_le_bytes(mins));
    Unpacked {
        q,
        signs: q,
        scales: Scales::of_8_words(_mm_cvtepu8_epi16(scales)),
        group_mins: _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(mins, mins)),
    }
}

/// Low and high nibbles of 4 x 32 bytes, in the order of the weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(qs: &[u8; QK_K / 2]) -> [__m256i; 8] {
    let (qs, _) = qs.as_chunks::<32>();
    let mask = _mm256_set1_epi8(15);
    let mut q = [_mm256_setzero_si256(); 8];
    for j in 0..4 {
        let both = load_u8(&qs[j]);
        q[2 * j] = _mm256_and_si256(both, mask);
        q[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
    }
    q
}

/// Fields of two bits of 2 x 32 bytes, in the order of the weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn two_bits(qs: &[u8; QK_K / 4]) -> [__m256i; 8] {
    let (qs, _) = qs.as_chunks::<32>();
    let mask = _mm256_set1_epi8(3);
    let mut q = [_mm256_setzero_si256(); 8];
    for half in 0..2 {
        let all = load_u8(&qs[half]);
        q[4 * half] = _mm256_and_si256(all, mask);
        q[4 * half + 1] = _mm256_and_si256(_mm256_srli_epi16::<2>(all), mask);
        q[4 * half + 2] = _mm256_and_si256(_mm256_srli_epi16::<4>(all), mask);
        q[4 * half + 3] = _mm256_and_si256(_mm256_srli_epi16::<6>(all), mask);
    }
    q
}

impl SuperBlock for BlockQ2K {
    const MINS: Mins = Mins::Float;
    const SIXTEEN_FIT: bool = true; // 16 * 3 * 127 = 6096
    const CHAIN: usize = 4;

    #[inline(always)]
    unsafe fn unpack(&self, _: &Places) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (both, low) = (load_16_bytes(&self.scales), _mm_set1_epi8(15));
            let q = two_bits(&self.qs);
            let mins = _mm_and_si128(_mm_srli_epi16::<4>(both), low);
            Unpacked {
                q,
                signs: q,
                scales: Scales::of_16_bytes(_mm_and_si128(both, low)),
                group_mins: _mm256_cvtepi8_epi16(mins),
            }
        }
    }
}

impl SuperBlock for BlockQ3K {
    const MINS: Mins = Mins::Integer;
    const CHAIN: usize = 4; // 4 * 2 * 7 * 127 = 7112
    const SIXTEEN_FIT: bool = true; // 16 * 7 * 127 = 14224

    #[inline(always)]
    unsafe fn unpack(&self, _: &Places) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let mut q = two_bits(&self.qs);
            let mut bits = load_u8(&self.hmask);
            let bit = _mm256_set1_epi8(1);
            for q in &mut q {
                let high = _mm256_slli_epi16::<2>(_mm256_and_si256(bits, bit));
                *q = _mm256_or_si256(*q, high);
                bits = _mm256_srli_epi16::<1>(bits);
            }
            let [a, b, c, d] = six_bit_scales(&self.scales);
            let bytes = _mm_setr_epi32(a as i32, b as i32, c as i32, d as i32);
            let scales = Scales::of_16_bytes(_mm_sub_epi8(bytes, _mm_set1_epi8(32)));
            Unpacked { q, signs: q, scales, group_mins: _mm256_slli_epi16::<2>(scales.groups) }
        }
    }
}

impl SuperBlock for BlockQ4K {
    const MINS: Mins = Mins::Float;
    const MINS_OF_32: bool = true;
    const CHAIN: usize = 8; // 8 * 2 * 15 * 127 = 30480
    const EIGHT: bool = true;

    #[inline(always)]
    unsafe fn unpack_eight(blocks: [&Self; 8], to: &mut EightRows) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { panels::q4_k(blocks, to) };
    }

    #[inline(always)]
    unsafe fn unpack(&self, _: &Places) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe { unpacked_with_mins(nibbles(&self.qs), &self.scales) }
    }
}

impl SuperBlock for BlockQ5K {
    const MINS: Mins = Mins::Float;
    const MINS_OF_32: bool = true;
    const CHAIN: usize = 4; // 4 * 2 * 31 * 127 = 31496
    const EIGHT: bool = true;

    #[inline(always)]
    unsafe fn unpack_eight(blocks: [&Self; 8], to: &mut EightRows) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { panels::q5_k(blocks, to) };
    }

    #[inline(always)]
    unsafe fn unpack(&self, _: &Places) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let mut q = nibbles(&self.qs);
            let mut bits = load_u8(&self.qh);
            let bit = _mm256_set1_epi8(1);
            for q in &mut q {
                let high = _mm256_slli_epi16::<4>(_mm256_and_si256(bits, bit));
                *q = _mm256_or_si256(*q, high);
                bits = _mm256_srli_epi16::<1>(bits);
            }
            unpacked_with_mins(q, &self.scales)
        }
    }
}

impl SuperBlock for BlockQ6K {
    const MINS: Mins = Mins::Integer;
    const CHAIN: usize = 2; // 2 * 2 * 63 * 127 = 32004
    const LESS_32: bool = true; // 4 * 2 * 32 * 127 = 32512
    const EIGHT: bool = true;

    #[inline(always)]
    unsafe fn unpack_eight(blocks: [&Self; 8], to: &mut EightRows) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { panels::q6_k(blocks, to) };
    }

    #[inline(always)]
    unsafe fn unpack(&self, _: &Places) -> Unpacked {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            let (ql, _) = self.ql.as_chunks::<32>();
            let (qh, _) = self.qh.as_chunks::<32>();
            let (low, high) = (_mm256_set1_epi8(0x0f), _mm256_set1_epi8(0x30));
            let mut q = [_mm256_setzero_si256(); 8];
            for half in 0..2 {
                let (l0, l1, h) = (load_u8(&ql[2 * half]), load_u8(&ql[2 * half + 1]), load_u8(&qh[half]));
                let lows = [l0, l1, _mm256_srli_epi16::<4>(l0), _mm256_srli_epi16::<4>(l1)];
                let highs =
                    [_mm256_slli_epi16::<4>(h), _mm256_slli_epi16::<2>(h), h, _mm256_srli_epi16::<2>(h)];
                for j in 0..4 {
                    q[4 * half + j] =
                        _mm256_or_si256(_mm256_and_si256(lows[j], low), _mm256_and_si256(highs[j], high));
                }
            }
            // Sixteen bytes: one load (put together one by one they are not made one).
            let scales = Scales::of_16_bytes(_mm_loadu_si128((&raw const self.scales).cast()));
            // At most 4096.
            Unpacked { q, signs: q, scales, group_mins: _mm256_slli_epi16::<5>(scales.groups) }
        }
    }
}
