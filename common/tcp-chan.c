/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "chan.h"
#include "cleanup.h"
#include "clock.h"
#include "config.h"

#ifndef TCP_RTO_MIN_US
#define TCP_RTO_MIN_US 45 /* linux/tcp.h */
#endif
/* Above the 40 ms that a peer may delay an acknowledgement, and twice within the default timeout (Linux has 200 ms): one lost segment
 * is not a lost host. */
#define RTO_MIN_US 80000

struct tcp_chan {
    struct chan chan;
    int fd;
};

/* Waits for events until `deadline`.  0, or -1 with errno ETIMEDOUT. */
static int wait_for(int fd, short events, uint64_t deadline)
{
    for (;;) {
        uint64_t now = clock_ns();
        uint64_t left = deadline > now ? deadline - now : 0;
        struct timespec ts = {(time_t)(left / NS_PER_S), (long)(left % NS_PER_S)};
        struct pollfd p = {.fd = fd, .events = events};
        int n = ppoll(&p, 1, deadline == TIME_NEVER ? NULL : &ts, NULL);

        if (n > 0)
            return 0;
        if (n == 0) {
            errno = ETIMEDOUT;
            return -1;
        }
        if (errno != EINTR)
            return -1;
    }
}

static int tcp_send(struct chan *c, struct iovec *iov, int count)
{
    struct tcp_chan *t = (struct tcp_chan *)c;
    int flags = MSG_NOSIGNAL | (c->send_until ? MSG_DONTWAIT : 0);

    while (count > 0) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)count};
        ssize_t n = sendmsg(t->fd, &msg, flags);

        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN || wait_for(t->fd, POLLOUT, c->send_until ? c->send_until : TIME_NEVER) < 0)
                return -1;
            continue;
        }
        while (count > 0 && (size_t)n >= iov->iov_len) {
            n -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

static ssize_t tcp_recv(struct chan *c, void *buf, size_t len, uint64_t deadline)
{
    struct tcp_chan *t = (struct tcp_chan *)c;

    for (;;) {
        ssize_t n = recv(t->fd, buf, len, MSG_DONTWAIT);

        if (n >= 0)
            return n;
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN || wait_for(t->fd, POLLIN, deadline) < 0)
            return -1;
    }
}

static void tcp_shutdown(struct chan *c)
{
    shutdown(((struct tcp_chan *)c)->fd, SHUT_RDWR);
}

/* The kernel's own estimate (Linux net/ipv4/tcp_rate.c). */
static uint64_t tcp_rate(struct chan *c)
{
    struct tcp_info info = {0};
    socklen_t len = sizeof(info);

    if (getsockopt(((struct tcp_chan *)c)->fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0)
        return 0;
    return info.tcpi_delivery_rate;
}

static void tcp_close(struct chan *c)
{
    struct tcp_chan *t = (struct tcp_chan *)c;

    close(t->fd);
    free(t);
}

static const struct chan_ops tcp_ops = {
    .send = tcp_send,
    .recv = tcp_recv,
    .shutdown = tcp_shutdown,
    .rate = tcp_rate,
    .close = tcp_close,
};

/* Of a connection that was accepted the port says nothing, and no two have the same: one fault, one message. */
static void name_peer(struct chan *c, const struct sockaddr *sa, socklen_t len, bool accepted)
{
    char host[46], port[8];

    if (getnameinfo(sa, len, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) < 0)
        snprintf(c->peer, sizeof(c->peer), "unknown");
    else if (accepted)
        snprintf(c->peer, sizeof(c->peer), "%s", host);
    else
        snprintf(c->peer, sizeof(c->peer), strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

static struct chan *wrap(int fd, bool accepted, struct error *err)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);
    struct tcp_chan *t = calloc(1, sizeof(*t));
    int one = 1, rto_us = RTO_MIN_US;

    if (!t || getpeername(fd, (struct sockaddr *)&sa, &len) < 0) {
        error_set(err, "new connection: %s", strerror(errno));
        close(fd);
        free(t);
        return NULL;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_RTO_MIN_US, &rto_us, sizeof(rto_us)); /* not before Linux 6.16 */
    t->chan.ops = &tcp_ops;
    t->fd = fd;
    name_peer(&t->chan, (struct sockaddr *)&sa, len, accepted);
    return &t->chan;
}

struct chan *tcp_accepted(int fd, struct error *err)
{
    return wrap(fd, true, err);
}

static struct addrinfo *resolve(const char *address, int flags, struct error *err)
{
    char host[256], port[16];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags}, *list;
    int rc;

    if (config_split_address(address, host, port, err) < 0)
        return NULL;
    rc = getaddrinfo(host[0] ? host : NULL, port, &hints, &list);
    if (rc) {
        error_set(err, "%s: %s; mend the name, or use a number", address, gai_strerror(rc));
        return NULL;
    }
    return list;
}

/* Connects without blocking, then sets the socket back to blocking.  Returns 0 or -1 with errno. */
static int connect_until(int fd, const struct addrinfo *ai, uint64_t deadline)
{
    int e = 0;
    socklen_t len = sizeof(e);

    if (connect(fd, ai->ai_addr, ai->ai_addrlen) < 0) {
        if (errno != EINPROGRESS || wait_for(fd, POLLOUT, deadline) < 0 ||
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len) < 0)
            return -1;
        if (e) {
            errno = e;
            return -1;
        }
    }
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
}

struct chan *tcp_connect(const char *address, uint64_t timeout_ns, struct error *err)
{
    struct addrinfo *list = resolve(address, AI_ADDRCONFIG, err);
    uint64_t deadline = clock_ns() + timeout_ns;
    int saved = ENOENT;

    if (!list)
        return NULL;
    for (struct addrinfo *ai = list; ai; ai = ai->ai_next) {
        int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

        if (fd >= 0 && connect_until(fd, ai, deadline) == 0) {
            freeaddrinfo(list);
            return wrap(fd, false, err);
        }
        saved = errno;
        if (fd >= 0)
            close(fd);
    }
    freeaddrinfo(list);
    error_set(err, "backup %s: %s%s", address, strerror(saved),
              saved == ECONNREFUSED                           ? " (does remus-backupd run there?)"
              : saved == ETIMEDOUT || saved == EHOSTUNREACH ? " (is that host up, and the way to it?)"
                                                              : "");
    return NULL;
}

int tcp_listen(const char *address, struct error *err)
{
    struct addrinfo *list = resolve(address, AI_PASSIVE, err);
    cleanup_close int fd = -1;
    int one = 1, out;

    if (!list)
        return -1;
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (fd < 0 || bind(fd, list->ai_addr, list->ai_addrlen) < 0 || listen(fd, 16) < 0) {
        int e = errno;
        freeaddrinfo(list);
        return error_set(err, "listen on %s: %s%s", address, strerror(e),
                         e == EADDRINUSE      ? " (is another remus-backupd running?)"
                         : e == EADDRNOTAVAIL ? " (no interface of this host has it)"
                                              : "");
    }
    freeaddrinfo(list);
    out = fd;
    fd = -1;
    return out;
}
