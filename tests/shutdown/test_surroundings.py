# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Ways in which a program is run: each start method of multiprocessing, development mode, other interpreters."""

import re
import subprocess
import sys

import pytest

from helpers.process import ROOT, environment, run_program
from helpers.require import find_fabric

STRICT = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
# asyncio's debug mode, which development mode brings along, says this of a machine that is busy.
SLOW = re.compile(r"^Executing <.* took \d+\.\d+ seconds\n", re.MULTILINE)


@pytest.fixture(params=["loopback", "ipc", "tcp"])
def options(request):
    fabric = find_fabric(request.param)
    if fabric.missing:
        pytest.skip(fabric.missing)
    return {"fabric": fabric.name, **fabric.options}


def run(path, *arguments):
    """Run a program as a file, in development mode, with every warning an error; what it printed."""
    ended = subprocess.run(
        [sys.executable, path, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=environment(STRICT),
        stdin=subprocess.DEVNULL,
    )
    assert (ended.returncode, SLOW.sub("", ended.stderr)) == (0, "")
    return ended.stdout


EVERYTHING = """
import asyncio, sys
from pplx_async import ClosedResourceError, TransferEngine
options = eval(sys.argv[1])

async def main():
    async with TransferEngine(**options) as a, TransferEngine(**options) as b:
        ab = await a.connect(b.address)
        ba = await b.accept()
        source, target = await a.register(bytearray(1 << 20)), await b.register(b.empty(1 << 20))
        remote, counter = ab.region(target.to_bytes()), b.counter(peer=ba)
        remote_counter = ab.counter(counter.to_bytes())
        assert await a.write(source, remote, counter=remote_counter) == 1 << 20
        assert await a.read(remote, source) == 1 << 20
        async with a.scope() as scope:
            scope.write(source, remote, counter=remote_counter)
        await counter.wait(2)
        await ab.send(b"x")
        assert (await anext(b.messages())).data == b"x"
        groups = await asyncio.gather(a.group("both", [ab]), b.group("both", [ba]))
        await asyncio.gather(a.barrier(groups[0]), b.barrier(groups[1]))
        try:
            async with asyncio.timeout(0.01):
                await counter.wait(3)
        except TimeoutError:
            pass
        waiting = asyncio.ensure_future(b.accept()), asyncio.ensure_future(anext(b.messages(), None))
        a.write(source, remote).cancel()
        await target.revoke()
        await asyncio.sleep(0)
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(ends[0], ClosedResourceError) and ends[1] is None, ends

if sys.argv[2] == "uvloop":
    import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
else:
    asyncio.run(main())
"""


def test_development_mode_and_warnings_as_errors(options, loop_name, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(EVERYTHING)
    for loop in ["asyncio", "uvloop"] if loop_name == "all" else [loop_name]:
        assert run(program, repr(options), loop) == ""


CHILDREN = """
import asyncio, multiprocessing, sys
import numpy as np
from pplx_async import TransferEngine

def child(options, address, region, number):
    async def work():
        async with TransferEngine(**options) as engine:
            peer = await engine.connect(address)
            source = await engine.register(np.full(1000, number + 1, dtype=np.uint8))
            assert await engine.write(source, peer.region(region)[number * 1000 : (number + 1) * 1000]) == 1000
    asyncio.run(work())

async def main(options, method):
    context = multiprocessing.get_context(method)
    async with TransferEngine(**options) as engine:
        array = engine.empty(2000)
        region = await engine.register(array)
        given = options, engine.address, region.to_bytes()
        children = [context.Process(target=child, args=(*given, number)) for number in range(2)]
        for process in children:
            process.start()
        for process in children:
            await asyncio.to_thread(process.join)
        assert [process.exitcode for process in children] == [0, 0]
        assert (array.reshape(2, 1000) == [[1], [2]]).all()

if __name__ == "__main__":
    asyncio.run(main(eval(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.parametrize("options", ["ipc", "tcp"], indirect=True)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_of_multiprocessing_have_engines_of_their_own(options, method, tmp_path):
    """With an engine open in the parent; what a fork is for is in test_exit.py."""
    program = tmp_path / "program.py"
    program.write_text(CHILDREN)
    assert run(program, repr(options), method) == ""


SUBINTERPRETER = """
import asyncio, sys
from pplx_async import TransferEngine
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

INSIDE = '''
try:
    import pplx_async
    pplx_async.TransferEngine
except ImportError as error:
    print(error)
'''

async def main():
    async with TransferEngine(fabric="ipc") as a, TransferEngine(fabric="ipc") as b:
        ab = await a.connect(b.address)
        source, target = await a.register(bytearray(1000)), await b.register(bytearray(1000))
        other = interpreters.create()
        interpreters.run_string(other, INSIDE)
        interpreters.destroy(other)
        assert await a.write(source, ab.region(target.to_bytes())) == 1000
asyncio.run(main())
"""


def test_another_interpreter_of_the_process_is_refused_in_words():
    """Threads, libraries and memory are the process's; the engines of the first one are unharmed."""
    ended = run_program(SUBINTERPRETER)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search("one interpreter per process|subinterpreter", ended.stdout), ended.stdout
