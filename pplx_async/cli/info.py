# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async info``: what this machine has for moving memory, what it lacks, and what would help."""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import resource
from typing import Any

import typer

from pplx_async import __version__, topology
from pplx_async.cli.arguments import Debug, Fabric, Json, Library, engine_options
from pplx_async.cli.failures import CommandError, ExitCode
from pplx_async.cli.output import Output, size
from pplx_async.errors import PplxAsyncError, ProviderUnavailable
from pplx_async.lowlevel import core_version
from pplx_async.options import EngineOptions

__all__ = ["gather", "info"]

_HOW_TO_GET = (
    "pip install 'pplx_async[fabric]' brings a libfabric 2.x into this environment; apt-get install libfabric1 "
    "brings the distribution's; on AWS instances with EFA, use AWS's EFA installer. A libfabric elsewhere is named "
    'by --library or PPLX_ASYNC_LIBRARY. Without any, shared memory (fabric="ipc") still works, between processes '
    "of one host."
)
_HIDDEN = "(set, not shown)"


def info(fabric: Fabric = None, library: Library = None, json: Json = False, debug: Debug = False) -> None:
    """Say which libraries, providers and devices there are, what is missing, and how to get it.

    The exit code is that of a program which opens an engine like this: 0 if it could, 3 if the fabric is
    not available here, 2 if a variable of the environment is wrong. With --json, "ok" is true for 0.
    """
    output = Output(json=json, debug=debug)
    with output.guard():
        facts = gather(fabric=fabric, library=library)
        if json:
            output.result(facts)
        else:
            _show(output, facts)
        if facts["environment_error"]:
            raise typer.Exit(ExitCode.USAGE)
        if not facts["available"]:
            raise typer.Exit(ExitCode.UNAVAILABLE)


def gather(*, fabric: str | None = None, library: str | None = None) -> dict[str, Any]:
    """Collect what `info` shows.

    Parameters
    ----------
    fabric, library : str, optional
        As the fields of EngineOptions; by default those of the environment.

    Returns
    -------
    dict
        What ``--json`` prints.

    Raises
    ------
    CommandError
        An argument is out of range. A variable of the environment that is does not raise: it shows.
    """
    environment_error = None
    options = engine_options({}, fabric=fabric, library=library)
    try:
        # Again, now that what was given is known to be right: what is wrong now is the environment's.
        options = engine_options(fabric=fabric, library=library)
    except CommandError as error:
        environment_error = error.reason
    chosen = _choose(options)
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return {
        "ok": environment_error is None and chosen["fabric"] is not None,
        "available": chosen["fabric"] is not None,
        "versions": {
            "pplx_async": __version__,
            "core": core_version(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "kernel": platform.release(),
        },
        "machine": {
            "cpus": os.cpu_count(),
            "usable_cpus": len(os.sched_getaffinity(0)),
            "memlock_nbytes": _limit(soft),
            "memlock_hard_nbytes": _limit(hard),
        },
        "libfabric": [_library(row) for row in topology.survey(options)],
        "libibverbs": {"library": ctypes.util.find_library("ibverbs")} | topology.survey_verbs(options),
        "choice": chosen,
        "environment": _environment(),
        "environment_error": environment_error,
    }


def _choose(options: EngineOptions) -> dict[str, Any]:
    """Say what an engine would open, or why it could not."""
    row: dict[str, Any] = {
        "asked": options.fabric,
        "fabric": None,
        "devices": [],
        "why": [],
        "reason": None,
        "hint": None,
    }
    try:
        choice = topology.choose(options)
    except (PplxAsyncError, ValueError) as error:
        hint = getattr(error, "hint", "")
        row |= {"reason": str(error).removesuffix(hint).rstrip()}
        return row | {"hint": hint if hint and hint != ProviderUnavailable.default_hint else None}
    return row | {"fabric": choice.fabric, "devices": list(choice.devices), "why": list(choice.why)}


def _library(row: dict[str, Any]) -> dict[str, Any]:
    """Add the version, which every device of a library carries; drop the advice to run `info`."""
    descriptions = " ".join(str(device["description"]) for device in row["devices"])
    version = re.search(r"libfabric (\d[\d.]*)", descriptions)
    reason = row["reason"] and row["reason"].removesuffix(ProviderUnavailable.default_hint).rstrip()
    return row | {"version": version[1] if version else None, "reason": reason}


def _limit(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value


def _environment() -> list[dict[str, Any]]:
    """List our variables that are set, those that mean nothing included."""
    known = {variable.variable: variable for variable in EngineOptions.env_variables()}
    rows = []
    for name in sorted(name for name in os.environ if name.startswith("PPLX_ASYNC_")):
        variable = known.get(name)
        secret = variable is not None and variable.field == "secret"
        rows.append(
            {
                "variable": name,
                "value": _HIDDEN if secret else os.environ[name],
                "option": variable.field if variable is not None else None,
            }
        )
    return rows


def _show(output: Output, facts: dict[str, Any]) -> None:
    versions, machine = facts["versions"], facts["machine"]
    line = output.line
    line((f"pplx_async {versions['pplx_async']}", "bold"), f" (core {versions['core']}), Python {versions['python']}")
    line(versions["platform"])
    memlock = machine["memlock_nbytes"]
    limit = "unlimited" if memlock is None else size(memlock)
    line(f"{machine['usable_cpus']} of {machine['cpus']} CPUs, locked memory (ulimit -l): {limit}")
    line()
    line(("libfabric", "bold"))
    for row in facts["libfabric"]:
        _show_library(output, row)
    if not any(row["devices"] for row in facts["libfabric"]):
        line("  how to get one: ", _HOW_TO_GET)
    line(("libibverbs", "bold"))
    _show_verbs(output, facts["libibverbs"])
    _show_choice(output, facts["choice"])
    line(("environment", "bold"))
    for row in facts["environment"]:
        unknown = ("", "") if row["option"] is not None else ("  is no option, and is ignored", "yellow")
        line(f"  {row['variable']}={row['value']}", unknown)
    if not facts["environment"]:
        line("  no PPLX_ASYNC_* variable is set")
    if facts["environment_error"]:
        line(("  no engine opens with these: ", "red"), facts["environment_error"])


def _show_library(output: Output, row: dict[str, Any]) -> None:
    version = f" {row['version']}" if row["version"] else ""
    mark = ("  yes", "green") if row["devices"] else ("  no ", "red")
    output.line(mark, f" {row['library']}{version} ({row['origin']})")
    for provider in dict.fromkeys(str(device["provider"]) for device in row["devices"]):
        names = [str(device["name"]) for device in row["devices"] if device["provider"] == provider]
        output.line(f"      {provider} on {', '.join(names)}")
    if row["reason"]:
        output.line(f"      {row['reason']}")


def _show_verbs(output: Output, row: dict[str, Any]) -> None:
    mark = ("  yes", "green") if row["devices"] else ("  no ", "red")
    output.line(mark, f" {row['library'] or 'libibverbs was not found'}")
    for device in row["devices"]:
        output.line(f"      {device['name']}, {device['address']}: {device['description']}")
    if row["reason"]:
        output.line(f"      {row['reason']}")


def _show_choice(output: Output, choice: dict[str, Any]) -> None:
    output.line((f'fabric="{choice["asked"]}"', "bold"))
    if choice["fabric"] is None:
        output.line("  ", (choice["reason"], "red"))
        if choice["hint"]:
            output.line("  ", ("hint: ", "bold"), choice["hint"])
        return
    output.line("  would open ", (choice["fabric"], "green"), f" on {', '.join(choice['devices'])}")
    for reason in choice["why"]:
        output.line(f"    {reason}")
