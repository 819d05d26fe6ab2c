# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The wheel ibverbs, with completions that are awaited: messages between two queue pairs of its.

All but the lines with `AsyncCQ` and what it gives is code as it is written for ibverbs.

Run: pip install ibverbs; python examples/ibverbs_queue.py [device [other device]]  (default: the first, and itself)
"""

import asyncio
import ctypes
import sys

import ibverbs as ib

from pplx_async import verbs

MESSAGES, SIZE = 50, 64
PLACES = [slice(number * SIZE, (number + 1) * SIZE) for number in range(MESSAGES)]


class End:
    """A queue pair of ibverbs and what it is made of."""

    def __init__(self, device):
        port = verbs.open(device)  # for the entry of the GID table alone, which ibverbs leaves to its users
        self.gid_index = port.port.gid_index
        port.close()
        self.context = next(found for found in ib.get_device_list() if found.name == device).open()
        self.pd = self.context.alloc_pd()
        self.channel = self.context.create_comp_channel()
        self.cq = self.context.create_cq(2 * MESSAGES, self.channel)
        depths = {"max_send_wr": MESSAGES, "max_recv_wr": MESSAGES}
        self.qp = self.pd.create_qp(ib.QPInitAttr(send_cq=self.cq, recv_cq=self.cq, **depths))
        self.buffer = bytearray(MESSAGES * SIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        self.mr = self.pd.reg_mr(address, len(self.buffer), ib.AccessFlags.LOCAL_WRITE)
        gid = self.context.query_gid(1, self.gid_index)
        self.info = ib.local_qp_info(self.qp, self.context.query_port(1), gid, port=1)

    def connect(self, other):
        ib.connect_rc(self.qp, other.info, port=1, sgid_index=self.gid_index, access=ib.AccessFlags.LOCAL_WRITE)

    def place(self, number):
        return [ib.SGE(self.mr, SIZE, offset=number * SIZE)]


async def main(one, other):
    a, b = End(one), End(other)
    a.connect(b)
    b.connect(a)
    sent, arrived = verbs.AsyncCQ(a.cq, a.channel), verbs.AsyncCQ(b.cq, b.channel)

    async def read(queue):
        """Return what completes, by `wr_id`: ibverbs' own objects."""
        numbers = []
        async for wc in queue:
            assert verbs.error_of(wc) is None
            numbers.append(wc.wr_id)
            if len(numbers) == MESSAGES:
                return numbers

    reading = asyncio.gather(read(sent), read(arrived))
    await asyncio.sleep(0)  # now both wait
    for number, place in enumerate(PLACES):
        a.buffer[place] = f"message {number}".encode().ljust(SIZE, b".")
        b.qp.post_recv(ib.RecvWR(wr_id=number, sg_list=b.place(number)))
        send = {"opcode": ib.WROpcode.SEND, "send_flags": ib.SendFlags.SIGNALED}
        a.qp.post_send(ib.SendWR(wr_id=number, sg_list=a.place(number), **send))
    assert await reading == [list(range(MESSAGES))] * 2
    assert a.buffer == b.buffer
    sent.close()
    arrived.close()
    print(f"{MESSAGES} messages of ibverbs, awaited, over verbs between {one} and {other}")


devices = sys.argv[1:] or verbs.devices()[:1]
asyncio.run(main(devices[0], devices[-1]))
