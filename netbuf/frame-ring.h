/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frames of any length in a ring of octets that is allocated once: first in, first out.
 *
 *     |....|rec|rec|record|rec|...........|        |record|rec|..........|rec|rec|skip|
 *          head               tail                            tail       head
 *
 * A record is never split: when it does not fit before the end of the ring, a skip record takes the
 * rest and it goes to the start.
 */
#ifndef REMUS_FRAME_RING_H
#define REMUS_FRAME_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct frame_record {
    uint32_t len;  /* of the frame; 0 in a skip record */
    uint32_t flow; /* its owner's; octets to skip in a skip record */
    uint64_t sent; /* ns */
    uint8_t frame[];
};
_Static_assert(sizeof(struct frame_record) == 16, "records stay aligned");

struct frame_ring {
    uint8_t *mem;
    size_t size, head, tail;
    size_t used; /* octets between head and tail: tells full from empty */
};

int frame_ring_init(struct frame_ring *r, size_t size); /* 0, or -1 with ENOMEM */
void frame_ring_free(struct frame_ring *r);

/* How many frames of up to max_len octets are sure to fit. */
size_t frame_ring_room(const struct frame_ring *r, size_t max_len);

bool frame_ring_fits(const struct frame_ring *r, size_t len);

/* Copies a frame behind the others.  len > 0.  False when it does not fit. */
bool frame_ring_put(struct frame_ring *r, const uint8_t *frame, size_t len, uint32_t flow,
                    uint64_t sent);

/* The record at *at (begin with r->head), and *at moved behind it.  There must be one. */
const struct frame_record *frame_ring_next(const struct frame_ring *r, size_t *at);

/* Removes the first record; what frame_ring_next() returned for it is gone. */
void frame_ring_drop(struct frame_ring *r);

#endif
