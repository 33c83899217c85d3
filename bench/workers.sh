#!/usr/bin/env bash
# Measures what several workers on one machine cost: the ordered reduction against the library's
# all-reduce, workers against threads, and memory a worker; see workers.py.
#
#   bench/workers.sh [--models 4M 12M] [--precision fp32|bf16] [--pairs N]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${LOCKSTEP_BENCH:-$HOME/.cache/lockstep/bench}
mkdir -p "$work"

launch/setup.sh dict-gcide
launch/build.sh build >&2
gzip -dcf </usr/share/dictd/gcide.dict.dz >"$work/text.txt"
exec python3 bench/workers.py --program build/lockstep --text "$work/text.txt" --work "$work" "$@"
