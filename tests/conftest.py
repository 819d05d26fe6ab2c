# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Options, fabrics, connected engines, and limits of time: no test can hang the suite."""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import inspect
import os
import sys

import pytest
import pytest_asyncio
import uvloop

from helpers.engines import Pair, open_pair
from helpers.process import ROOT
from helpers.require import fabric_ids, find_fabric
from helpers.slowness import SLOWNESS

# For benchmarks/, which nobody installs. Behind all else: if pplx_async is installed, that one is tested.
sys.path.append(str(ROOT))

# A test ends within this, on a machine that is ten times as slow or busy as it may be, or it fails with the stacks
# of its tasks ...
DEADLINE = 60.0 * SLOWNESS
# ... and if it can't be cancelled, or holds up the loop, the whole run ends so much later, with the stacks
# of its threads.
GRACE = 25.0

_stderr = 2

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_addoption(parser):
    group = parser.getgroup("pplx_async")
    group.addoption("--loop", choices=[*LOOPS, "all"], default="asyncio", help="event loop of the coroutine tests")
    group.addoption(
        "--fabric",
        action="append",
        choices=fabric_ids(),
        help="run what runs on every fabric on this one only; may be given several times, but for those of "
        "different libraries: a process loads one libfabric (tests/fabric/test_libraries.py starts the others)",
    )


def pytest_asyncio_loop_factories(config, item):
    chosen = config.getoption("--loop")
    return LOOPS if chosen == "all" else {chosen: LOOPS[chosen]}


@pytest.fixture(scope="session")
def loop_name(pytestconfig) -> str:
    """What --loop says, for programs that a test starts."""
    return pytestconfig.getoption("--loop")


def _body(item):
    """The test's own function: what hypothesis calls, if it does."""
    given = getattr(item.obj, "hypothesis", None)
    return item.obj if given is None else given.inner_test


def _shows_loop(item):
    if item.get_closest_marker("any_loop"):
        return False
    return (
        not isinstance(item, pytest.Function)
        or inspect.iscoroutinefunction(_body(item))
        or "loop_name" in item.fixturenames
    )


# ---- fabrics ----


def pytest_generate_tests(metafunc):
    if "fabric" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--fabric") or ("loopback", "ipc", "tcp")
        marker = metafunc.definition.get_closest_marker("fabrics")
        params = [
            pytest.param(name, marks=[] if name in ("loopback", "ipc") else pytest.mark.fabric)
            for name in (marker.args if marker else fabric_ids())
            if name in chosen
        ] or [pytest.param(None, marks=pytest.mark.skip(reason=f"not for {', '.join(chosen)}"))]
        metafunc.parametrize("fabric", params, indirect=True, scope="module")


def pytest_configure(config):
    config.addinivalue_line("markers", "fabrics(*ids): the fabrics that a test with the fixture `fabric` runs on")
    config.addinivalue_line("markers", "deadline(seconds): instead of the usual limit of time")
    global _stderr
    _stderr = os.dup(2)  # before output is captured


def pytest_unconfigure():
    os.close(_stderr)


@pytest.fixture(scope="module")
def fabric(request):
    """One fabric after the other; skips, with the reason, where it isn't available."""
    found = find_fabric(request.param)
    if found.missing is not None:
        pytest.skip(found.missing)
    return found


@pytest_asyncio.fixture
async def pair(fabric) -> Pair:
    """Two engines, connected, on each fabric."""
    async with open_pair(fabric) as pair:
        yield pair


@pytest_asyncio.fixture
async def loopback_pair() -> Pair:
    """Two engines, connected, on loopback."""
    async with open_pair("loopback") as pair:
        yield pair


# ---- limits ----


def _tell(problems):
    """Say what is known of a test that neither ends nor can be cancelled, before the run is ended."""
    with os.fdopen(os.dup(_stderr), "w") as stderr:
        print("\nthe test does not end; the loop's exception handler heard:", problems, file=stderr)
        for task in asyncio.all_tasks():
            task.print_stack(file=stderr)


def _in_time(function, deadline):
    @functools.wraps(function)
    async def limited(*args, **kwargs):
        problems = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        last_words = loop.call_later(deadline + 5, _tell, problems)
        try:
            async with asyncio.timeout(deadline):
                return await function(*args, **kwargs)
        finally:
            last_words.cancel()
            loop.set_exception_handler(None)
            # A test that expects such a message sets a handler of its own.
            assert problems == [], "the loop's exception handler was called"

    return limited


def pytest_collection_modifyitems(config, items):
    if config.getoption("--loop") == "uvloop":  # what shows nothing of the loop is asyncio's: once is enough
        config.hook.pytest_deselected(items=[item for item in items if not _shows_loop(item)])
        items[:] = [item for item in items if _shows_loop(item)]
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        deadline = _deadline(item)
        body = _body(item)
        if not inspect.iscoroutinefunction(body):
            continue
        if body is item.obj:
            item.obj = _in_time(body, deadline)
        elif not hasattr(body, "in_time"):  # shared by all variants of the test: once is enough
            item.obj.hypothesis.inner_test = _in_time(body, deadline)
            item.obj.hypothesis.inner_test.in_time = True


def _deadline(item):
    marker = item.get_closest_marker("deadline")
    return marker.args[0] * SLOWNESS if marker else DEADLINE


def _arm(item):
    # Instead of the dump after `faulthandler_timeout`: as that, and then the end.
    faulthandler.dump_traceback_later(_deadline(item) + GRACE, exit=True, file=_stderr)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    _arm(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    _arm(item)  # again: a failure has taken it back
