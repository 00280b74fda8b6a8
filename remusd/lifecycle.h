/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the primary does about its backup: connect, synchronise, protect, and what when the link is lost.
 * Pure: events and `now` come in, one action at a time comes out of lifecycle_run().
 *
 *                    protect            connected           acknowledged
 *          off ----------------> connecting -----> syncing --------------> protected
 *           ^   unprotect (any)      ^                |  link lost             |
 *           |                        +--- not held ---+---- held ---> holding <+
 *           |                                                          |  ^ |
 *           |                          degrade = release: asking <-----+  | +--> connected: syncing
 *           |                               granted |  denied: -----------+
 *           |                                       v
 *           |                                  unprotected  (goes on alone, reconnects)
 *
 * `held` is whether the guest's output is being held: from the first checkpoint on until the word of the operator
 * or of the arbiter (R1, R7).  A guest that was never protected is never held.
 */
#ifndef REMUS_LIFECYCLE_H
#define REMUS_LIFECYCLE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/config.h"

enum lifecycle_state {
    LC_OFF,
    LC_CONNECTING,
    LC_SYNCING,
    LC_PROTECTED,
    LC_HOLDING,      /* the backup is lost, output waits */
    LC_ASKING,       /* the same, and the arbiter is asked whether to go on alone */
    LC_UNPROTECTED,  /* goes on alone */
    LC_HANDED_OVER,  /* by switchover: the guest runs on the backup */
    LC_LOST,         /* the backup took over: the guest here was ended */
    LC_STOPPED,      /* degrade = stop: the guest was ended */
    LC_SHUT_DOWN,    /* the guest ended by itself */
};

enum lifecycle_action {
    LC_NOTHING,
    LC_CONNECT,
    LC_ASK_ARBITER,
    LC_RELEASE,  /* go on alone: let the output pass, begin a new session */
    LC_DESTROY,  /* end the guest here */
};

#define LC_RETRY_NS (500 * NS_PER_MS)    /* between attempts to connect */
#define LC_REFUSED_NS (2 * NS_PER_S)     /* after the backup said no; at most, between links that protect nothing */
#define LC_ASK_AGAIN_NS (2 * NS_PER_S)   /* after the arbiter said no */

struct lifecycle {
    enum degrade_policy degrade;
    bool has_arbiter;
    uint64_t degrade_after;
    enum lifecycle_state state;
    bool held;
    uint64_t since;        /* of the state */
    uint64_t next_connect;
    uint64_t retry;        /* from one link to the next; it doubles. 0: the last one protected, or there was none */
    uint64_t degrade_at;   /* in `holding`: by the policy. A backup that is back only for a moment does not put it off */
    bool handover_sent;    /* the backup may run the guest, and no arbiter was asked */
    bool leaving;          /* asking because the operator said unprotect */
    enum lifecycle_action pending;
};

/* held: an earlier daemon left this VM protected, so its output must stay held. */
void lifecycle_init(struct lifecycle *lc, enum degrade_policy degrade, bool has_arbiter,
                    uint64_t degrade_after, bool held, uint64_t now);

/* Events. */
void lifecycle_protect(struct lifecycle *lc, uint64_t now);      /* no-op unless off */
/*
 * The operator's word.  Over a link only after the backup has confirmed the goodbye; without one the backup may be
 * about to take over, so the arbiter is asked first when there is one, whatever the degrade policy (R7).
 */
void lifecycle_unprotect(struct lifecycle *lc, uint64_t now);
void lifecycle_connected(struct lifecycle *lc, uint64_t now);
void lifecycle_connect_failed(struct lifecycle *lc, uint64_t now);
void lifecycle_refused(struct lifecycle *lc, uint64_t now);      /* the backup said no */
void lifecycle_peer_active(struct lifecycle *lc, uint64_t now);  /* the backup runs the VM */
void lifecycle_first_checkpoint(struct lifecycle *lc, uint64_t now); /* output is held from now on */
void lifecycle_never_held(struct lifecycle *lc);             /* it failed, and the backup knows: it will not take over */
void lifecycle_acked(struct lifecycle *lc, uint64_t now);
void lifecycle_link_lost(struct lifecycle *lc, uint64_t now);
void lifecycle_arbiter(struct lifecycle *lc, bool granted, uint64_t now);
void lifecycle_handover_sent(struct lifecycle *lc); /* until a new link: no degrade = release */
void lifecycle_handed_over(struct lifecycle *lc, uint64_t now);
void lifecycle_guest_gone(struct lifecycle *lc, uint64_t now);

/* What to do now; call until LC_NOTHING. */
enum lifecycle_action lifecycle_run(struct lifecycle *lc, uint64_t now);

/* When lifecycle_run will have something to do if no event comes. */
uint64_t lifecycle_deadline(const struct lifecycle *lc);

/* When the degrade policy acts, whatever else is being waited for; TIME_NEVER. */
uint64_t lifecycle_degrade_at(const struct lifecycle *lc);

const char *lifecycle_name(enum lifecycle_state state);

#endif
