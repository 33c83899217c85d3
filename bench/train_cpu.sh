#!/usr/bin/env bash
# Measures the training step on the CPU against PyTorch's, in turn on this machine, and prints a
# Markdown table.
#
#   bench/train_cpu.sh [--models 0.9M 4M 12M 124M] [--precision fp32|bf16] [--pairs N]
#                      [--modes eager compiled] [--threads N] [--output FILE]
#                                                        --output also appends the table to FILE
#
# Without LOCKSTEP_BENCH_PYTHON, a Python that has PyTorch 2, it installs PyTorch into a virtual
# environment outside the tree (LOCKSTEP_BENCH, default ~/.cache/lockstep/bench). The package index
# has PyTorch for Linux only with CUDA's libraries, about 6 GB: where there is a build for CPUs
# alone, install that and name its Python.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${LOCKSTEP_BENCH:-$HOME/.cache/lockstep/bench}
mkdir -p "$work"

launch/setup.sh dict-gcide python3-venv
launch/build.sh build >&2
python=${LOCKSTEP_BENCH_PYTHON:-$work/venv/bin/python}
if [ -z "${LOCKSTEP_BENCH_PYTHON:-}" ] && ! "$python" -c 'import torch' 2>/dev/null; then
  echo "installing PyTorch into $work/venv (about 6 GB)" >&2
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install -q torch numpy
fi
gzip -dcf </usr/share/dictd/gcide.dict.dz >"$work/text.txt"
exec python3 bench/train_cpu.py --program build/lockstep --python "$python" \
  --text "$work/text.txt" --work "$work" "$@"
