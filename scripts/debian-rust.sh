# To be sourced: a Rust that builds for other systems. Debian's has the sources of its standard library, from which the one of
# any target is built; a toolchain of rustup has no other target's where it cannot fetch it.

# Installs packages that are not there.
need() {
    dpkg -s "$@" >/dev/null 2>&1 && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Cargo for the targets in $targets, each with its own standard library, in the folder $work.
for_targets() {
    PATH=/usr/bin:$PATH RUSTC_BOOTSTRAP=1 CARGO_PROFILE_DEV_DEBUG=${CARGO_PROFILE_DEV_DEBUG:-false} \
        /usr/bin/cargo "$1" -Zbuild-std=std,panic_abort "${targets[@]/#/--target=}" --target-dir "$work" --locked "${@:2}"
}

# The same for the target in $target: `for_target test --no-run`.
for_target() {
    local targets=("$target")
    for_targets "$@"
}

need rustc-web cargo-web rust-web-src
