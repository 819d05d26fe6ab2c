# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Machines as text, and the ``/sys`` that they would show.

A layout has a line for each thing; what is indented hangs below the line above:

    node 0 cpus 0-3 siblings 2      NUMA node 0; CPU i and CPU i+2 are one core
    root 0000:15 node 0             a root complex
      bridge 0000:15:01.0           a root port, or a port of a switch
        gpu 0000:1b:00.0
        nic 0000:18:00.0 mlx5_0     a ConnectX-7, unless `model=` says otherwise
        net 0000:19:00.0 eth0       a NIC without RDMA

They are made by hand from what is published, with the source of each. Where addresses of bridges are not
published, they are made up: only who shares which bridge means anything to us.
"""

from __future__ import annotations

from pathlib import Path

MODELS = {"cx7": ("0x15b3", "0x1021"), "cx6": ("0x15b3", "0x101b"), "efa": ("0x1d0f", "0xefa2")}


def _group(number, node, gpus, nics, depth=2):
    """A root port with a switch (at `depth` 1 none), and what is below it."""
    bus = f"0000:{number:02x}"
    lines = [f"root {bus} node {node}"]
    for level in range(depth):
        lines.append(f"{'  ' * (level + 1)}bridge {bus}:{level + 1:02x}.0")
    below = "  " * (depth + 1)
    lines += [f"{below}gpu 0000:{address}:00.0" for address in gpus]
    lines += [f"{below}nic 0000:{address}:00.0 {name}" for address, name in nics]
    return "\n".join(lines)


def _efa(*buses):
    """AWS's own kernel names a device by its bus and slot, in decimal."""
    return [(f"{bus:02x}", f"rdmap{bus}s0 model=efa") for bus in buses]


# GPU and NIC addresses and names, four NICs and a GPU to a switch: topology/p5.48xl-topo.xml of
# github.com/aws/aws-ofi-nccl, which puts all of it on node 0. Two EPYC with 48 cores each, 192 vCPUs, and four
# GPUs to a socket: AWS's page of the instance type, and an earlier version of that file.
P5 = "\n".join(
    [
        "node 0 cpus 0-47,96-143 siblings 96",
        "node 1 cpus 48-95,144-191 siblings 96",
        *(
            _group(number, number // 4, [f"{gpu:02x}"], _efa(*range(gpu + 1, gpu + 5)))
            for number, gpu in enumerate((0x4F, 0x60, 0x70, 0x80, 0x90, 0xA0, 0xB0, 0xC0))
        ),
    ]
)

# The sixteen NICs, their names, and that each shares a PCI switch with GPUs: the expectations in aws-ofi-nccl's
# test of its topology. Eight H200, 192 vCPUs of two Xeon: AWS's page. That a switch has four NICs and two
# GPUs follows from the runs of bus numbers; the GPUs' addresses are made up.
P5EN = "\n".join(
    [
        "node 0 cpus 0-47,96-143 siblings 96",
        "node 1 cpus 48-95,144-191 siblings 96",
        *(
            _group(number, number // 2, [f"{bus - 2:02x}", f"{bus - 1:02x}"], _efa(*range(bus, bus + 4)))
            for number, bus in enumerate((0x55, 0x6E, 0x87, 0xA0))
        ),
    ]
)

# Which ConnectX-7 belongs to which GPU, and their buses (ibp24s0 is bus 0x18): table "Network Modules" of NVIDIA's
# DGX H100 User Guide. The GPUs' addresses are made up. Two Xeon 8480C, 56 cores each. The
# other two cards, two ports each, are for storage and on no GPU's switch.
_DGX = [
    (0x15, 0, "1b", "18", "mlx5_0"),
    (0x3D, 0, "43", "40", "mlx5_3"),
    (0x4C, 0, "52", "4f", "mlx5_4"),
    (0x5B, 0, "61", "5e", "mlx5_5"),
    (0x97, 1, "9d", "9a", "mlx5_6"),
    (0xBD, 1, "c3", "c0", "mlx5_9"),
    (0xCB, 1, "d1", "ce", "mlx5_10"),
    (0xD9, 1, "df", "dc", "mlx5_11"),
]
DGX_H100 = "\n".join(
    [
        "node 0 cpus 0-55,112-167 siblings 112",
        "node 1 cpus 56-111,168-223 siblings 112",
        *(_group(root, node, [gpu], [(nic, name)], depth=3) for root, node, gpu, nic, name in _DGX),
        "root 0000:26 node 0",
        "  bridge 0000:26:01.0",
        "    nic 0000:29:00.0 mlx5_1",
        "    nic 0000:29:00.1 mlx5_2",
        "root 0000:a8 node 1",
        "  bridge 0000:a8:01.0",
        "    nic 0000:aa:00.0 mlx5_7",
        "    nic 0000:aa:00.1 mlx5_8",
    ]
)

# Any laptop: one node, whose number its devices do not say, a graphics processor of the CPU, a wireless card.
LAPTOP = """
node 0 cpus 0-7 siblings 0
root 0000:00 node -1
  screen 0000:00:02.0
  bridge 0000:00:1c.0
    net 0000:02:00.0 wlp2s0
"""


def build(layout: str, root: Path) -> Path:
    """Make the tree of a machine below `root`, and return it."""
    stack: list[tuple[int, Path]] = []
    node = "-1"
    (root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
    for line in layout.splitlines():
        if not line.strip():
            continue
        what, name, *words = line.split()
        depth = len(line) - len(line.lstrip())
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if what == "node":
            _node(root, name, words)
        elif what == "root":
            folder = root / "sys/devices" / f"pci{name}"
            node = words[1]
            folder.mkdir(parents=True)
            stack.append((depth, folder))
        else:
            folder = stack[-1][1] / name
            _device(folder, what, node, words)
            link = root / "sys/bus/pci/devices" / name
            link.symlink_to(Path("../../..") / folder.relative_to(root / "sys"))
            stack.append((depth, folder))
    return root


def write(root: Path, path: str, text: str) -> Path:
    """Put a file into a tree, over what is there."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")
    return file


def _node(root: Path, number: str, words: list[str]) -> None:
    cpus, apart = words[1], int(words[3])
    write(root, f"sys/devices/system/node/node{number}/cpulist", cpus)
    firsts, *seconds = (range(*_bounds(part)) for part in cpus.split(","))
    for cpu in firsts:
        siblings = f"{cpu},{cpu + apart}" if seconds else str(cpu)
        for sibling in siblings.split(","):
            write(root, f"sys/devices/system/cpu/cpu{sibling}/topology/thread_siblings_list", siblings)


def _bounds(part: str) -> tuple[int, int]:
    low, _, high = part.partition("-")
    return int(low), int(high or low) + 1


def _device(folder: Path, what: str, node: str, words: list[str]) -> None:
    classes = {"bridge": "0x060400", "gpu": "0x030200", "screen": "0x030000", "nic": "0x020000", "net": "0x028000"}
    options = dict(word.split("=") for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    vendor, device = {
        "gpu": ("0x10de", "0x2330"),
        "nic": MODELS[options.get("model", "cx7")],
    }.get(what, ("0x8086", "0x1234"))
    for file, text in {"class": classes[what], "vendor": vendor, "device": device, "numa_node": node}.items():
        write(folder, file, text)
    for name in names:
        (folder / ("infiniband" if what == "nic" else "net") / name).mkdir(parents=True)
