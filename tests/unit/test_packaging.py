# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What users get: the sdist builds, the wheel built from it carries headers, stubs and marker."""

import re
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import pplx_async

pytestmark = pytest.mark.deadline(300)  # it builds
ROOT = Path(__file__).parents[2]


def names(folder, *patterns):
    return {
        str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / folder).rglob(pattern) if path.is_file()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist, and a wheel made from nothing but that sdist; with the tools that are installed."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return target


def test_versions_agree():
    header = (ROOT / "include" / "pplx_async" / "pplx_async.h").read_text()
    assert re.findall(r'PPLX_ASYNC_VERSION "([^"]+)"', header) == [pplx_async.__version__]
    assert metadata.version("pplx_async") == pplx_async.__version__


def test_headers_are_found():
    folder = Path(pplx_async.get_include())
    assert {path.name for path in (ROOT / "include" / "pplx_async").glob("*.h")} == {
        path.name for path in (folder / "pplx_async").glob("*.h")
    }


def test_metadata():
    about = metadata.metadata("pplx_async")
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.11"
    assert {"bench", "demo", "dev", "fabric", "fuzz", "numpy", "rdma", "test", "uvloop"} == set(
        about.get_all("Provides-Extra")
    )
    needed = {re.split(r"[<>=;\[ ]", line)[0] for line in metadata.requires("pplx_async") if "extra ==" not in line}
    assert needed == {"msgspec", "rich", "typer"}


@pytest.mark.slow
def test_sdist_has_every_source(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = names("pplx_async", "*.py", "*.pyi", "*.pyx", "*.pxd", "*.c", "*.h", "py.typed") | names(
        "include", "*.h", "*.cuh"
    )
    assert {name for name in wanted if not name.startswith("pplx_async/include")} - inside == set()
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= inside
    assert not [name for name in inside if name.endswith((".so", ".o")) or name.startswith("build/")]


@pytest.mark.slow
def test_wheel_from_sdist_is_complete(built):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        inside = set(archive.namelist())
    headers = {f"pplx_async/{name}" for name in names("include", "*.h", "*.cuh")}
    assert headers | names("pplx_async", "*.py", "*.pyi", "*.pxd", "py.typed") <= inside
    modules = {path.stem for path in (ROOT / "pplx_async" / "_core").glob("*.pyx")}
    extensions = {name for name in inside if name.endswith(".so")}
    assert modules == {Path(name).name.partition(".")[0] for name in extensions}
    assert not [name for name in inside if name.startswith("tests/")]
