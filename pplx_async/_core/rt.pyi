# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0

from collections.abc import Mapping
from typing import Any

from typing_extensions import disjoint_base

__all__ = ["Options", "core_version", "discover", "status_names", "status_text"]

_C_API: Any

@disjoint_base
class Options:
    def __init__(self, options: Mapping[str, str]) -> None: ...

def core_version() -> str: ...
def status_names() -> dict[int, str]: ...
def status_text(status: int) -> str: ...
def discover(provider: str, options: Mapping[str, str]) -> list[dict[str, Any]]: ...
