# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which domains of two engines are joined."""

from hypothesis import given
from hypothesis import strategies as st

from pplx_async.routes import fabric_of, find_route, host_network

HERE, ELSEWHERE = host_network(), "ipc@" + "0" * 32
engines = st.lists(st.sampled_from(["tcp", "efa", HERE, ELSEWHERE]), min_size=1, max_size=9)


def test_shared_memory_comes_first_inside_a_host():
    assert find_route(["tcp", "tcp", HERE], ["tcp", HERE]) == [(2, 1)]
    assert find_route(["tcp", HERE], ["tcp", ELSEWHERE]) == [(0, 0)]
    assert find_route(["tcp"], ["tcp", HERE]) == [(0, 0)]


def test_every_domain_of_a_network_takes_part():
    assert find_route(["tcp"] * 2, ["tcp"] * 3) == [(0, 0), (1, 1), (0, 2)]
    assert find_route([HERE, "efa", "efa"], ["efa"]) == [(1, 0), (2, 0)]


def test_nothing_in_common():
    assert find_route(["tcp"], ["efa"]) == []
    assert find_route([HERE], [ELSEWHERE]) == []


@given(engines, engines)
def test_both_sides_find_the_same(ours, theirs):
    route = find_route(ours, theirs)
    assert route == [(here, there) for there, here in find_route(theirs, ours)]
    assert bool(route) == bool(set(ours) & set(theirs))
    assert len({ours[here] for here, _ in route} | {theirs[there] for _, there in route}) <= 1
    assert len(set(route)) == len(route)


def test_a_network_names_its_fabric_and_is_this_hosts():
    assert fabric_of(HERE) == "ipc"
    assert fabric_of("tcp;ofi_rxm") == "tcp;ofi_rxm"
    assert HERE == host_network() != ELSEWHERE
