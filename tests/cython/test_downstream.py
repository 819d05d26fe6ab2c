# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Other projects build against us: by cimport, and by C headers and capsule."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import pplx_async

HERE = Path(__file__).parent
SETUP = """
from setuptools import Extension, setup
from Cython.Build import cythonize
import pplx_async
include = [pplx_async.get_include()]
setup(
    name="downstream",
    ext_modules=cythonize([Extension("downstream", ["downstream.pyx"], include)], language_level=3)
    + [Extension("downstream_c", ["downstream_c.c"], include)],
)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project of its own, away from our tree, that finds us as it finds any installed package."""
    folder = tmp_path_factory.mktemp("downstream")
    for file in ("downstream.pyx", "downstream_c.c"):
        (folder / file).write_text((HERE / file).read_text())
    (folder / "setup.py").write_text(SETUP)
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def load(folder, name):
    (file,) = folder.glob(f"{name}.*.so")
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cimport(built):
    downstream = load(built, "downstream")
    running, compiled, same_size = downstream.abi()
    assert running == compiled
    assert same_size
    assert downstream.status_name(12) == "PEER_LOST"


@pytest.mark.parametrize("eighths", [1, 2, 4, 8, 16, 8 * 4093])
def test_immediate_round_trip(built, eighths):
    downstream = load(built, "downstream")
    for counter in (0, 1, 2**20 - 1):
        assert downstream.imm_round_trip(counter, eighths) == (counter, eighths)


def test_capsule(built):
    downstream = load(built, "downstream_c")
    assert downstream.abi() == (2, "PEER_LOST")


def test_headers_are_where_get_include_says():
    assert (Path(pplx_async.get_include()) / "pplx_async" / "provider.h").is_file()
