# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""libfabric's objects as the core offers them, and the structs of the public headers that they take."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from pplx_async._core.includes.pplx cimport (
    pplx_bool,
    pplx_error,
    pplx_memory,
    pplx_option,
    pplx_remote_key,
    pplx_status,
)


cdef extern from "pplx_async/types.h" nogil:
    enum:
        PPLX_WRITE_IMM
        PPLX_SEND
        PPLX_RECV
        PPLX_COMPLETION_IMM

    ctypedef struct pplx_provider_mr:
        pass

    ctypedef struct pplx_op:
        pass

    ctypedef struct pplx_work_request:
        pplx_op *op
        uint64_t local_address
        uint64_t nbytes
        pplx_provider_mr *local_mr
        uint64_t remote_address
        uint64_t remote_key
        uint32_t opcode
        uint32_t imm

    ctypedef struct pplx_completion:
        pplx_op *op
        uint32_t kind
        int32_t status
        int32_t provider_error
        uint32_t imm
        uint64_t nbytes


cdef extern from "fabric_objects.h" nogil:
    ctypedef struct pplx_fabric_domain:
        pass
    ctypedef struct pplx_fabric_queue:
        pass
    ctypedef struct pplx_fabric_endpoint:
        pass
    ctypedef struct pplx_fabric_peer:
        pass

    ctypedef struct pplx_fabric_limits:
        uint64_t max_message
        uint32_t tx_size
        uint32_t rx_size

    ctypedef struct pplx_fabric_api:
        pplx_status (*domain_open)(const char *, const pplx_option *, size_t, pplx_fabric_domain **,
                                   pplx_fabric_limits *, pplx_error *) noexcept nogil
        void (*domain_close)(pplx_fabric_domain *) noexcept nogil
        void (*domain_free)(pplx_fabric_domain *) noexcept nogil
        pplx_status (*peer_insert)(pplx_fabric_domain *, const void *, size_t, pplx_fabric_peer **,
                                   pplx_error *) noexcept nogil
        void (*peer_remove)(pplx_fabric_domain *, pplx_fabric_peer *) noexcept nogil
        pplx_status (*memory_open)(pplx_fabric_domain *, const pplx_memory *, uint32_t, pplx_provider_mr **,
                                   pplx_remote_key *, pplx_error *) noexcept nogil
        pplx_status (*memory_close)(pplx_fabric_domain *, pplx_provider_mr *) noexcept nogil
        pplx_status (*queue_open)(pplx_fabric_domain *, pplx_fabric_queue **, pplx_error *) noexcept nogil
        void (*queue_close)(pplx_fabric_queue *) noexcept nogil
        void (*queue_free)(pplx_fabric_queue *) noexcept nogil
        int (*queue_fd)(const pplx_fabric_queue *) noexcept nogil
        pplx_bool (*queue_arm)(pplx_fabric_queue *) noexcept nogil
        size_t (*queue_read)(pplx_fabric_queue *, pplx_completion *, uint64_t *, size_t, int32_t *) noexcept nogil
        pplx_status (*endpoint_open)(pplx_fabric_queue *, pplx_fabric_endpoint **, void *, size_t *,
                                     pplx_error *) noexcept nogil
        pplx_status (*endpoint_close)(pplx_fabric_endpoint *, pplx_error *) noexcept nogil
        size_t (*endpoint_flush)(pplx_fabric_endpoint *, pplx_completion *, uint64_t *, size_t) noexcept nogil
        void (*endpoint_free)(pplx_fabric_endpoint *) noexcept nogil
        pplx_status (*post)(pplx_fabric_endpoint *, const pplx_fabric_peer *, const pplx_work_request *,
                            int32_t *) noexcept nogil

    const pplx_fabric_api *pplx_fabric_objects()
