#!/usr/bin/env bash
# Collects the built programs, the tests for GPUs, the scripts they need and those for clusters, Open MPI
# and every shared library but the C library's and CUDA's into one folder and FOLDER.tar.gz, for machines
# that lack the packages: copy it anywhere and run FOLDER/bin/lockstep.
#
#   launch/bundle.sh [FOLDER]      default: build/lockstep-bundle
#
# Takes what build/ holds. On the other machine CUDA's libraries (cudart, cuBLASLt, NCCL, of the major
# versions built with) must be on the loader's path or in /usr/local/cuda/lib64, and its C library must
# be as new as this machine's. The bundled Open MPI speaks TCP and shared memory; for InfiniBand build on
# the cluster, with the cluster's.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/lockstep-bundle}
case $folder in */ | */.. | .. | . | "") echo "$folder cannot be a bundle's folder" >&2; exit 2 ;; esac
[ -x build/lockstep ] || { echo "build/lockstep is missing; launch/build.sh makes it" >&2; exit 2; }
if [ -e "$folder" ] && [ ! -f "$folder/BUNDLE" ]; then
  echo "$folder exists and is no bundle: choose another folder" >&2
  exit 2
fi
rm -rf "$folder"
mkdir -p "$folder"/{bin,programs,lib,openmpi/share,openmpi/etc}

# Of glibc, which must fit the other machine's loader, and of CUDA.
stays_behind='/(ld-linux[^/]*|lib(c|m|mvec|dl|rt|pthread|resolv|util|anl)|lib(cuda|cudart|cublas|cublasLt|nccl|cudnn|nv)[^/]*)\.so'

# The libraries that files need, by their paths here.
needed() {
  LC_ALL=C ldd "$@" 2>/dev/null | sed -nE 's/.* => (\/[^ ]+) \(0x.*/\1/p' | sort -u | grep -vE "$stays_behind"
}

for program in lockstep lockstep-emulated test_gpu test_emulated; do
  [ -x "build/$program" ] || { echo "build/$program is not built: left out" >&2; continue; }
  strip -o "$folder/programs/$program" "build/$program"
  cat >"$folder/bin/$program" <<'WRAPPER'
#!/bin/sh
# Sets what the program needs of this folder, wherever it lies, and becomes it.
. "$(dirname "$(readlink -f "$0")")/../environment.sh"
exec "$bundle/programs/$(basename "$0")" "$@"
WRAPPER
  chmod +x "$folder/bin/$program"
done

# Open MPI: mpirun, its plugins (but those for fabrics whose libraries are not bundled), help texts.
info() { ompi_info --path "$1" --parsable | cut -d: -f3-; }
plugins=$(info pkglibdir)
cp -L "$(command -v mpirun)" "$folder/openmpi/mpirun"
cp -L "$(command -v orted)" "$folder/openmpi/orted"
cp -r "$(info pkgdatadir)" "$folder/openmpi/share/openmpi"
cp -rL "$(info sysconfdir)/." "$folder/openmpi/etc/"
mkdir -p "$folder/openmpi/plugins"
for plugin in "$plugins"/mca_*.so; do
  case ${plugin##*/} in mca_scoll_* | mca_spml_* | mca_memheap_* | mca_sshmem_*) continue ;; esac  # OpenSHMEM
  LC_ALL=C ldd "$plugin" 2>/dev/null | grep -qE 'lib(ucp|uct|ucs|fabric|psm|psm2|psm_infinipath|ibverbs|flux|memkind)[-.]|not found' ||
    cp -L "$plugin" "$folder/openmpi/plugins/"
done
mapfile -t libraries < <(needed "$folder"/programs/* "$folder"/openmpi/{mpirun,orted} "$folder"/openmpi/plugins/*.so)
cp -L "${libraries[@]}" "$folder/lib/"
# PMIx, through which mpirun talks to its workers, has plugins of its own.
pmix=$(ldconfig -p | sed -nE 's/.*libpmix\.so\.2 .*=> (.*)/\1/p' | head -n 1)
pmix_plugins=$(find "$(dirname "$(readlink -f "${pmix:-/usr/lib/libpmix.so.2}")")/.." -maxdepth 3 -type d -path '*lib/pmix' 2>/dev/null | head -n 1)
if [ -n "$pmix_plugins" ]; then
  mkdir -p "$folder/openmpi/pmix"
  cp -rL "$pmix_plugins/." "$folder/openmpi/pmix/"
  cp -rL "$pmix_plugins/../../share/pmix" "$folder/openmpi/share/pmix"
fi

cat >"$folder/environment.sh" <<'ENVIRONMENT'
# Sourced by the commands in bin/, with $0 the command. Other programs on the path keep their own
# libraries: this holds for what a bundled command starts.
bundle=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
case ":${LD_LIBRARY_PATH:-}:" in
*":$bundle/lib:"*) ;;
*) LD_LIBRARY_PATH="$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}:/usr/local/cuda/lib64" ;;
esac
OPAL_PREFIX=$bundle/openmpi
OPAL_BINDIR=$bundle/bin
OPAL_LIBDIR=$bundle/lib
OPAL_PKGLIBDIR=$bundle/openmpi/plugins
OPAL_DATADIR=$bundle/openmpi/share
OPAL_PKGDATADIR=$bundle/openmpi/share/openmpi
OPAL_SYSCONFDIR=$bundle/openmpi/etc
PMIX_PREFIX=$bundle/openmpi
PMIX_LIBDIR=$bundle/lib
PMIX_PKGLIBDIR=$bundle/openmpi/pmix
PMIX_PKGDATADIR=$bundle/openmpi/share/pmix
# Without ssh or rsh there are no other hosts to start workers on, which Open MPI takes for an error.
command -v ssh >/dev/null || command -v rsh >/dev/null || export OMPI_MCA_plm="${OMPI_MCA_plm:-^rsh}"
export LD_LIBRARY_PATH OPAL_PREFIX OPAL_BINDIR OPAL_LIBDIR OPAL_PKGLIBDIR OPAL_DATADIR \
  OPAL_PKGDATADIR OPAL_SYSCONFDIR PMIX_PREFIX PMIX_LIBDIR PMIX_PKGLIBDIR PMIX_PKGDATADIR
ENVIRONMENT
for program in mpirun orted; do
  cat >"$folder/bin/$program" <<'WRAPPER'
#!/bin/sh
. "$(dirname "$(readlink -f "$0")")/../environment.sh"
exec "$bundle/openmpi/$(basename "$0")" "$@"
WRAPPER
  chmod +x "$folder/bin/$program"
done

mkdir -p "$folder/bench"
cp -r bench/gpu "$folder/bench/gpu"
cp bench/train_pytorch.py "$folder/bench/"
mkdir -p "$folder/share/lockstep/launch"  # as installed
cp -r launch/resilient.sh launch/slurm "$folder/share/lockstep/launch/"
cp README.md LICENSE "$folder/"
rm -rf "$folder/bench/gpu/__pycache__"
{
  echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ' with changes')"
  echo "built $(date -u +%Y-%m-%d), needs $(ldd --version | head -n 1 | grep -oE '[0-9.]+$' | sed 's/^/glibc /') or newer"
} >"$folder/BUNDLE"

archive=$folder.tar.gz
tar -C "$(dirname "$folder")" -czf "$archive" "$(basename "$folder")"
du -sh "$folder" "$archive"
