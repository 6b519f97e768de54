#!/usr/bin/env bash
# Type-checks the library and the program for macOS on ARM64. There is no linker for it here, and nothing to run it on.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-apple-darwin
work=${CARGO_TARGET_DIR:-target}/macos
. scripts/debian-rust.sh
check_target
