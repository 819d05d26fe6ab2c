# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A Python target as a program: ``python -m tests.fuzz.python_main TARGET [libFuzzer's options]``."""

from __future__ import annotations

import importlib
import random
import sys

import atheris

__all__ = ["main"]

# Of an input: where msgpack may begin. Behind the byte that says which part, behind a descriptor's prefix.
_STARTS = (0, 1, 5)


def main() -> None:
    """Fuzz the target that the first argument names."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["pplx_async"], enable_loader_override=False):
        target = importlib.import_module(f"tests.fuzz.targets.{name}")
    from tests.fuzz import features, mutator

    features.instrument(atheris.instrument_func)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        choices = random.Random(seed)
        start = choices.choice(_STARTS)
        if choices.random() < 0.5 and (mutated := mutator.mutate(data[start:], choices)) is not None:
            return (data[:start] + mutated)[:most]
        return bytes(atheris.Mutate(data, most))

    atheris.Setup(sys.argv, target.check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
