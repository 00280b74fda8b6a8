/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ends the connections that an activated checkpoint lists as open (R3): their clients may have seen
 * more than the restored guest knows, so no packet of them may pass any more, in either direction.
 * Pure: frames and the time in, frames out.
 *
 *                 every packet of it                       every packet of it
 *     guest  ----------------------------->  reset  <-----------------------------  client
 *            <-----------------------------         ----------------------------->
 *             RST built from its ack number          RST built from its ack number
 *
 * A side that has nothing to send would find out only after its own timeouts, so both are poked, at
 * once and then at growing intervals until they answer that the connection is gone.  A poke is
 * two packets, and one of them hits wherever the receiver stands (RFC 9293 section 3.10.7.4, RFC
 * 5961 section 3.2):
 *
 *     what it has received       RST at the listed number      keep-alive probe, one below it
 *     exactly what is listed     resets at once
 *     less                       is answered by an ACK
 *     more                                                     is answered by an ACK
 *
 * and the answer carries the exact number for the RST.  Who answers with RST has no such connection
 * (any more): that side is done.  When both are, or after RESET_FOR_NS, the flow is forgotten.  A
 * client's new connection between the same two ports waits until the guest's side is done; clients
 * send SYN again.
 */
#ifndef REMUS_RESET_H
#define REMUS_RESET_H

#include "net-state.h"

#define RESET_FRAME_MAX (ETH_HEADER + ETH_TAGS_MAX * 4 + 60)
#define RESET_FOR_NS (UINT64_C(900) * 1000000000)

enum reset_side { RESET_GUEST, RESET_CLIENT };

struct reset_frame {
    enum reset_side to;
    size_t len; /* 0: no frame */
    uint8_t data[RESET_FRAME_MAX];
};

struct reset;

/* s: of the activated checkpoint, decoded; not used later.  NULL with ENOMEM. */
struct reset *reset_new(const struct net_state *s, uint64_t now);
void reset_free(struct reset *r);

/*
 * A frame that came from the guest or the network.  True: it is of a connection being reset and
 * must not go on; *answer is to be sent, if it has a length.  False: it passes untouched.
 */
bool reset_take(struct reset *r, enum reset_side from, const uint8_t *frame, size_t len,
                struct reset_frame *answer);

/* The next poke that is due at `now`; false: none.  It is the same one until reset_poked(). */
bool reset_poke(struct reset *r, uint64_t now, struct reset_frame *poke);
void reset_poked(struct reset *r);

/* When the next poke is due, or the table is of no more use; UINT64_MAX when it is of none now:
 * then it can be freed. */
uint64_t reset_due(const struct reset *r, uint64_t now);

#endif
