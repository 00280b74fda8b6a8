/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "reset.h"

#define IPV4_HEADER 20u
#define IPV6_HEADER 40u
#define TCP_HEADER 20u
#define TTL 64u
#define FIRST_INTERVAL_NS (UINT64_C(50) * 1000000) /* between pokes; then twice as long each time */

enum { POKE_CLIENT_RST, POKE_CLIENT_PROBE, POKE_GUEST_RST, POKE_GUEST_PROBE, POKES };

struct entry {
    struct net_flow id;
    bool gone[2]; /* by side: it has no such connection (any more) */
};

struct reset {
    struct entry *entry; /* in the order of by_id() */
    uint32_t count, left; /* left: not gone on both sides */
    uint64_t began, next;
    unsigned round;
    uint32_t poke; /* of entry * POKES, the next of this round */
};

static int by_id(const void *a, const void *b)
{
    const struct net_flow *x = &((const struct entry *)a)->id, *y = &((const struct entry *)b)->id;
    int d = x->peer_port - y->peer_port;

    if (!d)
        d = x->port - y->port;
    if (!d)
        d = x->family - y->family;
    if (!d)
        d = x->tags - y->tags;
    if (!d)
        d = memcmp(x->tag, y->tag, sizeof(x->tag));
    if (!d)
        d = memcmp(x->ip, y->ip, sizeof(x->ip));
    return d ? d : memcmp(x->peer_ip, y->peer_ip, sizeof(x->peer_ip));
}

struct reset *reset_new(const struct net_state *s, uint64_t now)
{
    struct reset *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->entry = calloc(s->flows ? s->flows : 1, sizeof(*r->entry));
    if (!r->entry) {
        free(r);
        return NULL;
    }
    r->count = r->left = s->flows;
    r->began = r->next = now;
    for (uint32_t i = 0; i < s->flows; i++) {
        struct net_flow *f = &r->entry[i].id;
        net_state_flow(s, i, f);
        /* What is not used is whatever was sent: it must not count in a comparison. */
        memset(f->tag + f->tags * 4, 0, sizeof(f->tag) - f->tags * 4u);
        for (unsigned k = 0; k < f->tags; k++)
            f->tag[k * 4 + 2] &= 0x0f;
        if (f->family == 4) {
            memset(f->ip + 4, 0, 12);
            memset(f->peer_ip + 4, 0, 12);
        }
    }
    qsort(r->entry, r->count, sizeof(*r->entry), by_id);
    return r;
}

void reset_free(struct reset *r)
{
    if (!r)
        return;
    free(r->entry);
    free(r);
}

static uint32_t add(uint32_t sum, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len; i += 2)
        sum += get_be16(data + i);
    return sum;
}

static uint16_t checksum(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static uint8_t *put_ip(uint8_t *ip, const struct net_flow *f, const uint8_t *src,
                       const uint8_t *dst)
{
    if (f->family == 4) {
        ip[0] = 0x45;
        put_be16(ip + 2, IPV4_HEADER + TCP_HEADER);
        put_be16(ip + 6, 0x4000);
        ip[8] = TTL;
        ip[9] = 6;
        memcpy(ip + 12, src, 4);
        memcpy(ip + 16, dst, 4);
        put_be16(ip + 10, checksum(add(0, ip, IPV4_HEADER)));
        return ip + IPV4_HEADER;
    }
    ip[0] = 0x60;
    put_be16(ip + 4, TCP_HEADER);
    ip[6] = 6;
    ip[7] = TTL;
    memcpy(ip + 8, src, 16);
    memcpy(ip + 24, dst, 16);
    return ip + IPV6_HEADER;
}

/* A segment without data to one side of the connection, as if the other one had sent it. */
static void segment(struct reset_frame *out, const struct net_flow *f, enum reset_side to,
                    uint8_t flags, uint32_t seq, uint32_t ack)
{
    bool to_guest = to == RESET_GUEST;
    const uint8_t *src = to_guest ? f->peer_ip : f->ip, *dst = to_guest ? f->ip : f->peer_ip;
    size_t ip_len = f->family == 4 ? 4 : 16, at = 12 + f->tags * 4u;
    uint8_t *frame = out->data, *tcp;

    *out = (struct reset_frame){.to = to};
    memcpy(frame, to_guest ? f->mac : f->peer_mac, 6);
    memcpy(frame + 6, to_guest ? f->peer_mac : f->mac, 6);
    memcpy(frame + 12, f->tag, f->tags * 4u);
    put_be16(frame + at, f->family == 4 ? ETHERTYPE_IPV4_ : ETHERTYPE_IPV6_);
    tcp = put_ip(frame + at + 2, f, src, dst);
    put_be16(tcp, to_guest ? f->peer_port : f->port);
    put_be16(tcp + 2, to_guest ? f->port : f->peer_port);
    put_be32(tcp + 4, seq);
    put_be32(tcp + 8, ack);
    tcp[12] = TCP_HEADER / 4 << 4;
    tcp[13] = flags;
    put_be16(tcp + 14, flags & TCP_RST ? 0 : 0xffff);
    put_be16(tcp + 16, checksum(add(add(add(6 + TCP_HEADER, src, ip_len), dst, ip_len), tcp,
                                    TCP_HEADER)));
    out->len = (size_t)(tcp + TCP_HEADER - frame);
    if (out->len < ETH_MIN)
        out->len = ETH_MIN;
}

/* The connection that the packet names. */
static struct net_flow flow_of(const struct packet *p, enum reset_side from)
{
    size_t ip_len = p->family == 4 ? 4 : 16;
    bool guest = from == RESET_GUEST;
    struct net_flow f = {.family = (uint8_t)p->family, .tags = (uint8_t)p->tags};

    f.port = guest ? p->sport : p->dport;
    f.peer_port = guest ? p->dport : p->sport;
    memcpy(f.ip, guest ? p->src : p->dst, ip_len);
    memcpy(f.peer_ip, guest ? p->dst : p->src, ip_len);
    for (unsigned i = 0; i < p->tags; i++) {
        memcpy(f.tag + i * 4, p->tag + i * 4, 4);
        f.tag[i * 4 + 2] &= 0x0f;
    }
    return f;
}

static bool over(const struct entry *e)
{
    return e->gone[RESET_GUEST] && e->gone[RESET_CLIENT];
}

static void set_gone(struct reset *r, struct entry *e, enum reset_side side)
{
    bool was = over(e);

    e->gone[side] = true;
    if (!was && over(e))
        r->left--;
}

/* The guest's TCP between two stations of the table, in a form that does not say which
 * connection's: a fragment could carry what no client may see. */
static bool may_be_ours(const struct reset *r, const struct packet *p)
{
    struct net_flow f = flow_of(p, RESET_GUEST);

    for (uint32_t i = 0; i < r->count; i++)
        if (!over(&r->entry[i]) && memcmp(r->entry[i].id.ip, f.ip, 16) == 0 &&
            memcmp(r->entry[i].id.peer_ip, f.peer_ip, 16) == 0)
            return true;
    return false;
}

bool reset_take(struct reset *r, enum reset_side from, const uint8_t *frame, size_t len,
                struct reset_frame *answer)
{
    struct entry key = {0}, *e;
    struct packet p;

    answer->len = 0;
    if (!packet_parse(&p, frame, len))
        return false;
    if (p.tcp == PACKET_TCP_UNPLACED)
        return from == RESET_GUEST && may_be_ours(r, &p);
    if (p.tcp != PACKET_TCP)
        return false;
    key.id = flow_of(&p, from);
    e = bsearch(&key, r->entry, r->count, sizeof(*e), by_id);
    if (!e || over(e))
        return false;
    if (p.flags & TCP_RST) {
        set_gone(r, e, from);
        return true;
    }
    if (from == RESET_CLIENT && (p.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
        set_gone(r, e, RESET_CLIENT);
        if (over(e))
            return false;
        segment(answer, &e->id, RESET_GUEST, TCP_ACK, e->id.ack - 1, e->id.seq);
        return true;
    }
    if (p.flags & TCP_ACK)
        segment(answer, &e->id, from, TCP_RST, p.ack, 0);
    return true;
}

bool reset_poke(struct reset *r, uint64_t now, struct reset_frame *poke)
{
    if (now < r->next)
        return false;
    for (; r->poke < r->count * POKES; r->poke++) {
        const struct entry *e = &r->entry[r->poke / POKES];
        const struct net_flow *f = &e->id;
        enum reset_side to = r->poke % POKES < POKE_GUEST_RST ? RESET_CLIENT : RESET_GUEST;
        uint32_t seq = to == RESET_CLIENT ? f->seq : f->ack;
        uint32_t ack = to == RESET_CLIENT ? f->ack : f->seq;

        if (e->gone[to])
            continue;
        if (r->poke % 2 == 0)
            segment(poke, f, to, TCP_RST, seq, 0);
        else
            segment(poke, f, to, TCP_ACK, seq - 1, ack);
        return true;
    }
    r->poke = 0;
    r->next = now + (FIRST_INTERVAL_NS << r->round++);
    return false;
}

void reset_poked(struct reset *r)
{
    r->poke++;
}

uint64_t reset_due(const struct reset *r, uint64_t now)
{
    uint64_t end = r->began + RESET_FOR_NS;

    if (r->left == 0 || now >= end)
        return UINT64_MAX;
    return r->next < end ? r->next : end;
}
