# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The same checks as the Makefile's, in one fresh environment each, on every supported Python."""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "typing", "tests", "sdist_wheel"]
nox.options.error_on_missing_interpreters = False


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("loop", ["asyncio", "uvloop"])
def tests(session, loop):
    session.install("--editable", ".[test,fabric]")
    session.run("pytest", "--loop", loop, *session.posargs)


@nox.session
def lint(session):
    session.run("make", f"VENV={session.create_tmp()}/venv", "lint", external=True)


@nox.session
def typing(session):
    session.run("make", f"VENV={session.create_tmp()}/venv", "types", external=True)


@nox.session
def sdist_wheel(session):
    """Build the sdist, the wheel from it, and run the suite on the installed wheel."""
    session.install("build")
    output = Path(session.create_tmp()) / "dist"
    session.run("python", "-m", "build", "--outdir", str(output))
    (wheel,) = output.glob("*.whl")
    session.install(f"{wheel}[test,fabric]")
    session.chdir("tests")
    session.run("pytest", "--rootdir=..", "--config-file=../pyproject.toml", "loopback", *session.posargs)
