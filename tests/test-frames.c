/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The frames port over unix datagram sockets: a guest, the port, and a network that is a socket
 * too. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "gate-frames.h"
#include "netbuf/gate.h"
#include "netbuf/port.h"

#define QUEUE (8u << 20)
#define PATIENCE_MS 20000

struct net {
    char dir[64], guest_path[96], port_path[96], tap[104];
    int guest, sink;
    struct frames_port_config cfg;
    struct port *port;
    struct error err;
};

static int bound_socket(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

    strcpy(a.sun_path, path);
    unlink(path);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

static int setup(void **state)
{
    struct net *n = calloc(1, sizeof(*n));

    strcpy(n->dir, "/tmp/test-frames-XXXXXX");
    assert_non_null(mkdtemp(n->dir));
    snprintf(n->guest_path, sizeof(n->guest_path), "%s/guest", n->dir);
    snprintf(n->port_path, sizeof(n->port_path), "%s/port", n->dir);
    snprintf(n->tap, sizeof(n->tap), "unix:%s/net", n->dir);
    n->guest = bound_socket(n->guest_path);
    n->sink = bound_socket(n->tap + 5);
    n->cfg = (struct frames_port_config){n->guest_path, n->port_path, n->tap, "02:00:00:00:00:09",
                                         QUEUE, "pgsql:5432", false, NULL};
    *state = n;
    return 0;
}

static int teardown(void **state)
{
    struct net *n = *state;

    if (n->port)
        n->port->ops->close(n->port);
    close(n->guest);
    close(n->sink);
    unlink(n->guest_path);
    unlink(n->tap + 5);
    rmdir(n->dir);
    free(n);
    return 0;
}

static void open_port(struct net *n)
{
    if (frames_port_open(&n->port, &n->cfg, &n->err) < 0)
        fail_msg("%s", n->err.text);
}

static size_t numbered(uint8_t *f, uint32_t seq, size_t len)
{
    size_t at = put_header(f, station, NULL, 0, 0x88b5);

    memset(f + at, (int)(seq & 0xff), len - at);
    put_be32(f + at, seq);
    return len;
}

static size_t length_of(uint32_t seq)
{
    return 60 + seq * 7919u % 1455;
}

/* -1 with errno when the port does not take it. */
static int guest_sends(struct net *n, uint32_t seq, int flags)
{
    uint8_t f[2048];
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    size_t len = numbered(f, seq, length_of(seq));

    strcpy(a.sun_path, n->port_path);
    return (int)sendto(n->guest, f, len, flags, (struct sockaddr *)&a, sizeof(a));
}

static void guest_sends_range(struct net *n, uint32_t from, uint32_t to)
{
    for (; from < to; from++)
        assert_true(guest_sends(n, from, 0) > 0);
}

/* The next frame, checked whole; its number, or -1 when none comes within `ms`. */
static int64_t receive(int fd, int ms, struct sockaddr_un *from)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint8_t f[2048], want[2048];
    socklen_t alen = sizeof(*from);
    ssize_t len;
    uint32_t seq;

    if (poll(&p, 1, ms) != 1)
        return -1;
    len = recvfrom(fd, f, sizeof(f), 0, (struct sockaddr *)from, from ? &alen : NULL);
    if (len < 18)
        return -2;
    seq = get_be32(f + ETH_HEADER);
    if ((size_t)len != length_of(seq) || memcmp(f, want, numbered(want, seq, (size_t)len)) != 0)
        return -3;
    return seq;
}

static void network_gets(struct net *n, uint32_t from, uint32_t to)
{
    for (; from < to; from++)
        assert_int_equal(receive(n->sink, PATIENCE_MS, NULL), from);
}

static void network_gets_nothing(struct net *n)
{
    assert_int_equal(receive(n->sink, 30, NULL), -1);
}

static void barrier(struct net *n, uint64_t epoch)
{
    struct buffer b = {0};

    assert_int_equal(n->port->ops->barrier(n->port, epoch, &b), 0);
    assert_true(b.len >= 8);
    buffer_free(&b);
}

static void release(struct net *n, uint64_t epoch)
{
    n->port->ops->release(n->port, epoch);
}

static struct port_stats stats(struct net *n)
{
    struct port_stats s;

    n->port->ops->stats(n->port, &s);
    return s;
}

/* R1: nothing leaves before the release of its epoch, and the barrier is exact. */
static void test_barrier(void **state)
{
    struct net *n = *state;

    open_port(n);
    guest_sends_range(n, 0, 5);
    barrier(n, 1);
    guest_sends_range(n, 5, 8);
    network_gets_nothing(n);
    release(n, 1);
    network_gets(n, 0, 5);
    network_gets_nothing(n);
    barrier(n, 2);
    release(n, 2);
    network_gets(n, 5, 8);
}

static void test_pass_and_hold(void **state)
{
    struct net *n = *state;

    open_port(n);
    guest_sends_range(n, 0, 3);
    barrier(n, 1);
    guest_sends_range(n, 3, 5);
    n->port->ops->pass(n->port);
    network_gets(n, 0, 5);
    guest_sends_range(n, 5, 8);
    network_gets(n, 5, 8);
    n->port->ops->hold(n->port);
    guest_sends_range(n, 8, 9);
    network_gets_nothing(n);
    barrier(n, 2);
    release(n, 2);
    network_gets(n, 8, 9);
}

/* Frames for the guest are not held. */
static void test_towards_guest(void **state)
{
    struct net *n = *state;
    struct sockaddr_un port;
    uint8_t f[2048];

    open_port(n);
    n->port->ops->pass(n->port);
    guest_sends_range(n, 0, 1);
    assert_int_equal(receive(n->sink, PATIENCE_MS, &port), 0);
    n->port->ops->hold(n->port);
    for (uint32_t i = 100; i < 1100; i++) {
        assert_true(sendto(n->sink, f, numbered(f, i, length_of(i)), 0, (struct sockaddr *)&port,
                           sizeof(sa_family_t) + 6) > 0);
        if (i % 100 ==
            99) /* the guest does not read for a while: the network waits, nothing is lost */
            for (uint32_t k = i - 99; k <= i; k++)
                assert_int_equal(receive(n->guest, PATIENCE_MS, NULL), k);
    }
    for (int i = 0; i < PATIENCE_MS && stats(n).frames_in < 1000; i++)
        usleep(1000); /* counted after they were handed over */
    assert_int_equal(stats(n).frames_in, 1000);
    assert_int_equal(stats(n).dropped_in, 0);
}

/* A guest that is gone loses its frames, counted; one that comes back gets them again. */
static void test_dead_guest(void **state)
{
    struct net *n = *state;
    struct sockaddr_un port;
    uint8_t f[2048];

    open_port(n);
    n->port->ops->pass(n->port);
    guest_sends_range(n, 0, 1);
    assert_int_equal(receive(n->sink, PATIENCE_MS, &port), 0);
    close(n->guest);
    for (uint32_t i = 0; i < 20; i++)
        assert_true(sendto(n->sink, f, numbered(f, i, length_of(i)), 0, (struct sockaddr *)&port,
                           sizeof(sa_family_t) + 6) > 0);
    while (stats(n).dropped_in < 20)
        usleep(1000);
    n->guest = bound_socket(n->guest_path);
    assert_true(sendto(n->sink, f, numbered(f, 20, length_of(20)), 0, (struct sockaddr *)&port,
                       sizeof(sa_family_t) + 6) > 0);
    assert_int_equal(receive(n->guest, PATIENCE_MS, NULL), 20);
    guest_sends_range(n, 1, 2);
    network_gets(n, 1, 2);
}

/* R9: at the bound the guest waits; no frame is lost. */
static void test_backpressure(void **state)
{
    struct net *n = *state;
    uint32_t sent = 0, got = 0, tries = 0;

    n->cfg.queue_bytes = GATE_QUEUE_MIN;
    open_port(n);
    while (tries < 20 || stats(n).full_ns == 0) {
        if (guest_sends(n, sent, MSG_DONTWAIT) > 0) {
            sent++;
            tries = 0;
        } else {
            assert_int_equal(errno, EAGAIN);
            tries++;
            usleep(1000);
        }
    }
    assert_true(stats(n).held_bytes <= GATE_QUEUE_MIN);
    assert_true(stats(n).held_bytes > GATE_QUEUE_MIN / 2);
    assert_true(stats(n).full_ns > 0);
    network_gets_nothing(n);
    for (uint64_t epoch = 1; got < sent; epoch++) {
        uint64_t left;

        barrier(n, epoch);
        left = stats(n).frames_out + stats(n).held_frames;
        release(n, epoch);
        network_gets(n, got, (uint32_t)left);
        got = (uint32_t)left;
    }
    assert_int_equal(stats(n).refused, 0);
}

/* A network that does not read: frames wait, a barrier does not. */
static void test_slow_network(void **state)
{
    struct net *n = *state;

    open_port(n);
    guest_sends_range(n, 0, 2000);
    barrier(n, 1);
    release(n, 1);
    guest_sends_range(n, 2000, 2100);
    barrier(n, 2);
    usleep(30000);
    assert_true(stats(n).held_frames > 500);
    network_gets(n, 0, 2000);
    network_gets_nothing(n);
    release(n, 2);
    network_gets(n, 2000, 2100);
    assert_true(stats(n).hold_p99_ns >= stats(n).hold_p50_ns);
    assert_true(stats(n).hold_p99_ns > 0);
}

/* A network that is not there and comes later. */
static void test_late_network(void **state)
{
    struct net *n = *state;

    close(n->sink);
    unlink(n->tap + 5);
    open_port(n);
    guest_sends_range(n, 0, 10);
    barrier(n, 1);
    release(n, 1);
    usleep(20000);
    n->sink = bound_socket(n->tap + 5);
    network_gets(n, 0, 10);
}

/* Fail closed: a port that goes away releases nothing. */
static void test_close(void **state)
{
    struct net *n = *state;

    open_port(n);
    guest_sends_range(n, 0, 10);
    barrier(n, 1);
    n->port->ops->close(n->port);
    n->port = NULL;
    network_gets_nothing(n);
    assert_int_equal(access(n->port_path, F_OK), -1);
}

/* R10: epochs that do not rise are an error and release nothing. */
static void test_epochs_rise(void **state)
{
    struct net *n = *state;
    struct buffer b = {0};

    open_port(n);
    barrier(n, 5);
    guest_sends_range(n, 0, 1);
    assert_int_equal(n->port->ops->barrier(n->port, 5, &b), -1);
    release(n, 5);
    network_gets_nothing(n);
    buffer_free(&b);
}

/* After a takeover the guest's addresses are announced, more than once, and frames pass. */
static void test_activate(void **state)
{
    static const uint8_t ip[4] = {10, 0, 0, 7};
    struct net *n = *state;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct buffer b = {0};
    uint8_t f[2048];
    unsigned requests = 0, replies = 0;

    open_port(n);
    strcpy(a.sun_path, n->port_path);
    assert_true(sendto(n->guest, f, put_addressed(f, 1, station, ip, NULL, 0), 0,
                       (struct sockaddr *)&a, sizeof(a)) > 0);
    assert_int_equal(n->port->ops->barrier(n->port, 1, &b), 0);
    n->port->ops->close(n->port);

    open_port(n); /* the backup's */
    assert_int_equal(n->port->ops->activate(n->port, b.data, b.len - 1, &n->err), -1);
    network_gets_nothing(n);
    assert_int_equal(n->port->ops->activate(n->port, b.data, b.len, &n->err), 0);
    guest_sends_range(n, 3, 4);
    for (unsigned others = 0; requests + replies + others < 2 * 3 + 1;) {
        struct pollfd p = {.fd = n->sink, .events = POLLIN};
        ssize_t len;

        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
        len = recv(n->sink, f, sizeof(f), 0);
        if (get_be16(f + 12) != ETHERTYPE_ARP_) {
            others++;
            continue;
        }
        assert_int_equal(len, 60);
        assert_memory_equal(f + 6, station, 6);
        assert_memory_equal(f + 28, ip, 4);
        assert_memory_equal(f + 38, ip, 4);
        get_be16(f + 20) == 1 ? requests++ : replies++;
    }
    assert_int_equal(requests, replies);

    /* the new primary knows the addresses before the guest speaks */
    n->port->ops->hold(n->port);
    b.len = 0;
    assert_int_equal(n->port->ops->barrier(n->port, 2, &b), 0);
    assert_int_equal(get_be16(b.data + 2), 1);
    buffer_free(&b);
}

static void test_activate_unknown(void **state)
{
    struct net *n = *state;
    uint8_t f[2048];

    open_port(n);
    assert_int_equal(n->port->ops->activate(n->port, NULL, 0, &n->err), 0);
    assert_int_equal(recv(n->sink, f, sizeof(f), 0), 60);
    assert_int_equal(get_be16(f + 12), ETHERTYPE_RARP_);
    assert_int_equal(f[11], 9);
}

/* The next TCP segment within PATIENCE_MS, whatever else comes. */
static struct packet next_segment(int fd, uint8_t f[2048], struct sockaddr_un *from)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    struct packet packet;
    socklen_t alen;
    ssize_t len;

    do {
        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
        alen = sizeof(*from);
        len = recvfrom(fd, f, 2048, 0, (struct sockaddr *)from, &alen);
    } while (!packet_parse(&packet, f, (size_t)len) || packet.tcp != PACKET_TCP);
    return packet;
}

/* R3: a connection that the activated checkpoint lists is poked on both sides, and nothing of it
 * passes, not even what the guest sent before activate(); another one passes. */
static void test_r3_activate_resets(void **state)
{
    struct net *n = *state;
    struct net_addresses none = {0};
    struct net_flow flow = {.family = 4, .mac = {2, 0, 0, 0, 0, 1}, .peer_mac = {2, 0, 0, 0, 0, 2},
                            .ip = {10, 0, 0, 1}, .peer_ip = {10, 0, 0, 2}, .port = 5432,
                            .peer_port = 40000, .seq = 1000, .ack = 2000};
    struct sockaddr_un a = {.sun_family = AF_UNIX}, switch_port, unused;
    socklen_t addrlen = sizeof(sa_family_t) + 6;
    struct buffer b = {0};
    struct packet p;
    uint8_t f[2048];
    size_t len;

    assert_int_equal(net_state_encode(&b, &none, 1), 0);
    net_state_add_flow(&b, 0, &flow);
    open_port(n);
    strcpy(a.sun_path, n->port_path);
    for (uint16_t dport = 40000; dport < 40002; dport++) {
        len = put_tcp(f, 0, 5432, dport, 500, TCP_ACK, "x", 1);
        assert_true(sendto(n->guest, f, len, 0, (struct sockaddr *)&a, sizeof(a)) > 0);
    }
    while (stats(n).held_frames < 2)
        usleep(1000);
    assert_int_equal(n->port->ops->activate(n->port, b.data, b.len, &n->err), 0);
    len = put_tcp(f, 0, 5432, 40001, 777, TCP_ACK, "z", 1);
    assert_true(sendto(n->guest, f, len, 0, (struct sockaddr *)&a, sizeof(a)) > 0);

    for (bool other = false, rst = false, probe = false; !other || !rst || !probe;) {
        p = next_segment(n->sink, f, &switch_port);
        if (p.dport == 40001) {
            other |= p.seq == 777;
            continue;
        }
        assert_int_equal(p.dport, 40000);
        assert_int_equal(p.data_len, 0);
        rst |= p.flags == TCP_RST && p.seq == 1000;
        probe |= p.flags == TCP_ACK && p.seq == 999 && p.ack == 2000;
    }
    for (bool rst = false, probe = false, answer = false; !rst || !probe || !answer;) {
        p = next_segment(n->guest, f, &unused);
        assert_int_equal(p.sport, 40000);
        rst |= p.flags == TCP_RST && p.seq == 2000;
        probe |= p.flags == TCP_ACK && p.seq == 1999 && p.ack == 1000;
        answer |= p.flags == TCP_RST && p.seq == 1; /* to the packet it sent before */
    }

    /* The client speaks: RST with its own number; the guest does not hear of it. */
    len = put_tcp(f, 0, 5432, 40000, 600, TCP_ACK, "y", 1);
    memcpy(f + 26, flow.peer_ip, 4);
    memcpy(f + 30, flow.ip, 4);
    put_be16(f + 34, 40000);
    put_be16(f + 36, 5432);
    put_be32(f + 42, 1234567);
    assert_true(sendto(n->sink, f, len, 0, (struct sockaddr *)&switch_port, addrlen) > 0);
    do
        p = next_segment(n->sink, f, &switch_port);
    while (p.seq != 1234567);
    assert_int_equal(p.flags, TCP_RST);
    while (recv(n->guest, f, sizeof(f), MSG_DONTWAIT) > 0)
        assert_true(packet_parse(&p, f, sizeof(f)) && p.data_len == 0);
    buffer_free(&b);
}

static void expect_error(struct net *n, const char *text)
{
    struct port *p = NULL;

    assert_int_equal(frames_port_open(&p, &n->cfg, &n->err), -1);
    if (!strstr(n->err.text, text))
        fail_msg("got: %s\nwant: %s", n->err.text, text);
}

static void test_open_errors(void **state)
{
    struct net *n = *state;
    struct frames_port_config good = n->cfg;
    char long_path[200];

    memset(long_path, 'x', sizeof(long_path));
    long_path[sizeof(long_path) - 1] = 0;
    n->cfg.mac = "02:00:00:00:00";
    expect_error(n, "mac '02:00:00:00:00': six pairs of hexadecimal digits expected");
    n->cfg = good;
    n->cfg.tap = "an-interface-name";
    expect_error(n, "tap an-interface-name: a name has at most 15 characters");
    n->cfg = good;
    n->cfg.queue_bytes = GATE_QUEUE_MIN - 1;
    expect_error(n, "too small");
    n->cfg = good;
    n->cfg.port_path = long_path;
    expect_error(n, "must have 1 to 107 characters");
    n->cfg.port_path = "/nonexistent/port";
    expect_error(n,
                 "/nonexistent/port: cannot make the socket for the guest's frames: No such file");
    n->cfg = good;
    n->cfg.services = "pgsql:5432 gopher:70";
    expect_error(n, "services 'pgsql:5432 gopher:70': want");
    n->cfg = good;
    open_port(n);
    expect_error(n, "another port is listening there");
    guest_sends_range(n, 0, 1);
    barrier(n, 1);
    release(n, 1);
    network_gets(n, 0, 1);
}

/* The path of a daemon that was killed is taken over. */
static void test_stale_path(void **state)
{
    struct net *n = *state;

    close(bound_socket(n->port_path));
    open_port(n);
    n->port->ops->pass(n->port);
    guest_sends_range(n, 0, 1);
    network_gets(n, 0, 1);
}

/* 100,000 frames from one thread, barriers and releases from another: R1 and R6 for every one of
 * them. */

enum { MANY = 100000 };

static struct {
    pthread_mutex_t running; /* held by the guest while it sends: taking it stops the guest */
    uint32_t sent;
    _Atomic uint32_t may_leave;
    _Atomic bool done;
    _Atomic int epochs;
    const char *broken;
} many = {.running = PTHREAD_MUTEX_INITIALIZER};

static void *many_guest(void *arg)
{
    struct net *n = arg;

    while (many.sent < MANY) {
        pthread_mutex_lock(&many.running);
        for (int i = 0; i < 20 && many.sent < MANY; i++)
            if (guest_sends(n, many.sent, MSG_DONTWAIT) > 0)
                many.sent++;
        pthread_mutex_unlock(&many.running);
        sched_yield();
    }
    return NULL;
}

/* Two checkpoints in flight, acknowledged late and sometimes together. */
static void *many_engine(void *arg)
{
    struct net *n = arg;
    uint32_t covered[4] = {0};
    struct buffer b = {0};

    for (uint64_t epoch = 1; !many.done; epoch++) {
        pthread_mutex_lock(&many.running);
        buffer_clear(&b);
        if (n->port->ops->barrier(n->port, epoch, &b) < 0)
            many.broken = "barrier failed";
        covered[epoch % 4] = many.sent;
        pthread_mutex_unlock(&many.running);
        if (epoch > 2 && epoch % 3 != 0) {
            many.may_leave = covered[(epoch - 2) % 4];
            release(n, epoch - 2);
        }
        many.epochs++;
        usleep(500);
    }
    buffer_free(&b);
    return NULL;
}

static void test_many(void **state)
{
    struct net *n = *state;
    pthread_t guest, engine;

    open_port(n);
    pthread_create(&guest, NULL, many_guest, n);
    pthread_create(&engine, NULL, many_engine, n);
    for (uint32_t i = 0; i < MANY && !many.broken; i++) {
        int64_t seq = receive(n->sink, PATIENCE_MS, NULL);

        if (seq != i)
            many.broken = "lost, repeated or overtaken (R6)";
        else if (i >= many.may_leave)
            many.broken = "left before its release (R1)";
        if (many.broken)
            print_message("frame %u: got %lld\n", i, (long long)seq);
    }
    pthread_join(guest, NULL);
    many.done = true;
    pthread_join(engine, NULL);
    assert_null(many.broken);
    assert_int_equal(stats(n).frames_out, MANY);
    assert_int_equal(stats(n).held_frames, 0);
    assert_true(many.epochs > 10);
}

/* A real tap, in a network namespace of its own.  Returns what the child exits with: 0, 77, or a
 * line number. */

#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x))                                                                                  \
            return __LINE__;                                                                       \
    } while (0)

static int tap_child(struct net *n)
{
    struct sockaddr_ll a = {.sll_family = AF_PACKET,
                            .sll_protocol = 0x0300 /* all, network order */};
    struct port *second;
    uint8_t f[2048];
    struct sockaddr_ll from;
    socklen_t alen = sizeof(from);
    struct buffer b = {0};
    int fd, rcvbuf = 8 << 20;
    ssize_t len;

    if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
        return 77;
    n->cfg.tap = "remus-test0";
    if (frames_port_open(&n->port, &n->cfg, &n->err) < 0) {
        print_message("# %s\n", n->err.text);
        return 77;
    }
    n->cfg.port_path = "/tmp/other-port";
    CHECK(frames_port_open(&second, &n->cfg, &n->err) < 0);
    CHECK(strstr(n->err.text, "tap remus-test0: in use by another process"));
    n->cfg.tap = "lo";
    CHECK(frames_port_open(&second, &n->cfg, &n->err) < 0);
    CHECK(strstr(n->err.text, "tap lo: exists but is no single-queue tap interface"));

    a.sll_ifindex = (int)if_nametoindex("remus-test0");
    fd = socket(AF_PACKET, SOCK_RAW, 0x0300);
    CHECK(a.sll_ifindex > 0 && fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &rcvbuf, sizeof(rcvbuf)) == 0);
    for (uint32_t i = 0; i < 500; i++)
        CHECK(guest_sends(n, i, 0) > 0);
    CHECK(n->port->ops->barrier(n->port, 1, &b) == 0);
    release(n, 1);
    for (uint32_t i = 0; i < 500;) {
        len = recvfrom(fd, f, sizeof(f), 0, (struct sockaddr *)&from, &alen);
        CHECK(len > 0);
        if (from.sll_pkttype != PACKET_OUTGOING && memcmp(f + 6, station, 6) == 0)
            CHECK(get_be32(f + ETH_HEADER) == i++ && (size_t)len == length_of(i - 1));
    }
    CHECK(send(fd, f, numbered(f, 7, length_of(7)), 0) > 0);
    while (receive(n->guest, PATIENCE_MS, NULL) != 7)
        ; /* the host's own neighbour discovery comes too */
    n->port->ops->close(n->port);
    return 0;
}

static void test_tap(void **state)
{
    struct net *n = *state;
    int status;
    pid_t pid = fork();

    if (pid == 0)
        _exit(tap_child(n) & 0xff);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("# no tap interfaces here\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_null(void **state)
{
    struct port *p = null_port_new();
    struct buffer b = {0};
    struct port_stats s;

    (void)state;
    assert_int_equal(p->ops->barrier(p, 1, &b), 0);
    p->ops->release(p, 1);
    p->ops->hold(p);
    p->ops->pass(p);
    assert_int_equal(p->ops->activate(p, NULL, 0, NULL), 0);
    p->ops->stats(p, &s);
    assert_int_equal(s.held_frames + b.len, 0);
    p->ops->close(p);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_barrier),
        T(test_pass_and_hold),
        T(test_towards_guest),
        T(test_dead_guest),
        T(test_backpressure),
        T(test_slow_network),
        T(test_late_network),
        T(test_close),
        T(test_epochs_rise),
        T(test_activate),
        T(test_activate_unknown),
        T(test_r3_activate_resets),
        T(test_open_errors),
        T(test_stale_path),
        T(test_many),
        T(test_tap),
        cmocka_unit_test(test_null),
    };

    return cmocka_run_group_tests_name("frames", tests, NULL, NULL);
}
