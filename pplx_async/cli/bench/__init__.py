# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async bench``, and what ``benchmarks/`` measures others with.

``works.py`` says what is done, ``rows.py`` and ``quiet.py`` how repetitions become figures.
"""

__all__: list[str] = []
