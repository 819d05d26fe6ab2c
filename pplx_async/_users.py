# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Whose process is at the other end of a connection inside this host: the kernel knows."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from typing import Any, Final

__all__ = ["is_connected", "is_loopback", "stranger", "user_behind"]

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_ANY_COOKIE: Final = 0xFFFFFFFF
_ESTABLISHED: Final = 1  # net/tcp_states.h
_MAPPED: Final = bytes(10) + b"\xff\xff"
_HEAD: Final = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST: Final = struct.Struct("=BBBxI")  # inet_diag_req_v2, up to its inet_diag_sockid
_ID: Final = struct.Struct("!HH16s16s")  # of that: ports and addresses
_ID_END: Final = struct.Struct("=III")  # interface, cookie
_ANSWER: Final = struct.Struct("=BB2x48x12xI")  # inet_diag_msg, up to idiag_uid


def is_loopback(address: str) -> bool:
    """Whether an address, as a number, is of this host only."""
    return _plain(address).is_loopback


def stranger(ours: Any, theirs: Any) -> str | None:
    """Say why the other end of a connection may not be a peer: it is another user's, or the kernel can't say."""
    user, us = user_behind(ours, theirs), os.geteuid()
    if user == us:
        return None
    return (
        f"the process on the other side is of {'an unknown user' if user is None else f'user {user}'}, this one of "
        f"user {us}: give both engines the same EngineOptions.secret, or say allow_insecure=True on both where all "
        "users of this host may come in"
    )


def is_connected(ours: Any, theirs: Any) -> bool:
    """Whether our end of a connection stands, as far as the kernel says."""
    return user_behind(theirs, ours) is not None


def user_behind(ours: Any, theirs: Any) -> int | None:
    """Return the user id of the socket at the other end of a connection inside this host.

    Parameters
    ----------
    ours, theirs : tuple
        The addresses of our end, as the socket module gives them: host, port and what may follow.

    Returns
    -------
    int or None
        None if the kernel knows of no such socket, or it was closed: then there is no user to name.

    Source
    ------
    sock_diag(7); proc(5), /proc/net/tcp, where the kernel has no sock_diag.
    """
    here, there = _plain(ours[0]), _plain(theirs[0])
    try:
        return _ask(there.packed, theirs[1], here.packed, ours[1])
    except OSError:
        return _look(there.packed, theirs[1], here.packed, ours[1])


def _ask(local: bytes, port: int, remote: bytes, remote_port: int) -> int | None:
    family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _ESTABLISHED)
    request += _ID.pack(port, remote_port, local, remote) + _ID_END.pack(0, _ANY_COOKIE, _ANY_COOKIE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as asked:
        asked.setblocking(False)  # the kernel answers before send() returns
        asked.send(_HEAD.pack(_HEAD.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
        answer = asked.recv(4096)
    if _HEAD.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY or len(answer) < _HEAD.size + _ANSWER.size:
        raise OSError("no such socket, or no sock_diag for TCP")
    _, state, user = _ANSWER.unpack_from(answer, _HEAD.size)
    # One that was closed has no owner, and some kernels say 0 then.
    return int(user) if state == _ESTABLISHED else None


def _look(local: bytes, port: int, remote: bytes, remote_port: int) -> int | None:
    tables = [("/proc/net/tcp6", local, remote)]
    if len(local) == 4:  # an IPv6 socket may be at an IPv4 address
        tables = [("/proc/net/tcp", local, remote), ("/proc/net/tcp6", _MAPPED + local, _MAPPED + remote)]
    for path, here, there in tables:
        ends = [_in_proc(here, port), _in_proc(there, remote_port), f"{_ESTABLISHED:02X}"]
        with contextlib.suppress(OSError), open(path) as table:
            for line in table:
                fields = line.split()
                if fields[1:4] == ends:
                    return int(fields[7])
    return None


def _in_proc(address: bytes, port: int) -> str:
    words = struct.unpack(f"={len(address) // 4}I", address)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip
