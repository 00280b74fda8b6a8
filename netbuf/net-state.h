/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a checkpoint says about the guest's network: its addresses, learned from what it sends, so
 * that the backup can announce them after a takeover.  Pure.
 *
 * Network state of a checkpoint, version 1, big-endian:
 *
 *      0     1     2     3     4     5     6     7    octet
 *     +-----------+-----------+-----------------------+
 *     | version   | addresses | flows                 |    flows: 0 in this version
 *     +-----------+-----------+-----------------------+
 *     | addresses * 32 octets                         |
 *     +-----------------------------------------------+
 *
 * one address:
 *
 *     +-----+-----+-----------------------------------+
 *     | fam | tags| MAC                               |    fam: 4, 6, or 0 (only the MAC is known)
 *     +-----+-----+-----------+-----------------------+
 *     | TPID, TCI (outer)     | TPID, TCI (inner)     |    tags: how many are used
 *     +-----------------------+-----------------------+    TCI: only the VLAN number
 *     | IP address, 16 octets (IPv4: the first 4)     |
 *     |                                               |    unused: zero on save, ignored on
 *     +-----------------------------------------------+    restore
 *
 * No octets at all mean a guest without a network.
 */
#ifndef REMUS_NET_STATE_H
#define REMUS_NET_STATE_H

#include "common/buffer.h"
#include "common/error.h"
#include "packet.h"

#define NET_ADDRESSES_MAX 16u
#define NET_STATE_VERSION 1u

struct net_address {
    uint8_t family; /* 4, 6, 0 */
    uint8_t tags;
    uint8_t mac[6];
    uint8_t tag[ETH_TAGS_MAX * 4]; /* as on the wire, without priority bits */
    uint8_t ip[16];
};
_Static_assert(sizeof(struct net_address) == 32, "as on the wire");

/* The guest's addresses; at the bound the one that was not seen for longest makes room (R9). */
struct net_addresses {
    struct net_address entry[NET_ADDRESSES_MAX];
    uint64_t seen[NET_ADDRESSES_MAX]; /* ns */
    unsigned count;
    unsigned last; /* entry of the frame before: most frames end the search there */
};

/* p: a frame that the guest sent.  Addresses that cannot be a station's own (multicast, 0.0.0.0,
 * ::, loopback) are not learned. */
void net_addresses_learn(struct net_addresses *t, const struct packet *p, uint64_t now);

/* Appends the network state to out.  -1 with ENOMEM. */
int net_state_encode(struct buffer *out, const struct net_addresses *t);

/* Checks and reads it (R10); on failure t is as it was. */
int net_state_decode(struct net_addresses *t, const uint8_t *data, size_t len, struct error *err);

#endif
