/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What somebody else's C extension does: take the table from the capsule. */
#include <Python.h>

#include "pplx_async/pplx_async.h"

static PyObject *abi(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    const pplx_api *api = PyCapsule_Import(PPLX_API_CAPSULE, 0);
    return api ? Py_BuildValue("Is", api->abi, api->status_name(PPLX_PEER_LOST)) : NULL;
}

static PyMethodDef methods[] = {{"abi", abi, METH_NOARGS, "ABI of the core, and a call through its table."}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "downstream_c", NULL, -1, methods};

PyMODINIT_FUNC PyInit_downstream_c(void) { return PyModule_Create(&module); }
