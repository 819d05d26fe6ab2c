/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The verbs provider on a libibverbs of before 2019: no relaxed ordering, no dma-buf, and what kind of GID is what
 * has to be read from sysfs. */
#include <stdio.h>

#if PPLX_HAVE_LIBIBVERBS

#include <limits.h>
#include <sys/stat.h>

#include "verbs_sides.h"

static char folder[] = "/tmp/pplx-verbs-XXXXXX";

static void make_folder(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
}

static void gid_is(const char *device, int index, const char *type) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s/ports/1/gid_attrs/types/%d", folder, device, index);
    make_folder(path);
    FILE *file = fopen(path, "w");
    CHECK(file && fputs(type, file) >= 0 && fclose(file) == 0);
}

static void an_old_library_will_do(void) {
    static const char *const types[] = {"IB/RoCE v1\n", "RoCE v2\n", "IB/RoCE v1\n", "RoCE v2\n"};
    side a, b;
    for (int i = 0; i < 4; i++) {
        gid_is("x0", i, types[i]);
        gid_is("x1", i, types[i]);
    }
    pair_open(&a, &b, "x0 roce ip=10.0.0.1 dmabuf; x1 roce ip=10.0.0.2", "");
    CHECK(!(a.caps.flags & PPLX_CAP_DMABUF));
    CHECK(!strstr(a.caps.description, "relaxed"));
    CHECK(strstr(a.caps.description, "GID 3 (10.0.0.1)"));
    CHECK_EQ(perform(&a, &b, PPLX_WRITE_IMM, 0, 4096, 1), PPLX_OK);
    CHECK_EQ(perform(&a, &b, PPLX_READ, 0, 4096, 1), PPLX_OK);
    WAIT(b.nimms == 1);
    pair_close(&a, &b);
}

static void a_gid_of_unknown_kind_is_not_used(void) {
    side a;
    pplx_error error = {0};
    layout_is("x2 roce ip=10.0.0.1"); /* sysfs knows no x2 */
    CHECK_EQ(try_open(&a, "x2", "", &error), PPLX_UNAVAILABLE);
    CHECK(strstr(error.text, "RoCE v2"));
    check_clean();
}

static void remove_folder(void) {
    char path[PATH_MAX];
    for (int d = 0; d < 2; d++) {
        static const char *const parts[] = {"/ports/1/gid_attrs/types", "/ports/1/gid_attrs", "/ports/1", "/ports", ""};
        for (int i = 0; i < 4; i++) {
            snprintf(path, sizeof path, "%s/x%d%s/%d", folder, d, parts[0], i);
            unlink(path);
        }
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            snprintf(path, sizeof path, "%s/x%d%s", folder, d, parts[i]);
            rmdir(path);
        }
    }
    CHECK_EQ(rmdir(folder), 0);
}

int main(void) {
    CHECK(mkdtemp(folder) && setenv("FAKE_IBV_SYSFS", folder, 1) == 0);
    fake_load(true);
    RUN(an_old_library_will_do);
    RUN(a_gid_of_unknown_kind_is_not_used);
    remove_folder();
    return check_done();
}

#else

int main(void) {
    puts("libibverbs's headers are not installed (package libibverbs-dev)");
    return 77;
}

#endif
