/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * gated DIR GUEST-NAMESPACE SERVICES INTERVAL-MS ACK-MS LOG: see bench/gated.h. The taps are called
 * guest0 and client0; client0 is in the namespace that this runs in. SERVICES is "pass" for a gate
 * that holds nothing. Prints "ready"; then for each line on its standard input one with
 * "OPEN-FRAMES OPEN HELD STRICT LOST...", in the order of enum flow_lost; ends with its input.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/gated.h"

static int guest_tap(const char *namespace)
{
    int here = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), there, tap = -1;

    there = open(namespace, O_RDONLY | O_CLOEXEC);
    if (here >= 0 && there >= 0 && setns(there, CLONE_NEWNET) == 0) {
        tap = gated_tap("guest0");
        if (setns(here, CLONE_NEWNET) < 0)
            tap = -1;
    }
    close(there);
    close(here);
    return tap;
}

int main(int argc, char **argv)
{
    struct gated_config cfg = {.tap = "client0", .protect = true, .open_active = true};
    struct port_stats s;
    struct gated *g;
    struct error err;
    char line[16];

    if (argc != 7) {
        fprintf(stderr, "usage: gated DIR GUEST-NAMESPACE SERVICES INTERVAL-MS ACK-MS LOG\n");
        return 2;
    }
    cfg.dir = argv[1];
    cfg.guest_tap = guest_tap(argv[2]);
    cfg.services = argv[3];
    if (strcmp(cfg.services, "pass") == 0) {
        cfg.services = "";
        cfg.protect = false;
    }
    cfg.interval_ms = (unsigned)atoi(argv[4]);
    cfg.ack_ms = (unsigned)atoi(argv[5]);
    cfg.log = fopen(argv[6], "we");
    if (cfg.guest_tap < 0 || !cfg.log) {
        fprintf(stderr, "gated: %s\n", strerror(errno));
        return 1;
    }
    g = gated_open(&cfg, &err);
    if (!g) {
        fprintf(stderr, "gated: %s\n", err.text);
        return 1;
    }
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        gated_stats(g, &s);
        printf("%lu %lu %lu %lu", (unsigned long)s.by[FLOW_OPEN], (unsigned long)s.flows.open,
               (unsigned long)s.flows.held, (unsigned long)s.flows.strict);
        for (int i = 0; i < FLOW_LOSSES; i++)
            printf(" %lu", (unsigned long)s.flows.lost[i]);
        printf("\n");
        fflush(stdout);
    }
    gated_close(g);
    fclose(cfg.log);
    return 0;
}
