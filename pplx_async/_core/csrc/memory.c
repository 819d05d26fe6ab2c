/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Registration: one region, every domain of the engine. Proxy thread, like all that touches a NIC; what takes long is
 * register.c's, whose thread calls pplx_mr_open_at(). */
#include "internal.h"

/* Not every NIC reaches the memory of a GPU: those that do are enough, and it has no key for the others. */
bool pplx_may_lack(const pplx_mr *mr, pplx_status status) {
    return mr->memory.kind == PPLX_MEMORY_CUDA && (status == PPLX_UNSUPPORTED || status == PPLX_REGISTRATION);
}

/* Whether what the NIC writes there will be seen by streams. */
static pplx_status may_write(pplx_engine *engine, const pplx_domain *domain, const pplx_mr *mr, pplx_error *error) {
    const uint32_t needed = PPLX_CAP_CUDA | PPLX_CAP_GPU_FLUSH;
    if (mr->memory.kind != PPLX_MEMORY_CUDA || (domain->caps.flags & needed) != needed) return PPLX_OK;
    return pplx_gpus_add(engine, &mr->memory, error);
}

pplx_status pplx_mr_open_at(pplx_engine *engine, uint32_t i, pplx_mr *mr, pplx_error *error) {
    pplx_domain *domain = &engine->domains[i];
    const pplx_status status = may_write(engine, domain, mr, error);
    if (status != PPLX_OK) return status;
    return domain->provider->mr_open(domain->handle, &mr->memory, mr->access, &mr->handles[i], &mr->keys[i], error);
}

pplx_status pplx_mr_open_all(pplx_engine *engine, pplx_mr *mr, pplx_error *error) {
    const uint64_t start = pplx_now_ns();
    pplx_status failed = PPLX_OK;
    bool open = false;
    mr->domains = 0;
    for (uint32_t i = 0; i < engine->ndomains; i++) {
        pplx_error refused;
        const pplx_status status = pplx_mr_open_at(engine, i, mr, &refused);
        if (status != PPLX_OK) {
            const bool decides = !pplx_may_lack(mr, status);
            mr->handles[i] = NULL;
            mr->keys[i] = (pplx_remote_key){.key = PPLX_NO_KEY};
            if (failed == PPLX_OK || decides) {
                *error = refused;
                failed = status;
            }
            if (decides) {
                open = false;
                break;
            }
        }
        open |= status == PPLX_OK;
        mr->domains = i + 1;
    }
    mr->register_ns = pplx_now_ns() - start;
    PPLX_COUNT(engine->stats.registrations, 1);
    PPLX_COUNT(engine->stats.register_ns, mr->register_ns);
    if (!open) pplx_mr_close_all(engine, mr);
    return open ? PPLX_OK : failed;
}

/* If it is the peer's own memory that a NIC doesn't reach, the peer refuses: there is no such key. */
bool pplx_reaches(const pplx_mr *local, const pplx_peer *peer) {
    for (uint32_t i = 0; i < peer->nlinks; i++)
        if (!local->handles[peer->links[i].domain->index]) return false;
    return true;
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
