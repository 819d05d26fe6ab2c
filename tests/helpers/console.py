# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A plugin for pytest: tell of each failure when it happens, and on the virtual machine's console of each test.

The console is shown if that machine dies, and pytest's report is then lost.
"""

import os

import pytest

_reporter = None


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    global _reporter
    _reporter = config.pluginmanager.getplugin("terminalreporter")


def pytest_runtest_logstart(nodeid):
    if os.environ.get("RDMA_VM") == "1":
        with open("/dev/console", "w") as console:
            console.write(f"{nodeid}\n")


def pytest_runtest_logreport(report):
    if report.failed and _reporter is not None:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash is not None else str(report.longrepr)
        _reporter.ensure_newline()
        _reporter.write_line(f"{report.when} of {report.nodeid} failed: {why[:500]}")
