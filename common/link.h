/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Records over a channel: framing, checksums, heartbeats.  Both daemons use it.
 *
 * Any thread may send; one thread receives.  A thread of the link's own sends a heartbeat whenever nothing else
 * was sent for one interval, so a daemon that is busy copying is not taken for a dead one.
 */
#ifndef REMUS_LINK_H
#define REMUS_LINK_H

#include <stdint.h>
#include <sys/uio.h>

#include "chan.h"
#include "protocol.h"

struct link;

struct record {
    enum proto_type type;
    uint64_t epoch;
    const uint8_t *body; /* valid until the next link_recv */
    size_t length;
    uint64_t checksum;   /* of all of this, and right */
};

/* What link_recv found.  Only LINK_CORRUPT is an error, and has a text. */
enum link_result {
    LINK_RECORD,
    LINK_TIMEOUT,  /* nothing whole before the deadline */
    LINK_CLOSED,   /* the peer's end is gone, or link_shutdown was called */
    LINK_CORRUPT,  /* and LINK_CLOSED from then on */
};

/* Owns the channel, also on failure (NULL, ENOMEM). */
struct link *link_new(struct chan *chan);

/* Starts the heartbeats, one every heartbeat_ns of silence of our own. */
int link_start_heartbeats(struct link *l, uint64_t heartbeat_ns);

const char *link_peer(const struct link *l);

/* From now on a send that has not ended at `deadline` (clock_ns) fails with ETIMEDOUT: for a peer that may never read. */
void link_limit_sends(struct link *l, uint64_t deadline);

/* One record with a body of `count` pieces (at most 3).  Waits as long as the peer does not read.  0, or -1 with errno. */
int link_send(struct link *l, enum proto_type type, uint64_t epoch, const struct iovec *body,
              int count);
/* The same, and tells the record's checksum. */
int link_send_summed(struct link *l, enum proto_type type, uint64_t epoch, const struct iovec *body,
                     int count, uint64_t *checksum);
int link_send_empty(struct link *l, enum proto_type type, uint64_t epoch);
int link_send_notice(struct link *l, enum proto_type type, unsigned code, const char *text);

enum link_result link_recv(struct link *l, struct record *rec, uint64_t deadline,
                           struct error *err);

/* When the last octet came in (clock_ns): a peer that delivers anything is alive. */
uint64_t link_last_heard(const struct link *l);

/* As chan_ops.rate. */
uint64_t link_rate(const struct link *l);

uint64_t link_bytes_sent(const struct link *l);
uint64_t link_bytes_received(const struct link *l);

/* From any thread: whoever waits in send or recv returns. */
void link_shutdown(struct link *l);

/* Stops the heartbeats and closes.  No other thread may use the link any more. */
void link_free(struct link *l);

#endif
