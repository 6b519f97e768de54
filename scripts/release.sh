#!/usr/bin/env bash
# Makes a release in target/archives: an archive a system with the program, the README, pages of the manual
# and all licences, and SHA256SUMS.
#
#   scripts/release.sh                    Linux x86-64, Linux ARM64, Windows x86-64
#   scripts/release.sh TARGET..           some of them, by the names below
#
# Each archive is unpacked and its program run, where it can be (ARM64: qemu-user, Windows: wine). The same
# commit and toolchains give the same archives. It runs on Debian 12, x86-64.
set -euo pipefail
shopt -s inherit_errexit nullglob
cd "$(dirname "$0")/.."

. scripts/dist.sh
. scripts/arm64-emulator.sh
question="What is 2+2?"
answer="The sum of 2 and 2 is 4."

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH TZ=UTC LC_ALL=C
umask 022
dist=$PWD/target/archives
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -n "$(git status --porcelain)" ]; then
    echo "warning: uncommitted changes will be in the archives" >&2
fi

glibc() { # an ELF program; prints the newest version of glibc's symbols that it needs
    readelf --dyn-syms --wide "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1 | cut -d_ -f2
}

licenses() { # a target and a folder
    mkdir -p "$2"
    scripts/licenses.py "$1" >"$2/crates.txt"
    library_licenses "$1" "$2"
}

manual() { # a folder; its pages are the same for all systems, and made by this one's program
    local program=target/$linux/dist/wayinfer
    [ -x "$program" ] || program=$(dist_program "$linux")
    mkdir -p "$1"
    "$program" man "$1"
    chmod 644 "$1"/*
}

pack() { # a target and a program; prints the archive's name
    local name=wayinfer-$version-$1
    local folder=$scratch/$name
    mkdir "$folder"
    install -m 755 "$2" "$folder/"
    install -m 644 README.md LICENSE "$folder/"
    licenses "$1" "$folder/licenses"
    chmod 644 "$folder"/licenses/*
    [ "$1" = "$windows" ] || manual "$folder/man/man1"
    find "$folder" -exec touch --date "@$SOURCE_DATE_EPOCH" {} +
    cd "$scratch"
    if [ "$1" = "$windows" ]; then
        find "$name" -type f | sort | zip -q -X -9 -@ "$name.zip"
        name+=.zip
    else
        tar --sort=name --owner=0 --group=0 --numeric-owner --format=ustar -c "$name" |
            gzip -9 -n >"$name.tar.gz"
        name+=.tar.gz
    fi
    mv "$name" "$dist/"
    cd "$OLDPWD"
    echo "$name"
}

try() { # a target and an archive: its program must know its version, and answer
    local folder=$scratch/try-$1 run=() said
    mkdir "$folder"
    case $2 in
    *.zip) unzip -q "$dist/$2" -d "$folder" ;;
    *) tar -xzf "$dist/$2" -C "$folder" ;;
    esac
    case $1 in
    "$arm") run=(emulated) ;;
    "$windows") run=(wine) && export WINEDEBUG=-all && random_for_wine "$folder/${2%.zip}" ;;
    esac
    local emulator=${run[0]:-}
    [ "$emulator" != emulated ] || emulator=qemu-aarch64
    if [ -n "$emulator" ] && ! command -v "$emulator" >/dev/null; then
        echo "$2: not run, there is no $emulator" >&2 && return
    fi
    run+=("$folder/wayinfer-$version-$1/wayinfer")
    [ "$1" != "$windows" ] || run[-1]+=.exe
    said=$("${run[@]}" --version | tr -d '\r')
    [ "$said" = "wayinfer $version" ] || fail "$2: its version is $said"
    said=$("${run[@]}" generate -p "$question" 2>/dev/null | tr -d '\r')
    [ "$said" = "$answer" ] || fail "$2: answers $said"
}

# Wine 8 lacks the library that Rust has its random numbers from, which Windows 10 has: lays it into a folder.
random_for_wine() {
    cat >"$scratch/random.c" <<'END'
#include <windows.h>
#include <ntsecapi.h>
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T n) { return RtlGenRandom(bytes, (ULONG)n); }
END
    x86_64-w64-mingw32-gcc -shared -o "$1/bcryptprimitives.dll" "$scratch/random.c" -ladvapi32
}

[ "$(uname -sm)" = "Linux x86_64" ] || fail "releases are made on Linux, x86-64"
needed=(binutils python3 unzip zip)
dpkg -s "${needed[@]}" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "${needed[@]}"; } >&2
[ $# -gt 0 ] || set -- "$linux" "$arm" "$windows"
mkdir -p "$dist"
for target in "$@"; do
    program=$(dist_program "$target")
    if [ "$target" != "$windows" ]; then
        needs=$(glibc "$program")
        [ "$(printf '%s\n' "$needs" "$newest_glibc" | sort -V | tail -n 1)" = "$newest_glibc" ] ||
            fail "$target: needs glibc $needs, the README says $newest_glibc"
    fi
    archive=$(pack "$target" "$program")
    try "$target" "$archive"
    echo "$archive: $(stat -c %s "$dist/$archive") bytes, the program $(stat -c %s "$program")"
done
cd "$dist"
sha256sum wayinfer-"$version"-*.{tar.gz,zip} | tee SHA256SUMS
