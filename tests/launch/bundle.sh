#!/usr/bin/env bash
# Makes a bundle and runs it where nothing of this machine but the C library, a shell and CUDA's
# libraries can be seen (as root; else with an empty environment): the program alone, and training
# on two workers by the bundle's own mpirun.
#
#   tests/launch/bundle.sh       exit code 77: build/ holds nothing to bundle
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x build/lockstep ] || exit 77
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
launch/bundle.sh "$work/first" >&2
tar -C "$work" -xzf "$work/first.tar.gz"
for file in resilient.sh slurm/train.sbatch slurm/common.sh; do
  cmp "launch/$file" "$work/first/share/lockstep/launch/$file"
done
mkdir "$work/root"
mv "$work/first" "$work/root/moved"  # it must not matter where it lies, or what it is called

# What the bundle's scripts use of any system, with the libraries of glibc.
for command in sh readlink dirname basename env uname hostname cat; do
  path=$(command -v "$command")
  mkdir -p "$work/root/bin"
  cp -L "$path" "$work/root/bin/"
  ldd "$path" | grep -oE '/[^ ]+' | xargs -I{} sh -c 'mkdir -p "$1$(dirname "$0")" && cp -L "$0" "$1$0"' {} "$work/root"
done
libraries=/lib/$(gcc -print-multiarch)
for name in m mvec dl rt pthread resolv util nss_files; do
  cp -L "$libraries/lib$name".so.? "$work/root$libraries/" 2>/dev/null || true
done
mkdir -p "$work/root"/{tmp,proc,dev,etc,usr/local/cuda,sys}
echo "root:x:0:0:root:/:/bin/sh" >"$work/root/etc/passwd"
for line in {1..200}; do echo "The quick brown fox jumps over the lazy dog number $((line * 7919 % 1000))."; done \
  >"$work/root/tmp/text.txt"

cat >"$work/root/inside.sh" <<'INSIDE'
set -e
cd "$1/tmp"
program="$1/moved/bin/lockstep" mpirun="$1/moved/bin/mpirun"
"$program" --version
"$program" prepare --input text.txt --output data --tokenizer bytes
train="train --data data --layers 1 --heads 2 --hidden-size 16 --context-length 32 --batch-size 4 --virtual-workers 2 --steps 3 --precision fp32 --threads 1"
"$program" $train --run alone
"$mpirun" -np 2 "$program" $train --run together
"$program" checkpoint diff alone together
# Of mpirun's help texts, which it shows for what it does not know.
case $("$mpirun" --no-such-option 2>&1) in *"couldn't find that help"*) exit 1 ;; esac
if [ -x "$program-emulated" ]; then
  "$mpirun" -np 2 env LOCKSTEP_EMULATION_DEVICES=2 "$program-emulated" $train --device cuda --run emulated
fi
INSIDE
clean=(env -i PATH=/bin HOME=/tmp OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none)
if [ "$(id -u)" -eq 0 ] && unshare -m true 2>/dev/null; then
  unshare -m sh -c '
    for folder in proc dev sys; do mount --rbind "/$folder" "$0/$folder"; done
    [ ! -d /usr/local/cuda/ ] || mount --rbind "$(readlink -f /usr/local/cuda)" "$0/usr/local/cuda"
    exec chroot "$0" "$@"' "$work/root" "${clean[@]}" sh /inside.sh ""
else
  "${clean[@]}" PATH=/usr/bin:/bin sh "$work/root/inside.sh" "$work/root"
fi
echo "the bundle works by itself"
