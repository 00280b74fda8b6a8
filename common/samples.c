/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "samples.h"

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

struct quantiles samples_quantiles(const struct samples *s)
{
    size_t n = s->count < SAMPLES_MAX ? (size_t)s->count : SAMPLES_MAX;
    uint64_t sorted[SAMPLES_MAX];

    if (n == 0)
        return (struct quantiles){0};
    memcpy(sorted, s->ring, n * sizeof(*sorted));
    qsort(sorted, n, sizeof(*sorted), ascending);
    return (struct quantiles){sorted[n / 2], sorted[n * 99 / 100], sorted[n - 1]};
}
