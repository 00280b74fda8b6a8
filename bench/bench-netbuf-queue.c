/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the nfqueue port costs beyond the kernel's queue: small frames over a bridge, from a network namespace that sends as fast as
 * it can, once through the port, 25 ms an epoch, each released when the next one closes, and once through the same queue with
 * a reader that does nothing but accept, many packets with a call as the port does. In turns, so that what else the machine does meets
 * both. JSON lines; ns_per_frame is processor time of the process that reads. Needs root, and a kernel with nft's queues:
 * tests/nfqueue-guest --bench runs it on Debian's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "common/clock.h"
#include "netbuf/port.h"

#define QUEUE 7
#define QUEUE_BYTES (32u << 20)
#define BATCH 32
#define EPOCH_MS 25
#define WARM_MS 300
#define RUN_MS 1500
#define ROUNDS 4

/* A namespace of its own, whose eth0 comes later. */
static pid_t start_guest(void)
{
    static const uint8_t frame[64] = {2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5};
    struct iovec iov = {(void *)(uintptr_t)frame, sizeof(frame)};
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(0x88b5)};
    struct mmsghdr msg[BATCH];
    int fd, size = 64 << 20; /* what the queue holds counts */
    pid_t pid = fork();

    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (unshare(CLONE_NEWNET) < 0)
        _exit(1);
    fd = socket(AF_PACKET, SOCK_RAW, 0);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
    for (unsigned i = 0; i < BATCH; i++)
        msg[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iov, .msg_iovlen = 1}};
    while ((to.sll_ifindex = (int)if_nametoindex("eth0")) == 0)
        usleep(10000);
    while (system("ip link set eth0 up") != 0 || bind(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
        usleep(10000);
    for (;;)
        if (sendmmsg(fd, msg, BATCH, 0) < 0)
            usleep(1000);
}

struct result {
    uint64_t frames, cpu, wall;
};

static void add(struct result *r, uint64_t frames, uint64_t cpu, uint64_t wall)
{
    r->frames += frames;
    r->cpu += cpu;
    r->wall += wall;
}

/* --- the port --- */

static void run_epochs(struct port *p, uint64_t *epoch, uint64_t until)
{
    struct buffer b = {0};

    while (clock_ns() < until) {
        usleep(EPOCH_MS * 1000);
        buffer_clear(&b);
        p->ops->barrier(p, ++*epoch, &b);
        p->ops->release(p, *epoch - 1);
    }
    buffer_free(&b);
}

static int run_port(struct result *r)
{
    struct nfqueue_port_config cfg = {QUEUE, "vg", "br0", "02:00:00:00:00:01", QUEUE_BYTES, NULL, false};
    struct port_stats before, after;
    uint64_t epoch = 0, began, cpu;
    struct error err;
    struct port *p;

    if (nfqueue_port_open(&p, &cfg, &err) < 0) {
        fprintf(stderr, "remus-bench netbuf-queue: %s\n", err.text);
        return -1;
    }
    run_epochs(p, &epoch, clock_ns() + WARM_MS * NS_PER_MS);
    p->ops->stats(p, &before);
    began = clock_ns();
    cpu = process_cpu_ns();
    run_epochs(p, &epoch, began + RUN_MS * NS_PER_MS);
    p->ops->stats(p, &after);
    add(r, after.frames_out - before.frames_out, process_cpu_ns() - cpu, clock_ns() - began);
    p->ops->close(p);
    return 0;
}

/* --- the reader that does nothing --- */

struct message {
    struct nlmsghdr nl;
    struct nfgenmsg nfgen;
    uint8_t attrs[40];
};

static int say(int fd, uint16_t type, const void *attrs, size_t len)
{
    struct message m = {.nl = {.nlmsg_len = (uint32_t)(offsetof(struct message, attrs) + NLA_ALIGN(len)),
                               .nlmsg_type = (uint16_t)(NFNL_SUBSYS_QUEUE << 8 | type),
                               .nlmsg_flags = NLM_F_REQUEST},
                        .nfgen = {.version = NFNETLINK_V0, .res_id = htons(QUEUE)}};

    memcpy(m.attrs, attrs, len);
    return send(fd, &m, m.nl.nlmsg_len, 0) < 0 ? -1 : 0;
}

static int open_reader(void)
{
    const struct {
        struct nlattr attr;
        struct nfqnl_msg_config_cmd cmd;
    } bind_queue = {{sizeof(bind_queue), NFQA_CFG_CMD}, {.command = NFQNL_CFG_CMD_BIND}};
    const struct {
        struct nlattr most_attr;
        uint32_t most;
        struct nlattr params_attr;
        struct nfqnl_msg_config_params params;
    } how = {{8, NFQA_CFG_QUEUE_MAXLEN}, htonl(QUEUE_BYTES / 64), {4 + sizeof(how.params), NFQA_CFG_PARAMS},
             {.copy_range = htonl(0xffff - NLA_HDRLEN), .copy_mode = NFQNL_COPY_PACKET}};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER), size = 8 << 20, one = 1;

    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
    setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof(one));
    if (fd < 0 || say(fd, NFQNL_MSG_CONFIG, &bind_queue, sizeof(bind_queue)) < 0 ||
        say(fd, NFQNL_MSG_CONFIG, &how, offsetof(typeof(how), params) + sizeof(how.params)) < 0) {
        fprintf(stderr, "remus-bench netbuf-queue: queue %d: %s\n", QUEUE, strerror(errno));
        return -1;
    }
    return fd;
}

/* The first attribute of a packet is its header. */
static uint32_t id_of(const uint8_t *msg)
{
    uint32_t id;

    memcpy(&id, msg + sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg) + NLA_HDRLEN, 4);
    return id;
}

static uint64_t read_until(int fd, uint64_t until)
{
    static uint8_t rx[BATCH][66560];
    struct {
        struct nlattr attr;
        struct nfqnl_msg_verdict_hdr hdr;
    } accept = {{sizeof(accept), NFQA_VERDICT_HDR}, {.verdict = htonl(NF_ACCEPT)}};
    struct timeval patience = {0, 10000};
    struct mmsghdr msg[BATCH];
    struct iovec iov[BATCH];
    uint64_t frames = 0;
    int n;

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    for (unsigned i = 0; i < BATCH; i++) {
        iov[i] = (struct iovec){rx[i], sizeof(rx[i])};
        msg[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &iov[i], .msg_iovlen = 1}};
    }
    while (clock_ns() < until) {
        n = recvmmsg(fd, msg, BATCH, MSG_WAITFORONE, NULL);
        if (n <= 0)
            continue;
        accept.hdr.id = id_of(rx[n - 1]);
        say(fd, NFQNL_MSG_VERDICT_BATCH, &accept, sizeof(accept));
        frames += (uint64_t)n;
    }
    return frames;
}

static int run_reader(struct result *r)
{
    int fd = open_reader();
    uint64_t began, cpu, frames;

    if (fd < 0)
        return -1;
    read_until(fd, clock_ns() + WARM_MS * NS_PER_MS);
    began = clock_ns();
    cpu = process_cpu_ns();
    frames = read_until(fd, began + RUN_MS * NS_PER_MS);
    add(r, frames, process_cpu_ns() - cpu, clock_ns() - began);
    close(fd);
    return 0;
}

static void print(const char *mode, const struct result *r)
{
    printf("{\"case\": \"nfqueue\", \"mode\": \"%s\", \"octets\": 64, \"frames_per_s\": %.0f, \"ns_per_frame\": %.0f}\n", mode,
           (double)r->frames * 1e9 / (double)r->wall, (double)r->cpu / (double)(r->frames ? r->frames : 1));
}

int bench_netbuf_queue(int argc, char **argv)
{
    struct result reader = {0}, port = {0};
    char command[600];
    pid_t guest;
    int rc = 0;

    if (argc > 1 && (argc > 2 || strcmp(argv[1], "--json") != 0)) {
        fprintf(stderr, "usage: %s [--json]\n", argv[0]);
        return 2;
    }
    if (unshare(CLONE_NEWNET) < 0) {
        fprintf(stderr, "%s: a network namespace: %s; run it as root\n", argv[0], strerror(errno));
        return 1;
    }
    guest = start_guest();
    usleep(100000); /* it is in its namespace */
    snprintf(command, sizeof(command),
             "for f in all default; do echo 1 >/proc/sys/net/ipv6/conf/$f/disable_ipv6; done;"
             "ip link add br0 up type bridge && ip link add vg up master br0 type veth peer name eth0 netns %d &&"
             "ip link add vc up master br0 type veth peer name c0 address 02:00:00:00:00:09 && ip link set c0 up", guest);
    if (system(command) != 0)
        rc = -1;
    for (unsigned i = 0; i < ROUNDS && rc == 0; i++)
        rc = run_port(&port) < 0 || run_reader(&reader) < 0 ? -1 : 0;
    kill(guest, SIGKILL);
    waitpid(guest, NULL, 0);
    if (rc < 0)
        return 1;
    print("no-op reader", &reader);
    print("port", &port);
    return 0;
}
