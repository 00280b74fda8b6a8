/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Is the primary gone, and may the backup run the VM?  Pure: events and `now` come in, one action at a time
 * comes out of detector_run().
 *
 *     waiting --connected--> syncing --committed--> ready <--heard-- suspect <--denied-- asking
 *        ^                      |                   |  |  silent, or closed  ^  |  ask     |
 *        |       closed         |                   |  |  without goodbye    |  +--------->|
 *        +----------------------+<-----goodbye------+  +---------------------+             |
 *                                                                            |             | granted
 *                          handover (any) / no arbiter and automatic, or the operator      |
 *                                            taking-over <---------------------------------+
 *                                                 |
 *                                            active | failed
 *
 * "Busy" is not "gone": only silence counts, of everything.  Whatever arrives while the primary is suspect makes
 * it ready again.  A detector that itself was not run for a while (this host was busy) begins to count
 * anew, since it cannot know what it has missed.
 */
#ifndef REMUS_DETECTOR_H
#define REMUS_DETECTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

enum detector_state {
    DT_WAITING,     /* no primary, no replica */
    DT_SYNCING,     /* a replica is being filled: there is nothing to take over */
    DT_READY,       /* a whole checkpoint is here, and the primary lives; it may be sending everything anew */
    DT_SUSPECT,     /* the primary was silent or vanished */
    DT_ASKING,      /* the arbiter is being asked */
    DT_TAKING_OVER,
    DT_ACTIVE,
    DT_FAILED,      /* the replica could not be activated */
};

enum detector_action {
    DT_NOTHING,
    DT_ASK,      /* ask the arbiter */
    DT_CANCEL,   /* the primary was heard: forget the question */
    DT_ACTIVATE, /* run the replica; then report detector_activated() */
};

#define DT_ASK_AGAIN_NS (2 * NS_PER_S)

struct detector {
    uint64_t timeout;   /* ns of silence */
    bool has_arbiter, automatic;
    enum detector_state state;
    uint64_t since;     /* of the state */
    uint64_t heard;     /* last sign of life */
    uint64_t ran;       /* last call of detector_run */
    uint64_t next_ask;
    uint64_t suspected; /* when the primary became suspect */
    char reason[96];    /* why it is suspect or was taken over */
    enum detector_action pending;
};

/* automatic: without an arbiter, take over without waiting for the operator. */
void detector_init(struct detector *d, bool has_arbiter, bool automatic, uint64_t now);

/* Events. */
/* A primary has connected.  whole: the backup still holds a checkpoint of its session. */
void detector_connected(struct detector *d, bool whole, uint64_t timeout, uint64_t now);
void detector_committed(struct detector *d, uint64_t now); /* a checkpoint was acknowledged */
void detector_given_up(struct detector *d, uint64_t now);  /* the checkpoint that was here is gone */
void detector_heard(struct detector *d, uint64_t at, uint64_t now);
void detector_closed(struct detector *d, const char *why, uint64_t now); /* without a goodbye */
void detector_goodbye(struct detector *d, uint64_t now);
void detector_handover(struct detector *d, uint64_t now);
void detector_arbiter(struct detector *d, bool granted, uint64_t now);
void detector_activated(struct detector *d, bool ok, uint64_t now);

/* The operator's `remusctl takeover`.  -1 and err when it must not be (R7). */
int detector_operator(struct detector *d, uint64_t now, struct error *err);

/* What to do now; call until DT_NOTHING, at least every timeout / 4. */
enum detector_action detector_run(struct detector *d, uint64_t now);

const char *detector_name(enum detector_state state);

#endif
