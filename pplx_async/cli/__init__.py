# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The command line, ``pplx-async``. Nothing else of the package imports it, typer or rich.

``main.py`` is the way in; each command has a file. The demos run in processes of their own:
``demo.py`` -> ``demo_run.py`` and ``side_process.py`` (this process: starts two, watches them) ->
``side_child.py`` (each of the two) -> ``demo_weights.py`` or ``demo_pages.py`` (what they do with each
other). The benchmark does it the same way: ``bench/``. The checks of ``doctor/`` load libraries in processes of
their own, too.
"""

__all__: list[str] = []
