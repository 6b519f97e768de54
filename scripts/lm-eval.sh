#!/usr/bin/env bash
# Has the lm-evaluation-harness ask the server for three small tasks that are made here, and holds its figures
# to those of the program's own logits: scripts/lm-eval.sh BINARY
# Needs python3; what else it needs (no PyTorch) goes below target/lm-eval. Nothing is asked of a hub.
set -euo pipefail
binary=$(realpath "${1:?the program, as target/release/wayinfer}")
cd "$(dirname "$0")/.."
folder=$PWD/target/lm-eval
here=$PWD/scripts/lm-eval
mkdir -p "$folder"

if ! cmp -s "$here/requirements.txt" "$folder/requirements.txt"; then
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install -q --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$folder/requirements.txt"
fi

log=$folder/server.log
"$binary" serve -m demo --port 0 --no-config >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
url=
for _ in $(seq 300); do
    url=$(sed -n 's/^listening on //p' "$log")
    [ -z "$url" ] && kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
[ -n "$url" ] || { cat "$log"; exit 1; }

export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME=$folder/hub TOKENIZERS_PARALLELISM=false
code=0
timeout 900 "$folder/venv/bin/python" "$here/evaluate.py" "$binary" "$url" "$folder/tasks" || code=1
kill -TERM "$server"
wait "$server" || { echo "the server's exit code is $?"; code=1; }
trap - EXIT
if grep -q panicked "$log"; then
    cat "$log"
    code=1
fi
exit "$code"
