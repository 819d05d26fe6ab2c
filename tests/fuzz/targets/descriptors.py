# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Descriptors of regions and counters: ValueError, or a descriptor whose every field is in its range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pplx_async import wire
from tests.fuzz.attempt import attempt

__all__ = ["PREFIX", "check"]

PREFIX = b"PPLX\x01"
_U64_END = 1 << 64


def check(data: bytes) -> None:
    """Decode it as it is, and behind what every descriptor begins with."""
    for whole in (data, PREFIX + data):
        _check(whole, wire.decode_region, wire.encode_region, _check_region)
        _check(whole, wire.decode_counter, wire.encode_counter, _check_counter)


def _check(
    data: bytes,
    decode: Callable[[Any], Any],
    encode: Callable[[Any], bytes],
    check_fields: Callable[[Any], None],
) -> None:
    found = attempt(decode, data)
    # The same in every form; none of them may be kept: what a bytearray holds can change.
    changing = bytearray(data)
    assert attempt(decode, changing) == found
    assert attempt(decode, memoryview(data)) == found
    assert attempt(decode, memoryview(bytes(2 * len(data)))[::2]) is None
    changing[:] = bytes(len(changing))
    if found is None:
        return
    check_fields(found)
    again = encode(found)
    assert len(again) <= wire.MAX_DESCRIPTOR_NBYTES
    assert decode(again) == found
    assert encode(decode(again)) == again


def _check_region(region: wire.RegionDescriptor) -> None:
    assert type(region) is wire.RegionDescriptor
    assert len(region.engine) == 16
    assert 0 <= region.region < _U64_END
    assert 0 <= region.nbytes < _U64_END
    assert 1 <= region.access <= 3
    assert 1 <= len(region.keys) <= wire.MAX_DOMAINS
    for key, base in region.keys:
        assert 0 <= key < _U64_END
        assert 0 <= base <= _U64_END - region.nbytes


def _check_counter(counter: wire.CounterDescriptor) -> None:
    assert type(counter) is wire.CounterDescriptor
    assert len(counter.engine) == 16
    assert 0 <= counter.counter < _U64_END
