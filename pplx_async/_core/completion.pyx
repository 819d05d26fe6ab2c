# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a completion queue gives. Made without running any Python code, which could be interrupted."""

cimport cython

from pplx_async._core.includes.pplx cimport PPLX_OK
from pplx_async._core.rt cimport api

from pplx_async import errors

__all__ = ["Completion"]

# The hints of the classes are about the engine, which is not in play here.
_HINTS = {
    "CONNECTION": "A refused key and a peer that has died look the same here: post once more to find out.",
    "FLUSHED": "Read the completions of what was posted before closing its endpoint.",
    "REMOTE_ACCESS": "Ask the peer which address, key and length it has registered, and for what.",
}


@cython.freelist(64)
cdef class Completion:
    """One finished operation, or what a peer's operation delivered here.

    Attributes
    ----------
    operation : str
        ``"write"``, ``"read"``, ``"send"``, ``"recv"``: one of ours has ended. ``"remote_write"``: a
        peer's write with immediate data has landed.
    context : object
        What was given when it was posted; None for a peer's.
    flags : int
        The library's own bits, ``FI_RMA | FI_WRITE`` for example. 0 where it said nothing.
    imm : int or None
        The 32 bits of immediate data that a peer's write brought.
    nbytes : int
        Bytes that a receive got, or that another operation of ours moved; 0 if it failed.
    error : Exception or None
        Why it failed: a `CompletionError` nearly always, by its ``status``.
    """

    def __init__(self, str operation, *, context=None, flags=0, imm=None, nbytes=0, error=None) -> None:
        self.operation = operation
        self.context = context
        self.flags = flags
        self.imm = imm
        self.nbytes = nbytes
        self._error = error

    @property
    def error(self):
        if self._error is None and self.status != PPLX_OK:
            name = api.status_name(self.status).decode()
            self._error = errors.completion_error(
                name,
                api.status_text(self.status).decode(),
                operation=self.operation,
                peer=self.peer,
                nbytes=self.asked,
                provider_error=self.provider_error,
                hint=_HINTS.get(name, ""),
            )
        return self._error

    def raise_for_error(self) -> Completion:
        """Raise `error` if there is one, and return the completion if not."""
        if self.error is not None:
            raise self.error
        return self

    def __repr__(self) -> str:
        imm = "" if self.imm is None else f", imm {self.imm}"
        failed = "" if self.error is None else f", failed: {self.error!r}"
        return f"<Completion of {self.operation}, {self.nbytes} B{imm}{failed}>"
