/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Everything that other C, C++ or Cython code needs of pplx_async. */
#ifndef PPLX_ASYNC_H
#define PPLX_ASYNC_H

#define PPLX_ASYNC_VERSION "0.1.0"

#include "pplx_async/api.h"
#include "pplx_async/engine.h"
#include "pplx_async/provider.h"
#include "pplx_async/status.h"
#include "pplx_async/types.h"
#include "pplx_async/words.h"

#endif
