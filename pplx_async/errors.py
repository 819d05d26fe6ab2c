# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Every exception and warning of the package, and the one map from native status to exception.

Failures reach the user by four channels: a call raises, an awaited operation raises, a destructor
warns, and the proxy thread counts and reports by status. Misuse is ``TypeError`` or ``ValueError``,
running out of time is ``TimeoutError`` from ``asyncio.timeout``, and cancelling is
``CancelledError`` and nothing else; none of these is wrapped.
"""

from asyncio import CancelledError
from errno import EMFILE
from typing import Any, ClassVar

__all__ = [
    "BrokenResourceError",
    "CleanupWarning",
    "ClosedResourceError",
    "CompletionError",
    "CudaError",
    "FabricError",
    "LeakWarning",
    "NativeCallError",
    "PeerLost",
    "PplxAsyncError",
    "ProviderUnavailable",
    "QueueFull",
    "RailLost",
    "RegistrationError",
    "RemoteAccessError",
    "UnreleasedMemory",
    "VerbsError",
    "WorkFlushed",
    "completion_error",
]


_NO_DESCRIPTORS = "Raise the limit of open files (`ulimit -n`), or close what is not needed."


def _hint(code: int, hint: str | None) -> str | None:
    """Say what helps where there are no descriptors, whatever else helps with such a call."""
    return _NO_DESCRIPTORS if hint is None and code == EMFILE else hint


class PplxAsyncError(Exception):
    """Base of every exception that this package defines.

    Parameters
    ----------
    reason : str
        What happened.
    hint : str, optional
        What would help; by default the hint of the class.

    Attributes
    ----------
    reason : str
        As given.
    hint : str
        One sentence, or an empty string.
    """

    default_hint: ClassVar[str] = ""

    def __init__(self, reason: str = "", *, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = self.default_hint if hint is None else hint

    def __str__(self) -> str:
        return f"{self.reason.rstrip('.')}. {self.hint}" if self.hint else self.reason

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments defeat the inherited protocol, which calls the class with `args`.
        return _rebuild, (type(self), self.args), self._state()

    def _state(self) -> dict[str, Any]:
        return self.__dict__


def _rebuild(cls: type[PplxAsyncError], args: tuple[Any, ...]) -> PplxAsyncError:
    error = cls.__new__(cls)
    error.args = args
    return error


class ProviderUnavailable(PplxAsyncError):
    """A provider cannot be used here: its library or its device is missing.

    Parameters
    ----------
    reason : str
        What is missing, with the loader's own words where it said any.
    provider : str, optional
        ``"fabric"``, ``"ipc"``, ``"loopback"`` or the path of a provider.
    soname : str, optional
        The library that was looked for.
    symbol : str, optional
        The function that the library lacks.
    hint : str, optional
        What to install.
    """

    default_hint = "`pplx-async info` lists the libraries and devices that were found, and how to get the missing ones."

    def __init__(
        self,
        reason: str = "",
        *,
        provider: str | None = None,
        soname: str | None = None,
        symbol: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(reason, hint=hint)
        self.provider = provider
        self.soname = soname
        self.symbol = symbol


class NativeCallError(PplxAsyncError, OSError):
    """A call into a library or the kernel failed.

    Parameters
    ----------
    reason : str
        The library's or the kernel's own text.
    operation : str, optional
        The call that failed, for example ``"fi_domain"``.
    errno : int, optional
        Positive native code: an errno, ``fi_errno`` or ``CUresult``; 0 if there is none.
    provider : str, optional
        Who made the call.
    hint : str, optional
        What would help.
    """

    def __init__(
        self,
        reason: str = "",
        *,
        operation: str | None = None,
        errno: int = 0,
        provider: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(reason, hint=_hint(errno, hint))
        # OSError's own slots, which it fills itself only when it is given (errno, text).
        self.errno = errno
        self.strerror = reason
        self.operation = operation
        self.provider = provider

    def __str__(self) -> str:
        code = f" [errno {self.errno}]" if self.errno else ""
        text = f"{self.operation} failed: {self.reason}{code}" if self.operation else f"{self.reason}{code}"
        return f"{text.rstrip('.')}. {self.hint}" if self.hint else text

    def _state(self) -> dict[str, Any]:
        return {**self.__dict__, "errno": self.errno, "strerror": self.strerror}


class VerbsError(NativeCallError):
    """A libibverbs call failed."""


class FabricError(NativeCallError):
    """A libfabric call failed."""


class CudaError(NativeCallError):
    """A CUDA driver call failed."""


class CompletionError(PplxAsyncError):
    """An operation was accepted and failed later.

    What holds then: the local memory is released. A write may have changed any part of its
    destination; it counted nothing there, or the peer's counter is broken and says so.

    Parameters
    ----------
    reason : str
        The message of the status, or the provider's own.
    status : str
        Name of the status, as in ``status.h``: ``"TRANSPORT"``.
    operation : str, optional
        ``"write"``, ``"read"``, ``"send"`` ...
    peer : str, optional
        The other side.
    domain : str, optional
        The NIC.
    nbytes : int, optional
        Size of the whole operation.
    provider_error : int, optional
        Native code: ``fi_errno`` or ``ibv_wc_status``; 0 if there is none.
    hint : str, optional
        What would help; by default the hint of the class.
    """

    default_status: ClassVar[str] = "TRANSPORT"
    default_hint = "engine.explain() shows the route to this peer, engine.stats() what failed on it before."

    def __init__(
        self,
        reason: str = "",
        *,
        status: str | None = None,
        operation: str | None = None,
        peer: str | None = None,
        domain: str | None = None,
        nbytes: int | None = None,
        provider_error: int = 0,
        hint: str | None = None,
    ) -> None:
        super().__init__(reason, hint=hint)
        self.status = self.default_status if status is None else status
        self.operation = operation
        self.peer = peer
        self.domain = domain
        self.nbytes = nbytes
        self.provider_error = provider_error

    @property
    def vendor_error(self) -> int:
        """The native code, by the name that verbs gives it."""
        return self.provider_error

    def __str__(self) -> str:
        text = _sentence(self.reason, self.operation, self.peer, self.domain, self.nbytes, self.provider_error)
        return f"{text.rstrip('.')}. {self.hint}" if self.hint else text


class RemoteAccessError(CompletionError):
    """The peer's NIC refused: the region was revoked or closed, or the range is not inside it."""

    default_status = "REMOTE_ACCESS"
    default_hint = "Ask the peer for a fresh descriptor, and check the slice against the region's nbytes and access."


class PeerLost(CompletionError):
    """The peer died, was cut off, or cannot be reached any more."""

    default_status = "PEER_LOST"
    default_hint = "Connect to the peer again once it is back; its old descriptors and counters are no longer valid."


class RailLost(CompletionError):
    """The link between a NIC of ours and one of the peer's is lost; the peer is reached over others.

    Attributes
    ----------
    link : int or None
        Which of the peer's links, as in ``peer.stats().links``.
    """

    default_status = "RAIL_LOST"
    default_hint = (
        "Submit it again: other links carry it. A counter that it was for is broken. Connect again to use the link."
    )
    link: int | None = None


class WorkFlushed(CompletionError):
    """The endpoint was closed while the operation was queued or in flight."""

    default_status = "FLUSHED"
    default_hint = "Await the transfers, or engine.drain(), before closing the peer or the engine."


class RegistrationError(PplxAsyncError):
    """The memory could not be registered.

    Parameters
    ----------
    reason : str
        The provider's own words.
    nbytes : int, optional
        Size of the memory.
    domain : str, optional
        The NIC that refused.
    provider_error : int, optional
        Native code; 0 if there is none.
    hint : str, optional
        What would help.
    """

    default_hint = (
        "Check `ulimit -l` (locked memory), and that the buffer is writable where peers may write; "
        "engine.explain() says which memory this fabric can reach."
    )

    def __init__(
        self,
        reason: str = "",
        *,
        nbytes: int | None = None,
        domain: str | None = None,
        provider_error: int = 0,
        hint: str | None = None,
    ) -> None:
        super().__init__(reason, hint=_hint(provider_error, hint))
        self.nbytes = nbytes
        self.domain = domain
        self.provider_error = provider_error


class ClosedResourceError(PplxAsyncError):
    """You closed it: the engine, peer, region or counter is no longer usable."""

    default_hint = "Keep the object open, with `async with`, for as long as operations use it."


class BrokenResourceError(PplxAsyncError):
    """The fabric broke it; ``__cause__`` says why, where it is known."""

    default_hint = "Replace it: a broken counter or peer never recovers."


class UnreleasedMemory(PplxAsyncError):
    """The provider never let go of the memory: the region is quarantined and is not freed.

    Its pages stay registered and alive until the process ends, since a NIC may still touch them.
    """

    default_hint = "Do not reuse these pages; closing the peer usually releases them, a longer drain_timeout may."


class QueueFull(PplxAsyncError):
    """More than ``max_pending`` requests are queued; this one was not."""

    default_hint = "Await engine.drain() first, or raise EngineOptions.max_pending."


class LeakWarning(ResourceWarning):
    """A resource was garbage-collected while still open."""


class CleanupWarning(RuntimeWarning):
    """A failure where nothing can be raised: in a destructor or while the event loop goes away."""


#: What would reach memory of a GPU.
GPU_HINT = (
    'fabric="ipc" reaches it inside a host, if other processes can open it; a NIC needs dma-buf or nvidia_peermem: see '
    "`pplx-async doctor`."
)

# The kinds of failure whose class takes the facts of an operation.
_COMPLETION_ERRORS: dict[str, type[CompletionError]] = {
    cls.default_status: cls for cls in (RemoteAccessError, PeerLost, RailLost, WorkFlushed)
}
_NATIVE_ERRORS: dict[str | None, type[NativeCallError]] = {
    "cuda": CudaError,
    "fabric": FabricError,
    "verbs": VerbsError,
}
# What needs no more than a sentence. AGAIN gets this far only when the engine's queues are full.
_PLAIN_ERRORS: dict[str, type[Exception]] = {
    "AGAIN": QueueFull,
    "CLOSED": ClosedResourceError,
    "INVALID": ValueError,
    "NO_MEMORY": MemoryError,
    "POISONED": BrokenResourceError,
    "TOO_LARGE": ValueError,
    "UNRELEASED": UnreleasedMemory,
}
# How an operation and its peer go together in a sentence; the others are "to" it.
_PREPOSITIONS = {
    "barrier": "with",
    "counter": "for",
    "group": "with",
    "lookup": "at",
    "read": "from",
    "receive": "from",
    "recv": "from",
    "take": "for",
    "wait": "for",
}


def completion_error(
    status: str,
    message: str,
    *,
    operation: str | None = None,
    peer: str | None = None,
    domain: str | None = None,
    nbytes: int | None = None,
    provider_error: int = 0,
    provider: str | None = None,
    hint: str | None = None,
) -> BaseException:
    """Make the exception for a native status: the only place that maps one to the other.

    Parameters
    ----------
    status : str
        Name of the status in ``status.h``, any but ``"OK"``.
    message : str
        The status's message, or the provider's own where it has more to say.
    operation, peer, domain : str, optional
        What failed, with whom, on which NIC.
    nbytes : int, optional
        Size of the whole operation.
    provider_error : int, optional
        Native code, 0 if there is none.
    provider : str, optional
        ``"cuda"``, ``"fabric"`` or ``"verbs"``: narrows ``"NATIVE"`` to that library's class.
    hint : str, optional
        Instead of the hint of the class.

    Returns
    -------
    BaseException
        To be raised or set on a future. A name that is not listed here is a `CompletionError`, so
        that no status is dropped.

    Raises
    ------
    ValueError
        ``status`` is ``"OK"``: there is nothing to raise.
    """
    if status == "OK":
        raise ValueError("OK is not an error")
    if status == "CANCELLED":
        return CancelledError()
    if status == "NATIVE":
        cls = _NATIVE_ERRORS.get(provider, NativeCallError)
        return cls(message, operation=operation, errno=abs(provider_error), provider=provider, hint=hint)
    text = _sentence(message, operation, peer, domain, nbytes, provider_error)
    if status == "UNAVAILABLE":
        return ProviderUnavailable(text, provider=provider, hint=hint)
    if status == "REGISTRATION":
        return RegistrationError(text, nbytes=nbytes, domain=domain, provider_error=provider_error, hint=hint)
    if status in _PLAIN_ERRORS:
        plain = _PLAIN_ERRORS[status]
        return plain(text, hint=hint) if issubclass(plain, PplxAsyncError) else plain(text)
    return _COMPLETION_ERRORS.get(status, CompletionError)(
        message,
        status=status,
        operation=operation,
        peer=peer,
        domain=domain,
        nbytes=nbytes,
        provider_error=provider_error,
        hint=hint,
    )


def _sentence(
    reason: str,
    operation: str | None,
    peer: str | None,
    domain: str | None,
    nbytes: int | None,
    provider_error: int,
) -> str:
    """Say ``write of 4096 B to peer 0c:42... failed: reason [provider error 5 on nic0]``."""
    where = " on " + domain if domain else ""
    code = f" [provider error {provider_error}{where}]" if provider_error else f" [{where.strip()}]" if where else ""
    if operation is None:
        return (f"peer {peer}: " if peer else "") + reason + code
    size = "" if nbytes is None else f" of {nbytes} B"
    whom = "" if peer is None else f" {_PREPOSITIONS.get(operation, 'to')} peer {peer}"
    return f"{operation}{size}{whom} failed: {reason}{code}"
