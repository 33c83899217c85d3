#!/usr/bin/env bash
# Measures what it brings to generation that prompts run together: 16 at a time against one by one,
# in turn on this machine; see batch.py.
#
#   bench/batch.sh [--models 4M 12M 124M] [--precision fp32|bf16] [--pairs N] [--tokens N] [--threads N]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${LOCKSTEP_BENCH:-$HOME/.cache/lockstep/bench}
mkdir -p "$work"

launch/setup.sh dict-gcide
launch/build.sh build >&2
gzip -dcf </usr/share/dictd/gcide.dict.dz >"$work/text.txt"
exec python3 bench/batch.py --program build/lockstep --text "$work/text.txt" --work "$work" "$@"
