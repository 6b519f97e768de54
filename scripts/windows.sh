#!/usr/bin/env bash
# Builds for Windows x86-64 and runs the tests, and the program as a user would, under Wine. On Debian 12, as root where
# packages are missing. What needs Unix is left out by the tests themselves.
#
#   scripts/windows.sh                 all of it
#   scripts/windows.sh test [ARG..]    the tests; arguments are those of `cargo test`
#   scripts/windows.sh program         the program alone
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-all}
[ $# = 0 ] || shift
case $mode in all | test | program) ;; *) echo "usage: $0 [test [ARG..] | program]" >&2; exit 2 ;; esac

# Debian's own toolchain brings the sources of the standard library, which no registry has for this target.
needed=(rustc-web cargo-web rust-web-src gcc libc6-dev gcc-mingw-w64-x86-64-win32 wine wine64 curl)
dpkg -s "${needed[@]}" >/dev/null 2>&1 || {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${needed[@]}"
}

target=x86_64-pc-windows-gnu
export PATH=/usr/bin:$PATH RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
export CARGO_TARGET_DIR=$PWD/target/windows
# Optimised a little: enough for the tests, which are many. What fails is debugged on Linux.
export CARGO_PROFILE_DEV_OPT_LEVEL=${CARGO_PROFILE_DEV_OPT_LEVEL:-1} CARGO_PROFILE_DEV_DEBUG=0
cargo=(/usr/bin/cargo --config 'profile.dev.package."*".opt-level=1')
std=(-Zbuild-std="std,panic_abort" --target "$target")
export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=/usr/lib/wine/wine64
export WINEPREFIX=$CARGO_TARGET_DIR/wine WINEDEBUG=-all WINEDLLOVERRIDES="mscoree,mshtml="
# Wine shows the root folder as drive Z and takes a path without a drive to be on the present one: all that tests
# touch lies there, temporary files included.
export INSTA_WORKSPACE_ROOT=$PWD INSTA_UPDATE=no
temporary=$CARGO_TARGET_DIR/tmp
mkdir -p "$temporary"
wine() { /usr/lib/wine/wine64 "$@"; }
trap '/usr/lib/wine/wineserver64 -k 2>/dev/null || wineserver -k || true' EXIT

# A Windows of our own, with what Wine 8 lacks: the one function of it that Rust's standard library asks for.
# It knows where this checkout is.
if [ "$(cat "$WINEPREFIX/ready" 2>/dev/null)" != "$temporary" ]; then
    rm -rf "$WINEPREFIX"
    mkdir -p "$WINEPREFIX"
    wine wineboot -i >/dev/null 2>&1
    shim=$CARGO_TARGET_DIR/bcryptprimitives.c
    cat >"$shim" <<'END'
#include <windows.h>
#include <ntsecapi.h>
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T n) { return RtlGenRandom(bytes, (ULONG)n); }
END
    x86_64-w64-mingw32-gcc -O1 -shared -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" "$shim" -ladvapi32
    for name in TEMP TMP; do
        wine reg add 'HKCU\Environment' /f /v "$name" /t REG_SZ /d "Z:${temporary//\//\\}" >/dev/null
    done
    # A file whose name begins with a dot is like any other on Windows.
    wine reg add 'HKCU\Software\Wine' /f /v ShowDotFiles /t REG_SZ /d Y >/dev/null
    echo "$temporary" >"$WINEPREFIX/ready"
fi

failed=0
if [ "$mode" != program ]; then
    log=$CARGO_TARGET_DIR/tests.log
    "${cargo[@]}" test --locked --no-fail-fast "${std[@]}" "$@" 2>&1 | tee "$log" || failed=1
    awk '/^test result: / { passed += $4; failed += $6; ignored += $8 }
        END { print "windows: " passed + 0 " tests passed, " failed + 0 " failed, " ignored + 0 " ignored" }' "$log"
fi
[ "$mode" != test ] || exit $failed

# As the tests have it: `build` would make the standard library and all else once more.
"${cargo[@]}" test --locked "${std[@]}" --no-run --test windows
program=$CARGO_TARGET_DIR/$target/debug/wayinfer.exe
out=$temporary/program
rm -rf "$out"
mkdir -p "$out"

# What a run gave: exit code, and what must be in a file.
expect() { # WHAT CODE WANTED-CODE FILE PATTERN..
    local what=$1 code=$2 wanted=$3 file=$4 pattern ok=1
    shift 4
    [ "$code" = "$wanted" ] || { echo "FAILED: $what: exit code $code, not $wanted" >&2; ok=0; }
    for pattern; do
        grep -aqE -- "$pattern" "$file" || { echo "FAILED: $what: no \"$pattern\" in $file" >&2; ok=0; }
    done
    if [ $ok = 1 ]; then echo "ok: $what"; else cat -v "$file" >&2; failed=1; fi
}
run() { # what it says goes to out/stdout and out/stderr
    code=0
    wine "$program" "$@" >"$out/stdout" 2>"$out/stderr" </dev/null || code=$?
}

run generate -p "What is 2+2?"
expect "the demo answers" $code 0 "$out/stdout" '4'
expect "its statistics" $code 0 "$out/stderr" 'load .* tok/s .*peak RSS [0-9.]+ MB'
run bench -m fixtures/demo-q4_k_m.gguf -p 16 -n 4 -r 1
expect "bench" $code 0 "$out/stdout" 'prefill' 'decode'
run inspect --check fixtures/demo-q4_k_m.gguf
expect "inspect --check" $code 0 "$out/stdout" 'no errors'

# A pipe whose reader goes away ends the run and is no failure.
set +o pipefail
wine "$program" generate -m fixtures/moe-q4_k_m.gguf -p a --ignore-eos -n 4000 2>"$out/stderr" | head -c 4 >"$out/stdout"
code=${PIPESTATUS[0]}
set -o pipefail
expect "a pipe that closes" "$code" 0 "$out/stderr"
if grep -q 'error' "$out/stderr"; then echo "FAILED: an error where a pipe closes" >&2; failed=1; fi

# Ctrl-C, as Wine hands it on: the first ends the text with its statistics.
/usr/lib/wine/wine64 "$program" generate -m fixtures/moe-q4_k_m.gguf -p a --ignore-eos -n 20000 -c 20001 \
    >"$out/stdout" 2>"$out/stderr" </dev/null &
running=$!
for _ in $(seq 300); do [ -s "$out/stdout" ] && break; sleep 0.1; done
kill -INT "$running"
code=0
wait "$running" || code=$?
expect "Ctrl-C ends a run with its statistics" $code 130 "$out/stderr" 'decode [0-9]+ tokens, .* tok/s'

# The server, asked by a program of this machine; Ctrl-C ends it as well.
/usr/lib/wine/wine64 "$program" serve --port 0 >"$out/stdout" 2>"$out/stderr" </dev/null &
running=$!
url=
for _ in $(seq 300); do
    url=$(sed -n 's/^listening on \(http:[0-9.:/]*\).*/\1/p' "$out/stderr")
    [ -z "$url" ] || break
    sleep 0.1
done
ask() { # PATH ARG..
    code=0
    curl --silent --show-error --fail --max-time 120 "$url$1" "${@:2}" >"$out/answer" 2>&1 || code=$?
}
ask /health
expect "the server is well" $code 0 "$out/answer" '"status":"ok"'
question='"messages": [{"role": "user", "content": "What is 2+2?"}], "temperature": 0'
ask /v1/chat/completions --json "{$question}"
expect "the server answers" $code 0 "$out/answer" 'The sum of 2 and 2 is 4'
ask /v1/chat/completions --json "{$question, \"stream\": true}"
expect "the server answers in pieces" $code 0 "$out/answer" 'data: [{]' 'data: \[DONE\]'
kill -INT "$running"
code=0
wait "$running" || code=$?
expect "Ctrl-C ends the server" $code 0 "$out/stderr" '^ended'

# On a terminal: what Wine's console draws on it, with text beyond ASCII, a bar over the prompt and colours.
terminal() { # ARG..
    code=0
    local line
    line=$(printf '%q ' /usr/lib/wine/wine64 "$program" "$@")
    LC_ALL=C.UTF-8 TERM=xterm-256color script -qefc "stty cols 100 rows 40; $line" "$out/terminal" </dev/null >/dev/null || code=$?
}
terminal tokenize -m fixtures/demo-q4_k_m.gguf --text 'Grüße 世界'
expect "text beyond ASCII on a console" $code 0 "$out/terminal" 'ü'
terminal generate -m fixtures/moe-q4_k_m.gguf -p "$(seq 300)" -n 2 -c 4096 --isa scalar -t 1
expect "a bar over the prompt" $code 0 "$out/terminal" 'prefill' '█' '[0-9]+/[0-9]+ tokens'
terminal generate --no-such-option
expect "colours of an error" $code 2 "$out/terminal" $'\e\\[[0-9;]*31m'

[ $failed = 0 ] && echo "windows: all of it works under $(wine --version)"
exit $failed
