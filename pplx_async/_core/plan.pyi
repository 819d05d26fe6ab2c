# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0

from typing_extensions import disjoint_base

from pplx_async._core.engine import Engine
from pplx_async._core.memory import LocalSlice, RemoteCounterRecord, RemoteSlice
from pplx_async._typing import PageIndices

__all__ = ["Plan"]

@disjoint_base
class Plan:
    def __init__(self, engine: Engine, thread: int) -> None: ...
    @property
    def total_nbytes(self) -> int: ...
    def add_write(self, local: LocalSlice, remote: RemoteSlice, counter: RemoteCounterRecord | None) -> None: ...
    def add_notify(self, counter: RemoteCounterRecord, times: int = 1) -> None: ...
    def add_pages(
        self,
        local: LocalSlice,
        remote: RemoteSlice,
        page_nbytes: int,
        local_pages: PageIndices,
        remote_pages: PageIndices,
        counter: RemoteCounterRecord | None,
        local_stride: int | None,
        remote_stride: int | None,
        local_offset: int,
        remote_offset: int,
    ) -> int: ...
