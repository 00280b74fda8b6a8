/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The nfqueue port between a guest and a client, each in a network namespace, on the bridge or the router of a third.
 * As root, with nft and a kernel that has nft's queues; tests/nfqueue-guest runs it on Debian's.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "common/clock.h"
#include "gate-frames.h"
#include "netbuf/gate.h"
#include "netbuf/port.h"

#define QUEUE 7 /* and 8 */
#define PATIENCE_MS 20000
#define QUIET_MS 200
#define FRAME 100 /* octets of a numbered frame; the number is its end */

static const uint8_t client_mac[6] = {2, 0, 0, 0, 0, 2}, router_mac[6] = {2, 0, 0, 0, 0, 3};
static int host_ns, guest_ns, client_ns;

struct net {
    struct nfqueue_port_config cfg;
    struct port *port;
    struct error err;
    int guest, client; /* packet sockets */
};

static void sh(const char *fmt, ...)
{
    char command[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    if (system(command) != 0)
        fail_msg("%s", command);
}

static int new_namespace(void)
{
    assert_int_equal(unshare(CLONE_NEWNET), 0);
    sh("for f in all default; do echo 1 >/proc/sys/net/ipv6/conf/$f/disable_ipv6; done; ip link set lo up");
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}

static void enter(int ns)
{
    assert_int_equal(setns(ns, CLONE_NEWNET), 0);
}

static int packet_socket(int ns)
{
    struct sockaddr_ll a = {.sll_family = AF_PACKET, .sll_protocol = htons(3 /* ETH_P_ALL */)};
    int fd = -1, one = 1;

    enter(ns);
    fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    a.sll_ifindex = (int)if_nametoindex("eth0");
    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one));
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    enter(host_ns);
    return fd;
}

/* "vg" and "vc" of the host are the ends of the guest's and the client's eth0. */
static struct net *make_net(void)
{
    struct net *n = calloc(1, sizeof(*n));

    n->cfg = (struct nfqueue_port_config){QUEUE, "vg", "br0", "02:00:00:00:00:09", 8u << 20, "pgsql:5432", false};
    guest_ns = new_namespace();
    client_ns = new_namespace();
    host_ns = new_namespace();
    sh("ip link add vg address 02:00:00:00:00:03 type veth peer name eth0 address 02:00:00:00:00:01 netns /proc/%d/fd/%d && "
       "ip link add vc type veth peer name eth0 address 02:00:00:00:00:02 netns /proc/%d/fd/%d && "
       "ip link set vg up && ip link set vc up", getpid(), guest_ns, getpid(), client_ns);
    enter(guest_ns);
    sh("ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up");
    enter(client_ns);
    sh("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up");
    enter(host_ns);
    n->guest = packet_socket(guest_ns);
    n->client = packet_socket(client_ns);
    return n;
}

static int setup_bridge(void **state)
{
    struct net *n = make_net();

    sh("ip link add br0 up type bridge && ip link set vg master br0 && ip link set vc master br0");
    *state = n;
    return 0;
}

static int setup_router(void **state)
{
    struct net *n = make_net();

    n->cfg.bridge = "";
    sh("echo 1 >/proc/sys/net/ipv4/ip_forward; ip addr add 10.0.0.254/32 dev vg; ip addr add 10.0.0.253/32 dev vc;"
       "ip route add 10.0.0.1/32 dev vg; ip route add 10.0.0.2/32 dev vc;"
       "ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev vg; ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev vc");
    *state = n;
    return 0;
}

static int teardown(void **state)
{
    struct net *n = *state;

    if (n->port)
        n->port->ops->close(n->port);
    close(n->guest);
    close(n->client);
    close(guest_ns);
    close(client_ns);
    close(host_ns);
    free(n);
    return 0;
}

static void open_port(struct net *n)
{
    if (nfqueue_port_open(&n->port, &n->cfg, &n->err) < 0)
        fail_msg("%s", n->err.text);
}

static struct port_stats stats(struct net *n)
{
    struct port_stats s;

    n->port->ops->stats(n->port, &s);
    return s;
}

static void barrier(struct net *n, uint64_t epoch)
{
    struct buffer b = {0};

    assert_int_equal(n->port->ops->barrier(n->port, epoch, &b), 0);
    buffer_free(&b);
}

static void checksum(uint8_t *ip)
{
    uint32_t sum = 0;

    put_be16(ip + 10, 0);
    for (int i = 0; i < 20; i += 2)
        sum += get_be16(ip + i);
    sum = (sum & 0xffff) + (sum >> 16);
    put_be16(ip + 10, (uint16_t)~((sum & 0xffff) + (sum >> 16)));
}

static void send_frame(int fd, const uint8_t *f, size_t len)
{
    assert_int_equal(send(fd, f, len, 0), len);
}

enum { UDP, IPV6, ARP, VLAN, UNKNOWN, KINDS };

/* A frame of every kind in turn, or with `udp` always that. */
static void guest_sends(struct net *n, uint32_t number, bool udp)
{
    static const uint8_t from4[4] = {10, 0, 0, 1}, to4[4] = {10, 0, 0, 2}, from6[16] = {0xfd, [15] = 1};
    const unsigned vlan = 5;
    uint8_t f[FRAME] = {0};
    size_t at;

    switch (udp ? UDP : number % KINDS) {
    case UDP:
        at = put_addressed(f, 4, station, from4, NULL, 0) - 20;
        put_be16(f + at + 2, (uint16_t)(FRAME - at));
        f[at + 8] = 64;
        f[at + 9] = 17;
        memcpy(f + at + 16, to4, 4);
        put_be16(f + at + 22, 9);
        put_be16(f + at + 24, (uint16_t)(FRAME - at - 20));
        checksum(f + at);
        break;
    case IPV6:
        put_addressed(f, 6, station, from6, NULL, 0);
        break;
    case ARP:
        put_addressed(f, 1, station, from4, NULL, 0);
        break;
    case VLAN:
        put_addressed(f, 4, station, from4, &vlan, 1);
        break;
    default:
        put_header(f, station, NULL, 0, 0x88b5);
    }
    memcpy(f, *n->cfg.bridge ? client_mac : router_mac, 6);
    put_be32(f + FRAME - 4, number);
    send_frame(n->guest, f, FRAME);
}

/* The next frame's number; -1: none came. */
static int64_t client_gets(struct net *n, int ms, bool *tagged)
{
    struct pollfd p = {.fd = n->client, .events = POLLIN};
    struct tpacket_auxdata *aux;
    uint8_t f[2048], control[256];
    struct iovec v = {f, sizeof(f)};
    struct msghdr m;
    int one = 1;
    ssize_t len;

    setsockopt(n->client, SOL_PACKET, PACKET_AUXDATA, &one, sizeof(one));
    do {
        if (poll(&p, 1, ms) == 0)
            return -1;
        m = (struct msghdr){.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
        len = recvmsg(n->client, &m, 0);
    } while (len != FRAME && len != FRAME - 4);
    aux = (struct tpacket_auxdata *)CMSG_DATA(CMSG_FIRSTHDR(&m));
    *tagged = aux->tp_status & TP_STATUS_VLAN_VALID && aux->tp_vlan_tci == 5;
    return get_be32(f + len - 4);
}

static void client_gets_range(struct net *n, uint32_t from, uint32_t to, bool udp)
{
    bool tagged;

    for (; from < to; from++) {
        assert_int_equal(client_gets(n, PATIENCE_MS, &tagged), from);
        assert_int_equal(tagged, !udp && from % KINDS == VLAN);
    }
}

static void client_gets_nothing(struct net *n)
{
    bool tagged;

    assert_int_equal(client_gets(n, QUIET_MS, &tagged), -1);
}

static void guest_sends_range(struct net *n, uint32_t from, uint32_t to, bool udp)
{
    for (; from < to; from++)
        guest_sends(n, from, udp);
}

static void await_held(struct net *n, uint64_t frames)
{
    for (int i = 0; stats(n).held_frames < frames; i++) {
        assert_true(i < PATIENCE_MS);
        usleep(1000);
    }
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

/* R1: nothing gets out when the daemon dies, nor while there is none. */
static void test_r1_killed(void **state)
{
    struct net *n = *state;
    int ready[2];
    char c;
    pid_t pid;

    assert_int_equal(pipe(ready), 0);
    pid = fork();
    if (pid == 0) {
        if (nfqueue_port_open(&n->port, &n->cfg, &n->err) < 0 || write(ready[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    guest_sends_range(n, 0, 10, false);
    client_gets_nothing(n);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    guest_sends_range(n, 10, 20, false);
    client_gets_nothing(n);
    open_port(n);
    n->port->ops->pass(n->port);
    guest_sends_range(n, 20, 30, false);
    client_gets_range(n, 20, 30, false);
    close(ready[0]);
    close(ready[1]);
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

/* At a takeover the guest's address is announced. */
static void test_activate(void **state)
{
    struct net *n = *state;
    uint8_t f[2048];
    ssize_t len;

    open_port(n);
    assert_int_equal(n->port->ops->activate(n->port, NULL, 0, &n->err), 0);
    do /* the kernel speaks on its interfaces, too */
        len = recv(n->client, f, sizeof(f), 0);
    while (len >= 14 && get_be16(f + 12) != ETHERTYPE_RARP_);
    assert_int_equal(len, 60);
    assert_int_equal(f[11], 9);
}

struct stream {
    int fd;
    uint64_t bytes;
    bool whole;
};

static void *receive_stream(void *arg)
{
    struct stream *s = arg;
    int fd = accept(s->fd, NULL, NULL);
    uint8_t buf[65536];
    ssize_t len;

    s->whole = true;
    while ((len = recv(fd, buf, sizeof(buf), 0)) > 0)
        for (ssize_t i = 0; i < len; i++, s->bytes++)
            s->whole &= buf[i] == (uint8_t)(s->bytes * 31 >> 3);
    close(fd);
    return NULL;
}

static void *send_stream(void *arg)
{
    struct stream *s = arg;
    uint8_t buf[4096];

    for (s->bytes = 0; s->bytes < 4u << 20; s->bytes += sizeof(buf)) {
        for (size_t i = 0; i < sizeof(buf); i++)
            buf[i] = (uint8_t)((s->bytes + i) * 31 >> 3);
        if (send(s->fd, buf, sizeof(buf), 0) != sizeof(buf))
            break;
    }
    close(s->fd);
    return NULL;
}

/* Large segments go through whole: TCP between kernels that leave the cutting to the device. */
static void test_large_segments(void **state)
{
    struct net *n = *state;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(99), .sin_addr.s_addr = htonl(0x0a000002)};
    struct stream in = {0}, out = {0};
    pthread_t receiver, sender;
    struct port_stats s;
    int flags;

    open_port(n);
    enter(client_ns);
    in.fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(in.fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(in.fd, 1), 0);
    enter(guest_ns);
    out.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    enter(host_ns);
    connect(out.fd, (struct sockaddr *)&a, sizeof(a));
    flags = fcntl(out.fd, F_GETFL);
    fcntl(out.fd, F_SETFL, flags & ~O_NONBLOCK);
    pthread_create(&receiver, NULL, receive_stream, &in);
    for (uint64_t epoch = 1; epoch < 1000 && pthread_tryjoin_np(receiver, NULL) != 0; epoch++) {
        struct pollfd p = {out.fd, POLLOUT, 0};

        if (epoch > 1 && !out.whole && poll(&p, 1, 0) == 1) {
            out.whole = true;
            pthread_create(&sender, NULL, send_stream, &out);
        }
        usleep(5000);
        barrier(n, epoch);
        n->port->ops->release(n->port, epoch);
    }
    pthread_join(sender, NULL);
    assert_int_equal(in.bytes, 4u << 20);
    assert_true(in.whole);
    s = stats(n);
    assert_true(s.bytes_out / s.frames_out > 3000);
    assert_true(s.frames_in > 0);
    close(in.fd);
}

/* R10 */
static void test_open_errors(void **state)
{
    struct net *n = *state;
    struct port *other;

    open_port(n);
    assert_int_equal(nfqueue_port_open(&other, &n->cfg, &n->err), -1);
    assert_non_null(strstr(n->err.text, "in use"));
    n->cfg.queue = 17;
    n->cfg.bridge = "nosuch";
    assert_int_equal(nfqueue_port_open(&other, &n->cfg, &n->err), -1);
    assert_non_null(strstr(n->err.text, "nosuch"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_r1_bridge, setup_bridge, teardown),
        cmocka_unit_test_setup_teardown(test_r1_router, setup_router, teardown),
        cmocka_unit_test_setup_teardown(test_r1_killed, setup_bridge, teardown),
        cmocka_unit_test_setup_teardown(test_r3_transaction, setup_bridge, teardown),
        cmocka_unit_test_setup_teardown(test_activate, setup_bridge, teardown),
        cmocka_unit_test_setup_teardown(test_large_segments, setup_bridge, teardown),
        cmocka_unit_test_setup_teardown(test_open_errors, setup_bridge, teardown),
    };

    if (unshare(CLONE_NEWNET) < 0 ||
        system("nft 'table bridge t { chain c { type filter hook prerouting priority 0; queue num 1; }; }'"
               " >/dev/null 2>&1") != 0) {
        puts("1..0 # SKIP needs root, nft, and a kernel with queues for it");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
