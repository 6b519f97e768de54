# To be sourced: a Rust that builds for other systems. Debian's has the sources of its standard library, from which the one of
# any target is built; a toolchain of rustup has no other target's where it cannot fetch it.

# Installs packages that are not there.
need() {
    dpkg -s "$@" >/dev/null 2>&1 && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Cargo for the target in $target, with its own standard library: `for_target test --no-run`.
for_target() {
    PATH=/usr/bin:$PATH RUSTC_BOOTSTRAP=1 CARGO_PROFILE_DEV_DEBUG=${CARGO_PROFILE_DEV_DEBUG:-false} \
        /usr/bin/cargo "$1" -Zbuild-std=std,panic_abort --target "$target" --target-dir "$work" --locked "${@:2}"
}

# Type-checks the library and the program; warnings are errors. The standard library is compiled for it, and
# what runs at compile time: unoptimised, that is quick, and all targets share the latter.
check_target() {
    work=${CARGO_TARGET_DIR:-target}/check
    for_target check --lib --bins -Zwarnings --config 'build.warnings="deny"' \
        --config 'profile.dev.package."*".opt-level=0'
}

need rustc-web cargo-web rust-web-src
