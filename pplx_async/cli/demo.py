# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async demo``: what is asked for, and what is reported. The work is in the files beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from pplx_async.cli import demo_run
from pplx_async.cli.arguments import Debug, Fabric, Json, Library, Loop, LoopName, engine_options
from pplx_async.cli.failures import ExitCode, Failure
from pplx_async.cli.output import Output, size, span
from pplx_async.cli.safetensors_file import model_file
from pplx_async.cli.side_link import Job
from pplx_async.options import join_address, split_address

__all__ = ["app", "pages", "weights"]

app = typer.Typer(
    help="Move real bytes between two processes, and check every one of them.",
    no_args_is_help=True,
)


Domains = Annotated[int | None, typer.Option(help="NICs that each side uses, 1 to 8; one NIC is opened several times.")]
Timeout = Annotated[float, typer.Option(min=1.0, help="Give up when nothing has moved for so many seconds.")]


@dataclasses.dataclass(frozen=True)
class _Setup:
    """Both sides' engines, and where they run."""

    engine: dict[str, Any]
    in_process: bool
    loop: str

    @classmethod
    def of(cls, fabric: str | None, library: str | None, domains: int | None, loop: LoopName) -> _Setup:
        given = {"fabric": fabric, "library": library, "domains": domains}
        given = {name: value for name, value in given.items() if value is not None}
        options = engine_options(**given)
        # Both sides take a free port: one that the environment names is for one engine.
        host = split_address(options.listen)[0]
        engine = given | {"listen": join_address(host, 0), "advertise": None}
        return cls(engine, options.fabric == "loopback", loop.value)

    def run(
        self, demo: str, sides: tuple[str, str], arguments: dict[str, Any], output: Output, timeout: float
    ) -> demo_run.Results:
        jobs = [Job(demo, side, self.engine, arguments, self.loop) for side in sides]
        return demo_run.run(jobs, output, in_process=self.in_process, timeout=timeout)

    def report(self, engine: dict[str, Any]) -> dict[str, Any]:
        return {
            "fabric": engine["fabric"],
            "why": engine["why"],
            "domains": engine["domains"],
            "loop": self.loop,
            "processes": 1 if self.in_process else 2,
        }


@app.command()
def weights(
    file: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="A .safetensors file; by default a small real model."),
    ] = None,
    fabric: Fabric = None,
    library: Library = None,
    domains: Domains = None,
    loop: Loop = LoopName.asyncio,
    timeout: Timeout = 30.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Send a model's weights from one process into another, one-sided.

    The receiver registers a region for each tensor and then only awaits its counter; the sender
    writes every tensor out of the mapped file. Nothing but descriptors goes from one to the other
    by other means. Each tensor is verified by SHA-256. With loopback both run in one process.
    """
    output = Output(json=json, debug=debug)
    with output.guard():
        setup = _Setup.of(fabric, library, domains, loop)
        path = file or model_file()
        results = setup.run("weights", ("receiver", "sender"), {"file": str(path.absolute())}, output, timeout)
        sender, receiver = results["sender"], results["receiver"]
        values = {
            "ok": not receiver["wrong"],
            "demo": "weights",
            **{name: sender[name] for name in ("file", "tensors", "nbytes", "seconds")},
            "gigabytes_per_second": sender["nbytes"] / sender["seconds"] / 1e9,
            "verified": receiver["verified"],
            "wrong": receiver["wrong"],
            # What is not in "seconds".
            "apart": {
                "hash": sender["hash_seconds"],
                "register_file": sender["register_seconds"],
                "allocate": receiver["allocate_seconds"],
                "register_tensors": receiver["register_seconds"],
                "check": receiver["check_seconds"],
            },
            **setup.report(sender["engine"]),
        }
        if not json:
            _show_weights(output, values)
        _finish(output, values, f"{len(receiver['wrong'])} tensors differ, {', '.join(receiver['wrong'][:3])} first")


@app.command()
def pages(
    pages: Annotated[int, typer.Option(min=1, max=1 << 24, help="Pages that each side writes.")] = 20_000,
    page_nbytes: Annotated[int, typer.Option(min=1, max=1 << 30, help="Bytes of a page.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Of the contents, and of which page goes where.")] = 0,
    fabric: Fabric = None,
    library: Library = None,
    domains: Domains = None,
    loop: Loop = LoopName.asyncio,
    timeout: Timeout = 30.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write random pages between two processes, in both directions at once.

    Each side submits all of its pages in one call, and awaits as many on its counter. Every page is
    compared with what it must hold, and so is every slot that no page goes to. With loopback both
    run in one process.
    """
    output = Output(json=json, debug=debug)
    with output.guard():
        setup = _Setup.of(fabric, library, domains, loop)
        arguments = {"pages": pages, "page_nbytes": page_nbytes, "seed": seed}
        results = setup.run("pages", ("listener", "caller"), arguments, output, timeout)
        sides = list(results.values())
        total = sum(side["nbytes"] for side in sides)
        verified = sum(side["verified"] for side in sides)
        damaged = sum(side["damaged"] for side in sides)
        seconds = max(side["ended"] for side in sides) - min(side["began"] for side in sides)
        values = {
            "ok": verified == 2 * pages and not damaged,
            "demo": "pages",
            **arguments,
            "nbytes": total,
            "seconds": seconds,
            "gigabytes_per_second": total / seconds / 1e9,
            "verified": verified,
            "damaged": damaged,
            "apart": {
                "register": max(side["register_seconds"] for side in sides),
                "check": max(side["check_seconds"] for side in sides),
            },
            **setup.report(sides[0]["engine"]),
        }
        if not json:
            _show_pages(output, values)
        _finish(output, values, f"{2 * pages - verified} pages are wrong, {damaged} slots changed that must not")


def _finish(output: Output, values: dict[str, Any], wrong: str) -> None:
    """Give the result to programs; what arrived wrong is a failure."""
    if values["ok"]:
        output.result(values)
        return
    failure = Failure("VerificationFailed", wrong, "The fabric delivered bytes that were not sent: please report it.")
    output.fail(failure, values)
    raise typer.Exit(ExitCode.FAILED)


def _show_weights(output: Output, values: dict[str, Any]) -> None:
    apart = {name: span(seconds) for name, seconds in values["apart"].items()}
    _row(output, "file", values["file"])
    _row(output, "moved", f"{values['tensors']} tensors, {size(values['nbytes'])}, {_between(values, 'one-sided')}")
    _show_speed(output, values, "from the first write's submission until the last had landed")
    _row(
        output,
        "apart",
        f"sender: hashing {apart['hash']}, registering the file {apart['register_file']}; receiver: allocating "
        f"{apart['allocate']}, registering {values['tensors']} regions {apart['register_tensors']}, "
        f"checking {apart['check']}",
    )
    _show_fabric(output, values)
    _show_verified(output, values["verified"], values["tensors"], "tensors by SHA-256")


def _show_pages(output: Output, values: dict[str, Any]) -> None:
    apart = {name: span(seconds) for name, seconds in values["apart"].items()}
    count = f"2 x {values['pages']} pages of {values['page_nbytes']} B, {size(values['nbytes'])}"
    _row(output, "moved", f"{count}, {_between(values, 'both directions at once')}")
    _show_speed(output, values, "from the first submission until the last page had landed, both directions added")
    _row(output, "apart", f"registering {apart['register']}, checking {apart['check']}")
    _show_fabric(output, values)
    changed = "no other byte changed" if not values["damaged"] else f"{values['damaged']} other slots changed"
    _show_verified(output, values["verified"], 2 * values["pages"], f"pages, {changed}")


def _between(values: dict[str, Any], how: str) -> str:
    return f"{how}, between {'two processes' if values['processes'] == 2 else 'two engines of one process (loopback)'}"


def _show_speed(output: Output, values: dict[str, Any], what: str) -> None:
    output.line(
        ("time      ", "bold"),
        f"{span(values['seconds'])}, ",
        (f"{values['gigabytes_per_second']:.2f} GB/s", "bold green"),
        f" ({what})",
    )


def _show_fabric(output: Output, values: dict[str, Any]) -> None:
    domains = len(values["domains"])
    _row(output, "fabric", f"{values['fabric']}, {domains} domain{'s' if domains > 1 else ''}, on {values['loop']}")
    for reason in values["why"]:
        _row(output, "", reason)


def _show_verified(output: Output, right: int, total: int, what: str) -> None:
    style = "bold green" if right == total else "bold red"
    output.line(("verified  ", "bold"), (f"{right}/{total}", style), f" {what}")


def _row(output: Output, name: str, text: str) -> None:
    output.line((f"{name:10}", "bold"), text)
