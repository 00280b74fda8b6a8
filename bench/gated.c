/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "bench/gated.h"
#include "common/clock.h"
#include "remusd/pacer.h"

#define QUEUE (32u << 20)

struct gated {
    struct gated_config cfg;
    struct port *port;
    char guest_path[100], port_path[100];
    struct sockaddr_un to;
    int fd; /* the guest's end of the datagram socket */
    pthread_t wire, checkpoints;
    bool started;
    atomic_bool stop;
    _Atomic uint64_t taken;
};

int gated_tap(const char *name)
{
    struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    if (fd >= 0 && ioctl(fd, TUNSETIFF, &ifr) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* As a VM's network device: what the guest sends waits when the port takes no more. */
static void *wire(void *arg)
{
    struct gated *g = arg;
    struct pollfd fds[] = {{.fd = g->cfg.guest_tap, .events = POLLIN},
                           {.fd = g->fd, .events = POLLIN}};
    uint8_t frame[65600];
    ssize_t n;

    while (!g->stop) {
        if (poll(fds, 2, 100) <= 0)
            continue;
        for (int i = 0; i < 64 && (n = read(g->cfg.guest_tap, frame, sizeof(frame))) > 0; i++)
            sendto(g->fd, frame, (size_t)n, MSG_NOSIGNAL, (struct sockaddr *)&g->to, sizeof(g->to));
        for (int i = 0; i < 64 && (n = recv(g->fd, frame, sizeof(frame), MSG_DONTWAIT)) > 0; i++)
            if (write(g->cfg.guest_tap, frame, (size_t)n) < 0)
                break; /* no room: lost, as on any network */
    }
    return NULL;
}

static void say(struct gated *g, const char *what, uint64_t epoch)
{
    struct timespec ts;

    if (!g->cfg.log)
        return;
    clock_gettime(CLOCK_REALTIME, &ts);
    fprintf(g->cfg.log, "%s %lu %lu\n", what, (unsigned long)epoch,
            (unsigned long)ts.tv_sec * 1000000000 + (unsigned long)ts.tv_nsec);
    fflush(g->cfg.log);
}

static void sleep_until(uint64_t ns)
{
    struct timespec ts = {(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

/* As in remusd: the time of the next checkpoint, or of the next look. */
static void wait_for_turn(struct gated *g, struct pacer *p)
{
    const struct port_ops *ops = g->port->ops;

    for (;;) {
        uint64_t now = clock_ns(), due = pacer_due(p, now);

        if (due <= now)
            return;
        if (pacer_early(p) > now)
            due = due < pacer_early(p) ? due : pacer_early(p);
        else if (ops->urgent(g->port))
            return;
        else if (due > now + NS_PER_MS)
            due = now + NS_PER_MS;
        sleep_until(due);
    }
}

static void *checkpoints(void *arg)
{
    struct gated *g = arg;
    const struct port_ops *ops = g->port->ops;
    struct buffer state = {0};
    struct pacer p = {0};
    uint64_t at;

    pacer_start(&p, 0, g->cfg.interval_ms * NS_PER_MS);
    for (uint64_t epoch = 1; !g->stop; epoch++) {
        wait_for_turn(g, &p);
        at = clock_ns();
        buffer_clear(&state);
        if (ops->barrier(g->port, epoch, &state) < 0)
            break;
        pacer_taken(&p, epoch, at);
        say(g, "barrier", epoch);
        sleep_until(at + g->cfg.ack_ms * NS_PER_MS);
        say(g, "release", epoch);
        ops->release(g->port, epoch);
        pacer_acked(&p, epoch);
        g->taken = epoch;
    }
    buffer_free(&state);
    return NULL;
}

uint64_t gated_checkpoints(const struct gated *g)
{
    return g->taken;
}

static int start(struct gated *g, struct error *err)
{
    struct frames_port_config cfg = {.guest_path = g->guest_path,
                                     .port_path = g->port_path,
                                     .tap = g->cfg.tap,
                                     .mac = "",
                                     .queue_bytes = QUEUE,
                                     .services = g->cfg.services,
                                     .open_active = g->cfg.open_active};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int size = 1 << 20;

    if (frames_port_open(&g->port, &cfg, err) < 0)
        return -1;
    if (!g->cfg.protect)
        g->port->ops->pass(g->port);
    g->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    g->to.sun_family = AF_UNIX;
    strcpy(g->to.sun_path, g->port_path);
    strcpy(a.sun_path, g->guest_path);
    unlink(a.sun_path);
    if (g->fd < 0 || bind(g->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
        return error_set(err, "%s: %s", a.sun_path, strerror(errno));
    setsockopt(g->fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
    if (pthread_create(&g->wire, NULL, wire, g) ||
        pthread_create(&g->checkpoints, NULL, checkpoints, g))
        return error_set(err, "a thread: %s", strerror(EAGAIN));
    g->started = true;
    return 0;
}

struct gated *gated_open(const struct gated_config *cfg, struct error *err)
{
    struct gated *g = calloc(1, sizeof(*g));

    if (!g) {
        error_set(err, "%s", strerror(ENOMEM));
        return NULL;
    }
    g->cfg = *cfg;
    g->fd = -1;
    snprintf(g->guest_path, sizeof(g->guest_path), "%s/guest", cfg->dir);
    snprintf(g->port_path, sizeof(g->port_path), "%s/port", cfg->dir);
    if (start(g, err) < 0) {
        gated_close(g);
        return NULL;
    }
    return g;
}

void gated_stats(struct gated *g, struct port_stats *stats)
{
    g->port->ops->stats(g->port, stats);
}

void gated_close(struct gated *g)
{
    if (!g)
        return;
    g->stop = true;
    if (g->started) {
        pthread_join(g->wire, NULL);
        pthread_join(g->checkpoints, NULL);
    }
    if (g->port)
        g->port->ops->close(g->port);
    if (g->fd >= 0)
        close(g->fd);
    unlink(g->guest_path);
    free(g);
}
