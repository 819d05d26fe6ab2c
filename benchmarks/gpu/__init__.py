# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measuring between GPUs, beside plain CUDA C; ``benchmarks/gpu.sh`` runs it."""
