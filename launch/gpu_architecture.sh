#!/usr/bin/env bash
# Prints the architecture of this machine's first GPU as CMAKE_CUDA_ARCHITECTURES takes it (90 for an
# H100); nothing where there is no GPU or no driver.
set -euo pipefail
command -v nvidia-smi >/dev/null || exit 0
nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -dc '0-9' || true
