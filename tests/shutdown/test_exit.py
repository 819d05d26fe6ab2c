# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""However a program ends, it ends: exit status and standard error are what they must be."""

import re
import signal
import subprocess
import sys
import time

import pytest

from helpers.process import ROOT, environment, run_program, take_interrupts
from helpers.require import find_fabric

HEAD = """
import asyncio, os, sys, gc, signal, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # of fork, since 3.12
from pplx_async import *
from pplx_async import TransferEngine
options = eval(sys.argv[1])

async def pair(**more):
    a = TransferEngine(**options, **more)
    b = TransferEngine(**options, **more)
    await a.open()
    await b.open()
    ab = await a.connect(b.address)
    ba = await b.accept()
    source = await a.register(bytearray(1 << 20))
    target = await b.register(bytearray(1 << 20))
    return a, b, ab, ba, source, target, ab.region(target.to_bytes())

def run(main):
    if sys.argv[2] == "uvloop":
        import uvloop
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    return asyncio.run(main)
"""


@pytest.fixture(params=["loopback", "ipc", "tcp"])
def options(request):
    fabric = find_fabric(request.param)
    if fabric.missing:
        pytest.skip(fabric.missing)
    return {"fabric": fabric.name, **fabric.options}


@pytest.fixture
def loops(loop_name):
    return ["asyncio", "uvloop"] if loop_name == "all" else [loop_name]


def run(program, options, loop):
    return run_program(HEAD + program, repr(options), loop)


def start(program, options, loop, **variables):
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + program, repr(options), loop],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(variables),
        preexec_fn=take_interrupts,
    )


CLEAN = {
    "closed": """
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    await a.write(source, remote)
    await source.close()
    await target.close()
    await a.close()
    await b.close()
run(main())
""",
    "async with, regions left to the engine": """
async def main():
    async with TransferEngine(**options) as a, TransferEngine(**options) as b:
        ab = await a.connect(b.address)
        source, target = await a.register(bytearray(1000)), await b.register(bytearray(1000))
        await a.write(source, ab.region(target.to_bytes()))
run(main())
""",
    "awaits pending when the engines close": """
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    counter = b.counter()
    tasks = [asyncio.ensure_future(x) for x in (counter.wait(5), counter.take(1), b.accept())]
    async def read():
        async for _ in b.messages():
            pass
    tasks.append(asyncio.ensure_future(read()))
    await asyncio.sleep(0.01)
    await a.close()
    await b.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, ClosedResourceError), repr(result)
run(main())
""",
    "awaits pending when the program ends in async with": """
async def main():
    async with TransferEngine(**options) as a:
        async def wait():
            await a.counter().wait(1)
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0.01)
        task.cancel()
run(main())
""",
    "exception inside async with": """
async def main():
    async with TransferEngine(**options) as a, TransferEngine(**options) as b:
        ab = await a.connect(b.address)
        source, target = await a.register(bytearray(1 << 20)), await b.register(bytearray(1 << 20))
        for _ in range(50):
            a.write(source, ab.region(target.to_bytes()))
        raise LookupError
try:
    run(main())
except LookupError:
    pass
""",
    "two runs one after the other": """
async def main():
    async with TransferEngine(**options) as a, TransferEngine(**options) as b:
        ab = await a.connect(b.address)
        await ab.send(b"x")
run(main())
run(main())
""",
    "a child by fork, with an engine of its own": """
import multiprocessing
def child():
    async def work():
        a, b, ab, ba, source, target, remote = await pair()
        assert await a.write(source, remote) == 1 << 20
        await a.close()
        await b.close()
    run(work())
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    transfers = [a.write(source, remote) for _ in range(20)]
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == 0
    assert await asyncio.gather(*transfers) == [1 << 20] * 20
    await a.close()
    await b.close()
run(main())
""",
    "engine that was never opened": """
engine = TransferEngine(**options)
del engine
gc.collect()
""",
    "import only": "",
}


@pytest.mark.parametrize("program", CLEAN.values(), ids=CLEAN)
def test_clean_end(program, options, loops):
    for loop in loops:
        ended = run(program, options, loop)
        assert ended.stderr == ""
        assert ended.returncode == 0


LEAKY = {
    "engine left open": """
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    await a.write(source, remote)
    globals().update(locals())
run(main())
""",
    "engine left open with traffic": """
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    transfers = [a.write(source, remote) for _ in range(200)]
    globals().update(locals())
run(main())
""",
    "awaits pending": """
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    counter = b.counter()
    async def wait():
        await counter.wait(1)
    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0.01)
    globals().update(locals())
run(main())
""",
    "loop closed first": """
loop = asyncio.new_event_loop()
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    transfers = [a.write(source, remote) for _ in range(20)]
    globals().update(locals())
loop.run_until_complete(main())
loop.close()
del transfers, source, target, remote
gc.collect()
""",
    "sys.exit in the middle": """
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    transfers = [a.write(source, remote) for _ in range(20)]
    globals().update(locals())
    sys.exit(0)
run(main())
""",
    "collected while open": """
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    await a.write(source, remote)
run(main())
gc.collect()
""",
}

# Only what the interpreter says of things that were left open: one line each, with its source line.
WARNING = re.compile(r"(LeakWarning|ResourceWarning|Task was destroyed|was never closed|unclosed)")


@pytest.mark.parametrize("program", LEAKY.values(), ids=LEAKY)
def test_end_with_things_left_open(program, options, loops):
    for loop in loops:
        ended = run(program, options, loop)
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        assert "Fatal" not in ended.stderr
        assert "Exception ignored" not in ended.stderr
        for line in ended.stderr.splitlines():
            # A second line of a warning shows its source, indented, or the task.
            assert WARNING.search(line) or line.startswith(("  ", "task: <Task pending")), ended.stderr


def test_engine_that_is_collected_open_warns(options):
    program = """
import warnings
async def main():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = TransferEngine(**options)
        await engine.open()
        fd = engine._core.fd
        asyncio.get_running_loop().remove_reader(fd)
        engine._connector.server._loop.remove_reader(engine._connector.server._listener)
        del engine
        gc.collect()
        print([w.category.__name__ for w in caught if "TransferEngine" in str(w.message)])
run(main())
"""
    ended = run(program, options, "asyncio")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() in ("['LeakWarning']", "[]")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("program", [LEAKY["engine left open"], LEAKY["engine left open with traffic"]])
def test_engine_left_open_to_the_end_warns(program, options, loops):
    for loop in loops:
        with start(program, options, loop, PYTHONWARNINGS="always::ResourceWarning") as process:
            try:
                _, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 0, err
        assert len(re.findall(r"LeakWarning: <TransferEngine .*, open> was never closed", err)) == 2, err
        assert "Traceback" not in err
        assert "Exception ignored" not in err


DAEMON = """
import contextlib, threading
from pplx_async import ClosedResourceError
at_work = threading.Event()
async def main():
    a, b, ab, ba, source, target, remote = await pair(wakeup="spin")
    small = await a.register(bytearray(64))
    for number in range(10**9):
        a.write(source, remote)
        for _ in range(100):
            await a.write(small, remote[:64])
        if number == 1:
            at_work.set()
def work():
    # Not left to the thread to print: the interpreter may end in the middle of a traceback.
    with contextlib.suppress(ClosedResourceError):
        run(main())
threading.Thread(target=work, daemon=True).start()
at_work.wait()
"""


def test_end_while_a_daemon_thread_is_at_work(options, loops):
    """The engine is stopped under it: that is all that it may hear of, if it gets that far."""
    for loop in loops:
        ended = run(DAEMON, options, loop)
        assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("where", ["idle", "traffic", "scope", "connect"])
def test_keyboard_interrupt_ends_async_with(options, loops, where):
    for loop in loops:
        assert ended_by(signal.SIGINT, where, "", options, loop) == (0, "interrupted\nclosed\n", "")


# What a program may do about the signal that a supervisor ends it with. (A handler that raises may do so in the
# midst of the loop itself, which then has lost a callback: asyncio can't be ended like that.)
ON_TERM = "asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)"


@pytest.mark.parametrize("where", ["traffic", "scope"])
def test_sigterm_ends_async_with(options, loops, where):
    for loop in loops:
        assert ended_by(signal.SIGTERM, where, ON_TERM, options, loop) == (0, "cancelled\nclosed\n", "")


@pytest.mark.parametrize("where", ["traffic", "scope"])
def test_keyboard_interrupt_while_the_loop_spins(options, loops, where):
    for loop in loops:
        assert ended_by(signal.SIGINT, where, "", options | {"wakeup": "spin"}, loop) == (
            0,
            "interrupted\nclosed\n",
            "",
        )


WHERE = {
    "idle": "await asyncio.sleep(30)",
    "traffic": "while True: await a.write(source, remote)",
    "scope": """async with a.scope() as scope:
                while True:
                    scope.write(source, remote)
                    await a.drain()
                    await asyncio.sleep(0)""",
    "connect": "await a.accept()",
}


def ended_by(number, where, handler, options, loop):
    """Send a program the signal in the midst of its work; its exit status, and what it printed."""
    program = f"""
async def main():
    {handler}
    engines = TransferEngine(**options), TransferEngine(**options)
    try:
        async with engines[0] as a, engines[1] as b:
            ab = await a.connect(b.address)
            source, target = await a.register(bytearray(1 << 16)), await b.register(bytearray(1 << 16))
            remote = ab.region(target.to_bytes())
            print("ready", flush=True)
            {WHERE[where]}
    finally:
        closed.append(not any(engine.is_open or engine.peers for engine in engines))
closed = []
try:
    run(main())
except KeyboardInterrupt:
    print("interrupted")
except asyncio.CancelledError:
    print("cancelled")
finally:
    print("closed" if closed == [True] else "left open")
"""
    with start(program, options, loop) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.1)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, out, err


IN_A_CLOSE = """
from pplx_async._core.engine import running_engines
async def main():
    async with TransferEngine(**options, drain_timeout=60.0) as a, TransferEngine(**options, drain_timeout=60.0) as b:
        ab = await a.connect(b.address)
        source, target = await a.register(bytearray(1 << 20)), await b.register(bytearray(1 << 20))
        await a.write(source, ab.region(target.to_bytes()))
        type(ab)._on_control = lambda *_: None  # nobody hears a goodbye, and so each close takes all of its time
        asyncio.get_running_loop().call_later(0.05, lambda: print("ready", flush=True))
        if in_the_body:
            await asyncio.sleep(60)
try:
    run(main())
except KeyboardInterrupt:
    print("interrupted")
print(running_engines())
"""


@pytest.mark.parametrize("in_the_body", [True, False])
def test_second_keyboard_interrupt_ends_a_close_that_takes_long(options, loops, in_the_body):
    """It is stopped at once: no thread of ours runs on, and nothing says that an engine was never closed."""
    for loop in loops:
        program = f"in_the_body = {in_the_body}{IN_A_CLOSE}"
        with start(program, options, loop, PYTHONWARNINGS="always::ResourceWarning") as process:
            try:
                assert process.stdout.readline() == "ready\n"
                process.send_signal(signal.SIGINT)  # the first one ends the body, or the close of one engine
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
        assert (process.returncode, out, err) == (0, "interrupted\n[]\n", "")


def test_exit_in_a_forked_child_is_clean(options):
    program = """
async def main():
    async with TransferEngine(**options) as a, TransferEngine(**options) as b:
        ab = await a.connect(b.address)
        source, target = await a.register(bytearray(1000)), await b.register(bytearray(1000))
        pid = os.fork()
        if pid == 0:
            try:
                a.counter()
            except ClosedResourceError as error:
                assert "fork" in str(error)
                os._exit(7)
            os._exit(8)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert await a.write(source, ab.region(target.to_bytes())) == 1000
run(main())
"""
    ended = run(program, options, "asyncio")
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_exit_handlers_in_a_forked_child_hurt_nobody(options):
    # Not further than that: the loop's own end would take the parent's descriptors out of the epoll that both share.
    program = """
import atexit
async def main():
    a, b, ab, ba, source, target, remote = await pair()
    await a.write(source, remote)
    pid = os.fork()
    if pid == 0:
        atexit._run_exitfuncs()
        await a.close()
        os._exit(0 if not a.is_open else 9)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert await a.write(source, remote) == 1 << 20
    await a.close()
    await b.close()
run(main())
"""
    ended = run(program, options, "asyncio")
    assert ended.stderr == ""
    assert ended.returncode == 0
