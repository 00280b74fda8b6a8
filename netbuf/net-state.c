/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "net-state.h"

#define HEADER 8u
#define ADDRESS 32u

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

int net_state_encode(struct buffer *out, const struct net_addresses *t)
{
    uint8_t *p;

    if (buffer_reserve(out, HEADER + NET_ADDRESSES_MAX * ADDRESS) < 0)
        return -1;
    p = out->data + out->len;
    put_be16(p, NET_STATE_VERSION);
    put_be16(p + 2, (uint16_t)t->count);
    put_be32(p + 4, 0);
    memcpy(p + HEADER, t->entry, t->count * sizeof(t->entry[0]));
    out->len += HEADER + t->count * ADDRESS;
    return 0;
}

static int check_address(const struct net_address *a, unsigned i, struct error *err)
{
    if (a->family != 0 && a->family != 4 && a->family != 6)
        return error_set(err, "network state: address %u has family %u, not 0, 4 or 6", i,
                         a->family);
    if (a->tags > ETH_TAGS_MAX)
        return error_set(err, "network state: address %u has %u VLAN tags, at most %u", i, a->tags,
                         ETH_TAGS_MAX);
    for (unsigned k = 0; k < a->tags; k++) {
        unsigned tpid = get_be16(a->tag + k * 4);
        if (tpid != ETHERTYPE_VLAN_ && tpid != ETHERTYPE_QINQ_)
            return error_set(err, "network state: address %u has a VLAN tag of type 0x%04x", i,
                             tpid);
    }
    if (!is_station_mac(a->mac) || (a->family && !is_station_ip(a->family, a->ip)))
        return error_set(err, "network state: address %u is not one that a station can have", i);
    return 0;
}

int net_state_decode(struct net_addresses *t, const uint8_t *data, size_t len, struct error *err)
{
    struct net_addresses out = {0};

    if (len == 0) {
        *t = out;
        return 0;
    }
    if (len < HEADER)
        return error_set(err, "network state: %zu octets, shorter than its header of %u", len,
                         HEADER);
    if (get_be16(data) != NET_STATE_VERSION)
        return error_set(err, "network state: version %u, this build knows %u", get_be16(data),
                         NET_STATE_VERSION);
    out.count = get_be16(data + 2);
    if (out.count > NET_ADDRESSES_MAX)
        return error_set(err, "network state: %u addresses, at most %u", out.count,
                         NET_ADDRESSES_MAX);
    if (get_be32(data + 4) != 0)
        return error_set(err, "network state: %u open flows, version 1 has none",
                         get_be32(data + 4));
    if (len != HEADER + out.count * ADDRESS)
        return error_set(err, "network state: %zu octets, %u addresses make %u", len, out.count,
                         HEADER + out.count * ADDRESS);
    memcpy(out.entry, data + HEADER, out.count * sizeof(out.entry[0]));
    for (unsigned i = 0; i < out.count; i++)
        if (check_address(&out.entry[i], i, err) < 0)
            return -1;
    *t = out;
    return 0;
}
