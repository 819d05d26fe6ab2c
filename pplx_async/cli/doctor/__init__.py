# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async doctor``: what a machine lacks, and the line that helps.

``command.py`` is the command, ``examine.py`` runs the checks, each guarded. A check is a function that
takes a `System` (``system.py``) and yields findings (``finding.py``); those about one concept share a file.
What is in files is read below a root, which may be the recorded tree of another machine; what only the
machine itself can say is a probe (``probes.py``), and in a recorded tree the file ``probes.json``.
"""

__all__: list[str] = []
