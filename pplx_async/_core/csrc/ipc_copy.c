/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Copying between processes: the C library's, which picks vector width and streaming stores itself. */
#include <string.h>

#include "ipc_internal.h"

void pplx_ipc_copy(void *to, const void *from, size_t nbytes) {
    if (nbytes > 0) memcpy(to, from, nbytes);
}
