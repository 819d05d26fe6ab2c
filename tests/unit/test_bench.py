# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async bench``: in small between two processes, its table, its plot, and an end to every wait."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import figures
from helpers.process import ROOT, environment, take_interrupts
from helpers.require import find_fabric
from helpers.sides import are_gone, children
from pplx_async.cli.bench import c_program, contents, works
from pplx_async.cli.bench.aims import judge
from pplx_async.cli.bench.command import FabricName, _choose_works, _find_c
from pplx_async.cli.bench.comparison import comparison, lines_of
from pplx_async.cli.bench.lead import percentile
from pplx_async.cli.bench.order import Order
from pplx_async.cli.bench.plot import check_plotting, plot
from pplx_async.cli.bench.rows import key, load_rows, make_line, make_row
from pplx_async.cli.bench.run import _Pair
from pplx_async.cli.failures import CommandError, ExitCode

SMALL = ["--quick", "--runs", "1"]
IN_C = {"ipc": {"c-shm-poll", "c-shm-epoll"}, "tcp": {"c-tcp-poll", "c-tcp-epoll"}}


def start(*arguments):
    command = [sys.executable, "-m", "pplx_async.cli.main", "bench", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        command, text=True, cwd=ROOT, env=environment({"NO_COLOR": "1"}), preexec_fn=take_interrupts, **pipes
    )


def bench(*arguments, code=0):
    with start(*arguments) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out, err


@pytest.fixture(params=["ipc", "tcp"])
def way(request):
    """Options for one fabric after the other."""
    found = find_fabric(request.param)
    if found.missing is not None:
        pytest.skip(found.missing)
    library = ["--library", found.options["library"]] if "library" in found.options else []
    return ["--fabric", found.name, *library]


# ---- it works ----


@pytest.mark.parametrize("wakeup", ["eventfd", "spin"])
def test_all_of_it(way, wakeup, programs, tmp_path):
    written, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    out, err = bench(*way, "--wakeup", wakeup, *SMALL, "--json", str(written), "--plot", str(picture))
    ours = f"pplx-{way[1]}-{wakeup}"
    rows = load_rows(written)  # as benchmarks/peers takes them
    assert {key(row) for row in rows if row["name"] == ours} == {work.key for work in _choose_works(None, True)}
    there = program_of(way).exists()
    assert {row["name"] for row in rows} - {ours} == (IN_C[way[1]] if there else set())
    for row in rows:
        assert row["value"] >= 0
        assert len(row["runs"]) == 1
        # Who waits busily takes a core, and C has nothing to register with.
        assert row["name"] == ours or key(row) not in ("sparse", "register-64M")
    values = json.loads(written.read_text())
    assert values["engine"]["fabric"] == way[1]
    assert f"{ROOT}/" not in written.read_text()
    assert {verdict["work"] for verdict in values["aims"]} >= {"pingpong-8", "stream-1M", "pages-1K", "idle"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert ours in out
    assert "ping-pong 8 B, half a round trip" in out
    assert "stream-16M" in err  # while it runs


def program_of(way):
    return c_program.program_path("shm_bench" if way[1] == "ipc" else "fabric_bench")


@pytest.mark.parametrize(
    "more",
    [["--loop", "uvloop"], ["--buffers", "numpy"], ["--progress", "proxy"], ["--progress", "loop"]],
    ids=" ".join,
)
def test_variants(way, more):
    out, _ = bench(
        *way, *more, *SMALL, "--works", "pingpong-4K,stream-64K,pages-1K,scatter-7K", "--no-c", "--json", "-"
    )
    values = json.loads(out)
    assert values["ok"] is True
    assert values[more[0].strip("-")] == more[1]
    assert [key(row) for row in values["rows"]] == ["pingpong-4K", "stream-64K", "pages-1K", "scatter-7K"]
    if more[0] != "--progress":
        assert values["name"].endswith(more[1])


def test_without_the_c_programs(tmp_path):
    arguments = ["--works", "awaits-64,idle", *SMALL, "--c", str(tmp_path)]
    out, _ = bench(*arguments)
    assert f"There is no shm_bench in {tmp_path}" in out
    assert "make bench-c" in out
    assert "c-shm" not in out
    assert "no shm_bench" not in bench(*arguments[:-2], "--no-c")[0]


# ---- what is asked for ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--works", "pages-3K"], "no work pages-3K; one of: pingpong-8, "),
        (["--fabric", "loopback"], "--fabric"),
        (["--wakeup", "gently"], "--wakeup"),
        (["--runs", "0"], "--runs"),
        (["--timeout", "0"], "--timeout"),
        (["--plot", "."], "--plot"),
    ],
)
def test_wrong_usage(arguments, said):
    out, err = bench(*arguments, code=ExitCode.USAGE)
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_works_are_chosen_and_shrunk():
    assert [work.key for work in _choose_works("idle,register-1G", False)] == ["idle", "register-1G"]
    assert _choose_works(None, False) == list(works.OUR_WORKS)
    for whole, small in zip(works.OUR_WORKS, _choose_works(None, True)):
        assert small.name == whole.name
        assert whole.targets <= small.count <= whole.count
        assert small.count >= min(whole.count, whole.inflight)


def test_the_c_programs_are_those_of_the_provider(tmp_path):
    (tmp_path / "fabric_bench").touch()
    rows, why = _find_c(FabricName.tcp, tmp_path, False)
    assert [row.name for row in rows] == ["c-tcp-poll", "c-tcp-epoll"]
    assert why == ""
    assert _find_c(FabricName.tcp, tmp_path, True) == ([], "")
    rows, why = _find_c(FabricName.ipc, tmp_path, False)
    assert rows == []
    assert "no shm_bench" in why


def test_matplotlib_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CommandError, match="--plot needs the package matplotlib") as caught:
        check_plotting()
    assert caught.value.code is ExitCode.UNAVAILABLE
    assert "pplx_async[bench]" in caught.value.hint


# ---- figures ----


def row(name, work, value, wait="spin", provider="ipc", **values):
    about = {"name": name, "provider": provider, "wait": wait, "run": 1, "runs": 1}
    return make_row([make_line(works.find(work, works.OUR_WORKS), about, {"value": value} | values)], name)


def test_percentiles_are_those_of_c():
    assert [percentile([4, 1, 3, 2], p) for p in (1, 25, 50, 51, 99, 100)] == [1, 1, 2, 3, 4, 4]
    assert percentile([7], 50) == 7


@pytest.mark.parametrize(
    ("work", "wait", "ours", "aim", "met"),
    [
        ("pingpong-8", "spin", 6.0, "<= C + 4", True),
        ("pingpong-8", "spin", 7.1, "<= C + 4", False),
        ("pingpong-4K", "eventfd", 6.5, "<= 1.3 C", True),
        ("pingpong-4K", "eventfd", 6.6, "<= 1.3 C", False),
        ("stream-64K", "spin", 5.1, ">= 0.85 C", True),
        ("stream-64K", "spin", 5.0, ">= 0.85 C", False),
        ("stream-1M", "eventfd", 4.74, ">= 0.95 C", False),
        ("pages-1K", "spin", 4.81, ">= 0.8 C", True),
        ("awaits-1", "spin", 149.0, ">= 150", False),
        ("awaits-1024", "spin", 300.0, ">= 300", True),
        ("idle", "eventfd", 0.4, "<= 0.5", True),
    ],
)
def test_aims(work, wait, ours, aim, met):
    """C in epoll has 5. C that polls is better, with 3 us or a rate of 6, and beside the mode that polls."""
    polls = 3.0 if work.startswith("pingpong") else 6.0
    rows = [row("us", work, ours, wait), row("c-poll", work, polls, "poll"), row("c-epoll", work, 5.0, "epoll")]
    (verdict,) = judge(rows, "us")
    assert (verdict["aim"], verdict["met"]) == (aim, met)
    (verdict,) = judge(rows[:1], "us")
    assert verdict["met"] is (None if "C" in aim else met)


def test_the_better_of_both_if_c_that_polls_has_collapsed():
    rows = [
        row("us", "stream-1M", 4.0),
        row("c-poll", "stream-1M", 1.0, "poll"),
        row("c-epoll", "stream-1M", 5.0, "epoll"),
    ]
    (verdict,) = judge(rows, "us")
    assert (verdict["beside"], verdict["met"]) == ("c-epoll", False)


def test_awaits_have_an_aim_in_one_mode_only():
    assert judge([row("us", "awaits-64", 1.0, "eventfd"), row("us", "scatter-7K", 1.0)], "us") == []
    assert judge([row("us", "awaits-64", 1.0, provider="tcp")], "us") == []


ROWS = [
    row("us", "pingpong-8", 3.0, p50=3.0, p99=12.0),
    row("c-poll", "pingpong-8", 2.0, "poll", p50=2.0, p99=4.0),
    row("us", "stream-1M", 9.5, others=0.4),
    row("c-poll", "stream-1M", 10.0, "poll"),
    row("us", "idle", 0.1),
    row("c-poll", "idle", 100.0, "poll"),
    row("us", "register-1G", 1.5, memory_nbytes=3 << 20),
]


def test_the_table():
    names, lines = lines_of(ROWS, "us")
    assert names == ["c-poll"]
    assert [line.title for line in lines] == [
        "ping-pong 8 B, half a round trip",
        "  99th percentile",
        "stream 1 MiB, 16 in flight",
        "processor time of a waiting engine",
        "register 1 GiB, 3.0 MiB more memory",
    ]
    assert [line.ratio(0) for line in lines] == [1.5, 3.0, 0.95, None, None]
    console = Console(width=150)
    with console.capture() as capture:
        console.print(comparison(ROWS, "us"))
    shown = capture.get()
    assert "9.5~" in shown
    assert "others used the machine" in shown
    assert "yes: >= 0.95 C" in shown
    assert "yes: <= C + 4" in shown


def test_the_table_without_c():
    names, lines = lines_of(ROWS[:1], "us")
    assert names == []
    assert (lines[0].c, lines[0].met) == ([], None)


def test_the_plot(tmp_path):
    path = tmp_path / "figure.png"
    plot(ROWS, "everything", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    plot(ROWS[4:], "nothing that has a panel", path)
    assert path.read_bytes().startswith(b"\x89PNG")


RESULT = {
    "name": "us",
    "machine": {"cores": 2, "processor": "P", "memory_gib": 8, "system": "S", "python": "3.11.7"},
    "loop": "asyncio",
    "runs": 5,
    "quick": False,
    "rows": ROWS,
}


def test_figures_go_into_the_page():
    text = figures.render([RESULT])
    assert "### us" in text
    assert "2 cores of P, 8 GiB, S, Python 3.11.7, asyncio, 5 runs." in text
    assert "| stream 1 MiB, 16 in flight | GB/s | 9.5~ | 10 | 0.95 | `>= 0.95 C` (yes) |" in text
    page = f"# Title\n\n{figures.BEGIN}\n\nold\n{figures.END}\n\nend\n"
    once = figures.insert(page, text)
    assert "old" not in once
    assert figures.insert(once, text) == once
    assert once.startswith("# Title\n")
    assert once.endswith("\n\nend\n")
    with pytest.raises(ValueError, match="no place"):
        figures.insert("# Title\n", text)


def test_the_page_has_a_place_for_figures():
    figures.insert(figures.PAGE.read_text(), "")


# ---- what is wrong is noticed ----


def test_bytes_that_differ():
    work = works.Work("stream", 64, 4, "GB/s", inflight=4)
    source, destination = np.zeros(256, np.uint8), np.zeros(256, np.uint8)
    contents.fill(source)
    assert contents.count_wrong(source, destination, work) == 4
    destination[:] = source
    assert contents.count_wrong(source, destination, work) == 0
    destination[130] ^= 1
    assert contents.count_wrong(source, destination, work) == 1
    contents.clear(destination, work)
    assert not destination.any()


async def test_bytes_that_differ_end_it():
    class Side:
        follower = asyncio.get_running_loop().create_future()

        def __init__(self, name):
            self.name = name

        def tell(self, line):
            answers[self.name].put_nowait({"wrong": 3} if self.name == "target" else {"value": 1.0})

    answers = {"leader": asyncio.Queue(), "target": asyncio.Queue()}
    pair = _Pair([Side("target"), Side("leader")], answers)
    with pytest.raises(CommandError, match="pages-1K: 3 writes brought other bytes to the target") as caught:
        await pair.repeat(Order(works.find("pages-1K")))
    assert caught.value.kind == "VerificationFailed"


# ---- every wait has an end ----

LONG = ["--works", "idle", "--no-c", "--json", "-"]


@pytest.mark.parametrize("victim", ["target", "leader"])
def test_a_side_that_dies(way, victim):
    with start(*way, *LONG) as process:
        sides = children(process)
        time.sleep(1.5)  # into its work
        os.kill(sides[victim], signal.SIGKILL)
        out, err = process.communicate(timeout=50)
    assert process.returncode == ExitCode.FAILED, err
    assert json.loads(out)["error"]["message"] == f"{victim}: its process was ended by SIGKILL before it was through"
    assert are_gone(sides.values())


def programs_of(process):
    """The C programs that a benchmark has started, and their targets."""
    found, todo = [], [process.pid]
    while todo:
        pid = todo.pop()
        pids = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        found += [child for child in pids if b"shm_bench" in Path(f"/proc/{child}/cmdline").read_bytes()]
        todo += pids
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_no_process_is_left_behind(programs, number):
    with start("--works", "idle") as process:
        sides = children(process)
        deadline = time.monotonic() + 40
        while len(pids := programs_of(process)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(pids) == 2
        process.send_signal(number)
        _, err = process.communicate(timeout=50)
    codes = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED, signal.SIGKILL: -number}
    assert process.returncode == codes[number]
    assert "Traceback" not in err
    assert are_gone([*sides.values(), *pids])


def test_a_c_program_that_dies(programs):
    with start("--works", "stream-1M", "--runs", "1000", "--json", "-") as process:
        deadline = time.monotonic() + 40
        while len(pids := programs_of(process)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(pids[0], signal.SIGKILL)
        out, _ = process.communicate(timeout=50)
    assert process.returncode == ExitCode.FAILED
    assert json.loads(out)["error"]["kind"] == "ProgramFailed"
    assert are_gone(pids)


def test_a_repetition_that_takes_too_long():
    with start("--quick", "--works", "idle", "--no-c", "--timeout", "1", "--json", "-") as process:
        sides = children(process)
        for pid in sides.values():  # both: one alone would be missed by the other
            os.kill(pid, signal.SIGSTOP)
        out, err = process.communicate(timeout=50)
    assert process.returncode == ExitCode.FAILED, err
    assert "nothing moved for 2 s (" in json.loads(out)["error"]["message"]
    assert are_gone(sides.values())
