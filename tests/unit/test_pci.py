# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The walk through a machine's PCI tree, and who is near whom, on recorded layouts."""

import os

import pytest

from helpers import machines
from helpers.machines import DGX_H100, LAPTOP, P5, P5EN, build
from pplx_async import EngineOptions, placement, topology
from pplx_async.pci import Distance, Kind, Machine, distance, parse_cpus, read_machine
from pplx_async.placement import arrange, choose_cpu, find_near, pair, place_thread

ALL = {"p5": P5, "p5en": P5EN, "dgx": DGX_H100, "laptop": LAPTOP}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Each machine, read once."""
    return {name: read_machine(build(text, tmp_path_factory.mktemp(name))) for name, text in ALL.items()}


def names(nics):
    return [name for nic in nics for name in nic.rdma]


def by_name(machine, name):
    return next(device for device in machine.devices if name in device.rdma)


# ---- the walk ----


@pytest.mark.parametrize(
    ("name", "gpus", "nics", "nodes"), [("p5", 8, 32, 2), ("p5en", 8, 16, 2), ("dgx", 8, 12, 2), ("laptop", 0, 0, 1)]
)
def test_what_each_machine_has(recorded, name, gpus, nics, nodes):
    machine = recorded[name]
    assert (len(machine.gpus), len(machine.rdma_nics), len(machine.nodes)) == (gpus, nics, nodes)


def test_a_device_says_where_it_is(recorded):
    gpu = recorded["dgx"].gpus[0]
    assert (gpu.address, gpu.kind, gpu.node, gpu.model) == ("0000:1b:00.0", Kind.GPU, 0, (0x10DE, 0x2330))
    assert gpu.path == ("pci0000:15", "0000:15:01.0", "0000:15:02.0", "0000:15:03.0")


def test_a_screen_is_no_gpu_and_a_wireless_card_has_no_rdma(recorded):
    (card,) = recorded["laptop"].devices
    assert (card.interfaces, card.rdma, card.node) == (("wlp2s0",), (), None)


def test_a_machine_of_which_nothing_is_known(tmp_path):
    assert read_machine(tmp_path) == Machine()


@pytest.mark.parametrize("broken", ["", "x", "-", "99999999999999999999", "\0"])
def test_files_that_say_nonsense_say_nothing(tmp_path, broken):
    root = build(DGX_H100, tmp_path)
    folder = root / "sys/bus/pci/devices/0000:1b:00.0"
    for file in ("numa_node", "device"):
        (folder / file).write_text(broken)
    (root / "sys/devices/system/node/node0/cpulist").write_text(broken)
    assert len(read_machine(root).gpus) == 8


def test_this_machine_can_be_read():
    machine = read_machine()
    for cpus in machine.nodes.values():
        assert cpus <= set(range(os.sysconf("SC_NPROCESSORS_CONF")))


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", []), ("a-b", []), ("3-1", []), ("1-2-3", [])]
)
def test_lists_of_cpus(text, cpus):
    assert parse_cpus(text) == cpus


# ---- distances ----


def test_distances(recorded):
    machine = recorded["dgx"]
    gpu = machine.gpus[0]
    assert distance(gpu, by_name(machine, "mlx5_0")) == (Distance.SWITCH, -4)
    assert distance(gpu, by_name(machine, "mlx5_1"))[0] is Distance.NODE
    assert distance(gpu, by_name(machine, "mlx5_7"))[0] is Distance.SYSTEM


def test_one_root_complex_is_nearer_than_one_node(tmp_path):
    text = """
node 0 cpus 0-3 siblings 2
root 0000:10 node 0
  bridge 0000:10:01.0
    gpu 0000:11:00.0
  bridge 0000:10:02.0
    nic 0000:12:00.0 mlx5_0
root 0000:20 node 0
  bridge 0000:20:01.0
    nic 0000:21:00.0 mlx5_1
"""
    machine = read_machine(build(text, tmp_path))
    far, near = (distance(machine.gpus[0], by_name(machine, name)) for name in ("mlx5_1", "mlx5_0"))
    assert (near[0], far[0]) == (Distance.ROOT, Distance.NODE)
    assert [names(share.nics) for share in pair(machine)] == [["mlx5_0"]]


def test_two_devices_below_one_root_port_meet_in_a_switch(tmp_path):
    text = "root 0000:10 node 0\n  bridge 0000:10:01.0\n    gpu 0000:11:00.0\n    nic 0000:12:00.0 mlx5_0\n"
    machine = read_machine(build(text, tmp_path))
    assert distance(machine.gpus[0], by_name(machine, "mlx5_0")) == (Distance.SWITCH, -2)


# ---- pairs ----


def test_p5_gives_four_nics_to_a_gpu(recorded):
    shares = pair(recorded["p5"])
    assert {share.distance for share in shares} == {Distance.SWITCH}
    assert names(shares[0].nics) == ["rdmap80s0", "rdmap81s0", "rdmap82s0", "rdmap83s0"]
    assert sorted(name for share in shares for name in names(share.nics)) == sorted(names(recorded["p5"].rdma_nics))


def test_p5en_splits_four_nics_between_two_gpus(recorded):
    shares = pair(recorded["p5en"])
    assert [len(share.nics) for share in shares] == [2] * 8
    assert [names(share.nics) for share in shares[:3]] == [
        ["rdmap85s0", "rdmap86s0"],
        ["rdmap87s0", "rdmap88s0"],
        ["rdmap110s0", "rdmap111s0"],
    ]
    assert len({nic for share in shares for nic in share.nics}) == 16


def test_dgx_h100_pairs_as_its_manual_says(recorded):
    shares = pair(recorded["dgx"])
    expected = ["mlx5_0", "mlx5_3", "mlx5_4", "mlx5_5", "mlx5_6", "mlx5_9", "mlx5_10", "mlx5_11"]
    assert [names(share.nics) for share in shares] == [[name] for name in expected]


def test_a_laptop_has_no_pairs(recorded):
    assert pair(recorded["laptop"]) == []


def test_gpus_without_nics_have_empty_shares(tmp_path):
    machine = read_machine(build("root 0000:10 node 0\n  bridge 0000:10:01.0\n    gpu 0000:11:00.0", tmp_path))
    (share,) = pair(machine)
    assert (share.nics, share.distance) == ((), None)


def test_where_nothing_is_known_gpus_and_nics_pair_in_order(tmp_path):
    # As some clouds show it: each device below a root of its own, and no NUMA node.
    lines = []
    for i in range(2):
        lines += [f"root 000{i}:00 node -1", f"  gpu 000{i}:00:01.0"]
        lines += [f"root 000{i + 4}:00 node -1", f"  nic 000{i + 4}:00:02.0 mlx5_{i}"]
    shares = pair(read_machine(build("\n".join(lines), tmp_path)))
    assert [names(share.nics) for share in shares] == [["mlx5_0"], ["mlx5_1"]]
    assert {share.distance for share in shares} == {Distance.SYSTEM}


def test_fewer_nics_than_gpus_are_shared_in_turns(tmp_path):
    text = "root 0000:10 node 0\n  bridge 0000:10:01.0\n"
    text += "".join(f"    gpu 0000:2{i}:00.0\n" for i in range(4))
    text += "".join(f"    nic 0000:3{i}:00.0 mlx5_{i}\n" for i in range(2))
    shares = pair(read_machine(build(text, tmp_path)))
    assert [names(share.nics) for share in shares] == [["mlx5_0"], ["mlx5_1"], ["mlx5_0"], ["mlx5_1"]]


def test_the_odd_model_is_left_out(tmp_path):
    text = "root 0000:10 node 0\n  bridge 0000:10:01.0\n    gpu 0000:20:00.0\n    nic 0000:2f:00.0 mlx5_9 model=cx6\n"
    text += "".join(f"    nic 0000:3{i}:00.0 mlx5_{i}\n" for i in range(2))
    machine = read_machine(build(text, tmp_path))
    assert names(pair(machine)[0].nics) == ["mlx5_0", "mlx5_1"]
    # It is still there to be used, as the last one.
    assert arrange(["mlx5_9", "mlx5_0", "mlx5_1"], "gpu0", machine)[0] == ("mlx5_0", "mlx5_1", "mlx5_9")


# ---- the choice ----


@pytest.mark.parametrize("near", ["gpu1", "0000:43:00.0", "0000:43:00.0".upper(), "00000000:43:00.0"])
def test_a_gpu_is_named_in_each_usual_way(recorded, near):
    assert find_near(recorded["dgx"], near).address == "0000:43:00.0"


@pytest.mark.parametrize("near", ["gpu8", "numa2", "0000:44:00.0", "gpu", "", "mlx5_0", "gpu-1", "numa"])
def test_what_is_not_there_is_an_error_that_says_what_is(recorded, near):
    with pytest.raises(ValueError, match=r"this machine has gpu0 \(0000:1b:00.0\), .* numa0, numa1$"):
        find_near(recorded["dgx"], near)
    with pytest.raises(ValueError, match="this machine has numa0"):
        find_near(recorded["laptop"], "gpu0")


def test_the_nics_of_a_gpu_come_first_then_its_neighbours(recorded):
    machine = recorded["p5en"]
    given = [f"{name}-rdm" for name in reversed(names(machine.rdma_nics))]  # as libfabric calls them
    ordered, why = arrange(given, "gpu1", machine)
    assert set(ordered) == set(given)
    assert set(ordered[:2]) == {"rdmap87s0-rdm", "rdmap88s0-rdm"}
    assert set(ordered[2:4]) == {"rdmap85s0-rdm", "rdmap86s0-rdm"}
    assert set(ordered[4:8]) == {f"rdmap{n}s0-rdm" for n in (110, 111, 112, 113)}
    assert why[0].endswith("first: by a common PCI switch with gpu1 (0000:54:00.0)")


def test_eight_engines_share_all_nics_of_a_machine(recorded):
    machine = recorded["p5"]
    given = names(machine.rdma_nics)
    taken = [arrange(given, f"gpu{i}", machine)[0][:4] for i in range(8)]
    assert len({name for four in taken for name in four}) == 32


def test_a_node_is_near_too(recorded):
    ordered, why = arrange(names(recorded["dgx"].rdma_nics), "numa1", recorded["dgx"])
    assert set(ordered[:6]) == {"mlx5_6", "mlx5_7", "mlx5_8", "mlx5_9", "mlx5_10", "mlx5_11"}
    assert why[0] == "mlx5_6 first: on NUMA node 1"


def test_a_process_that_is_bound_to_a_node_takes_its_nics(recorded):
    given = names(recorded["dgx"].rdma_nics)
    ordered, why = arrange(given, None, recorded["dgx"], set(range(56, 60)))
    assert ordered[0] == "mlx5_6"  # the first of node 1 in the order given
    assert why == ("mlx5_6 first: on NUMA node 1, the one whose CPUs this process may use",)
    # One that may go anywhere leaves the order as it was, and so does a machine with one node.
    assert arrange(given, None, recorded["dgx"], {0, 200}) == (tuple(given), ())
    assert arrange(["wlp2s0", "lo"], None, recorded["laptop"], {0}) == (("wlp2s0", "lo"), ())


def test_devices_at_no_known_place_keep_their_order(recorded):
    ordered, why = arrange(["rxe1", "rxe0"], "gpu0", recorded["dgx"])
    assert ordered == ("rxe1", "rxe0")
    assert "says nothing about rxe1, rxe0" in why[0]
    assert arrange(["rxe1", "mlx5_11:1", "rxe0"], "gpu7", recorded["dgx"])[0] == ("mlx5_11:1", "rxe1", "rxe0")


def test_one_device_needs_no_look_at_the_machine(monkeypatch):
    monkeypatch.setattr(placement, "read_machine", None)
    assert arrange(["lo"], None) == (("lo",), ())


# ---- CPUs ----


def test_each_gpu_has_a_core_of_its_own_near_it(recorded):
    machine = recorded["dgx"]
    cpus = [choose_cpu(machine, gpu, set(range(224))) for gpu in machine.gpus]
    assert cpus == [13, 27, 41, 55, 69, 83, 97, 111]
    for gpu, cpu in zip(machine.gpus, cpus):
        assert cpu in machine.nodes[gpu.node]


def test_only_cpus_that_may_be_used_are_chosen(recorded):
    machine = recorded["dgx"]
    mask = {10, 11, 12, 13, 20, 21, 22, 23, 130, 131}
    cpus = [choose_cpu(machine, gpu, mask) for gpu in machine.gpus]
    assert cpus == [11, 20, 22, 131] + [None] * 4  # nothing of the other node may be used


def test_two_threads_of_a_core_are_one(recorded):
    assert choose_cpu(recorded["dgx"], 0, {5, 117}) is None
    assert choose_cpu(recorded["dgx"], 0, {5, 117, 6}) == 6


def test_no_cpu_is_chosen_where_there_are_none_to_spare(recorded):
    machine = recorded["dgx"]
    assert choose_cpu(machine, machine.gpus[0], set(range(7))) is None
    assert choose_cpu(Machine(), 0, {0, 1}) is None


def test_a_machine_with_one_node_need_not_say_it(tmp_path):
    text = machines.LAPTOP + "root 0000:10 node -1\n  bridge 0000:10:01.0\n    gpu 0000:11:00.0\n"
    machine = read_machine(build(text, tmp_path))
    assert choose_cpu(machine, machine.gpus[0], set(range(8))) == 7


# ---- an engine's choice ----


def test_near_names_the_cpu_of_the_proxy_thread(recorded):
    machine = recorded["dgx"]
    assert place_thread("gpu7", machine, set(range(224))) == (
        111,
        ("the proxy thread on CPU 111, near gpu7 (0000:df:00.0)",),
    )
    cpu, (why,) = place_thread("gpu7", machine, {0, 1})
    assert cpu is None
    assert "none is to spare" in why
    assert place_thread(None, machine) == (None, ())


def test_the_choice_of_an_engine_says_where_its_thread_runs(recorded, monkeypatch):
    monkeypatch.setattr(placement, "read_machine", lambda: recorded["dgx"])
    monkeypatch.setattr(placement, "_mask", lambda mask: set(range(224)))
    choice = topology.choose(EngineOptions(fabric="loopback", near="gpu7"))
    assert (choice.cpu, choice.why[-1]) == (111, "the proxy thread on CPU 111, near gpu7 (0000:df:00.0)")
    assert topology.choose(EngineOptions(fabric="loopback", near="gpu7", cpu=3)).cpu == 3
    with pytest.raises(ValueError, match="near='gpu8': this machine has gpu0"):
        topology.choose(EngineOptions(fabric="loopback", near="gpu8"))


def test_an_engine_takes_the_nics_nearest_its_gpu(recorded, monkeypatch):
    found = [{"name": f"{name}-rdm", "provider": "efa"} for name in names(recorded["p5"].rdma_nics)]
    monkeypatch.setattr(placement, "read_machine", lambda: recorded["p5"])
    monkeypatch.setattr(topology.rt, "discover", lambda provider, options: found)
    near = topology.choose(EngineOptions(fabric="efa", domains=4, near="gpu2"))
    assert near.devices == ("rdmap113s0-rdm", "rdmap114s0-rdm", "rdmap115s0-rdm", "rdmap116s0-rdm")
    assert any("by a common PCI switch with gpu2" in why for why in near.why)
    # What is named is taken as it is named, and nothing is said about it.
    named = topology.choose(EngineOptions(fabric="efa", devices=("rdmap80s0-rdm",), near="gpu2"))
    assert named.devices == ("rdmap80s0-rdm",)
    assert not any("first" in why for why in named.why)


def test_an_engine_on_verbs_takes_the_nics_nearest_its_gpu(recorded, monkeypatch):
    found = [{"name": name, "description": "RoCE v2", "address": "::"} for name in names(recorded["dgx"].rdma_nics)]
    monkeypatch.setattr(placement, "read_machine", lambda: recorded["dgx"])
    monkeypatch.setattr(placement, "_mask", lambda mask: set(range(224)))
    monkeypatch.setattr(topology.rt, "discover", lambda provider, options: found)
    choice = topology.choose(EngineOptions(fabric="verbs", near="0000:9d:00.0"))
    assert (choice.devices, choice.cpu) == (("mlx5_6",), 69)
    assert choice.why[-2:] == (
        "mlx5_6 first: by a common PCI switch with 0000:9d:00.0",
        "the proxy thread on CPU 69, near 0000:9d:00.0",
    )
