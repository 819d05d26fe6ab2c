# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""How many instructions the hot path takes: counts repeat where times on a shared machine do not.

``count.c`` runs under callgrind once for each of its functions. A count above its budget fails; one well
below it fails too, so that what was gained is written down and kept.
"""

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUDGET = json.loads((Path(__file__).parent / "budget.json").read_text())
# Other compilers, and the C library's choice of memcpy for a processor.
TOLERANCE = 0.1

pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="counting instructions needs valgrind"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="counting instructions needs a C compiler"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the budget is that of x86-64"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile as setup.py does. libfabric has no part in it."""
    made = tmp_path_factory.mktemp("instructions") / "count"
    core = sorted(str(path) for path in (ROOT / "pplx_async/_core/csrc").glob("*.c"))
    command = ["cc", "-std=gnu11", "-O2", "-g", "-Iinclude", "-Ipplx_async/_core/csrc", "-Itests/c", "-D_GNU_SOURCE="]
    command += ["-DPPLX_HAVE_LIBFABRIC=0", "-DPPLX_HAVE_LIBIBVERBS=0", "-Wl,--wrap=syscall", "-o", str(made)]
    subprocess.run([*command, "tests/instructions/count.c", *core, "-ldl", "-lpthread"], cwd=ROOT, check=True)
    return made


@pytest.mark.deadline(120)
@pytest.mark.parametrize("function", BUDGET)
def test_count_is_within_its_budget(program, function):
    command = ["valgrind", "--tool=callgrind", f"--toggle-collect={function}", "--callgrind-out-file=/dev/null"]
    done = subprocess.run([*command, str(program)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    calls = int(re.search(rf"{function} (\d+)", done.stdout)[1])
    count = round(int(re.search(r"Collected : (\d+)", done.stderr)[1]) / calls)
    budget = BUDGET[function]
    assert count <= budget * (1 + TOLERANCE), f"{function} takes {count} instructions, its budget is {budget}"
    assert count >= budget * (1 - TOLERANCE), f"{function} takes only {count} instructions: make that its budget"
