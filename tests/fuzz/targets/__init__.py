# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets in Python: a module each, with ``check(data)``, which raises what must not happen."""
