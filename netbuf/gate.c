/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "frame-ring.h"
#include "gate.h"
#include "hold-time.h"

#define MARKS_MAX 16u
#define EXPRESS_BYTES (16 * GATE_FRAME_MAX)

struct mark {
    uint64_t epoch;
    uint64_t end; /* number of the first frame behind it */
};

struct gate {
    struct frame_ring queue;
    uint64_t first, leave, next; /* frames in queue are numbered; see the picture in gate.h */
    struct mark mark[MARKS_MAX]; /* closed epochs, not released, oldest first */
    unsigned marks;
    uint64_t last_epoch;
    bool holding;

    struct flows *flows;       /* NULL: no commit protection */
    struct frame_ring express; /* frames of open flows; what finds no room here waits in queue */
    unsigned expresses;
    bool express_peeked; /* the last gate_peek() was about express */

    struct net_addresses addresses;
    struct gate_stats stats;
    uint64_t full_since; /* 0: there is room */
    struct hold_time hold_time;
};

struct gate *gate_new(size_t queue_bytes, unsigned flows_max_)
{
    struct gate *g;

    if (queue_bytes < GATE_QUEUE_MIN) {
        errno = EINVAL;
        return NULL;
    }
    g = calloc(1, sizeof(*g));
    if (!g)
        return NULL;
    if (frame_ring_init(&g->queue, queue_bytes) < 0)
        goto fail;
    if (flows_max_ > 0 &&
        (!(g->flows = flows_new(flows_max_)) || frame_ring_init(&g->express, EXPRESS_BYTES) < 0))
        goto fail;
    g->holding = true;
    return g;
fail:
    gate_free(g);
    return NULL;
}

void gate_free(struct gate *g)
{
    if (!g)
        return;
    frame_ring_free(&g->queue);
    frame_ring_free(&g->express);
    flows_free(g->flows);
    free(g);
}

int gate_add_service(struct gate *g, uint16_t port, const struct parser *parser)
{
    return flows_add_service(g->flows, port, parser);
}

void gate_linger(struct gate *g, uint8_t checkpoints)
{
    flows_linger(g->flows, checkpoints);
}

void gate_set_mark(struct gate *g, uint8_t dscp)
{
    flows_set_mark(g->flows, dscp);
}

bool gate_reads_clients(const struct gate *g)
{
    return g->flows && flows_reads_clients(g->flows);
}

void gate_receive(struct gate *g, const uint8_t *frame, size_t len)
{
    struct packet p;

    if (packet_parse(&p, frame, len))
        flows_received(g->flows, &p);
}

size_t gate_room(const struct gate *g)
{
    return frame_ring_room(&g->queue, GATE_FRAME_MAX);
}

enum gate_verdict gate_send(struct gate *g, const uint8_t *frame, size_t len, uint64_t now)
{
    struct packet p;
    uint32_t flow = 0;
    enum flow_verdict verdict = FLOW_OTHER;

    if (len > GATE_FRAME_MAX || !packet_parse(&p, frame, len)) {
        g->stats.refused++;
        return GATE_REFUSED;
    }
    if (!frame_ring_fits(&g->queue, len))
        return GATE_FULL;
    net_addresses_learn(&g->addresses, &p, now);
    if (g->flows)
        verdict = flows_sent(g->flows, &p, now, &flow);
    if (verdict == FLOW_OPEN && g->holding) {
        if (frame_ring_put(&g->express, frame, len, flow, now)) {
            g->expresses++;
            g->stats.by[FLOW_OPEN]++;
            return GATE_PASSED;
        }
        verdict = FLOW_BEHIND;
    }
    frame_ring_put(&g->queue, frame, len, flow, now);
    if (g->flows)
        flows_queued(g->flows, flow);
    g->next++;
    g->stats.held_bytes += len;
    if (g->next - g->first > g->stats.held_frames_max)
        g->stats.held_frames_max = g->next - g->first;
    if (!g->full_since && gate_room(g) == 0)
        g->full_since = now;
    if (g->holding) {
        g->stats.by[verdict]++;
        return GATE_HELD;
    }
    g->stats.unprotected++;
    g->leave = g->next;
    return GATE_PASSED;
}

int gate_barrier(struct gate *g, uint64_t epoch, struct buffer *net_state)
{
    size_t at = net_state->len;

    if (epoch <= g->last_epoch) {
        errno = EINVAL;
        return -1;
    }
    if (net_state_encode(net_state, &g->addresses, g->flows ? flows_max(g->flows) : 0) < 0)
        return -1;
    if (g->flows)
        flows_barrier(g->flows, epoch, net_state, at);
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
    if (g->flows)
        flows_acked(g->flows, g->mark[n - 1].epoch);
    g->marks -= n;
    memmove(g->mark, g->mark + n, g->marks * sizeof(g->mark[0]));
}

void gate_hold(struct gate *g)
{
    g->holding = true;
    g->marks = 0;
    if (g->flows)
        flows_hold(g->flows);
}

void gate_pass(struct gate *g)
{
    g->holding = false;
    g->leave = g->next;
}

unsigned gate_peek(struct gate *g, struct iovec *v, unsigned max)
{
    const struct frame_ring *ring = g->expresses ? &g->express : &g->queue;
    uint64_t ready = g->expresses ? g->expresses : g->leave - g->first;
    unsigned n = ready < max ? (unsigned)ready : max;
    size_t at = ring->head;

    for (unsigned i = 0; i < n; i++) {
        const struct frame_record *r = frame_ring_next(ring, &at);
        v[i] = (struct iovec){(void *)(uintptr_t)r->frame, r->len};
    }
    g->express_peeked = g->expresses > 0;
    return n;
}

bool gate_peeked_passing(const struct gate *g)
{
    return g->express_peeked;
}

static void pop_express(struct gate *g)
{
    size_t at = g->express.head;

    g->stats.out_bytes += frame_ring_next(&g->express, &at)->len;
    g->stats.out_frames++;
    g->expresses--;
    frame_ring_drop(&g->express);
}

static void pop_queue(struct gate *g, uint64_t now)
{
    size_t at = g->queue.head;
    const struct frame_record *r = frame_ring_next(&g->queue, &at);

    if (g->holding)
        hold_time_add(&g->hold_time, now - r->sent);
    if (g->flows)
        flows_left(g->flows, r->flow);
    g->stats.out_frames++;
    g->stats.out_bytes += r->len;
    g->stats.held_bytes -= r->len;
    g->first++;
    frame_ring_drop(&g->queue);
}

void gate_pop(struct gate *g, unsigned n, uint64_t now)
{
    for (unsigned i = 0; i < n && g->express_peeked && g->expresses > 0; i++)
        pop_express(g);
    for (unsigned i = 0; i < n && !g->express_peeked && g->first < g->leave; i++)
        pop_queue(g, now);
    if (g->full_since && gate_room(g)) {
        g->stats.full_ns += now - g->full_since;
        g->full_since = 0;
    }
}

bool gate_urgent(const struct gate *g)
{
    return g->holding && g->flows && flows_urgent(g->flows);
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
    if (g->flows)
        flows_stats(g->flows, &stats->flows);
}
