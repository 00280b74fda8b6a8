/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When the next checkpoint is due.  Pure: time comes in as `now`, nothing here waits.
 *
 * The interval counts from suspend to suspend, not from commit to suspend, so the guest's output waits one
 * interval and not an interval plus a round trip.  At most PACER_IN_FLIGHT checkpoints may be unacknowledged;
 * the next one waits for an acknowledgement (and is counted), which is how a slow link slows the epochs down.
 *
 * When clients wait, a checkpoint may come early, but not before half of the interval is over, nor while another one is
 * in flight: so the guest is paused at most twice as often, and never because the link is slow.
 */
#ifndef REMUS_PACER_H
#define REMUS_PACER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/clock.h"

#define PACER_IN_FLIGHT 2

struct pacer {
    uint64_t interval;     /* ns */
    uint64_t last_suspend; /* of the last checkpoint taken */
    uint64_t taken, acked; /* epochs */
    uint64_t waited;       /* checkpoints that were due and had to wait for an acknowledgement */
    uint64_t early;        /* checkpoints taken before they were due */
    bool waiting;
};

/* `epoch` is the last one taken before: nothing is in flight.  The first checkpoint is due at once. */
void pacer_start(struct pacer *p, uint64_t epoch, uint64_t interval);

/* The time at which to suspend next, and to ask again; TIME_NEVER when only an acknowledgement can help. */
uint64_t pacer_due(struct pacer *p, uint64_t now);

/* The time from which on the next one may come early; TIME_NEVER when only an acknowledgement can help. */
uint64_t pacer_early(const struct pacer *p);

void pacer_taken(struct pacer *p, uint64_t epoch, uint64_t suspended_at);
void pacer_acked(struct pacer *p, uint64_t epoch);

#endif
