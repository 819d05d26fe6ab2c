# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which domains of two engines are joined."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_async import BrokenResourceError
from pplx_async.routes import fabric_of, find_route, host_network, weigh
from pplx_async.wire import MAX_LINKS, Nic

HERE, ELSEWHERE = host_network(), "ipc@" + "0" * 32
engines = st.lists(st.sampled_from(["tcp", "efa", HERE, ELSEWHERE]), min_size=1, max_size=9)
words = st.sampled_from(["ipv4:10.0.0.0/24", "ipv4:10.0.1.0/24", "ipv4:10.0.2.0/24", "ipv6:fd00::/64", "ib:fe80::/64"])
nics = st.lists(
    st.builds(Nic, st.sampled_from([0, 25, 100, 400]), st.lists(words, max_size=3).map(tuple)), min_size=1, max_size=8
)


def rails(*subnets, gbps=100):
    return [Nic(gbps * 10**9, tuple(f"ipv4:10.0.{word}.0/24" for word in str(subnet))) for subnet in subnets]


def pair(ours, theirs):
    return find_route(["verbs"] * len(ours), ["verbs"] * len(theirs), ours, theirs)


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


def test_rails_are_joined_within_their_subnets():
    assert pair(rails(0, 1), rails(1, 0)) == [(0, 1), (1, 0)]
    assert pair(rails(0, 0, 1, 1), rails(1, 0)) == [(0, 1), (2, 0), (1, 1), (3, 0)]


def test_who_has_fewer_rails_is_reached_over_those_that_reach_it():
    assert pair(rails(0), rails(0, 1, 0, 1)) == [(0, 0), (0, 2)]
    assert pair(rails(1, 0, 1), rails(0)) == [(1, 0)]


def test_without_a_common_subnet_a_router_is_trusted():
    assert pair(rails(0, 1), rails(2, 3)) == [(0, 0), (1, 1)]


def test_a_nic_in_several_subnets_is_joined_as_often_as_others_need_it():
    assert sorted(pair(rails("01", 0), rails(0, 1))) == [(0, 0), (0, 1), (1, 0)]
    assert pair(rails("01"), rails("01")) == [(0, 0)]


def test_a_nic_of_which_nothing_is_known_reaches_all():
    assert pair([Nic(0, ()), *rails(1)], rails(0, 1)) == [(0, 0), (1, 1)]


def test_what_cannot_meet_is_named():
    with pytest.raises(
        BrokenResourceError, match=r"ipv4:10.0.0.0/24 on one, ib:fe80::/64 on the other.*address of the same kind"
    ):
        pair(rails(0), [Nic(0, ("ib:fe80::/64",))])


@given(nics, nics)
def test_both_sides_pair_the_same_and_leave_out_none_that_can_be_joined(ours, theirs):
    try:
        route = pair(ours, theirs)
    except BrokenResourceError:
        with pytest.raises(BrokenResourceError):
            pair(theirs, ours)
        return
    assert route == [(here, there) for there, here in pair(theirs, ours)]
    assert len(set(route)) == len(route) <= MAX_LINKS
    assert weigh(route, ours, theirs) == weigh([(there, here) for here, there in route], theirs, ours)

    def meet(a, b):
        return not a.subnets or not b.subnets or not set(a.subnets).isdisjoint(b.subnets)

    if any(meet(a, b) for a in ours for b in theirs):
        assert all(meet(ours[here], theirs[there]) for here, there in route)
        could = {i for i, a in enumerate(ours) if any(meet(a, b) for b in theirs)}
        assert {here for here, _ in route} == could or len(route) == MAX_LINKS


def test_a_link_is_as_fast_as_its_slower_end():
    ours, theirs = rails(0, gbps=100) + rails(1, gbps=25), rails(0, gbps=400) + rails(1, gbps=400)
    assert weigh(pair(ours, theirs), ours, theirs) == [1000, 250]


def test_a_nic_with_several_links_shares_its_speed_among_them():
    ours, theirs = rails(0, 0, 0), rails(0, 0)
    route = pair(ours, theirs)
    assert route == [(0, 0), (1, 1), (2, 0)]
    assert weigh(route, ours, theirs) == [500, 1000, 500]


def test_of_unknown_speed_all_are_alike():
    ours, theirs = rails(0, gbps=100) + rails(0, gbps=0), rails(0, gbps=100) + rails(0, gbps=0)
    assert weigh(pair(ours, theirs), ours, theirs) == [1, 1]
    assert weigh([(0, 0), (1, 1)]) == [1, 1]
