# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests share: engines, second processes, and skips with exact reasons."""
