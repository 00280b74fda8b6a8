/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The plug port between a guest and a client, each in a network namespace, on the bridge or the router of a third.
 * As root, with a kernel that has queues of kind plug; tests/nfqueue-guest runs it on Debian's.
 */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "gate-frames.h"
#include "netbuf/net-state.h"
#include "port-net.h"

static struct plug_port_config cfg;

static int open_plug(struct net *n)
{
    return plug_port_open(&n->port, &cfg, &n->err);
}

static int setup(void **state, bool bridged)
{
    int rc = bridged ? setup_bridge(state) : setup_router(state);

    cfg = (struct plug_port_config){"vg", bridged ? "br0" : "", "02:00:00:00:00:09", 8u << 20};
    ((struct net *)*state)->open = open_plug;
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

/* One epoch at a time, then two: the second one's packets wait for the third's acknowledgement. */
static void check_epochs(struct net *n, bool udp)
{
    const struct port_ops *ops;

    open_port(n);
    ops = n->port->ops;
    guest_sends_range(n, 0, 20, udp);
    await_held(n, 20);
    barrier(n, 1);
    guest_sends_range(n, 20, 30, udp);
    await_held(n, 30);
    client_gets_nothing(n);
    ops->release(n->port, 1);
    client_gets_range(n, 0, 20, udp);
    client_gets_nothing(n);
    ops->release(n->port, 1); /* late, repeated */
    client_gets_nothing(n);

    barrier(n, 2); /* closes 10 packets */
    guest_sends_range(n, 30, 60, udp);
    await_held(n, 40);
    barrier(n, 3); /* 30: the release of epoch 2 must not let out as many */
    guest_sends_range(n, 60, 65, udp);
    await_held(n, 45);
    client_gets_nothing(n);
    ops->release(n->port, 2);
    client_gets_range(n, 20, 30, udp);
    client_gets_nothing(n);
    ops->release(n->port, 3); /* shares its epoch with the next one */
    client_gets_nothing(n);
    barrier(n, 4);
    guest_sends_range(n, 65, 70, udp);
    await_held(n, 40);
    ops->release(n->port, 4);
    client_gets_range(n, 30, 65, udp);
    client_gets_nothing(n);
    ops->pass(n->port);
    client_gets_range(n, 65, 70, udp);
    guest_sends_range(n, 70, 75, udp);
    client_gets_range(n, 70, 75, udp);
    ops->hold(n->port);
    guest_sends_range(n, 75, 80, udp);
    await_held(n, 5);
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

/* R1: a new protection begins while a checkpoint of the old one is not acknowledged: it never counts. */
static void test_r1_hold(void **state)
{
    struct net *n = *state;
    const struct port_ops *ops;

    open_port(n);
    ops = n->port->ops;
    guest_sends_range(n, 0, 10, false);
    await_held(n, 10);
    barrier(n, 1);
    guest_sends_range(n, 10, 15, false);
    await_held(n, 15);
    ops->hold(n->port);
    ops->release(n->port, 1);
    client_gets_nothing(n);
    barrier(n, 2);
    ops->release(n->port, 2); /* what the old protection closed; the rest is in the epoch that the next one closes */
    client_gets_range(n, 0, 10, false);
    client_gets_nothing(n);
    barrier(n, 3);
    ops->release(n->port, 3);
    client_gets_range(n, 10, 15, false);
}

/* R1: the guest's interface comes after the port. */
static void test_late_interface(void **state)
{
    struct net *n = *state;

    assert_int_equal(system("ip link set vg down && ip link set vg name other && ip link set other up"), 0);
    open_port(n);
    assert_int_equal(system("ip link set other down && ip link set other name vg && ip link set vg up"), 0);
    await_running("vg");
    barrier(n, 1);
    guest_sends_range(n, 0, 10, false);
    await_held(n, 10);
    client_gets_nothing(n);
    n->port->ops->release(n->port, 1);
    client_gets_nothing(n);
    barrier(n, 2);
    n->port->ops->release(n->port, 2);
    client_gets_range(n, 0, 10, false);
    /* Somebody took the queue away, and the filter is left. */
    n->port->ops->close(n->port);
    assert_int_equal(system("ip link del ifb-vg"), 0);
    open_port(n);
    guest_sends_range(n, 10, 20, false);
    await_held(n, 10);
    client_gets_nothing(n);
}

/* R9: beyond the bound the kernel drops, and says how many. */
static void test_r9_bound(void **state)
{
    struct net *n = *state;

    cfg.queue_bytes = 20 * 100;
    open_port(n);
    guest_sends_range(n, 0, 100, true);
    for (int i = 0; stats(n).dropped_out + stats(n).held_frames < 100; i++)
        assert_true(i < PATIENCE_MS);
    assert_true(stats(n).held_bytes <= cfg.queue_bytes);
    n->port->ops->pass(n->port);
    client_gets_range(n, 0, 20, true);
}

static void test_activate(void **state)
{
    struct net *n = *state;
    const struct net_flow flow = {.family = 4, .mac = {2}, .peer_mac = {2}, .ip = {10, 0, 0, 1}, .peer_ip = {10, 0, 0, 2},
                                  .port = 1, .peer_port = 2};
    struct net_addresses none = {0};
    struct buffer b = {0};

    test_announced(state);
    n->port->ops->close(n->port);
    open_port(n);
    assert_int_equal(net_state_encode(&b, &none, 1), 0);
    net_state_add_flow(&b, 0, &flow); /* R3: it cannot be reset */
    assert_int_equal(n->port->ops->activate(n->port, b.data, b.len, &n->err), -1);
    assert_non_null(strstr(n->err.text, "reset"));
    guest_sends_range(n, 0, 5, false);
    client_gets_nothing(n);
    assert_int_equal(n->port->ops->activate(n->port, NULL, 0, &n->err), 0);
    client_gets_range(n, 0, 5, false);
    buffer_free(&b);
}

/* R1: the hotplug script gives the interface its queue without a daemon, and gives it free again. */
static void test_script(void **state)
{
    struct net *n = *state;

    for (int i = 0; i < 2; i++)
        assert_int_equal(system("vifname=vg remusd-netbuf-setup setup"), 0);
    guest_sends_range(n, 0, 10, false);
    client_gets_nothing(n);
    open_port(n);
    assert_int_equal(system("vifname=vg remusd-netbuf-setup setup"), 0);
    guest_sends_range(n, 10, 20, false);
    await_held(n, 10);
    client_gets_nothing(n);
    barrier(n, 1);
    n->port->ops->release(n->port, 1);
    client_gets_range(n, 10, 20, false);
    guest_sends_range(n, 20, 30, false);
    client_gets_nothing(n);
    for (int i = 0; i < 2; i++)
        assert_int_equal(system("vifname=vg remusd-netbuf-setup teardown"), 0);
    guest_sends_range(n, 30, 40, false);
    client_gets_range(n, 30, 40, false);
}

/* netbuf = auto takes the better port that the host has; the test hides nft. */
static void test_auto(void **state)
{
    struct net *n = *state;
    struct vm_config vm = {.vif = (char *)"vg", .guest_bridge = (char *)"br0", .mac = (char *)"02:00:00:00:00:09", .tap = (char *)"",
                           .services = (char *)"", .net_queue_bytes = 8u << 20, .nfqueue = 7};
    char path[256];

    assert_int_equal(port_open(&n->port, &vm, "", "", true, &n->err), 0);
    assert_string_equal(n->port->ops->name, "nfqueue");
    assert_string_equal(n->err.text, "");
    n->port->ops->close(n->port);
    n->port = NULL;
    snprintf(path, sizeof(path), "%s", getenv("PATH"));
    setenv("PATH", "/nowhere", 1);
    assert_int_equal(port_open(&n->port, &vm, "", "", true, &n->err), 0);
    assert_string_equal(n->port->ops->name, "plug");
    assert_non_null(strstr(n->err.text, "nft"));
    n->port->ops->close(n->port);
    n->port = NULL;
    vm.services = (char *)"pgsql:5432"; /* plug cannot */
    assert_int_equal(port_open(&n->port, &vm, "", "", true, &n->err), -1);
    assert_non_null(strstr(n->err.text, "nft"));
    assert_int_equal(port_open(&n->port, &vm, "", "", false, &n->err), 0);
    n->port->ops->close(n->port);
    n->port = NULL;
    vm.netbuf = NETBUF_NFQUEUE;
    assert_int_equal(port_open(&n->port, &vm, "", "", false, &n->err), -1);
    setenv("PATH", path, 1);
}

/* R10 */
static void test_open_errors(void **state)
{
    struct net *n = *state;

    cfg.bridge = "nosuch";
    assert_int_equal(n->open(n), -1);
    assert_non_null(strstr(n->err.text, "nosuch"));
    cfg.bridge = "br0";
    cfg.vif = "twelve-chars";
    assert_int_equal(n->open(n), -1);
    assert_non_null(strstr(n->err.text, "at most 11"));
    cfg.vif = "vg";
    assert_int_equal(system("ip link add ifb-vg type veth peer name x"), 0);
    assert_int_equal(n->open(n), -1);
    assert_non_null(strstr(n->err.text, "ifb-vg"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_r1_bridge, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_r1_router, router, teardown),
        cmocka_unit_test_setup_teardown(test_r1_killed, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_leave, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_r1_hold, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_late_interface, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_r9_bound, router, teardown),
        cmocka_unit_test_setup_teardown(test_activate, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_large_segments, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_script, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_auto, bridge, teardown),
        cmocka_unit_test_setup_teardown(test_open_errors, bridge, teardown),
    };

    if (unshare(CLONE_NEWNET) < 0 || system("ip link add i up type ifb 2>/dev/null && tc qdisc add dev i root plug 2>/dev/null") != 0) {
        puts("1..0 # SKIP needs root, tc, and a kernel with ifb and plug");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
