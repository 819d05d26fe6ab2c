/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Registration: one region, every domain of the engine. Proxy thread, like all that touches a NIC. */
#include "internal.h"

pplx_status pplx_mr_open_all(pplx_engine *engine, pplx_mr *mr, pplx_error *error) {
    uint64_t start = pplx_now_ns();
    mr->domains = 0;
    for (uint32_t i = 0; i < engine->ndomains; i++) {
        pplx_domain *domain = &engine->domains[i];
        pplx_status status = domain->provider->mr_open(domain->handle, &mr->memory, mr->access, &mr->handles[i],
                                                       &mr->keys[i], error);
        if (status != PPLX_OK) {
            pplx_mr_close_all(engine, mr);
            return status;
        }
        mr->domains = i + 1;
    }
    mr->register_ns = pplx_now_ns() - start;
    return PPLX_OK;
}

/* Closes what is open; the first failure is returned, the rest is closed all the same. What failed is
 * still registered and stays in `handles` (what is closed is NULL there), so that a second call closes
 * just that; `domains` becomes 0 when all is closed. */
pplx_status pplx_mr_close_all(pplx_engine *engine, pplx_mr *mr) {
    pplx_status first = PPLX_OK;
    for (uint32_t i = 0; i < mr->domains; i++) {
        if (!mr->handles[i]) continue;
        pplx_status status = engine->domains[i].provider->mr_close(mr->handles[i]);
        if (status == PPLX_OK)
            mr->handles[i] = NULL;
        else if (first == PPLX_OK)
            first = status;
    }
    if (first == PPLX_OK) mr->domains = 0;
    return first;
}
