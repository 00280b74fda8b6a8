/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pacer.h"

void pacer_start(struct pacer *p, uint64_t epoch, uint64_t interval)
{
    *p = (struct pacer){.interval = interval, .taken = epoch, .acked = epoch, .waited = p->waited, .early = p->early};
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

uint64_t pacer_early(const struct pacer *p)
{
    return p->taken > p->acked ? TIME_NEVER : p->last_suspend + p->interval / 2;
}

void pacer_taken(struct pacer *p, uint64_t epoch, uint64_t suspended_at)
{
    p->early += suspended_at < p->last_suspend + p->interval;
    p->taken = epoch;
    p->last_suspend = suspended_at;
}

void pacer_acked(struct pacer *p, uint64_t epoch)
{
    p->acked = epoch;
}
