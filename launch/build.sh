#!/usr/bin/env bash
# Installs what is missing and builds Lockstep into build/ (the program is build/lockstep).
#
#   launch/build.sh [FOLDER [CMAKE_OPTION...]]     default folder: build
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build}
shift || true

launch/setup.sh
# A folder that another generator configured keeps it.
generator=()
[ -f "$folder/CMakeCache.txt" ] || generator=(-G Ninja)
mkdir -p "$folder"
cmake -S . -B "$folder" "${generator[@]}" "$@" >"$folder/configure.log" 2>&1 || {
  cat "$folder/configure.log" >&2
  exit 1
}
cmake --build "$folder" --parallel "$(nproc)"
