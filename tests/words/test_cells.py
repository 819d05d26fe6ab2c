# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Cells are used again at once and for ever, and yet every stream passes that was answered, whenever it looks."""

import asyncio
import contextlib
import ctypes
import gc
import os
import warnings

import pytest

from helpers.engines import engine_on, eventually
from helpers.puppet import Puppet
from helpers.require import find_fabric
from pplx_async import Gate

CELLS = 1024
LAST_TURN = (1 << 32) - 16


def state_of(address):
    return ctypes.c_uint32.from_address(address)


async def answered(board):
    """Have a stream ask in a gate and be answered, while it does not look; return it, and where that is."""
    late = Puppet()
    gate = board.counter.gate(late, 1)
    late.step(0)
    await board.write()
    await gate
    await board.no_words()
    await board.b.reached(board.stream())  # so the gate's cell has come back
    return late, gate.address


async def take_all(make, count=CELLS):
    """Make so many words, as they come back: all that there are."""
    taken = []

    def take():
        with contextlib.suppress(MemoryError):
            while True:
                taken.append(make())
        return len(taken) >= count

    await eventually(take, "all have come back")
    assert len(taken) == count
    return taken


async def test_a_gate_is_two_steps_of_its_stream(loopback_board):
    """A third one, which says that it has passed, would keep what is behind the gate waiting."""
    puppets = [Puppet(captured) for captured in (False, True)]
    gates = [loopback_board.counter.gate(puppet, 1) for puppet in puppets]  # before one that ends poisons their lane
    for puppet, gate in zip(puppets, gates, strict=True):
        assert [kind for kind, _ in puppet.steps] == [0, 1]  # a store, a wait
        gate.close()
        puppet.step(0)


@pytest.mark.parametrize("captured", [False, True], ids=["queued", "captured"])
async def test_a_stream_that_looks_late_passes_and_the_one_that_has_its_cell_waits(loopback_board, captured):
    board = loopback_board
    late, address = await answered(board)
    puppets = {}

    def make():
        puppet = Puppet(captured)
        gate = board.counter.gate(puppet, 1)
        puppets[gate.address] = puppet
        return gate

    gates = await take_all(make)
    gate = next(gate for gate in gates if gate.address == address)
    puppet = puppets[address]
    for opened in range(1, 4 if captured else 2):
        assert late.step(1)  # before it has come
        puppet.step(0)
        assert late.step(1)  # while it waits
        assert not puppet.step(1)
        await board.write()
        await gate.wait(opened)
        assert late.step(1)
        assert puppet.step(1)


async def test_a_stream_that_looks_late_passes_though_its_cell_is_a_doorbells(loopback_board):
    """Captured, it is rung and free by turns; the cell's number does not fall below what the other one waits for."""
    board = loopback_board
    late, address = await answered(board)
    back = board.pair.ba.region(board.source.to_bytes())
    puppets = {}

    def make():
        puppet = Puppet(captured=True)
        writing = board.b.write(board.target.region, back, after=puppet)
        puppets[puppet.address] = puppet
        return writing

    captured = await take_all(make)
    puppet = puppets[address]
    for _ in range(3):
        assert late.step(1)
        await eventually(lambda: puppet.step(0), "it may ring")
        puppet.step(1)
        assert late.step(1)
    await asyncio.gather(*(each.close() for each in captured))
    assert sum(each.posted for each in captured) == 3


async def test_a_stream_that_looks_late_passes_though_its_cell_is_watched(loopback_board):
    """A watch has a number of its own there: from 0 on, and the stream does not see it."""
    board = loopback_board
    late, address = await answered(board)
    state = state_of(address).value
    async with contextlib.AsyncExitStack() as stack:
        watches = []
        while not (near := [watch for watch in watches if 0 < watch.address - address < 64]):
            watches.append(await stack.enter_async_context(board.b.watch()))
        watch = near[0]
        assert watch.value == 0
        ctypes.c_uint64.from_address(watch.address).value = (1 << 64) - 1
        assert await anext(watch) == (0, (1 << 64) - 1)
        assert state_of(address).value == state
        assert late.step(1)


async def test_ten_thousand_gates_leave_nothing(board):
    stream = board.stream()

    def known():
        gc.collect()
        return sum(isinstance(thing, Gate) for thing in gc.get_objects())

    before = known()
    for _ in range(10):
        gates = [board.counter.gate(stream, 1) for _ in range(1000)]
        for _ in range(10):
            await asyncio.gather(*(board.write() for _ in range(100)))
        await gates[-1]
    await board.idle(stream)
    await board.no_words()
    assert sum(gate.opened for gate in gates) == 1000
    del gates
    await eventually(lambda: known() == before, "nobody knows them any more")
    await take_all(lambda: board.counter.gate(stream, 1))  # as many as there have always been


async def test_a_cell_is_not_used_again_when_its_number_has_come_to_the_end(loopback_board):
    """Beginning anew, it would hold up whoever has not looked since."""
    board, stream = loopback_board, loopback_board.stream()
    gate = board.counter.gate(stream, 1)
    address = gate.address
    await board.write()
    await gate
    await board.no_words()
    state_of(address).value = LAST_TURN
    for left in (CELLS, CELLS - 1):
        gates = await take_all(lambda: board.counter.gate(stream, 1), left)
        assert (address in [each.address for each in gates]) == (left == CELLS)
        for _ in gates:
            await board.write()
            await board.a.drain()
        await asyncio.gather(*gates)
        await board.no_words()


async def use_all(board):
    """Have each cell that is given out in turn be a word's."""
    stream = board.stream()
    for _ in range(CELLS):
        await board.b.reached(stream)
    await board.no_words()


async def test_cell_of_a_closed_gate_of_a_graph_is_used_when_there_is_no_other(loopback_board):
    """A graph that is launched all the same does not wait for what the cell's next word waits for."""
    board, puppet = loopback_board, Puppet(captured=True)
    gate = board.counter.gate(puppet, 1)
    address = gate.address
    gate.close()
    await board.no_words()
    await use_all(board)
    puppet.step(0)
    assert puppet.step(1)
    others = [board.counter.gate(Puppet(), 1) for _ in range(CELLS - 1)]
    assert address not in [other.address for other in others]
    assert board.counter.gate(Puppet(), 1).address == address
    with pytest.raises(MemoryError):
        board.counter.gate(Puppet(), 1)


@pytest.mark.parametrize("again", [False, True], ids=["left", "used again"])
async def test_memory_that_a_graph_may_still_write_to_is_no_other_engines(again):
    """It was closed, and may be launched all the same."""
    async with engine_on(find_fabric("loopback")) as engine:
        engine.counter().gate(Puppet(captured=True), 1).close()
        await eventually(lambda: engine.stats().words == 0, "it is closed")
        await asyncio.sleep(0.01)
        page = engine._core.words.page
        if again:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(CELLS):
                    await stack.enter_async_context(engine.watch())
            await eventually(lambda: engine.stats().words == 0, "they have ended")
            await asyncio.sleep(0.01)
    assert page.kept


async def test_a_gate_says_that_it_was_aborted_whoever_has_its_cell(loopback_board):
    """Its own object for good; the cell, which kernels ask, until there is no other."""
    board, puppet = loopback_board, Puppet()
    gate = board.counter.gate(puppet, 1)
    address = gate.address
    puppet.step(0)
    gate.close()
    await board.no_words()
    assert gate.aborted
    board.b.rearm(puppet)
    await use_all(board)
    assert state_of(address + 8).value == 1
    others = [board.counter.gate(Puppet(), 1) for _ in range(CELLS - 1)]
    assert address not in [other.address for other in others]
    assert gate.aborted
    assert board.counter.gate(Puppet(), 1).address == address
    assert state_of(address + 8).value == 0
    assert gate.aborted


async def queue(engine):
    """Have a stream ask in a gate of an engine and be answered, while it does not look."""
    puppet, counter = Puppet(), engine.counter()
    gate = counter.gate(puppet, 1)
    puppet.step(0)
    gate.close()
    await eventually(lambda: engine.stats().words == 0, "it is answered")
    return puppet


async def test_memory_of_an_engine_that_has_ended_is_the_next_ones(streams):
    """And who was answered in the first one passes while another stream waits there in the second."""
    fabric = find_fabric("loopback")
    async with engine_on(fabric) as engine:
        page = engine._core.words.page
        late = await queue(engine)
    assert not page.kept
    for _ in range(5):
        async with engine_on(fabric) as engine, engine_on(fabric) as other:
            assert engine._core.words.page is page
            assert other._core.words.page is not page
            gates = [engine.counter().gate(streams(), 1) for _ in range(3)]
            await eventually(lambda gates=gates: all(state_of(gate.address).value % 2 for gate in gates), "they wait")
            assert late.step(1)
            assert not any(gate.opened for gate in gates)
        assert late.step(1)


async def test_stream_that_waits_when_its_engine_ends_costs_no_page(streams):
    """It is answered then; only one that has not come there might write where somebody else is."""
    stream, fabric = streams(), find_fabric("loopback")
    async with engine_on(fabric) as engine:
        gate = engine.counter().gate(stream, 1)
        await eventually(lambda: state_of(gate.address).value % 2, "its stream waits")
        page = engine._core.words.page
    await eventually(lambda: stream.is_idle, "it was let go")
    assert not page.kept


async def test_child_of_a_fork_has_cells_of_its_own():
    """Memory that the parent's next engine uses is not what the child's next engine uses."""
    fabric = find_fabric("loopback")
    async with engine_on(fabric) as engine:
        page = engine._core.words.page
    before = ctypes.string_at(page.address, page.nbytes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = asyncio.new_event_loop().run_until_complete(write_in_all(fabric))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]) == 0
    assert ctypes.string_at(page.address, page.nbytes) == before


async def write_in_all(fabric):
    """Write all memory that an engine here has for words."""
    async with engine_on(fabric) as engine:
        page = engine._core.words.page
        ctypes.memset(page.address, 1, page.nbytes)
    return 0
