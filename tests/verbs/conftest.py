# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Only where ``--fabric verbs-fake`` says so: a process that has loaded the system's libibverbs can't load another.

``tests/fabric/test_libraries.py`` starts one that does.
"""


def pytest_ignore_collect(config):
    return None if "verbs-fake" in (config.getoption("--fabric") or ()) else True
