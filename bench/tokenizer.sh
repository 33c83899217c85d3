#!/usr/bin/env bash
# Measures the tokenizer against tiktoken and Hugging Face tokenizers, in turn on this machine:
# encoding on one thread, training, and `prepare`. Prints Markdown tables.
#
#   bench/tokenizer.sh [--pairs N] [--threads N] [--output FILE]    --output also appends to FILE
#
# Without LOCKSTEP_BENCH_PYTHON, a Python that has tiktoken and tokenizers, it installs them into a
# virtual environment outside the tree (LOCKSTEP_BENCH, default ~/.cache/lockstep/bench).
set -euo pipefail
cd "$(dirname "$0")/.."
work=${LOCKSTEP_BENCH:-$HOME/.cache/lockstep/bench}
mkdir -p "$work"

launch/setup.sh dict-gcide python3-venv
launch/build.sh build >&2
cmake --build build --target tokenizer_encode >&2
python=${LOCKSTEP_BENCH_PYTHON:-$work/venv/bin/python}
if [ -z "${LOCKSTEP_BENCH_PYTHON:-}" ] && ! "$python" -c "import tiktoken, tokenizers" 2>/dev/null
then
  echo "installing tiktoken and tokenizers into $work/venv" >&2
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install -q tiktoken tokenizers
fi
gzip -dcf </usr/share/dictd/gcide.dict.dz >"$work/text.txt"
exec "$python" bench/tokenizer.py --build build --text "$work/text.txt" "$@"
