# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""How the engine of one start of a member is set up: each time otherwise, by the seed."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

__all__ = ["draw"]


def draw(fabric: str, choices: random.Random, *, domains: int) -> tuple[dict[str, Any], str]:
    """Choose options of an engine, and an event loop; but not how many NICs, so that descriptors can be compared."""
    options: dict[str, Any] = {
        "fabric": fabric,
        "progress": choices.choice(("loop", "proxy")),
        "wakeup": choices.choice(("eventfd", "eventfd", "eventfd", "spin")),
        "domains": domains,
    }
    if fabric in ("ipc", "auto"):
        options["ipc_vm_writev"] = choices.random() < 0.5
    loops = ["asyncio", "uvloop"] if importlib.util.find_spec("uvloop") else ["asyncio"]
    return options, choices.choice(loops)
