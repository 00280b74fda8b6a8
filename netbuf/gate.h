/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The packet gate: decides which of the guest's frames may leave (R1), in which order (R6), within
 * how much memory (R9).  Pure: no clock, no I/O, no threads, no locks; a port (netbuf/port.h)
 * drives it.
 *
 *     gate_send()      a frame from the guest goes in
 *     gate_barrier()   the guest is stopped: what went in since the last barrier is this epoch's
 *     gate_release()   the epoch is acknowledged: its frames may leave
 *     gate_peek(), gate_pop()   the frames that may leave, in order
 *
 *      popped       may leave           closed epochs         open epoch
 *     --------|------------------|------------|------------|--------------|
 *           first              leave       mark[0]      mark[1]          next    (frame numbers)
 *
 * Everything that waits goes through this one queue, whatever its protocol, so no frame can
 * overtake another.  Beside it there is a short one for the frames that commit protection (flows.h)
 * lets pass at once: those of a flow none of whose frames wait.  Frames are stored in rings that
 * are allocated once.
 */
#ifndef REMUS_GATE_H
#define REMUS_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "flows.h"
#include "net-state.h"

#define GATE_FRAME_MAX 65568u /* IPv6 or IPv4 of 65,535 octets, Ethernet header, two tags */
#define GATE_QUEUE_MIN (4 * GATE_FRAME_MAX) /* smallest bound that gate_new() takes */

enum gate_verdict {
    GATE_HELD,    /* queued until the release of its epoch */
    GATE_PASSED,  /* queued, and may leave at once */
    GATE_FULL,    /* not taken: try again when gate_room() says that there is room */
    GATE_REFUSED, /* not taken: no Ethernet frame (R10) */
};

struct gate_stats {
    uint64_t held_frames, held_bytes; /* in the queue, not yet popped */
    uint64_t held_frames_max;
    uint64_t out_frames, out_bytes; /* popped */
    uint64_t refused;
    uint64_t full_ns;                  /* time without room */
    uint64_t hold_p50_ns, hold_p99_ns; /* from gate_send() to gate_pop(), of those that waited */
    uint64_t by[FLOW_VERDICTS];        /* frames that came while the gate held, by what became of them */
    uint64_t unprotected;              /* frames that came while it did not */
    struct flows_stats flows;
};

struct gate;

/*
 * Begins in hold.  flows_max: how many connections commit protection follows; 0: everything is
 * strict.  NULL with ENOMEM, or EINVAL for a bound below GATE_QUEUE_MIN or flows_max above
 * NET_FLOWS_MAX.
 */
struct gate *gate_new(size_t queue_bytes, unsigned flows_max);
void gate_free(struct gate *g);

/* Connections to the guest's `port` are commit-protected.  Needs flows_max > 0; -1 with ENOSPC. */
int gate_add_service(struct gate *g, uint16_t port, const struct parser *parser);

/* See flows_linger(). */
void gate_linger(struct gate *g, uint8_t checkpoints);

/* Copies the frame.  now: ns, never less than in the call before. */
enum gate_verdict gate_send(struct gate *g, const uint8_t *frame, size_t len, uint64_t now);

/* On all other connections the guest marks what may pass; see flows_set_mark(). */
void gate_set_mark(struct gate *g, uint8_t dscp);

/*
 * A frame from the network that the guest will get, before it gets it.  It is not queued: this is
 * for parsers that need the clients' side. gate_reads_clients(): there are such.
 */
void gate_receive(struct gate *g, const uint8_t *frame, size_t len);
bool gate_reads_clients(const struct gate *g);

/*
 * How many frames of any length are sure to fit.  A port that takes no more than that from the
 * guest never has to drop one: at 0 it leaves them where they are, and the guest's sending waits.
 */
size_t gate_room(const struct gate *g);

/*
 * Closes `epoch` and appends the network state of its checkpoint (R2).  Epochs rise over the life
 * of a gate, also over gate_hold(): -1 with EINVAL otherwise, and nothing changes; -1 with ENOMEM
 * likewise.  More than 16 closed epochs without a release become one: held longer, never shorter.
 */
int gate_barrier(struct gate *g, uint64_t epoch, struct buffer *net_state);

/* What belongs to `epoch` or to an earlier one may leave.  Late, repeated or unknown epochs are
 * harmless. */
void gate_release(struct gate *g, uint64_t epoch);

/*
 * From now on hold.  Frames of epochs that were never acknowledged join the open epoch: the first
 * checkpoint of the new protection covers them.
 */
void gate_hold(struct gate *g);

/* Everything may leave, also what comes later. */
void gate_pass(struct gate *g);

/*
 * Points v at the first frames that may leave, at most `max`; how many.  They stay where they are
 * until gate_pop(), whatever is called in between, so the lock around the gate need not be held
 * while they are written.
 */
unsigned gate_peek(struct gate *g, struct iovec *v, unsigned max);

/* Are the frames of the last gate_peek() such as commit protection lets pass others?  Else all frames before them have left. */
bool gate_peeked_passing(const struct gate *g);

/* The first n frames that the last gate_peek() returned have left. */
void gate_pop(struct gate *g, unsigned n, uint64_t now);

/* The guest's addresses, learned from the frames it sent; the pointer is good until gate_free(). */
struct net_addresses *gate_addresses(struct gate *g);

/* Is it worth to take the next checkpoint before its time?  See flows_urgent(). */
bool gate_urgent(const struct gate *g);

void gate_stats(const struct gate *g, uint64_t now, struct gate_stats *stats);

#endif
