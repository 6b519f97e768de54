#!/usr/bin/env bash
# Builds programs of this crate with the address sanitizer and what libFuzzer needs, and says where they are:
# scripts/fuzz/build.sh PROGRAM..  A stable toolchain does: what is not stable is asked of it as cargo-fuzz asks a nightly one.
set -euo pipefail
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
# What goes wrong silently in a release is to be found.
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
export RUSTFLAGS="-Zsanitizer=address -Cpasses=sancov-module --cfg fuzzing \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
bins=()
for name in "$@"; do bins+=(--bin "$name"); done
# With a target named, build scripts are spared the sanitizer.
cargo build --release --target "$host" "${bins[@]}" >&2
realpath "$CARGO_TARGET_DIR/$host/release"
