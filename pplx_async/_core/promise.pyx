# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a coroutine awaits: a future made for one native operation.

asyncio takes any object for a future that has ``_asyncio_future_blocking`` and the methods of
``asyncio.Future``, so ``await``, ``gather``, ``wait``, ``wait_for``, ``shield`` and ``TaskGroup``
work on it, on every event loop. It differs in three ways: awaiting one that is done does not suspend,
``cancel()`` only asks, the promise is cancelled when the native operation has let go; and those who
wait are woken by one call of the loop's, however many operations have finished at once (`Waker`).
"""

cimport cython

import asyncio
from asyncio import CancelledError, InvalidStateError
from contextvars import copy_context
from copy import copy

from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF

from pplx_async.errors import PeerLost

__all__ = ["Promise"]

cdef extern from *:
    """
    /* What an await runs. A class of Cython's has __next__ for it, which must raise StopIteration to
     * give a result: an exception, a traceback and a frame for each await, a third of its cost. So
     * Promise has the slot of coroutines too, which returns the result. Python 3.11 asks for that
     * first, later ones only for tp_iternext: it gets one that makes no traceback. */
    static PyObject *pplx_promise_next(PyObject *self) {
        PyObject *result = NULL, *stop;
        PySendResult what = Py_TYPE(self)->tp_as_async->am_send(self, Py_None, &result);
        if (what != PYGEN_RETURN) return result; /* NULL after an error */
        if (result != Py_None) { /* without an exception the interpreter takes it for None */
            stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, result, NULL);
            if (stop) PyErr_SetObject(PyExc_StopIteration, stop);
            Py_XDECREF(stop);
        }
        Py_DECREF(result);
        return NULL;
    }

    static void pplx_promise_slots(PyTypeObject *type, sendfunc send) {
        type->tp_as_async->am_send = send;
        type->tp_iternext = pplx_promise_next;
    }
    """
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    ctypedef PySendResult (*sendfunc)(PyObject *, PyObject *, PyObject **) except PYGEN_ERROR
    void pplx_promise_slots(PyTypeObject *type, sendfunc send) noexcept

# An await that keeps seeing others' completions lets the loop run after so many.
cdef int MOST_SPINS = 16


cdef object fresh(object exception, str operation=None):
    """A copy to be raised, for one that is kept: else each raise would add to its traceback.

    A loss is kept for all that it ends, and does not know yet which operation each of them is.
    """
    try:
        again = copy(exception)
    except Exception:
        return exception  # of a class that cannot be copied
    # What it says of the cause stays; where there is none, the original is one.
    again.__cause__ = exception.__cause__ if exception.__cause__ is not None else exception
    if operation is not None and isinstance(again, PeerLost):
        again.operation = operation
    return again


cdef object elsewhere(object loop):
    """The error of a call that comes from another thread, or from another loop, than the engine's."""
    belongs = "this engine belongs to the event loop that it was opened on"
    if loop.is_closed():
        return RuntimeError(f"{belongs}, and that loop is closed: close the engine, and open a new one")
    return RuntimeError(
        f"{belongs}: call it there, from another thread with asyncio.run_coroutine_threadsafe "
        "or loop.call_soon_threadsafe"
    )


@cython.auto_pickle(False)
cdef class Promise:
    """Base of `Transfer` and of the waits of a counter; not made by users.

    Threads: the loop's own thread only.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    # ---- awaiting ----

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self._waits():
            return self
        raise StopIteration(self.outcome())

    cdef bint _waits(self) except -1:
        """Whether whoever awaits it has to suspend."""
        if self.state == PENDING and self.waker is not None and self.waker.spins:
            for _ in range(MOST_SPINS):
                if not self.waker.spin() or self.state != PENDING:
                    break
        # The task that runs this await sees the flag, clears it and calls add_done_callback.
        self._blocking = self.state == PENDING
        return self._blocking

    @property
    def _asyncio_future_blocking(self):
        return self._blocking

    @_asyncio_future_blocking.setter
    def _asyncio_future_blocking(self, bint value):
        self._blocking = value

    @property
    def _loop(self):
        return self.loop

    # ---- the methods of asyncio.Future ----

    def get_loop(self):
        """Return the event loop that it belongs to."""
        return self.loop

    def done(self) -> bool:
        """Return whether it has a result, an exception, or was cancelled."""
        return self.state != PENDING

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.state == CANCELLED

    def result(self):
        """Return the result, or raise what it failed with."""
        return self.outcome()

    cdef object outcome(self):
        if self.state == DONE:
            self._retrieved = True
            if self._exception is not None:
                raise self._exception.with_traceback(self._traceback)
            return self._result
        if self.state == CANCELLED:
            raise self._make_cancelled_error()
        raise InvalidStateError("not done yet")

    def exception(self):
        """Return what it failed with, or None."""
        if self.state == DONE:
            self._retrieved = True
            return self._exception
        if self.state == CANCELLED:
            raise self._make_cancelled_error()
        raise InvalidStateError("not done yet")

    def add_done_callback(self, callback, *, context=None) -> None:
        """Call ``callback(self)`` from the loop once it is done."""
        if context is None:
            context = copy_context()
        if self.state != PENDING:
            self._call_soon(callback, context)
        elif self._callback is None:
            self._callback = callback
            self._context = context
        else:
            if self._callbacks is None:
                self._callbacks = []
            self._callbacks.append((callback, context))

    def remove_done_callback(self, callback) -> int:
        """Remove every such callback; return how many there were."""
        if self._callback is None:
            return 0
        pairs = [(self._callback, self._context), *(self._callbacks or ())]
        kept = [pair for pair in pairs if pair[0] != callback]
        self._callback, self._context = kept[0] if kept else (None, None)
        self._callbacks = kept[1:]
        return len(pairs) - len(kept)

    def cancel(self, msg=None) -> bool:
        """Ask to cancel; return False if it is done already."""
        if self.state != PENDING:
            return False
        self._cancel_message = msg
        self.become_cancelled()
        return True

    def _make_cancelled_error(self):
        return CancelledError() if self._cancel_message is None else CancelledError(self._cancel_message)

    # ---- for those who fulfil it; each is without effect once it is done ----

    cdef bint fulfil(self, object result) except -1:
        if self.state != PENDING:
            return False
        self._result = result
        self.state = DONE
        self._schedule()
        return True

    cdef bint fail(self, object exception) except -1:
        if self.state != PENDING:
            return False
        self._exception = exception
        self._traceback = exception.__traceback__
        self.state = DONE
        self._schedule()
        return True

    cdef bint become_cancelled(self) except -1:
        if self.state != PENDING:
            return False
        self.state = CANCELLED
        self._schedule()
        return True

    cdef int _schedule(self) except -1:
        if self._callback is None:
            return 0
        callback, context, callbacks = self._callback, self._context, self._callbacks
        self._callback = self._context = self._callbacks = None
        self._call_soon(callback, context)
        if callbacks is not None:
            for callback, context in callbacks:
                self._call_soon(callback, context)
        return 0

    cdef int _call_soon(self, callback, context) except -1:
        if self.waker is not None:
            return self.waker.call_soon(callback, self, context)
        self.loop.call_soon(callback, self, context=context)
        return 0

    def __del__(self):
        if self._exception is None or self._retrieved:
            return
        if self.loop.is_closed():
            return
        self.loop.call_exception_handler(
            {
                "message": f"{type(self).__name__} failed and nobody awaited it",
                "exception": self._exception,
                "future": self,
            }
        )


cdef PySendResult send(PyObject *address, PyObject *_, PyObject **result) except PYGEN_ERROR:
    cdef Promise promise = <Promise>address
    result[0] = NULL
    if promise._waits():
        Py_INCREF(promise)
        result[0] = address
        return PYGEN_NEXT
    outcome = promise.outcome()
    Py_INCREF(outcome)
    result[0] = <PyObject *>outcome
    return PYGEN_RETURN


pplx_promise_slots(<PyTypeObject *>Promise, send)
