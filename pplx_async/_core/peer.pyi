# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0

from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

from pplx_async._core.engine import Engine
from pplx_async._core.memory import PeerRecord
from pplx_async._core.transfer import Transfer

__all__ = ["PeerCore"]

@disjoint_base
class PeerCore(PeerRecord):
    def __init__(
        self,
        engine: Engine,
        label: str,
        remote_domains: int,
        routes: Sequence[tuple[int, int]],
        owner: Any,
        weights: Sequence[int] = (),
    ) -> None: ...
    def open(self) -> Transfer: ...
    def endpoints(self) -> dict[str, Any]: ...
    def connect(
        self,
        addresses: Sequence[bytes],
        landing: Sequence[tuple[int, int]],
        heartbeat_counter: int,
        credit_counter: int,
        credits: int,
        token: int,
        message_nbytes: int,
    ) -> Transfer: ...
    def close(self) -> Transfer: ...
    def lose(self, why: str) -> Transfer: ...
    def lose_rail(self, link: int, why: str, prefix: int, arrived: bytes) -> Transfer: ...
    def free(self) -> None: ...
    def link_stats(self) -> list[dict[str, Any]]: ...
