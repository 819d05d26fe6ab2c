# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from pplx_async._core.includes.pplx cimport pplx_api, pplx_error, pplx_option, pplx_provider

cdef const pplx_api *api
cdef const void *fabric_objects  # a pplx_fabric_api; other projects cimport this file, and lack its header
cdef const void *verbs_objects  # a pplx_verbs_api; likewise

cdef int check(const pplx_error *error, str operation, str provider=*) except -1
cdef const pplx_provider *find_provider(str name) except NULL


cdef class Options:
    cdef list keep
    cdef pplx_option items[32]
    cdef size_t count
