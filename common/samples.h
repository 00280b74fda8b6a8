/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The last 4096 values of something measured once an epoch, for p50, p99 and max.  Not thread safe. */
#ifndef REMUS_SAMPLES_H
#define REMUS_SAMPLES_H

#include <stdint.h>

#define SAMPLES_MAX 4096u

struct samples {
    uint64_t count; /* of all that were added */
    uint64_t ring[SAMPLES_MAX];
};

struct quantiles {
    uint64_t p50, p99, max; /* 0 without samples */
};

static inline void samples_add(struct samples *s, uint64_t value)
{
    s->ring[s->count++ % SAMPLES_MAX] = value;
}

struct quantiles samples_quantiles(const struct samples *s);

#endif
