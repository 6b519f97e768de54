#!/usr/bin/env bash
# Type-checks the library and the program for the systems that people have beside this one, all at once.
#
#   scripts/targets.sh               Windows x86-64, Linux ARM64, macOS ARM64
#   scripts/targets.sh TARGET..      some of them, by the names below
#
# For macOS there is no linker here, and nothing to run it on. What is unoptimised is compiled quickly, and what runs at
# compile time is the same for all.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- x86_64-pc-windows-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin
work=${CARGO_TARGET_DIR:-target}/check
. scripts/debian-rust.sh
# A crate has parts in C and assembly, which are compiled for a check as well.
need gcc libc6-dev gcc-mingw-w64-x86-64-win32 gcc-aarch64-linux-gnu libc6-dev-arm64-cross
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc

targets=("$@")
for_targets check --lib --bins -Zwarnings --config 'build.warnings="deny"' \
    --config 'profile.dev.package."*".opt-level=0'
