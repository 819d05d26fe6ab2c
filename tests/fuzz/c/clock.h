/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

#ifndef PPLX_TESTS_FUZZ_CLOCK_H
#define PPLX_TESTS_FUZZ_CLOCK_H

#include <stdint.h>

void clock_advance(uint64_t ns);

#endif
