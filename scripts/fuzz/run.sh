#!/usr/bin/env bash
# Runs a fuzz target for some seconds, or builds them all: scripts/fuzz/run.sh TARGET SECONDS [libFuzzer's options]
# A stable toolchain does: the options of sanitizers are asked of it as cargo-fuzz asks a nightly one.
set -euo pipefail
cd "$(dirname "$0")"
target=${1:?a target: header, load, split, tokenizer, golden}
seconds=${2:?seconds}
shift 2

host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Zsanitizer=address -Cpasses=sancov-module --cfg fuzzing \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target named, build scripts are spared the sanitizer.
cargo build --release --target "$host" --bin "$target" --bin seeds
bin=target/$host/release

corpus=target/corpus
if [ ! -d "$corpus/$target" ]; then
    "$bin/seeds" "$corpus" ../../fixtures
fi
mkdir -p target/findings
# Files of a moment belong in memory.
if [ -d /dev/shm ]; then export TMPDIR=/dev/shm; fi
exec "$bin/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 -max_len=200000 \
    -artifact_prefix="target/findings/$target-" -print_final_stats=1 -detect_leaks=0 "$@" "$corpus/$target"
