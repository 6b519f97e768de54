#!/usr/bin/env bash
# Packs what measures kernels on another machine for some minutes, one that has a CPU that is not at hand:
#
#   scripts/elsewhere.sh                 makes target/elsewhere, some 40 MB
#   target/elsewhere/run.py OUT.json     there: the kernels' tests on every kernel set, then speed beside llama.cpp's
#   target/elsewhere/card.py OUT.json    there, with a graphics card: its kernels' tests, then speed beside the CPU's
#
# It holds the program and the library's tests, stripped, the maker of synthetic models, and llama.cpp's sources of the
# version that scripts/ggml is made with, which are built there for its CPU where cmake and a C++ compiler are.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/elsewhere
rm -rf "$out"
mkdir -p "$out"
cargo build --locked --release
tests=$(cargo test --locked --release --lib --no-run --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("profile", {}).get("test") and message.get("executable"):
        print(message["executable"])')
strip -o "$out/wayinfer" target/release/wayinfer
strip -o "$out/tests" "$tests"
cp scripts/synth_gguf.py "$out/"
cp scripts/elsewhere/* "$out/"

version=$(sed -n '/^name = "llama-cpp-sys-2"$/{n;s/^version = "\(.*\)"$/\1/p}' scripts/ggml/Cargo.lock)
cargo fetch --quiet --locked --manifest-path scripts/ggml/Cargo.toml
sources=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/llama-cpp-sys-2-"$version"/llama.cpp)
# What runs on CPUs.
tar -C "${sources[0]}" -cJf "$out/llama.cpp.tar.xz" \
    --exclude='ggml-cuda' --exclude='ggml-vulkan' --exclude='ggml-sycl' --exclude='ggml-opencl' --exclude='ggml-metal' \
    --exclude='ggml-cann' --exclude='ggml-hip' --exclude='ggml-musa' --exclude='ggml-webgpu' --exclude='ggml-hexagon' \
    --exclude='ggml-zdnn' --exclude='ggml-openvino' --exclude='ggml-virtgpu' --exclude='ggml-zendnn' \
    CMakeLists.txt cmake ggml include src vendor
du -sh "$out" >&2
