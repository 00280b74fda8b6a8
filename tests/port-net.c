/* SPDX-License-Identifier: GPL-2.0-or-later */
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
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "gate-frames.h"
#include "port-net.h"

#define FRAME 100 /* octets of a numbered frame; the number is its end */

static const uint8_t client_mac[6] = {2, 0, 0, 0, 0, 2}, router_mac[6] = {2, 0, 0, 0, 0, 3};
static int host_ns, guest_ns, client_ns;

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

static struct net *make_net(void)
{
    struct net *n = calloc(1, sizeof(*n));

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

void await_running(const char *name)
{
    struct ifreq ifr = {0};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    strcpy(ifr.ifr_name, name);
    for (int i = 0; ioctl(fd, SIOCGIFFLAGS, &ifr) == 0 && !(ifr.ifr_flags & IFF_RUNNING); i++) {
        assert_true(i < PATIENCE_MS);
        usleep(1000);
    }
    close(fd);
}

int setup_bridge(void **state)
{
    struct net *n = make_net();

    sh("ip link add br0 up type bridge && ip link set vg master br0 && ip link set vc master br0");
    await_running("br0");
    n->bridged = true;
    *state = n;
    return 0;
}

int setup_router(void **state)
{
    struct net *n = make_net();

    sh("echo 1 >/proc/sys/net/ipv4/ip_forward; ip addr add 10.0.0.254/32 dev vg; ip addr add 10.0.0.253/32 dev vc;"
       "ip route add 10.0.0.1/32 dev vg; ip route add 10.0.0.2/32 dev vc;"
       "ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev vg; ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev vc");
    *state = n;
    return 0;
}

int teardown(void **state)
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

void open_port(struct net *n)
{
    if (n->open(n) < 0)
        fail_msg("%s", n->err.text);
}

struct port_stats stats(struct net *n)
{
    struct port_stats s;

    n->port->ops->stats(n->port, &s);
    return s;
}

void barrier(struct net *n, uint64_t epoch)
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

void send_frame(int fd, const uint8_t *f, size_t len)
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
    memcpy(f, n->bridged ? client_mac : router_mac, 6);
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

void client_gets_range(struct net *n, uint32_t from, uint32_t to, bool udp)
{
    bool tagged;

    for (; from < to; from++) {
        assert_int_equal(client_gets(n, PATIENCE_MS, &tagged), from);
        assert_int_equal(tagged, !udp && from % KINDS == VLAN);
    }
}

void client_gets_nothing(struct net *n)
{
    bool tagged;

    assert_int_equal(client_gets(n, QUIET_MS, &tagged), -1);
}

void guest_sends_range(struct net *n, uint32_t from, uint32_t to, bool udp)
{
    for (; from < to; from++)
        guest_sends(n, from, udp);
}

void await_held(struct net *n, uint64_t frames)
{
    for (int i = 0; stats(n).held_frames < frames; i++) {
        assert_true(i < PATIENCE_MS);
        usleep(1000);
    }
}

void test_r1_killed(void **state)
{
    struct net *n = *state;
    int ready[2];
    char c;
    pid_t pid;

    assert_int_equal(pipe(ready), 0);
    pid = fork();
    if (pid == 0) {
        if (n->open(n) < 0 || write(ready[1], "x", 1) != 1)
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

void test_leave(void **state)
{
    struct net *n = *state;
    open_port(n);
    n->port->ops->pass(n->port);
    guest_sends_range(n, 0, 10, false);
    client_gets_range(n, 0, 10, false);
    n->port->ops->leave(n->port);
    n->port->ops->close(n->port);
    n->port = NULL;
    guest_sends_range(n, 10, 20, false);
    client_gets_range(n, 10, 20, false);
}

void test_announced(void **state)
{
    struct net *n = *state;
    struct pollfd p = {.fd = n->client, .events = POLLIN};
    uint8_t f[2048];
    ssize_t len;

    open_port(n);
    assert_int_equal(n->port->ops->activate(n->port, NULL, 0, &n->err), 0);
    do /* the kernel speaks on its interfaces, too */
        len = poll(&p, 1, PATIENCE_MS) == 1 ? recv(n->client, f, sizeof(f), 0) : -1;
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

void test_large_segments(void **state)
{
    struct net *n = *state;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(99), .sin_addr.s_addr = htonl(0x0a000002)};
    struct stream in = {0}, out = {0};
    pthread_t receiver, sender;
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
    close(in.fd);
}
