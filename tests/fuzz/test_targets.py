# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The targets go through their seeds, without a fuzzer; and they see what is wrong."""

import asyncio
import hmac

import pytest

from pplx_async import Peer, wire
from pplx_async._frames import Frames
from tests.fuzz import transport
from tests.fuzz.__main__ import TARGETS
from tests.fuzz.target import seeds
from tests.fuzz.targets import control, descriptors, handshakes, messages, peers

CHECKS = {"descriptors": descriptors.check, "control": control.check, "peers": peers.check}


async def end_all():
    """End what a finding has left."""
    await peers.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@pytest.fixture(autouse=True)
def loop(monkeypatch):
    """The targets' own loop, closed at the end."""
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(transport, "_loop", loop)
    yield loop
    loop.run_until_complete(end_all())
    loop.close()


@pytest.fixture
def notes(monkeypatch):
    """What the handshakes end with."""
    heard = []
    monkeypatch.setattr(handshakes, "note", heard.append)
    return heard


def test_every_target_has_seeds():
    for target in TARGETS:
        assert len(seeds(target.name)) > 5
        assert all(seeds(target.name)), target.name


@pytest.mark.parametrize("name", CHECKS)
def test_seeds_pass(name):
    for seed in seeds(name):
        CHECKS[name](seed)


@pytest.mark.parametrize("name", ["descriptors", "control"])
def test_damaged_seeds_pass(name):
    for seed in seeds(name):
        for at in range(1, len(seed)):
            for damaged in (seed[:at], seed[:at] + bytes([seed[at] ^ 0x55]) + seed[at + 1 :]):
                CHECKS[name](damaged)


def test_seeds_go_through_every_end_of_a_handshake(notes):
    for seed in seeds("control"):
        if seed[0] == 2:
            control.check(seed)
    ends = {note.partition(" ")[0] for note in notes}
    assert ends == {"WeRefuse", "PeerRefused", "PeerGone", "they"}
    assert notes.count("they met") >= 4  # on either side, with and without a secret


def test_seeds_go_through_every_end_of_a_call(monkeypatch):
    heard = set()
    monkeypatch.setattr(peers, "note", heard.add)
    for seed in seeds("peers"):
        peers.check(seed)
    assert {"PeerLost", "ClosedResourceError", "BrokenResourceError", "a group was formed"} <= heard
    assert any("has published nothing" in text for text in heard)


# ---- what must be found ----


def finds(check, name):
    with pytest.raises((AssertionError, KeyError, TimeoutError)):
        for seed in seeds(name):
            check(seed)


def test_finds_another_error_than_value_error(monkeypatch):
    def fail(data):
        raise KeyError

    monkeypatch.setattr(wire, "decode_region", fail)
    finds(descriptors.check, "descriptors")


def test_finds_a_field_out_of_range(monkeypatch):
    decode = wire.decode_region
    monkeypatch.setattr(wire, "decode_region", lambda data: wire.msgspec.structs.replace(decode(data), access=4))
    finds(descriptors.check, "descriptors")


def test_finds_a_message_that_comes_out_differently(monkeypatch):
    monkeypatch.setattr(wire, "encode_message", lambda message: b"\x91\xa5ready")
    finds(lambda seed: seed[0] or messages.check(seed[1:]), "control")


def test_finds_a_frame_that_is_too_long(monkeypatch):
    monkeypatch.setattr(Frames, "_judge", lambda self: None)
    finds(control.check, "control")


def test_finds_a_frame_that_is_cut_short(monkeypatch):
    take = Frames._take
    monkeypatch.setattr(Frames, "_take", lambda self: (frame := take(self)) and frame[:-1])
    finds(control.check, "control")


def test_finds_a_stranger_who_is_let_in(monkeypatch):
    monkeypatch.setattr(hmac, "compare_digest", lambda ours, theirs: True)
    finds(control.check, "control")


def test_finds_a_listener_that_proves_itself_first(monkeypatch):
    """To whoever asks: the proof could be sent back to it on another connection."""
    shake = handshakes.handshake

    async def eager(frames, ours, secret, *, connecting):
        if not connecting and secret is not None:
            frames.write(ours)
            frames.write(wire.Proof(bytes(32)))
        return await shake(frames, ours, secret, connecting=connecting)

    monkeypatch.setattr(handshakes, "handshake", eager)
    finds(control.check, "control")


def test_finds_a_call_that_does_not_end_with_the_peer(monkeypatch):
    monkeypatch.setattr(peers, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(Peer, "_end_waits", lambda self, reason: self._ended.set())
    finds(peers.check, "peers")


def test_finds_a_message_that_breaks_us(monkeypatch):
    monkeypatch.setattr(Peer, "_on_join", lambda self, join: self._joined[None])
    finds(peers.check, "peers")
