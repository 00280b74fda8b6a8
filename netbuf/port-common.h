/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What ports share: their gate, and what a takeover makes them do. */
#ifndef REMUS_PORT_COMMON_H
#define REMUS_PORT_COMMON_H

#include <pthread.h>
#include <stdatomic.h>

#include "announce.h"
#include "gate.h"
#include "port.h"
#include "reset.h"

/* All zero: nothing to do. */
struct takeover {
    struct announcer announcer;
    struct reset *reset; /* NULL: no connection is being reset */
};

/*
 * The part of a port that has to do with its gate: a port's own structure begins with it.  The thread is the port's; it
 * sleeps on `wake` among other things.
 */
struct gate_port {
    struct port port;
    pthread_t thread;
    atomic_bool stop;
    int wake; /* eventfd */
    bool has_services;
    struct net_address fallback; /* announced when no address is known; all zero: nothing is */

    pthread_mutex_t lock; /* the gate, the takeover, and what the port adds */
    struct gate *gate;
    struct takeover takeover;
};

/* Before all else; gate_port_fini is right from here on. */
void gate_port_init(struct gate_port *g, const struct port_ops *ops);
/* mac: six pairs of hexadecimal digits, or "".  services: as in struct vm_config; NULL or "": none. */
int gate_port_open(struct gate_port *g, const char *mac, size_t queue_bytes, const char *services,
                   bool open_active, struct error *err);
/* Runs main(g) in the thread, with all signals blocked. */
int gate_port_start(struct gate_port *g, void *(*main)(void *), struct error *err);
/* Sets `stop`, wakes the thread and waits for its end. */
void gate_port_stop(struct gate_port *g);
void gate_port_fini(struct gate_port *g);

/* For struct port_ops. */
void gate_port_release(struct port *p, uint64_t epoch);
bool gate_port_urgent(struct port *p);
void gate_port_hold(struct port *p);
void gate_port_pass(struct port *p);
/* Sets the gate's addresses, the announcements and the resets, then lets the gate pass.  On failure nothing changes. */
int gate_port_activate(struct port *p, const uint8_t *net_state, size_t len, struct error *err);

/* The gate's part of the statistics. */
void gate_port_stats(struct gate_port *g, struct port_stats *stats);
/* Frees t->reset when it is of no more use; the time when it wants to poke. */
uint64_t takeover_reset_due(struct takeover *t, uint64_t now);

#endif
