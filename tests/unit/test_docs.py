# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation says what is so: its code runs, its tables and names are the code's own.

How a page's code is run. A fenced ``python`` block with ``asyncio.run`` in it is a whole program and
runs in a process of its own. The other blocks of one ``##`` section run in order, in one event loop
and with common names; `await` may stand anywhere. What a section needs besides is named in an HTML
comment in front of its first block, ``<!-- setup: NAME key=value ... -->``: see `SETUPS`. A ``text``
block right behind a ``python`` block is what that prints; ``...`` stands for anything.
"""

import ast
import asyncio
import builtins
import contextlib
import dataclasses
import doctest
import importlib
import inspect
import io
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import uvloop

import pplx_async
from helpers.process import environment
from helpers.require import find_fabric
from pplx_async import completion, errors, fabric, lowlevel, verbs
from pplx_async._core.memory import RemoteCounterRecord
from pplx_async.memory import ElementView
from pplx_async.options import EngineOptions
from pplx_async.testing import FaultPlan

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
EVERYWHERE = [*PAGES, ROOT / "pplx_async" / "_core" / "csrc" / "DESIGN.md"]
LIMIT = 50.0  # of one section, on a machine that does other things too; alone it takes far below 5 s


# ---- what a page holds ----


@dataclasses.dataclass
class Block:
    code: str
    line: int
    section: str
    setup: str | None  # of the nearest comment above, in this section
    output: str | None = None


def blocks_of(page):
    """Every fenced python block of a page, with what surrounds it."""
    blocks, section, setup, fence, body, start, last_end = [], "", None, None, [], 0, -2
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if fence is not None:
            if line.strip() != "```":
                body.append(line)
                continue
            text = "\n".join(body) + "\n"
            if fence == "python":
                blocks.append(Block(text, start + 1, section, setup))
                last_end = number
            elif fence == "text" and blocks and start <= last_end + 2:
                blocks[-1].output = text
            fence = None
        elif match := re.match(r"```(\w*)$", line):
            fence, body, start = match[1], [], number
        elif match := re.match(r"## (.*)", line):
            section, setup = match[1], None
        elif match := re.match(r"<!-- setup: (.*) -->", line):
            setup = match[1]
    assert fence is None, f"{page.name}:{start}: the block has no end"
    return blocks


def is_program(block):
    return "asyncio.run(" in block.code


def sections():
    for page in PAGES:
        found = {}
        for block in blocks_of(page):
            if not is_program(block):
                found.setdefault(block.section, []).append(block)
        for section, blocks in found.items():
            yield pytest.param(page, blocks, id=f"{page.stem}: {section}")


def programs():
    for page in PAGES:
        for block in blocks_of(page):
            if is_program(block):
                yield pytest.param(page, block, id=f"{page.stem}: {block.section}")


# ---- running it ----


@contextlib.asynccontextmanager
async def nothing():
    yield {"__builtins__": builtins, "asyncio": asyncio, "pplx_async": pplx_async}


@contextlib.asynccontextmanager
async def pair(**options):
    """Two connected engines, as the tutorial introduces them."""
    async with (
        pplx_async.TransferEngine(name="sender", **options) as sender,
        pplx_async.TransferEngine(name="receiver", **options) as receiver,
    ):
        to_receiver = await sender.connect(receiver.address)
        to_sender = await receiver.accept()
        async with nothing() as names:
            yield names | {
                "TransferEngine": pplx_async.TransferEngine,
                "sender": sender,
                "receiver": receiver,
                "to_receiver": to_receiver,
                "to_sender": to_sender,
            }


@contextlib.asynccontextmanager
async def memory(nbytes=1 << 20, **options):
    """The same, and a source, a target and a counter."""
    import numpy as np

    async with pair(**options) as names:
        source = np.arange(nbytes, dtype=np.uint8)
        target = np.zeros(nbytes, np.uint8)
        local = await names["sender"].register(source)
        region = await names["receiver"].register(target)
        counter = names["receiver"].counter(peer=names["to_sender"])
        remote = names["to_receiver"].region(region.to_bytes())
        remote_counter = names["to_receiver"].counter(counter.to_bytes())
        yield names | {
            "np": np,
            "source": source,
            "target": target,
            "local": local,
            "region": region,
            "remote": remote,
            "counter": counter,
            "remote_counter": remote_counter,
        }


@contextlib.asynccontextmanager
async def certificate():
    """A self-signed certificate of this host, in the working directory."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), check=True, capture_output=True)
    async with nothing() as names:
        yield names


@contextlib.asynccontextmanager
async def library(**_):
    """A libfabric that has this fabric; which one, the code finds for itself."""
    async with nothing() as names:
        yield names


SETUPS = {"nothing": nothing, "pair": pair, "memory": memory, "certificate": certificate, "library": library}


# On the tests' own libibverbs: no process that has loaded the system's can load it.
ELSEWHERE = "verbs-fake"


def parse_setup(text):
    """Read ``NAME key=value ...``; the values are Python's, ``faults.x=1`` is a field of a FaultPlan."""
    name, *pairs = (text or "nothing").split()
    options, faults = {}, {}
    for item in pairs:
        key, _, value = item.partition("=")
        place, key = (faults, key.removeprefix("faults.")) if key.startswith("faults.") else (options, key)
        place[key] = ast.literal_eval(value)
    if faults:
        options["faults"] = FaultPlan(**faults)
    if name in ("pair", "memory"):
        options.setdefault("fabric", "loopback")
    return SETUPS[name], options


def found_or_skip(name):
    found = find_fabric(name)
    if found.missing is not None:
        pytest.skip(found.missing)
    return found


async def run_blocks(page, blocks):
    setup, options = parse_setup(blocks[0].setup)
    if options.get("fabric", "loopback") != "loopback":
        found = found_or_skip(options["fabric"])
        options |= {"fabric": found.name} | found.options
    async with asyncio.timeout(LIMIT), setup(**options) as names:
        for block in blocks:
            # Line numbers as in the page, so that a traceback says where.
            code = compile(
                "\n" * (block.line - 1) + block.code, f"<{page.name}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            )
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                running = types.FunctionType(code, names)()
                if inspect.iscoroutine(running):
                    await running
            check_output(page, block, printed.getvalue())


def check_output(page, block, printed):
    if block.output is not None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        checker = doctest.OutputChecker()
        where = f"{page.name}:{block.line}"
        assert checker.check_output(block.output, printed, flags), f"{where} printed:\n{printed}not:\n{block.output}"


@pytest.mark.parametrize(("page", "blocks"), list(sections()))
def test_code_of_a_section_runs(page, blocks, monkeypatch, tmp_path, loop_name, pytestconfig, request):
    if parse_setup(blocks[0].setup)[1].get("fabric") == ELSEWHERE:
        chosen = (pytestconfig.getoption("--fabric") or [None])[-1]
        if chosen not in (ELSEWHERE, "verbs"):
            return run_elsewhere(request.node.name, loop_name)
        if library := found_or_skip(chosen).options.get("library"):
            monkeypatch.setenv("PPLX_ASYNC_LIBRARY", library)
    monkeypatch.chdir(tmp_path)
    factory = uvloop.new_event_loop if loop_name == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run_blocks(page, blocks))


def run_elsewhere(name, loop):
    """Run this test again, alone in a process of its own, that loads the tests' own libibverbs."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        f"{Path(__file__).relative_to(ROOT)}::{name}",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--fabric", ELSEWHERE, "--loop", loop]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=2 * LIMIT)
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    if " 1 skipped" in run.stdout:
        pytest.skip("the tests' own libibverbs is not available")


@pytest.mark.parametrize(("page", "block"), list(programs()))
def test_program_runs(page, block, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(block.code)
    if block.setup == "two-processes":
        printed = run_two_processes(script)
    else:
        command = [sys.executable, "-W", "error", script]
        result = subprocess.run(command, capture_output=True, text=True, timeout=2 * LIMIT, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        printed = result.stdout
    check_output(page, block, printed)


def run_two_processes(script):
    """Start it without arguments, then again with the address that the first one prints."""
    found = find_fabric("tcp")
    if found.missing is not None:
        pytest.skip(found.missing)
    command = [sys.executable, "-W", "error", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as receiver:
        try:
            address = receiver.stdout.readline().split()[-1]
            sender = subprocess.run([*command, address], capture_output=True, text=True, timeout=2 * LIMIT)
            printed, complaints = receiver.communicate(timeout=2 * LIMIT)
        finally:
            receiver.kill()
    assert (sender.returncode, sender.stderr) == (0, "")
    assert (receiver.returncode, complaints) == (0, "")
    return printed


def test_quickstart_is_short_and_first():
    quickstart, *_ = blocks_of(ROOT / "README.md")
    assert is_program(quickstart)
    assert quickstart.code.count("\n") <= 30
    assert quickstart.line < 60


# ---- the reference ----

REFERENCE = DOCS / "reference.md"
# The classes whose every public method and property has an entry.
DOCUMENTED = [
    pplx_async.TransferEngine,
    pplx_async.MemoryRegion,
    pplx_async.RemoteRegion,
    ElementView,
    pplx_async.ImmCounter,
    pplx_async.RemoteCounter,
    pplx_async.Peer,
    pplx_async.PeerGroup,
    pplx_async.Message,
    pplx_async.Batch,
    pplx_async.TransferScope,
    pplx_async.Transfer,
    pplx_async.EngineOptions,
    pplx_async.EngineStats,
    pplx_async.PeerStats,
    pplx_async.LinkStats,
    pplx_async.Histogram,
    pplx_async.Explanation,
    fabric.Info,
    fabric.Domain,
    fabric.PeerAddress,
    pplx_async.Gate,
    pplx_async.Watcher,
    fabric.Memory,
    fabric.RemoteMemory,
    fabric.Endpoint,
    verbs.Context,
    verbs.Port,
    verbs.ProtectionDomain,
    verbs.RegisteredMemory,
    verbs.MemoryRange,
    verbs.Address,
    verbs.QueuePair,
    verbs.AsyncCQ,
    completion.CompletionQueue,
    completion.Completion,
]
# Public to Python, but for the core's own modules; or of asyncio.Future, which the page names in one line.
INTERNAL = {
    pplx_async.ImmCounter: {"break_", "check_gate", "lose", "end_waits", "end_gates", "engine"},
    pplx_async.Gate: {"arm", "end", "hold", "index", "lost", "offset", "queue", "steps", "take_back"},
    pplx_async.RemoteCounter: set(dir(RemoteCounterRecord)),
    pplx_async.MemoryRegion: {"registration", "offset"},
    pplx_async.RemoteRegion: {"record", "offset"},
    pplx_async.LinkStats: {"from_core"},
    fabric.PeerAddress: {"domain", "line", "forget"},
    fabric.Memory: {"region", "offset"},
    verbs.RegisteredMemory: {"region", "offset"},
    verbs.MemoryRange: {"region", "offset"},
    pplx_async.EngineOptions: {"secret_bytes", *(field.name for field in dataclasses.fields(EngineOptions))},
}


def members(cls):
    names = {name for name in dir(cls) if not name.startswith("_")}
    names -= set(dir(Exception)) if issubclass(cls, Exception) else set()
    if dataclasses.is_dataclass(cls):
        names |= {field.name for field in dataclasses.fields(cls)}
    return sorted(names - INTERNAL.get(cls, set()))


def reference_sections():
    """Text of each ``### Name`` of the reference, up to the next heading of that rank or above."""
    found = {}
    for part in re.split(r"^(?=#{1,3} )", REFERENCE.read_text(), flags=re.MULTILINE):
        if match := re.match(r"### `?([\w.]+)", part):
            found[match[1]] = part
    return found


@pytest.mark.parametrize("name", sorted(pplx_async.__all__))
def test_every_public_name_is_in_the_reference(name):
    text = REFERENCE.read_text()
    assert re.search(rf"`[^`\n]*\b{re.escape(name)}\b[^`\n]*`", text), f"{name} is not in reference.md"


def names_of(module):
    return [f"{module.__name__.removeprefix('pplx_async.')}.{name}" for name in module.__all__]


@pytest.mark.parametrize("name", [*names_of(fabric), *names_of(verbs), *names_of(completion)])
def test_every_name_of_the_low_layer_is_in_the_reference(name):
    assert re.search(rf"^### {name}$|`{name}`", REFERENCE.read_text(), re.MULTILINE)


def section_of(cls):
    sections = reference_sections()
    modules = ("", *(f"{module.__name__.rpartition('.')[2]}." for module in (fabric, verbs, completion)))
    return next(sections[module + cls.__name__] for module in modules if module + cls.__name__ in sections)


@pytest.mark.parametrize("cls", DOCUMENTED, ids=lambda cls: cls.__name__)
def test_every_member_is_in_the_reference(cls):
    section = section_of(cls)
    missing = [name for name in members(cls) if not re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", section)]
    assert missing == []


def documented_calls():
    """Each ``#### `Class.method(arguments)` `` of the reference."""
    for name, section in reference_sections().items():
        for match in re.finditer(r"^#### `(?:await )?([\w.]+)\((.*)\)(?: -> .*)?`$", section, re.MULTILINE):
            yield pytest.param(name, match[1], match[2], id=match[1])


@pytest.mark.parametrize(("section", "call", "arguments"), list(documented_calls()))
def test_signature_is_the_codes(section, call, arguments):
    module, _, name = section.rpartition(".")
    owner = importlib.import_module(f"pplx_async.{module}" if module else "pplx_async")
    cls = getattr(owner, name, None) or ElementView
    *_, method = call.split(".")
    function = getattr(cls, method) if "." in call else cls
    expected = [
        (parameter.name, parameter.default is not inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    tree = ast.parse(f"def f({arguments}): pass").body[0].args
    positional = [*tree.posonlyargs, *tree.args]
    plain = len(positional) - len(tree.defaults)
    shown = [(argument.arg, i >= plain) for i, argument in enumerate(positional)]
    shown += [(tree.vararg.arg, False)] if tree.vararg else []
    shown += [(argument.arg, default is not None) for argument, default in zip(tree.kwonlyargs, tree.kw_defaults)]
    shown += [(tree.kwarg.arg, False)] if tree.kwarg else []
    assert shown == expected


def table_after(heading, page=REFERENCE):
    """Rows of the first table under a heading, as lists of cells without their backquotes."""
    text = page.read_text().split(f"\n### {heading}\n", 1)[1]
    rows = []
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            rows.append(cells)
        elif rows:
            break
    return rows[2:]  # less the head and the ruler


def test_table_of_options_is_the_codes():
    documented = table_after("EngineOptions")
    variables = {row.field: row for row in EngineOptions.env_variables()}
    fields = [field.name for field in dataclasses.fields(EngineOptions)]
    assert [cells[0] for cells in documented] == fields
    for field, default, variable, _ in documented:
        row = variables.get(field)
        assert variable == (row.variable if row else "-")
        if row:
            assert default == (row.default or "-"), f"default of {field}"


def test_table_of_faults_is_the_codes():
    documented = {cells[0]: cells[1] for cells in table_after("FaultPlan")}
    assert documented == {field.name: str(field.default) for field in dataclasses.fields(FaultPlan)}


def test_lowlevel_names_are_documented():
    text = (DOCS / "lowlevel.md").read_text()
    assert [name for name in lowlevel.__all__ if f"`{name}" not in text] == []


# ---- errors ----


@pytest.mark.parametrize("name", sorted(set(errors.__all__) - {"completion_error"}))
def test_every_error_is_explained(name):
    assert re.search(rf"^## `?{name}`?$", (DOCS / "errors.md").read_text(), re.MULTILINE)


# ---- what holds the pages together ----


def anchor(heading):
    """How a heading is linked to (GitHub's rule)."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def prose(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", EVERYWHERE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            broken.append(target)
        elif fragment:
            headings = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)
            broken += [target] if fragment not in map(anchor, headings) else []
    assert broken == []


@pytest.mark.parametrize("page", EVERYWHERE, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    named = set(re.findall(r"`([\w./]+\.(?:c|h|py|pyx|pxd))`", page.read_text()))
    missing = []
    for name in named:
        if not any(path.as_posix().endswith("/" + name) for path in ROOT.rglob(Path(name).name)):
            missing.append(name)
    assert sorted(missing) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_every_page(page):
    if page.stem == "index":
        text = page.read_text()
        assert [other.name for other in DOCS.glob("*.md") if other != page and f"({other.name}" not in text] == []
