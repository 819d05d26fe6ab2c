# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Options of an engine, and the only place that reads ``PPLX_ASYNC_*`` environment variables."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import math
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ssl import SSLContext

__all__ = ["FABRICS", "EngineOptions", "EnvironmentVariable", "SupportsFaults", "join_address", "split_address"]

FABRICS: Final = ("auto", "verbs", "tcp", "tcp;ofi_rxm", "efa", "ipc", "loopback")

_PREFIX: Final = "PPLX_ASYNC_"
_NOT_OURS: Final = frozenset({"PPLX_ASYNC_SANITIZE"})  # the build reads it
_log = logging.getLogger("pplx_async.options")


@runtime_checkable
class SupportsFaults(Protocol):
    """A plan of faults, as :class:`pplx_async.testing.FaultPlan` is one."""

    def options(self) -> Mapping[str, str]:
        """Give the plan as options of the ``loopback`` provider."""
        ...


class EnvironmentVariable(NamedTuple):
    """One variable that :meth:`EngineOptions.from_env` reads."""

    variable: str
    field: str
    default: str
    help: str


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("expected 1 or 0")


def _integer(text: str) -> int:
    return int(text, 0)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] = str,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    show: bool = True,
) -> Any:
    """Declare a field that the environment may set: its default, how to read it from text, its range."""
    metadata = {"help": help, "parse": parse, "low": low, "high": high, "unit": unit}
    return dataclasses.field(default=default, repr=show, metadata=metadata)


def _count(default: int | None, help: str, low: int, high: int, unit: str = "") -> Any:
    return _option(default, help, parse=_integer, low=low, high=high, unit=unit)


def _seconds(default: float, help: str, low: float, high: float) -> Any:
    return _option(default, help, parse=float, low=low, high=high, unit="s")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is set up; checked when made, and the same for the engine's whole life.

    Each field is also read from the environment by :meth:`from_env`: ``PPLX_ASYNC_`` and the
    field's name in capitals, where the list below doesn't say otherwise. Times are float seconds.

    Parameters
    ----------
    fabric : str
        What moves the bytes: one of `FABRICS`, or the path of a provider's shared object.
        ``"ipc"`` reaches processes of this host and user. ``"auto"`` takes the best that is found;
        nothing falls back silently.
    domains : int
        NICs to use, or how often to open the one there is; 1 to 8.
    devices : tuple of str
        Names of the NICs; empty: chosen by rule. In the environment separated by commas. With
        ``fabric="verbs"`` ``"mlx4_0:2"`` is the second port of a device.
    near : str, optional
        Whose NICs and CPU to take where neither `devices` nor `cpu` says: ``"gpu3"`` as ``nvidia-smi`` counts,
        a GPU's PCI address, which CUDA tells, or ``"numa1"``. None: the NUMA node whose CPUs alone this
        process may use, if it is bound to one of several.
    cuda_library : str, optional
        Path of the ``libcuda.so.1`` to load, instead of the one that the system finds; only where memory of a GPU is
        registered.
    library : str, optional
        Path of the libfabric to load, instead of searching for one; with ``fabric="verbs"`` of the libibverbs.
    listen : str
        ``"host:port"`` of the control channel; port 0 takes a free one. Endpoints are bound to
        the same host. Beyond loopback a secret or TLS with client certificates is required.
    advertise : str, optional
        ``"host"`` or ``"host:port"`` that peers connect to, where it isn't what `listen` says.
    secret : bytes or str, optional
        Shared by all engines that may talk to each other, best 32 random bytes. Never shown.
    ssl_server, ssl_client : ssl.SSLContext, optional
        TLS of the control channel, for connections to us and from us; no environment variable.
    allow_insecure : bool
        With neither secret nor client certificates listen beyond loopback; and take peers of any user of
        this host, not of our own only.
    ring_entries : int
        Requests that the submit ring holds, a power of two.
    max_pending : int
        Requests queued before `QueueFull` is raised.
    wakeup : {"eventfd", "spin"}
        How what has finished reaches the event loop. ``"eventfd"``: the loop is woken, and costs nothing
        while it waits, but that it polls for `spin` seconds after the last activity where that pays.
        ``"spin"``, low latency: the loop's thread does the NICs' work while it waits and
        polls as long as transfers pend, for up to `spin` seconds after the last activity: at most a core's
        worth of CPU, and for two processes on two cores only where nothing else wants them.
    progress : {"auto", "loop", "proxy"}
        Which thread the NICs wake. ``"proxy"``: the proxy thread, which wakes the loop; best where cores
        are to spare. ``"loop"``: the event loop's, the proxy does what is large and steps in when the loop
        is busy; best on few cores. ``"auto"``: ``"loop"`` on fewer than 4 cores.
    spin : float
        How long the proxy thread, or with ``progress="loop"`` the event loop between its other work,
        polls after the last activity before it sleeps; twice as long where that pays.
    poll_interval : float
        Between polls of a sleeping proxy thread, for providers that cannot wake it.
    heartbeat_interval : float
        Between heartbeats to each peer; 0: none.
    peer_timeout : float
        Silence that makes a peer lost, at least twice `heartbeat_interval`.
    again_timeout : float
        How long a provider may refuse work for now until the peer is lost.
    connect_timeout : float
        For a connect, and for the handshake of a peer that connects to us.
    drain_timeout : float
        How long a close waits for memory to be released before it is quarantined.
    revoke_timeout : float
        How long a revoke waits for each holder's confirmation before it cuts the holder off.
    shard_nbytes : int
        Bytes from which on a write is cut over several NICs.
    rail_failover : bool
        When a link to a peer is lost that has others, send what it had in flight again on those, where that is
        safe: reads, and writes that carry no immediate. What else it had fails with `RailLost`.
    message_nbytes : int
        Bytes of the largest two-sided message.
    message_slots : int
        Receives kept posted for each peer, 1 to 2000, or fewer where the fabric takes fewer: so many of its
        messages may be on their way here or unread.
    ipc_vm_writev : bool
        Let peers of this host that say the same write to ordinary memory, what `TransferEngine.empty` did
        not make, by one copy (process_vm_writev) where the kernel lets them. A peer may then read and
        write all memory of this process: only for peers you trust.
    verbs_gid_index, verbs_pkey_index : int, optional
        Entries of a port's tables to use with ``fabric="verbs"``, instead of choosing by rule.
    verbs_traffic_class : int, optional
        Of RoCE's packets, for networks that tell lossless traffic by it.
    verbs_service_level : int, optional
        Of InfiniBand's, for networks that route or rank by it; RoCE's priority.
    cpu : int, optional
        CPU that the proxy thread is pinned to. None: one near the GPU or node that `near` names, if there
        are cores to spare; else any. In the environment, empty is None.
    faults : SupportsFaults, optional
        Faults to inject; only with ``fabric="loopback"``; no environment variable.
    name : str
        Name of the engine in errors and logs, at most 128 characters.

    Raises
    ------
    ValueError
        A value is out of range; the text names the field, the value and the range.
    TypeError
        A value has the wrong type.
    """

    fabric: str = _option(
        "auto", "what moves the bytes: auto, verbs, tcp, tcp;ofi_rxm, efa, ipc, loopback, or a provider's path"
    )
    domains: int = _count(1, "NICs to use, or how often to open the one there is", 1, 8)
    devices: tuple[str, ...] = _option((), "names of the NICs, separated by commas; empty: by rule", parse=_names)
    near: str | None = _option(None, "whose NICs and CPU to take: gpu3, a GPU's PCI address, or numa1")
    cuda_library: str | None = _option(None, "path of libcuda.so.1")
    library: str | None = _option(None, "path of libfabric.so.1, or with verbs of libibverbs.so.1")
    listen: str = _option("127.0.0.1:0", "host:port of the control channel")
    advertise: str | None = _option(None, "host or host:port that peers connect to")
    secret: bytes | str | None = _option(None, "shared secret of the engines", show=False)
    ssl_server: SSLContext | None = None
    ssl_client: SSLContext | None = None
    allow_insecure: bool = _option(False, "listen beyond loopback without a secret", parse=_boolean)
    ring_entries: int = _count(1024, "entries of the submit ring, a power of two", 2, 1 << 20)
    max_pending: int = _count(65536, "requests queued before QueueFull", 1, 1 << 31)
    wakeup: str = _option("eventfd", "how completions reach the event loop, 'eventfd' or 'spin'")
    progress: str = _option("auto", "which thread the NICs wake, 'loop', 'proxy' or 'auto'")
    spin: float = _seconds(50e-6, "polling after the last activity", 0.0, 1.0)
    poll_interval: float = _seconds(1e-3, "between polls, for providers without a wait fd", 1e-6, 1.0)
    heartbeat_interval: float = _seconds(0.25, "between heartbeats; 0: none", 0.0, 3600.0)
    peer_timeout: float = _seconds(3.0, "silence that makes a peer lost", 1e-3, 86400.0)
    again_timeout: float = _seconds(3.0, "refusals for now that make a peer lost", 1e-3, 86400.0)
    connect_timeout: float = _seconds(10.0, "for a connect or a handshake", 1e-3, 86400.0)
    drain_timeout: float = _seconds(5.0, "for memory to be released at close", 0.0, 86400.0)
    revoke_timeout: float = _seconds(5.0, "for holders to confirm a revoke", 0.0, 86400.0)
    shard_nbytes: int = _count(256 << 10, "writes from this size on are cut over NICs", 4096, 1 << 40, "B")
    rail_failover: bool = _option(False, "send what a lost link had again on others, where safe", parse=_boolean)
    message_nbytes: int = _count(8192, "largest two-sided message", 64, 1 << 20, "B")
    message_slots: int = _count(16, "receives kept posted per peer", 1, 2000)
    ipc_vm_writev: bool = _option(False, "one copy into ordinary memory of peers you trust, with ipc", parse=_boolean)
    verbs_gid_index: int | None = _count(None, "entry of the port's GID table, with verbs", 0, 255)
    verbs_pkey_index: int | None = _count(None, "entry of the port's P_Key table, with verbs", 0, 65535)
    verbs_traffic_class: int | None = _count(None, "traffic class of RoCE, with verbs", 0, 255)
    verbs_service_level: int | None = _count(None, "service level of InfiniBand, with verbs", 0, 15)
    cpu: int | None = _count(None, "CPU for the proxy thread", 0, 65535)
    faults: SupportsFaults | None = None
    name: str = _option("", "name in errors and logs")

    def __post_init__(self) -> None:
        """Check every field by itself, then those that depend on each other."""
        for field in dataclasses.fields(self):
            self._check(field, getattr(self, field.name))
        if self.fabric not in FABRICS and "/" not in self.fabric and not self.fabric.endswith(".so"):
            near = difflib.get_close_matches(self.fabric, FABRICS, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"fabric={self.fabric!r}: expected one of {', '.join(FABRICS)}, or a path{guess}")
        if self.wakeup not in ("eventfd", "spin"):
            raise ValueError(f"wakeup={self.wakeup!r}: expected 'eventfd' or 'spin'")
        if self.progress not in ("auto", "loop", "proxy"):
            raise ValueError(f"progress={self.progress!r}: expected 'auto', 'loop' or 'proxy'")
        if self.ring_entries & (self.ring_entries - 1):
            raise ValueError(f"ring_entries={self.ring_entries}: expected a power of two")
        if self.peer_timeout < 2 * self.heartbeat_interval:
            raise ValueError(
                f"peer_timeout={self.peer_timeout}: expected at least twice heartbeat_interval="
                f"{self.heartbeat_interval}, or one late heartbeat loses the peer"
            )
        if self.faults is not None and self.fabric != "loopback":
            raise ValueError(f"faults: only loopback injects faults, and fabric={self.fabric!r}")
        if self.secret is not None and not self.secret:
            raise ValueError("secret is empty: leave it out, or give at least a few random bytes")
        if len(self.name) > 128:
            raise ValueError(f"name of {len(self.name)} characters: expected at most 128")
        _check_address("listen", self.listen)
        if self.advertise is not None:
            _check_address("advertise", self.advertise, port_optional=True)

    @property
    def secret_bytes(self) -> bytes | None:
        """The secret as bytes; text is taken as UTF-8, whatever bytes the environment had."""
        return self.secret.encode("utf-8", "surrogateescape") if isinstance(self.secret, str) else self.secret

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, /, **overrides: Any) -> EngineOptions:
        """Make options from the environment; what is given as an argument wins.

        Parameters
        ----------
        environ : mapping of str to str, optional
            Instead of ``os.environ``.
        **overrides
            Fields of this class.

        Raises
        ------
        ValueError
            A variable can't be read or is out of range; the text names it.
        TypeError
            An override is no field, or has the wrong type.
        """
        environ = os.environ if environ is None else environ
        known = {_PREFIX + field.name.upper(): field for field in _readable()}
        values: dict[str, Any] = {}
        for variable in sorted(key for key in environ if key.startswith(_PREFIX) and key not in _NOT_OURS):
            field = known.get(variable)
            if field is None:
                near = difflib.get_close_matches(variable, known, 1)
                _log.warning("%s is no option and is ignored%s", variable, f"; is {near[0]} meant?" if near else "")
            elif field.name not in overrides:
                values[field.name] = _read(field, variable, environ[variable])
        return cls(**(values | overrides))

    @staticmethod
    def env_variables() -> tuple[EnvironmentVariable, ...]:
        """List the variables that :meth:`from_env` reads, in the order of the fields."""
        rows = []
        for field in _readable():
            unit = field.metadata["unit"]
            default = int(field.default) if isinstance(field.default, bool) else field.default
            shown = "" if default in (None, ()) else f"{default} {unit}".rstrip()
            rows.append(EnvironmentVariable(_PREFIX + field.name.upper(), field.name, shown, field.metadata["help"]))
        return tuple(rows)

    @staticmethod
    def _check(field: dataclasses.Field[Any], value: Any) -> None:
        name = field.name
        if name in _OPTIONAL and value is None:
            return
        if field.metadata.get("low") is not None:
            low, high = field.metadata["low"], field.metadata["high"]
            whole = field.metadata["parse"] is _integer
            try:
                # bool is an int to Python and a slip to us; float() would take text.
                if isinstance(value, (bool, str)):
                    raise TypeError
                number = operator.index(value) if whole else float(value)
            except TypeError:
                expected = "an integer" if whole else "a number of seconds"
                raise TypeError(f"{name}={value!r}: expected {expected}") from None
            if not low <= number <= high or math.isnan(number):
                unit = field.metadata["unit"]
                raise ValueError(f"{name}={value!r}: expected {low} to {high} {unit}".rstrip())
        elif name == "devices":
            if not isinstance(value, tuple) or not all(isinstance(item, str) and item for item in value):
                raise TypeError(f"devices={value!r}: expected a tuple of names")
        elif name == "faults":
            if not isinstance(value, SupportsFaults):
                raise TypeError(f"faults={value!r}: expected a FaultPlan")
        elif name.startswith("ssl_"):
            if not hasattr(value, "wrap_bio"):  # without importing ssl, which is slow
                raise TypeError(f"{name}={value!r}: expected an ssl.SSLContext")
        elif name == "secret":
            if not isinstance(value, (bytes, str)):
                raise TypeError(f"secret: expected bytes or str, got {type(value).__name__}")
        elif isinstance(field.default, bool):
            if not isinstance(value, bool):
                raise TypeError(f"{name}={value!r}: expected True or False")
        elif not isinstance(value, str):
            raise TypeError(f"{name}={value!r}: expected str")
        elif not value and name in {"fabric", "near", "library", "cuda_library", "listen", "advertise"}:
            raise ValueError(f"{name} is empty")


_OPTIONAL: Final = frozenset(f.name for f in dataclasses.fields(EngineOptions) if f.default is None)


def _readable() -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(EngineOptions) if field.metadata]


def _read(field: dataclasses.Field[Any], variable: str, text: str) -> Any:
    """Read one variable; an empty one means None where the field may be None."""
    if not text and field.name in _OPTIONAL:
        return None
    try:
        value = field.metadata["parse"](text)
        EngineOptions._check(field, value)
    except ValueError as error:
        shown = "" if field.name == "secret" else f"={text!r}"
        raise ValueError(f"{variable}{shown}: {error}") from None
    return value


def split_address(address: str) -> tuple[str, int]:
    """Split ``"host:port"`` or ``"[ipv6]:port"``; the port is 0 to 65535.

    Raises
    ------
    ValueError
        It has another form.
    """
    host, colon, digits = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    # int() takes more than digits ("+1", "1_0", other scripts' numerals): a port is plain digits.
    plain = digits.isascii() and digits.isdigit() and len(digits) <= 5
    if not colon or not host or (":" in host and not bracketed) or not plain:
        raise ValueError(f"address {address!r}: expected 'host:port' or '[ipv6]:port'")
    if int(digits) > 65535:
        raise ValueError(f"address {address!r}: the port is 0 to 65535")
    return host, int(digits)


def join_address(host: str, port: int) -> str:
    """Write an address so that :func:`split_address` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_address(name: str, address: str, *, port_optional: bool = False) -> None:
    try:
        split_address(address)
    except ValueError:
        if port_optional and not address.endswith(":"):
            # A bare host: valid if a port makes an address of it.
            if ":" not in address:
                return
            expected = "'host', 'host:port' or '[ipv6]:port'"
        else:
            expected = "'host:port' or '[ipv6]:port', port 0 to 65535"
        raise ValueError(f"{name}={address!r}: expected {expected}") from None
