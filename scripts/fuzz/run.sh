#!/usr/bin/env bash
# Runs a fuzz target for some seconds: scripts/fuzz/run.sh TARGET SECONDS [libFuzzer's options]
set -euo pipefail
cd "$(dirname "$0")"
target=${1:?a target: header, load, split, tokenizer, grammar, golden, transcript, cache, request, base, manifest, config, hub}
seconds=${2:?seconds}
shift 2

bin=$(./build.sh "$target" seeds)
corpus=target/corpus
if [ ! -d "$corpus/$target" ]; then
    ASAN_OPTIONS=detect_leaks=0 "$bin/seeds" "$corpus" ../../fixtures
fi
mkdir -p target/findings
# Files of a moment belong in memory.
if [ -d /dev/shm ]; then export TMPDIR=/dev/shm; fi
# Leaks: threads that end with an engine leave the list of their destructors behind, which is the C library's.
exec "$bin/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1536 -malloc_limit_mb=512 -max_len=200000 \
    -detect_leaks=0 -artifact_prefix="target/findings/$target-" -print_final_stats=1 "$@" "$corpus/$target"
