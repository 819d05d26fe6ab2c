# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Only where ``--fabric efa-gpu`` says so: a process that has loaded another libfabric can't load the tests' own.

``tests/fabric/test_libraries.py`` starts one that does.
"""


def pytest_ignore_collect(config):
    return None if "efa-gpu" in (config.getoption("--fabric") or ()) else True
