/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pacer.h"

void pacer_start(struct pacer *p, uint64_t epoch, uint64_t interval)
{
    uint64_t waited = p->waited;

    *p = (struct pacer){.interval = interval, .taken = epoch, .acked = epoch, .waited = waited};
}

uint64_t pacer_due(struct pacer *p, uint64_t now)
{
    uint64_t due = p->last_suspend + p->interval;

    if (p->taken - p->acked < PACER_IN_FLIGHT) {
        p->waiting = false;
        return due;
    }
    if (due > now)
        return due; /* look again then */
    if (!p->waiting)
        p->waited++;
    p->waiting = true;
    return TIME_NEVER;
}

void pacer_taken(struct pacer *p, uint64_t epoch, uint64_t suspended_at)
{
    p->taken = epoch;
    p->last_suspend = suspended_at;
}

void pacer_acked(struct pacer *p, uint64_t epoch)
{
    p->acked = epoch;
}
