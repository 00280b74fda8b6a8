/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "packet.h"

#define ARP_LEN 28u
#define IPV4_HEADER 20u
#define IPV6_HEADER 40u

static void parse_arp(struct packet *p, const uint8_t *l3, size_t len)
{
    static const uint8_t ethernet_ipv4[6] = {0, 1, 8, 0, 6, 4};

    if (len < ARP_LEN || memcmp(l3, ethernet_ipv4, 6) != 0 || memcmp(l3 + 8, p->src_mac, 6) != 0)
        return;
    p->family = 4;
    p->arp = true;
    p->src = l3 + 14;
    p->dst = l3 + 24;
}

static void parse_ipv4(struct packet *p, const uint8_t *l3, size_t len)
{
    if (len < IPV4_HEADER || l3[0] >> 4 != 4)
        return;
    p->family = 4;
    p->src = l3 + 12;
    p->dst = l3 + 16;
}

static void parse_ipv6(struct packet *p, const uint8_t *l3, size_t len)
{
    if (len < IPV6_HEADER || l3[0] >> 4 != 6)
        return;
    p->family = 6;
    p->src = l3 + 8;
    p->dst = l3 + 24;
}

bool packet_parse(struct packet *p, const uint8_t *frame, size_t len)
{
    size_t at = ETH_HEADER;

    if (len < ETH_HEADER)
        return false;
    *p = (struct packet){.dst_mac = frame, .src_mac = frame + 6, .tag = frame + 12};
    p->ethertype = get_be16(frame + 12);
    while ((p->ethertype == ETHERTYPE_VLAN_ || p->ethertype == ETHERTYPE_QINQ_) &&
           p->tags < ETH_TAGS_MAX && at + 4 <= len) {
        p->ethertype = get_be16(frame + at + 2);
        p->tags++;
        at += 4;
    }
    if (p->ethertype == ETHERTYPE_ARP_)
        parse_arp(p, frame + at, len - at);
    else if (p->ethertype == ETHERTYPE_IPV4_)
        parse_ipv4(p, frame + at, len - at);
    else if (p->ethertype == ETHERTYPE_IPV6_)
        parse_ipv6(p, frame + at, len - at);
    return true;
}
