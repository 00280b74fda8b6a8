/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "hold-time.h"

#define SAMPLES_MAX 65536u

/* 0 ... 15 stand for themselves; from there on 16 steps between one power of two and the next. */
static unsigned step_of(uint64_t ns)
{
    unsigned octave;

    if (ns < 16)
        return (unsigned)ns;
    octave = 63 - (unsigned)__builtin_clzll(ns);
    return (octave - 3) * 16 + (unsigned)(ns >> (octave - 4) & 15);
}

static uint64_t step_end(unsigned step)
{
    if (step < 16)
        return step;
    return ((UINT64_C(17) + step % 16) << (step / 16 - 1)) - 1;
}

void hold_time_add(struct hold_time *h, uint64_t ns)
{
    h->count[step_of(ns)]++;
    if (++h->total < SAMPLES_MAX)
        return;
    h->total = 0;
    for (unsigned i = 0; i < HOLD_TIME_STEPS; i++)
        h->total += h->count[i] /= 2;
}

uint64_t hold_time_percentile(const struct hold_time *h, unsigned percent)
{
    uint64_t want = ((uint64_t)h->total * percent + 99) / 100, seen = 0;

    if (h->total == 0)
        return 0;
    for (unsigned i = 0; i < HOLD_TIME_STEPS; i++) {
        seen += h->count[i];
        if (seen >= want && seen)
            return step_end(i);
    }
    return UINT64_MAX;
}
