# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers and flags as calls are given them: TypeError for another kind, ValueError for out of range."""
from cpython.number cimport PyIndex_Check
from libc.stdint cimport uint64_t


cdef inline object integer(object value, str what):
    """A whole number of any type that says it is one. bool says so, too, and is a slip."""
    if isinstance(value, bool) or not PyIndex_Check(value):
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}")
    return value.__index__()


cdef inline uint64_t whole(object value, str what, uint64_t least, uint64_t most) except? 0xfffffffffffffffe:
    """A whole number from ``least`` to ``most``."""
    number = integer(value, what)
    if number < least:
        raise ValueError(f"{what} must {f'be at least {least}' if least else 'not be negative'}, not {number}")
    if number > most:
        raise ValueError(f"{what} must be at most {most}, not {number}")
    return number


cdef inline bint flag(object value, str what) except -1:
    """True or False, and nothing that only counts as one: ``detach="no"`` would mean yes."""
    if value is True:
        return True
    if value is not False:
        raise TypeError(f"{what} must be True or False, not {type(value).__name__}")
    return False
