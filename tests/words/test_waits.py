# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Waits for what a stream does, by a stream whose steps the test itself takes: between any two of its own."""

import asyncio
import contextlib
import ctypes
import mmap
import re
import time

import pytest

from helpers.engines import SOON
from helpers.puppet import Puppet
from helpers.require import ROOT
from pplx_async import ClosedResourceError
from pplx_async._core import rt


class Core:
    """The core's table of functions, through which all that is compiled calls it."""

    def __init__(self):
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        self._table = get(rt._C_API, b"pplx_async._core.rt._C_API")
        header = (ROOT / "include/pplx_async/api.h").read_text()
        self._names = re.findall(r"^    X\([^,]+, (\w+),", header, re.MULTILINE)

    @contextlib.contextmanager
    def before(self, name, action):
        """Have something done right before the first call of one of them, on a word, in this block."""
        at = self._table + 16 + 8 * self._names.index(name)
        page = at // mmap.PAGESIZE * mmap.PAGESIZE
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        entry = ctypes.c_void_p.from_address(at)
        kind = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint64)
        own, called = entry.value, []

        @kind
        def instead(word, number):
            entry.value = own
            called.append(name)
            action()
            return kind(own)(word, number)

        entry.value = ctypes.cast(instead, ctypes.c_void_p).value
        yield
        entry.value = own
        assert called == [name]


@pytest.fixture(scope="module")
def core():
    return Core()


def pass_through(puppet, gate):
    """Pass a gate that opens, without a turn of the loop; return how often it has by then."""
    opened, deadline = gate.opened, time.monotonic() + SOON
    puppet.step(0)
    while not puppet.step(1) or gate.opened == opened:  # it is counted after that
        assert time.monotonic() < deadline
        time.sleep(0)
    return gate.opened


async def landed(board, count):
    """Have that many writes counted."""
    for _ in range(0, count, 100):
        await asyncio.gather(*(board.write() for _ in range(100)))
    await board.counter.wait(count)


async def test_one_that_opens_between_a_look_and_leaving_word_is_not_missed(loopback_board, core):
    """The proxy counts when the wait has looked and has not left word yet, and so tells nobody: it looks once more."""
    board, puppet = loopback_board, Puppet(captured=True)
    gate = board.counter.gate(puppet, 1)
    await landed(board, 100)
    later = gate.wait(5)  # what word there is, is of this one
    assert pass_through(puppet, gate) == 1
    with core.before("word_notify", lambda: pass_through(puppet, gate)):
        assert gate.wait(2).done()
    assert (gate.opened, later.done()) == (2, False)
    later.cancel()
    gate.close()


async def test_one_that_opens_while_the_last_is_told_is_not_missed(loopback_board, core):
    """The proxy counts while its last news is in the owner's hands, and sends none: it is seen with that."""
    board, puppet = loopback_board, Puppet(captured=True)
    gate = board.counter.gate(puppet, 1)
    await landed(board, 100)
    first, second = gate.wait(1), gate.wait(2)
    assert pass_through(puppet, gate) == 1
    with core.before("word_reaped", lambda: pass_through(puppet, gate)):
        async with asyncio.timeout(SOON):
            assert await first == 2
    assert second.done()
    gate.close()


async def test_each_wait_ends_at_its_own_count_and_says_what_it_is_by_then(loopback_board):
    board, puppet = loopback_board, Puppet(captured=True)
    gate = board.counter.gate(puppet, 1)
    await landed(board, 100)
    waits = {count: gate.wait(count) for count in (5, 2, 7, 1)}
    assert {count: wait.count for count, wait in waits.items()} == {count: count for count in waits}
    assert sorted(waits.values()) == [waits[1], waits[2], waits[5], waits[7]]
    assert pass_through(puppet, gate) == 1
    assert await waits[1] == 1
    assert [count for count, wait in waits.items() if wait.done()] == [1]
    for opened in (2, 3, 4):  # before the loop hears of the first of them
        assert pass_through(puppet, gate) == opened
    assert await waits[2] == 4
    assert not waits[5].done()
    assert pass_through(puppet, gate) == 5
    assert await waits[5] == 5
    waits[7].cancel()
    assert await gate.wait(3) == 5
    gate.close()


async def test_one_that_is_let_go_before_its_counter_hears_why_says_why(loopback_board):
    """The proxy sees that the peer has said goodbye, and its counter is told by and by: then the wait says so."""
    board, puppet = loopback_board, Puppet(captured=False)
    gate = board.counter.gate(puppet, 1)
    waiting = gate.wait()
    puppet.step(0)
    closing = asyncio.ensure_future(board.pair.ab.close())
    async with asyncio.timeout(SOON):
        while not gate.aborted:
            await asyncio.sleep(0)
    deadline = time.monotonic() + SOON
    while board.b.stats().words:  # and retires: the loop does not turn, and so nobody has heard of either
        assert time.monotonic() < deadline
        time.sleep(0)
    later = gate.wait()
    for each in (waiting, later):
        with pytest.raises(ClosedResourceError, match="peer"):
            await each
    with pytest.raises(ClosedResourceError, match="peer"):
        await gate
    await closing


async def test_one_whose_counter_has_enough_opens_though_its_peer_is_gone(loopback_board):
    """Its stream comes after the counter has heard of that: the wait goes on until then, and ends well."""
    board, puppet = loopback_board, Puppet(captured=False)
    gate = board.counter.gate(puppet, 1)
    waiting = gate.wait()
    await landed(board, 100)
    await board.pair.ab.close()
    with pytest.raises(ClosedResourceError):
        await board.counter.wait(101)
    assert not waiting.done()
    assert pass_through(puppet, gate) == 1
    assert await waiting == 1
