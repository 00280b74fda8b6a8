/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdio.h>

#include "common/clock.h"
#include "detector.h"

static const char *const names[] = {
    [DT_WAITING] = "waiting", [DT_SYNCING] = "syncing", [DT_READY] = "ready",
    [DT_SUSPECT] = "suspect", [DT_ASKING] = "asking",   [DT_TAKING_OVER] = "taking-over",
    [DT_ACTIVE] = "active",   [DT_FAILED] = "failed",
};

const char *detector_name(enum detector_state state)
{
    return names[state];
}

static void enter(struct detector *d, enum detector_state state, uint64_t now)
{
    if (d->state != state)
        d->since = now;
    d->state = state;
}

void detector_init(struct detector *d, bool has_arbiter, bool automatic, uint64_t now)
{
    *d = (struct detector){
        .has_arbiter = has_arbiter,
        .automatic = automatic,
        .state = DT_WAITING,
        .since = now,
        .ran = now,
    };
}

static bool decided(const struct detector *d)
{
    return d->state == DT_TAKING_OVER || d->state == DT_ACTIVE;
}

void detector_connected(struct detector *d, bool whole, uint64_t timeout, uint64_t now)
{
    if (decided(d))
        return;
    if (d->state == DT_ASKING)
        d->pending = DT_CANCEL;
    d->timeout = timeout;
    d->heard = now;
    enter(d, whole ? DT_READY : DT_SYNCING, now);
}

void detector_committed(struct detector *d, uint64_t now)
{
    if (d->state == DT_SYNCING)
        enter(d, DT_READY, now);
}

void detector_given_up(struct detector *d, uint64_t now)
{
    if (d->state == DT_READY)
        enter(d, DT_SYNCING, now);
}

void detector_heard(struct detector *d, uint64_t at, uint64_t now)
{
    if (at <= d->heard)
        return;
    d->heard = at;
    if (d->state != DT_SUSPECT && d->state != DT_ASKING)
        return;
    if (d->state == DT_ASKING)
        d->pending = DT_CANCEL;
    enter(d, DT_READY, now);
}

static void suspect(struct detector *d, const char *why, uint64_t now)
{
    snprintf(d->reason, sizeof(d->reason), "%s", why);
    d->suspected = now;
    d->next_ask = now;
    enter(d, DT_SUSPECT, now);
}

void detector_closed(struct detector *d, const char *why, uint64_t now)
{
    if (d->state == DT_READY)
        suspect(d, why, now);
    else if (d->state == DT_SYNCING)
        enter(d, DT_WAITING, now);
}

void detector_goodbye(struct detector *d, uint64_t now)
{
    if (decided(d))
        return;
    if (d->state == DT_ASKING)
        d->pending = DT_CANCEL;
    enter(d, DT_WAITING, now);
}

static void activate(struct detector *d, uint64_t now)
{
    d->pending = DT_ACTIVATE;
    enter(d, DT_TAKING_OVER, now);
}

void detector_handover(struct detector *d, uint64_t now)
{
    if (d->state != DT_READY && d->state != DT_SUSPECT && d->state != DT_ASKING)
        return;
    suspect(d, "handed over by the primary", now);
    activate(d, now);
}

void detector_arbiter(struct detector *d, bool granted, uint64_t now)
{
    if (d->state != DT_ASKING)
        return;
    if (granted) {
        activate(d, now);
        return;
    }
    d->next_ask = now + DT_ASK_AGAIN_NS;
    enter(d, DT_SUSPECT, now);
}

void detector_activated(struct detector *d, bool ok, uint64_t now)
{
    enter(d, ok ? DT_ACTIVE : DT_FAILED, now);
}

int detector_operator(struct detector *d, uint64_t now, struct error *err)
{
    switch (d->state) {
    case DT_WAITING:
    case DT_SYNCING:
        return error_set(err, "there is no whole checkpoint here to take over");
    case DT_READY:
        return error_set(err, "the primary is alive (last heard %llu ms ago): use remusctl "
                         "switchover there", (unsigned long long)((now - d->heard) / NS_PER_MS));
    case DT_SUSPECT:
        if (d->has_arbiter)
            d->next_ask = now; /* the operator may hurry the arbiter, not overrule it (R7) */
        else
            activate(d, now);
        return 0;
    case DT_ASKING:
    case DT_TAKING_OVER:
        return 0;
    default:
        return error_set(err, d->state == DT_ACTIVE ? "the VM runs here already"
                                                    : "the replica could not be activated before; "
                                                      "remusctl status says why");
    }
}

enum detector_action detector_run(struct detector *d, uint64_t now)
{
    enum detector_action action = d->pending;
    uint64_t pause = now - d->ran;

    d->ran = now;
    d->pending = DT_NOTHING;
    if (action)
        return action;
    if (d->state == DT_READY) {
        if (pause > d->timeout / 2 && d->heard < now)
            d->heard = now; /* it was us who were away */
        if (now - d->heard >= d->timeout) {
            char why[64];
            snprintf(why, sizeof(why), "silent for %llu ms",
                     (unsigned long long)((now - d->heard) / NS_PER_MS));
            suspect(d, why, now);
        }
    }
    if (d->state != DT_SUSPECT || now < d->next_ask)
        return DT_NOTHING;
    if (d->has_arbiter) {
        enter(d, DT_ASKING, now);
        return DT_ASK;
    }
    if (d->automatic) {
        enter(d, DT_TAKING_OVER, now);
        return DT_ACTIVATE;
    }
    return DT_NOTHING;
}
