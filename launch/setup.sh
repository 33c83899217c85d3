#!/usr/bin/env bash
# Installs what building and testing Lockstep needs, on Debian and Ubuntu (as root or with sudo).
# Elsewhere it names what is missing. Does nothing, at once, when nothing is. Where nvcc and cuDNN
# are, it also fetches the headers of cudnn-frontend, or says that the build does without.
#
#   launch/setup.sh [PACKAGE...]     more Debian packages to install with them
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config git
  libopenmpi-dev openmpi-bin libhdf5-dev libdnnl-dev libboost-program-options-dev
  nlohmann-json3-dev libfmt-dev libspdlog-dev libxxhash-dev libpcre2-dev zlib1g-dev
  libgtest-dev libgmock-dev dpkg-dev file python3 python3-numpy python3-h5py
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

# cudnn-frontend is headers only; its Python package has them, of which nothing else is used. One
# wheel for every machine, so that its checksum is known.
frontend_version=1.32.0
frontend_checksum=c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0
frontend=${XDG_CACHE_HOME:-$HOME/.cache}/lockstep/cudnn-frontend-$frontend_version

needs_cudnn_frontend() {
  [ ! -f "$frontend/include/cudnn_frontend.h" ] || return 1
  local nvcc
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  [ -x "$nvcc" ] && echo '#include <cudnn.h>' | "$nvcc" -x cu -E - >/dev/null 2>&1
}

fetch_cudnn_frontend() {
  mkdir -p "$(dirname "$frontend")"
  local partial
  partial=$(mktemp -d "$frontend.XXXXXX")
  if python3 -m pip download --quiet --retries 1 --timeout 20 --no-deps --only-binary :all: \
    --implementation cp --python-version 3.11 --abi cp311 --platform manylinux_2_28_x86_64 \
    --dest "$partial" "nvidia-cudnn-frontend==$frontend_version" >"$partial/log" 2>&1 &&
    sha256sum --check --quiet <<<"$frontend_checksum  $(echo "$partial"/*.whl)" \
      >>"$partial/log" 2>&1 &&
    python3 -m zipfile -e "$partial"/*.whl "$partial/wheel"; then
    mkdir "$partial/headers"
    mv "$partial/wheel/include" "$partial/headers/"
    mv -T "$partial/headers" "$frontend" 2>/dev/null || true  # unless another process has
  else
    echo "no headers of cudnn-frontend: attention on GPUs will be by our own, slower kernels" >&2
    tail -n 2 "$partial/log" >&2
  fi
  rm -rf "$partial"
}

if needs_cudnn_frontend; then
  packages+=(python3-pip)
  trap '[ $? -ne 0 ] || fetch_cudnn_frontend' EXIT  # last of all
fi

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
