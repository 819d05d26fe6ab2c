# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""docs/reliability.md: each promise names tests that there are."""

import re

import pytest

from helpers.process import ROOT, TESTS

PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+)`", PAGE)))


def test_every_promise_names_its_test():
    promises = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    assert len(promises) > 20
    wanting = [line for line in promises if not re.search(r"\btests/|\| the same", line)]
    assert all(line.startswith("| promise") for line in wanting), wanting


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/[\w/.]+)`", PAGE))))
def test_file_that_is_named_is_there(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", NAMED)
def test_that_is_named_is_there(name):
    assert any(re.search(rf"def {name}\(", path.read_text()) for path in TESTS.rglob("test_*.py"))
