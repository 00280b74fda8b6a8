/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "packet.h"

#define ARP_LEN 28u
#define IPV4_HEADER 20u
#define IPV6_HEADER 40u
#define TCP_HEADER 20u
#define EXTENSIONS_MAX 8u

enum { IP_TCP = 6, IP6_HOP_BY_HOP = 0, IP6_ROUTING = 43, IP6_FRAGMENT = 44, IP6_DESTINATION = 60 };

static void parse_arp(struct packet *p, const uint8_t *l3, size_t len)
{
    static const uint8_t ethernet_ipv4[6] = {0, 1, 8, 0, 6, 4};

    if (len < ARP_LEN || memcmp(l3, ethernet_ipv4, 6) != 0 || memcmp(l3 + 8, p->src_mac, 6) != 0)
        return;
    p->family = 4;
    p->src = l3 + 14;
    p->dst = l3 + 24;
}

static void parse_tcp(struct packet *p, const uint8_t *tcp, size_t len)
{
    size_t header;

    if (len < TCP_HEADER)
        return;
    header = (size_t)(tcp[12] >> 4) * 4;
    if (header < TCP_HEADER || header > len)
        return;
    p->tcp = PACKET_TCP;
    p->sport = get_be16(tcp);
    p->dport = get_be16(tcp + 2);
    p->seq = get_be32(tcp + 4);
    p->ack = get_be32(tcp + 8);
    p->flags = tcp[13];
    p->data = tcp + header;
    p->data_len = len - header;
}

static void parse_ipv4(struct packet *p, const uint8_t *l3, size_t len)
{
    size_t header, total;

    if (len < IPV4_HEADER || l3[0] >> 4 != 4)
        return;
    p->family = 4;
    p->dscp = l3[1] >> 2;
    p->src = l3 + 12;
    p->dst = l3 + 16;
    if (l3[9] != IP_TCP)
        return;
    p->tcp = PACKET_TCP_UNPLACED;
    header = (size_t)(l3[0] & 15) * 4;
    total = get_be16(l3 + 2);
    if (header < IPV4_HEADER || total < header || total > len || (get_be16(l3 + 6) & 0x3fff))
        return;
    parse_tcp(p, l3 + header, total - header);
}

static void parse_ipv6(struct packet *p, const uint8_t *l3, size_t len)
{
    size_t at = IPV6_HEADER, end;
    uint8_t next;

    if (len < IPV6_HEADER || l3[0] >> 4 != 6)
        return;
    p->family = 6;
    p->dscp = (uint8_t)((get_be16(l3) >> 4 & 0xff) >> 2);
    p->src = l3 + 8;
    p->dst = l3 + 24;
    next = l3[6];
    end = IPV6_HEADER + get_be16(l3 + 4);
    for (unsigned i = 0; next != IP_TCP; i++) {
        if (next != IP6_HOP_BY_HOP && next != IP6_ROUTING && next != IP6_FRAGMENT &&
            next != IP6_DESTINATION)
            return;
        if (at + 8 > len || i == EXTENSIONS_MAX || (next == IP6_FRAGMENT && l3[at] == IP_TCP)) {
            p->tcp = PACKET_TCP_UNPLACED;
            return;
        }
        if (next == IP6_FRAGMENT) /* of something else */
            return;
        next = l3[at];
        at += 8 + (size_t)l3[at + 1] * 8;
    }
    p->tcp = PACKET_TCP_UNPLACED;
    if (end <= len && at <= end)
        parse_tcp(p, l3 + at, end - at);
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
