# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""libibverbs' objects as the core offers them."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from pplx_async._core.includes.pplx cimport pplx_bool, pplx_error, pplx_option, pplx_status


cdef extern from "verbs_objects.h" nogil:
    ctypedef struct pplx_verbs_context:
        pass
    ctypedef struct pplx_verbs_queue:
        pass
    ctypedef struct pplx_verbs_pair:
        pass
    ctypedef struct pplx_verbs_pd:
        pass
    ctypedef struct pplx_verbs_mr:
        pass

    ctypedef struct pplx_verbs_port:
        char *gid
        uint8_t gid_bytes[16]
        uint64_t bits_per_second
        uint64_t max_message
        uint32_t number
        uint32_t gid_index
        uint32_t pkey_index
        uint32_t pkey
        uint32_t mtu
        uint32_t lid
        uint32_t max_entries
        uint32_t max_work
        pplx_bool ethernet

    ctypedef struct pplx_verbs_address:
        uint8_t gid[16]
        uint32_t number
        uint32_t psn
        uint32_t mtu
        uint32_t lid
        uint32_t reads
        pplx_bool grh

    ctypedef struct pplx_verbs_connection:
        uint32_t timeout
        uint32_t retries
        uint32_t rnr_retries

    ctypedef struct pplx_verbs_request:
        uint64_t id
        uint64_t local_address
        uint64_t nbytes
        uint64_t remote_address
        uint32_t lkey
        uint32_t rkey
        uint32_t opcode
        uint32_t imm
        pplx_bool has_imm

    ctypedef struct pplx_verbs_completion:
        uint64_t id
        uint64_t nbytes
        uint32_t flags
        uint32_t imm
        int32_t status
        int32_t native
        pplx_bool remote_write
        pplx_bool has_imm

    ctypedef struct pplx_verbs_api:
        pplx_status (*context_open)(const char *, const pplx_option *, size_t, pplx_verbs_context **,
                                    pplx_verbs_port *, pplx_error *) noexcept nogil
        void (*context_close)(pplx_verbs_context *) noexcept nogil
        pplx_status (*pd_open)(pplx_verbs_context *, pplx_verbs_pd **, pplx_error *) noexcept nogil
        pplx_status (*pd_close)(pplx_verbs_context *, pplx_verbs_pd *, pplx_error *) noexcept nogil
        pplx_status (*memory_open)(pplx_verbs_context *, pplx_verbs_pd *, void *, uint64_t, uint32_t, pplx_bool,
                                   pplx_verbs_mr **, uint32_t *, uint32_t *, pplx_error *) noexcept nogil
        pplx_status (*memory_close)(pplx_verbs_context *, pplx_verbs_mr *, pplx_error *) noexcept nogil
        pplx_status (*queue_open)(pplx_verbs_context *, uint32_t *, pplx_verbs_queue **, int *,
                                  pplx_error *) noexcept nogil
        pplx_status (*queue_close)(pplx_verbs_queue *, pplx_error *) noexcept nogil
        int (*queue_arm)(pplx_verbs_queue *) noexcept nogil
        int (*queue_read)(pplx_verbs_queue *, pplx_verbs_completion *, int) noexcept nogil
        pplx_status (*pair_open)(pplx_verbs_context *, pplx_verbs_pd *, pplx_verbs_queue *, pplx_verbs_queue *,
                                 uint32_t, uint32_t, pplx_verbs_pair **, pplx_verbs_address *,
                                 pplx_error *) noexcept nogil
        pplx_status (*pair_connect)(pplx_verbs_pair *, const pplx_verbs_address *, const pplx_verbs_connection *,
                                    pplx_error *) noexcept nogil
        pplx_status (*pair_break)(pplx_verbs_pair *, pplx_error *) noexcept nogil
        int (*pair_state)(pplx_verbs_pair *) noexcept nogil
        pplx_status (*pair_close)(pplx_verbs_pair *, pplx_error *) noexcept nogil
        pplx_status (*post)(pplx_verbs_pair *, const pplx_verbs_request *, int32_t *) noexcept nogil
        const char *(*status_text)(int) noexcept nogil

    const pplx_verbs_api *pplx_verbs_objects()
