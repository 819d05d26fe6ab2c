# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Only where ``--fabric verbs`` says so: they are sized for soft-RoCE in an emulated machine, `make test-rdma`.

Those that need nothing but queue pairs run with ``--fabric verbs-fake`` too.
"""

import pytest

from helpers.cables import Cable, need_vm


def pytest_ignore_collect(config):
    return None if {"verbs", "verbs-fake"} & set(config.getoption("--fabric") or ()) else True


@pytest.fixture
def cables(fabric):
    """Two cables that can be hurt, mended afterwards whatever happens."""
    need_vm()
    both = Cable(0), Cable(1)
    try:
        yield both
    finally:
        for cable in both:
            cable.mend()


@pytest.fixture
def cable(cables):
    return cables[0]
