/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Names and texts of the status codes, from the one list in status.h. */
#include "pplx_async/status.h"

#include <stddef.h>

const char *pplx_status_name(int status) {
    switch (status) {
#define X(name, number, message) \
    case number: return #name;
        PPLX_STATUS_MAP(X)
#undef X
    default: return NULL;
    }
}

const char *pplx_status_text(int status) {
    switch (status) {
#define X(name, number, message) \
    case number: return message;
        PPLX_STATUS_MAP(X)
#undef X
    default: return "unknown status";
    }
}
