#!/usr/bin/env bash
# Builds the Python package as wheels, with the program `wayinfer` in them, and tests it.
#
#   scripts/wheel.sh                       wheels for Linux x86-64, Linux ARM64 and Windows x86-64, in target/wheels
#   scripts/wheel.sh linux|arm|windows..   some of them
#   scripts/wheel.sh test [ARG..]          a wheel of the development build, installed into an environment of its own and
#                                          tested there: types, then tests/python; arguments are those of pytest
#
# WAYINFER_PROGRAM names a program of the same source that was built for this machine, where there is one already.
# It runs on Debian 12, x86-64.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

folder=$PWD/target/wheel
wheels=$PWD/target/wheels
tests=$PWD/tests/python
glibc=2_34 # as the README says
[ $# -gt 0 ] || set -- linux arm windows

if ! command -v cargo >/dev/null; then
    export PATH="$HOME/.cargo/bin:$PATH"
fi
mkdir -p "$folder"
if ! cmp -s "$tests/requirements.txt" "$folder/requirements.txt"; then
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install -q --disable-pip-version-check -r "$tests/requirements.txt"
    cp "$tests/requirements.txt" "$folder/requirements.txt"
fi
python=$folder/venv/bin/python

lay() { # the program into the wheel's data
    rm -rf "$folder/data"
    install -D -m 755 -t "$folder/data/scripts" "$1"
}

licenses() { # of a target's crates and of Rust's standard library, into the wheel
    rm -rf "$folder/licenses"
    mkdir -p "$folder/licenses"
    scripts/licenses.py "$1" --features python >"$folder/licenses/crates.txt"
    case $1 in
    x86_64-unknown-linux-gnu)
        cp "$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html" "$folder/licenses/rust-library.html"
        ;;
    *) cp /usr/share/doc/rust-web-src/copyright "$folder/licenses/rust-library.txt" ;;
    esac
    if [ "$1" = x86_64-pc-windows-gnu ]; then # linked in, where Linux has shared libraries
        cp /usr/share/doc/mingw-w64-x86-64-dev/copyright "$folder/licenses/mingw-w64.txt"
        cp /usr/share/doc/gcc-mingw-w64-base/copyright "$folder/licenses/gcc.txt"
    fi
}

maturin() { # into a folder, by these arguments; prints the wheel's path
    local out=$1
    rm -rf "$out"
    "$folder/venv/bin/maturin" build --quiet --out "$out" "${@:2}" >&2
    echo "$out"/*.whl
}

# As cargo names it, and as for_target of debian-rust.sh builds it: with its own standard library.
cross() { # a target, the program's file; prints the wheel's path
    target=$1
    work=$PWD/target/cross
    . scripts/debian-rust.sh >&2
    if [ "$target" = aarch64-unknown-linux-gnu ]; then
        need gcc-aarch64-linux-gnu libc6-dev-arm64-cross >&2
        export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
        export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
    else
        need gcc-mingw-w64-x86-64-win32 >&2
    fi
    for_target build --profile dist --bin wayinfer >&2
    lay "$work/$target/dist/$2"
    licenses "$target"
    PATH=/usr/bin:$PATH RUSTC_BOOTSTRAP=1 CARGO=/usr/bin/cargo maturin "$folder/out" --profile dist \
        --target "$target" --target-dir "$work" -Z build-std=std,panic_abort "${@:3}"
}

release() { # linux, arm or windows
    local wheel
    case $1 in
    linux)
        cargo build --locked --profile dist --bin wayinfer >&2
        lay target/dist/wayinfer
        licenses x86_64-unknown-linux-gnu
        wheel=$(maturin "$folder/out" --profile dist --compatibility "manylinux_$glibc" --auditwheel check)
        ;;
    arm) wheel=$(cross aarch64-unknown-linux-gnu wayinfer --compatibility "manylinux_$glibc" --auditwheel check) ;;
    windows) wheel=$(cross x86_64-pc-windows-gnu wayinfer.exe) ;;
    *) echo "usage: $0 [linux | arm | windows].. | test [ARG..]" >&2 && exit 2 ;;
    esac
    mkdir -p "$wheels"
    mv "$wheel" "$wheels/"
    echo "$wheels/$(basename "$wheel"): $(stat -c %s "$wheels/$(basename "$wheel")") bytes"
}

run_tests() {
    local program=${WAYINFER_PROGRAM:-target/debug/wayinfer} wheel
    if [ -z "${WAYINFER_PROGRAM:-}" ]; then
        cargo build --locked --bin wayinfer >&2
    fi
    lay "$program"
    rm -rf "$folder/licenses"
    # What it is made of is there already; this crate alone is compiled once more, unoptimised: it is tested elsewhere.
    wheel=$(CARGO_PROFILE_DEV_OPT_LEVEL=${WAYINFER_WHEEL_OPT_LEVEL:-0} \
        maturin "$folder/out" --profile dev --auditwheel skip --compression-method stored)
    "$python" -m pip install -q --disable-pip-version-check --force-reinstall --no-deps "$wheel"
    cd "$tests"
    "$python" -m mypy --config-file ../../pyproject.toml --cache-dir "$folder/mypy" -p wayinfer
    "$python" -m mypy --config-file ../../pyproject.toml --cache-dir "$folder/mypy" typed.py
    "$python" -m mypy.stubtest --mypy-config-file ../../pyproject.toml --allowlist stubtest.txt \
        --ignore-unused-allowlist wayinfer
    timeout 300 "$python" -m pytest -c ../../pyproject.toml --rootdir . "$@" .
}

if [ "$1" = test ]; then
    shift
    run_tests "$@"
else
    for target; do release "$target"; done
fi
