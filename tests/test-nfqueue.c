/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The nfqueue port between a guest and a client, each in a network namespace, on the bridge or the router of a third.
 * As root, with nft and a kernel that has nft's queues; tests/nfqueue-guest runs it on Debian's.
 */
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <sys/socket.h>

#include "gate-frames.h"
#include "netbuf/gate.h"
#include "port-net.h"

#define QUEUE 7 /* and 8 */

static struct nfqueue_port_config cfg;

static int open_nfqueue(struct net *n)
{
    return nfqueue_port_open(&n->port, &cfg, &n->err);
}

static int setup(void **state, bool bridged)
{
    int rc = bridged ? setup_bridge(state) : setup_router(state);

    cfg = (struct nfqueue_port_config){QUEUE, "vg", bridged ? "br0" : "", "02:00:00:00:00:09", 8u << 20, "pgsql:5432", false};
    ((struct net *)*state)->open = open_nfqueue;
    return rc;
}

static int bridge(void **state)
{
    return setup(state, true);
}

static int router(void **state)
{
    return setup(state, false);
}

static void check_epochs(struct net *n, bool udp)
{
    open_port(n);
    guest_sends_range(n, 0, 20, udp);
    await_held(n, 20);
    barrier(n, 1);
    guest_sends_range(n, 20, 30, udp);
    await_held(n, 30);
    barrier(n, 2);
    guest_sends_range(n, 30, 40, udp);
    client_gets_nothing(n);
    n->port->ops->release(n->port, 1);
    client_gets_range(n, 0, 20, udp);
    client_gets_nothing(n);
    n->port->ops->release(n->port, 2);
    client_gets_range(n, 20, 30, udp);
    client_gets_nothing(n);
    n->port->ops->pass(n->port);
    client_gets_range(n, 30, 40, udp);
    guest_sends_range(n, 40, 45, udp);
    client_gets_range(n, 40, 45, udp);
    n->port->ops->hold(n->port);
    guest_sends_range(n, 45, 50, udp);
    client_gets_nothing(n);
    assert_int_equal(stats(n).dropped_out, 0);
}

/* R1, R6: of all protocols. */
static void test_r1_bridge(void **state)
{
    check_epochs(*state, false);
}

static void test_r1_router(void **state)
{
    check_epochs(*state, true);
}

static void send_tcp(int fd, uint32_t seq, uint8_t flags, const char *data, size_t len)
{
    uint8_t f[200];

    send_frame(fd, f, put_tcp(f, 0, 5432, 40000, seq, flags, data, len));
}

static struct packet next_segment(int fd, uint8_t f[2048])
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    struct packet packet;

    do
        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
    while (!packet_parse(&packet, f, (size_t)recv(fd, f, 2048, 0)) || packet.tcp != PACKET_TCP);
    return packet;
}

/* R3, R6: a statement's answer inside a transaction passes others that wait; its end waits; the takeover resets both sides. */
static void test_r3_transaction(void **state)
{
    static const char hello[] = "R\0\0\0\x8\0\0\0\0Z\0\0\0\5IC\0\0\0\x0a"
                                "BEGIN\0Z\0\0\0\5T";
    static const char row[] = "D\0\0\0\x0b\0\1\0\0\0\1x", commit[] = "C\0\0\0\x0b"
                                                                 "COMMIT\0Z\0\0\0\5I";
    const uint32_t begun = 1 + sizeof(hello) - 1;
    struct net *n = *state;
    struct buffer b = {0};
    struct packet p;
    uint8_t f[2048];

    open_port(n);
    send_tcp(n->guest, 0, TCP_SYN | TCP_ACK, NULL, 0);
    send_tcp(n->guest, 1, TCP_ACK, hello, sizeof(hello) - 1);
    await_held(n, 2);
    assert_int_equal(n->port->ops->barrier(n->port, 1, &b), 0);
    n->port->ops->release(n->port, 1);
    next_segment(n->client, f);
    assert_int_equal(next_segment(n->client, f).seq, 1);
    guest_sends_range(n, 0, 10, false);
    await_held(n, 10);
    send_tcp(n->guest, begun, TCP_ACK, row, sizeof(row) - 1);
    p = next_segment(n->client, f);
    assert_int_equal(p.seq, begun);
    send_tcp(n->guest, begun + sizeof(row) - 1, TCP_ACK, commit, sizeof(commit) - 1);
    await_held(n, 11);
    client_gets_nothing(n);
    barrier(n, 2);
    n->port->ops->release(n->port, 2);
    client_gets_range(n, 0, 10, false);
    assert_int_equal(next_segment(n->client, f).seq, begun + sizeof(row) - 1);
    n->port->ops->close(n->port);

    open_port(n); /* of the backup, which activates checkpoint 1 */
    send_tcp(n->guest, begun, TCP_ACK, row, sizeof(row) - 1);
    await_held(n, 1);
    assert_int_equal(n->port->ops->activate(n->port, b.data, b.len - 1, &n->err), -1);
    assert_int_equal(n->port->ops->activate(n->port, b.data, b.len, &n->err), 0);
    do
        p = next_segment(n->client, f);
    while (!(p.flags & TCP_RST));
    assert_int_equal(p.sport, 5432);
    send_frame(n->client, f, put_tcp(f, 0, 40000, 5432, 1, TCP_ACK, "x", 1));
    do
        p = next_segment(n->guest, f);
    while (!(p.flags & TCP_RST));
    assert_int_equal(p.dport, 5432);
    guest_sends_range(n, 10, 15, false);
    client_gets_range(n, 10, 15, false);
    buffer_free(&b);
}

static void test_count_of_large_segments(void **state)
{
    struct port_stats s;

    test_large_segments(state);
    s = stats(*state);
    assert_true(s.bytes_out / s.frames_out > 3000);
    assert_true(s.frames_in > 0);
}

/* R10 */
static void test_open_errors(void **state)
{
    struct net *n = *state;
    struct port *other;

    open_port(n);
    assert_int_equal(nfqueue_port_open(&other, &cfg, &n->err), -1);
    assert_non_null(strstr(n->err.text, "in use"));
    cfg.queue = 17;
    cfg.bridge = "nosuch";
    assert_int_equal(nfqueue_port_open(&other, &cfg, &n->err), -1);
    assert_non_null(strstr(n->err.text, "nosuch"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_r1_bridge, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_r1_router, router, teardown),
        cmocka_unit_test_setup_teardown(test_r1_killed, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_leave, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_r3_transaction, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_announced, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_count_of_large_segments, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_open_errors, bridge, teardown),
    };

    if (unshare(CLONE_NEWNET) < 0 ||
        system("nft 'table bridge t { chain c { type filter hook prerouting priority 0; queue num 1; }; }'"
               " >/dev/null 2>&1") != 0) {
        puts("1..0 # SKIP needs root, nft, and a kernel with queues for it");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
