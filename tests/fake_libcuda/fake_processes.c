/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of another process (CUDA IPC). */
#include "fake_cuda.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_int opened, handles;
static atomic_bool opens_own;

API fake_cuda_opened(void) { return atomic_load(&opened); }

API fake_cuda_handles(void) { return atomic_load(&handles); }

API fake_cuda_open_own(int yes) {
    atomic_store(&opens_own, yes);
    return OK;
}

typedef struct handle {
    char magic[8];
    int32_t pid, fd, device;
    uint64_t nbytes, inode;
} handle;
typedef struct handle_bytes {
    unsigned char bytes[64];
} handle_bytes;
_Static_assert(sizeof(handle) <= sizeof(handle_bytes), "fits");

API cuIpcGetMemHandle(handle_bytes *out, uint64_t pointer) {
    NEED_CONTEXT();
    atomic_fetch_add(&handles, 1);
    handle handle = {.magic = "fakecuda", .pid = getpid()};
    pthread_mutex_lock(&fake_lock);
    const range *range = fake_find(pointer);
    const bool fine = range && !range->opened && !range->reserved;
    if (fine)
        handle.fd = range->fd, handle.device = range->device, handle.nbytes = range->nbytes,
        handle.inode = range->inode;
    pthread_mutex_unlock(&fake_lock);
    memset(out, 0, sizeof *out);
    memcpy(out, &handle, sizeof handle);
    return fine ? OK : INVALID_VALUE;
}

API cuIpcOpenMemHandle_v2(uint64_t *pointer, handle_bytes in, unsigned flags) {
    handle handle;
    struct stat stat;
    char path[64];
    NEED_CONTEXT();
    fake_wait_for_kernels();
    memcpy(&handle, &in, sizeof handle);
    if (flags != 1 || memcmp(handle.magic, "fakecuda", 8) != 0) return INVALID_VALUE;
    if (handle.pid == getpid() && !atomic_load(&opens_own)) return INVALID_CONTEXT;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.pid, handle.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return INVALID_VALUE;
    if (fstat(fd, &stat) != 0 || stat.st_ino != handle.inode || (uint64_t)stat.st_size != handle.nbytes) {
        close(fd);
        return INVALID_VALUE;
    }
    int result = OK;
    pthread_mutex_lock(&fake_lock);
    range *known = NULL;
    for (int i = 0; i < MOST_RANGES && !known; i++)
        if (fake_ranges[i].start && fake_ranges[i].opened && fake_ranges[i].inode == stat.st_ino)
            known = &fake_ranges[i];
    if (known) {
        known->opens++;
        *pointer = known->start;
        close(fd);
    } else {
        result = fake_map(fd, handle.nbytes, handle.device, true, pointer);
    }
    if (result == OK) atomic_fetch_add(&opened, 1);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

API cuIpcCloseMemHandle(uint64_t pointer) {
    NEED_CONTEXT();
    fake_wait_for_all();
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    const bool fine = range && range->opened && range->start == pointer;
    if (fine && --range->opens == 0) fake_unmap(range);
    if (fine) atomic_fetch_sub(&opened, 1);
    pthread_mutex_unlock(&fake_lock);
    return fine ? OK : INVALID_VALUE;
}
