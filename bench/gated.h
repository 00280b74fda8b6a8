/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The real gate and frames port without a VM: in place of the guest, the programs of a network
 * namespace behind a tap, at their native speed.
 *
 *     namespace "guest"                                              namespace of the port
 *     server - tap - thread "wire" - unix datagrams - frames port - tap - clients
 *
 * Checkpoints are simulated: nothing is paused or copied. When remusd would take one (remusd/pacer.h) a barrier is set,
 * and ack_ms later its epoch is released, as if the backup had acknowledged it then.
 */
#ifndef REMUS_GATED_H
#define REMUS_GATED_H

#include <stdbool.h>
#include <stdio.h>

#include "common/error.h"
#include "netbuf/port.h"

struct gated_config {
    const char *dir;       /* for the sockets; must exist */
    int guest_tap;         /* see gated_tap(); stays the caller's */
    const char *tap;       /* made in the caller's network namespace */
    const char *services;  /* "": strict */
    bool open_active;
    bool protect;          /* false: everything passes */
    unsigned interval_ms, ack_ms;
    FILE *log; /* NULL, or a line for each: "barrier EPOCH NS", "release EPOCH NS" (CLOCK_REALTIME) */
};

/* Makes a tap in the caller's network namespace; -1 with errno. */
int gated_tap(const char *name);

struct gated;

/* NULL after an error. */
struct gated *gated_open(const struct gated_config *cfg, struct error *err);
void gated_stats(struct gated *g, struct port_stats *stats);
/* How many there were. */
uint64_t gated_checkpoints(const struct gated *g);
void gated_close(struct gated *g);

#endif
