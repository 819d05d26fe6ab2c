/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Every status code of the core, once: X(NAME, number, "message").
 *
 * The message completes the sentence "write of 4096 B to peer P failed: ...". Numbers are part of
 * the ABI and are never reused. Python's Status enum is checked against this list by a test. */
#ifndef PPLX_ASYNC_STATUS_H
#define PPLX_ASYNC_STATUS_H

#define PPLX_STATUS_MAP(X)                                                                     \
    X(OK, 0, "success")                                                                        \
    X(AGAIN, 1, "not now: the queue is full or the connection is being set up")                \
    X(INVALID, 2, "invalid argument")                                                          \
    X(NO_MEMORY, 3, "out of memory")                                                           \
    X(CLOSED, 4, "closed on this side")                                                        \
    X(UNAVAILABLE, 5, "provider, library or device not available")                             \
    X(NATIVE, 6, "a library or system call failed")                                            \
    X(UNSUPPORTED, 7, "the provider cannot do this")                                           \
    X(REGISTRATION, 8, "the provider refused to register the memory")                          \
    X(TOO_LARGE, 9, "larger than the provider's limit")                                        \
    X(REMOTE_ACCESS, 10, "remote access error (rkey revoked or range outside the region)")     \
    X(LOCAL_ACCESS, 11, "local access error (memory not registered for this)")                 \
    X(PEER_LOST, 12, "the peer is lost")                                                       \
    X(FLUSHED, 13, "flushed: the endpoint was closed before this was done")                    \
    X(CANCELLED, 14, "cancelled before everything was posted")                                 \
    X(TRANSPORT, 15, "transport error")                                                        \
    X(TRUNCATED, 16, "the receiver's buffer was too small")                                    \
    X(UNRELEASED, 17, "the provider has not let go of the memory")                             \
    X(INTERNAL, 18, "internal error: please report it")                                        \
    X(CONNECTION, 19, "the connection broke under it, as after another operation was refused") \
    X(RAIL_LOST, 20, "the link is lost; the peer is reached over others")                      \
    X(POISONED, 21, "the stream was let go by a gate that could not open")

typedef enum pplx_status {
#define X(name, number, message) PPLX_##name = number,
    PPLX_STATUS_MAP(X)
#undef X
} pplx_status;

#ifdef __cplusplus
extern "C" {
#endif

const char *pplx_status_name(int status); /* "PEER_LOST"; NULL for a number that is none */
const char *pplx_status_text(int status); /* the message above */

#ifdef __cplusplus
}
#endif
#endif
