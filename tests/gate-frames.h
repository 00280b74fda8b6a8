/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Ethernet frames for the tests of netbuf/. */
#ifndef GATE_FRAMES_H
#define GATE_FRAMES_H

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

#endif
