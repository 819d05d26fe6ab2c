# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A plugin for pytest: name each test on the console of the virtual machine, which is shown if that dies."""

import os


def pytest_runtest_logstart(nodeid):
    if os.environ.get("RDMA_VM") == "1":
        with open("/dev/console", "w") as console:
            console.write(f"{nodeid}\n")
