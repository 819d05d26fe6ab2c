# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what hostile bytes reach first.

    python -m tests.fuzz --seconds 60

Two targets are Python (``targets/``, carried by atheris through ``python_main.py``): descriptors, and
the control channel. Two are C (``c/``, ``Makefile``): immediates, and the ipc provider. The engine is
libFuzzer for all of them. ``seeds/`` has a corpus for each, a line of hex for each input; what a run adds
to it, and what it finds, is under ``build/fuzz``.
"""
