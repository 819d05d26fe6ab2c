# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Exercises: what two or more members do with each other, and verify.

One member *acts*; the others are *hosts*. All of them know from the seed what is to be done, and so
what each byte and each count must be in the end.
"""

from __future__ import annotations

from tests.soak.exercises.base import Exercise
from tests.soak.exercises.batches import Batches
from tests.soak.exercises.cancels import Cancels
from tests.soak.exercises.groups import Groups
from tests.soak.exercises.messages import Messages
from tests.soak.exercises.notifies import Notifies
from tests.soak.exercises.pages import Pages
from tests.soak.exercises.reads import Reads
from tests.soak.exercises.revokes import Closes, Revokes
from tests.soak.exercises.scatters import Scatters
from tests.soak.exercises.writes import CountedWrites, Writes

__all__ = ["EXERCISES", "Exercise"]

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for exercise in (
        Writes(),
        CountedWrites(),
        Pages(),
        Scatters(),
        Reads(),
        Messages(),
        Notifies(),
        Groups(),
        Batches(),
        Cancels(),
        Revokes(),
        Closes(),
    )
}
