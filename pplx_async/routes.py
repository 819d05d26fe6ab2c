# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which of two engines' domains are joined: each peer has one route.

Every domain of an engine lies in a network, which has a word: ``"tcp"``, ``"efa"``, ``"verbs"``, or, for the shared
memory of one host, `host_network`. Domains reach each other if their words are the same.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence

from pplx_async._handshake import host_identity

__all__ = ["fabric_of", "find_route", "host_network"]

_HOST = "ipc@"


@functools.cache
def _reach_of_ipc() -> str:
    """Whom shared memory reaches: the same boot of a machine, user and network namespace (its sockets)."""
    namespace = os.stat("/proc/self/ns/net").st_ino if os.path.exists("/proc/self/ns/net") else 0
    return hashlib.sha256(f"{host_identity()} {os.geteuid()} {namespace}".encode()).hexdigest()[:32]


def host_network() -> str:
    """Return the word of this host's shared memory, for this user."""
    return _HOST + _reach_of_ipc()


def fabric_of(network: str) -> str:
    """Return the fabric that a network is of."""
    return "ipc" if network.startswith(_HOST) else network


def find_route(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """Pair our domains with a peer's, given the networks of both; the peer's own call mirrors it.

    Shared memory comes first, since no NIC is faster inside a host. Of several domains in the chosen
    network, link i joins the i-th of each, counted round.

    Returns
    -------
    list of (int, int)
        One for each link: the index of our domain and of theirs. Empty: they have no network in common.
    """
    common = sorted(set(ours) & set(theirs), key=lambda network: (not network.startswith(_HOST), network))
    if not common:
        return []
    here = [i for i, network in enumerate(ours) if network == common[0]]
    there = [i for i, network in enumerate(theirs) if network == common[0]]
    return [(here[i % len(here)], there[i % len(there)]) for i in range(max(len(here), len(there)))]
