/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "frame-ring.h"

static size_t record_size(size_t len)
{
    return (sizeof(struct frame_record) + len + 15) & ~(size_t)15;
}

int frame_ring_init(struct frame_ring *r, size_t size)
{
    *r = (struct frame_ring){.size = size & ~(size_t)15};
    r->mem = malloc(r->size);
    return r->mem ? 0 : -1;
}

void frame_ring_free(struct frame_ring *r)
{
    free(r->mem);
    *r = (struct frame_ring){0};
}

static struct frame_record *record_at(const struct frame_ring *r, size_t at)
{
    return (struct frame_record *)(void *)(r->mem + at);
}

/* Free octets behind the tail, up to the end of the ring or to the head. */
static size_t room_behind(const struct frame_ring *r)
{
    return r->used && r->tail <= r->head ? r->head - r->tail : r->size - r->tail;
}

static size_t room_in_front(const struct frame_ring *r)
{
    return r->tail >= r->head && r->used < r->size ? r->head : 0;
}

size_t frame_ring_room(const struct frame_ring *r, size_t max_len)
{
    return room_behind(r) / record_size(max_len) + room_in_front(r) / record_size(max_len);
}

static void take(struct frame_ring *r, size_t size)
{
    r->used += size;
    r->tail += size;
    if (r->tail == r->size)
        r->tail = 0;
}

static void give(struct frame_ring *r, size_t size)
{
    r->used -= size;
    r->head += size;
    if (r->head == r->size)
        r->head = 0;
    if (r->used == 0) /* from the start again: what is used often stays in the cache */
        r->head = r->tail = 0;
}

bool frame_ring_fits(const struct frame_ring *r, size_t len)
{
    size_t size = record_size(len);

    return size <= room_behind(r) || size <= room_in_front(r);
}

bool frame_ring_put(struct frame_ring *r, const uint8_t *frame, size_t len, uint32_t flow,
                    uint64_t sent)
{
    size_t size = record_size(len), behind = room_behind(r);
    struct frame_record *rec;

    if (!frame_ring_fits(r, len))
        return false;
    if (size > behind && behind) {
        rec = record_at(r, r->tail);
        rec->len = 0;
        rec->flow = (uint32_t)behind;
        take(r, behind);
    }
    rec = record_at(r, r->tail);
    *rec = (struct frame_record){(uint32_t)len, flow, sent};
    memcpy(rec->frame, frame, len);
    take(r, size);
    return true;
}

const struct frame_record *frame_ring_next(const struct frame_ring *r, size_t *at)
{
    const struct frame_record *rec = record_at(r, *at);

    if (rec->len == 0) {
        *at = 0;
        rec = record_at(r, 0);
    }
    *at += record_size(rec->len);
    if (*at == r->size)
        *at = 0;
    return rec;
}

void frame_ring_drop(struct frame_ring *r)
{
    const struct frame_record *rec = record_at(r, r->head);

    if (rec->len == 0) {
        give(r, rec->flow);
        rec = record_at(r, r->head);
    }
    give(r, record_size(rec->len));
}
