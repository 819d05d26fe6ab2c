#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
#
# What the measurements on GPUs need besides Python, into build/bench. Without make, which not every such machine has.
#
#   benchmarks/gpu/build.sh            the programs, which need no CUDA, and the kernels, which need nvcc
#   benchmarks/gpu/build.sh programs   these alone
#   benchmarks/gpu/build.sh strict     these, with warnings as errors, into build/bench-strict
set -euo pipefail
cd "$(dirname "$0")/../.."

cc=${CC:-$(command -v cc || command -v gcc)}
flags=(-std=gnu11 -O2 -g -Wall -Wextra -Wconversion)
out=build/bench
if [ "${1:-}" = strict ]; then # there alone: a newer compiler's new warning must keep nobody from measuring
    flags+=(-Werror)
    out=build/bench-strict
fi
mkdir -p $out

"$cc" "${flags[@]}" -o $out/gpu_bench benchmarks/gpu/c/{driver,gpu_bench,works}.c -ldl
"$cc" "${flags[@]}" -shared -fPIC -o $out/gpu_stamps.so benchmarks/gpu/c/stamps.c
[ $# -eq 0 ] || exit 0

nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) ||
    { echo "gpu_kernels.ptx is left out: no nvcc"; exit 0; }
# For the oldest GPU that does all of it: the driver compiles it for the one that is there.
"$nvcc" -ptx -arch=sm_80 -O3 -Iinclude -o $out/gpu_kernels.ptx benchmarks/gpu/kernels.cu
