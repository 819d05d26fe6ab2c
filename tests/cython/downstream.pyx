# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What somebody else's Cython module does with ours: cimport the table, include the headers."""

from libc.stdint cimport uint32_t

from pplx_async._core.includes.pplx cimport PPLX_API_ABI, pplx_api
from pplx_async._core.rt cimport api


cdef extern from "pplx_async/pplx_async.h" nogil:
    uint32_t pplx_imm_encode(uint32_t counter, uint32_t eighths)
    uint32_t pplx_imm_counter(uint32_t imm)
    uint32_t pplx_imm_eighths(uint32_t imm)


def abi():
    """ABI of the running core, and the one that this module was compiled against."""
    return api.abi, PPLX_API_ABI, api.size == sizeof(pplx_api)


def status_name(int status):
    """A call through the table."""
    return api.status_name(status).decode()


def imm_round_trip(uint32_t counter, uint32_t eighths):
    """The inline functions of types.h."""
    imm = pplx_imm_encode(counter, eighths)
    return pplx_imm_counter(imm), pplx_imm_eighths(imm)
