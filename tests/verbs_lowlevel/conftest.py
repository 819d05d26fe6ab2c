# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Only where ``--fabric verbs`` or ``verbs-fake`` says so: the suite's own process loads neither library.

``tests/fabric/test_libraries.py`` starts one with the tests' own, ``make test-rdma`` one on devices.
"""


def pytest_ignore_collect(config):
    return None if {"verbs", "verbs-fake"} & set(config.getoption("--fabric") or ()) else True
