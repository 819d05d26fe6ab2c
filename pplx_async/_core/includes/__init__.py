# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Declarations of foreign C code, for ``cimport`` only."""

__all__: list[str] = []
