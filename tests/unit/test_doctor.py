# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async doctor`` on recorded hosts: whole, without a device, and broken in one way each."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from helpers import hosts
from helpers.hosts import AWS, host, limits, probes
from helpers.machines import DGX_H100, LAPTOP, build, write
from helpers.process import ROOT, environment
from pplx_async import EngineOptions
from pplx_async.cli.doctor import probes as live
from pplx_async.cli.doctor.examine import CHECKS, examine
from pplx_async.cli.doctor.finding import Level, ok
from pplx_async.cli.doctor.system import System

PORT = "sys/class/infiniband/mlx5_0/ports/1"
OTHER = "sys/class/infiniband/mlx5_1/ports/1"


def ask(root, **options):
    """What is not well: check -> (level, text, fix); one of each here."""
    found = examine(System(root, EngineOptions(**options)))
    bad = [(name, finding) for name, finding in found if finding.level is not Level.OK]
    assert len({name for name, _ in bad}) == len(bad), bad
    assert all(finding.fix for _, finding in bad), bad
    assert not any(finding.fix for _, finding in found if finding.level is Level.OK)
    return {name: (str(finding.level), finding.text, finding.fix) for name, finding in bad}


def said(root, check, **options):
    return [finding.text for name, finding in examine(System(root, EngineOptions(**options))) if name == check]


# ---- where all is well ----


@pytest.mark.parametrize("layout", [hosts.SMALL, AWS, LAPTOP], ids=["roce", "efa", "laptop"])
def test_a_whole_machine_has_nothing_to_mend(tmp_path, layout):
    assert ask(host(tmp_path, layout)) == {}


def test_a_machine_says_what_it_has(tmp_path):
    root = host(tmp_path)
    assert said(root, "ports")[0] == "mlx5_0 port 1: active, 400 Gb/sec (4X NDR), Ethernet"
    assert said(root, "GIDs")[0] == "mlx5_0 port 1: GID 3, 0000:0000:0000:0000:0000:ffff:0a00:0001, RoCE v2"
    assert said(root, "MTU") == ["mlx5_0: the MTU of eth0 is 9000", "mlx5_1: the MTU of eth1 is 9000"]
    assert said(root, "GPUs and NICs") == ["gpu0 (0000:1b:00.0): mlx5_0, by a common PCI switch, CPU 3"]
    assert said(root, "GPU memory") == ["GPU memory is registered as a dma-buf"]
    assert said(root, "PCI links")[0] == "mlx5_0 (0000:18:00.0): PCI 32.0 GT/s PCIe x16"


def test_no_device_is_no_fault_unless_it_was_asked_for(tmp_path):
    root = host(tmp_path, LAPTOP)
    assert said(root, "devices") == ["no RDMA device: peers on other hosts are reached over tcp"]
    level, text, fix = ask(root, fabric="efa")["EFA"]
    assert (level, "no EFA device is there" in text, "EFA" in fix) == ("problem", True, True)


def test_nothing_at_all_can_be_read(tmp_path):
    assert {name for name, _ in examine(System(tmp_path))} == {"devices", "EFA", "GPU memory", "process_vm"}


# ---- RoCE, broken ----


def test_a_port_that_is_down_beside_one_that_is_up_is_a_warning(tmp_path):
    root = host(tmp_path)
    write(root, f"{PORT}/state", "1: DOWN")
    write(root, f"{PORT}/phys_state", "2: Polling")
    text = "mlx5_0 port 1 is DOWN (Ethernet, link: Polling)"
    fix = "ethtool eth0  # a cable? the port of the switch?"
    assert ask(root) == {"ports": ("warning", text, fix)}
    assert ask(root, devices=("mlx5_0",)) == {"ports": ("problem", text, fix)}  # that one is to be used


def test_all_ports_down_is_a_problem(tmp_path):
    root = host(tmp_path)
    shutil.rmtree(root / "sys/class/infiniband/mlx5_1")
    write(root, f"{PORT}/state", "1: DOWN")
    write(root, f"{PORT}/phys_state", "3: Disabled")
    assert ask(root)["ports"][::2] == ("problem", "sudo ip link set dev eth0 up")


def test_infiniband_without_a_subnet_manager(tmp_path):
    root = host(tmp_path)
    shutil.rmtree(root / "sys/class/infiniband/mlx5_1")
    write(root, f"{PORT}/state", "2: INIT")
    write(root, f"{PORT}/link_layer", "InfiniBand")
    level, text, fix = ask(root)["ports"]
    assert (level, text) == ("problem", "mlx5_0 port 1 is INIT (InfiniBand, link: LinkUp)")
    assert fix.startswith("sudo systemctl start opensm")


@pytest.mark.parametrize(
    ("keys", "said_of_it"),
    [
        (["0xffff"], "P_Key 0xffff (entry 0), full member"),
        (["0x7fff", "0x0000", "0x8001"], "P_Key 0x8001 (entry 2), full member"),
        (["0x0000", "0x7fff"], "a limited member only of its partition (P_Key 0x7fff)"),
    ],
)
def test_an_infiniband_port_is_a_full_member_of_a_partition_or_warned_of(tmp_path, keys, said_of_it):
    root = host(tmp_path)
    write(root, f"{PORT}/link_layer", "InfiniBand")
    for index, key in enumerate(keys):
        write(root, f"{PORT}/pkeys/{index}", key)
        write(root, f"{OTHER}/pkeys/{index}", key)  # RoCE has one too, which says nothing
    (text,) = said(root, "partitions")
    assert said_of_it in text
    limited = ask(root).get("partitions")
    assert limited is None if "full member" in said_of_it else limited[0] == "warning"


@pytest.mark.parametrize("how", ["none", "v1 only", "link-local only"])
def test_a_port_without_a_routable_gid(tmp_path, how):
    root = host(tmp_path)
    for name in ("mlx5_0", "mlx5_1"):
        for index in range(4):
            kind = root / f"sys/class/infiniband/{name}/ports/1/gid_attrs/types/{index}"
            gid = root / f"sys/class/infiniband/{name}/ports/1/gids/{index}"
            if how == "none":
                gid.unlink()
            elif how == "v1 only":
                kind.write_text("IB/RoCE v1\n")
            elif "fe80" not in gid.read_text():
                gid.write_text("0000:0000:0000:0000:0000:0000:0000:0000\n")
    bad = [finding for name, finding in examine(System(root)) if name == "GIDs"]
    assert [finding.level for finding in bad] == [Level.PROBLEM] * 2
    assert bad[0].text == "mlx5_0 port 1 has no routable GID of RoCE v2: its interface eth0 has no IP address"
    assert bad[0].fix.startswith("sudo ip address add 10.0.0.1/24 dev eth0")


def test_one_gid_missing_beside_a_whole_port_is_a_warning(tmp_path):
    root = host(tmp_path)
    shutil.rmtree(root / f"{PORT}/gids")
    assert ask(root)["GIDs"][0] == "warning"


@pytest.mark.parametrize(("mtu", "packet"), [(1500, 1024), (2300, 2048), (600, 256)])
def test_a_small_mtu_makes_small_packets(tmp_path, mtu, packet):
    root = host(tmp_path)
    write(root, "sys/class/net/eth0/mtu", str(mtu))
    text = f"mlx5_0: the MTU of eth0 is {mtu}: packets of RoCE have {packet} B at most, not 4096"
    assert ask(root) == {
        "MTU": ("warning", text, "sudo ip link set dev eth0 mtu 4200  # on both hosts, and on the switch")
    }


def test_a_link_that_has_lost_lanes(tmp_path):
    root = host(tmp_path)
    write(root, "sys/bus/pci/devices/0000:18:00.0/current_link_width", "8")
    level, text, fix = ask(root)["PCI links"]
    assert (level, text) == (
        "warning",
        "mlx5_0 (0000:18:00.0) has 32.0 GT/s PCIe x8 of PCI, and could have 32.0 GT/s PCIe x16",
    )
    assert fix.startswith("sudo lspci -s 0000:18:00.0 -vv")


def test_a_container_without_the_devices_files(tmp_path):
    root = host(tmp_path)
    (root / "dev/infiniband/uverbs0").unlink()
    level, text, fix = ask(root)["devices"]
    assert (level, text) == ("problem", "mlx5_0 is there, but not its file /dev/infiniband/uverbs0")
    assert "docker run --device=/dev/infiniband" in fix


def test_a_file_that_this_user_may_not_open(tmp_path, monkeypatch):
    root = host(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("uverbs0"))
    assert ask(root)["devices"][1:] == (
        "this user may not open /dev/infiniband/uverbs0",
        "sudo chmod a+rw /dev/infiniband/uverbs0",
    )


def test_kernel_modules_that_are_not_loaded(tmp_path):
    root = host(tmp_path)
    (root / "sys/class/infiniband_verbs/uverbs1/ibdev").unlink()
    assert ask(root)["devices"][1:] == ("mlx5_1 has no interface for programs (ib_uverbs)", "sudo modprobe ib_uverbs")
    shutil.rmtree(root / "sys/class/infiniband")
    for address in ("0000:18:00.0", "0000:29:00.0"):
        shutil.rmtree(root / "sys/bus/pci/devices" / address / "infiniband")
    bad = [finding for name, finding in examine(System(root)) if name == "devices"]
    assert [(finding.level, finding.fix) for finding in bad] == [(Level.WARNING, "sudo modprobe mlx5_ib")] * 2


def test_soft_roce_has_no_pci_function(tmp_path):
    root = host(tmp_path, LAPTOP)
    folder = "sys/class/infiniband/rxe0"
    write(root, f"{folder}/parent", "eth0a")
    for file, text in {"state": "4: ACTIVE", "link_layer": "Ethernet", "rate": "2.5 Gb/sec (1X SDR)"}.items():
        write(root, f"{folder}/ports/1/{file}", text)
    hosts.add_gid(root, "rxe0", 1, "0000:0000:0000:0000:0000:ffff:0a4d:0001", "RoCE v2", "eth0a")
    write(root, "sys/class/net/eth0a/mtu", "1500")
    write(root, "sys/class/infiniband_verbs/uverbs0/ibdev", "rxe0")
    write(root, "dev/infiniband/uverbs0", "")
    probes(root, libibverbs=hosts.PROBES["libibverbs"])
    assert list(ask(root)) == ["MTU"]
    assert said(root, "devices") == ["rxe0 (software), /dev/infiniband/uverbs0"]


# ---- memory ----


def test_little_lockable_memory_is_a_problem_with_a_device_only(tmp_path):
    root = host(tmp_path)
    limits(root, memlock=str(64 << 10))
    level, text, fix = ask(root)["locked memory"]
    assert (level, text) == ("problem", "at most 65.5 kB of memory can be registered with RDMA devices")
    assert "memlock unlimited" in fix
    assert "--ulimit memlock=-1:-1" in fix
    shutil.rmtree(root / "sys/class/infiniband")
    assert "locked memory" not in ask(root)


def test_root_may_lock_all(tmp_path):
    root = host(tmp_path)
    limits(root, memlock=str(64 << 10))
    write(root, "proc/self/status", "CapEff:\t000001ffffffffff\nCpus_allowed_list:\t0-7")
    assert ask(root) == {}


def test_some_lockable_memory_is_a_warning(tmp_path):
    root = host(tmp_path)
    limits(root, memlock=str(8 << 30))
    assert ask(root)["locked memory"][0] == "warning"
    limits(root, memlock=str(8 << 30), hard=str(16 << 30))
    assert "limits.d" in ask(root)["locked memory"][2]  # ulimit could not lift it
    limits(root, memlock=str(8 << 30), hard="unlimited")
    assert ask(root)["locked memory"][::2] == ("warning", "ulimit -l unlimited")
    limits(root, memlock=str(64 << 10), hard="unlimited")
    assert ask(root)["locked memory"][::2] == ("problem", "ulimit -l unlimited")


def test_gpu_memory_that_no_nic_reaches(tmp_path):
    root = host(tmp_path)
    probes(root, libcuda=hosts.PROBES["libcuda"] | {"dma_buf": False})
    level, text, fix = ask(root)["GPU memory"]
    assert (level, fix) == ("problem", "sudo modprobe nvidia_peermem")
    assert "the driver of the GPUs has none" in text
    write(root, "sys/module/nvidia_peermem/version", "580")
    assert ask(root) == {}


def test_an_old_libibverbs_has_no_dma_buf(tmp_path):
    root = host(tmp_path)
    probes(root, libibverbs=hosts.PROBES["libibverbs"] | {"dma_buf": False})
    level, text, fix = ask(root)["GPU memory"]
    assert (level, "rdma-core 34" in text, fix) == ("problem", True, "sudo modprobe nvidia_peermem")
    aws = host(tmp_path / "aws", AWS)  # EFA goes by libfabric
    probes(aws, libibverbs=hosts.PROBES["libibverbs"] | {"dma_buf": False})
    assert ask(aws) == {}


def test_an_old_kernel_has_no_dma_buf(tmp_path):
    root = host(tmp_path)
    write(root, "proc/sys/kernel/osrelease", "5.10.0-28")
    assert "the kernel is older than 5.12" in ask(root)["GPU memory"][1]


def test_a_container_with_little_shared_memory(tmp_path):
    root = host(tmp_path)
    probes(root, shm={"total": 64 << 20, "free": 64 << 20})
    level, text, fix = ask(root)["shared memory"]
    assert (level, "67.1 MB of 67.1 MB free" in text, "--shm-size" in fix) == ("warning", True, True)


def test_a_call_that_a_sandbox_refuses(tmp_path):
    root = host(tmp_path)
    probes(root, calls={"pidfd_open": "Operation not permitted", "memfd_create": None})
    level, text, fix = ask(root)["shared memory"]
    assert (level, "seccomp" in fix) == ("problem", True)
    assert text.startswith("pidfd_open fails (Operation not permitted)")


# ---- EFA ----


def test_efa_without_its_driver(tmp_path):
    root = host(tmp_path, AWS)
    shutil.rmtree(root / "sys/bus/pci/devices/0000:18:00.0/infiniband")
    shutil.rmtree(root / "sys/class/infiniband")
    assert ask(root) == {"EFA": ("problem", "no driver serves the EFA at 0000:18:00.0", "sudo modprobe efa")}


def test_efa_without_a_libfabric_for_it(tmp_path):
    root = host(tmp_path, AWS)
    probes(root, libfabric=hosts.PROBES["libfabric"])
    level, text, fix = ask(root)["EFA"]
    assert (level, text, "efa_installer.sh" in fix) == ("problem", "no libfabric here speaks to EFA", True)


def test_efa_without_huge_pages(tmp_path):
    root = host(tmp_path, AWS)
    write(root, "proc/sys/vm/nr_hugepages", "0")
    level, _, fix = ask(root)["EFA"]
    assert (level, fix.partition("=")[0]) == ("warning", "sudo sysctl -w vm.nr_hugepages")
    for environ in ({"FI_EFA_USE_HUGE_PAGE": "0"}, {"FI_EFA_FORK_SAFE": "1"}):  # then it takes none
        probes(root, environ=hosts.PROBES["environ"] | environ)
        assert ask(root) == {}


def test_efa_says_what_its_security_group_needs(tmp_path):
    assert "security group" in said(host(tmp_path, AWS), "EFA")[0]


@pytest.mark.parametrize(
    ("version", "gpus", "level", "words"),
    [
        ("1.22", True, "ok", "takes memory of GPUs"),
        ("2.1", None, "ok", "takes memory of GPUs"),  # a recording from before this was asked
        ("1.18", True, "ok", "no dma-bufs"),
        ("1.22", False, "problem", "built without CUDA"),
    ],
)
def test_a_libfabric_that_gives_efa_memory_of_gpus_or_not(tmp_path, version, gpus, level, words):
    root = host(tmp_path, AWS)
    row = hosts.PROBES["libfabric"][0] | {"providers": ["efa"], "version": version, "gpus": gpus}
    probes(root, libfabric=[row])
    (finding,) = [finding for name, finding in examine(System(root)) if name == "EFA and GPUs"]
    assert (str(finding.level), words in finding.text) == (level, True)
    assert (ask(root) == {}) == (level == "ok")
    laptop = host(tmp_path / "laptop", LAPTOP)  # without such a NIC nobody minds
    probes(laptop, libfabric=[row])
    assert "EFA and GPUs" not in ask(laptop)


@pytest.mark.parametrize(
    ("variable", "value", "level"),
    [
        ("FI_PROVIDER", "tcp", "problem"),
        ("FI_PROVIDER", "^efa", "problem"),
        ("FI_EFA_USE_DEVICE_RDMA", "0", "problem"),
        ("FI_EFA_USE_UNSOLICITED_WRITE_RECV", "0", "warning"),
        ("FI_PROVIDER", "efa,tcp", None),
        ("FI_PROVIDER", "^shm", None),
        ("FI_EFA_USE_DEVICE_RDMA", "Off", "problem"),
        ("FI_EFA_USE_DEVICE_RDMA", "1", "warning"),
        ("FI_EFA_USE_UNSOLICITED_WRITE_RECV", "1", None),
        ("FI_HMEM", "system", "problem"),
        ("FI_HMEM", "System;CUDA", None),
        ("FI_HMEM_DISABLE_P2P", "1", "problem"),
        ("FI_HMEM_DISABLE_P2P", "0", None),
    ],
)
def test_variables_that_spoil_efa(tmp_path, variable, value, level):
    root = host(tmp_path, AWS)
    probes(root, environ=hosts.PROBES["environ"] | {variable: value})
    bad = ask(root)
    assert bad.get("EFA variables", (None,))[0] == level
    if level is not None:
        assert bad["EFA variables"][2] == f"unset {variable}"
    # Where there is no EFA they mean nothing.
    other = host(tmp_path / "other")
    probes(other, environ=hosts.PROBES["environ"] | {variable: value})
    assert ask(other) == {}


# ---- libraries and the process ----


def test_devices_without_libibverbs(tmp_path):
    root = host(tmp_path)
    probes(root, libibverbs={"reason": "libibverbs.so.1: cannot open shared object file"})
    level, text, fix = ask(root)["libibverbs"]
    assert (level, fix) == ("problem", "sudo apt-get install libibverbs1 ibverbs-providers")
    assert "mlx5_0, mlx5_1" in text


def test_gpus_without_their_driver(tmp_path):
    root = host(tmp_path)
    probes(root, libcuda={"reason": "libcuda.so.1: cannot open shared object file"})
    assert ask(root)["libcuda"][0] == "problem"
    probes(root, libcuda={"library": "libcuda.so.1", "version": "13.0", "reason": "cuInit says 100"})
    assert "cuInit says 100" in ask(root)["libcuda"][1]


def test_no_usable_libfabric(tmp_path):
    root = host(tmp_path, LAPTOP)
    row = {"library": "/lib/libfabric.so.1", "version": None, "providers": [], "reason": "it crashed"}
    probes(root, libfabric=[row])
    assert ask(root)["libfabric"][0] == "warning"
    assert ask(root, fabric="tcp")["libfabric"][0] == "problem"
    assert said(root, "libfabric")[0] == "/lib/libfabric.so.1 is not used: it crashed"


def test_a_build_without_libfabric_is_made_anew_whatever_libraries_are_there(tmp_path):
    root = host(tmp_path, LAPTOP)
    lacks = "this build has no fabric provider: libfabric's headers were not found when it was compiled"
    probes(root, built={"fabric": lacks, "verbs": None})
    level, text, fix = ask(root)["libfabric"]
    assert (level, text) == ("warning", lacks)
    assert "libfabric-dev" in fix
    assert "--no-binary pplx_async" in fix
    assert ask(root, fabric="tcp")["libfabric"][0] == "problem"


def test_a_build_without_libibverbs_is_a_problem_where_there_are_devices(tmp_path):
    lacks = "this build has no verbs provider: libibverbs's headers were not found when it was compiled"
    server, laptop, aws = host(tmp_path / "a"), host(tmp_path / "b", LAPTOP), host(tmp_path / "c", AWS)
    for root in (server, laptop, aws):
        probes(root, built={"fabric": None, "verbs": lacks})
    level, text, fix = ask(server)["libibverbs"]
    assert (level, text, "libibverbs-dev" in fix) == ("problem", lacks, True)
    assert ask(laptop) == {} == ask(aws)
    assert ask(laptop, fabric="verbs")["libibverbs"][0] == "problem"


def test_what_this_build_lacks_is_asked_without_any_library():
    probed = System().probe("built")
    assert set(probed) == {"fabric", "verbs"}
    assert all(lacks is None or lacks.startswith("this build has no") for lacks in probed.values())


def test_few_descriptors(tmp_path):
    root = host(tmp_path)
    limits(root, files="256", hard="4096")
    assert ask(root) == {"open files": ("warning", "at most 256 open files: enough for few peers", "ulimit -n 4096")}


def test_yama_matters_only_where_ipc_vm_writev_is_asked_for(tmp_path):
    root = host(tmp_path)
    assert ask(root) == {}
    assert ask(root, ipc_vm_writev=True)["process_vm"][2] == "sudo sysctl -w kernel.yama.ptrace_scope=0"
    write(root, "proc/sys/kernel/yama/ptrace_scope", "0")
    assert ask(root, ipc_vm_writev=True) == {}


def test_a_process_that_is_bound_far_from_the_nics(tmp_path):
    root = host(tmp_path)
    write(root, "proc/self/status", "CapEff:\t0\nCpus_allowed_list:\t4-7")
    level, text, fix = ask(root)["CPUs"]
    assert (level, "NUMA node 0, where the NICs are" in text) == ("warning", True)
    assert fix.startswith("numactl --cpunodebind=0")


def test_a_cpu_that_may_not_be_used(tmp_path):
    assert ask(host(tmp_path), cpu=9)["CPUs"][0] == "problem"


@pytest.mark.parametrize("value", [None, "8", "31"])
def test_few_queues_for_streams_in_gates(tmp_path, value):
    root = host(tmp_path)
    probes(root, environ={} if value is None else {"CUDA_DEVICE_MAX_CONNECTIONS": value})
    level, text, fix = ask(root)["GPU queues"]
    assert (level, text.endswith(f"is {value or 'not set'}")) == ("warning", True)
    assert fix.startswith("export CUDA_DEVICE_MAX_CONNECTIONS=32 ")


def test_queues_are_of_no_interest_without_a_gpu(tmp_path):
    root = host(tmp_path, LAPTOP)
    probes(root, environ={})
    assert said(root, "GPU queues") == []


def test_a_gpu_far_from_every_nic(tmp_path):
    text = hosts.SMALL.replace("    gpu 0000:1b:00.0\n", "") + "root 0000:97 node 1\n  gpu 0000:9d:00.0\n"
    level, text, _ = ask(host_of(tmp_path, text))["GPUs and NICs"]
    assert level == "warning"
    assert text.startswith("gpu0 (0000:9d:00.0): mlx5_0, mlx5_1, across the machine")


def host_of(root, layout):
    host(root)
    shutil.rmtree(root / "sys/devices")
    shutil.rmtree(root / "sys/bus")
    return build(layout, root)


def test_all_gpus_of_a_dgx_are_listed(tmp_path):
    root = build(DGX_H100, tmp_path)
    write(root, "proc/self/status", "Cpus_allowed_list:\t0-223")
    lines = said(root, "GPUs and NICs")
    assert len(lines) == 8
    assert lines[7] == "gpu7 (0000:df:00.0): mlx5_11, by a common PCI switch, CPU 111"


# ---- nothing may crash or hang ----


@pytest.mark.parametrize("layout", [hosts.SMALL, AWS], ids=["roce", "efa"])
@pytest.mark.parametrize(
    "junk",
    [b"", b"\xff\xfe\0", b"-1", b"9" * 5000, b"a: b: c\n" * 3, None, "folder"],
    ids=["empty", "binary", "negative", "huge", "lines", "gone", "folder"],
)
def test_no_file_whatever_it_holds_breaks_a_check(tmp_path, layout, junk):
    root = host(tmp_path, layout)
    files = [path for path in root.rglob("*") if path.is_file() and "cpu/cpu" not in str(path)]
    assert len(files) > 25
    for file in files:
        before = file.read_bytes()
        file.unlink()
        if junk == "folder":
            file.mkdir()
        elif junk is not None:
            file.write_bytes(junk)
        found = examine(System(root))
        # The file of the probes is ours; all others are the kernel's.
        broken = [finding.text for _, finding in found if "this check failed" in finding.text]
        assert broken == [] or file.name == "probes.json", file
        if junk == "folder":
            file.rmdir()
        file.write_bytes(before)


def test_a_check_that_fails_says_so_and_the_rest_go_on(tmp_path):
    def broken(system):
        yield ok("so far")
        raise KeyError("lost")

    found = examine(System(tmp_path), [("one", broken), ("two", lambda system: [ok("well")])])
    assert [(name, finding.level, finding.text) for name, finding in found] == [
        ("one", Level.OK, "so far"),
        ("one", Level.WARNING, "this check failed: KeyError: 'lost'"),
        ("two", Level.OK, "well"),
    ]


def test_a_check_that_hangs_is_left(tmp_path):
    end = threading.Event()

    def hangs(system):
        yield ok("so far")
        end.wait()

    try:
        found = examine(System(tmp_path), [("one", hangs), ("two", lambda system: [ok("well")])], seconds=0.05)
    finally:
        end.set()
    assert [finding.text for _, finding in found] == ["so far", "this check did not end within 0.05 s", "well"]


def test_a_library_that_crashes_or_hangs_is_a_finding(monkeypatch):
    monkeypatch.setattr(live, "_SECONDS", 0.001)
    assert "did not answer" in live.PROBES["libibverbs"](EngineOptions())["reason"]
    monkeypatch.setattr(live, "_SECONDS", 20)
    monkeypatch.setattr(live.sys, "executable", "/bin/false")
    assert "ended with status 1" in live.PROBES["libibverbs"](EngineOptions())["reason"]


# ---- this machine, and the command ----


def test_this_machine_can_be_examined():
    found = examine(System())
    assert not any("this check" in finding.text for _, finding in found), found
    assert {"libfabric", "libibverbs", "shared memory", "CPUs"} <= {name for name, _ in found}


def test_each_check_has_a_name_of_its_own():
    assert len(dict(CHECKS)) == len(CHECKS)


def cli(*arguments):
    command = [sys.executable, "-m", "pplx_async.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=ROOT, env=environment())


def test_the_command_on_a_whole_host(tmp_path):
    result = cli("doctor", "--root", str(host(tmp_path)))
    assert (result.returncode, result.stderr) == (0, "")
    assert "mlx5_0 port 1: active" in result.stdout
    assert result.stdout.endswith("0 problems, 0 warnings\n")


def test_the_command_on_a_broken_host(tmp_path):
    root = host(tmp_path)
    limits(root, memlock="65536")
    write(root, "sys/class/net/eth0/mtu", "1500")
    result = cli("doctor", "--root", str(root))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "\n    sudo ip link set dev eth0 mtu 4200  # on both hosts, and on the switch\n" in result.stdout
    assert result.stdout.endswith("1 problem, 1 warning\n")
    result = cli("doctor", "--root", str(root), "--json")
    assert result.returncode == 1
    told = json.loads(result.stdout)
    assert (told["ok"], told["problems"], told["warnings"]) == (False, 1, 1)
    (problem,) = [row for row in told["findings"] if row["level"] == "problem"]
    assert problem["check"] == "locked memory"
    assert problem["fix"]
