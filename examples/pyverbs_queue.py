# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""pyverbs (of rdma-core), with completions that are awaited: messages between two queue pairs of its.

All but the lines with `AsyncCQ` and what it gives is code as it is written for pyverbs.

Run: python examples/pyverbs_queue.py [device [other device]]      (default: the first, and itself)
It needs pyverbs: Debian's python3-pyverbs, for the distribution's Python.
"""

import asyncio
import sys

import pyverbs.enums as e
from pyverbs.addr import AHAttr, GlobalRoute
from pyverbs.cq import CQ, CompChannel
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

from pplx_async import verbs

MESSAGES, SIZE = 50, 64


class End:
    """A queue pair of pyverbs and what it is made of."""

    def __init__(self, device):
        port = verbs.open(device)  # for the entry of the GID table alone, which pyverbs leaves to its users
        self.gid_index = port.port.gid_index
        port.close()
        self.context = Context(name=device)
        self.pd = PD(self.context)
        self.channel = CompChannel(self.context)
        self.cq = CQ(self.context, 2 * MESSAGES, None, self.channel, 0)
        caps = QPCap(max_send_wr=MESSAGES, max_recv_wr=MESSAGES)
        self.qp = QP(self.pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=caps))
        self.mr = MR(self.pd, MESSAGES * SIZE, e.IBV_ACCESS_LOCAL_WRITE)

    def connect(self, other):
        attr = QPAttr(port_num=1)
        attr.dest_qp_num, attr.path_mtu = other.qp.qp_num, e.IBV_MTU_1024
        attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.min_rnr_timer = 14, 6, 6, 12
        route = GlobalRoute(dgid=other.context.query_gid(1, other.gid_index), sgid_index=self.gid_index)
        attr.ah_attr = AHAttr(port_num=1, is_global=1, gr=route)
        self.qp.to_rts(attr)

    def place(self, number):
        return [SGE(self.mr.buf + number * SIZE, SIZE, self.mr.lkey)]


async def main(one, other):
    a, b = End(one), End(other)
    a.connect(b)
    b.connect(a)
    sent, arrived = verbs.AsyncCQ(a.cq, a.channel), verbs.AsyncCQ(b.cq, b.channel)

    async def read(queue):
        """Return what completes, by `wr_id`: pyverbs' own objects."""
        numbers = []
        async for wc in queue:
            assert verbs.error_of(wc) is None
            numbers.append(wc.wr_id)
            if len(numbers) == MESSAGES:
                return numbers

    reading = asyncio.gather(read(sent), read(arrived))
    await asyncio.sleep(0)  # now both wait
    for number in range(MESSAGES):
        a.mr.write(f"message {number}".ljust(SIZE, "."), SIZE, number * SIZE)
        b.qp.post_recv(RecvWR(wr_id=number, num_sge=1, sg=b.place(number)))
        send = {"opcode": e.IBV_WR_SEND, "send_flags": e.IBV_SEND_SIGNALED}
        a.qp.post_send(SendWR(wr_id=number, num_sge=1, sg=a.place(number), **send))
    assert await reading == [list(range(MESSAGES))] * 2
    assert b.mr.read(MESSAGES * SIZE, 0) == a.mr.read(MESSAGES * SIZE, 0) != bytes(MESSAGES * SIZE)
    sent.close()
    arrived.close()
    print(f"{MESSAGES} messages of pyverbs, awaited, over verbs between {one} and {other}")


devices = sys.argv[1:] or verbs.devices()[:1]
asyncio.run(main(devices[0], devices[-1]))
