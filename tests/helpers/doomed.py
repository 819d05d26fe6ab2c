# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Processes to be killed: each is a fork of one that has imported everything, and opens an engine of its own.

``python -m helpers.doomed`` is the second process of `helpers.process`. It answers ``reap`` only: what it is asked to
``fork`` answers itself, once when its engine is open and, if it is to die by itself, once more right before that. A
fork takes a tenth of the time of a new interpreter, so that a hundred of them can be killed in a test.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import numpy as np

from pplx_async import Peer, TransferEngine, control, listen, wire

PR_SET_PDEATHSIG = 1
BLOCKED_WRITES = 100
HELD = 20  # regions; a fence that nobody answers takes a tenth of a second


def tell(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


class Doomed:
    """An engine that connects to whoever is to survive it, and does things there until it is killed.

    It publishes what it lets others reach: ``memory``, which peers of this host write to by plain copies, ``plain``,
    which they don't, and ``counter``.
    """

    def __init__(self, options: dict[str, Any], does: list[str], seconds: float) -> None:
        self.engine = TransferEngine(name="doomed", **options)
        self.does = does
        self.seconds = seconds

    async def live(self, address: str | None, nbytes: int) -> None:
        engine = self.engine
        await engine.open()
        self.zeros = await engine.register(engine.empty(nbytes))  # what it writes elsewhere
        self.counter = engine.counter()
        engine.publish("memory", await engine.register(engine.empty(nbytes)))
        engine.publish("plain", await engine.register(np.zeros(nbytes, dtype=np.uint8)))
        engine.publish("counter", self.counter)
        tell(result={"pid": os.getpid(), "address": engine.address})
        self.peer = await (engine.accept() if address is None else engine.connect(address))
        await asyncio.gather(*(getattr(self, name)() for name in self.does))
        await asyncio.Event().wait()

    async def writes(self) -> None:
        """Write without end, into both kinds of memory."""
        into = [await self.peer.lookup("sink"), await self.peer.lookup("shared sink")]
        while True:
            await asyncio.gather(*(self.engine.write(self.zeros[0 : each.nbytes], each) for each in into))

    async def reads(self) -> None:
        """Read without end."""
        source = await self.peer.lookup("source")
        sink = await self.engine.register(np.zeros(source.nbytes, dtype=np.uint8))
        while True:
            await self.engine.read(source, sink)

    async def holds(self) -> None:
        """Write once into each of what it holds from then on, and say so."""
        for i in range(HELD):
            remote = await self.peer.lookup(f"held {i}")
            await self.engine.write(self.zeros[0 : remote.nbytes], remote)
        await self.engine.notify(await self.peer.lookup_counter("holds"))

    async def joins(self) -> None:
        """Be a member of a group that never comes to a barrier."""
        self.group = await self.engine.group("of the doomed", [self.peer])

    async def blocks(self) -> None:
        """Say that it is ready; once told, start transfers, let the loop stand still, and say that it is back."""
        sink = await self.peer.lookup("sink")
        back = await self.peer.lookup_counter("back")
        landed = await self.peer.lookup_counter("landed")
        await self.engine.notify(back)
        await self.counter.wait(1)
        part = self.zeros[0 : sink.nbytes]
        transfers = [self.engine.write(part, sink, counter=landed) for _ in range(BLOCKED_WRITES)]
        time.sleep(self.seconds)
        assert self.peer.is_open
        await asyncio.gather(*transfers)
        await self.engine.notify(back)


# ---- dying in the handshake ----


def die() -> NoReturn:
    """End as a crash does, and tell when; not by an exception, which would clean up."""
    tell(result=time.monotonic())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def before(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def dies(*args: Any, **kwargs: Any) -> None:
        die()

    return dies


def after(function: Callable[..., Awaitable[Any]], kind: object = None) -> Callable[..., Awaitable[Any]]:
    """Die once a coroutine has returned, and what it has written is sent; of `kind` if it expects one."""

    async def dies(*args: Any, **kwargs: Any) -> Any:
        result = await function(*args, **kwargs)
        if kind is None or kind in args:
            await asyncio.sleep(0)
            die()
        return result

    return dies


def die_at(point: str) -> None:
    """Let this process die at a point of the handshake."""
    if point == "accept":  # the connection stands, nothing was said
        control.handshake, listen.handshake = before(control.handshake), before(listen.handshake)
    elif point == "hello":
        control.handshake, listen.handshake = after(control.handshake), after(listen.handshake)
    elif point == "endpoints":  # they know each other's endpoints
        Peer._expect = after(Peer._expect, wire.Endpoints)  # type: ignore[method-assign]
    else:  # every link works, the other side waits for our Ready
        assert point == "ready"
        say_ready = Peer._say_ready

        async def connect_and_die(peer: Peer, connecting: Any) -> None:
            peer._channel.post = lambda message: die()  # type: ignore[method-assign]
            await say_ready(peer, connecting)

        Peer._say_ready = connect_and_die  # type: ignore[method-assign]


# ---- the process ----


def run(
    options: dict[str, Any],
    uvloop: bool,
    *,
    address: str | None = None,
    does: list[str] | None = None,
    dies: str | None = None,
    nbytes: int = 4 << 20,
    seconds: float = 0.0,
) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it is not to outlive the test
    factory = None
    if uvloop:
        from uvloop import new_event_loop as factory
    if dies is not None:
        die_at(dies)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(Doomed(options, does or [], seconds).live(address, nbytes))


def main() -> None:
    # Nothing here has a thread but NumPy's BLAS, which knows how to fork.
    warnings.simplefilter("ignore", DeprecationWarning)
    options = json.loads(sys.argv[1])
    uvloop = options.pop("uvloop", False)
    while line := sys.stdin.readline():
        request = json.loads(line)
        action = request.pop("do")
        if action == "reap":
            tell(result=os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1]))
            continue
        assert action == "fork", action
        if os.fork() == 0:
            try:
                run(options, uvloop, **request)
            except BaseException:
                tell(error=traceback.format_exc())
            finally:
                os._exit(1)


if __name__ == "__main__":
    main()
