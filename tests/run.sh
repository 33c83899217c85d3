#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests.
#
#   tests/run.sh              every test that this machine can run
#   tests/run.sh LABEL        one kind: unit, mpi, crash, launch; where nvcc is also emulated (the CUDA
#                             side on the CPU) and gpu (skipped without one)
#   tests/run.sh determinism  the same bits in every combination of workers and threads; half an hour
#   tests/run.sh cluster      the batch scripts on a Slurm cluster and training over two hosts, both made
#                             of this machine, as root; stopped and killed at random moments, 40 starts
#                             and 20 kills; installs Slurm; a quarter of an hour
#   tests/run.sh sanitize     the unit tests under AddressSanitizer and UndefinedBehaviorSanitizer
set -euo pipefail
cd "$(dirname "$0")/.."
label=${1:-}
case $label in
  '' | unit | mpi | crash | launch | emulated | gpu | determinism | cluster | sanitize) ;;
  *)
    sed -n '2,/^set/ { s/^# \{0,1\}//p }' "$0" >&2
    exit 2
    ;;
esac

folder=build
options=(-DLOCKSTEP_TESTS=ON)
if command -v "${CUDACXX:-nvcc}" >/dev/null; then
  # For one architecture, because nvcc takes as long for each: this machine's, or an H100's.
  architecture=$(launch/gpu_architecture.sh)
  options+=(-DLOCKSTEP_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=${architecture:-90}")
fi
if [ "$label" = sanitize ]; then
  folder=build-sanitize
  options+=(-DLOCKSTEP_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo)
  label=unit
  # MPI and oneDNN keep memory for the whole life of the process; only our own leaks matter.
  export LSAN_OPTIONS="suppressions=$PWD/tests/leaks.txt:print_suppressions=0"
fi

# As root and with more workers than cores, which is how tests run on a small machine.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none

[ "$label" != cluster ] || launch/setup.sh slurm-wlm munge iproute2 procps
launch/build.sh "$folder" "${options[@]}"

selection=()
[ -z "$label" ] || selection=(--label-regex "^${label}\$")
case $label in determinism | cluster) selection+=(--build-config "$label") ;; esac
ctest --test-dir "$folder" --output-on-failure --no-tests=error --parallel "$(nproc)" \
  "${selection[@]}"
