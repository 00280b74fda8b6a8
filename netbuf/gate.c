/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gate.h"
#include "hold-time.h"

/* What a frame is stored with.  A record never wraps around the end of the ring: `skip` ends the
 * ring early. */
struct record {
    uint32_t len;
    uint32_t skip;
    uint64_t sent;
    uint8_t frame[];
};
_Static_assert(sizeof(struct record) == 16, "records stay aligned");

#define RECORD_SIZE(len) ((sizeof(struct record) + (len) + 15) & ~(size_t)15)
#define RECORD_MAX RECORD_SIZE(GATE_FRAME_MAX)

#define MARKS_MAX 16u

struct mark {
    uint64_t epoch;
    uint64_t end; /* number of the first frame behind it */
};

struct gate {
    uint8_t *ring;
    size_t size, head, tail;
    size_t used; /* octets between head and tail: tells full from empty */

    uint64_t first, leave, next; /* frames are numbered; see the picture in gate.h */
    struct mark mark[MARKS_MAX]; /* closed epochs, not released, oldest first */
    unsigned marks;
    uint64_t last_epoch;
    bool holding;

    struct net_addresses addresses;
    struct gate_stats stats;
    uint64_t full_since; /* 0: there is room */
    struct hold_time hold_time;
};

struct gate *gate_new(size_t queue_bytes)
{
    struct gate *g;

    if (queue_bytes < GATE_QUEUE_MIN) {
        errno = EINVAL;
        return NULL;
    }
    g = calloc(1, sizeof(*g));
    if (!g)
        return NULL;
    g->size = queue_bytes & ~(size_t)15;
    g->ring = malloc(g->size);
    if (!g->ring) {
        free(g);
        return NULL;
    }
    g->holding = true;
    return g;
}

void gate_free(struct gate *g)
{
    if (!g)
        return;
    free(g->ring);
    free(g);
}

static struct record *record_at(const struct gate *g, size_t at)
{
    return (struct record *)(void *)(g->ring + at);
}

static void ring_take(struct gate *g, size_t len)
{
    g->used += len;
    g->tail += len;
    if (g->tail == g->size)
        g->tail = 0;
}

static void ring_give(struct gate *g, size_t len)
{
    g->used -= len;
    g->head += len;
    if (g->head == g->size)
        g->head = 0;
    if (g->used == 0) /* from the start again: what is used often stays in the processor's cache */
        g->head = g->tail = 0;
}

/* Free octets behind the tail, up to the end of the ring or to the head. */
static size_t room_behind(const struct gate *g)
{
    if (g->used && g->tail <= g->head)
        return g->head - g->tail;
    return g->size - g->tail;
}

static size_t room_in_front(const struct gate *g)
{
    return g->tail >= g->head && g->used < g->size ? g->head : 0;
}

size_t gate_room(const struct gate *g)
{
    return room_behind(g) / RECORD_MAX + room_in_front(g) / RECORD_MAX;
}

static struct record *record_new(struct gate *g, size_t len)
{
    size_t size = RECORD_SIZE(len), behind = room_behind(g);
    struct record *r;

    if (size > behind) {
        if (size > room_in_front(g))
            return NULL;
        if (behind) {
            record_at(g, g->tail)->skip = (uint32_t)behind;
            ring_take(g, behind);
        }
    }
    r = record_at(g, g->tail);
    r->len = (uint32_t)len;
    r->skip = 0;
    ring_take(g, size);
    return r;
}

static const struct record *record_after(const struct gate *g, size_t *at)
{
    const struct record *r = record_at(g, *at);

    if (r->skip) {
        *at = 0;
        r = record_at(g, 0);
    }
    *at += RECORD_SIZE(r->len);
    if (*at == g->size)
        *at = 0;
    return r;
}

enum gate_verdict gate_send(struct gate *g, const uint8_t *frame, size_t len, uint64_t now)
{
    struct packet p;
    struct record *r;

    if (len > GATE_FRAME_MAX || !packet_parse(&p, frame, len)) {
        g->stats.refused++;
        return GATE_REFUSED;
    }
    r = record_new(g, len);
    if (!r)
        return GATE_FULL;
    r->sent = now;
    memcpy(r->frame, frame, len);
    net_addresses_learn(&g->addresses, &p, now);
    g->next++;
    g->stats.held_bytes += len;
    if (g->next - g->first > g->stats.held_frames_max)
        g->stats.held_frames_max = g->next - g->first;
    if (!g->full_since && gate_room(g) == 0)
        g->full_since = now;
    if (g->holding)
        return GATE_HELD;
    g->leave = g->next;
    return GATE_PASSED;
}

int gate_barrier(struct gate *g, uint64_t epoch)
{
    if (epoch <= g->last_epoch) {
        errno = EINVAL;
        return -1;
    }
    g->last_epoch = epoch;
    if (g->marks == MARKS_MAX)
        g->marks--;
    g->mark[g->marks++] = (struct mark){epoch, g->next};
    return 0;
}

void gate_release(struct gate *g, uint64_t epoch)
{
    unsigned n = 0;

    while (n < g->marks && g->mark[n].epoch <= epoch)
        n++;
    if (n == 0)
        return;
    if (g->mark[n - 1].end > g->leave)
        g->leave = g->mark[n - 1].end;
    g->marks -= n;
    memmove(g->mark, g->mark + n, g->marks * sizeof(g->mark[0]));
}

void gate_hold(struct gate *g)
{
    g->holding = true;
    g->marks = 0;
}

void gate_pass(struct gate *g)
{
    g->holding = false;
    g->marks = 0;
    g->leave = g->next;
}

unsigned gate_peek(const struct gate *g, struct iovec *v, unsigned max)
{
    uint64_t ready = g->leave - g->first;
    unsigned n = ready < max ? (unsigned)ready : max;
    size_t at = g->head;

    for (unsigned i = 0; i < n; i++) {
        const struct record *r = record_after(g, &at);
        v[i] = (struct iovec){(void *)(uintptr_t)r->frame, r->len};
    }
    return n;
}

void gate_pop(struct gate *g, unsigned n, uint64_t now)
{
    for (unsigned i = 0; i < n && g->first < g->leave; i++) {
        struct record *r = record_at(g, g->head);
        if (r->skip) {
            ring_give(g, r->skip);
            r = record_at(g, g->head);
        }
        hold_time_add(&g->hold_time, now - r->sent);
        g->stats.out_frames++;
        g->stats.out_bytes += r->len;
        g->stats.held_bytes -= r->len;
        g->first++;
        ring_give(g, RECORD_SIZE(r->len));
    }
    if (g->full_since && gate_room(g)) {
        g->stats.full_ns += now - g->full_since;
        g->full_since = 0;
    }
}

struct net_addresses *gate_addresses(struct gate *g)
{
    return &g->addresses;
}

void gate_stats(const struct gate *g, uint64_t now, struct gate_stats *stats)
{
    *stats = g->stats;
    stats->held_frames = g->next - g->first;
    stats->hold_p50_ns = hold_time_percentile(&g->hold_time, 50);
    stats->hold_p99_ns = hold_time_percentile(&g->hold_time, 99);
    if (g->full_since)
        stats->full_ns += now - g->full_since;
}
