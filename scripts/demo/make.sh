#!/bin/sh
# Makes the demo model: make.sh FOLDER. Run again, training goes on where it stopped.
set -eu
folder=${1:?usage: make.sh FOLDER}
here=$(dirname "$0")
mkdir -p "$folder"
python3 "$here/data.py" "$folder/held_out.json"
python3 "$here/train.py" --out "$folder"
python3 "$here/export.py" "$folder/checkpoint.npz" "$folder/wayinfer-demo-f32.gguf"
