#!/usr/bin/env bash
# Installs what building and testing Lockstep needs, on Debian and Ubuntu (as root or with sudo).
# Elsewhere it names what is missing. Does nothing, at once, when nothing is.
#
#   launch/setup.sh [PACKAGE...]     more Debian packages to install with them
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config git
  libopenmpi-dev openmpi-bin libhdf5-dev libdnnl-dev libboost-program-options-dev
  nlohmann-json3-dev libfmt-dev libspdlog-dev libxxhash-dev libpcre2-dev zlib1g-dev
  libgtest-dev libgmock-dev python3 python3-numpy python3-h5py
  "$@"
)

# Fibers of the emulated device, which tests the CUDA side where that is built.
has_nvcc() { command -v "${CUDACXX:-nvcc}" >/dev/null; }
! has_nvcc || packages+=(libboost-context-dev)

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Away from Debian: a header or command that shows each library, and its usual name.
name_what_is_missing() {
  local missing=()
  need_header() { echo "#include <$1>" | c++ -std=c++20 -E -x c++ - >/dev/null 2>&1 || missing+=("$2"); }
  need_command() { command -v "$1" >/dev/null || missing+=("$2"); }
  need_command c++ "a C++20 compiler (GCC 12 or newer)"
  need_command cmake "CMake 3.22 or newer"
  need_command ninja "Ninja"
  need_command pkg-config "pkg-config"
  need_command mpicc "Open MPI 4.1 or newer (on a cluster: module load openmpi)"
  need_command h5cc "HDF5 1.10 or newer, C library, serial (module load hdf5)"
  need_command python3 "Python 3, with h5py and NumPy for the tests"
  need_header dnnl.hpp "oneDNN 2.6 or newer"
  need_header boost/program_options.hpp "Boost.Program_options 1.74 or newer"
  ! has_nvcc || need_header boost/context/fiber.hpp "Boost.Context 1.74 or newer"
  need_header nlohmann/json.hpp "nlohmann-json 3.11"
  need_header fmt/format.h "fmt 9"
  need_header spdlog/spdlog.h "spdlog 1.10"
  need_header xxhash.h "xxHash 0.8"
  need_header pcre2posix.h "PCRE2 10.40"
  need_header zlib.h "zlib"
  need_header gtest/gtest.h "GoogleTest 1.12"
  [ ${#missing[@]} -eq 0 ] && return 0
  echo "This is neither Debian nor Ubuntu; please install:" >&2
  printf '  %s\n' "${missing[@]}" >&2
  return 1
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  name_what_is_missing
  exit
fi

missing=()
for package in "${packages[@]}"; do
  installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "missing: ${missing[*]}. Install them as root: apt-get install ${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi

echo "installing: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update -q && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -qy --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "apt-get could not install: ${missing[*]} (whole log: $log)" >&2
  exit 1
fi
rm -f "$log"
