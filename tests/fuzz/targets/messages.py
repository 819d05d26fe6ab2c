# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Control messages: ValueError, or a message that its own encoder writes and its own decoder reads."""

from __future__ import annotations

from pplx_async import wire
from tests.fuzz.attempt import attempt

__all__ = ["check"]


def check(data: bytes) -> None:
    """Decode it."""
    version = wire.hello_version(data)
    assert version is None or 0 <= version <= 65535
    message = attempt(wire.decode_message, data)
    if message is None:
        return
    again = wire.encode_message(message)
    assert wire.decode_message(again) == message
    assert wire.encode_message(wire.decode_message(again)) == again
    if isinstance(message, wire.Hello):
        assert version == message.version
        assert message.magic == "pplx_async"
        assert 1 <= len(message.networks) <= wire.MAX_DOMAINS
    if isinstance(message, wire.OpenCounters):
        assert len(message.runs) <= wire.MAX_OPEN_RUNS
    if isinstance(message, wire.Fence):
        assert len(message.regions) <= wire.MAX_FENCED
        assert len(message.counters) <= wire.MAX_FENCED
