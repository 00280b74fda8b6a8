/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "announce.h"
#include "common/clock.h"

static const unsigned round_ms[] = {0, 50, 200, 1000};
#define ROUNDS (sizeof(round_ms) / sizeof(round_ms[0]))

enum { ARP_REQUEST = 1, ARP_REPLY = 2, RARP_REQUEST = 3 };

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
static const uint8_t all_nodes_mac[6] = {0x33, 0x33, 0, 0, 0, 1};
static const uint8_t all_nodes[16] = {0xff, 2, [15] = 1};

static size_t put_ethernet(uint8_t *f, const struct net_address *a, const uint8_t *dst,
                           uint16_t ethertype)
{
    size_t at = 12 + a->tags * 4u;

    memcpy(f, dst, 6);
    memcpy(f + 6, a->mac, 6);
    memcpy(f + 12, a->tag, a->tags * 4u);
    put_be16(f + at, ethertype);
    return at + 2;
}

static size_t put_arp(uint8_t *f, const struct net_address *a, uint16_t ethertype, uint16_t op)
{
    size_t at = put_ethernet(f, a, broadcast, ethertype);
    uint8_t *arp = f + at;

    put_be16(arp, 1);
    put_be16(arp + 2, ETHERTYPE_IPV4_);
    arp[4] = 6;
    arp[5] = 4;
    put_be16(arp + 6, op);
    memcpy(arp + 8, a->mac, 6);
    if (op != RARP_REQUEST) {
        memcpy(arp + 14, a->ip, 4);
        memcpy(arp + 24, a->ip, 4);
    }
    if (op != ARP_REQUEST)
        memcpy(arp + 18, a->mac, 6);
    return at + 28;
}

/* Internet checksum (RFC 1071) of the pseudo header and `len` octets of ICMPv6. */
static uint16_t icmp6_checksum(const uint8_t *src, const uint8_t *dst, const uint8_t *icmp,
                               size_t len)
{
    uint32_t sum = (uint32_t)len + 58;

    for (size_t i = 0; i < 16; i += 2)
        sum += (uint32_t)get_be16(src + i) + get_be16(dst + i);
    for (size_t i = 0; i < len; i += 2)
        sum += get_be16(icmp + i);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static size_t put_neighbour_advertisement(uint8_t *f, const struct net_address *a)
{
    size_t at = put_ethernet(f, a, all_nodes_mac, ETHERTYPE_IPV6_);
    uint8_t *ip = f + at, *icmp = ip + 40;

    ip[0] = 0x60;
    put_be16(ip + 4, 32);
    ip[6] = 58;
    ip[7] = 255;
    memcpy(ip + 8, a->ip, 16);
    memcpy(ip + 24, all_nodes, 16);
    icmp[0] = 136;
    icmp[4] = 0x20;
    memcpy(icmp + 8, a->ip, 16);
    icmp[24] = 2;
    icmp[25] = 1;
    memcpy(icmp + 26, a->mac, 6);
    put_be16(icmp + 2, icmp6_checksum(ip + 8, ip + 24, icmp, 32));
    return at + 72;
}

size_t announce_frame(const struct net_address *a, unsigned i, uint8_t frame[ANNOUNCE_FRAME_MAX])
{
    size_t len = 0;

    memset(frame, 0, ANNOUNCE_FRAME_MAX);
    if (a->family == 4 && i < 2)
        len = put_arp(frame, a, ETHERTYPE_ARP_, i == 0 ? ARP_REQUEST : ARP_REPLY);
    else if (a->family == 6 && i == 0)
        len = put_neighbour_advertisement(frame, a);
    else if (a->family == 0 && i == 0)
        len = put_arp(frame, a, ETHERTYPE_RARP_, RARP_REQUEST);
    return len && len < ETH_MIN ? ETH_MIN : len;
}

void announcer_start(struct announcer *a, const struct net_addresses *known, uint64_t now)
{
    a->count = a->next = a->round = 0;
    a->start = now;
    for (unsigned i = 0; i < known->count; i++)
        for (unsigned k = 0; k < ANNOUNCE_PER_ADDRESS; k++) {
            size_t len = announce_frame(&known->entry[i], k, a->frame[a->count].data);
            if (len)
                a->frame[a->count++].len = len;
        }
}

uint64_t announcer_due(const struct announcer *a)
{
    return a->count == 0 || a->round == ROUNDS ? TIME_NEVER : a->start + round_ms[a->round] * NS_PER_MS;
}

bool announcer_next(struct announcer *a, uint64_t now, struct iovec *v)
{
    if (now < announcer_due(a))
        return false;
    *v = (struct iovec){a->frame[a->next].data, a->frame[a->next].len};
    return true;
}

void announcer_sent(struct announcer *a)
{
    if (++a->next < a->count)
        return;
    a->next = 0;
    a->round++;
}
