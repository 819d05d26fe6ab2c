# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a driver says of virtual mappings, as far as csrc/cuda_virtual.c stands on it: a GPU's, or the tests' own."""

import ctypes
import os

import pytest

from helpers.cuda import CHUNK, DeviceStream

SIZE, POINTER, FLAGS = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_ulonglong
INVALID_VALUE, NOT_SUPPORTED, UNKNOWN = 1, 801, 999
ID, ORDINAL, SHAREABLE, START, NBYTES, HANDLE_TYPES, MAPPING_NBYTES, MAPPING_START = 7, 9, 10, 11, 12, 14, 18, 19


def ask(device, attribute, address):
    value = ctypes.c_uint64()
    assert device.driver.cuPointerGetAttribute(ctypes.byref(value), attribute, POINTER(address)) == 0
    return value.value


def retain(device, address):
    """Return what the driver says, and the handle."""
    handle = ctypes.c_uint64()
    return device.driver.cuMemRetainAllocationHandle(ctypes.byref(handle), ctypes.c_void_p(address)), handle


def export(device, address):
    """Return what the driver says, and the descriptor of what is mapped there."""
    result, handle = retain(device, address)
    assert result == 0
    fd = ctypes.c_int(-1)
    result = device.driver.cuMemExportToShareableHandle(ctypes.byref(fd), handle, 1, FLAGS(0))
    device.call("cuMemRelease", handle)
    return result, fd.value


def import_(device, fd):
    handle = ctypes.c_uint64()
    return device.driver.cuMemImportFromShareableHandle(ctypes.byref(handle), ctypes.c_void_p(fd), 1), handle


def map_(device, address, nbytes, handle):
    return device.driver.cuMemMap(POINTER(address), SIZE(nbytes), SIZE(0), handle, FLAGS(0))


@pytest.fixture
def chunks(device):
    memory = device.virtual(3 * CHUNK, at=0, chunks=[CHUNK, 2 * CHUNK], reserved=8 * CHUNK)
    yield memory
    memory.free()


def test_a_chunk_tells_where_it_lies_and_how_it_is_shared(device, chunks):
    first, inside = chunks.start, chunks.start + CHUNK + 4097
    for address, start, nbytes in ((first, first, CHUNK), (inside, first + CHUNK, 2 * CHUNK)):
        assert ask(device, MAPPING_START, address) == start
        assert ask(device, MAPPING_NBYTES, address) == nbytes
        assert ask(device, HANDLE_TYPES, address) == 1
        assert ask(device, ORDINAL, address) == device.ordinal
        assert ask(device, SHAREABLE, address) == 0
        # The range is that of all addresses, mapped or not.
        assert (ask(device, START, address), ask(device, NBYTES, address)) == (chunks.start, chunks.reserved)
    assert ask(device, ID, first) != ask(device, ID, inside)


def test_where_nothing_is_mapped_there_is_no_chunk(device, chunks):
    empty = chunks.start + 3 * CHUNK
    value, size = ctypes.c_uint64(), ctypes.c_uint64()
    assert device.driver.cuPointerGetAttribute(ctypes.byref(value), MAPPING_START, POINTER(empty)) == INVALID_VALUE
    attributes = (ctypes.c_int * 2)(MAPPING_START, MAPPING_NBYTES)
    data = (ctypes.c_void_p * 2)(ctypes.addressof(value), ctypes.addressof(size))
    result = device.driver.cuPointerGetAttributes(2, attributes, data, POINTER(empty))
    assert result != 0 or size.value == 0
    assert retain(device, empty)[0] == INVALID_VALUE


def test_what_was_allocated_as_a_whole_is_no_chunk(device):
    memory = device.zeros(CHUNK)
    assert ask(device, SHAREABLE, memory.address) == 1
    assert ask(device, HANDLE_TYPES, memory.address) == 0
    assert retain(device, memory.address)[0] == INVALID_VALUE
    memory.free()


def test_a_chunk_that_was_made_for_nobody_else_has_no_descriptor(device):
    memory = device.virtual(CHUNK, at=0, handle_types=0)
    assert ask(device, HANDLE_TYPES, memory.address) == 0
    assert export(device, memory.address)[0] == INVALID_VALUE
    memory.free()


def test_who_has_the_descriptor_maps_the_chunk_whole_and_shares_it_with_nobody(device, chunks):
    result, fd = export(device, chunks.start + CHUNK + 12345)
    assert result == 0
    result, handle = import_(device, fd)
    assert result == 0
    os.close(fd)
    start = device.reserve(4 * CHUNK)
    assert map_(device, start, CHUNK, handle) == NOT_SUPPORTED
    assert map_(device, start, 4 * CHUNK, handle) == NOT_SUPPORTED
    assert map_(device, start, 2 * CHUNK, handle) == 0
    device.call("cuMemRelease", handle)
    device.give_access(start, 2 * CHUNK)
    content = os.urandom(4096)
    device.call("cuMemcpyHtoD_v2", POINTER(start + 5), content, SIZE(len(content)))
    assert chunks.get()[CHUNK + 5 :][: len(content)] == content
    assert ask(device, HANDLE_TYPES, start) == 0
    assert export(device, start)[0] == INVALID_VALUE
    device.unreserve(start, 2 * CHUNK, 4 * CHUNK)


def test_descriptors_of_anything_else_are_refused(device):
    reader, writer = os.pipe()
    memfd = os.memfd_create("no chunk")
    with open("/dev/null", "rb") as null:
        for fd in (reader, memfd, null.fileno(), 1 << 20):
            assert import_(device, fd)[0] == UNKNOWN
    for fd in (reader, writer, memfd):
        os.close(fd)


def test_a_gpu_copies_of_others_chunks_those_that_it_was_given_access_to(device, second):
    there = second.virtual(CHUNK, at=0)
    here = device.zeros(CHUNK)
    stream = DeviceStream(device)
    copy = (POINTER(here.address), POINTER(there.address), SIZE(CHUNK), stream.handle)
    assert device.driver.cuMemcpyAsync(*copy) == INVALID_VALUE
    assert device.driver.cuMemcpyHtoD_v2(POINTER(there.address), bytes(8), SIZE(8)) != 0
    device.give_access(there.address, CHUNK)
    assert device.driver.cuMemcpyAsync(*copy) == 0
    stream.synchronize()
    stream.close()
    there.free()
    here.free()
