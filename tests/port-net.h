/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A guest and a client, each in a network namespace, on the bridge or the router of a third, with a port between them: for tests of
 * the ports that leave the packets in the kernel.  "vg" and "vc" of the host are the ends of the guest's and the client's eth0.
 */
#ifndef REMUS_TEST_PORT_NET_H
#define REMUS_TEST_PORT_NET_H

#include "netbuf/port.h"

#define PATIENCE_MS 20000
#define QUIET_MS 200

struct net {
    int (*open)(struct net *n); /* the port; the test sets it */
    struct port *port;
    struct error err;
    bool bridged;
    int guest, client; /* packet sockets */
};

/* For cmocka. */
int setup_bridge(void **state);
int setup_router(void **state);
int teardown(void **state);

/* An interface of the host: it carries nothing before, and the kernel takes its time. */
void await_running(const char *name);

void open_port(struct net *n);
struct port_stats stats(struct net *n);
void barrier(struct net *n, uint64_t epoch);
void send_frame(int fd, const uint8_t *f, size_t len);

/* Numbered frames: of every kind in turn, VLANs, ARP, IPv6 and unknown ones among them, or with `udp` always that. */
void guest_sends_range(struct net *n, uint32_t from, uint32_t to, bool udp);
void client_gets_range(struct net *n, uint32_t from, uint32_t to, bool udp);
void client_gets_nothing(struct net *n);
void await_held(struct net *n, uint64_t frames);

/*
 * Tests of every such port.
 *
 * R1: nothing gets out when the daemon dies, nor while there is none.
 */
void test_r1_killed(void **state);
/* The guest's network is its own again, and stays so without a port. */
void test_leave(void **state);
/* At a takeover the guest's station is announced. */
void test_announced(void **state);
/* Large segments go through: TCP between kernels that leave the cutting to the device. */
void test_large_segments(void **state);

#endif
