# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks do what they say: the C programs in small, the runner of the peers, rows and tables."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.peers.processes import PeerFailed, run_peer
from benchmarks.peers.registry import PEERS, Peer
from helpers.process import ROOT
from pplx_async.cli.bench import rows, table, works
from pplx_async.cli.bench.c_program import CProgram, ProgramFailed
from pplx_async.cli.bench.quiet import Load, Samples

LINE = {"program", "work", "provider", "wait", "nbytes", "count", "inflight", "targets", "run", "runs", "value"}
LINE |= {"unit", "p50", "p99"}
SMALL = [
    "pingpong --count 20",
    "pingpong --count 20 --nbytes 4096",
    "stream --count 40 --nbytes 100000 --inflight 3",
    "awaits --count 100 --inflight 64",
    "pages --count 50 --page-nbytes 1024",
    "scatter --targets 8 --messages 4 --nbytes 7168",
]


def run(program, arguments, *more):
    return subprocess.run([program, *arguments.split(), *more], capture_output=True, text=True, timeout=50)


def check_lines(result, arguments, wait):
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["run"] for line in lines] == [1, 2]
    for line in lines:
        assert set(line) == LINE
        assert line["work"] == arguments.split()[0]
        assert line["wait"] == wait
        assert line["value"] > 0
        if line["work"] == "pingpong":
            assert 0 < line["p50"] == line["value"] <= line["p99"]


@pytest.mark.parametrize("wait", ["poll", "epoll"])
@pytest.mark.parametrize("arguments", SMALL)
def test_shared_memory(programs, arguments, wait):
    before = set(os.listdir("/dev/shm"))
    result = run(programs("shm_bench"), arguments, "--runs=2", f"--wait={wait}")
    check_lines(result, arguments, wait)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "bench" in name]


def test_waiting_in_epoll_costs_nothing(programs):
    """And waiting busily costs all that is to be had."""
    polled, slept = (
        run(programs("shm_bench"), "idle --seconds 1 --runs 1", f"--wait={wait}") for wait in ("poll", "epoll")
    )
    assert json.loads(polled.stdout)["value"] > 5  # other processes want their part
    assert json.loads(slept.stdout)["value"] < 2


@pytest.mark.fabrics("tcp", "rxm")
@pytest.mark.parametrize("wait", ["poll", "epoll"])
@pytest.mark.parametrize("arguments", SMALL)
def test_fabric(programs, fabric, arguments, wait):
    if not programs("fabric_bench").exists():
        pytest.skip("fabric_bench was not built: no headers of libfabric")
    more = [f"--provider={fabric.name}", f"--library={fabric.options['library']}", f"--wait={wait}", "--runs=2"]
    result = run(programs("fabric_bench"), arguments, *more)
    check_lines(result, arguments, wait)
    assert {json.loads(line)["provider"] for line in result.stdout.splitlines()} == {fabric.name}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("juggle", 'no such work: "juggle"'),
        ("stream --nbytes 0", 'not a number in range: "0"'),
        ("stream --wait gladly", 'not a way to wait: "gladly"'),
        ("stream --count 2 --later", "unrecognized option"),
        ("stream more", 'unexpected: "more"'),
    ],
)
def test_wrong_usage(programs, arguments, said):
    result = run(programs("shm_bench"), arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "arguments", ["stream --nbytes 268435456 --inflight 2", "pages --nbytes 1000", "pages --nbytes 67108864 --count 5"]
)
def test_what_does_not_fit_the_arena(programs, arguments):
    result = run(programs("shm_bench"), arguments)
    assert result.returncode == 1
    assert "arena" in result.stderr or "power of two" in result.stderr


def test_the_library_is_missing(programs):
    if not programs("fabric_bench").exists():
        pytest.skip("fabric_bench was not built: no headers of libfabric")
    result = run(programs("fabric_bench"), "pingpong", "--library=/nowhere/libfabric.so.1")
    assert result.returncode == 1
    assert "/nowhere/libfabric.so.1" in result.stderr


# ---- every wait of the C programs has an end ----

FOREVER = ["stream --count 1000000", "idle --seconds 100"]


def is_gone(pid, seconds=20):
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def start(program, arguments, wait):
    """Start it, and wait for its target."""
    process = subprocess.Popen(
        [program, *arguments.split(), f"--wait={wait}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children, end = "", time.monotonic() + 20
    while not children and time.monotonic() < end:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    time.sleep(0.3)  # into its work
    return process, int(children)


@pytest.mark.parametrize("wait", ["poll", "epoll"])
@pytest.mark.parametrize("arguments", FOREVER)
def test_the_target_dies(programs, arguments, wait):
    process, target = start(programs("shm_bench"), arguments, wait)
    os.kill(target, signal.SIGKILL)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "the other side has ended" in said


@pytest.mark.parametrize("wait", ["poll", "epoll"])
@pytest.mark.parametrize("arguments", FOREVER)
def test_the_timed_side_dies(programs, arguments, wait):
    process, target = start(programs("shm_bench"), arguments, wait)
    process.kill()
    process.communicate(timeout=20)
    assert is_gone(target)


@pytest.mark.parametrize("arguments", FOREVER)
def test_a_repetition_takes_too_long(programs, arguments):
    result = run(programs("shm_bench"), arguments, "--timeout=1")
    assert result.returncode == 1
    assert "longer than --timeout" in result.stderr


def processor_seconds(pids):
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def test_one_repetition_at_a_time(programs):
    work = dataclasses.replace(works.find("pingpong-8"), count=50)
    with CProgram(programs("shm_bench"), work) as program:
        assert [program.step()["run"] for _ in range(2)] == [1, 2]
        pids = program.find_pids()
        assert len(pids) == 2
        # Both would spin, if they did not block between repetitions.
        before = processor_seconds(pids)
        time.sleep(0.5)
        assert processor_seconds(pids) - before < 0.25
        assert program.step()["run"] == 3
    assert all(is_gone(pid) for pid in pids)


def test_a_step_of_a_dead_program(programs):
    work = works.find("pingpong-8")
    with (
        CProgram(programs("shm_bench"), work, ["--provider"]) as program,
        pytest.raises(ProgramFailed, match="requires an argument"),
    ):
        program.step()


def test_c_and_python_agree_on_the_places(programs, tmp_path):
    program = tmp_path / "places"
    source = '#include <stdio.h>\n#include "bench.h"\nint main(void) { for (uint32_t i = 0; i < 4096; i++)'
    source += ' printf("%u %u\\n", bench_scramble(i, 12, 1), bench_scramble(i, 18, 2)); }\n'
    command = ["cc", "-x", "c", "-std=gnu11", f"-I{ROOT / 'benchmarks' / 'c'}", "-o", program, "-"]
    subprocess.run(command, input=source, text=True, check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    expected = [f"{works.scramble(i, 12, 1)} {works.scramble(i, 18, 2)}" for i in range(4096)]
    assert printed == expected


# ---- works ----


@pytest.mark.parametrize("work", works.WORKS, ids=lambda work: work.key)
def test_places(work):
    places = works.places(work)
    assert len(places) == work.count
    assert works.find(work.key) is work
    for offset in (0, 1):
        starts = {place[offset] for place in places}
        assert max(starts) + work.nbytes <= works.ARENA
        ordered = sorted(starts)
        assert all(b - a >= work.nbytes for a, b in itertools.pairwise(ordered))
        if work.name in ("pages", "scatter"):
            assert len(starts) == work.count


def test_pages_are_nowhere_adjacent_on_both_sides():
    work = works.find("pages-1K")
    places = works.places(work)
    adjacent = sum(b[0] - a[0] == work.nbytes and b[1] - a[1] == work.nbytes for a, b in itertools.pairwise(places))
    assert adjacent == 0


# ---- rows and tables ----


def line(work, name="x", **values):
    return rows.make_line(work, {"name": name, "provider": "p", "wait": "poll", "run": 1, "runs": 1}, values)


def row(key, name, value, **values):
    return rows.make_row([line(works.find(key), value=value, **values)], name)


def test_a_row_is_the_median_of_its_lines():
    work = works.find("pingpong-8")
    lines = [line(work, value=value, p99=10 * value, others=value / 100) for value in (3.0, 1.0, 9.0)]
    made = rows.make_row(lines, "them")
    assert made["name"] == "them"
    assert made["value"] == 3.0
    assert made["p99"] == 30.0
    assert made["p50"] is None
    assert made["others"] == 0.03
    assert made["runs"] == [3.0, 1.0, 9.0]
    assert "run" not in made
    assert rows.key(made) == work.key


@pytest.mark.parametrize("text", ["", "loading...", "3", "[1]", '{"level": "info"}'])
def test_other_output_is_no_line(text):
    assert rows.line_of(text) is None


def test_rows_of_another_file(tmp_path):
    path = tmp_path / "ours.json"
    path.write_text(json.dumps({"rows": [row("stream-1M", "us", 5.0)]}))
    assert rows.load_rows(path)[0]["name"] == "us"
    path.write_text(json.dumps({"rows": [{"name": "us", "work": "stream"}]}))
    with pytest.raises(ValueError, match="a row without provider, wait"):
        rows.load_rows(path)


def show(found, base, name):
    """The cells of a name in both tables."""
    console = Console(width=200)
    with console.capture() as capture:
        for shown in table.tables(found, base):
            console.print(shown)
    lines = [[cell.strip() for cell in text.strip("│").split("│")] for text in capture.get().splitlines()]
    return [cell for cells in lines if cells[0] == name for cell in cells[1:]]


def test_ratios_say_how_many_times_as_good_the_base_is():
    found = [
        row("pingpong-8", "us", 2.0, p99=4.0),
        row("pingpong-8", "them", 5.0, p99=6.0),
        row("awaits-64", "us", 300.0),
        row("awaits-64", "them", 100.0),
        row("idle", "us", 0.01),
        row("idle", "them", 99.7),
    ]
    cells = show(found, "us", "them")
    assert cells[:2] == ["5 (2.5)", "6 (1.5)"]
    assert cells[5] == "100 (3)"  # more is better
    assert cells[7] == "99.7"  # processor time has no ratio
    assert set(cells[2:5]) == set(cells[8:]) == {"-"}
    assert show(found, "us", "us")[:2] == ["2", "4"]


def test_without_the_base_there_are_no_ratios():
    found = [row("stream-1M", "them", 5.0)]
    assert show(found, "us", "them")[9] == "5"
    assert table.ratio(found[0], row("stream-1M", "us", 0.0), works.find("stream-1M")) is None


def test_disturbed_figures_are_marked():
    found = [row("pages-1K", "them", 0.0042, others=0.4), row("pages-64K", "them", 7.0, others=0.1)]
    cells = show(found, "us", "them")
    assert cells[11] == "7"
    assert cells[12] == "0.0042~"


# ---- a busy machine ----


def test_disturbed_samples_are_replaced():
    samples = Samples(runs=3, patience=60.0)
    for others, value in ((0.5, "a"), (0.0, "b"), (0.9, "c"), (0.1, "d")):
        assert samples.wanted
        samples.add(others, value)
        assert samples.disturbed == (others > 0.15)
    assert samples.wanted
    samples.add(0.0, "e")
    assert not samples.wanted
    assert sorted(value for _, value in samples.best) == ["b", "d", "e"]


def test_patience_has_an_end():
    samples = Samples(runs=2, patience=0.0)
    samples.add(0.9, "a")
    assert samples.wanted
    samples.add(0.8, "b")
    assert not samples.wanted
    assert len(samples.best) == 2


def test_others_are_told_from_us():
    ours = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        mine, all_of_it = Load([os.getpid(), ours.pid]), Load()
        began, before = time.monotonic(), processor_seconds([ours.pid])
        while (used := processor_seconds([ours.pid]) - before) < 0.5:
            time.sleep(0.05)
        with_us, without_us = all_of_it.cores(), mine.cores()
    finally:
        ours.kill()
        ours.wait()
    # However busy the machine is, the difference is what ours had of it.
    had = used / (time.monotonic() - began)
    assert 0.5 * had < with_us - without_us < 1.5 * had + 0.2
    mine.start()
    assert mine.cores() >= 0  # too short to tell: as before


# ---- the peers ----


class Local(Peer):
    """A peer that needs nothing but what the tests have."""

    @property
    def folder(self):
        return Path(sys.executable).parent.parent


def run_local(variant, works="pingpong-8", timeout=50.0):
    lines = []
    run_peer(Local("here", "uvloop", variant), [f"--works={works}", "--runs=2", "--patience=0"], timeout, lines.append)
    return lines


def test_a_peer():
    lines = run_local("unix", "pingpong-8,scatter-7K,awaits-64")
    assert [(found["work"], found["run"]) for found in lines] == [
        (work, run) for work in ("pingpong", "scatter", "awaits") for run in (1, 2)
    ]
    for found in lines:
        assert found.keys() - {"name", "others"} == LINE - {"program"}
        assert found["name"] == "here"
        assert found["provider"] == "uvloop unix"
        assert found["value"] > 0


@pytest.mark.parametrize(
    ("variant", "works", "said"),
    [("carrier pigeon", "pingpong-8", "KeyError: 'carrier pigeon'"), ("unix", "juggling", "no work juggling")],
    ids=["target", "leader"],
)
def test_a_peer_that_fails(variant, works, said):
    """The reason is what the one says that failed, not the other's surprise."""
    began = time.monotonic()
    with pytest.raises(PeerFailed, match=f"exit status 1: .*{said}"):
        run_local(variant, works)
    assert time.monotonic() - began < 45  # not until it took too long


def test_a_peer_that_hangs():
    with pytest.raises(PeerFailed, match="it took too long"):
        run_local("unix", timeout=0.0)


def test_each_peer_is_complete():
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    for peer in PEERS:
        assert peer.requirements.is_file(), peer.name
        assert (ROOT / "benchmarks" / "peers" / f"{peer.module}.py").is_file()


def test_the_runner(programs, tmp_path):
    ours, written = tmp_path / "ours.json", tmp_path / "all.json"
    ours.write_text(json.dumps({"rows": [row("pingpong-8", "us", 2.0, p99=4.0)]}))
    arguments = ["c-shm-poll", "--works=pingpong-8,idle", "--runs=2", "--patience=0", "--idle-seconds=1"]
    command = [sys.executable, "-m", "benchmarks.peers.run", *arguments, f"--include={ours}", f"--json={written}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(written.read_text())
    assert [(made["name"], rows.key(made)) for made in found["rows"]] == [
        ("us", "pingpong-8"),
        ("c-shm-poll", "pingpong-8"),
        ("c-shm-poll", "idle"),
    ]
    assert len(found["rows"][1]["runs"]) == 2
    assert found["failed"] == {}
    assert found["machine"]["cores"] >= 1
    assert "how many times as good us is" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "no such name: nobody"),
        (["--works=pages-3K"], "no work pages-3K; one of: pingpong-8, "),
        (["--include=/nowhere.json"], "no file of results: FileNotFoundError"),
    ],
)
def test_the_runner_says_what_it_cannot_take(arguments, said):
    command = [sys.executable, "-m", "benchmarks.peers.run", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert result.returncode == 2
    assert said in result.stderr
