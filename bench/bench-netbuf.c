/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What holding packets costs: the gate alone, strict and with commit protection; and the frames
 * port with a guest process that sends as fast as it can into a tap of a network namespace of its
 * own, 25 ms an epoch, each released when the next one closes. JSON lines; ns_per_frame is
 * processor time, of one core.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "common/clock.h"
#include "netbuf/gate.h"
#include "netbuf/port.h"

#define QUEUE (32u << 20)
#define EPOCH_MS 25
#define RUN_MS 2000

static const uint8_t frame[1514] = {2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5};

/* In and out of the gate, an epoch of 4,000 frames at a time. */
static int bench_gate(size_t len)
{
    enum { EPOCH = 4000, EPOCHS = 250 };
    struct gate *g = gate_new(QUEUE, 0);
    struct buffer b = {0};
    struct iovec v[32];
    uint64_t start = process_cpu_ns(), spent;
    unsigned n;

    if (!g)
        return 1;
    for (uint64_t e = 1; e <= EPOCHS; e++) {
        for (unsigned i = 0; i < EPOCH; i++)
            gate_send(g, frame, len, e);
        buffer_clear(&b);
        gate_barrier(g, e, &b);
        gate_release(g, e);
        while ((n = gate_peek(g, v, 32)) > 0)
            gate_pop(g, n, e);
    }
    spent = process_cpu_ns() - start;
    printf("{\"case\": \"gate\", \"octets\": %zu, \"ns_per_frame\": %.0f}\n", len,
           (double)spent / (EPOCH * EPOCHS));
    buffer_free(&b);
    gate_free(g);
    return 0;
}

/* A small segment of connection `port`, from 10.0.0.1:5432 to 10.0.0.2. */
static size_t put_segment(uint8_t *f, unsigned port, uint32_t seq, uint8_t flags, const void *data,
                          size_t len)
{
    static const uint8_t head[34] = {2, 0, 0, 0, 0, 9,  2, 0, 0, 0,  0, 1, 8, 0,  0x45, 0, 0,
                                     0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0,    0, 2};

    memcpy(f, head, sizeof(head));
    memset(f + 34, 0, 20);
    put_be16(f + 16, (uint16_t)(40 + len));
    put_be16(f + 34, 5432);
    put_be16(f + 36, (uint16_t)port);
    put_be32(f + 38, seq);
    f[46] = 0x50;
    f[47] = flags;
    memcpy(f + 54, data, len);
    return 54 + len;
}

/* Rows of transactions of 1,000 connections, all open: flow table, TCP, parser, short queue. */
static int bench_flows(void)
{
    enum { CONNS = 1000, ROUNDS = 1000 };
    static const char hello[] = "R\0\0\0\x8\0\0\0\0Z\0\0\0\5IC\0\0\0\x0a"
                                "BEGIN\0Z\0\0\0\5T";
    static const char row[] = "D\0\0\0\x0b\0\1\0\0\0\1x";
    struct gate *g = gate_new(QUEUE, CONNS);
    struct gate_stats stats;
    struct buffer b = {0};
    struct iovec v[32];
    uint32_t seq = 1 + sizeof(hello) - 1;
    uint64_t start, spent;
    uint8_t f[200];
    unsigned n;

    if (!g || gate_add_service(g, 5432, &parser_pgsql) < 0)
        return 1;
    for (unsigned i = 0; i < CONNS; i++) {
        gate_send(g, f, put_segment(f, 10000 + i, 0, TCP_SYN | TCP_ACK, NULL, 0), 1);
        gate_send(g, f, put_segment(f, 10000 + i, 1, TCP_ACK, hello, sizeof(hello) - 1), 1);
    }
    gate_barrier(g, 1, &b);
    gate_release(g, 1);
    while ((n = gate_peek(g, v, 32)) > 0)
        gate_pop(g, n, 1);
    start = process_cpu_ns();
    for (unsigned k = 0; k < ROUNDS; k++, seq += sizeof(row) - 1)
        for (unsigned i = 0; i < CONNS; i++) {
            gate_send(g, f, put_segment(f, 10000 + i, seq, TCP_ACK, row, sizeof(row) - 1), 1);
            if (i % 32 == 31 || i == CONNS - 1)
                gate_pop(g, gate_peek(g, v, 32), 1);
        }
    spent = process_cpu_ns() - start;
    gate_stats(g, 1, &stats);
    printf(
        "{\"case\": \"gate-pgsql\", \"octets\": %zu, \"ns_per_frame\": %.0f, \"passed\": %.3f}\n",
        54 + sizeof(row) - 1, (double)spent / (CONNS * ROUNDS),
        (double)stats.by[FLOW_OPEN] / (CONNS * ROUNDS));
    buffer_free(&b);
    gate_free(g);
    return 0;
}

static void guest(const char *path, const char *port_path, size_t len)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct mmsghdr msg[32];
    struct iovec iov = {(void *)(uintptr_t)frame, len};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        _exit(1);
    snprintf(a.sun_path, sizeof(a.sun_path), "%s", port_path);
    for (unsigned i = 0; i < 32; i++)
        msg[i] = (struct mmsghdr){.msg_hdr = {.msg_name = &a,
                                              .msg_namelen = sizeof(a),
                                              .msg_iov = &iov,
                                              .msg_iovlen = 1}};
    while (sendmmsg(fd, msg, 32, 0) >= 0)
        ;
    _exit(0);
}

static void run_epochs(struct port *p, struct buffer *b, uint64_t *epoch, uint64_t until)
{
    while (clock_ns() < until) {
        usleep(EPOCH_MS * 1000);
        buffer_clear(b);
        p->ops->barrier(p, ++*epoch, b);
        p->ops->release(p, *epoch - 1);
    }
}

static int bench_port(size_t len)
{
    char dir[] = "/tmp/bench-netbuf-XXXXXX", guest_path[64], port_path[64];
    struct frames_port_config cfg = {guest_path, port_path, "bench0", "", QUEUE, NULL, false, NULL};
    struct port_stats before, after;
    struct buffer b = {0};
    struct error err;
    struct port *p;
    uint64_t epoch = 0, start, cpu, wall;
    pid_t pid;

    if (!mkdtemp(dir))
        return 1;
    snprintf(guest_path, sizeof(guest_path), "%s/guest", dir);
    snprintf(port_path, sizeof(port_path), "%s/port", dir);
    if (frames_port_open(&p, &cfg, &err) < 0) {
        fprintf(stderr, "remus-bench netbuf: %s\n", err.text);
        rmdir(dir);
        return 1;
    }
    pid = fork();
    if (pid == 0)
        guest(guest_path, port_path, len);
    run_epochs(p, &b, &epoch, clock_ns() + RUN_MS / 4 * NS_PER_MS);
    p->ops->stats(p, &before);
    start = clock_ns();
    cpu = process_cpu_ns();
    run_epochs(p, &b, &epoch, start + RUN_MS * NS_PER_MS);
    p->ops->stats(p, &after);
    cpu = process_cpu_ns() - cpu;
    wall = clock_ns() - start;
    after.frames_out -= before.frames_out;
    printf(
        "{\"case\": \"frames\", \"octets\": %zu, \"frames_per_s\": %.0f, \"ns_per_frame\": %.0f, "
        "\"hold_p50_ms\": %.1f, \"hold_p99_ms\": %.1f}\n",
        len, (double)after.frames_out * 1e9 / (double)wall, (double)cpu / (double)after.frames_out,
        (double)after.hold_p50_ns / 1e6, (double)after.hold_p99_ns / 1e6);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    p->ops->close(p);
    buffer_free(&b);
    unlink(guest_path);
    rmdir(dir);
    return 0;
}

int bench_netbuf(int argc, char **argv)
{
    static const size_t octets[] = {64, 1514};
    FILE *qlen;

    if (argc > 1 && (argc > 2 || strcmp(argv[1], "--json") != 0)) {
        fprintf(stderr, "usage: %s [--json]\n", argv[0]);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (unsigned i = 0; i < 2; i++)
        if (bench_gate(octets[i]))
            return 1;
    if (bench_flows())
        return 1;
    if (unshare(CLONE_NEWNET) < 0) {
        fprintf(stderr, "%s: a network namespace: %s; run as root for the frames port's figures\n",
                argv[0], strerror(errno));
        return 1;
    }
    qlen = fopen("/proc/sys/net/unix/max_dgram_qlen", "w"); /* of this namespace */
    if (qlen) {
        fprintf(qlen, "1000\n");
        fclose(qlen);
    }
    for (unsigned i = 0; i < 2; i++)
        if (bench_port(octets[i]))
            return 1;
    return bench_netbuf_pgsql();
}
