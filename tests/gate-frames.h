/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Ethernet frames for the tests of netbuf/. */
#ifndef GATE_FRAMES_H
#define GATE_FRAMES_H

#include <stddef.h>
#include <string.h>

#include "netbuf/packet.h"

static const uint8_t station[6] = {2, 0, 0, 0, 0, 1};

static inline size_t put_header(uint8_t *f, const uint8_t mac[6], const unsigned *vlan,
                                unsigned vlans, uint16_t ethertype)
{
    size_t at = 12;

    memset(f, 0xff, 6);
    memcpy(f + 6, mac, 6);
    for (unsigned i = 0; i < vlans; i++, at += 4) {
        put_be16(f + at, i + 1 < vlans ? ETHERTYPE_QINQ_ : ETHERTYPE_VLAN_);
        put_be16(f + at + 2, (uint16_t)vlan[i]);
    }
    put_be16(f + at, ethertype);
    return at + 2;
}

/* family 4 or 6, or 1 for ARP; returns the length. */
static inline size_t put_addressed(uint8_t *f, int family, const uint8_t mac[6], const uint8_t *ip,
                                   const unsigned *vlan, unsigned vlans)
{
    static const uint8_t arp[8] = {0, 1, 8, 0, 6, 4, 0, 1};
    size_t at = put_header(f, mac, vlan, vlans,
                           family == 1   ? ETHERTYPE_ARP_
                           : family == 4 ? ETHERTYPE_IPV4_
                                         : ETHERTYPE_IPV6_);

    memset(f + at, 0, 60);
    if (family == 1) {
        memcpy(f + at, arp, 8);
        memcpy(f + at + 8, mac, 6);
        memcpy(f + at + 14, ip, 4);
        return at + 28;
    }
    if (family == 4) {
        f[at] = 0x45;
        put_be16(f + at + 2, 20);
        memcpy(f + at + 12, ip, 4);
        return at + 20;
    }
    f[at] = 0x60;
    f[at + 6] = 59;
    memcpy(f + at + 8, ip, 16);
    return at + 40;
}

/* A TCP segment over IPv4 from `station` 10.0.0.1:sport to 10.0.0.2:dport; `id` goes into the IP
 * header's identification.  Returns the length. */
static inline size_t put_tcp(uint8_t *f, uint16_t id, uint16_t sport, uint16_t dport, uint32_t seq,
                             uint8_t flags, const void *data, size_t len)
{
    static const uint8_t peer[6] = {2, 0, 0, 0, 0, 2}, from[4] = {10, 0, 0, 1},
                         to[4] = {10, 0, 0, 2};
    size_t at = put_header(f, station, NULL, 0, ETHERTYPE_IPV4_);
    uint8_t *ip = f + at, *tcp = ip + 20;

    memcpy(f, peer, 6);
    memset(ip, 0, 40);
    ip[0] = 0x45;
    put_be16(ip + 2, (uint16_t)(40 + len));
    put_be16(ip + 4, id);
    ip[8] = 64;
    ip[9] = 6;
    memcpy(ip + 12, from, 4);
    memcpy(ip + 16, to, 4);
    put_be16(tcp, sport);
    put_be16(tcp + 2, dport);
    put_be32(tcp + 4, seq);
    put_be32(tcp + 8, 1);
    tcp[12] = 0x50;
    tcp[13] = flags;
    if (len)
        memcpy(tcp + 20, data, len);
    return at + 40 + len;
}

#endif
