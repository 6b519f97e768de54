# To be sourced: programs as they are given to others, of the profile `dist`, for each system, built on Debian 12, x86-64.

linux=x86_64-unknown-linux-gnu
arm=aarch64-unknown-linux-gnu
windows=x86_64-pc-windows-gnu
newest_glibc=2.34 # as the README says
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
cargo_home=${CARGO_HOME:-$HOME/.cargo}

fail() { echo "$*" >&2 && exit 1; }

# What `cargo` and what calls it build for a target: sets $target and, for other systems, $work, and brings for_target.
dist_for() {
    # No folder of this machine stays in the program, and no flag of its user changes it.
    local separator=$'\x1f' from="--remap-path-prefix"
    export CARGO_ENCODED_RUSTFLAGS="$from=$PWD=wayinfer$separator$from=$cargo_home=cargo"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
    target=$1 work=$PWD/target/cross
    case $target in
    "$linux") work=$PWD/target && return ;;
    "$arm") needed=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross) ;;
    "$windows") needed=(gcc-mingw-w64-x86-64-win32) ;;
    *) fail "$target: no system that there are releases for" ;;
    esac
    . scripts/debian-rust.sh >&2
    need "${needed[@]}" >&2
}

dist_program() { # a target; prints the program's path
    local program
    dist_for "$1"
    if [ "$1" = "$linux" ]; then
        cargo build --locked --profile dist --target "$1" --bin wayinfer >&2
    else
        for_target build --profile dist --bin wayinfer >&2
    fi
    program=$work/$1/dist/wayinfer
    [ "$1" != "$windows" ] || program+=.exe
    [ -f "$program" ] || fail "$program: was not built"
    has_no_paths "$program"
    echo "$program"
}

has_no_paths() { # a file, or a folder of them
    if grep -raqF -e "$cargo_home/" -e "$PWD/" "$1"; then fail "$1: has paths of this machine"; fi
}

# The licence of Rust's standard library, and of what is linked in where Linux has shared libraries.
library_licenses() { # a target and a folder
    if [ "$1" = "$linux" ]; then
        cp "$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html" "$2/rust-library.html"
    else
        cp /usr/share/doc/rust-web-src/copyright "$2/rust-library.txt"
    fi
    if [ "$1" = "$windows" ]; then
        cp /usr/share/doc/mingw-w64-x86-64-dev/copyright "$2/mingw-w64.txt"
        cp /usr/share/doc/gcc-mingw-w64-base/copyright "$2/gcc.txt"
    fi
}
