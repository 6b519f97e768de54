#!/bin/sh
# Builds the reference programs: build.sh portable | avx2 | native [cargo's command and arguments: build, else test, clippy]
#   portable  ggml's generic C without AVX or FMA, the same on every x86-64 machine: what goldens are made with
#   native    ggml for this machine's CPU, with OpenMP: what speed is compared with
#   avx2      the same for CPUs that have AVX2 and no more, where this one has more
# Each has a target directory of its own beside this file; always come through this script, for plain cargo would build ggml
# with other settings. Needs cmake, libclang and a C++ compiler: setup.sh.
set -eu
cd "$(dirname "$0")"
build=${1:?usage: build.sh portable|avx2|native [cargo command and arguments]}
shift
command=${1:-build}
[ $# = 0 ] || shift
export LLAMA_LIB_PROFILE=Release
case $build in
portable)
    # The package forwards GGML_* to cmake. Rust's own code is for the baseline CPU as well.
    export GGML_AVX=OFF GGML_AVX2=OFF GGML_FMA=OFF GGML_F16C=OFF GGML_SSE42=OFF GGML_BMI2=OFF
    export GGML_NATIVE=OFF GGML_CPU_REPACK=OFF GGML_LLAMAFILE=OFF
    unset RUSTFLAGS
    cargo "$command" --release --locked --target-dir target-portable "$@"
    # No wide register and no fused instruction may be in ggml's or llama.cpp's code.
    for library in target-portable/release/build/llama-cpp-sys-2-*/out/lib*/*.a; do
        [ "$library" -nt target-portable/checked ] || continue
        if objdump -d "$library" | grep -qE '%[yz]mm|\bvfn?m(add|sub)'; then
            echo "build.sh: $library has AVX or FMA instructions" >&2
            exit 1
        fi
    done
    touch target-portable/checked
    ;;
avx2)
    export GGML_NATIVE=OFF GGML_AVX=ON GGML_AVX2=ON GGML_FMA=ON GGML_F16C=ON GGML_BMI2=ON GGML_SSE42=ON
    export RUSTFLAGS="-C target-cpu=haswell"
    exec cargo "$command" --release --locked --features openmp,avx2 --target-dir target-avx2 "$@"
    ;;
native)
    export RUSTFLAGS="-C target-cpu=native"
    exec cargo "$command" --release --locked --features openmp --target-dir target-native "$@"
    ;;
*)
    echo "build.sh: unknown build '$build': portable, avx2 or native" >&2
    exit 2
    ;;
esac
