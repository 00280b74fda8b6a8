/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "net-state.h"

#define HEADER 8u
#define ADDRESS 32u
#define FLOW 72u

static const uint8_t zero[16];

static bool is_station_mac(const uint8_t *mac)
{
    return !(mac[0] & 1) && memcmp(mac, zero, 6) != 0;
}

static bool is_station_ip(unsigned family, const uint8_t *ip)
{
    static const uint8_t loopback6[16] = {[15] = 1};

    if (family == 4)
        return ip[0] != 0 && ip[0] != 127 && ip[0] < 224;
    return ip[0] != 0xff && memcmp(ip, zero, 16) != 0 && memcmp(ip, loopback6, 16) != 0;
}

static size_t ip_len(unsigned family)
{
    return family == 4 ? 4 : family == 6 ? 16 : 0;
}

/* a covers b: the same station, and the same address if b has one. */
static bool covers(const struct net_address *a, const struct net_address *b)
{
    return (b->family == 0 || a->family == b->family) && a->tags == b->tags &&
           memcmp(a->mac, b->mac, sizeof(a->mac)) == 0 &&
           memcmp(a->tag, b->tag, sizeof(a->tag)) == 0 &&
           memcmp(a->ip, b->ip, ip_len(b->family)) == 0;
}

void net_addresses_learn(struct net_addresses *t, const struct packet *p, uint64_t now)
{
    struct net_address a = {.tags = (uint8_t)p->tags};
    unsigned at = 0;
    bool known = false;

    if (!is_station_mac(p->src_mac))
        return;
    memcpy(a.mac, p->src_mac, 6);
    for (unsigned i = 0; i < p->tags; i++) {
        memcpy(a.tag + i * 4, p->tag + i * 4, 4);
        a.tag[i * 4 + 2] &= 0x0f;
    }
    if (p->family && is_station_ip(p->family, p->src)) {
        a.family = (uint8_t)p->family;
        memcpy(a.ip, p->src, ip_len(a.family));
    }
    if (t->last < t->count && covers(&t->entry[t->last], &a)) {
        t->seen[t->last] = now;
        return;
    }
    for (unsigned i = 0; i < t->count; i++) {
        if (covers(&t->entry[i], &a) || covers(&a, &t->entry[i])) {
            at = i;
            known = true;
            break;
        }
        if (t->seen[i] < t->seen[at])
            at = i;
    }
    if (!known && t->count < NET_ADDRESSES_MAX)
        at = t->count++;
    if (!known || !covers(&t->entry[at], &a))
        t->entry[at] = a;
    t->seen[at] = now;
    t->last = at;
}

int net_state_encode(struct buffer *out, const struct net_addresses *t, unsigned flows_max)
{
    uint8_t *p;

    if (buffer_reserve(out, HEADER + NET_ADDRESSES_MAX * ADDRESS + flows_max * FLOW) < 0)
        return -1;
    p = out->data + out->len;
    put_be16(p, NET_STATE_VERSION);
    put_be16(p + 2, (uint16_t)t->count);
    put_be32(p + 4, 0);
    memcpy(p + HEADER, t->entry, t->count * sizeof(t->entry[0]));
    out->len += HEADER + t->count * ADDRESS;
    return 0;
}

void net_state_add_flow(struct buffer *out, size_t state, const struct net_flow *flow)
{
    uint8_t *p = out->data + out->len, *count = out->data + state + 4;

    memset(p, 0, FLOW);
    p[0] = flow->family;
    p[1] = flow->tags;
    memcpy(p + 2, flow->mac, 6);
    memcpy(p + 8, flow->peer_mac, 6);
    memcpy(p + 16, flow->tag, 8);
    memcpy(p + 24, flow->ip, 16);
    memcpy(p + 40, flow->peer_ip, 16);
    put_be16(p + 56, flow->port);
    put_be16(p + 58, flow->peer_port);
    put_be32(p + 60, flow->seq);
    put_be32(p + 64, flow->ack);
    out->len += FLOW;
    put_be32(count, get_be32(count) + 1);
}

void net_state_flow(const struct net_state *s, uint32_t i, struct net_flow *flow)
{
    const uint8_t *p = s->flow + (size_t)i * FLOW;

    *flow = (struct net_flow){.family = p[0],
                              .tags = p[1],
                              .port = get_be16(p + 56),
                              .peer_port = get_be16(p + 58),
                              .seq = get_be32(p + 60),
                              .ack = get_be32(p + 64)};
    memcpy(flow->mac, p + 2, 6);
    memcpy(flow->peer_mac, p + 8, 6);
    memcpy(flow->tag, p + 16, 8);
    memcpy(flow->ip, p + 24, 16);
    memcpy(flow->peer_ip, p + 40, 16);
}

static int check_tags(const uint8_t *tag, unsigned tags, const char *what, unsigned i,
                      struct error *err)
{
    if (tags > ETH_TAGS_MAX)
        return error_set(err, "network state: %s %u has %u VLAN tags, at most %u", what, i, tags,
                         ETH_TAGS_MAX);
    for (unsigned k = 0; k < tags; k++) {
        unsigned tpid = get_be16(tag + k * 4);
        if (tpid != ETHERTYPE_VLAN_ && tpid != ETHERTYPE_QINQ_)
            return error_set(err, "network state: %s %u has a VLAN tag of type 0x%04x", what, i,
                             tpid);
    }
    return 0;
}

static int check_address(const struct net_address *a, unsigned i, struct error *err)
{
    if (a->family != 0 && a->family != 4 && a->family != 6)
        return error_set(err, "network state: address %u has family %u, not 0, 4 or 6", i,
                         a->family);
    if (check_tags(a->tag, a->tags, "address", i, err) < 0)
        return -1;
    if (!is_station_mac(a->mac) || (a->family && !is_station_ip(a->family, a->ip)))
        return error_set(err, "network state: address %u is not one that a station can have", i);
    return 0;
}

bool net_flow_is_valid(const struct net_flow *f)
{
    return is_station_mac(f->mac) && is_station_mac(f->peer_mac) &&
           is_station_ip(f->family, f->ip) && is_station_ip(f->family, f->peer_ip);
}

static int check_flow(const struct net_flow *f, unsigned i, struct error *err)
{
    if (f->family != 4 && f->family != 6)
        return error_set(err, "network state: flow %u has family %u, not 4 or 6", i, f->family);
    if (check_tags(f->tag, f->tags, "flow", i, err) < 0)
        return -1;
    if (!net_flow_is_valid(f))
        return error_set(err, "network state: flow %u is not between two stations", i);
    return 0;
}

int net_state_decode(struct net_state *s, const uint8_t *data, size_t len, struct error *err)
{
    struct net_state out = {0};
    struct net_addresses *t = &out.addresses;
    struct net_flow flow;
    size_t want;

    if (len == 0) {
        *s = out;
        return 0;
    }
    if (len < HEADER)
        return error_set(err, "network state: %zu octets, shorter than its header of %u", len,
                         HEADER);
    if (get_be16(data) != NET_STATE_VERSION)
        return error_set(err, "network state: version %u, this build knows %u", get_be16(data),
                         NET_STATE_VERSION);
    t->count = get_be16(data + 2);
    if (t->count > NET_ADDRESSES_MAX)
        return error_set(err, "network state: %u addresses, at most %u", t->count,
                         NET_ADDRESSES_MAX);
    out.flows = get_be32(data + 4);
    if (out.flows > NET_FLOWS_MAX)
        return error_set(err, "network state: %u flows, at most %u", out.flows, NET_FLOWS_MAX);
    want = HEADER + t->count * ADDRESS + out.flows * FLOW;
    if (len != want)
        return error_set(err, "network state: %zu octets, %u addresses and %u flows make %zu", len,
                         t->count, out.flows, want);
    memcpy(t->entry, data + HEADER, t->count * sizeof(t->entry[0]));
    for (unsigned i = 0; i < t->count; i++)
        if (check_address(&t->entry[i], i, err) < 0)
            return -1;
    out.flow = data + HEADER + t->count * ADDRESS;
    for (unsigned i = 0; i < out.flows; i++) {
        net_state_flow(&out, i, &flow);
        if (check_flow(&flow, i, err) < 0)
            return -1;
    }
    *s = out;
    return 0;
}
