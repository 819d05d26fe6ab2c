# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The documented door to the native core, for authors of extensions.

Names here are kept stable between minor versions; everything else below ``pplx_async._core`` is
private. C and Cython code reaches the core through the table of ``pplx_async/api.h``.
"""

from pplx_async._core.memory import LocalSlice, RemoteSlice
from pplx_async._core.promise import Promise
from pplx_async._core.rt import core_version, discover, status_names, status_text

__all__ = ["LocalSlice", "Promise", "RemoteSlice", "core_version", "discover", "status_names", "status_text"]
