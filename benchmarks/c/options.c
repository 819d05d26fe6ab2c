/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: %s WORK [OPTION]...\n"
    "\n"
    "Starts two processes, lets one write into the other's memory, and prints a line of JSON for each\n"
    "repetition. The first one is not reported; in it every byte is verified.\n"
    "\n"
    "  pingpong            half of a round trip of writes with immediates, in us\n"
    "  stream              writes, --inflight at a time, in GB/s\n"
    "  awaits              the same in thousands a second: small writes\n"
    "  pages               pages from random to random places of 256 MiB, in thousands a second\n"
    "  scatter             a row of messages to each target, in thousands a second\n"
    "  idle                processor time of a side that waits, in %%\n"
    "\n"
    "  --wait poll|epoll   how a side waits (default: poll)\n"
    "  --nbytes N          bytes of a write; also --page-nbytes\n"
    "  --count N           writes in a repetition\n"
    "  --inflight N        writes at a time\n"
    "  --targets N         regions that scatter writes to\n"
    "  --messages N        writes to each of them, instead of --count\n"
    "  --seconds N         length of idle (default: 10)\n"
    "  --runs N            repetitions (default: 5)\n"
    "  --timeout N         seconds that a repetition may take (default: 60)\n"
    "  --step              one repetition for each line of standard input, until that ends\n"
    "  --provider NAME     of libfabric (default: tcp); shm_bench has none\n"
    "  --library FILE      the libfabric to load (default: libfabric.so.1)\n";

enum { WAIT = 1, NBYTES, COUNT, INFLIGHT, TARGETS, MESSAGES, SECONDS, RUNS, TIMEOUT, STEP, PROVIDER, LIBRARY, HELP };

static const struct option known[] = {
    {"wait", required_argument, NULL, WAIT},
    {"nbytes", required_argument, NULL, NBYTES},
    {"page-nbytes", required_argument, NULL, NBYTES},
    {"count", required_argument, NULL, COUNT},
    {"inflight", required_argument, NULL, INFLIGHT},
    {"targets", required_argument, NULL, TARGETS},
    {"messages", required_argument, NULL, MESSAGES},
    {"seconds", required_argument, NULL, SECONDS},
    {"runs", required_argument, NULL, RUNS},
    {"timeout", required_argument, NULL, TIMEOUT},
    {"step", no_argument, NULL, STEP},
    {"provider", required_argument, NULL, PROVIDER},
    {"library", required_argument, NULL, LIBRARY},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

static _Noreturn void refuse(const char *problem, const char *text) {
    fprintf(stderr, "%s: %s \"%s\"; --help says more\n", transport_program, problem, text);
    exit(2);
}

static size_t number(const char *text, size_t most) {
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || strchr(text, '-') || value < 1 || value > most)
        refuse("not a number in range:", text);
    return (size_t)value;
}

static const bench_work *find_work(const char *name) {
    for (const bench_work *work = bench_works; work->name; work++)
        if (strcmp(work->name, name) == 0) return work;
    refuse("no such work:", name);
}

static bench_wait parse_wait(const char *text) {
    if (strcmp(text, "poll") == 0) return BENCH_POLL;
    if (strcmp(text, "epoll") == 0) return BENCH_EPOLL;
    refuse("not a way to wait:", text);
}

const bench_work *bench_parse(int argc, char **argv, bench_options *options) {
    const unsigned many = 1u << 30;
    size_t messages = 0;
    int option = 0;
    /* The name comes first: its values are what the options change. */
    if (argc < 2 || strcmp(argv[1], "--help") == 0) {
        printf(usage, transport_program);
        exit(argc < 2 ? 2 : 0);
    }
    const bench_work *work = find_work(argv[1]);
    *options = (bench_options){.work = work->name,
                               .provider = "tcp",
                               .nbytes = work->nbytes,
                               .count = work->count,
                               .inflight = work->inflight,
                               .targets = work->targets,
                               .runs = 5,
                               .seconds = 10,
                               .timeout = 60};
    while ((option = getopt_long(argc - 1, argv + 1, "", known, NULL)) != -1) {
        switch (option) {
        case WAIT: options->wait = parse_wait(optarg); break;
        case NBYTES: options->nbytes = number(optarg, BENCH_ARENA); break;
        case COUNT: options->count = number(optarg, many); break;
        case INFLIGHT: options->inflight = (unsigned)number(optarg, many); break;
        case TARGETS: options->targets = (unsigned)number(optarg, BENCH_MAX_TARGETS); break;
        case MESSAGES: messages = number(optarg, many); break;
        case SECONDS: options->seconds = (unsigned)number(optarg, 3600); break;
        case RUNS: options->runs = (unsigned)number(optarg, many); break;
        case TIMEOUT: options->timeout = (unsigned)number(optarg, 3600); break;
        case STEP: options->step = true; break;
        case PROVIDER: options->provider = optarg; break;
        case LIBRARY: options->library = optarg; break;
        case HELP: printf(usage, transport_program); exit(0);
        default: exit(2); /* getopt has said why */
        }
    }
    if (optind + 1 < argc) refuse("unexpected:", argv[optind + 1]);
    if (messages) options->count = messages * options->targets;
    return work;
}
