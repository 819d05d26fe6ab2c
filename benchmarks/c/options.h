/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

#ifndef BENCH_OPTIONS_H
#define BENCH_OPTIONS_H

#include "bench.h"

/* Fill the options from the command line; what it leaves out is the work's. Wrong usage exits with 2. */
const bench_work *bench_parse(int argc, char **argv, bench_options *options);

#endif
