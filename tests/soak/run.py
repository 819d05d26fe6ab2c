# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A run: members are started, connected, killed, started again, sampled and in the end closed.

Every wait has an end, and the first trouble ends the run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pplx_async import EngineOptions
from tests.soak import variants
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
from tests.soak.judge import WARM_UP_S, Flatness, judge
from tests.soak.process import MemberProcess
from tests.soak.view import View

__all__ = ["Plan", "Result", "Soak", "SoakFailed"]

_NAMES = ("a", "b", "c", "d")
_DOMAINS = {"a": 1, "b": 2, "c": 1, "d": 2}
_SPARED = _NAMES[0]  # never killed: what it holds is judged over the whole run
_NOTICE_S = 10.0  # for the others to hear that one was killed
_DEATH_S = 2.0  # for a process that others have lost to be found dead itself
_MESH_S = 60.0  # for everyone to be connected with everyone
_END_S = 60.0  # for engines to close
_TOO_SHORT_S = 1.0  # for one more cycle
_WORDS_S = 3.0  # for the last words of the others, once something is wrong
_KILL_AGAIN = 0.2  # of the members that are started again are killed while they connect
# Of `peer_timeout`: one that stands still for so long is lost to nobody. The rest is for a busy machine.
_SHORT = (0.05, 0.4)
# Of `peer_timeout`: nobody has lost one that stands still before that. Its last heartbeat may have been late.
_TOO_EARLY = 0.5
_LATER_S = 1.0  # at most, until it goes on when all have lost it


class SoakFailed(Exception):
    """What must not happen has.

    Attributes
    ----------
    details : str
        Traceback, and what the members did last.
    """

    def __init__(self, what: str, details: str = "") -> None:
        super().__init__(what)
        self.details = details


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes
    ----------
    seconds : float
        Of load, from when all are connected.
    fabric : str
        Of every engine.
    seed : int
        Of all choices and contents.
    kill_every : float
        Seconds from one kill to the next.
    actors : int
        Exercises at a time that each member begins.
    limit : float
        Seconds that an exercise may take.
    cycles : int
        Of a stop and a kill, at least: on a slow machine they take longer than `kill_every`.
    sabotage : str
        What the spared member is to do wrong.
    """

    seconds: float
    fabric: str
    seed: int
    kill_every: float
    actors: int
    limit: float
    cycles: int = 1
    sabotage: str = ""


@dataclass
class Result:
    """What has become of a run.

    Attributes
    ----------
    seconds : float
        Of load.
    totals : dict of Totals
        By kind of exercise, over all starts of all members.
    starts, kills : int
        Of processes.
    noticed : list of float
        Seconds until all that were connected with one that was killed knew it.
    outlasted : list of float
        Seconds that one was stopped for, and was lost to nobody.
    given_up : list of float
        Seconds from when one was stopped for good until all had lost it. Each has come back as a new peer.
    stray : int
        Immediates and messages that belonged to nothing any more.
    flat : dict of Flatness
        By label, of processes that lived long enough to be judged.
    complaints : list of str
        What is wrong, although every exercise went well.
    """

    seconds: float = 0.0
    totals: dict[str, Totals] = field(default_factory=dict)
    starts: int = 0
    kills: int = 0
    noticed: list[float] = field(default_factory=list)
    outlasted: list[float] = field(default_factory=list)
    given_up: list[float] = field(default_factory=list)
    stray: int = 0
    flat: dict[str, Flatness] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


class Soak:
    """One run."""

    def __init__(self, plan: Plan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._random = random.Random(plan.seed)
        self._members: dict[str, MemberProcess] = {}  # by name: those that live
        self._all: list[MemberProcess] = []
        self._born: dict[str, float] = {}
        self._starts = dict.fromkeys(_NAMES, 0)
        self._result = Result()
        self._failure: SoakFailed | None = None
        self._accusations: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._cycles = 0
        self._closing = False
        self._began = time.monotonic()

    async def run(self) -> Result:
        """Go through it.

        Raises
        ------
        SoakFailed
            Something was wrong.
        """
        try:
            for name in _NAMES:
                await self._start(name)
            await self._until(self._is_whole, _MESH_S, "everyone is connected with everyone")
            self._began = time.monotonic()
            while (left := self._plan.seconds - self._seconds) > _TOO_SHORT_S or self._cycles < self._plan.cycles:
                await self._cycle(min(max(left, _TOO_SHORT_S), self._plan.kill_every))
            self._result.seconds = self._seconds
            await self._close()
        except SoakFailed as failure:
            self._result.seconds = self._seconds
            raise SoakFailed(str(failure), await self._last_words(failure)) from None
        finally:
            await asyncio.gather(*(member.end() for member in self._all))
        self._judge()
        return self._result

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    # ---- waiting ----

    async def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something holds; trouble, or too long a time, is the end."""
        deadline = time.monotonic() + seconds
        while True:
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            if condition():
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise SoakFailed(f"not within {seconds:g} s: {what}. {self._state()}")
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _sleep(self, seconds: float) -> None:
        """Let time pass in which anything may go wrong."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._changed.clear()
            if self._failure is not None:
                raise self._failure
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _state(self) -> str:
        return "; ".join(
            f"{member.label}: with {', '.join(sorted(member.links)) or 'nobody'}"
            + (", paused" if member.paused else "")
            for member in self._members.values()
        )

    def _fail(self, what: str, details: str = "") -> None:
        if self._failure is None:
            self._failure = SoakFailed(what, details)
        self._changed.set()

    # ---- members ----

    async def _start(self, name: str) -> MemberProcess:
        number = self._starts[name]
        self._starts[name] += 1
        self._result.starts += 1
        engine, loop = variants.draw(self._plan.fabric, self._random, domains=_DOMAINS[name])
        job = Job(
            f"{name}.{number}",
            [self._plan.seed, _NAMES.index(name), number],
            engine,
            loop,
            self._plan.actors,
            self._plan.limit,
            self._plan.sabotage if name == _SPARED else "",
        )
        member = await MemberProcess.start(job, self._on_event, self._on_end)
        self._born[job.name] = self._seconds
        self._all.append(member)
        self._members[name] = member
        return member

    def _is_whole(self) -> bool:
        labels = {member.label for member in self._members.values()}
        return len(labels) == len(_NAMES) and all(
            member.links == labels - {member.label} for member in self._members.values()
        )

    def _may_lose(self, member: MemberProcess, label: str) -> bool:
        """Whether one of the two was killed, or stands still for longer than a peer may."""
        peer = next(other for other in self._all if other.label == label)
        return any(each.killed or each.given_up for each in (member, peer))

    def _is_known(self, label: str) -> bool:
        return any(label in member.links for member in self._members.values())

    def _on_event(self, member: MemberProcess, event: Event) -> None:
        match event:
            case Listening():
                member.address = event.address
                there = {other.label: other.address for other in self._members.values() if other.address}
                del there[member.label]
                member.tell(Connect(there))
            case Connected():
                member.links.add(event.peer)
            case NotConnected():
                if not self._may_lose(member, event.peer):
                    self._accuse(event.peer, f"{member.label} could not connect with {event.peer}", event.why)
            case Lost():
                member.links.discard(event.peer)
                if not self._may_lose(member, event.peer):
                    self._accuse(event.peer, f"{member.label} has lost {event.peer}", event.why)
            case Left():
                member.links.discard(event.peer)
                if not self._closing:
                    self._fail(f"{event.peer} has said goodbye to {member.label}, and was not told to")
            case Tally():
                member.totals = event.totals
                self._view.show(self._seconds, self._sum(), self._result.kills)
            case Paused():
                member.paused = True
            case Sampled():
                member.samples.append((self._seconds, event))
            case Recent():
                member.recent = event.lines
            case Trouble():
                member.recent = event.lines
                self._fail(f"{member.label}: {event.what}", event.traceback)
            case Done():
                member.is_done = True
        self._changed.set()

    def _accuse(self, label: str, what: str, why: str) -> None:
        """Fail for what happened to others with this one, unless it has died by itself: its own end says more."""
        peer = next(other for other in self._all if other.label == label)

        async def wait() -> None:
            await asyncio.wait({peer.follower}, timeout=_DEATH_S)
            self._fail(f"{what}, which lives: {why}")

        self._accusations.add(asyncio.create_task(wait()))

    def _on_end(self, member: MemberProcess, code: int) -> None:
        if not member.killed and not (member.is_done and code == 0):
            self._fail(f"the process of {member.label} ended by itself, exit status {code}")
        self._changed.set()

    def _sum(self) -> dict[str, Totals]:
        sums: dict[str, Totals] = {}
        for member in self._all:
            for kind, totals in member.totals.items():
                known = sums.setdefault(kind, Totals())
                known.done += totals.done
                known.nbytes += totals.nbytes
                known.ended += totals.ended
                known.refused += totals.refused
                known.longest = max(known.longest, totals.longest)
        return sums

    # ---- what is done to them ----

    async def _cycle(self, length: float) -> None:
        """Load, one stands still, one is killed and started again, load; then a sample of what all of them hold."""
        end = time.monotonic() + length
        await self._sleep(self._random.uniform(0.1, 0.3) * length)
        self._cycles += 1
        await (self._stop_for_a_moment() if self._cycles % 2 else self._stop_for_good())
        await self._sleep(self._random.uniform(0.1, 0.3) * length)
        name = self._random.choice([name for name in _NAMES if name != _SPARED])
        await self._kill(name)
        await self._sleep(self._random.uniform(0.0, 0.1) * length)
        member = await self._start(name)
        while self._random.random() < _KILL_AGAIN:
            await self._until(lambda m=member: bool(m.address), _MESH_S, f"{member.label} listens")
            await self._sleep(self._random.uniform(0.0, 0.02))
            await self._kill(name)
            member = await self._start(name)
        await self._until(self._is_whole, _MESH_S, f"everyone is connected with {member.label}")
        await self._sleep(end - time.monotonic())
        await self._sample()
        self._view.log(
            self._seconds,
            f"{self._result.kills} kills, {len(self._result.outlasted)} short and {len(self._result.given_up)} long "
            f"stops, {self._count_done()} exercises verified",
        )

    async def _stop_for_a_moment(self) -> None:
        """Who stands still for less than its peers' limit is lost to nobody, and loses nobody."""
        victim = self._members[self._random.choice(_NAMES)]
        victim.stop()
        began = time.monotonic()
        await self._sleep(self._random.uniform(*_SHORT) * _limit(victim))
        self._result.outlasted.append(time.monotonic() - began)
        victim.resume()  # whoever loses it from now on fails the run, as ever

    async def _stop_for_good(self) -> None:
        """Who stands still for longer is lost; when it goes on it has lost everyone itself, and may come again."""
        victim = self._members[self._random.choice(_NAMES)]
        victim.given_up = True
        victim.stop()
        began = time.monotonic()
        await self._until(
            lambda: not self._is_known(victim.label),
            _limit(victim) + _NOTICE_S,
            f"everyone has lost {victim.label}, which was stopped",
        )
        took = time.monotonic() - began
        if took < _TOO_EARLY * _limit(victim):
            self._fail(f"{victim.label} was lost {took:.2f} s after it was stopped, which is too early")
        self._result.given_up.append(took)
        await self._sleep(self._random.uniform(0.0, _LATER_S))
        victim.resume()
        await self._until(lambda: not victim.links, _NOTICE_S, f"{victim.label}, which stood still, has lost everyone")
        victim.given_up = False
        others = [member for member in self._members.values() if member is not victim]
        victim.tell(Connect({member.label: member.address for member in others}))
        await self._until(self._is_whole, _MESH_S, f"everyone is connected with {victim.label} again")

    async def _kill(self, name: str) -> None:
        victim = self._members.pop(name)
        known = self._is_known(victim.label)
        victim.kill()
        began = time.monotonic()
        self._result.kills += 1
        await self._until(
            lambda: not self._is_known(victim.label),
            _NOTICE_S,
            f"everyone has lost {victim.label}, which was killed",
        )
        if known:
            self._result.noticed.append(time.monotonic() - began)
        await asyncio.wait({victim.follower})

    async def _pause(self) -> None:
        for member in self._members.values():
            member.paused = False
            member.tell(Pause())
        await self._until(
            lambda: all(member.paused for member in self._members.values()), self._plan.limit + 5, "all have paused"
        )

    async def _sample(self) -> None:
        await self._pause()
        counts = {member.label: len(member.samples) for member in self._members.values()}
        for member in self._members.values():
            member.tell(Sample())
        await self._until(
            lambda: all(len(member.samples) > counts[member.label] for member in self._members.values()),
            _END_S,
            "all have said what they hold",
        )
        for member in self._members.values():
            member.tell(Resume())

    async def _close(self) -> None:
        await self._pause()
        self._closing = True
        for member in self._members.values():
            member.tell(Close())
        await self._until(lambda: all(m.is_done for m in self._members.values()), _END_S, "all engines are closed")
        for member in self._members.values():
            await asyncio.wait({member.follower}, timeout=_END_S)
        await asyncio.gather(*self._accusations)
        if self._failure is not None:
            raise self._failure

    # ---- the end ----

    def _count_done(self) -> int:
        return sum(totals.done for totals in self._sum().values())

    def _judge(self) -> None:
        result = self._result
        result.totals = self._sum()
        warm_up = min(WARM_UP_S, self._plan.seconds / 4)
        for member in self._all:
            result.stray += member.samples[-1][1].stray if member.samples else 0
            flat = judge(member.samples, self._born[member.label], warm_up)
            if flat is not None:
                result.flat[member.label] = flat
                if flat.complaint:
                    result.complaints.append(f"{member.label}: {flat.complaint}")
            if member.stderr:
                result.complaints.append(f"{member.label} wrote to stderr: {' | '.join(member.stderr)}")

    async def _last_words(self, failure: SoakFailed) -> str:
        """Say what everyone did last. Who can't even say that shows where its threads are."""
        asked = [member for member in self._members.values() if not member.recent]
        for member in asked:
            member.tell(Recall())
        deadline = time.monotonic() + _WORDS_S
        while any(not member.recent for member in asked) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for member in asked:
            if not member.recent:
                member.dump_stacks()
        await asyncio.sleep(0.2)
        parts = [failure.details] if failure.details else []
        for member in self._members.values():
            parts.append(f"--- {member.label}, {member.job.loop}, {member.job.engine}")
            parts += [*member.recent, *(f"stderr: {line}" for line in member.stderr)]
        return "\n".join(parts)


def _limit(member: MemberProcess) -> float:
    """Seconds of silence after which its peers lose it: all have the same."""
    return EngineOptions(**member.job.engine).peer_timeout
