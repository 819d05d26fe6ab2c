# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measurements beside plain C (``c/``) and beside what a user would pick instead (``peers/``)."""
