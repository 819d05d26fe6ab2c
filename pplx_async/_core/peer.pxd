# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from pplx_async._core.engine cimport Engine
from pplx_async._core.memory cimport PeerRecord


cdef class PeerCore(PeerRecord):
    cdef Engine not_freed(self)
