/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "common/clock.h"
#include "lifecycle.h"

static const char *const names[] = {
    [LC_OFF] = "off",
    [LC_CONNECTING] = "connecting",
    [LC_SYNCING] = "syncing",
    [LC_PROTECTED] = "protected",
    [LC_HOLDING] = "holding",
    [LC_ASKING] = "asking",
    [LC_UNPROTECTED] = "unprotected",
    [LC_HANDED_OVER] = "handed-over",
    [LC_LOST] = "lost",
    [LC_STOPPED] = "stopped",
    [LC_SHUT_DOWN] = "shut-down",
};

const char *lifecycle_name(enum lifecycle_state state)
{
    return names[state];
}

static void enter(struct lifecycle *lc, enum lifecycle_state state, uint64_t now)
{
    if (lc->state != state)
        lc->since = now;
    lc->state = state;
}

void lifecycle_init(struct lifecycle *lc, enum degrade_policy degrade, bool has_arbiter,
                    uint64_t degrade_after, bool held, uint64_t now)
{
    *lc = (struct lifecycle){
        .degrade = degrade,
        .has_arbiter = has_arbiter,
        .degrade_after = degrade_after,
        .state = held ? LC_HOLDING : LC_OFF,
        .held = held,
        .since = now,
        .next_connect = now,
        .degrade_at = now + degrade_after,
    };
}

static bool ended(const struct lifecycle *lc)
{
    return lc->state >= LC_HANDED_OVER;
}

void lifecycle_protect(struct lifecycle *lc, uint64_t now)
{
    if (lc->state != LC_OFF)
        return;
    lc->next_connect = now;
    lc->retry = 0;
    enter(lc, LC_CONNECTING, now);
}

void lifecycle_unprotect(struct lifecycle *lc, uint64_t now)
{
    if (ended(lc))
        return;
    if (lc->has_arbiter && (lc->state == LC_HOLDING || lc->state == LC_ASKING)) {
        lc->leaving = true;
        if (lc->state == LC_HOLDING)
            lc->pending = LC_ASK_ARBITER;
        enter(lc, LC_ASKING, now);
        return;
    }
    if (lc->held)
        lc->pending = LC_RELEASE;
    lc->held = lc->handover_sent = false;
    enter(lc, LC_OFF, now);
}

void lifecycle_connected(struct lifecycle *lc, uint64_t now)
{
    lc->handover_sent = false;
    enter(lc, LC_SYNCING, now);
}

void lifecycle_connect_failed(struct lifecycle *lc, uint64_t now)
{
    lc->next_connect = now + LC_RETRY_NS;
}

void lifecycle_refused(struct lifecycle *lc, uint64_t now)
{
    lc->next_connect = now + LC_REFUSED_NS;
}

void lifecycle_peer_active(struct lifecycle *lc, uint64_t now)
{
    if (ended(lc))
        return;
    lc->pending = LC_DESTROY;
    enter(lc, LC_LOST, now);
}

void lifecycle_first_checkpoint(struct lifecycle *lc, uint64_t now)
{
    if (!lc->held)
        lc->degrade_at = now + lc->degrade_after;
    lc->held = true;
}

void lifecycle_never_held(struct lifecycle *lc)
{
    lc->held = false;
}

void lifecycle_acked(struct lifecycle *lc, uint64_t now)
{
    if (lc->state == LC_SYNCING)
        enter(lc, LC_PROTECTED, now);
    lc->retry = 0;
}

void lifecycle_link_lost(struct lifecycle *lc, uint64_t now)
{
    if (lc->state != LC_SYNCING && lc->state != LC_PROTECTED)
        return;
    if (lc->state == LC_PROTECTED || now >= lc->since + lc->degrade_after)
        lc->degrade_at = now + lc->degrade_after;
    lc->next_connect = now; /* a short break of the link costs one round trip */
    if (lc->state == LC_SYNCING) { /* but one that breaks at once may do so again, on a full disk for instance */
        lc->retry = lc->retry ? 2 * lc->retry : LC_RETRY_NS;
        if (lc->retry > LC_REFUSED_NS)
            lc->retry = LC_REFUSED_NS;
        if (now < lc->since + lc->retry)
            lc->next_connect = lc->since + lc->retry;
    }
    enter(lc, lc->held ? LC_HOLDING : LC_CONNECTING, now);
}

void lifecycle_arbiter(struct lifecycle *lc, bool granted, uint64_t now)
{
    bool leaving = lc->leaving;

    if (lc->state != LC_ASKING)
        return;
    lc->leaving = false;
    if (!granted) {
        if (lc->degrade == DEGRADE_RELEASE && lc->degrade_at < now + LC_ASK_AGAIN_NS)
            lc->degrade_at = now + LC_ASK_AGAIN_NS;
        enter(lc, LC_HOLDING, now);
        return;
    }
    lc->held = lc->handover_sent = false;
    lc->pending = LC_RELEASE;
    lc->next_connect = now;
    enter(lc, leaving ? LC_OFF : LC_UNPROTECTED, now);
}

void lifecycle_handover_sent(struct lifecycle *lc)
{
    lc->handover_sent = true;
}

void lifecycle_handed_over(struct lifecycle *lc, uint64_t now)
{
    lc->pending = LC_DESTROY;
    enter(lc, LC_HANDED_OVER, now);
}

void lifecycle_guest_gone(struct lifecycle *lc, uint64_t now)
{
    if (!ended(lc))
        enter(lc, LC_SHUT_DOWN, now);
}

uint64_t lifecycle_degrade_at(const struct lifecycle *lc)
{
    if (lc->state != LC_HOLDING || lc->degrade == DEGRADE_HOLD ||
        (lc->degrade == DEGRADE_RELEASE &&
         (!lc->has_arbiter || lc->handover_sent))) /* waits for the operator's word */
        return TIME_NEVER;
    return lc->degrade_at;
}

static uint64_t connect_at(const struct lifecycle *lc)
{
    bool wants = lc->state == LC_CONNECTING || lc->state == LC_HOLDING ||
                 lc->state == LC_UNPROTECTED;

    return wants ? lc->next_connect : TIME_NEVER;
}

uint64_t lifecycle_deadline(const struct lifecycle *lc)
{
    uint64_t a = lifecycle_degrade_at(lc), b = connect_at(lc);

    return lc->pending ? 0 : a < b ? a : b;
}

enum lifecycle_action lifecycle_run(struct lifecycle *lc, uint64_t now)
{
    enum lifecycle_action action = lc->pending;

    lc->pending = LC_NOTHING;
    if (action)
        return action;
    if (lifecycle_degrade_at(lc) <= now) {
        if (lc->degrade == DEGRADE_STOP) {
            enter(lc, LC_STOPPED, now);
            return LC_DESTROY;
        }
        enter(lc, LC_ASKING, now);
        return LC_ASK_ARBITER;
    }
    if (connect_at(lc) <= now) {
        lc->next_connect = now + LC_RETRY_NS;
        return LC_CONNECT;
    }
    return LC_NOTHING;
}
