/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Resets (R3, R10).  Input: the length of a network state, the network state, then frames: 1 octet (lowest
 * bit: from the client, then waits the rest of it in 10 ms, then length) and what is in them.  What is
 * answered must be a segment without data of a listed connection; what names a connection that is being
 * reset never passes.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "netbuf/reset.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static bool is_of(const struct net_flow *f, const struct packet *p, enum reset_side from)
{
    bool guest = from == RESET_GUEST;
    size_t n = f->family == 4 ? 4 : 16;

    return p->tcp == PACKET_TCP && p->family == f->family && p->tags == f->tags &&
           (guest ? p->sport : p->dport) == f->port &&
           (guest ? p->dport : p->sport) == f->peer_port &&
           memcmp(guest ? p->src : p->dst, f->ip, n) == 0 &&
           memcmp(guest ? p->dst : p->src, f->peer_ip, n) == 0;
}

static bool is_listed(const struct net_state *s, const struct packet *p, enum reset_side from)
{
    struct net_flow f;

    for (uint32_t i = 0; i < s->flows; i++) {
        net_state_flow(s, i, &f);
        if (is_of(&f, p, from))
            return true;
    }
    return false;
}

static void check_answer(const struct net_state *s, const struct reset_frame *frame)
{
    enum reset_side as = frame->to == RESET_GUEST ? RESET_CLIENT : RESET_GUEST;
    struct packet p;

    check(frame->len <= RESET_FRAME_MAX && packet_parse(&p, frame->data, frame->len));
    check(p.data_len == 0 && is_listed(s, &p, as));
    check(p.flags == TCP_RST || p.flags == TCP_ACK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static uint8_t state[1024];
    struct reset_frame frame;
    struct net_state s;
    struct reset *r;
    uint64_t now = 1;
    size_t n;

    if (len < 2)
        return 0;
    n = get_be16(data);
    data += 2;
    len -= 2;
    if (n > len || n > sizeof(state))
        return 0;
    memcpy(state, data, n); /* as it is: no longer */
    data += n;
    len -= n;
    if (n == 0 || net_state_decode(&s, state, n, NULL) < 0 || !(r = reset_new(&s, now)))
        return 0;
    while (len >= 3) {
        enum reset_side from = data[0] & 1 ? RESET_CLIENT : RESET_GUEST;
        struct packet p;

        now += data[0] / 2u * UINT64_C(10000000);
        for (unsigned pokes = 0; reset_poke(r, now, &frame); pokes++) {
            check(pokes <= 4 * s.flows);
            check_answer(&s, &frame);
            reset_poked(r);
        }
        n = get_be16(data + 1);
        data += 3;
        len -= 3;
        n = n < len ? n : len;
        if (reset_take(r, from, data, n, &frame)) {
            if (frame.len)
                check_answer(&s, &frame);
            check(packet_parse(&p, data, n));
            check(p.tcp == PACKET_TCP_UNPLACED || is_listed(&s, &p, from));
        } else {
            check(frame.len == 0);
        }
        reset_due(r, now);
        data += n;
        len -= n;
    }
    reset_free(r);
    return 0;
}
