#!/usr/bin/env bash
# Everything that only a GPU can show, by one command on a machine that has one: doctor, the tests of
# every CUDA kernel, whole training steps against the CPU, NVIDIA's sanitizer, then speed beside PyTorch
# compiled. Results go into one folder; its summary.md says what ran and how it ended.
#
#   bench/gpu/run_all.sh [--rehearse] [OUTPUT]    default: bench/results/gpu/DATE-DEVICE
#
# Runs from the repository (which it builds) or from a bundle (launch/bundle.sh). --rehearse runs the
# same on the emulated device, which needs no GPU: a tiny model, no sanitizer, no PyTorch; with
# LOCKSTEP_EMULATION_DEVICES=2, on two of them.
#
# LOCKSTEP_BENCH_PYTHON names a Python that has PyTorch 2 with CUDA (default: python3; the comparison is
# left out where it has none). Exit code 1 when any part failed.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
rehearse=""
[ "${1:-}" != --rehearse ] || { rehearse=yes && shift; }
case ${1:-} in -*) echo "usage: bench/gpu/run_all.sh [--rehearse] [OUTPUT]" >&2 && exit 2 ;; esac

if [ -f BUNDLE ]; then
  programs=$PWD/bin commit=$(sed -n 's/^commit //p' BUNDLE)
  PATH=$programs:$PATH  # the bundle's mpirun
else
  programs=$PWD/build
  commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
  git diff --quiet HEAD 2>/dev/null || commit+=" with changes"
  architecture=$(launch/gpu_architecture.sh)
  [ -n "$rehearse" ] ||
    launch/build.sh build -DLOCKSTEP_TESTS=ON -DLOCKSTEP_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=${architecture:-90}" >&2 || exit
fi
if [ -n "$rehearse" ]; then
  device="emulated device" lockstep=$programs/lockstep-emulated tests=$programs/test_emulated
  export LOCKSTEP_EMULATION_DEVICES=${LOCKSTEP_EMULATION_DEVICES:-1}
else
  device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
  [ -n "$device" ] || { echo "nvidia-smi finds no GPU here; --rehearse does without" >&2 && exit 4; }
  lockstep=$programs/lockstep tests=$programs/test_gpu
fi
for program in "$lockstep" "$tests"; do
  [ -x "$program" ] || { echo "$program is missing: build it, or bundle again" >&2 && exit 2; }
done

output=${1:-bench/results/gpu/$(date +%F)-$(tr -cs 'a-zA-Z0-9\n' - <<<"$device")}
mkdir -p "$output"
output=$(realpath "$output")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# As root, and with two workers on one GPU.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
python=${LOCKSTEP_BENCH_PYTHON:-python3}

summary=$output/summary.md
{
  echo "# $device, $(date +%F)"
  echo
  echo "Commit $commit, $(uname -n), $(nproc) cores${rehearse:+; a rehearsal: nothing here ran on a GPU}."
  [ -n "$rehearse" ] || nvidia-smi --query-gpu=index,name,memory.total,driver_version,clocks.max.sm,power.limit \
    --format=csv | sed '1s/^/\n    /;2,$s/^/    /'
  echo
  echo "| part | outcome | seconds | output |"
  echo "|---|---|---:|---|"
} >"$summary"

failed=0
# part NAME SECONDS COMMAND...: runs it into NAME.log; a failure is noted, and the next part runs.
part() {
  local name=$1 limit=$2 begin=$SECONDS code=0 outcome=passed
  shift 2
  echo "$name ..." >&2
  timeout -k 10 "$limit" "$@" >"$output/$name.log" 2>&1 || code=$?
  if [ $code -eq 124 ] || [ $code -eq 137 ]; then
    outcome="FAILED: not done after $limit s"
  elif [ $code -ne 0 ]; then
    outcome="FAILED: exit code $code"
  fi
  [ $code -eq 0 ] || failed=1
  echo "| $name | $outcome | $((SECONDS - begin)) | [$name.log]($name.log) |" | tee -a "$summary" >&2
}
left_out() { echo "| $1 | left out: $2 | | |" | tee -a "$summary" >&2; }

# 1. What is here.
part doctor 300 "$lockstep" doctor
part doctor_json 300 "$lockstep" doctor --json
grep -q '"gpus":\[{' "$output/doctor_json.log" || {
  echo "the program sees no GPU, so nothing else was run; $output/doctor.log says why" | tee -a "$summary" >&2
  exit 4
}
# With a worker on each, for what NCCL reaches between them.
gpus=$(grep -o '"architecture":' "$output/doctor_json.log" | wc -l)
if [ "$gpus" -gt 1 ]; then
  part doctor_nccl 600 mpirun -np "$gpus" "$lockstep" doctor
else
  left_out doctor_nccl "it needs several GPUs"
fi

# 2. Every kernel against its twin on the CPU.
part kernels 3600 "$tests" --gtest_brief=1

# 3. Whole steps: the CPU's losses within a stated tolerance, and the same bits on any number of workers.
size=(--size small)
[ -z "$rehearse" ] || size=(--size tiny)
for precision in fp32 bf16 fp16; do
  part "steps_$precision" 1800 python3 bench/gpu/compare_steps.py --program "$lockstep" --work "$work/$precision" \
    --precision "$precision" "${size[@]}"
done

# 4. NVIDIA's sanitizer on the kernels: out of bounds and uninitialised, races in shared memory, barriers.
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
for tool in memcheck racecheck synccheck initcheck; do
  if [ -n "$rehearse" ]; then
    left_out "$tool" "it needs a GPU"
  elif [ ! -x "$sanitizer" ]; then
    left_out "$tool" "compute-sanitizer is not installed"
  else
    part "$tool" 3600 "$sanitizer" --tool "$tool" --error-exitcode 1 "$tests" --gtest_brief=1
  fi
done

# 5. Speed, in turn with PyTorch compiled.
torch=(--python "$python")
if [ -n "$rehearse" ]; then
  torch=() && left_out "PyTorch" "it needs a GPU"
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  torch=() && left_out "PyTorch" "$python has no PyTorch that sees the GPU; LOCKSTEP_BENCH_PYTHON names one"
fi
part speed 7200 python3 bench/gpu/train.py --program "$lockstep" --work "$work/speed" "${size[@]}" "${torch[@]}" \
  --output "$output/speed.md"
[ ! -f "$output/speed.md" ] || { echo && cat "$output/speed.md"; } >>"$summary"

echo "$output/summary.md" >&2
exit $failed
