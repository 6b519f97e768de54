#!/usr/bin/env bash
# Short runs of `generate` under tools that watch memory: dense and MoE models, two kernel sets, mapped and streamed. Exit
# code 0: nothing was found.
#
#   scripts/sanitize.sh [asan] [memcheck] [tsan]      the first two where none is named
#
# asan: the address sanitizer. memcheck: valgrind. tsan: the thread sanitizer, over the standard library as well (rustup component
# rust-src), for it must see what that does to threads; valgrind's helgrind does not know atomic operations, by which rayon's threads
# hand over all their work, and takes each for a race. A stable toolchain does.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
work=target/sanitize
mkdir -p "$work"
export RUST_BACKTRACE=0

# A program with the fault that a tool is to find: without it the tool finds nothing anywhere.
canary() { # name, body, options of rustc
    printf '%s\n' "fn main() { $2 }" >"$work/$1.rs"
    RUSTC_BOOTSTRAP=1 rustc --edition 2024 -Copt-level=1 -o "$work/$1" "${@:3}" "$work/$1.rs"
}
past_the_end='let v = std::hint::black_box(vec![1u8; 40]); // SAFETY: none, that is the point.
    if unsafe { v.as_ptr().add(40).read_volatile() } == 7 { println!("7"); }'

finds() { # the tool's words, command
    if "${@:2}" >"$work/canary.log" 2>&1 || ! grep -q "$1" "$work/canary.log"; then
        echo "the tool does not find what it should: ${*:2}" >&2
        exit 1
    fi
}

# Runs a program on each model, set and residency; the command before the program in front.
runs() {
    local program=$1 model isa ram common
    for model in dense-q4_k_m moe-q4_k_m mixed; do
        for isa in scalar avx2; do
            common=(generate "fixtures/$model.gguf" -p "a b" -n 3 --ignore-eos -c 32 -t 2 --seed 1 --isa "$isa")
            one "$model $isa mapped" "${@:2}" "$program" "${common[@]}"
            # The least memory that it runs in: all that can be is streamed.
            ram=$("${@:2}" "$program" "${common[@]}" --ram 1M 2>&1 | sed -n 's/.*: \([0-9.]*\) MiB are needed.*/\1/p' || true)
            ram=$(awk -v least="$ram" 'BEGIN { print int((least + 0.2) * 1024) }')
            one "$model $isa streamed" "${@:2}" "$program" "${common[@]}" --ram "${ram}K"
            grep -q "streamed" "$work/run.log" || { echo "not streamed in ${ram}K" >&2; cat "$work/run.log" >&2; exit 1; }
        done
    done
}

one() { # what, command
    local begin=$SECONDS
    if ! "${@:2}" >"$work/run.log" 2>&1; then
        echo "FOUND: $1" >&2
        cat "$work/run.log" >&2
        exit 1
    fi
    echo "$1: clean, $((SECONDS - begin)) s"
}

asan() {
    echo "== address sanitizer"
    canary asan-canary "$past_the_end" -Zsanitizer=address --target "$host"
    finds heap-buffer-overflow "$work/asan-canary"
    local bin
    bin=$(scripts/fuzz/build.sh program)
    ASAN_OPTIONS=detect_leaks=0 runs "$bin/program"
}

memcheck() {
    echo "== valgrind memcheck"
    local valgrind=(valgrind -q --error-exitcode=99 --leak-check=no)
    canary memcheck-canary "$past_the_end"
    finds "Invalid read" "${valgrind[@]}" "$work/memcheck-canary"
    cargo build --locked
    runs target/debug/wayinfer "${valgrind[@]}"
}

tsan() {
    echo "== thread sanitizer"
    canary tsan-canary 'let v = Box::into_raw(Box::new(0u64)) as usize;
        // SAFETY: none, that is the point.
        let add = move || unsafe { *(v as *mut u64) += 1 };
        let other = std::thread::spawn(add); add(); other.join().unwrap();' \
        -Zsanitizer=thread --target "$host" -Cunsafe-allow-abi-mismatch=sanitizer
    finds "data race" "$work/tsan-canary"
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread" cargo build --release -Zbuild-std --target "$host" --target-dir "$work/tsan"
    runs "$work/tsan/$host/release/wayinfer"
}

if [ $# = 0 ]; then set -- asan memcheck; fi
for tool in "$@"; do
    case $tool in
    asan | memcheck | tsan) "$tool" ;;
    *) echo "no such tool: $tool" >&2 && exit 2 ;;
    esac
done
