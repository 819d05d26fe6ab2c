# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A member: an engine, its peers, and the tasks that act and host. Whatever is not expected is told."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import time
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from pplx_async import (
    BrokenResourceError,
    ClosedResourceError,
    EngineOptions,
    Peer,
    PeerLost,
    TransferEngine,
)
from tests.soak.content import LARGEST, Pool
from tests.soak.events import (
    Close,
    Connect,
    Connected,
    Done,
    Event,
    Job,
    Left,
    Listening,
    Lost,
    NotConnected,
    Order,
    Pause,
    Paused,
    Recall,
    Recent,
    Resume,
    Sample,
    Sampled,
    Tally,
    Totals,
    Trouble,
)
from tests.soak.exercises import EXERCISES, Exercise
from tests.soak.exercises.groups import Groups
from tests.soak.history import History
from tests.soak.judge import DESCRIPTORS
from tests.soak.stage import Home, Stage
from tests.soak.talk import Ask, Elsewhere, Refused, Talk, decode, try_to_say

__all__ = ["Member"]

_TALLY_S = 0.25  # between tallies
_SETTLE_S = 20.0  # for everything to be closed, once nobody acts
_EXCUSE_S = 10.0  # for the loss to show that explains an error


class Member:
    """One of the processes, from the inside.

    Parameters
    ----------
    job : Job
        What it is.
    emit : callable
        Tells the command an event.
    """

    def __init__(self, job: Job, emit: Callable[[Event], None]) -> None:
        self._job = job
        self._emit = emit
        self._random = random.Random(repr(job.seed))
        self._engine = TransferEngine(EngineOptions(**job.engine, name=job.name))
        self._peers: dict[str, Peer] = {}
        self._talks: dict[tuple[Peer, bool, int], Talk] = {}
        self._serial = 0
        self._running = asyncio.Event()
        self._connected = asyncio.Event()
        self._idle = asyncio.Event()  # nobody of us acts
        self._acting = self._hosting = 0
        self._leaked: list[int] = []
        self._closing = False
        self._totals = {name: Totals() for name in EXERCISES}
        self._history = History()
        self._tasks: set[asyncio.Task[Any]] = set()
        fabric = job.engine["fabric"]
        self._choices = [each for each in EXERCISES.values() if each.fabrics is None or fabric in each.fabrics]

    # ---- the command ----

    async def run(self, orders: asyncio.Queue[Order]) -> None:
        """Do what is ordered, until the order to close."""
        async with self._engine:
            pool = Pool(self._job.seed[0])
            region = await self._engine.register(pool.bytes, access="none")
            self._home = Home(
                self._job.name, self._engine, pool, region, self._random, self._peers.get, self._job.sabotage
            )
            self._emit(Listening(self._engine.address))
            for work in (self._accept, self._listen, self._count, *[self._play] * self._job.actors):
                self._spawn(work())
            self._running.set()
            while not self._closing:
                await self._obey(await orders.get())
            await region.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._emit(Tally(self._totals))
        self._emit(Done())

    async def _obey(self, order: Order) -> None:
        match order:
            case Connect():
                for name, address in order.addresses.items():
                    self._spawn(self._connect(name, address))
            case Pause():
                self._running.clear()
                self._spawn(self._pause())
            case Sample():
                await self._sample()
            case Resume():
                self._running.set()
            case Recall():
                self._emit(Recent(self._history.lines()))
            case Close():
                self._closing = True

    async def _pause(self) -> None:
        while self._acting:
            self._idle.clear()
            await self._idle.wait()
        self._emit(Tally(self._totals))
        self._emit(Paused())

    async def _sample(self) -> None:
        """Everything that exercises have opened must be closed by now, or soon."""
        deadline = time.monotonic() + _SETTLE_S
        while (left := self._left_open()) and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        if left:
            self._trouble(f"while nothing is under way, this is left: {left}")
        if self._job.sabotage == "leak":
            self._leaked.extend(os.dup(0) for _ in range(4 * DESCRIPTORS))
        gc.collect()
        # What the allocator keeps for later is no leak, and goes up and down by tens of MiB.
        ctypes.CDLL(None).malloc_trim(0)
        stats = self._engine.stats()
        self._emit(Sampled(_rss(), len(os.listdir("/proc/self/fd")) - 1, stats.stray_imms + stats.stray_messages))

    def _left_open(self) -> str:
        stats = self._engine.stats()
        held = {
            "hosted exercises": self._hosting,
            "transfers": stats.inflight,
            "regions": stats.regions - 1,  # the pool's
            "counters": stats.counters,
            "talks": len(self._talks),
            "bytes": self._home.held,
        }
        return ", ".join(f"{count} {what}" for what, count in held.items() if count)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_TALLY_S)
            if self._job.sabotage == "die" and self._totals["write"].done:
                os.abort()
            self._emit(Tally(self._totals))

    # ---- trouble ----

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._trouble(_say(error), error)

    def _trouble(self, what: str, error: BaseException | None = None) -> None:
        text = "".join(traceback.format_exception(error)) if error is not None else ""
        self._emit(Trouble(what, text, self._history.lines()))

    def on_loop_error(self, context: dict[str, Any]) -> None:
        """Tell what the event loop's exception handler is given."""
        self._trouble(f"the loop's exception handler was called: {context['message']}", context.get("exception"))

    # ---- peers ----

    async def _connect(self, name: str, address: str) -> None:
        try:
            peer = await self._engine.connect(address)
        except (BrokenResourceError, PeerLost, TimeoutError) as error:
            self._emit(NotConnected(name, _say(error)))
            return
        if peer.name != name:
            self._trouble(f"{name} at {address} says that it is {peer.name}")
        self._meet(peer)

    async def _accept(self) -> None:
        while True:
            try:
                self._meet(await self._engine.accept())
            except ClosedResourceError:
                if not self._closing:
                    raise
                return

    def _meet(self, peer: Peer) -> None:
        if self._peers.get(peer.name) is peer:
            return
        self._peers[peer.name] = peer
        self._connected.set()
        self._history.note(f"connected with {peer.name}")
        self._emit(Connected(peer.name))
        self._spawn(self._watch(peer))

    async def _watch(self, peer: Peer) -> None:
        """Wait for its end, and end all talks with it."""
        lost = await peer.wait_closed()
        if self._peers.get(peer.name) is peer:
            del self._peers[peer.name]
        for talk in list(self._talks.values()):
            if talk.peer is peer:
                talk.take(lost or ClosedResourceError(f"{peer.name} has left"))
        self._history.note(f"{peer.name} {'is lost' if lost else 'has left'}")
        self._emit(Left(peer.name) if lost is None else Lost(peer.name, str(lost)))

    # ---- talking ----

    async def _listen(self) -> None:
        async for message in self._engine.messages():
            heard = decode(message.data)
            if message.peer.is_open:
                self._meet(message.peer)  # it may be here before accept() has returned it
            if isinstance(heard, Ask):
                self._hosting += 1
                talk = Talk(message.peer, heard.serial, is_host=True)
                self._talks[talk.key] = talk
                if not message.peer.is_open:
                    talk.take(message.peer.lost or ClosedResourceError("it has left"))
                self._spawn(self._host(heard, talk))
            else:
                talk = self._talks.get((message.peer, heard.to_host, heard.serial))
                if talk is not None:  # else it was given up here
                    talk.take(heard)

    # ---- acting ----

    async def _play(self) -> None:
        while True:
            await self._running.wait()
            exercise = self._choose()
            if exercise is None:
                self._connected.clear()
                await self._connected.wait()
                continue
            self._acting += 1
            try:
                await self._act(exercise)
            finally:
                self._acting -= 1
                if not self._acting:
                    self._idle.set()

    def _choose(self) -> Exercise | None:
        possible = [each for each in self._choices if len(self._peers) >= (2 if each.with_all else 1)]
        if not possible:
            return None
        return self._random.choices(possible, [each.weight for each in possible])[0]

    async def _act(self, exercise: Exercise) -> None:
        largest = LARGEST if exercise.largest is None else exercise.largest
        nbytes = max(1, int(largest ** self._random.random()))
        seed = self._random.getrandbits(63)
        peers = list(self._peers.values())
        if not exercise.with_all:
            peers = [self._random.choice(peers)]
        names = [self._job.name, *(peer.name for peer in peers)]
        talks = []
        for peer in peers:
            self._serial += 1
            talk = Talk(peer, self._serial, is_host=False)
            self._talks[talk.key] = talk
            talks.append(talk)
        totals = self._totals[exercise.name]
        began = time.monotonic()
        number = self._history.begin(f"{exercise.name} with {', '.join(names[1:])}: seed {seed:#x}, {nbytes} B")
        how = await self._carry_out(exercise, seed, nbytes, talks, names, acts=True)
        if how is not None:
            for talk in talks:  # of several, some may wait for what will not come
                await try_to_say(talk, "never mind")
        self._history.end(number, how or "done")
        if how == "refused":
            totals.refused += 1
        elif how is not None:
            totals.ended += 1
        totals.longest = max(totals.longest, time.monotonic() - began)

    async def _host(self, ask: Ask, talk: Talk) -> None:
        exercise = EXERCISES[ask.exercise]
        number = self._history.begin(f"{exercise.name} hosted for {talk.peer.name}: seed {ask.seed:#x}, {ask.nbytes} B")
        try:
            if self._job.sabotage == "hang" and exercise.name == "notify":
                await asyncio.Event().wait()
            names = ask.names or [talk.peer.name, self._job.name]
            how = await self._carry_out(exercise, ask.seed, ask.nbytes, [talk], names, acts=False)
            self._history.end(number, how or "done")
        finally:
            self._hosting -= 1

    async def _carry_out(
        self, exercise: Exercise, seed: int, nbytes: int, talks: list[Talk], names: list[str], *, acts: bool
    ) -> str | None:
        """Return None if it came to its end, or how it was ended, if that was as expected."""
        involved = [*(talk.peer for talk in talks), *filter(None, map(self._peers.get, names))]
        try:
            async with asyncio.timeout(self._job.limit), Stage(self._home, seed, nbytes, talks, names) as stage:
                if acts:
                    for talk in talks:
                        await talk.ask(exercise.name, seed, nbytes, names if exercise.with_all else [])
                    verified = await exercise.act(stage)
                    self._totals[exercise.name].done += 1
                    self._totals[exercise.name].nbytes += verified
                else:
                    await exercise.host(stage)
            return None
        except Refused:
            if not acts:
                await try_to_say(talks[0], "refused")
            return "refused"
        except Exception as error:
            for leaf in _leaves(error):
                if not await self._is_excused(leaf, exercise, involved):
                    what = f"no end in {self._job.limit:g} s" if isinstance(leaf, TimeoutError) else _say(leaf)
                    side = "acting with" if acts else "hosting for"
                    peers = ", ".join(talk.peer.name for talk in talks)
                    self._trouble(f"{exercise.name}, {side} {peers}, seed {seed:#x}, {nbytes} B: {what}", error)
                    return "trouble"
            return f"ended by {type(error).__name__}"
        finally:
            for talk in talks:
                del self._talks[talk.key]

    async def _is_excused(self, error: BaseException, exercise: Exercise, involved: list[Peer]) -> bool:
        """Whether an error is what the loss of one who took part must lead to.

        The command knows who was killed, and judges each loss that it is told of.
        """
        if isinstance(error, PeerLost):
            involved = [peer for peer in involved if peer.label == error.peer]
        elif exercise.name != Groups.name or not isinstance(error, (Elsewhere, BrokenResourceError, KeyError)):
            return False  # in a group, another member may have heard of a loss, and left, before us
        waits = [asyncio.ensure_future(peer.wait_closed()) for peer in involved]
        if not waits:
            return False
        done, pending = await asyncio.wait(waits, timeout=_EXCUSE_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
        return any(wait.result() is not None for wait in done)


def _leaves(error: BaseException) -> list[BaseException]:
    """Look through the groups that scopes raise."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in _leaves(each)]


def _say(error: BaseException) -> str:
    """Name an error in a line."""
    return f"{type(error).__name__}: {error}"


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
