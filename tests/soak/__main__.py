# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak``: what is asked for, and how it ends."""

from __future__ import annotations

import asyncio
import secrets
import signal
from typing import Annotated

import typer

from pplx_async.cli.arguments import Debug, Json
from pplx_async.cli.failures import CommandError, ExitCode, Failure
from pplx_async.cli.output import Output
from tests.soak import report
from tests.soak.exercises import EXERCISES
from tests.soak.run import Plan, Result, Soak, SoakFailed
from tests.soak.view import View

__all__ = ["main"]

# From which length on every kind of exercise must have been verified.
_ENOUGH_S = 30.0


def soak(
    seconds: Annotated[float, typer.Option(min=1.0, help="How long, from when all are connected.")] = 60.0,
    fabric: Annotated[str, typer.Option(help="Of all engines: ipc, tcp, 'tcp;ofi_rxm', auto.")] = "ipc",
    seed: Annotated[int | None, typer.Option(min=0, help="Of choices and contents, to repeat a run.")] = None,
    kill_every: Annotated[float, typer.Option(min=0.5, help="Seconds from one kill to the next.")] = 10.0,
    actors: Annotated[int, typer.Option(min=1, help="Exercises that each member begins at a time.")] = 4,
    limit: Annotated[float, typer.Option(min=1.0, help="Seconds that one exercise may take.")] = 60.0,
    cycles: Annotated[int, typer.Option(min=1, help="Kills at least, however long they take.")] = 1,
    sabotage: Annotated[str, typer.Option(help="To see that it is found: byte, hang, die, leak.", hidden=True)] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Have four processes do everything with each other, check every byte, and kill or stop one again and again.

    Contents, choices and the engines' options follow from the seed; what happens at the same time does
    not: a seed repeats the load, and not its timing.
    """
    output = Output(json=json, debug=debug)
    with output.guard():
        if fabric == "loopback":
            raise CommandError("loopback does not leave its process", code=ExitCode.USAGE)
        chosen = secrets.randbelow(1 << 31) if seed is None else seed
        plan = Plan(seconds, fabric, chosen, kill_every, actors, limit, cycles, sabotage)
        output.err.print(f"soak: {seconds:g} s on {fabric}, seed {chosen}", markup=False)
        result = _run(plan, output)
        if not json:
            report.show(output, plan, result)
        if result.complaints:
            output.fail(Failure("SoakFailed", "; ".join(result.complaints), _again(plan)), report.to_dict(plan, result))
            raise typer.Exit(ExitCode.FAILED)
        output.result(report.to_dict(plan, result))


def _run(plan: Plan, output: Output) -> Result:
    with View(output.err, plan.seconds) as view, asyncio.Runner() as runner:
        try:
            result = runner.run(_until_terminated(Soak(plan, view)))
        except SoakFailed as failure:
            output.err.print(failure.details, markup=False)
            raise CommandError(str(failure), hint=_again(plan), kind="SoakFailed") from None
    missing = [kind for kind, totals in result.totals.items() if not totals.done and _is_possible(kind, plan.fabric)]
    if missing and plan.seconds >= _ENOUGH_S:
        result.complaints.append(f"nothing was verified of: {', '.join(missing)}")
    return result


def _again(plan: Plan) -> str:
    return f"To repeat the load: make soak SECONDS={plan.seconds:g} FABRIC='{plan.fabric}' SEED={plan.seed}"


def _is_possible(kind: str, fabric: str) -> bool:
    fabrics = EXERCISES[kind].fabrics
    return fabrics is None or fabric in fabrics


async def _until_terminated(soak: Soak) -> Result:
    """End on SIGTERM as on Ctrl-C: no process is left."""
    running = asyncio.ensure_future(soak.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    try:
        return await running
    except asyncio.CancelledError:
        raise CommandError("terminated", code=ExitCode.TERMINATED) from None


def main() -> None:
    """Run the command, and exit with its code."""
    typer.run(soak)


if __name__ == "__main__":
    main()
