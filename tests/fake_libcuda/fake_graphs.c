/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Captures of streams, what they forbid, and graphs. */
#include "fake_cuda.h"

#include <stdlib.h>

static atomic_int captures; /* under way, all of the kind that forbids unsafe calls to every thread */
static __thread int capture_mode; /* 0: global, 2: relaxed */

/* What a capture forbids: to pin memory, to load a module, to ask a stream how far it is. */
bool fake_forbidden(void) { return atomic_load(&captures) && capture_mode != 2; }

API cuThreadExchangeStreamCaptureMode(int *mode) {
    REFUSE();
    const int before = capture_mode;
    if (*mode < 0 || *mode > 2) return INVALID_VALUE;
    capture_mode = *mode;
    *mode = before;
    return OK;
}

API cuStreamBeginCapture_v2(stream *stream, int mode) {
    NEED_CONTEXT();
    if (!stream || stream->capturing || mode != 0) return INVALID_VALUE;
    stream->capturing = calloc(1, sizeof *stream->capturing);
    atomic_fetch_add(&captures, 1);
    return stream->capturing ? OK : OUT_OF_MEMORY;
}

API cuStreamIsCapturing(stream *stream, int *state) {
    REFUSE();
    *state = !fake_is_default(stream) && stream->capturing;
    return OK;
}

API cuStreamEndCapture(stream *stream, graph **graph) {
    NEED_CONTEXT();
    if (!stream || !stream->capturing) return INVALID_VALUE;
    *graph = stream->capturing;
    stream->capturing = NULL;
    atomic_fetch_sub(&captures, 1);
    return OK;
}

API cuGraphInstantiateWithFlags(graph **executable, const graph *graph, unsigned long long flags) {
    NEED_CONTEXT();
    *executable = malloc(sizeof **executable);
    if (!*executable) return OUT_OF_MEMORY;
    **executable = *graph;
    return flags ? INVALID_VALUE : OK;
}

API cuGraphLaunch(const graph *executable, stream *stream) {
    NEED_CONTEXT();
    int result = OK;
    for (unsigned i = 0; i < executable->count && result == OK; i++) result = fake_enqueue(stream, executable->ops[i]);
    return result;
}

API cuGraphExecDestroy(graph *executable) {
    free(executable);
    return OK;
}

API cuGraphDestroy(graph *graph) {
    free(graph);
    return OK;
}
