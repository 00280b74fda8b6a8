/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How long frames were held: a histogram with 16 steps an octave (so a figure is right to 6 %), in
 * which older samples count less and less: all counts are halved whenever 65,536 have come
 * together.
 */
#ifndef REMUS_HOLD_TIME_H
#define REMUS_HOLD_TIME_H

#include <stdint.h>

#define HOLD_TIME_STEPS (61 * 16)

struct hold_time {
    uint32_t count[HOLD_TIME_STEPS];
    uint32_t total;
};

void hold_time_add(struct hold_time *h, uint64_t ns);

/* The time that `percent` of the samples did not exceed; 0 when there are none. */
uint64_t hold_time_percentile(const struct hold_time *h, unsigned percent);

#endif
