# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What several files here need."""

import shutil
import subprocess

import pytest

from helpers.process import ROOT
from pplx_async.cli.bench.c_program import program_path


@pytest.fixture(scope="session")
def programs():
    """The C programs, built; skips where nothing can build them."""
    missing = [tool for tool in ("make", "cc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on this machine, so the C programs cannot be built")
    result = subprocess.run(
        ["make", "-f", "benchmarks/c/Makefile"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in result.stderr
    return program_path
