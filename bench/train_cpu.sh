#!/usr/bin/env bash
# Measures the training step on the CPU against PyTorch's, in turn on this machine. Installs PyTorch
# into a virtual environment outside the tree (LOCKSTEP_BENCH, default ~/.cache/lockstep/bench).
#
#   bench/train_cpu.sh [--models 0.9M 4M 12M 124M] [--precision fp32|bf16] [--compile] [--pairs N]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${LOCKSTEP_BENCH:-$HOME/.cache/lockstep/bench}

launch/setup.sh dict-gcide python3-venv
launch/build.sh build >&2
if ! "$work/venv/bin/python" -c 'import torch' 2>/dev/null; then
  echo "installing PyTorch into $work/venv" >&2
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install -q torch numpy
fi
gzip -dcf </usr/share/dictd/gcide.dict.dz >"$work/text.txt"
exec python3 bench/train_cpu.py --program build/lockstep --python "$work/venv/bin/python" \
  --text "$work/text.txt" --work "$work" "$@"
