# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Each public name is public in one module, besides the package root, and is documented."""

import collections
import importlib
import inspect
import pkgutil

import pytest

import pplx_async
from pplx_async import errors

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(pplx_async.__path__, "pplx_async.")
    if not any(part.startswith("_") for part in name.split("."))
)
# Re-exports are the purpose of these: the front door, and the documented door to _core.
DOORS = {"pplx_async", "pplx_async.lowlevel"}


def load(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", ["pplx_async", *MODULES])
def test_module_says_what_is_public(name):
    module = load(name)
    assert module.__doc__, f"{name} has no docstring"
    assert isinstance(getattr(module, "__all__", None), (list, tuple)), f"{name} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public, None) is not None, f"{name}.__all__ names {public}, which is not there"


def test_each_name_is_public_in_one_module():
    homes = collections.defaultdict(set)
    for name in MODULES:
        # A package may list what its own modules define.
        inner = any(other.startswith(name + ".") for other in MODULES)
        if name not in DOORS and not inner:
            for public in load(name).__all__:
                # Equal names are fine where they mean different things: every command has a `main`.
                homes[public, id(getattr(load(name), public))].add(name)
    assert {name: sorted(where) for (name, _), where in homes.items() if len(where) > 1} == {}


def is_core(value):
    return getattr(value, "__module__", "").startswith("pplx_async._core.")


def test_root_re_exports():
    public = {id(getattr(load(name), public)) for name in MODULES for public in load(name).__all__}
    own = {"__version__", "get_include"}
    values = {name: getattr(pplx_async, name) for name in pplx_async.__all__ if name not in own}
    # What the core defines has no public module of its own: the root is its one place.
    assert [name for name, value in values.items() if id(value) not in public and not is_core(value)] == []


def test_each_core_name_is_public_in_one_place():
    homes = collections.defaultdict(list)
    for module in ["pplx_async", *MODULES]:
        for public in load(module).__all__:
            if is_core(getattr(load(module), public)):
                homes[public].append(module)
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


@pytest.mark.parametrize("name", sorted(set(pplx_async.__all__) - {"__version__"}))
def test_root_names_are_documented(name):
    value = getattr(pplx_async, name)
    if inspect.isclass(value) or callable(value):
        own = value.__doc__ if not inspect.isclass(value) else value.__dict__.get("__doc__")
        assert own, f"{name} has no docstring"


def test_every_error_is_at_the_root():
    assert set(errors.__all__) - {"completion_error"} <= set(pplx_async.__all__)
