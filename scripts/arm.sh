#!/usr/bin/env bash
# Builds for Linux on ARM64 and runs tests on emulated CPUs, for machines that have none: `max` has all that kernels are made for,
# cortex-a76 no i8mm, cortex-a53 no dotprod either.
#
#   scripts/arm.sh                    kernels, operations, and forward passes of small models, whose bits must be this machine's
#   scripts/arm.sh check              type-checks the library and the program for that target
#   scripts/arm.sh lib FILTER..       unit tests by name
#   scripts/arm.sh exe ARG..          the program
#   scripts/arm.sh TEST FILTER..      tests of a file in tests/
#
# ARM_CPUS names other CPUs, as qemu lists them, or fewer. A program does not start others there: tests that do are not for it.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
work=${CARGO_TARGET_DIR:-target}/arm
cpus=${ARM_CPUS:-max cortex-a76 cortex-a53}
. scripts/debian-rust.sh
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc

if [ "${1:-}" = check ]; then
    check_target
    exit
fi
need qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross

# The executable of the library's tests, of a file in tests/, or the program.
build() {
    local what kind
    case "$1" in
    lib) kind=lib what=(test --no-run --lib) ;;
    exe) kind=bin what=(build --bin wayinfer) ;;
    *) kind=test what=(test --no-run --test "$1") ;;
    esac
    for_target "${what[@]}" --message-format=json-render-diagnostics |
        sed -n "/\"kind\":\[\"$kind\"\]/s/.*\"executable\":\"\([^\"]*\)\".*/\1/p" | tail -1
}

emulated() { # CPU, executable, its arguments
    qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu "$1" "${@:2}"
}

# Kernel sets that a CPU must be found to have.
sets_of() {
    case "$1" in
    cortex-a53) echo neon ;;
    cortex-a76) echo neon,neon-dotprod ;;
    *) echo neon,neon-dotprod,neon-i8mm ;;
    esac
}

if [ $# -gt 0 ]; then
    executable=$(build "$1")
    for cpu in $cpus; do
        echo "== $cpu" >&2
        WAYINFER_NEEDS_ISA=$(sets_of "$cpu") emulated "$cpu" "$executable" "${@:2}"
    done
    exit
fi

# What every bit must be: values of all nodes, and texts, made on this machine.
cargo build --locked --bin wayinfer
native=$(readlink -f "${CARGO_TARGET_DIR:-target}/debug/wayinfer")
program=$(build exe)
unit=$(build lib)
passes=$(build one_arithmetic)
results=$work/results
rm -rf "$results"
mkdir -p "$results"

models=(dense-bf16 dense-q8_0 odd-q8_0 mixed moe-q4_k_m gpt-oss gemma3n deepseek4 minimax-m3 kimi-k3 mamba2 qwen35 lfm2)
goldens=(dense-q4_k_m/short moe-q4_k_m/short gpt-oss/long gemma3n/long mamba2/long)
trace() { # where to, model, what runs it
    "${@:3}" trace -m "fixtures/$2.gguf" --ids-file "$results/ids" -n 3 -t 2 --save "$1" >/dev/null
}
prompts=("What is 2+2?" "Spell the word cat." "Which is larger, 17 or 71?")
generate() { # prompt, what runs it
    # The demo's template as text: it would be run by a program of its own.
    "${@:2}" generate -m fixtures/demo-q4_k_m.gguf -p "<|user|>$1<|end|><|assistant|>" -n 40 -t 2 \
        --temp 0.8 --seed 3 2>/dev/null
}
for id in 3 17 5 40 41 42 8 9 60 3 17 5 21 33 12 50 7 7 7 28; do printf "\\x$(printf %x "$id")\0\0\0"; done >"$results/ids"
for model in "${models[@]}"; do trace "$results/$model" "$model" "$native"; done

for cpu in $cpus; do
    echo "== $cpu"
    run=(emulated "$cpu")
    export WAYINFER_NEEDS_ISA
    WAYINFER_NEEDS_ISA=$(sets_of "$cpu")
    "${run[@]}" "$unit" kernels:: quant:: model::state
    WAYINFER_FIXTURES=${WAYINFER_FIXTURES:-moe-q4_k_m,odd-q8_0,mixed} "${run[@]}" "$passes" with_an_f32_cache
    "${run[@]}" "$program" dot-check
    for golden in "${goldens[@]}"; do
        "${run[@]}" "$program" trace -m "fixtures/${golden%/*}.gguf" --golden "golden/$golden.safetensors" --isolate -t 2 --worst 1
    done
    for model in "${models[@]}"; do
        trace "$results/$model.$cpu" "$model" "${run[@]}" "$program"
        cmp "$results/$model" "$results/$model.$cpu"
        echo "$model: every node has the bits of $(uname -m)"
    done
    for prompt in "${prompts[@]}"; do
        text=$(generate "$prompt" "${run[@]}" "$program")
        [ "$text" = "$(generate "$prompt" "$native")" ] || { echo "another text: $text" >&2; exit 1; }
        echo "$text"
    done
done
