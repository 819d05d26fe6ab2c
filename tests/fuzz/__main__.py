# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz``: build the targets, run each for a while, keep and report what they find."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pplx_async.cli.arguments import Debug, Json
from pplx_async.cli.failures import CommandError, ExitCode
from pplx_async.cli.output import Output
from tests.fuzz.target import FOLDER, ROOT, Target, engine_archive
from tests.fuzz.view import View

__all__ = ["main"]

_WIDTH = 90
TARGETS = (
    Target("descriptors", longest=300),
    Target("control", longest=1500),
    Target("peers", longest=150),
    Target("immediates", longest=300, is_c=True),
    Target("ipc", longest=500, is_c=True),
)


def fuzz(
    names: Annotated[list[str] | None, typer.Argument(help="Targets; by default all.")] = None,
    seconds: Annotated[int, typer.Option(min=1, help="How long each of them runs.")] = 60,
    jobs: Annotated[int | None, typer.Option(min=1, help="So many at a time; by default one for each core.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the mutations; 0 takes one by the clock.")] = 0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fuzz what hostile bytes reach first. An input that breaks a property is kept under build/fuzz/findings."""
    output = Output(json=json, debug=debug)
    with output.guard():
        unknown = set(names or ()) - {target.name for target in TARGETS}
        if unknown:
            raise CommandError(f"no such target: {', '.join(sorted(unknown))}", code=ExitCode.USAGE)
        targets = [target for target in TARGETS if not names or target.name in names]
        _build(targets)
        with View(output.err, targets, seconds) as view, asyncio.Runner() as runner:
            runner.run(_until_terminated(_run(targets, seconds, jobs or len(os.sched_getaffinity(0)), seed, view)))
        if not json:
            _show(output, targets)
        output.result(
            {
                "ok": not any(target.failed for target in targets),
                "seconds": seconds,
                "targets": {target.name: target.to_dict() for target in targets},
            }
        )
        for target in targets:
            if target.failed:
                output.err.print(target.words(), markup=False)
        if failed := [target for target in targets if target.failed]:
            raise CommandError(
                f"findings in {', '.join(target.name for target in failed)}",
                hint=f"To repeat one: {failed[0].how_to_repeat()}",
                kind="FuzzFinding",
            )


def _build(targets: list[Target]) -> None:
    archive = engine_archive()  # whoever has no atheris hears it here
    if not any(target.is_c for target in targets):
        return
    jobs = len(os.sched_getaffinity(0))
    command = ["make", "-f", "tests/fuzz/Makefile", f"-j{jobs}", f"ENGINE={archive}"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if built.returncode != 0:
        raise CommandError(f"the targets do not compile:\n{built.stdout}{built.stderr}")


async def _run(targets: list[Target], seconds: int, jobs: int, seed: int, view: View) -> None:
    turn = asyncio.Semaphore(jobs)

    async def run(target: Target) -> None:
        async with turn:
            await target.run(seconds, seed, view.show)

    async with asyncio.TaskGroup() as group:
        for target in targets:
            group.create_task(run(target))


async def _until_terminated(work) -> None:
    running = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        raise CommandError("terminated", code=ExitCode.TERMINATED) from None


def _show(output: Output, targets: list[Target]) -> None:
    table = Table("target", box=None, pad_edge=False)
    for column in ("inputs tried", "a second", "features", "corpus", "findings"):
        table.add_column(column, justify="right")
    for target in targets:
        rate = target.inputs / max(target.seconds, 1e-9)
        table.add_row(
            target.name,
            str(target.inputs),
            f"{rate:.0f}",
            str(target.features),
            str(target.corpus),
            str(len(target.findings)),
        )
    output.table(table, _WIDTH)
    output.line(("kept      ", "bold"), f"{Path(os.path.relpath(FOLDER))}/corpus, and what was found in /findings")


def main() -> None:
    """Run the command, and exit with its code."""
    typer.run(fuzz)


if __name__ == "__main__":
    main()
