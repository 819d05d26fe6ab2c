# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Whether this machine lets a process have a network of its own."""

import pytest

from helpers import require


@pytest.fixture(scope="module")
def networks():
    require.networks()
