//! What the CPU can do at most, in registers alone.

use std::time::Instant;

use wayinfer::kernels::Isa;

/// Steps of a measured loop.
const STEPS: u64 = 2_000_000;

/// The shortest of some runs, seconds.
fn best(mut run: impl FnMut()) -> f64 {
    let seconds = (0..7).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}

/// Cycles a second: additions of which each waits for the one before take a cycle each.
#[cfg(target_arch = "x86_64")]
pub fn hertz() -> f64 {
    let seconds = best(|| {
        // SAFETY: it reads and writes registers alone.
        unsafe {
            std::arch::asm!(
                "2:",
                ".rept 32", "add {sum}, {one}", ".endr",
                "dec {n}",
                "jnz 2b",
                n = inout(reg) STEPS => _,
                sum = inout(reg) 0u64 => _,
                one = in(reg) 1u64,
                options(nomem, nostack)
            );
        }
    });
    (32 * STEPS) as f64 / seconds
}

/// A loop of products into eight registers, and how many multiply-adds a step of it has.
#[cfg(target_arch = "x86_64")]
macro_rules! products {
    ($($line:literal),+) => {
        best(|| {
            // SAFETY: the caller has asked the CPU for the instructions; registers alone are used, and named.
            unsafe {
                std::arch::asm!(
                    "2:",
                    $($line,)+
                    "dec {n}",
                    "jnz 2b",
                    n = inout(reg) STEPS => _,
                    out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                    out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                    out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                    options(nomem, nostack)
                );
            }
        })
    };
}

/// The most multiply-adds of bytes a second: of AVX2 `vpmaddubsw`, whose outcome `vpaddw` adds up; of AVX-512
/// `vpdpbusd`. `None` of other sets.
#[cfg(target_arch = "x86_64")]
pub fn macs_a_second(isa: Isa) -> Option<f64> {
    let (macs, seconds) = match isa {
        Isa::Avx2 => {
            let seconds = products!(
                "vpmaddubsw ymm8, ymm14, ymm15",
                "vpaddw ymm0, ymm0, ymm8",
                "vpmaddubsw ymm9, ymm14, ymm15",
                "vpaddw ymm1, ymm1, ymm9",
                "vpmaddubsw ymm10, ymm14, ymm15",
                "vpaddw ymm2, ymm2, ymm10",
                "vpmaddubsw ymm11, ymm14, ymm15",
                "vpaddw ymm3, ymm3, ymm11",
                "vpmaddubsw ymm8, ymm14, ymm15",
                "vpaddw ymm4, ymm4, ymm8",
                "vpmaddubsw ymm9, ymm14, ymm15",
                "vpaddw ymm5, ymm5, ymm9",
                "vpmaddubsw ymm10, ymm14, ymm15",
                "vpaddw ymm6, ymm6, ymm10",
                "vpmaddubsw ymm11, ymm14, ymm15",
                "vpaddw ymm7, ymm7, ymm11"
            );
            (8 * 32, seconds)
        }
        Isa::Avx512 | Isa::Avx512In256 => {
            let seconds = products!(
                "vpdpbusd zmm0, zmm14, zmm15",
                "vpdpbusd zmm1, zmm14, zmm15",
                "vpdpbusd zmm2, zmm14, zmm15",
                "vpdpbusd zmm3, zmm14, zmm15",
                "vpdpbusd zmm4, zmm14, zmm15",
                "vpdpbusd zmm5, zmm14, zmm15",
                "vpdpbusd zmm6, zmm14, zmm15",
                "vpdpbusd zmm7, zmm14, zmm15",
                "vpdpbusd zmm8, zmm14, zmm15",
                "vpdpbusd zmm9, zmm14, zmm15",
                "vpdpbusd zmm10, zmm14, zmm15",
                "vpdpbusd zmm11, zmm14, zmm15"
            );
            (12 * 64, seconds)
        }
        _ => return None,
    };
    Some((macs * STEPS) as f64 / seconds)
}

#[cfg(not(target_arch = "x86_64"))]
pub fn hertz() -> f64 {
    f64::NAN
}

#[cfg(not(target_arch = "x86_64"))]
pub fn macs_a_second(_: Isa) -> Option<f64> {
    None
}
