# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The stream without a GPU: in order, on its own thread, with graphs."""

import threading

import pytest

from pplx_async.testing import HostStream


def test_runs_in_order_on_one_thread(streams):
    stream, seen = streams(), []
    for i in range(100):
        stream.run(lambda i=i: seen.append((i, threading.current_thread())))
    stream.synchronize(20)
    assert [i for i, _ in seen] == list(range(100))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] is not threading.current_thread()
    assert stream.is_idle


def test_graph_runs_only_when_it_is_launched(streams):
    stream, seen = streams(), []
    with stream.capture() as graph:
        assert stream.is_capturing()
        stream.run(seen.append, 1)
        stream.run(seen.append, 2)
    stream.synchronize(20)
    assert seen == []
    assert not stream.is_capturing()
    for _ in range(3):
        graph.launch()
    stream.synchronize(20)
    assert seen == [1, 2] * 3


def test_captures_do_not_nest(streams):
    stream = streams()
    with stream.capture(), pytest.raises(RuntimeError, match="captured already"), stream.capture():
        pass


def test_failure_is_raised_by_synchronize_and_ends_what_runs(streams):
    stream, seen = streams(), []
    stream.run(seen.append, 1)
    stream.run(lambda: 1 / 0)
    stream.run(seen.append, 2)
    with pytest.raises(ZeroDivisionError):
        stream.synchronize(20)
    assert isinstance(stream.failure, ZeroDivisionError)
    assert seen == [1]


def test_synchronize_gives_up(streams):
    stream, event = streams(), threading.Event()
    stream.run(event.wait, 20)
    with pytest.raises(TimeoutError):
        stream.synchronize(0.01)
    event.set()
    stream.synchronize(20)


def test_closed_one_takes_nothing():
    with HostStream() as stream:
        pass
    stream.close()
    with pytest.raises(RuntimeError, match="closed"):
        stream.run(print)
