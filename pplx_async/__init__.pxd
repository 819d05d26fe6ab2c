# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0

# Marks the package for Cython, so that `from pplx_async._core.rt cimport ...` works in other projects.
