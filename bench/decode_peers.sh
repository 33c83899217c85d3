#!/usr/bin/env bash
# Measures decoding one text against Hugging Face transformers, CTranslate2 and llama.cpp, in turn
# on this machine, and prints a Markdown table.
#
#   bench/decode_peers.sh [--layers 10] [--hidden-size 2048] [--tokens N] [--rounds N] [--threads N]
#                         [--output FILE]                --output also appends the table to FILE
#
# Without LOCKSTEP_BENCH_PYTHON, a Python that has torch, transformers, ctranslate2, xllamacpp
# (llama.cpp, built for Python) and gguf, it installs them into a virtual environment outside the
# tree (LOCKSTEP_BENCH, default ~/.cache/lockstep/bench); torch comes with CUDA's libraries, about
# 6 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${LOCKSTEP_BENCH:-$HOME/.cache/lockstep/bench}
mkdir -p "$work"

launch/setup.sh python3-venv
launch/build.sh build >&2
python=${LOCKSTEP_BENCH_PYTHON:-$work/venv/bin/python}
packages="torch, transformers, ctranslate2, xllamacpp, gguf"
if [ -z "${LOCKSTEP_BENCH_PYTHON:-}" ] && ! "$python" -c "import $packages" 2>/dev/null; then
  echo "installing $packages into $work/venv" >&2
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install -q ${packages//,/}
fi
exec python3 bench/decode_peers.py --program build/lockstep --python "$python" "$@"
