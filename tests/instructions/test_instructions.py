# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""How many instructions the hot path takes: counts repeat where times on a shared machine do not.

``count.c``, the core alone, and ``count.py``, all of it, run under callgrind once for each figure. A
count above its budget fails; one well below it fails too, so that what was gained is written down and
kept.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
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


def compile_core(made, *arguments):
    """Compile as setup.py does."""
    core = sorted(str(path) for path in (ROOT / "pplx_async/_core/csrc").glob("*.c"))
    command = ["cc", "-std=gnu11", "-O2", "-g", "-Iinclude", "-Ipplx_async/_core/csrc", "-Itests/c", "-D_GNU_SOURCE="]
    subprocess.run([*command, "-o", str(made), *arguments, *core, "-ldl", "-lpthread"], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Neither libfabric nor libibverbs has a part in it."""
    made = tmp_path_factory.mktemp("instructions") / "count"
    without = "-DPPLX_HAVE_LIBFABRIC=0", "-DPPLX_HAVE_LIBIBVERBS=0"
    compile_core(made, "tests/instructions/count.c", *without, "-Wl,--wrap=syscall")
    return made


@pytest.fixture(scope="module")
def verbs(tmp_path_factory):
    """Count_verbs, and the libibverbs that it runs on."""
    headers = subprocess.run(
        ["cc", "-E", "-x", "c", "-o", "/dev/null", "-"],
        input="#include <infiniband/verbs.h>\n",
        capture_output=True,
        text=True,
    )
    if headers.returncode != 0:
        pytest.skip("libibverbs's headers are not installed (package libibverbs-dev)")
    library = "build/c/libibverbs_fake.so.1"
    subprocess.run(["make", "-f", "tests/c/Makefile", library], cwd=ROOT, check=True, capture_output=True)
    made = tmp_path_factory.mktemp("instructions") / "count_verbs"
    compile_core(made, "tests/instructions/count_verbs.c", "-DPPLX_HAVE_LIBFABRIC=0", "-DPPLX_HAVE_LIBIBVERBS=1")
    return str(made), str(ROOT / library)


# Of those of a plain loop. Beyond these a write is checked, kept in case it has to be posted again, found from its
# completion, and told of in the engine's own form.
MOST_TIMES = 1.5


@pytest.mark.deadline(120)
@pytest.mark.parametrize("batch", [32, 1])
def test_verbs_takes_few_more_instructions_than_a_plain_loop(verbs, batch):
    counts = {}
    for name in ("count_plain", "count_verbs"):
        collected, calls = collect([f"{name}_*"], *verbs, str(batch))
        counts[name] = collected / int(calls[name])
    assert counts["count_plain"] > 100, f"the loop does too little for a write: {counts}"
    times = counts["count_verbs"] / counts["count_plain"]
    assert times <= MOST_TIMES, f"a write of {batch} at once takes {times:.2f} times as many: {counts}"


# Collecting starts where the first of these is called, stops in the others, and ends with it.
PYTHON = {
    "submit": ["*6Engine_*write"],  # engine.write(), to the transfer that it returns; here it is done by then
    "complete": ["*6Engine_reap"],  # the done list: settle, release
    "wake": ["*5Waker_*call_ready", "*6Engine_*write"],  # a task's turn: its step, its await's result, the next await
}


def collect(toggles, *program):
    """Run it; return how many instructions were collected, and what it says of its calls."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [f"--toggle-collect={function}" for function in toggles]
    done = subprocess.run([*command, *program], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return int(re.search(r"Collected : (\d+)", done.stderr)[1]), dict(map(str.split, done.stdout.splitlines()))


def check(name, count, budget):
    assert count <= budget * (1 + TOLERANCE), f"{name} takes {count} instructions, its budget is {budget}"
    assert count >= budget * (1 - TOLERANCE), f"{name} takes only {count} instructions: make that its budget"


@pytest.mark.deadline(120)
@pytest.mark.parametrize("function", BUDGET["c"])
def test_core_is_within_its_budget(program, function):
    collected, calls = collect([function], str(program))
    check(function, round(collected / int(calls[function])), BUDGET["c"][function])


@pytest.mark.deadline(120)
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the budget is that of Python 3.11")
@pytest.mark.parametrize("name", PYTHON)
def test_python_is_within_its_budget(name):
    program = sys.executable, str(Path(__file__).parent / "count.py")
    # The difference: without what goes before and after.
    few, many = (collect(PYTHON[name], *program, str(writes))[0] for writes in (1024, 5120))
    check(name, round((many - few) / 4096), BUDGET["python"][name])
