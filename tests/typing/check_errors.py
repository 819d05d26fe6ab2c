# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a type checker must see of the errors; run by mypy (`make types`), never imported."""

from typing import assert_type

from pplx_async import errors


def handle(error: errors.PplxAsyncError) -> str:
    assert_type(error.hint, str)
    if isinstance(error, errors.CompletionError):
        assert_type(error.status, str)
        assert_type(error.peer, str | None)
        assert_type(error.nbytes, int | None)
        assert_type(error.vendor_error, int)
    elif isinstance(error, errors.NativeCallError):
        assert_type(error.operation, str | None)
        assert_type(error.errno, int | None)
    elif isinstance(error, errors.ProviderUnavailable):
        assert_type(error.soname, str | None)
    return str(error)


def os_errors_are_caught() -> None:
    try:
        raise errors.FabricError("no data", operation="fi_getinfo", errno=61)
    except OSError as error:
        assert_type(error, OSError)


assert_type(errors.PeerLost("gone", peer="a", operation="write").peer, str | None)
assert_type(errors.completion_error("TRANSPORT", "broken"), BaseException)
