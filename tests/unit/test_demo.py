# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The demos: two real processes, every byte checked, and an end to every wait."""

import asyncio
import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from helpers.process import ROOT, environment, take_interrupts
from helpers.sides import are_gone, children
from pplx_async import EngineOptions, topology
from pplx_async.cli import demo_pages, demo_run, demo_weights, main, safetensors_file, side_process
from pplx_async.cli.demo_progress import ProgressView
from pplx_async.cli.failures import CommandError, ExitCode, Failure
from pplx_async.cli.output import Output
from pplx_async.cli.safetensors_file import SafetensorsFile
from pplx_async.cli.side_link import Job, Moved, Phase, split_in_messages

tcp_only = pytest.mark.parametrize("way", ["tcp"], indirect=True)  # two processes


def start(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "pplx_async.cli.main", "demo", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
        preexec_fn=take_interrupts,
    )


def demo(*arguments, cwd=ROOT, code=0):
    """Run a demo to its end, and return what it says to programs."""
    with start(*arguments, "--json", cwd=cwd) as process:
        out, err = process.communicate(timeout=50)
    assert process.returncode == code, err
    return json.loads(out)


@functools.cache
def libraries():
    """Each fabric of each libfabric that is here. Demos have their own processes, so one may take each."""
    return [
        (str(device["provider"]), row["library"])
        for row in topology.survey(EngineOptions())
        for device in row["devices"]
    ]


@pytest.fixture(params=["loopback", "tcp", "tcp;ofi_rxm"])
def way(request):
    """Options of a demo for one fabric after the other."""
    if request.param == "loopback":
        return ["--fabric", "loopback"]
    # The last library that has it: tcp;ofi_rxm is the older ones' way.
    found = [library for fabric, library in libraries() if fabric == request.param]
    if not found:
        pytest.skip(f"no libfabric here has {request.param}")
    return ["--fabric", request.param, "--library", found[-1]]


@pytest.fixture
def checkpoint(tmp_path):
    """A file with more tensors than one message can list, an empty one and odd sizes among them."""
    random = np.random.default_rng(3)
    tensors = {f"layer.{i}.weight": random.integers(0, 256, (i % 7, 33), dtype=np.uint8) for i in range(300)}
    tensors["große Matrix"] = random.standard_normal((700, 1000)).astype(np.float16)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "np"})
    return path


@pytest.fixture
def large_checkpoint(tmp_path):
    """One that takes a while: 512 MB of zeros, which need no disk."""
    tensor_nbytes, count = 32 << 20, 16
    entries = {
        f"layer.{i}": {
            "dtype": "U8",
            "shape": [tensor_nbytes],
            "data_offsets": [i * tensor_nbytes, (i + 1) * tensor_nbytes],
        }
        for i in range(count)
    }
    header = json.dumps(entries).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + tensor_nbytes * count)
    return path


# ---- it works ----


def test_weights(way, checkpoint):
    result = demo("weights", str(checkpoint), *way)
    tensors = safetensors.numpy.load_file(checkpoint)
    assert result["ok"] is True
    assert result["tensors"] == result["verified"] == len(tensors)
    assert result["nbytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert result["wrong"] == []
    assert result["fabric"] == way[1]
    assert result["processes"] == (1 if way[1] == "loopback" else 2)
    assert result["seconds"] > 0
    assert set(result["apart"]) == {"hash", "register_file", "allocate", "register_tensors", "check"}


def test_pages(way):
    result = demo("pages", "--pages", "1500", "--page-nbytes", "1000", "--seed", "5", *way)
    assert result["ok"] is True
    assert result["verified"] == 3000
    assert result["damaged"] == 0
    assert result["nbytes"] == 3_000_000
    assert result["fabric"] == way[1]


@pytest.mark.parametrize("more", [("--domains", "2"), ("--domains", "4"), ("--loop", "uvloop")], ids=" ".join)
def test_domains_and_loops(way, more, checkpoint):
    weights = demo("weights", str(checkpoint), *way, *more)
    assert weights["ok"] is True
    pages = demo("pages", "--pages", "300", *way, *more)
    assert pages["ok"] is True
    for result in (weights, pages):
        if more[0] == "--domains":
            assert len(result["domains"]) == int(more[1])
        else:
            assert result["loop"] == more[1]


@pytest.mark.parametrize(
    "arguments", [("--pages", "1", "--page-nbytes", "1"), ("--pages", "3", "--page-nbytes", "99999")]
)
def test_pages_of_odd_sizes(arguments):
    result = demo("pages", *arguments, "--fabric", "loopback")
    assert result["verified"] == 2 * int(arguments[1])


@tcp_only
def test_it_says_it_to_humans_too(way, checkpoint, tmp_path):
    # From another directory than the package's, and one with a module that would be in the way.
    (tmp_path / "random.py").write_text("raise ImportError('the wrong module')")
    command = [
        sys.executable,
        "-P",
        "-m",
        "pplx_async.cli.main",
        "demo",
        "weights",
        "model.safetensors",
        *way,
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=tmp_path, env=environment())
    assert result.returncode == 0, result.stderr
    assert "verified  301/301 tensors by SHA-256" in result.stdout
    assert "between two processes" in result.stdout
    assert "GB/s" in result.stdout
    assert "libfabric" in result.stdout  # which one, and why
    assert "writing" in result.stderr
    assert "writing" not in result.stdout


def test_the_model(tmp_path):
    try:
        path = safetensors_file.model_file()
    except CommandError as error:
        pytest.skip(str(error))
    result = demo("weights", "--fabric", "loopback")
    assert result["file"] == str(path)
    assert result["verified"] == result["tensors"] > 100
    assert result["nbytes"] > 90_000_000


# ---- what is wrong is noticed ----


def test_a_tensor_that_differs(checkpoint, monkeypatch):
    hash_all = demo_weights._hash

    async def hash_wrong(views, phase, link):
        digests = await hash_all(views, phase, link)
        return [bytes(32), *digests[1:]] if phase == "hashing" else digests

    monkeypatch.setattr(demo_weights, "_hash", hash_wrong)
    arguments = ["demo", "weights", str(checkpoint), "--fabric", "loopback", "--json"]
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == ExitCode.FAILED
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert found["verified"] == found["tensors"] - 1
    assert found["wrong"] == [SafetensorsFile.open(checkpoint).tensors[0].name]
    assert found["error"]["kind"] == "VerificationFailed"


async def test_pages_that_differ():
    class Link:
        def emit(self, event):
            pass

    plan = demo_pages._Plan("caller", {"pages": 50, "page_nbytes": 64, "seed": 0})
    target = np.zeros((plan.slots, 64), dtype=np.uint8)
    target[plan.remote_pages] = plan.source[plan.local_pages]
    assert await demo_pages._check(target, plan, Link()) == (50, 0)
    target[plan.remote_pages[7], 63] ^= 1
    free = next(slot for slot in range(plan.slots) if slot not in plan.remote_pages)
    target[free, 0] = 1
    assert await demo_pages._check(target, plan, Link()) == (49, 1)


def test_both_sides_of_pages_plan_the_same():
    arguments = {"pages": 20, "page_nbytes": 16, "seed": 9}
    once, again = (demo_pages._Plan("listener", arguments) for _ in range(2))
    assert (once.source == again.source).all()
    assert (once.remote_pages == again.remote_pages).all()
    other = demo_pages._Plan("caller", arguments)
    assert not (once.source == other.source).all()


# ---- every wait has an end ----


@tcp_only
@pytest.mark.parametrize("delay", [0.0, 0.4], ids=["at once", "under way"])
@pytest.mark.parametrize("victim", ["receiver", "sender"])
def test_a_side_that_dies_ends_the_demo(way, victim, delay, large_checkpoint):
    with start("weights", str(large_checkpoint), *way, "--json") as process:
        sides = children(process)
        time.sleep(delay)
        os.kill(sides[victim], signal.SIGKILL)
        out, err = process.communicate(timeout=50)
    assert process.returncode == ExitCode.FAILED, err
    assert json.loads(out)["error"]["message"] == f"{victim}: its process was ended by SIGKILL before it was through"
    assert are_gone(sides.values())


@tcp_only
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED), (signal.SIGKILL, -signal.SIGKILL)],
    ids=lambda value: getattr(value, "name", ""),
)
@pytest.mark.parametrize("delay", [0.0, 0.4], ids=["at once", "under way"])
def test_no_process_is_left_behind(way, number, code, delay, large_checkpoint):
    with start("weights", str(large_checkpoint), *way) as process:
        sides = children(process)
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate(timeout=50)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert are_gone(sides.values())


def test_interrupting_loopback(large_checkpoint):
    with start("weights", str(large_checkpoint), "--fabric", "loopback", "--json") as process:
        # Its engines are open once there are their threads.
        while len(list(Path(f"/proc/{process.pid}/task").iterdir())) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=50)
    assert process.returncode == ExitCode.INTERRUPTED
    assert json.loads(out)["error"]["message"] == "interrupted"
    assert "Traceback" not in err


async def test_nothing_moves():
    with ProgressView(Console(file=io.StringIO())) as view:
        view.on_event("sender", Phase("writing", 100))
        view.on_event("sender", Moved(40))
        with pytest.raises(CommandError, match=r"nothing moved for 0.1 s \(sender: writing, 40 B of 100 B\)"):
            await side_process.until_stopped(asyncio.sleep(60), view, 0.1)


def test_the_same_report_again_is_no_progress(monkeypatch):
    view = ProgressView(Console(quiet=True))
    view.on_event("sender", Phase("writing", 100))
    view.on_event("sender", Moved(40))
    changed = view.changed
    view.on_event("sender", Moved(40))
    assert view.changed == changed
    view.on_event("sender", Moved(41))
    assert view.changed > changed


def test_a_bug_in_a_side_is_shown(capsys):
    jobs = [Job("pages", side, {}, {}) for side in ("nobody", "no one")]
    with pytest.raises(CommandError, match="its process was ended by exit code 1 before it was through"):
        demo_run.run(jobs, Output(json=True, debug=False), in_process=False, timeout=30)
    assert "KeyError: 'nobody'" in capsys.readouterr().err


def test_the_cause_is_reported_and_not_its_echo():
    cause, echo = Failure("RegistrationError", "no memory"), Failure("PeerLost", "gone")
    died = Failure("ProcessEnded", "its process was ended by SIGKILL")
    assert str(side_process.most_telling({"sender": echo, "receiver": cause})) == "receiver: no memory"
    assert (
        str(side_process.most_telling({"sender": died, "receiver": echo})) == "sender: its process was ended by SIGKILL"
    )
    assert str(side_process.most_telling({"sender": echo})) == "sender: gone"


# ---- messages ----


class Part(msgspec.Struct):
    part: int
    parts: int
    items: list[bytes]


@given(st.lists(st.binary(max_size=150), max_size=60), st.integers(220, 2000))
def test_lists_are_cut_into_messages(items, limit):
    messages = split_in_messages(items, Part, limit)
    assert all(len(message) <= limit for message in messages)
    parts = [msgspec.msgpack.decode(message, type=Part) for message in messages]
    assert [part.part for part in parts] == list(range(len(messages)))
    assert {part.parts for part in parts} == {len(messages)}
    assert [item for part in parts for item in part.items] == items


def test_an_item_that_fits_no_message():
    with pytest.raises(CommandError, match="does not fit") as caught:
        split_in_messages([bytes(300)], Part, 256)
    assert "PPLX_ASYNC_MESSAGE_NBYTES" in caught.value.hint


# ---- the file format ----


def test_the_file_is_read_as_its_own_library_reads_it(checkpoint):
    file = SafetensorsFile.open(checkpoint)
    tensors = safetensors.numpy.load_file(checkpoint)
    assert {tensor.name for tensor in file.tensors} == set(tensors)
    for tensor in file.tensors:
        assert file.data[tensor.start : tensor.stop] == tensors[tensor.name].tobytes()
        assert tensor.shape == tensors[tensor.name].shape
        assert tensor.nbytes == tensors[tensor.name].nbytes


@given(st.data())
def test_a_file_that_is_cut_short_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    safetensors.numpy.save_file({"a": np.arange(9), "b": np.ones((2, 2))}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CommandError, match="is no safetensors file"):
        SafetensorsFile.open(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(CommandError):
        SafetensorsFile.open(path)


def test_a_file_without_data(tmp_path):
    path = tmp_path / "empty.safetensors"
    safetensors.numpy.save_file({"a": np.zeros((0, 3))}, path)
    with pytest.raises(CommandError, match="nothing to move"):
        SafetensorsFile.open(path)
