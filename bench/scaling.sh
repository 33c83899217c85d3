#!/usr/bin/env bash
# Measures how the cost of a training step grows, over context length, micro-batch, width, layers
# and workers; see scaling.py. Writes tables into bench/results/scaling.md and docs/performance.md,
# and plots into docs/.
#
#   bench/scaling.sh [--rounds N] [--precision fp32|bf16] [--threads N] [--note TEXT]
#
# The plots are drawn by matplotlib, in a virtual environment outside the tree.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${LOCKSTEP_BENCH:-$HOME/.cache/lockstep/bench}
mkdir -p "$work"

launch/setup.sh dict-gcide python3-venv
launch/build.sh build >&2
python=$work/plot/bin/python
if ! "$python" -c 'import matplotlib' 2>/dev/null; then
  python3 -m venv "$work/plot"
  "$work/plot/bin/pip" install -q matplotlib
fi
gzip -dcf </usr/share/dictd/gcide.dict.dz >"$work/text.txt"
exec "$python" bench/scaling.py --program build/lockstep --text "$work/text.txt" --work "$work" "$@"
