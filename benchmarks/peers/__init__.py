# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The same works through what a user would pick instead, each from PyPI in an environment of its own.

``run.py`` runs them all. A peer is a `Side` in a module of its own, run by ``driver.py``; ``registry.py``
lists them.
"""
