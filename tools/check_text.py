# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Check what no linter of one language looks at.

The licence head of every source file, trailing blanks, the final newline, and that TOML parses.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

SOURCES = {".c", ".h", ".py", ".pyi", ".pyx", ".pxd", ".sh", ".cfg", ".toml"}
TEXTS = SOURCES | {".md", ".yaml", ".yml", ".in", ".txt", ""}
HEAD = "SPDX-FileCopyrightText: 2026 The pplx_async authors", "SPDX-License-Identifier: Apache-2.0"
# Verbatim, or empty by definition.
EXEMPT = {"LICENSE", "py.typed"}
SKIP = {".git", ".venv", ".nox", "build", "dist", "__pycache__"}


def files() -> list[Path]:
    """List what git would track; outside a checkout, everything that is not a build product."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True
    )
    if git.returncode == 0:
        return [path for name in git.stdout.split("\0") if name and (path := Path(name)).is_file()]
    return [path for path in Path().rglob("*") if path.is_file() and not SKIP.intersection(path.parts)]


def problems(path: Path) -> list[str]:
    """Say what is wrong with one file, one line each."""
    if path.suffix not in TEXTS or path.name in EXEMPT or path.name.startswith("PKG-INFO"):
        return []
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return ["not UTF-8"] if path.suffix else []
    lines = text.split("\n")
    found = [f"{number}: trailing blanks" for number, line in enumerate(lines, 1) if line != line.rstrip()]
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        found.append("must end with one newline")
    if "\t" in text and path.suffix in SOURCES:
        found.append("tabs")
    is_source = path.suffix in SOURCES or text.startswith("#!")
    if is_source and not all(mark in "\n".join(lines[:4]) for mark in HEAD):
        found.append("no SPDX head in the first four lines")
    if path.suffix == ".toml":
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found.append(str(error))
    return found


failed = [f"{path}: {problem}" for path in sorted(files()) for problem in problems(path)]
print(*failed, sep="\n", end="\n" if failed else "")
sys.exit(bool(failed))
