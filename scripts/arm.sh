#!/usr/bin/env bash
# Builds for Linux on ARM64 and runs tests on emulated CPUs, for machines that have none: `max` has all that
# kernels are made for, cortex-a76 no i8mm, cortex-a53 no dotprod either.
#
#   scripts/arm.sh                    a selection: kernels, operations, goldens, dot-check, generate, forward
#                                     passes of small models, whose bits must be this machine's; less of it on
#                                     CPUs other than the first
#   scripts/arm.sh all                every test of the library and of tests/, on each CPU
#   scripts/arm.sh lib FILTER..       unit tests by name
#   scripts/arm.sh exe ARG..          the program
#   scripts/arm.sh TEST FILTER..      tests of a file in tests/
#
# ARM_CPUS names other CPUs, as qemu lists them, or fewer. WAYINFER_NATIVE names a program of the same source
# that was built for this machine, where there is one already.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
work=$(realpath -m "${CARGO_TARGET_DIR:-target}/arm")
cpus=${ARM_CPUS:-max cortex-a76 cortex-a53}
. scripts/debian-rust.sh
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
need gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user

. scripts/arm64-emulator.sh
if ! is_emulated; then
    emulated "scripts/arm.sh" "$@"
    exit
fi

# What is emulated is optimised, and what it is made of a little; by halves (incremental) it would be slower.
export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_OPT_LEVEL=${CARGO_PROFILE_DEV_OPT_LEVEL:-2}
export INSTA_WORKSPACE_ROOT=$PWD INSTA_UPDATE=no

# Builds tests by cargo's options and, for tests/, the program.
build() {
    for_target test --no-run --config 'profile.dev.package."*".opt-level=1' "$@" \
        --message-format=json-render-diagnostics >"$work.json"
    program=$(built bin wayinfer)
}
built() { # kind, name (or .*)
    sed -n "/\"kind\":\[\"$1\"\],[^}]*\"name\":\"$2\"/s/.*\"executable\":\"\([^\"]*\)\".*/\1/p" "$work.json"
}

# The emulated CPU, for what this script starts and what that starts; kernel sets that must be found on it.
on() {
    export QEMU_CPU=$1
    case "$1" in
    cortex-a53) best=neon ;;
    cortex-a76) best=neon-dotprod ;;
    *) best=neon-i8mm ;;
    esac
    export WAYINFER_NEEDS_ISA=neon
    [ "$best" = neon ] || WAYINFER_NEEDS_ISA+=,neon-dotprod
    [ "$best" != neon-i8mm ] || WAYINFER_NEEDS_ISA+=,neon-i8mm
    echo "== $1: $WAYINFER_NEEDS_ISA"
}

# Runs a part; how long it took, and what failed for the end.
failed=()
part() { # what, command
    local TIMEFORMAT="-- %R s, %U s of CPU: $1"
    echo "-- $QEMU_CPU: $1"
    time "${@:2}" || failed+=("$QEMU_CPU: $1")
}
finish() {
    [ ${#failed[@]} = 0 ] || { printf 'FAILED: %s\n' "${failed[@]}" >&2; exit 1; }
    echo "arm: all of it passed in $SECONDS s"
    exit
}

case "${1:-}" in
'') ;;
all)
    build --lib --tests
    for cpu in $cpus; do
        on "$cpu"
        for test in $(built '[a-z]*' '[a-z_]*'); do
            # What counts this machine's memory and processes counts the emulator's.
            case "$test" in */wayinfer | */control_groups-* | */budgets-*) continue ;; esac
            part "$(basename "${test%-*}")" "$test"
        done
    done
    finish
    ;;
exe)
    build --test dot_check
    for cpu in $cpus; do on "$cpu" >&2 && "$program" "${@:2}"; done
    exit
    ;;
*)
    if [ "$1" = lib ]; then
        build --lib
        test=$(built lib wayinfer)
    else
        build --test "$1"
        test=$(built test "$1")
    fi
    for cpu in $cpus; do on "$cpu" && part "$*" "$test" "${@:2}"; done
    finish
    ;;
esac

# What every bit must be: values of all nodes, and texts, made on this machine.
native=${WAYINFER_NATIVE:-}
if [ -z "$native" ]; then
    cargo build --locked --bin wayinfer
    native=$(readlink -f "${CARGO_TARGET_DIR:-target}/debug/wayinfer")
fi
build --lib --test goldens --test dot_check --test generate --test one_arithmetic
results=$work/results
rm -rf "$results"
mkdir -p "$results"

models=(dense-bf16 dense-q8_0 odd-q8_0 mixed moe-q4_k_m gpt-oss gemma3n deepseek4 minimax-m3 kimi-k3 mamba2)
models+=(qwen35 lfm2)
trace() { # where to, model, what runs it
    "$3" trace -m "fixtures/$2.gguf" --ids-file "$results/ids" -n 3 -t 2 --save "$1" >/dev/null
}
bits() { # models
    local model
    for model; do
        [ -e "$results/$model" ] || trace "$results/$model" "$model" "$native"
        rm -f "$results/emulated"
        trace "$results/emulated" "$model" "$program" && cmp "$results/$model" "$results/emulated" || return
        echo "$model: every node has the bits of $(uname -m)"
    done
}
for id in 3 17 5 40 41 42 8 9 60 3 17 5 21 33 12 50 7 7 7 28; do
    printf "\\x$(printf %x "$id")\0\0\0"
done >"$results/ids"

generate() { # prompt, program
    "$2" generate -p "$1" -n 40 -t 2 --temp 0.8 --seed 3 2>/dev/null
}
texts() { # prompts
    local prompt text
    for prompt; do
        text=$(generate "$prompt" "$program") || return
        [ "$text" = "$(generate "$prompt" "$native")" ] || { echo "another text: $text" >&2; return 1; }
        echo "$text"
    done
}
golden() { # model, golden
    "$program" trace -m "fixtures/$1.gguf" --golden "golden/$1/$2.safetensors" --isolate -t 2 --worst 1
}

unit=$(built lib wayinfer)
first=1
for cpu in $cpus; do
    on "$cpu"
    if [ -n "$first" ]; then
        part "unit tests" "$unit" kernels:: quant:: model::state
        part "goldens" "$(built test goldens)"
        # Left out is what takes as long as all else: the report of all sets (each CPU has that of its best
        # one), a hundred starts of the program, and all ways to run a pass with more than one model.
        part "dot_check" "$(built test dot_check)" --skip the_report_is_whole
        part "generate" "$(built test generate)" --skip speculation_changes_no_token
        passes=$(built test one_arithmetic)
        export WAYINFER_FIXTURES=odd-q8_0
        part "threads and batches" "$passes" kernel_sets_threads_and_batches
        export WAYINFER_FIXTURES=moe-q4_k_m,odd-q8_0,mixed,gemma3n,deepseek4
        part "one_arithmetic" "$passes" --skip kernel_sets_threads_and_batches
        part "bits" bits "${models[@]}"
        part "texts" texts "What is 2+2?" "Spell the word cat." "Which is larger, 17 or 71?"
    else
        part "unit tests" "$unit" "kernels::tests::${best//-/_}::" kernels::ops::tests::rows \
            kernels::ops::tests::attention
        part "golden" golden moe-q4_k_m short
        part "bits" bits moe-q4_k_m mixed gpt-oss mamba2
        part "texts" texts "What is 2+2?"
    fi
    part "dot-check" "$program" dot-check --isa "$best"
    first=
done
finish
