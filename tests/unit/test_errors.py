# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The exception tree: who inherits from whom, what each says, and that it survives pickling."""

import asyncio
import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest

from pplx_async import errors

STATUS_H = Path(__file__).parents[2] / "include" / "pplx_async" / "status.h"
STATUSES = re.findall(r'X\((\w+), \d+, "([^"]*)"\)', STATUS_H.read_text())
FACTS = {
    "operation": "write",
    "peer": "0c:42\N{HORIZONTAL ELLIPSIS}",
    "domain": "rdmap0s6",
    "nbytes": 4096,
    "provider_error": 122,
}
CLASSES = [value for name in errors.__all__ if inspect.isclass(value := getattr(errors, name))]


@pytest.mark.parametrize(
    ("child", "parents"),
    [
        (errors.PplxAsyncError, [Exception]),
        (errors.ProviderUnavailable, [errors.PplxAsyncError]),
        (errors.NativeCallError, [errors.PplxAsyncError, OSError]),
        (errors.VerbsError, [errors.NativeCallError]),
        (errors.FabricError, [errors.NativeCallError]),
        (errors.CudaError, [errors.NativeCallError]),
        (errors.CompletionError, [errors.PplxAsyncError]),
        (errors.RemoteAccessError, [errors.CompletionError]),
        (errors.PeerLost, [errors.CompletionError]),
        (errors.RailLost, [errors.CompletionError]),
        (errors.WorkFlushed, [errors.CompletionError]),
        (errors.RegistrationError, [errors.PplxAsyncError]),
        (errors.ClosedResourceError, [errors.PplxAsyncError]),
        (errors.BrokenResourceError, [errors.PplxAsyncError]),
        (errors.UnreleasedMemory, [errors.PplxAsyncError]),
        (errors.QueueFull, [errors.PplxAsyncError]),
        (errors.LeakWarning, [ResourceWarning]),
        (errors.CleanupWarning, [RuntimeWarning]),
    ],
)
def test_tree(child, parents):
    assert list(child.__bases__) == parents


def test_message_names_operation_size_peer_and_next_step():
    error = errors.completion_error("REMOTE_ACCESS", dict(STATUSES)["REMOTE_ACCESS"], **FACTS | {"provider_error": 0})
    assert str(error).startswith(
        "write of 4096 B to peer 0c:42\N{HORIZONTAL ELLIPSIS} failed: "
        "remote access error (rkey revoked or range outside the region)"
    )
    assert str(error).endswith(errors.RemoteAccessError.default_hint)
    read = errors.completion_error("TRANSPORT", "broken", operation="read", peer="b", nbytes=8, provider_error=5)
    assert str(read).startswith("read of 8 B from peer b failed: broken [provider error 5]")


def test_completion_error_carries_every_fact():
    error = errors.completion_error("PEER_LOST", "the peer is lost", **FACTS)
    assert isinstance(error, errors.PeerLost)
    assert {name: getattr(error, name) for name in FACTS} == FACTS
    assert error.vendor_error == 122
    assert error.status == "PEER_LOST"
    assert error.hint
    assert "[provider error 122 on rdmap0s6]" in str(error)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("AGAIN", errors.QueueFull),
        ("CANCELLED", asyncio.CancelledError),
        ("CLOSED", errors.ClosedResourceError),
        ("FLUSHED", errors.WorkFlushed),
        ("INTERNAL", errors.CompletionError),
        ("INVALID", ValueError),
        ("LOCAL_ACCESS", errors.CompletionError),
        ("NATIVE", errors.NativeCallError),
        ("NO_MEMORY", MemoryError),
        ("PEER_LOST", errors.PeerLost),
        ("POISONED", errors.BrokenResourceError),
        ("RAIL_LOST", errors.RailLost),
        ("REGISTRATION", errors.RegistrationError),
        ("REMOTE_ACCESS", errors.RemoteAccessError),
        ("TOO_LARGE", ValueError),
        ("TRANSPORT", errors.CompletionError),
        ("TRUNCATED", errors.CompletionError),
        ("UNAVAILABLE", errors.ProviderUnavailable),
        ("UNRELEASED", errors.UnreleasedMemory),
        ("UNSUPPORTED", errors.CompletionError),
    ],
)
def test_status_becomes_exactly_one_class(status, expected):
    error = errors.completion_error(status, dict(STATUSES)[status], **FACTS)
    assert type(error) is expected
    if expected is not asyncio.CancelledError:
        assert dict(STATUSES)[status].rstrip(".") in str(error)


def test_every_status_of_the_header_is_mapped():
    for name, message in STATUSES:
        if name != "OK":
            assert isinstance(errors.completion_error(name, message, **FACTS), BaseException)
    with pytest.raises(ValueError, match="OK"):
        errors.completion_error("OK", "success")


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("cuda", errors.CudaError),
        ("fabric", errors.FabricError),
        ("verbs", errors.VerbsError),
        (None, errors.NativeCallError),
    ],
)
def test_native_call_error_is_an_os_error(provider, expected):
    error = errors.completion_error(
        "NATIVE", "No data available", operation="fi_getinfo", provider=provider, provider_error=-61
    )
    assert type(error) is expected
    with pytest.raises(OSError, match="fi_getinfo failed: No data available"):
        raise error
    assert (error.errno, error.strerror) == (61, "No data available")
    assert (error.operation, error.provider) == ("fi_getinfo", provider)


@pytest.mark.parametrize("remake", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_survives_pickling(cls, remake):
    accepted = inspect.signature(cls).parameters if issubclass(cls, errors.PplxAsyncError) else {}
    facts = {**FACTS, "errno": 12, "provider": "fabric", "soname": "libfabric.so.1", "symbol": "fi_getinfo"}
    error = cls("a reason", **{name: value for name, value in facts.items() if name in accepted})
    error.add_note("seen in a test")
    again = remake(error)
    assert type(again) is cls
    assert (str(again), again.args) == (str(error), error.args)
    assert again.__dict__ == error.__dict__
    assert again.__notes__ == ["seen in a test"]
    if isinstance(error, OSError):
        assert (again.errno, again.strerror) == (12, "a reason")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_hints_are_sentences(cls):
    hint = getattr(cls, "default_hint", "")
    assert hint == "" or hint.endswith(".")
    if issubclass(cls, errors.PplxAsyncError):
        assert cls("no room", hint="Do this.").args == ("no room",)
        assert str(cls("no room", hint="Do this.")) == "no room. Do this."
        assert str(cls("no room", hint="")) == "no room"
