#!/usr/bin/env bash
# What `cmake --install` and `cpack` make of a build folder: complete, running, with its dependencies named.
#
#   tests/launch/install.sh BUILD      exit code 77: no Debian package can be made here
set -euo pipefail
build=$1
for tool in dpkg-shlibdeps dpkg-deb file; do
  command -v $tool >/dev/null || exit 77
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

installed() {
  "$1/bin/lockstep" --version
  "$1/bin/lockstep" train --help >/dev/null
  for file in lockstep/launch/resilient.sh lockstep/launch/slurm/train.sbatch; do
    [ -x "$1/share/$file" ] || { echo "share/$file is missing" >&2; exit 1; }
  done
  for file in README.md LICENSE docs/determinism.md; do
    [ -s "$1/share/doc/lockstep/$file" ] || { echo "doc/$file is missing" >&2; exit 1; }
  done
}

cmake --install "$build" --prefix "$work/prefix" >"$work/log"
installed "$work/prefix"

(cd "$work" && cpack --config "$build/CPackConfig.cmake" >>"$work/log")
dpkg-deb --extract "$work"/lockstep_*.deb "$work/root"
installed "$work/root/usr"
depends=$(dpkg-deb --field "$work"/lockstep_*.deb Depends)
for package in openmpi-bin libopenmpi libhdf5 libdnnl libc6; do
  [[ $depends == *$package* ]] || { echo "the package does not depend on $package: $depends" >&2; exit 1; }
done
echo "it installs"
