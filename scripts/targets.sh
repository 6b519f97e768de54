#!/usr/bin/env bash
# Type-checks the library and the program for the systems that people have beside this one, all at once.
#
#   scripts/targets.sh               Windows x86-64, Linux ARM64, macOS ARM64
#   scripts/targets.sh TARGET..      some of them, by the names below
#
# For macOS there is no linker here, no compiler of C, and nothing to run it on. What is unoptimised is compiled quickly,
# and what runs at compile time is the same for all.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- x86_64-pc-windows-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin
work=${CARGO_TARGET_DIR:-target}/check
. scripts/debian-rust.sh
# A crate has parts in C and assembly, which are compiled for a check as well.
need gcc libc6-dev gcc-mingw-w64-x86-64-win32 gcc-aarch64-linux-gnu libc6-dev-arm64-cross
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
# Apple's headers are on no other system: what a check needs of parts in C is that there are files.
mkdir -p "$work"
export CC_aarch64_apple_darwin=$PWD/$work/no-cc
cat >"$work/no-cc" <<'END'
#!/bin/sh
# Which of all compilers it is: one that takes no options of Microsoft's.
case $1 in -E) echo '"clang"' ;; '-?') exit 1 ;; esac
while [ $# -gt 0 ]; do
    [ "$1" != -o ] || : >"$2"
    shift
done
END
chmod +x "$work/no-cc"

targets=("$@")
for_targets check --lib --bins -Zwarnings --config 'build.warnings="deny"' \
    --config 'profile.dev.package."*".opt-level=0'
