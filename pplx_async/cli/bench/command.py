# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async bench``: what is asked for, and what is reported. ``run.py`` measures."""

from __future__ import annotations

import dataclasses
import enum
import json as json_text
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from pplx_async import __version__, topology
from pplx_async.cli.arguments import Debug, Library, Loop, LoopName, engine_options
from pplx_async.cli.bench import machine, works
from pplx_async.cli.bench.aims import judge
from pplx_async.cli.bench.c_program import C_FOLDER, C_ROWS, CRow
from pplx_async.cli.bench.comparison import comparison
from pplx_async.cli.bench.plot import check_plotting, plot
from pplx_async.cli.bench.rows import Row
from pplx_async.cli.bench.run import Plan, measure
from pplx_async.cli.bench.works import Work
from pplx_async.cli.failures import CommandError, ExitCode
from pplx_async.cli.output import Output
from pplx_async.cli.side_link import Job
from pplx_async.options import EngineOptions, join_address, split_address

__all__ = ["bench"]

_SIDES = ("target", "leader")
_TO_GET_C = "`make bench-c` in a checkout builds them; --c names the folder they are in."
_TABLE_WIDTH = 150
# --quick: so many times less to do.
_QUICK = 20
_QUICK_REGISTER = 64 << 20


class FabricName(enum.StrEnum):
    """Fabrics that reach another process of this host."""

    ipc = "ipc"
    tcp = "tcp"


class Wakeup(enum.StrEnum):
    """Values of ``EngineOptions.wakeup``."""

    eventfd = "eventfd"
    spin = "spin"


class Progress(enum.StrEnum):
    """Values of ``EngineOptions.progress``."""

    auto = "auto"
    loop = "loop"
    proxy = "proxy"


class Buffers(enum.StrEnum):
    """What the memory is."""

    shared = "shared"
    numpy = "numpy"


def bench(
    fabric: Annotated[FabricName, typer.Option(help="What moves the bytes.")] = FabricName.ipc,
    wakeup: Annotated[Wakeup, typer.Option(help="How completions reach the event loop.")] = Wakeup.eventfd,
    progress: Annotated[Progress, typer.Option(help="Which thread the NICs wake.")] = Progress.auto,
    loop: Loop = LoopName.asyncio,
    buffers: Annotated[
        Buffers, typer.Option(help="Memory of engine.empty(), or ordinary arrays, which ipc has to copy once more.")
    ] = Buffers.shared,
    library: Library = None,
    only: Annotated[
        str | None, typer.Option("--works", help="What to measure, separated by commas; by default all.")
    ] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="Repetitions of each; the median counts.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A twentieth of everything: to try it, not to quote it.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=0.0, help="Seconds for each work to repeat what others on the machine disturbed.")
    ] = 4.0,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds that one repetition may take.")] = 60.0,
    c: Annotated[
        Path | None, typer.Option("--c", file_okay=False, help="Folder of the C programs that `make bench-c` builds.")
    ] = None,
    no_c: Annotated[bool, typer.Option("--no-c", help="Leave the C programs out.")] = False,
    json: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write the result there; - is stdout.")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--plot", dir_okay=False, help="Write a PNG there.")] = None,
    debug: Debug = False,
) -> None:
    """Measure transfers between two processes, beside plain C that does the same on the same provider.

    Ours and the C programs take turns, a repetition each, in one run. Every byte is checked, outside of
    what is timed. Figures that others on the machine disturbed are repeated, or marked.
    """
    output = Output(json=str(json) == "-", debug=debug)
    with output.guard():
        if picture is not None:
            check_plotting()
        given = {"fabric": fabric.value, "wakeup": wakeup.value, "progress": progress.value, "library": library}
        given = {name: value for name, value in given.items() if value is not None}
        options = engine_options(**given)
        given |= {"listen": join_address(split_address(options.listen)[0], 0), "advertise": None}
        rows_of_c, why_no_c = _find_c(fabric, c or C_FOLDER, no_c)
        variants = [value for value in (loop.value, buffers.value) if value not in ("asyncio", "shared")]
        plan = Plan(
            name="-".join(["pplx", fabric.value, wakeup.value, *variants]),
            provider=fabric.value,
            wait=wakeup.value,
            jobs=[Job("bench", side, given, {"buffers": buffers.value}, loop.value) for side in _SIDES],
            works=_choose_works(only, quick),
            runs=runs or (2 if quick else works.RUNS),
            patience=0.0 if quick else patience,
            idle_seconds=1 if quick else works.IDLE_SECONDS,
            timeout=timeout,
            c_rows=rows_of_c,
            c_folder=c or C_FOLDER,
            c_arguments=_arguments_of_c(options, rows_of_c, timeout),
        )
        rows, engine = measure(plan, output)
        values = _report(plan, rows, engine, why_no_c) | {"loop": loop.value, "buffers": buffers.value, "quick": quick}
        values["progress"] = progress.value
        _deliver(output, values, json, picture)


def _choose_works(only: str | None, quick: bool) -> list[Work]:
    """Find works by their keys, and make them small for --quick."""
    try:
        keys = only.split(",") if only is not None else [work.key for work in works.OUR_WORKS]
        chosen = [works.find(key, works.OUR_WORKS) for key in keys]
    except ValueError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    return [_shrink(work) for work in chosen] if quick else chosen


def _shrink(work: Work) -> Work:
    if work.name == "register":
        return dataclasses.replace(work, nbytes=_QUICK_REGISTER)
    least = max(work.targets, min(work.count, work.inflight))
    return dataclasses.replace(work, count=max(least, work.count // _QUICK))


def _find_c(fabric: FabricName, folder: Path, without: bool) -> tuple[list[CRow], str]:
    """Choose the C programs on the same provider; or say why there are none."""
    if without:
        return [], ""
    program = "shm_bench" if fabric is FabricName.ipc else "fabric_bench"
    if not (folder / program).is_file():
        return [], f"There is no {program} in {folder}, so nothing of C is beside. {_TO_GET_C}"
    return [row for row in C_ROWS if row.program == program], ""


def _arguments_of_c(options: EngineOptions, rows: list[CRow], timeout: float) -> list[str]:
    """Have C use the library and the provider that we use."""
    arguments = [f"--timeout={max(1, round(timeout + works.IDLE_SECONDS))}"]
    if any(row.program == "fabric_bench" for row in rows):
        (part,) = topology.choose(options).parts
        arguments += [f"--library={part.options['library']}", f"--provider={part.network}"]
    return arguments


def _report(plan: Plan, rows: list[Row], engine: dict[str, Any], why_no_c: str) -> dict[str, Any]:
    here = f"{Path.cwd()}/"  # a result is shown to others: where this checkout lies is nobody's business
    engine = engine | {"why": [reason.replace(here, "") for reason in engine["why"]]}
    return {
        "ok": True,
        "name": plan.name,
        "machine": machine.describe(),
        "versions": {"pplx_async": __version__, **_versions("numpy", "uvloop", "mpich")},
        "engine": engine,
        "runs": plan.runs,
        "without_c": why_no_c,
        "aims": judge(rows, plan.name),
        "rows": rows,
    }


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _deliver(output: Output, values: dict[str, Any], json: Path | None, picture: Path | None) -> None:
    """Write the files, and show the table."""
    if json is not None and not output.json:
        json.write_text(json_text.dumps(values, indent=1) + "\n")
    if picture is not None:
        about = values["machine"]
        plot(values["rows"], f"{values['name']}: {about['cores']} cores, {about['processor']}", picture)
    output.result(values)
    if output.json:
        return
    output.table(comparison(values["rows"], values["name"]), _TABLE_WIDTH)
    for reason in values["engine"]["why"]:
        output.line((f"{reason}", "dim"))
    if values["without_c"]:
        output.line((values["without_c"], "yellow"))
    for path in filter(None, (json, picture)):
        output.line(f"written: {path}")
