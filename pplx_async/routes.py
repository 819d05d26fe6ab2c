# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which of two engines' domains are joined, and how much each link carries: each peer has one route.

Every domain of an engine lies in a network, which has a word: ``"tcp"``, ``"efa"``, ``"verbs"``, or, for the shared
memory of one host, `host_network`. Domains of different networks never reach each other. Of one network they do, as
far as their NICs say nothing else: of each NIC the subnets are told, and its speed (``wire.Nic``).

Both sides compute the same from the same data, each from its own point of view.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import zip_longest

from pplx_async._handshake import host_identity
from pplx_async.errors import BrokenResourceError
from pplx_async.wire import MAX_LINKS, Nic

__all__ = ["describe_nic", "fabric_of", "find_route", "host_network", "weigh"]

_HOST = "ipc@"
_SCALE = 1000  # weight of the fastest link


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


def find_route(
    ours: Sequence[str], theirs: Sequence[str], our_nics: Sequence[Nic] = (), their_nics: Sequence[Nic] = ()
) -> list[tuple[int, int]]:
    """Pair our domains with a peer's, given the networks and NICs of both; the peer's own call mirrors it.

    Shared memory comes first, since no NIC is faster inside a host. Of the chosen network those domains are joined
    that lie in one subnet: of several in it, link i joins the i-th of each, counted round. If no subnet has domains
    of both sides, a router may be between them, and they are joined as if all lay in one, but only those of a kind
    (IPv4, IPv6, InfiniBand).

    Returns
    -------
    list of (int, int)
        One for each link, at most `MAX_LINKS`: the index of our domain and of theirs. Empty: they have no network
        in common.

    Raises
    ------
    BrokenResourceError
        None of our NICs can reach one of theirs.
    """
    common = sorted(set(ours) & set(theirs), key=lambda network: (not network.startswith(_HOST), network))
    if not common:
        return []
    here = {i: _subnets(our_nics, i) for i, network in enumerate(ours) if network == common[0]}
    there = {i: _subnets(their_nics, i) for i, network in enumerate(theirs) if network == common[0]}
    route = _pair(here, there) or _pair(_kinds(here), _kinds(there))
    if not route:
        raise BrokenResourceError(
            f"no NIC of one side reaches one of the other: {_list(here)} on one, {_list(there)} on the other",
            hint="Give both hosts an address of the same kind (IPv4 or IPv6) on their NICs, in one subnet or routed; "
            "RoCE and InfiniBand don't meet. EngineOptions.devices and verbs_gid_index choose others.",
        )
    return route


def weigh(route: Sequence[tuple[int, int]], our_nics: Sequence[Nic] = (), their_nics: Sequence[Nic] = ()) -> list[int]:
    """Give each link its weight: the speed of the slower NIC, shared among the links that this NIC has.

    All have the same where any speed is unknown.
    """
    links_here, links_there = (Counter(link[side] for link in route) for side in (0, 1))
    speeds = []
    for here, there in route:
        known = [
            nics[i].bits_per_second / links[i]
            for nics, links, i in ((our_nics, links_here, here), (their_nics, links_there, there))
            if i < len(nics) and nics[i].bits_per_second
        ]
        speeds.append(min(known, default=0.0))
    if not all(speeds):
        return [1] * len(route)
    return [max(1, round(_SCALE * speed / max(speeds))) for speed in speeds]


def describe_nic(nics: Sequence[Nic], i: int) -> str:
    """Say of one NIC what is known of it, or nothing."""
    if i >= len(nics):
        return ""
    speed = f"{nics[i].bits_per_second / 1e9:g} Gb/s" if nics[i].bits_per_second else ""
    return ", ".join(filter(None, (speed, *nics[i].subnets)))


def _subnets(nics: Sequence[Nic], i: int) -> frozenset[str]:
    return frozenset(nics[i].subnets) if i < len(nics) else frozenset()


def _kinds(domains: Mapping[int, Collection[str]]) -> dict[int, frozenset[str]]:
    return {i: frozenset(word.partition(":")[0] for word in words) for i, words in domains.items()}


def _list(domains: Mapping[int, Iterable[str]]) -> str:
    return " and ".join(dict.fromkeys(", ".join(sorted(words)) or "any" for words in domains.values()))


def _pair(here: Mapping[int, Collection[str]], there: Mapping[int, Collection[str]]) -> list[tuple[int, int]]:
    """Join those that share a word, so that each that can be is; who has none shares everyone's.

    Word by word, in an order that is the same from both sides. A domain that has a link already gets another one
    only for the sake of one that has none.
    """
    known = set().union(*here.values(), *there.values()) or {""}
    meetings = []
    for word in known:
        left, right = ([i for i, words in side.items() if not words or word in words] for side in (here, there))
        if left and right:
            meetings.append((min(left[0], right[0]), word, left, right))
    done: tuple[set[int], set[int]] = (set(), set())
    groups = []
    for _, _, left, right in sorted(meetings):
        new_left, new_right = (
            [i for i in side if i not in joined] for side, joined in zip((left, right), done, strict=True)
        )
        from_, to = new_left or left, new_right or right
        count = max(len(new_left), len(new_right))
        groups.append([(from_[k % len(from_)], to[k % len(to)]) for k in range(count)])
        done[0].update(left)
        done[1].update(right)
    # Should they be too many, each subnet has its part.
    return [link for links in zip_longest(*groups) for link in links if link is not None][:MAX_LINKS]
