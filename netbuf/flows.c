/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flows.h"

#define NONE UINT32_MAX
#define EVICT_LOOK 16u /* entries looked at to find a place in a full table */

const char *const flow_verdict_names[FLOW_VERDICTS] = {"other", "untracked", "strict", "outside",
                                                       "begun", "behind",    "open"};
const char *const flow_lost_names[FLOW_LOSSES] = {"gap", "packet", "encrypted", "replication",
                                                  "protocol"};

enum mode { FREE, HELD, OPEN, STRICT };
enum part { IDLE, BUSY, WAITS, PARTS }; /* in what flows_urgent() is about */

struct flow {
    struct net_flow id;  /* also where the guest's stream is: id.seq is the next new octet */
    uint32_t client_seq; /* where the client's is */
    const struct parser *parser; /* NULL: the guest marks its packets */
    _Alignas(8) uint8_t state[PARSER_STATE_MAX];
    enum mode mode;
    bool wish;   /* held, and wants to be open */
    bool block;  /* inside of a transaction */
    uint8_t linger; /* outside of one: barriers without a packet queued that it stays open for */
    bool active; /* in flows->active */
    bool waits;  /* a packet of a transaction waits for a checkpoint that has not been taken */
    enum part part;
    bool closed; /* the guest has sent FIN or RST */
    /* Every checkpoint taken since this one, and it, lists the flow; 0: the last one taken does
     * not. */
    uint64_t listed_since;
    uint32_t queued; /* its packets in the gate's queue */
    uint64_t seen;
    uint32_t next; /* in its hash chain, or in the list of free entries */
};

struct flows {
    struct {
        uint16_t port;
        const struct parser *parser;
    } service[FLOWS_SERVICES_MAX];
    unsigned services;
    uint8_t mark; /* 0: none */

    struct flow *flow;
    unsigned max;
    uint32_t *bucket; /* buckets are a power of two */
    uint32_t mask;
    uint32_t free;
    uint32_t hand; /* where the search for a place goes on */

    /* Flows that are open, wish to be, or are listed: barriers and acknowledgements look at these
     * only. */
    uint32_t *active;
    unsigned actives;
    uint8_t linger;
    bool all_lost; /* no flow is anything but strict */
    unsigned parts[PARTS]; /* how many flows are */

    struct flows_stats stats;
};

struct flows *flows_new(unsigned max)
{
    struct flows *f;
    uint32_t buckets = 1;

    if (max == 0 || max > NET_FLOWS_MAX) {
        errno = EINVAL;
        return NULL;
    }
    while (buckets < max)
        buckets *= 2;
    f = calloc(1, sizeof(*f));
    if (!f)
        return NULL;
    f->flow = calloc(max, sizeof(*f->flow));
    f->bucket = malloc(buckets * sizeof(*f->bucket));
    f->active = malloc(max * sizeof(*f->active));
    if (!f->flow || !f->bucket || !f->active) {
        flows_free(f);
        return NULL;
    }
    f->max = f->parts[IDLE] = max;
    f->mask = buckets - 1;
    memset(f->bucket, 0xff, buckets * sizeof(*f->bucket));
    for (uint32_t i = 0; i < max; i++)
        f->flow[i].next = i + 1 < max ? i + 1 : NONE;
    return f;
}

void flows_free(struct flows *f)
{
    if (!f)
        return;
    free(f->flow);
    free(f->bucket);
    free(f->active);
    free(f);
}

unsigned flows_max(const struct flows *f)
{
    return f->max;
}

int flows_add_service(struct flows *f, uint16_t port, const struct parser *parser)
{
    if (f->services == FLOWS_SERVICES_MAX) {
        errno = ENOSPC;
        return -1;
    }
    f->service[f->services].port = port;
    f->service[f->services++].parser = parser;
    return 0;
}

void flows_linger(struct flows *f, uint8_t checkpoints)
{
    f->linger = checkpoints;
}

static const struct parser *service_of(const struct flows *f, uint16_t port)
{
    for (unsigned i = 0; i < f->services; i++)
        if (f->service[i].port == port)
            return f->service[i].parser;
    return NULL;
}

void flows_set_mark(struct flows *f, uint8_t dscp)
{
    f->mark = dscp;
}

bool flows_reads_clients(const struct flows *f)
{
    for (unsigned i = 0; i < f->services; i++)
        if (f->service[i].parser->from_client)
            return true;
    return false;
}

/* Of a packet that the guest sends. */
static void identify(struct net_flow *id, const struct packet *p)
{
    size_t ip_len = p->family == 4 ? 4 : 16;

    *id = (struct net_flow){.family = (uint8_t)p->family,
                            .tags = (uint8_t)p->tags,
                            .port = p->sport,
                            .peer_port = p->dport,
                            .seq = p->seq,
                            .ack = p->ack};
    memcpy(id->mac, p->src_mac, 6);
    memcpy(id->peer_mac, p->dst_mac, 6);
    memcpy(id->ip, p->src, ip_len);
    memcpy(id->peer_ip, p->dst, ip_len);
    for (unsigned i = 0; i < p->tags; i++) {
        memcpy(id->tag + i * 4, p->tag + i * 4, 4);
        id->tag[i * 4 + 2] &= 0x0f;
    }
}

static bool same(const struct net_flow *a, const struct net_flow *b)
{
    return a->port == b->port && a->peer_port == b->peer_port && a->family == b->family &&
           memcmp(a->ip, b->ip, 16) == 0 && memcmp(a->peer_ip, b->peer_ip, 16) == 0 &&
           memcmp(a->tag, b->tag, 8) == 0;
}

static uint32_t *bucket_of(const struct flows *f, const struct net_flow *id)
{
    uint64_t h = (uint64_t)id->port << 16 | id->peer_port, word;

    for (size_t i = 0; i < 16; i += 8) {
        memcpy(&word, id->ip + i, 8);
        h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        memcpy(&word, id->peer_ip + i, 8);
        h = (h ^ word ^ h >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
    }
    return &f->bucket[(h ^ h >> 32) & f->mask];
}

static struct flow *find(const struct flows *f, const struct net_flow *id)
{
    for (uint32_t i = *bucket_of(f, id); i != NONE; i = f->flow[i].next)
        if (same(&f->flow[i].id, id))
            return &f->flow[i];
    return NULL;
}

/* After every change of it. */
static void count(struct flows *f, struct flow *fl)
{
    enum part part = fl->waits ? WAITS : fl->block || fl->linger ? BUSY : IDLE;

    f->parts[fl->part]--;
    fl->part = fl->mode == STRICT || fl->closed ? IDLE : part;
    f->parts[fl->part]++;
}

bool flows_urgent(const struct flows *f)
{
    return f->parts[WAITS] > 0 && 2 * f->parts[WAITS] >= f->parts[BUSY];
}

static void set_active(struct flows *f, struct flow *fl)
{
    if (!fl->active)
        f->active[f->actives++] = (uint32_t)(fl - f->flow);
    fl->active = true;
}

static void set_inactive(struct flows *f, unsigned i)
{
    f->flow[f->active[i]].active = false;
    f->active[i] = f->active[--f->actives];
}

/* Its packets are strict from now on.  Never while one is queued: the queue would name another
 * flow. */
static void forget(struct flows *f, struct flow *fl)
{
    uint32_t me = (uint32_t)(fl - f->flow), *link = bucket_of(f, &fl->id);

    while (*link != me)
        link = &f->flow[*link].next;
    *link = fl->next;
    for (unsigned i = 0; fl->active && i < f->actives; i++)
        if (f->active[i] == me)
            set_inactive(f, i);
    f->parts[fl->part]--;
    f->parts[IDLE]++;
    *fl = (struct flow){.mode = FREE, .next = f->free};
    f->free = me;
}

/* R9: a full table makes room by forgetting the flow, of a few, that was not seen for longest and
 * is held. */
static bool make_room(struct flows *f)
{
    struct flow *oldest = NULL;

    for (unsigned i = 0; f->free == NONE && i < EVICT_LOOK && i < f->max; i++) {
        struct flow *fl = &f->flow[f->hand];
        f->hand = (f->hand + 1) % f->max;
        if (fl->queued == 0 && fl->mode != OPEN && !fl->wish &&
            (!oldest || fl->seen < oldest->seen))
            oldest = fl;
    }
    if (oldest)
        forget(f, oldest);
    return f->free != NONE;
}

/* A connection begins: the guest's SYN-ACK. */
static void begin(struct flows *f, struct flow *fl, const struct parser *parser,
                  const struct packet *p)
{
    f->all_lost = false;
    fl->parser = parser;
    fl->mode = HELD;
    fl->wish = fl->closed = fl->block = fl->waits = false;
    fl->linger = 0;
    fl->id.seq = p->seq + 1;
    fl->client_seq = p->ack;
    memset(fl->state, 0, sizeof(fl->state));
    if (parser)
        parser->init(fl->state);
}

static struct flow *add(struct flows *f, const struct parser *parser, const struct net_flow *id)
{
    uint32_t *bucket, me;
    struct flow *fl;

    if (!make_room(f)) {
        f->stats.untracked++;
        return NULL;
    }
    me = f->free;
    fl = &f->flow[me];
    f->free = fl->next;
    bucket = bucket_of(f, id);
    *fl = (struct flow){.id = *id, .parser = parser, .mode = HELD, .next = *bucket};
    *bucket = me;
    return fl;
}

static void lose(struct flows *f, struct flow *fl, enum flow_lost why)
{
    if (fl->mode != STRICT)
        f->stats.lost[why]++;
    fl->mode = STRICT;
    fl->wish = false;
    count(f, fl);
}

static enum flow_lost parser_lost(unsigned parsed)
{
    if (parsed & PARSED_ENCRYPTED)
        return FLOW_LOST_ENCRYPTED;
    return parsed & PARSED_REPLICATION ? FLOW_LOST_REPLICATION : FLOW_LOST_PROTOCOL;
}

/* Hands the parser what is new in the packet, whose first octet is `old` behind the expected one;
 * PARSED_ flags. */
static unsigned follow(const struct flows *f, struct flow *fl, const struct packet *p, size_t old)
{
    if (old >= p->data_len) /* sent before: whatever it was, it has been judged */
        return fl->block ? PARSED_IN_BLOCK : 0;
    fl->id.seq += (uint32_t)(p->data_len - old);
    if (!fl->parser)
        return p->dscp == f->mark ? PARSED_IN_BLOCK : PARSED_END;
    return fl->parser->from_guest(fl->state, p->data + old, p->data_len - old);
}

/* Every flow may be concerned. */
static void lose_all(struct flows *f)
{
    for (unsigned i = 0; !f->all_lost && i < f->max; i++)
        if (f->flow[i].mode != FREE)
            lose(f, &f->flow[i], FLOW_LOST_PACKET);
    f->all_lost = true;
}

/* A packet of a flow that is not strict. */
static enum flow_verdict judge(struct flows *f, struct flow *fl, const struct packet *p)
{
    int32_t ahead = (int32_t)(p->seq - fl->id.seq); /* of what was expected */
    unsigned parsed = PARSED_END;

    if (!(p->flags & TCP_RST)) {
        if (p->flags & TCP_URG || ahead > 0) {
            lose(f, fl, ahead > 0 ? FLOW_LOST_GAP : FLOW_LOST_PACKET);
            return FLOW_STRICT;
        }
        parsed = follow(f, fl, p, (size_t)(-(int64_t)ahead));
    }
    if (p->flags & (TCP_FIN | TCP_RST)) {
        fl->id.seq += p->flags & TCP_FIN && !fl->closed;
        fl->closed = true;
        parsed = PARSED_END;
    }
    if (parsed & PARSED_LOST) {
        lose(f, fl, parser_lost(parsed));
        return FLOW_STRICT;
    }
    if (parsed & PARSED_END) {
        fl->mode = HELD;
        fl->waits |= fl->block;
        fl->linger = fl->block ? f->linger : 0;
        fl->wish = fl->linger > 0;
        fl->block = false;
    }
    if (parsed & PARSED_IN_BLOCK) {
        fl->block = true;
        fl->wish = fl->mode == HELD;
        fl->waits |= fl->wish;
    }
    if (fl->closed)
        fl->wish = fl->block = false;
    if (fl->wish)
        set_active(f, fl);
    count(f, fl);
    if (fl->mode == OPEN)
        return fl->queued == 0 ? FLOW_OPEN : FLOW_BEHIND;
    return parsed & PARSED_END || !fl->block ? FLOW_OUTSIDE : FLOW_BEGUN;
}

static bool begins_flow(const struct flows *f, const struct parser *parser, const struct packet *p)
{
    if (parser)
        return p->flags & TCP_SYN && p->flags & TCP_ACK;
    return p->dscp == f->mark && p->data_len > 0 && !(p->flags & TCP_SYN);
}

enum flow_verdict flows_sent(struct flows *f, const struct packet *p, uint64_t now, uint32_t *flow)
{
    const struct parser *parser;
    struct net_flow id;
    struct flow *fl;

    *flow = 0;
    if (p->tcp == PACKET_TCP_UNPLACED)
        lose_all(f);
    if (p->tcp != PACKET_TCP)
        return FLOW_OTHER;
    parser = service_of(f, p->sport);
    if (!parser && !f->mark)
        return FLOW_OTHER;
    identify(&id, p);
    fl = find(f, &id);
    if (!fl && net_flow_is_valid(&id) && begins_flow(f, parser, p))
        fl = add(f, parser, &id);
    if (!fl)
        return parser ? FLOW_UNTRACKED : FLOW_OTHER;
    *flow = (uint32_t)(fl - f->flow) + 1;
    fl->seen = now;
    if (!net_flow_is_valid(&id)) {
        lose(f, fl, FLOW_LOST_PACKET);
        return FLOW_STRICT;
    }
    if (p->flags & TCP_SYN) {
        begin(f, fl, parser, p);
        if (p->data_len || !(p->flags & TCP_ACK))
            lose(f, fl, FLOW_LOST_PACKET);
        count(f, fl);
        return FLOW_OUTSIDE;
    }
    if (p->flags & TCP_ACK)
        fl->id.ack = p->ack;
    memcpy(fl->id.peer_mac, id.peer_mac, 6);
    memcpy(fl->id.mac, id.mac, 6);
    if (fl->mode == STRICT) {
        fl->closed |= (p->flags & (TCP_FIN | TCP_RST)) != 0;
        return FLOW_STRICT;
    }
    return judge(f, fl, p);
}

void flows_received(struct flows *f, const struct packet *p)
{
    const struct parser *parser = p->tcp == PACKET_TCP ? service_of(f, p->dport) : NULL;
    struct packet back = *p;
    struct net_flow id;
    struct flow *fl;
    int32_t ahead;
    unsigned parsed;
    size_t old;

    if (!parser || !parser->from_client || p->data_len == 0 || p->flags & TCP_SYN)
        return;
    back.src = p->dst;
    back.dst = p->src;
    back.sport = p->dport;
    back.dport = p->sport;
    identify(&id, &back);
    fl = find(f, &id);
    if (!fl || fl->mode == STRICT)
        return;
    ahead = (int32_t)(p->seq - fl->client_seq);
    old = (size_t)(-(int64_t)ahead);
    if (p->flags & TCP_URG || ahead > 0) {
        lose(f, fl, ahead > 0 ? FLOW_LOST_GAP : FLOW_LOST_PACKET);
        return;
    }
    if (old >= p->data_len)
        return;
    fl->client_seq += (uint32_t)(p->data_len - old);
    parsed = parser->from_client(fl->state, p->data + old, p->data_len - old);
    if (parsed & PARSED_LOST)
        lose(f, fl, parser_lost(parsed));
}

void flows_queued(struct flows *f, uint32_t flow)
{
    if (flow)
        f->flow[flow - 1].queued++;
}

void flows_left(struct flows *f, uint32_t flow)
{
    struct flow *fl;

    if (!flow)
        return;
    fl = &f->flow[flow - 1];
    fl->queued--;
    if (fl->queued == 0 && fl->closed)
        forget(f, fl);
}

void flows_barrier(struct flows *f, uint64_t epoch, struct buffer *out, size_t state)
{
    for (unsigned i = f->actives; i-- > 0;) {
        struct flow *fl = &f->flow[f->active[i]];
        fl->waits = false;
        if (fl->mode != STRICT && !fl->block) {
            if (fl->linger == 0) {
                fl->mode = HELD;
                fl->wish = false;
            } else if (fl->queued == 0) {
                fl->linger--;
            }
        }
        count(f, fl);
        if (fl->mode == OPEN || fl->wish) {
            net_state_add_flow(out, state, &fl->id);
            if (!fl->listed_since)
                fl->listed_since = epoch;
        } else {
            fl->listed_since = 0;
            set_inactive(f, i);
        }
    }
}

void flows_acked(struct flows *f, uint64_t epoch)
{
    for (unsigned i = 0; i < f->actives; i++) {
        struct flow *fl = &f->flow[f->active[i]];
        if (fl->wish && fl->listed_since && fl->listed_since <= epoch) {
            fl->mode = OPEN;
            fl->wish = false;
        }
    }
}

void flows_hold(struct flows *f)
{
    for (unsigned i = f->actives; i-- > 0;) {
        struct flow *fl = &f->flow[f->active[i]];
        fl->listed_since = 0;
        fl->wish |= fl->mode == OPEN;
        if (fl->mode == OPEN)
            fl->mode = HELD;
    }
}

void flows_stats(const struct flows *f, struct flows_stats *stats)
{
    *stats = f->stats;
    for (unsigned i = 0; i < f->max; i++) {
        stats->held += f->flow[i].mode == HELD;
        stats->open += f->flow[i].mode == OPEN;
        stats->strict += f->flow[i].mode == STRICT;
    }
}
