# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Protocols that are checked as models: every order of their steps, not just those that happen."""

import subprocess
from pathlib import Path

import pytest

from helpers import require

MODEL = require.ROOT / "tests" / "models" / "ipc_wake.pml"


def check(folder: Path, *flags: str) -> str:
    """Have spin look at every state; return what it says."""
    for command in (["spin", *flags, "-a", str(MODEL)], ["gcc", "-O2", "-w", "-DSAFETY", "-o", "pan", "pan.c"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return subprocess.run(["./pan"], cwd=folder, check=True, capture_output=True, text=True, timeout=60).stdout


def test_no_wake_up_is_lost(tmp_path):
    require.programs("spin", "gcc")
    said = check(tmp_path)
    assert "errors: 0" in said, said
    assert "unreached in proctype producer\n\t(0 of" in said, said


@pytest.mark.parametrize("mistake", ["LOOK_FIRST", "TELL_FIRST"])
def test_the_model_finds_a_lost_wake_up(tmp_path, mistake):
    """A model that can't fail says nothing."""
    require.programs("spin", "gcc")
    said = check(tmp_path, f"-D{mistake}")
    assert "invalid end state" in said, said
