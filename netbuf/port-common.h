/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What ports share: their gate, and what a takeover makes them do. */
#ifndef REMUS_PORT_COMMON_H
#define REMUS_PORT_COMMON_H

#include "announce.h"
#include "gate.h"
#include "port.h"
#include "reset.h"

/* services: as in struct vm_config; NULL or "": none. */
struct gate *port_gate_new(size_t queue_bytes, const char *services, bool open_active, struct error *err);

/* The gate's part of the statistics. */
void port_gate_stats(const struct gate *g, struct port_stats *stats);

/* mac: six pairs of hexadecimal digits, or "": *a is all zero. */
int port_station(const char *mac, struct net_address *a, struct error *err);

/* All zero: nothing to do. */
struct takeover {
    struct announcer announcer;
    struct reset *reset; /* NULL: no connection is being reset */
};

/*
 * Sets g's addresses, the announcements and the resets from the network state of the activated checkpoint; the
 * caller lets g pass then.  fallback: announced when no address is known, unless it is all zero.  On failure nothing changes.
 */
int takeover_begin(struct takeover *t, struct gate *g, const struct net_address *fallback,
                   const uint8_t *net_state, size_t len, struct error *err);
/* Frees t->reset when it is of no more use; the time when it wants to poke. */
uint64_t takeover_reset_due(struct takeover *t, uint64_t now);

#endif
