/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames that tell a network where an address lives now, as if its owner had sent them.  Pure.
 *
 *   IPv4      ARP announcement, request and reply form (RFC 5227; some stations heed only one)
 *   IPv6      unsolicited neighbour advertisement with the override flag (RFC 4861 section 7.2.6)
 *   only MAC  reverse-ARP request, broadcast: moves the switches' ports (as QEMU's announce-self)
 */
#ifndef REMUS_ANNOUNCE_H
#define REMUS_ANNOUNCE_H

#include <stdbool.h>
#include <sys/uio.h>

#include "net-state.h"

#define ANNOUNCE_PER_ADDRESS 2u
#define ANNOUNCE_FRAME_MAX (ETH_HEADER + ETH_TAGS_MAX * 4 + 72)

/* Writes the i-th frame for `a`, i < ANNOUNCE_PER_ADDRESS; its length, or 0 when there is none. */
size_t announce_frame(const struct net_address *a, unsigned i, uint8_t frame[ANNOUNCE_FRAME_MAX]);

/* All frames of all addresses, several times over the next seconds.  All zero: none. */
struct announcer {
    struct {
        uint8_t data[ANNOUNCE_FRAME_MAX];
        size_t len;
    } frame[NET_ADDRESSES_MAX * ANNOUNCE_PER_ADDRESS];
    unsigned count, next, round;
    uint64_t start;
};

void announcer_start(struct announcer *a, const struct net_addresses *known, uint64_t now);
/* When the next frame is due; UINT64_MAX when all have been sent. */
uint64_t announcer_due(const struct announcer *a);
/* The next frame, if it is due at `now`.  It is the same one until announcer_sent(). */
bool announcer_next(struct announcer *a, uint64_t now, struct iovec *v);
void announcer_sent(struct announcer *a);

#endif
