# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes, each in a network namespace of its own, with a cable or a bad wire between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from helpers.process import Helper, helper
from helpers.require import Fabric
from helpers.survivor import as_here

NBYTES = 4 << 20  # that each lets the other write


class Ends:
    """The two processes, `a` and `b`: see `helpers.networked`.

    Attributes
    ----------
    addresses : list of str
        Of their engines, once these are open.
    """

    def __init__(self, a: Helper, b: Helper, hosts: tuple[str, str]) -> None:
        self.a, self.b, self.hosts = a, b, hosts

    async def open(self, **options: Any) -> None:
        """Open an engine on each, beyond loopback; with other options than the process was given."""
        self.addresses = []
        for each, host in zip((self.a, self.b), self.hosts, strict=True):
            self.addresses.append(await each.ask("open", listen=f"{host}:0", nbytes=NBYTES, options=options))

    async def connect(self) -> None:
        """Connect a to b."""
        self.b.post("accept")
        await self.a.ask("connect", address=self.addresses[1])
        await self.b.answer()

    async def both(self, action: str, **values: Any) -> list[Any]:
        """Ask both at the same time. If one fails, the other's answer is not left for the next question."""
        for each in (self.a, self.b):
            each.post(action, **values)
        answers = await asyncio.gather(self.a.answer(), self.b.answer(), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers


@contextlib.asynccontextmanager
async def two_networks(fabric: Fabric, hosts: tuple[str, str], **options: Any) -> AsyncIterator[Ends]:
    given = as_here(fabric, secret="of the tests' networks", **options)
    async with helper("networked", given) as a, helper("networked", given) as b:
        ends = Ends(a, b, hosts)
        await ends.both("ip", commands=[])  # each answers from its own network: until then it may be in ours
        yield ends


@contextlib.asynccontextmanager
async def open_cable(fabric: Fabric, **options: Any) -> AsyncIterator[Ends]:
    """Open two engines with a pair of veth devices between them, called "cable" on both sides."""
    async with two_networks(fabric, ("10.78.1.1", "10.78.1.2"), **options) as ends:
        new = f"link add cable type veth peer name cable netns {ends.b.pid}"
        for each, host, commands in zip((ends.a, ends.b), ends.hosts, ([new], []), strict=True):
            commands += [f"address add {host}/24 dev cable", "link set cable up"]
            await each.ask("ip", commands=commands)
        await ends.open()
        yield ends


@contextlib.asynccontextmanager
async def open_wire(fabric: Fabric, **options: Any) -> AsyncIterator[tuple[Ends, Helper]]:
    """Open two engines with a wire between them, a good one until it is told otherwise: see `helpers.bad_wire`."""
    async with (
        two_networks(fabric, ("10.78.2.1", "10.78.2.2"), **options) as ends,
        helper("bad_wire", as_here(fabric)) as wire,
    ):
        addresses = [(each.pid, f"{host}/24") for each, host in zip((ends.a, ends.b), ends.hosts, strict=True)]
        await wire.ask("join", ends=addresses, mtu=1500)
        await ends.open()
        yield ends, wire
