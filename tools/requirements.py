# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Print what pyproject.toml asks for, one requirement a line, for ``pip install -r``.

So the Makefile can install dependencies without building the package, and names none itself.

Usage: ``python tools/requirements.py {build|core|EXTRA} ...``
"""

import sys
import tomllib
from pathlib import Path

document = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
groups = {
    **document["project"]["optional-dependencies"],
    "build": document["build-system"]["requires"],
    "core": document["project"]["dependencies"],
}
for name in sys.argv[1:]:
    print(*groups[name], sep="\n")
