#!/usr/bin/env bash
# Builds everything here and runs each target for some seconds, two at a time: scripts/fuzz/smoke.sh SECONDS
set -euo pipefail
cd "$(dirname "$0")"
export seconds=${1:?seconds}
# Less optimised than for long runs, which takes half the time to compile, and apart from them.
export CARGO_TARGET_DIR=$PWD/target/smoke CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=false
targets=(header load split tokenizer grammar golden transcript cache request base manifest config hub)
bin=$(./build.sh "${targets[@]}" seeds program)
mkdir -p target/findings
[ -d target/corpus ] || ASAN_OPTIONS=detect_leaks=0 "$bin/seeds" target/corpus ../../fixtures
run() {
    local log=target/findings/$1.log
    if ./run.sh "$1" "$seconds" >"$log" 2>&1; then
        echo "$1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs"
    else
        tail -n 60 "$log" && echo "$1: a finding" && return 1
    fi
}
export -f run
printf '%s\n' "${targets[@]}" | xargs -P 2 -I '{}' bash -euo pipefail -c 'run {}'
