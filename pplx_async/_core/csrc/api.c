/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The table of api.h, and the list of providers that the core brings. */
#include "pplx_async/api.h"

#include <string.h>

#include "dynload.h"

extern const pplx_provider pplx_provider_fabric;
extern const pplx_provider pplx_provider_ipc;
extern const pplx_provider pplx_provider_loopback;
extern const pplx_provider pplx_provider_verbs;

static const pplx_provider *const builtin[] = {&pplx_provider_fabric, &pplx_provider_ipc, &pplx_provider_loopback,
                                               &pplx_provider_verbs};

/* NULL: there is none of this name. */
static const pplx_provider *pplx_provider_builtin(const char *name) {
    for (size_t i = 0; i < sizeof builtin / sizeof builtin[0]; i++)
        if (strcmp(builtin[i]->name, name) == 0) return builtin[i];
    return NULL;
}

const pplx_api *pplx_core_api(void) {
    static const pplx_api api = {.size = sizeof api,
                                 .abi = PPLX_API_ABI,
#define X(result, name, arguments) .name = pplx_##name,
                                 PPLX_API_MAP(X)
#undef X
    };
    return &api;
}
