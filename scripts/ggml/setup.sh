#!/bin/sh
# Installs what the reference programs need to build on Debian or Ubuntu, and the Python packages of the fixtures.
set -eu
cd "$(dirname "$0")"
as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
$as_root apt-get update
$as_root apt-get install -y cmake libclang-dev g++
python3 -m pip install -r ../requirements.txt
