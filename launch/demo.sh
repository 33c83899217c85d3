#!/usr/bin/env bash
# From raw text to a model that writes, in a few minutes on two cores: installs what is missing,
# builds, prepares a text, trains a small GPT-2-style model on two workers, evaluates it beside
# gzip, and lets it write.
#
#   launch/demo.sh [TEXT]     a text file of some megabytes (.gz too); default: Webster's dictionary
#                             of 1913, from Debian's dict-gcide
#
# Leaves the program at build/lockstep, the dataset at build/demo/data, the run at build/demo/run.
set -euo pipefail
text=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
show() {
  printf '$' >&2
  for word; do
    [[ $word == *' '* ]] && word="\"$word\""
    printf ' %s' "$word" >&2
  done
  printf '\n' >&2
  "$@"
}

say "1. Build"
if [ -z "$text" ]; then
  launch/setup.sh dict-gcide
  text=/usr/share/dictd/gcide.dict.dz
fi
options=(-DLOCKSTEP_TESTS=OFF)
# CUDA only for a GPU that is here, as nvcc takes minutes. A folder that is configured keeps its choice.
if [ ! -f build/CMakeCache.txt ]; then
  architecture=$(launch/gpu_architecture.sh)
  if [ -z "$architecture" ]; then
    options+=(-DLOCKSTEP_CUDA=OFF)
  elif command -v "${CUDACXX:-nvcc}" >/dev/null; then
    options+=("-DCMAKE_CUDA_ARCHITECTURES=$architecture")
  fi
fi
launch/build.sh build "${options[@]}" >&2

demo=build/demo
rm -rf "$demo"
mkdir -p "$demo"
gzip -dcf <"$text" >"$demo/text.txt"

say "2. Prepare: train a tokenizer, encode the text, set its last 5 % aside for validation"
show build/lockstep prepare --input "$demo/text.txt" --output "$demo/data" --vocab-size 1024

say "3. Train on two workers: 0.94 million parameters, 1.2 million tokens"
# As root, and on one core a worker: what a laptop or a container needs and a cluster does not.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
show mpirun -np 2 build/lockstep train --data "$demo/data" --run "$demo/run" \
  --layers 4 --hidden-size 128 --heads 4 --context-length 128 --batch-size 16 --steps 600 \
  --learning-rate 4e-3 --warmup-steps 30 --checkpoint-every 200 --keep 2 --log-every 50

say "4. Evaluate, beside gzip -9 on the same text"
evaluation=$(show build/lockstep evaluate --checkpoint "$demo/run" --data "$demo/data" --json)
echo "$evaluation"
bytes=$(sed -E 's/.*"bytes": *([0-9]+).*/\1/' <<<"$evaluation")
model=$(sed -E 's/.*"bits_per_byte": *([0-9.]+).*/\1/' <<<"$evaluation")
packed=$(tail -c "$bytes" "$demo/text.txt" | gzip -9 | wc -c)
awk -v model="$model" -v packed="$packed" -v bytes="$bytes" 'BEGIN {
  gzip = 8 * packed / bytes
  printf "the model predicts the text in %.3f bits a byte; gzip -9 packs it into %.3f: %s\n",
         model, gzip, model < gzip ? "the model is better" : "gzip is better"
}'

say "5. Generate"
show build/lockstep generate --checkpoint "$demo/run" --prompt "Dictionary, n. " --max-tokens 80 \
  --temperature 0.8 --top-k 50 --seed 1

say "What to try next"
[ "$(id -u)" -ne 0 ] ||
  echo "  as root, first           export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1" >&2
cat >&2 <<NEXT
  train it longer          mpirun -np 2 build/lockstep train --run $demo/run --steps 2000
  on your own text         build/lockstep prepare --input my-texts/ --output my-data
  look into a checkpoint   build/lockstep checkpoint inspect $demo/run
  take it to Python        build/lockstep checkpoint export $demo/run --format hf --output my-model
  what this machine has    build/lockstep doctor
NEXT
