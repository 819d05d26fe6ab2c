# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measuring between GPUs: all of it in small on the tests' own libcuda, its arguments, its tables."""

import asyncio
import ctypes
import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from benchmarks.figures import insert
from benchmarks.gpu import about, figures, lines, measure, pair, peers, side, works
from benchmarks.gpu.measure import _parse, row_of
from benchmarks.gpu.pair import Pair
from benchmarks.gpu.stamps import Stamps
from helpers.engines import SOON
from helpers.process import ROOT, environment
from helpers.require import FAKE_CUDA_LIBRARY, find_fabric
from pplx_async.cli.bench.c_program import C_FOLDER, CProgram, ProgramFailed
from pplx_async.cli.bench.rows import key, make_line

# All that the tests' own libcuda looks at.
KERNELS = ".version 7.0\n// bench_store bench_count bench_gather bench_compute\n"
SMALL = [works.shrink(work) for work in works.WORKS]
NAMES = ("c", "spin", "eventfd")


@pytest.fixture(scope="module")
def built():
    """The folder with the C programs; skips where nothing can build them, or the tests' own libcuda."""
    reason = None if shutil.which("cc") else "no cc on this machine"
    reason = reason or find_fabric("ipc-gpu").missing
    if reason:
        pytest.skip(reason)
    command = ["benchmarks/gpu/build.sh", "programs"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in result.stderr
    return C_FOLDER


@pytest.fixture
def kernels(tmp_path):
    path = tmp_path / "kernels.ptx"
    path.write_text(KERNELS)
    return path


def gpu_sh(*arguments, timeout=50):
    """Run the script; with the tests' own libcuda it takes what is here for a GPU."""
    command = ["benchmarks/gpu.sh", "--python", sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)


# ---- all of it, in small ----


@pytest.mark.deadline(150)
@pytest.mark.parametrize("gpus", [1, 2])
def test_all_works_are_measured(built, kernels, tmp_path, gpus):
    """On one GPU in one process, on two in two."""
    options = ["--quick", "--gpus", gpus, "--library", FAKE_CUDA_LIBRARY, "--kernels", kernels, "--results", tmp_path]
    result = gpu_sh(*options, "measure", timeout=140)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "measure: fine" in (tmp_path / "gpu-sections.txt").read_text()
    found = json.loads((tmp_path / f"gpu-{gpus}.json").read_text())
    assert found["failed"] == {}
    assert [(key(row), row["name"]) for row in found["rows"]] == [(w.key, name) for w in SMALL for name in NAMES]
    for row in found["rows"]:
        assert len(row["runs"]) == 1
        if row["unit"] == "GB/s":
            assert row["value"] > 0
        else:
            assert row["value"] == row["p50"] <= row["p99"] <= row["p999"] <= row["max"]
    assert found["cards"] == ["the tests' own"] * gpus
    assert (found["gpus"], found["cuda"], found["quick"]) == (gpus, "13.0", True)
    assert "benchmarks.gpu.measure" in found["command"]
    assert (tmp_path / f"gpu-{gpus}.png").read_bytes().startswith(b"\x89PNG")
    text = figures.render(found)
    assert "quick: not to be quoted" in text
    assert len(text.splitlines()) > len(SMALL)


def measure_here(kernels, folder, works):
    options = ["--quick", "--gpus=1", f"--library={FAKE_CUDA_LIBRARY}", f"--kernels={kernels}", f"--works={works}"]
    status = measure.main([*options, f"--results={folder}"])
    return status, json.loads((folder / "gpu-1.json").read_text())


def test_a_work_that_fails_leaves_the_others(built, kernels, tmp_path, monkeypatch):
    """The next one has a new pair: whatever was under way in the old one is not measured beside."""
    opened, opens = [], Pair.open

    async def count(pair):
        opened.append(pair)
        await opens(pair)

    async def fail(pair, work):
        raise RuntimeError(f"not {work.key}")

    monkeypatch.setattr(Pair, "open", count)
    monkeypatch.setattr(Pair, "_gate", fail)
    status, found = measure_here(kernels, tmp_path, "write-8,gate-8,watch-8")
    assert status == 1
    assert found["failed"] == {f"gate-8 {name}": "RuntimeError: not gate-8" for name in ("spin", "eventfd")}
    assert len(opened) == 4
    assert [(key(row), row["name"]) for row in found["rows"]] == [
        *(("write-8", name) for name in NAMES),
        ("gate-8", "c"),
        *(("watch-8", name) for name in NAMES),
    ]


def test_who_opens_a_gate_pauses_before_the_clock_starts(built, kernels, tmp_path, monkeypatch):
    """And the one that waits in it does not: what comes after its pause would take up some of the chance."""
    paused = []
    monkeypatch.setattr(pair, "pause", lambda: paused.append("leader"))
    monkeypatch.setattr(side, "pause", lambda: paused.append("target"))
    status, found = measure_here(kernels, tmp_path, "gate-8,gated-8")
    assert (status, found["failed"]) == (0, {})
    counts = [row["count"] for row in found["rows"] if row["name"] != "c"]
    assert len(counts) == 4
    assert set(paused) == {"leader"}
    assert len(paused) >= sum(counts)


def test_pauses_are_long_enough_and_of_many_lengths(monkeypatch):
    monkeypatch.setattr(side, "_random", random.Random(1))
    drawn = random.Random(1)
    lengths = set()
    for _ in range(200):
        began = time.monotonic_ns()
        side.pause()
        took, length = time.monotonic_ns() - began, drawn.uniform(20_000, 60_000)
        assert took >= length
        lengths.add(length)
    assert max(lengths) - min(lengths) > 30_000


def test_other_bytes_are_a_failure(built, kernels, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_CUDA_SKIP_COPIES", "1")
    status, found = measure_here(kernels, tmp_path, "stream-1M")
    assert status == 1
    assert found["rows"] == []
    assert found["failed"].keys() == {f"stream-1M {name}" for name in NAMES}
    assert all("other bytes have arrived" in reason for reason in found["failed"].values())


def test_a_section_that_fails_stops_no_other_one(built, tmp_path):
    """There are no kernels: everybody fails, it says so, and the section after it runs."""
    options = ["--library", FAKE_CUDA_LIBRARY, "--kernels", tmp_path / "none.ptx", "--results", tmp_path]
    result = gpu_sh(*options, "--quick", "--gpus", 1, "measure", "peers")
    assert result.returncode == 1
    sections = (tmp_path / "gpu-sections.txt").read_text()
    assert "measure: failed with 1" in sections
    assert "peers: fine" in sections
    found = json.loads((tmp_path / "gpu-1.json").read_text())
    assert found["rows"] == []
    assert "No such file" in found["failed"]["write-8 c"]
    assert "FileNotFoundError" in found["failed"]["write-8 spin"]
    assert json.loads((tmp_path / "gpu-2-peers.json").read_text())["absent"].keys() == peers.PEERS.keys()
    assert (tmp_path / "gpu.log").read_text() == result.stdout


def test_a_section_that_takes_too_long(built, kernels, tmp_path):
    options = ["--library", FAKE_CUDA_LIBRARY, "--kernels", kernels, "--results", tmp_path]
    result = gpu_sh(*options, "measure=1", "peers=30")
    assert result.returncode == 1
    assert "measure: took too long" in result.stdout
    assert "peers: fine" in result.stdout
    gone(tmp_path)


def test_an_interrupt_ends_all_of_it(built, kernels, tmp_path):
    command = ["benchmarks/gpu.sh", "--python", sys.executable, "--library", FAKE_CUDA_LIBRARY, "--kernels", kernels]
    with subprocess.Popen([*command, "--results", tmp_path, "measure"], cwd=ROOT, env=environment()) as process:
        until(lambda: "gpu_bench" in "".join(running(tmp_path)), "C is running")
        process.terminate()
    assert process.returncode == 130
    gone(tmp_path)


def running(folder):
    """Command lines of processes that name this folder."""
    return [command for pid in os.listdir("/proc") if pid.isdigit() and str(folder) in (command := _command(pid))]


def until(condition, what):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, f"not within {SOON} s: {what}"
        time.sleep(0.01)


def gone(folder):
    until(lambda: not running(folder), "all processes have ended")


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read()
    except OSError:
        return ""


def test_without_a_gpu_nothing_passes(tmp_path):
    """The tests would take the tests' own libcuda."""
    if _has_gpu():
        pytest.skip("this machine has a GPU")
    result = gpu_sh("--results", tmp_path, "test")
    assert result.returncode == 1
    assert "test: failed" in result.stdout
    assert "passed" not in result.stdout


def _has_gpu():
    count = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["juggle"], "no section or option juggle"),
        (["--loudly"], "no section or option --loudly"),
        (["test=soon"], "no number of seconds: test=soon"),
        (["--results"], "--results needs a value"),
    ],
)
def test_wrong_usage(arguments, said):
    result = gpu_sh(*arguments)
    assert result.returncode == 2
    assert said in result.stderr


def test_all_sections_fit_into_ten_minutes():
    limits = [int(line.split()[-2]) for line in gpu_sh("--help").stdout.splitlines() if line.endswith(" s")]
    assert len(limits) == 6
    assert sum(limits) <= 590


def test_works_are_chosen():
    options = _parse(["--results", ".", "--works", "gate-8,stream-64M"])
    assert [work.key for work in options.works] == ["gate-8", "stream-64M"]
    with pytest.raises(SystemExit):
        _parse(["--results", ".", "--works", "gate-9"])


# ---- the C program ----


def program(work, kernels, *more):
    arguments = [f"--library={FAKE_CUDA_LIBRARY}", f"--kernels={kernels}", f"--arena={1 << 26}", *more]
    return CProgram(C_FOLDER / "gpu_bench", work, arguments)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--arena=4"], "this does not fit"),
        (["--gpus=9"], "there are 2 GPUs"),
        (["--library=/nowhere.so"], "cannot open shared object file"),
        (["--kernels=/dev/null"], "is empty"),
    ],
)
def test_the_c_program_says_what_it_cannot_do(built, kernels, more, said):
    with program(SMALL[0], kernels, *more) as running, pytest.raises(ProgramFailed, match=said):
        running.step()


def test_a_repetition_of_c_has_an_end(built, kernels):
    with program(SMALL[0], kernels, "--count=100000000", "--timeout=1") as running, pytest.raises(ProgramFailed):
        running.step()


def test_kernels_compile(built):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    target = C_FOLDER / "gpu_kernels.ptx"
    target.unlink(missing_ok=True)
    result = subprocess.run(["benchmarks/gpu/build.sh"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    text = target.read_text()
    for name in ("bench_store", "bench_count", "bench_gather", "bench_compute"):
        assert f".entry {name}(" in text


# ---- stamps ----


async def test_stamps_are_those_of_the_values_in_order(built):
    word = ctypes.c_uint64()
    stamps = Stamps(built / "gpu_stamps.so", ctypes.addressof(word), 3)
    for value in (1, 2, 3):
        await asyncio.sleep(0.001)
        word.value = value
    seen = await stamps.wait()
    assert len(seen) == 3
    assert seen == sorted(seen)


async def test_stamps_end_when_they_are_stopped(built):
    word = ctypes.c_uint64(1)
    stamps = Stamps(built / "gpu_stamps.so", ctypes.addressof(word), 3)
    stamps.stop()
    assert len(await stamps.wait()) <= 1


# ---- works and figures ----


def test_works_fit_into_the_arena():
    for chosen in (works.WORKS, SMALL, SMALL[:1]):
        arena = works.arena_nbytes(chosen)
        assert arena & (arena - 1) == 0
        for work in chosen:
            assert work.nbytes * work.inflight <= arena
            if work.name == "pages":
                assert work.count * work.nbytes <= arena
    assert len({work.key for work in works.WORKS}) == len({work.key for work in SMALL}) == len(works.WORKS)
    assert works.AIMS.keys() <= {work.key for work in works.WORKS} == lines.TITLES.keys()


def test_a_summary_has_percentiles_by_the_nearest_rank():
    figure = works.summary([float(i) for i in range(1000, 0, -1)])
    assert figure == {"value": 500.0, "p50": 500.0, "p99": 990.0, "p999": 999.0, "max": 1000.0}
    assert set(works.summary([7.0]).values()) == {7.0}


def line(work, name, **measured):
    about = {"name": name, "provider": "p", "wait": "w", "run": 1, "runs": 1}
    return make_line(works.find(work), about, measured)


def test_the_longest_of_all_repetitions_is_the_longest():
    measured = [works.summary([1.0, 2.0, 30.0]), works.summary([1.0, 4.0, 5.0]), works.summary([1.0, 3.0, 9.0])]
    row = row_of([line("watch-8", "spin", **each) for each in measured], "spin")
    assert (row["value"], row["p50"], row["p99"], row["max"]) == (3.0, 3.0, 9.0, 30.0)


def rows(work, **values):
    return [row_of([line(work, name, **measured)], name) for name, measured in values.items()]


ROWS = [
    *rows("write-8", c={"value": 8.0, "p50": 8.0, "p99": 20.0}, spin={"value": 23.0, "p50": 23.0, "p99": 40.0}),
    *rows("watch-8", spin={"value": 12.1, "p50": 12.1, "p99": 20.0, "max": 499.0}),
    *rows("stream-1M", c={"value": 200.0}, spin={"value": 180.0}, eventfd={"value": 179.0}),
]


def test_aims_are_beside_c_or_absolute():
    found = {(each.title.strip(), each.aim): each.met for each in lines.lines_of(ROWS)}
    assert found[lines.TITLES["write-8"], "<= C + 15"] == {"spin": True}
    assert found[lines.TITLES["watch-8"], "<= 12"] == {"spin": False}
    assert found["longest", "<= 500"] == {"spin": True}
    assert found[lines.TITLES["stream-1M"], ">= 0.9 C"] == {"spin": True, "eventfd": False}
    (alone,) = [each for each in lines.lines_of(ROWS[1:2]) if each.aim]
    assert alone.met == {"spin": None}  # no C to compare with


def result(**values):
    measured = {"gpus": 2, "cards": ["H"] * 2, "driver": "580.1", "cuda": "13.0", "versions": {"numpy": "2"}}
    measured |= {"date": "2026-11-29", "runs": 5, "quick": False, "rows": ROWS, "failed": {}, "absent": {}}
    return measured | values


def test_figures_go_into_the_page():
    text = figures.render(result(failed={"gate-8 c": "too bad"}))
    assert "### Two GPUs" in text
    assert "H, driver 580.1, CUDA 13.0, numpy 2, 2026-11-29, medians of 5 repetitions." in text
    assert "| stream of 1 MiB, 16 in flight | GB/s | 200 | 180 | 179 | `>= 0.9 C` (spin: yes, eventfd: no) |" in text
    assert "- `gate-8 c` failed: too bad" in text
    page = figures.PAGE.read_text()
    once = insert(page, text, figures.MARKS)
    assert once != page
    assert insert(once, text, figures.MARKS) == once


def test_peers_that_are_absent_say_why():
    found = result(gpus=1, rows=[], absent={"nccl": "it takes two GPUs, and there is 1"})
    text = figures.render_peers(found)
    assert "- `nccl` is absent: it takes two GPUs, and there is 1" in text
    assert "---" not in text
    with_rows = figures.render_peers(result(rows=rows("write-8", nccl={"value": 60.0, "p50": 60.0, "p99": 99.0})))
    assert "| write of 8 B | us | 60 (99) |" in with_rows
    about_it = {"name": "ucxx", "provider": "p", "wait": "w", "run": 1, "runs": 1}
    quick = row_of([make_line(works.shrink(works.find("stream-64M")), about_it, {"value": 2.0})], "ucxx")
    assert "| stream-4M | GB/s | 2 |" in figures.render_peers(result(rows=[quick]))


def test_without_results_the_page_is_left_alone(monkeypatch, tmp_path):
    page = tmp_path / "gpu.md"
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "PAGE", page)
    figures.main()
    assert not page.exists()
    page.write_text(f"a\n{figures.MARKS[0]}\n{figures.MARKS[1]}\nb\n")
    (tmp_path / "gpu-2.json").write_text(json.dumps(result()))
    figures.main()
    assert "### Two GPUs" in page.read_text()


# ---- peers ----


def test_a_peer_takes_two_gpus_and_a_package(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {"nccl": "json", "ucxx": "no_such_package"})
    assert peers.absence("nccl", 2) is None
    assert peers.absence("nccl", 1) == "it takes two GPUs, and there is 1"
    assert peers.absence("nccl", 0) == "it takes two GPUs, and there is none"
    assert peers.absence("ucxx", 2) == "no_such_package is not installed"


def test_a_peer_that_fails_says_why():
    with pytest.raises(peers.PeerFailed, match="required: --results; the other rank: "):
        peers.run("measure", [])


def test_a_peer_that_hangs_is_ended(tmp_path):
    with pytest.raises(peers.PeerFailed, match="it took too long"):
        peers.run("measure", [str(tmp_path)], seconds=0.0)
    assert running(tmp_path) == []


# ---- about ----


def test_what_a_result_was_measured_with():
    said = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs)"
    assert about.driver_of(said) == "580.159.04"
    assert about.driver_of("nothing") is None
    assert about.command_of(["/usr/bin/python3", "-m", "x", "--a b"]) == "python3 -m x '--a b'"
    assert about.versions(["pytest", "no-such-package"]).keys() == {"pytest"}


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "gpu-1.json"
    about.write(path, {"rows": []})
    with pytest.raises(TypeError):
        about.write(path, {"rows": object()})
    assert json.loads(path.read_text()) == {"rows": []}
