#!/usr/bin/env bash
# Measures what a draft brings to generation: with and without one, in turn on this machine; see
# speculative.py. The first call trains a model and its draft, which takes about 20 minutes on two
# cores.
#
#   bench/speculative.sh [--precision fp32|bf16] [--pairs N] [--tokens N] [--threads N] [--steps N]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${LOCKSTEP_BENCH:-$HOME/.cache/lockstep/bench}
mkdir -p "$work"

launch/setup.sh dict-gcide
launch/build.sh build >&2
gzip -dcf </usr/share/dictd/gcide.dict.dz >"$work/text.txt"
exec python3 bench/speculative.py --program build/lockstep --text "$work/text.txt" --work "$work" "$@"
