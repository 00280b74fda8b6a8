/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a checkpoint says about the guest's network: its addresses, learned from what it sends, so
 * that the backup can announce them after a takeover; and the flows that may have shown their
 * clients more than the checkpoint knows (R3), so that the backup can reset them.  Pure.
 *
 * Network state of a checkpoint, version 1, big-endian:
 *
 *      0     1     2     3     4     5     6     7    octet
 *     +-----------+-----------+-----------------------+
 *     | version   | addresses | flows                 |    flows: open flows
 *     +-----------+-----------+-----------------------+
 *     | addresses * 32 octets                         |
 *     +-----------------------------------------------+
 *     | flows * 72 octets                             |
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
 * one flow, as the guest sees it:
 *
 *     +-----+-----+-----------------------------------+
 *     | fam | tags| MAC of the guest                  |    fam: 4 or 6
 *     +-----+-----+-----------------------+-----------+
 *     | MAC of the next hop to the client | 0         |
 *     +-----------------------+-----------+-----------+
 *     | TPID, TCI (outer)     | TPID, TCI (inner)     |
 *     +-----------------------+-----------------------+
 *     | IP address of the guest, 16 octets            |
 *     |                                               |
 *     +-----------------------------------------------+
 *     | IP address of the client, 16 octets           |
 *     |                                               |
 *     +-----------+-----------+-----------------------+
 *     | port      | client's  | sequence number       |    next that the guest sends
 *     +-----------+-----------+-----------------------+
 *     | acknowledgement       | 0                     |    last that the guest sent
 *     +-----------------------+-----------------------+
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
#define NET_FLOWS_MAX 4096u

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

struct net_flow {
    uint8_t family, tags;
    uint8_t mac[6], peer_mac[6];
    uint8_t tag[ETH_TAGS_MAX * 4];
    uint8_t ip[16], peer_ip[16];
    uint16_t port, peer_port;
    uint32_t seq, ack;
};

/*
 * Appends the network state without flows to out, with room for flows_max of them, so that adding
 * cannot fail.  -1 with ENOMEM.
 */
int net_state_encode(struct buffer *out, const struct net_addresses *t, unsigned flows_max);

/* state: where the network state begins in out->data. */
void net_state_add_flow(struct buffer *out, size_t state, const struct net_flow *flow);

/* Between two stations: only such flows may be added. */
bool net_flow_is_valid(const struct net_flow *flow);

struct net_state {
    struct net_addresses addresses;
    uint32_t flows;
    const uint8_t *flow; /* points into what was decoded */
};

/* Checks and reads it (R10); on failure s is as it was. */
int net_state_decode(struct net_state *s, const uint8_t *data, size_t len, struct error *err);

/* i < s->flows */
void net_state_flow(const struct net_state *s, uint32_t i, struct net_flow *flow);

#endif
