/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commit protection: which connections may show their client more than the last acknowledged
 * checkpoint knows. Pure; the gate drives it.
 *
 * A flow is a TCP connection to a port of the guest that was declared a service, followed from the
 * guest's SYN-ACK on; or one whose packets the guest marks.  It is always one of
 *
 *   held     its packets wait for their epoch; may wish to become open, when a transaction begins
 *   open     its packets pass at once; every checkpoint lists it, and a takeover resets it
 *   strict   held for ever: its parser lost the thread, or never had it
 *
 *        wish, listed, and that checkpoint acknowledged with none since that does not list it (R3)
 *     held ----------------------------------------------------------------------------------> open
 *          <----------------------------------------------------------------------------------
 *                      a packet ends a transaction: at once, and a wish is cancelled,
 *                      but for a while when it lingers (flows_linger())
 *
 * Once one packet of a flow waits, all behind it wait (R6): that is what flows_queued() and
 * flows_left() count. Connections beyond the table's size, and all that is no flow, are strict.
 */
#ifndef REMUS_FLOWS_H
#define REMUS_FLOWS_H

#include <stdbool.h>

#include "net-state.h"
#include "packet.h"
#include "parser.h"

#define FLOWS_SERVICES_MAX 16u /* as CONFIG_SERVICES_MAX */

/* What becomes of a packet, and why.  All but FLOW_OPEN wait. */
enum flow_verdict {
    FLOW_OTHER,     /* no connection to a service */
    FLOW_UNTRACKED, /* one that found no place in the table, or was there before us */
    FLOW_STRICT,
    FLOW_OUTSIDE, /* ends a transaction, or is outside of one */
    FLOW_BEGUN,   /* inside of one that no acknowledged checkpoint lists yet */
    FLOW_BEHIND,  /* behind packets of its flow that wait */
    FLOW_OPEN,    /* may pass at once */
    FLOW_VERDICTS,
};
extern const char *const flow_verdict_names[FLOW_VERDICTS];

/* Why a flow became strict. */
enum flow_lost {
    FLOW_LOST_GAP,    /* a part of the stream was not seen */
    FLOW_LOST_PACKET, /* fragment, urgent data, no address of a station, data with a SYN */
    FLOW_LOST_ENCRYPTED,
    FLOW_LOST_REPLICATION,
    FLOW_LOST_PROTOCOL, /* what the parser cannot follow */
    FLOW_LOSSES,
};
extern const char *const flow_lost_names[FLOW_LOSSES];

struct flows_stats {
    uint64_t held, open, strict; /* flows now */
    uint64_t untracked;          /* connections that found no place in the table, all time */
    uint64_t lost[FLOW_LOSSES];  /* flows that became strict, all time */
};

struct flows;

/* At most `max` flows at a time, up to NET_FLOWS_MAX.  NULL with ENOMEM or EINVAL. */
struct flows *flows_new(unsigned max);
void flows_free(struct flows *f);

/*
 * An open flow stays open, and listed, for so many checkpoints after the end of its transaction has
 * left: the next one, if it begins by then, does not wait for a checkpoint that lists it.  A
 * takeover resets it meanwhile. 0 at the beginning.
 */
void flows_linger(struct flows *f, uint8_t checkpoints);

/* Connections to `port` speak `parser`'s protocol.  -1 with ENOSPC beyond FLOWS_SERVICES_MAX. */
int flows_add_service(struct flows *f, uint16_t port, const struct parser *parser);

/*
 * On all other connections the guest says itself what need not wait: data in packets with this DSCP
 * (1 to 63) is inside of a transaction, all other data ends one.  A flow begins with its first
 * marked packet.
 */
void flows_set_mark(struct flows *f, uint8_t dscp);

/*
 * The guest sends p.  *flow: number of its flow, 0 when it has none; whoever queues the packet says
 * flows_queued(), and flows_left() when it has left the queue.
 */
enum flow_verdict flows_sent(struct flows *f, const struct packet *p, uint64_t now,
                             uint32_t *flow);
/* A client sends p, and the guest will get it. */
void flows_received(struct flows *f, const struct packet *p);
/* Does it matter what clients send? */
bool flows_reads_clients(const struct flows *f);

void flows_queued(struct flows *f, uint32_t flow);
void flows_left(struct flows *f, uint32_t flow);

/* A checkpoint is taken: adds the flows that it must list to the network state
 * (net_state_add_flow()). */
void flows_barrier(struct flows *f, uint64_t epoch, struct buffer *out, size_t state);

/* Checkpoint `epoch` is acknowledged, and so is every one before it. */
void flows_acked(struct flows *f, uint64_t epoch);

/* A new protection begins: no checkpoint taken so far counts. */
void flows_hold(struct flows *f);

/*
 * Do clients wait for the next checkpoint with the end of their transaction, or with its beginning, and are they at
 * least half as many as those who are inside of one, or between two, and do not?
 */
bool flows_urgent(const struct flows *f);

unsigned flows_max(const struct flows *f);
void flows_stats(const struct flows *f, struct flows_stats *stats);

#endif
