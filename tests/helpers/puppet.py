# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A stream whose steps the test itself takes: between any two of its own."""

from pplx_async._core.words import run_step
from pplx_async._streams import Stream

__all__ = ["Puppet"]


class Puppet(Stream):
    """A stream that does nothing by itself, captured or not."""

    key = label = "puppet"

    def __init__(self, captured=False):
        self.captured = captured

    def __pplx_stream__(self):
        """Say that it is a stream."""
        return self

    def is_capturing(self):
        """As it was made."""
        return self.captured

    def push(self, page, word):
        """Keep what there is to do; nobody does it yet."""
        self.address, self.steps = word.address, word.steps()

    def step(self, number):
        """Take a step of the last word; False: it is one that waits, and has to go on doing so."""
        return run_step(*self.steps[number], self.address, 0)
