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
. scripts/dist.sh
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
    library_licenses "$1" "$folder/licenses"
}

maturin() { # into a folder, by these arguments; prints the wheel's path
    local out=$1
    rm -rf "$out"
    "$folder/venv/bin/maturin" build --quiet --out "$out" "${@:2}" >&2
    echo "$out"/*.whl
}

# Its parts are those of the archives of scripts/release.sh, and are compiled once for both.
release() { # linux, arm or windows
    local name wheel linux_options=(--compatibility "manylinux_${newest_glibc/./_}" --auditwheel check)
    case $1 in
    linux | arm | windows) name=${!1} ;;
    *) echo "usage: $0 [linux | arm | windows].. | test [ARG..]" >&2 && exit 2 ;;
    esac
    lay "$(dist_program "$name")"
    licenses "$name"
    dist_for "$name"
    [ "$1" != windows ] || linux_options=()
    if [ "$1" = linux ]; then
        wheel=$(maturin "$folder/out" --profile dist --target "$name" "${linux_options[@]}")
    else
        wheel=$(PATH=/usr/bin:$PATH RUSTC_BOOTSTRAP=1 CARGO=/usr/bin/cargo maturin "$folder/out" --profile dist \
            --target "$name" --target-dir "$work" -Z build-std=std,panic_abort "${linux_options[@]}")
    fi
    rm -rf "$folder/unpacked"
    "$python" -m zipfile -e "$wheel" "$folder/unpacked"
    has_no_paths "$folder/unpacked"
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
