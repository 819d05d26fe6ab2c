# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""On the GPU of this machine if it has one, else on the tests' own libcuda.

With ``GPU_WITHOUT_WORDS=1`` the GPU says that it has no stream memory operations: for ``test_streams.py -k kernel``.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.cuda import Device
from helpers.require import FAKE_CUDA_LIBRARY, find_fabric
from pplx_async._core import words as _core_words


def _real():
    """Say whether there is a driver with a GPU."""
    count = ctypes.c_int()
    with contextlib.suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False


def _without_words(folder):
    """Make a libcuda of the real one, which is loaded."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    real = next(line.split()[-1] for line in maps if "/libcuda.so" in line)
    source, target = Path(__file__).with_name("no_words.c"), folder / "libcuda_without_words.so"
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source, "-Wl,--no-as-needed", real, "-ldl"], check=True)
    return str(target)


@pytest.fixture(scope="session")
def without_words():
    """Whether the GPU is to do without."""
    return os.environ.get("GPU_WITHOUT_WORDS") == "1"


@pytest.fixture(scope="session")
def library(tmp_path_factory, without_words):
    """Path of the libcuda to use."""
    if _real():
        return _without_words(tmp_path_factory.mktemp("libcuda")) if without_words else "libcuda.so.1"
    fabric = find_fabric("ipc-gpu")
    if fabric.missing:
        pytest.skip(fabric.missing)
    # Its threads look at it at any time: from now on it is replaced, for what is added may move the environment.
    os.environ.setdefault("FAKE_CUDA_FAIL", "")
    return str(FAKE_CUDA_LIBRARY)


@pytest.fixture
def fake(library):
    """The same, where a test wants what a GPU doesn't do on demand."""
    if library != str(FAKE_CUDA_LIBRARY):
        pytest.skip("needs the tests' own libcuda: a GPU doesn't fail on demand")
    return library


@pytest.fixture(scope="session")
def device(library):
    return Device(0, library)


@pytest.fixture
def second(library, device):
    """Another GPU of this machine; the first one's context stays the current one."""
    try:
        found = Device(1, library)
    except RuntimeError:
        pytest.skip("this machine has one GPU")
    found.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    return found


@pytest.fixture
def new_pages():
    """Words on pages that no GPU knows yet. All of them stay: what is pinned may not go and come as something else."""
    pages = _core_words._pages[:]
    _core_words._pages.clear()
    yield
    _core_words._pages.extend(pages)
