# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The control channel: messages, frames and the handshake. The first byte says which of them."""

from __future__ import annotations

from tests.fuzz.targets import frames, handshakes, messages

__all__ = ["PARTS", "check"]

PARTS = (messages.check, frames.check, handshakes.check)


def check(data: bytes) -> None:
    """Give the rest of the input to one of the parts."""
    if data:
        PARTS[data[0] % len(PARTS)](data[1:])
