# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""All operations between four processes, every byte checked, while one after the other is killed, or stopped.

    python -m tests.soak --seconds 600 --fabric ipc --seed 7

The map: ``__main__.py`` is the command; ``run.py`` starts, kills and judges the members, through
``process.py``; ``view.py`` and ``report.py`` show it. A member is a process, ``member_main.py``, with an
engine and tasks (``member.py``) that carry out exercises: ``exercises/``, a file for each concept. Two
members talk about an exercise by the engine's own messages (``talk.py``). A member and the command talk
in lines of JSON (``events.py``).
"""
