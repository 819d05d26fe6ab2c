# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The header for kernels compiles to PTX, with no header of CUDA's."""

import shutil
import subprocess

import pytest

import pplx_async

KERNEL = """
#define __device__ __attribute__((device))
#define __global__ __attribute__((global))
#include <pplx_async/device.cuh>
extern "C" __global__ void kernel(pplx_device_word *word, const void *gate, pplx_device_word *seen) {
    pplx_wait(word, 5);
    if (pplx_aborted(gate)) return;
    *seen = pplx_read(word);
    pplx_signal(word, 1);
}
"""


def test_compiles_without_cuda():
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed, which compiles kernels without CUDA")
    command = ["clang", "-x", "cuda", "--cuda-device-only", "--cuda-gpu-arch=sm_70", "-nocudainc", "-nocudalib"]
    command += ["-std=c++14", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-cuda-version", "-S", "-o", "-", "-"]
    result = subprocess.run(
        [*command, f"-I{pplx_async.get_include()}"], input=KERNEL, capture_output=True, text=True, timeout=50
    )
    assert result.returncode == 0, result.stderr
    for instruction in ("ld.acquire.sys.u64", "red.relaxed.sys.add.u64", "fence.acq_rel.sys", "ld.acquire.sys.u32"):
        assert instruction in result.stdout
