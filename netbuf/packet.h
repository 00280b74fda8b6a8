/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads the headers of one Ethernet frame: IEEE 802.3 with up to two VLAN tags (802.1Q, 802.1ad),
 * ARP (RFC 826), IPv4 (RFC 791), IPv6 with extension headers (RFC 8200), TCP (RFC 9293).  Pure;
 * every length is checked, nothing is copied: pointers point into the frame.
 */
#ifndef REMUS_PACKET_H
#define REMUS_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ETH_HEADER 14u
#define ETH_TAGS_MAX 2u
#define ETH_MIN 60u /* shortest frame on the wire, without its checksum */
#define ETHERTYPE_ARP_ 0x0806u
#define ETHERTYPE_RARP_ 0x8035u
#define ETHERTYPE_IPV4_ 0x0800u
#define ETHERTYPE_IPV6_ 0x86ddu
#define ETHERTYPE_VLAN_ 0x8100u
#define ETHERTYPE_QINQ_ 0x88a8u

#define TCP_FIN 0x01u
#define TCP_SYN 0x02u
#define TCP_RST 0x04u
#define TCP_ACK 0x10u
#define TCP_URG 0x20u

enum packet_tcp {
    PACKET_NOT_TCP,
    PACKET_TCP,
    PACKET_TCP_UNPLACED, /* TCP, but a fragment or malformed: nobody can say which connection's */
};

struct packet {
    const uint8_t *dst_mac, *src_mac;
    const uint8_t *tag; /* `tags` times TPID, TCI: 4 octets each */
    unsigned tags;
    uint16_t ethertype;       /* behind the tags */
    unsigned family;          /* 4, 6, or 0: no address of the sender in it */
    uint8_t dscp;             /* RFC 2474; 0 without an IP header */
    const uint8_t *src, *dst; /* 4 or 16 octets; NULL when family is 0 */

    enum packet_tcp tcp;
    uint16_t sport, dport; /* from here on only with PACKET_TCP */
    uint32_t seq, ack;
    uint8_t flags;
    const uint8_t *data;
    size_t data_len;
};

/* False when the frame is shorter than its Ethernet header.  A frame whose network header is short
 * or lies about its length has family 0. */
bool packet_parse(struct packet *p, const uint8_t *frame, size_t len);

static inline uint16_t get_be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t get_be32(const uint8_t *p)
{
    return (uint32_t)get_be16(p) << 16 | get_be16(p + 2);
}

static inline void put_be16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void put_be32(uint8_t *p, uint32_t v)
{
    put_be16(p, (uint16_t)(v >> 16));
    put_be16(p + 2, (uint16_t)v);
}

#endif
