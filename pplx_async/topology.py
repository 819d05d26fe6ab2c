# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which provider and which NICs an engine opens, and the reasons, in words.

Nothing falls back silently: what was asked for is opened or the error says why not; with
``fabric="auto"`` the best that was found is opened, and `Explanation` tells what else there was.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from pplx_async._core import rt
from pplx_async.errors import PplxAsyncError, ProviderUnavailable
from pplx_async.libraries import LibraryFile, libfabric_files, library_hint
from pplx_async.options import EngineOptions, split_address
from pplx_async.placement import arrange, place_thread
from pplx_async.routes import fabric_of, host_network

__all__ = ["Choice", "Explanation", "Part", "choose", "survey", "survey_verbs"]

# Best first. The native tcp provider beats the layered one of older libraries in latency and width.
_PREFERENCE = ("efa", "tcp", "tcp;ofi_rxm")
_SURVEY_SECONDS = 30
_GPU_FLUSH = {
    "none": "GPU {} orders what NICs write there, for its own streams: no gate flushes it",
    "stream": "GPU {} is flushed of what NICs have written there by its streams, in each gate",
    "proxy": "GPU {} is flushed of what NICs have written there by the proxy thread, before it opens a gate",
}
# What the core puts before a message, and the rounding of its buffers.
_MESSAGE_HEAD_NBYTES = 128


@dataclass(frozen=True)
class Part:
    """Domains of one provider.

    Attributes
    ----------
    provider : str
        Provider of the core: ``"fabric"``, ``"verbs"``, ``"ipc"``, ``"loopback"`` or a path.
    network : str
        What moves the bytes, and whom it reaches: see ``routes.py``.
    devices : tuple of str
        A domain is opened for each.
    options : dict of str
        The provider's options.
    """

    provider: str
    network: str
    devices: tuple[str, ...]
    options: dict[str, str]


@dataclass(frozen=True)
class Choice:
    """What to open.

    Attributes
    ----------
    parts : tuple of Part
        In the order of the domains.
    why : tuple of str
        The reasons, one sentence each.
    cpu : int or None
        Where the proxy thread runs; None: anywhere.
    """

    parts: tuple[Part, ...]
    why: tuple[str, ...]
    cpu: int | None = None

    @property
    def fabric(self) -> str:
        """What moves the bytes, in words."""
        return " and ".join(fabric_of(part.network) for part in self.parts)

    @property
    def networks(self) -> tuple[str, ...]:
        """The network of each domain."""
        return tuple(part.network for part in self.parts for _ in part.devices)

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of each domain."""
        return tuple(device for part in self.parts for device in part.devices)


@dataclass(frozen=True)
class Explanation:
    """What an engine chose and why; `str` of it is for humans.

    Attributes
    ----------
    fabric : str
        What moves the bytes.
    why : tuple of str
        The reasons for it.
    domains : list of dict
        Each NIC: name, description, limits and capabilities.
    peers : list of dict
        Each peer: label, state, links, fabric; and its route: of each link the NICs, and its share of the bytes.
    notes : tuple of str
        What may surprise, such as polling on a timer.
    """

    fabric: str
    why: tuple[str, ...]
    domains: list[dict[str, Any]]
    peers: list[dict[str, Any]]
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [f"fabric: {self.fabric}", *(f"  {reason}" for reason in self.why)]
        for domain in self.domains:
            lines.append(f"domain {domain['name']}: {domain['description']}")
            lines.append(
                f"  up to {domain['max_message']} B a work request, {domain['max_inflight']} in flight per link, "
                f"{'wakes by fd' if domain['wait_fd'] else 'polled on a timer'}, "
                f"{'closing an endpoint fences' if domain['fence'] else 'no fence: memory is released by completions'}"
            )
            for gpu, how in domain["gpu_flush"].items():
                lines.append(f"  {_GPU_FLUSH[how].format(gpu)}")
        for peer in self.peers:
            lines.append(f"peer {peer['peer']}: {peer['state']}, {peer['links']} link(s) over {peer['fabric']}")
            lines += [f"  {link}" for link in peer["route"]]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def choose(options: EngineOptions) -> Choice:
    """Decide what to open.

    Raises
    ------
    ProviderUnavailable
        What was asked for is not there; or, with ``"auto"``, nothing is.
    ValueError
        This machine does not have what `EngineOptions.near` names.
    """
    choice = _choose(options)
    cpu, why = place_thread(options.near) if options.cpu is None else (options.cpu, ())
    return replace(choice, why=(*choice.why, *why), cpu=cpu)


def _choose(options: EngineOptions) -> Choice:
    node = split_address(options.listen)[0]
    if options.fabric == "loopback":
        faults = dict(options.faults.options()) if options.faults is not None else {}
        devices = options.devices or ("loop0",)
        why = ('fabric="loopback" was asked for: peers of this process only',)
        return Choice((Part("loopback", "loopback", _cycle(devices, options.domains), faults),), why)
    if options.fabric == "ipc":
        why = ('fabric="ipc" was asked for: shared memory, peers of this host and user only',)
        return Choice((_host(options, options.domains),), why)
    if options.fabric == "auto":
        return _choose_both(options, node)
    if options.fabric == "verbs":
        return _choose_verbs(options, node, 'fabric="verbs" was asked for')
    if options.fabric not in _PREFERENCE:
        found = rt.discover(options.fabric, {})
        devices = options.devices or tuple(str(device["name"]) for device in found)
        why = (f"the provider {options.fabric} was asked for",)
        # Its own name, not its path: that may differ between two processes that mean the same.
        return Choice((Part(options.fabric, str(found[0]["provider"]), _cycle(devices, options.domains), {}),), why)
    return _choose_fabric(options, node)


def _host(options: EngineOptions, domains: int) -> Part:
    devices = tuple(str(device["name"]) for device in rt.discover("ipc", {}))
    # With two peers that stand still the one that is closed waits for the other to let go of our memory, and loses it
    # for that shortly before our own time is up: what is not released then is quarantined. The rest of that time is
    # for the first one. By default it is longer than the silence that makes a peer lost. However short our time,
    # who lives is not to be lost for another one: it answers soon, but not at once.
    holders = max(0.3, 0.8 * options.drain_timeout - 0.1)
    # The proxy says nothing while it waits for a GPU that works for a peer that goes: nobody else loses us for that.
    gpu = options.peer_timeout / 3
    given = {"holders_ms": str(round(holders * 1e3)), "gpu_ms": str(round(gpu * 1e3))}
    if options.ipc_vm_writev:
        given["vm_writev"] = "1"
    if options.cuda_library is not None:
        given["libcuda"] = options.cuda_library
    return Part("ipc", host_network(), _cycle(devices, domains), given)


def _choose_both(options: EngineOptions, node: str) -> Choice:
    """Shared memory for peers of this host, NICs for the others."""
    try:
        host = _host(options, 1)
        why = ("shared memory (ipc) for peers of this host and user",)
    except ProviderUnavailable as error:
        choice = _choose_nics(options, node)
        return Choice(choice.parts, (*choice.why, f"for peers of this host too: {error.reason}"))
    try:
        choice = _choose_nics(options, node)
    except ProviderUnavailable as error:
        if options.library is not None or options.devices:
            raise  # it was asked for
        return Choice((host,), (*why, f"no peers on other hosts: {error.reason}"))
    return Choice((*choice.parts, host), (*choice.why, *why))


def _choose_nics(options: EngineOptions, node: str) -> Choice:
    """Verbs, where a device has an active port with a GID that fits; else what libfabric has."""
    if options.library is not None:  # a libfabric, as ever with "auto"
        return _choose_fabric(options, node)
    try:
        return _choose_verbs(options, node, "an RDMA device is there")
    except ProviderUnavailable as error:
        no_verbs = f"not verbs: {error.reason}"
    choice = _choose_fabric(options, node)
    return Choice(choice.parts, (*choice.why, no_verbs))


def _choose_verbs(options: EngineOptions, node: str, why: str) -> Choice:
    given = _verbs_options(options, node)
    try:
        devices = rt.discover("verbs", given)
    except ProviderUnavailable as error:
        raise ProviderUnavailable(
            f"fabric 'verbs' is not available: {error.reason}",
            provider="verbs",
            soname="libibverbs.so.1",
            hint="`ibv_devinfo` and `pplx-async info` show devices, ports and what keeps them from being used.",
        ) from error
    names = tuple(str(device["name"]) for device in devices)
    unknown = [name for name in options.devices if name not in names]
    if unknown:
        raise ProviderUnavailable(
            f"verbs has no usable device {', '.join(unknown)}; it has {', '.join(names)}", provider="verbs"
        )
    near: list[str] = []
    chosen = _cycle(options.devices or _by_distance(names, options, near), options.domains)
    shown = [f"{d['name']}: {d['description']}, {d['address']}" for d in devices if d["name"] in chosen]
    return Choice((Part("verbs", "verbs", chosen, given),), (why, *shown, *near))


def _verbs_options(options: EngineOptions, node: str) -> dict[str, str]:
    given = {
        "library": options.library if options.fabric == "verbs" else None,
        "node": node,
        "libcuda": options.cuda_library,
        "gid_index": options.verbs_gid_index,
        "pkey_index": options.verbs_pkey_index,
        "traffic_class": options.verbs_traffic_class,
        "service_level": options.verbs_service_level,
        "message_nbytes": options.message_nbytes + _MESSAGE_HEAD_NBYTES,
    }
    return {key: str(value) for key, value in given.items() if value is not None}


def _choose_fabric(options: EngineOptions, node: str) -> Choice:
    # One libfabric a process: its plug-ins are shared by name, and two libraries that took the same
    # one corrupt memory at exit. So the file is chosen before any is loaded.
    if node in ("0.0.0.0", "::", ""):
        raise ValueError(f"listen={options.listen!r}: NICs bind to one address; say which, as in 'listen=10.0.0.5:0'")
    file, *others = libfabric_files(options.library)
    wanted = _PREFERENCE if options.fabric == "auto" else (options.fabric,)
    beside = ""
    if others:
        beside = f" Not looked at: {', '.join(other.path for other in others)}; EngineOptions.library names one."
    try:
        devices = rt.discover("fabric", _fabric_options(file, node))
    except ProviderUnavailable as error:
        raise ProviderUnavailable(
            f"fabric {options.fabric!r} is not available: {error.reason}{beside}",
            provider="fabric",
            soname="libfabric.so.1",
            hint=library_hint(options.library),
        ) from error
    found = [str(device["provider"]) for device in devices]
    fabric = next((name for name in wanted if name in found), None)
    if fabric is None:
        raise ProviderUnavailable(
            f"{file.path} ({file.origin}) offers {', '.join(sorted(set(found)))}, not {options.fabric!r}.{beside}",
            provider="fabric",
        )
    names = tuple(str(device["name"]) for device in devices if device["provider"] == fabric)
    unknown = [name for name in options.devices if name not in names]
    if unknown:
        raise ProviderUnavailable(
            f"{fabric} has no device {', '.join(unknown)}; it has {', '.join(names)}", provider="fabric"
        )
    why = [f"library {file.path} ({file.origin})"]
    if options.fabric == "auto":
        rest = sorted(set(found) - {fabric})
        why.insert(0, "the best of what the library offers" + (f" (also: {', '.join(rest)})" if rest else ""))
    else:
        why.insert(0, f'fabric="{options.fabric}" was asked for')
    cuda = {} if options.cuda_library is None else {"libcuda": options.cuda_library}
    part = Part(
        "fabric",
        fabric,
        _cycle(options.devices or _by_distance(names, options, why), options.domains),
        _fabric_options(file, node) | {"provider": fabric} | cuda,
    )
    return Choice((part,), tuple(why))


def _by_distance(names: tuple[str, ...], options: EngineOptions, why: list[str]) -> tuple[str, ...]:
    """Put the devices in order, nearest first, and the reason to the others."""
    ordered, reasons = arrange(names, options.near)
    why += reasons
    return ordered


def _fabric_options(file: LibraryFile, node: str) -> dict[str, str]:
    return {"library": file.path, "node": node}


def _cycle(names: tuple[str, ...], domains: int) -> tuple[str, ...]:
    """Open each device once, and the first ones again if more domains are wanted."""
    return tuple(names[i % len(names)] for i in range(domains))


def survey(options: EngineOptions) -> list[dict[str, Any]]:
    """List every library with its devices, or the reason why it has none; for `pplx-async info`.

    Each library is loaded in a process of its own, since a process can hold only one of them.

    Returns
    -------
    list of dict
        ``library``, ``origin``, ``devices`` (as `lowlevel.discover` gives them) and ``reason``; ``gpus`` where it has
        EFA: whether it offers memory of GPUs there.
    """
    import json  # these three are needed here only, and importing the package is to be quick
    import subprocess
    import sys

    node = split_address(options.listen)[0]
    rows: list[dict[str, Any]] = []
    for file in libfabric_files(options.library):
        # -P: the user's folder is not ours to import from.
        command = [sys.executable, "-P", "-m", "pplx_async.topology", file.path, node]
        row: dict[str, Any] = {"library": file.path, "origin": file.origin, "devices": [], "reason": None}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SURVEY_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            row["reason"] = f"it did not answer within {_SURVEY_SECONDS} s"
        else:
            if done.returncode == 0:
                row |= json.loads(done.stdout)
            else:
                row["reason"] = f"looking at it ended with status {done.returncode}: {done.stderr.strip()[-500:]}"
        rows.append(row)
    return rows


def survey_verbs(options: EngineOptions) -> dict[str, Any]:
    """List the RDMA devices that the verbs provider can use, or the reason why there is none.

    Returns
    -------
    dict
        ``devices`` (as `lowlevel.discover` gives them) and ``reason``.
    """
    try:
        devices = rt.discover("verbs", _verbs_options(options, split_address(options.listen)[0]))
    except PplxAsyncError as error:
        return {"devices": [], "reason": getattr(error, "reason", str(error))}
    return {"devices": devices, "reason": None}


def _survey_one(path: str, node: str) -> dict[str, Any]:
    given = {"library": path, "node": node}
    try:
        devices = rt.discover("fabric", given)
    except PplxAsyncError as error:
        return {"reason": str(error)}
    if not any(device["provider"] == "efa" for device in devices):
        return {"devices": devices}
    try:
        return {"devices": devices, "gpus": bool(rt.discover("fabric", given | {"provider": "efa", "hmem": "cuda"}))}
    except PplxAsyncError:
        return {"devices": devices, "gpus": False}


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(_survey_one(*sys.argv[1:])))
