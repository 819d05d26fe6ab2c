# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What an exception has to say of an operation that failed: all of it, as attributes and in its text."""

from __future__ import annotations

from pplx_async import CompletionError, Peer


def check_told(failure: BaseException | None, kind: type[CompletionError], peer: Peer, operation: str | None) -> None:
    """Check that a failure of this class names peer, NIC, operation, status, native code, and what to do."""
    assert isinstance(failure, kind), f"{operation}: {failure!r}"
    domains = [domain["name"] for domain in peer.engine.explain().domains]
    assert failure.operation == operation, f"{operation}: {failure.operation}"
    assert failure.peer == peer.label, f"{operation}: {failure.peer}"
    assert failure.domain in domains, f"{operation}: {failure.domain}"
    assert failure.status == kind.default_status, f"{operation}: {failure.status}"
    assert isinstance(failure.provider_error, int), operation
    assert failure.reason, operation
    assert failure.hint, operation
    words = [operation or "", peer.label, failure.domain, failure.reason.rstrip("."), failure.hint]
    if failure.provider_error:
        words.append(f"provider error {failure.provider_error} ")
    if failure.nbytes is not None:
        words.append(f" {failure.nbytes} B ")
    for word in words:
        assert word in str(failure), f"{operation}: no {word!r} in: {failure}"
