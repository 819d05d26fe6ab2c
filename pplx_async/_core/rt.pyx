# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The one module that links the C core. The others reach it through ``api``, from here.

Also here: what needs no engine. Which status codes exist, and which devices a provider finds.
"""

from cpython.pycapsule cimport PyCapsule_New

from pplx_async._core.arguments cimport whole
from pplx_async._core.includes.fabric cimport pplx_fabric_objects
from pplx_async._core.includes.pplx cimport (
    PPLX_API_CAPSULE,
    PPLX_ASYNC_VERSION,
    PPLX_OK,
    pplx_api,
    pplx_core_api,
    pplx_device,
    pplx_error,
    pplx_provider,
)
from pplx_async._core.includes.verbs cimport pplx_verbs_objects

from pplx_async import errors

__all__ = ["Options", "core_version", "discover", "status_names", "status_text"]

cdef const pplx_api *api = pplx_core_api()
cdef const void *fabric_objects = pplx_fabric_objects()
cdef const void *verbs_objects = pplx_verbs_objects()

_C_API = PyCapsule_New(<void *>api, PPLX_API_CAPSULE, NULL)


def core_version() -> str:
    """Return the version that the C core was compiled as."""
    return PPLX_ASYNC_VERSION.decode()


def status_names() -> dict[int, str]:
    """Return the name of every status code, from the list in ``status.h``."""
    names = {}
    cdef int number
    for number in range(256):
        name = api.status_name(number)
        if name != NULL:
            names[number] = name.decode()
    return names


def status_text(status: int) -> str:
    """Return what a status code says, as the end of a sentence."""
    return api.status_text(<int>whole(status, "status", 0, 0x7fffffff)).decode()


cdef int check(const pplx_error *error, str operation, str provider=None) except -1:
    """Raise what a failed call says. The only place where native errors become exceptions."""
    if error.status == PPLX_OK:
        return 0
    raise errors.completion_error(
        api.status_name(error.status).decode(),
        error.text.decode(errors="replace") or api.status_text(error.status).decode(),
        operation=operation,
        provider_error=error.provider_error,
        provider=provider,
    )


cdef class Options:
    """Provider options as C strings, alive as long as this object."""

    def __init__(self, dict options not None) -> None:
        if not all(isinstance(word, str) for pair in options.items() for word in pair):
            raise TypeError("provider options are names and values, both of them text")
        self.keep = [(name.encode(), text.encode()) for name, text in options.items()]
        if len(self.keep) > 32:
            raise ValueError(f"at most 32 provider options, not {len(self.keep)}")
        cdef bytes key, value
        self.count = 0
        for key, value in self.keep:
            self.items[self.count].key = key
            self.items[self.count].value = value
            self.count += 1


cdef const pplx_provider *find_provider(str name) except NULL:
    """Find a provider: built in by name, or in a shared object by path."""
    cdef pplx_error error
    cdef const pplx_provider *provider
    encoded = name.encode()
    if "/" not in name:
        provider = api.provider_builtin(encoded)
        if provider == NULL:
            raise ValueError(f"no provider is called {name!r}")
        return provider
    error.status = api.provider_load(encoded, &provider, &error)
    check(&error, f"load provider {name}")
    return provider


def discover(provider: str, options: dict[str, str]) -> list[dict[str, object]]:
    """List the devices that a provider finds.

    Parameters
    ----------
    provider : str
        A built-in provider (``"fabric"``, ``"ipc"``, ``"loopback"``, ``"verbs"``) or the path of a shared object.
    options : dict of str
        The provider's options.

    Returns
    -------
    list of dict
        ``name``, ``provider``, ``address``, ``description``, ``bits_per_second`` of each.

    Raises
    ------
    ProviderUnavailable
        The library or every device is missing; the text says what to install.
    """
    cdef const pplx_provider *c_provider = find_provider(provider)
    cdef pplx_device devices[64]
    cdef size_t count = 0
    cdef pplx_error error
    cdef Options c_options = Options(options)
    with nogil:
        error.status = c_provider.discover(c_options.items, c_options.count, devices, 64, &count, &error)
    check(&error, f"discover devices of provider {provider}")
    return [
        {
            "name": devices[i].name.decode(errors="replace"),
            "provider": devices[i].provider.decode(errors="replace"),
            "address": devices[i].address.decode(errors="replace"),
            "description": devices[i].description.decode(errors="replace"),
            "bits_per_second": devices[i].bits_per_second,
        }
        for i in range(min(count, 64))
    ]
