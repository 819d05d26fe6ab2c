# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The native core: C in ``csrc``, and the Cython that owns the boundary. Private.

``lowlevel`` is the documented door to it.
"""

__all__: list[str] = []
