/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A reliable, ordered byte stream to the peer.  tcp for the product, mem for tests in one process; TLS is to be
 * one more table.  One thread sends and one receives; shutdown may come from any third.
 */
#ifndef REMUS_CHAN_H
#define REMUS_CHAN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "error.h"

struct chan {
    const struct chan_ops *ops;
    char peer[64]; /* for messages: "10.78.0.2:7910", or, of whoever connected to us, "10.78.0.1" */
    uint64_t send_until; /* clock_ns at which send gives up, with ETIMEDOUT; 0: never */
};

struct chan_ops {
    /* Sends all of it, waiting as long as it takes or send_until.  0, or -1 with errno.  Changes the iovec. */
    int (*send)(struct chan *c, struct iovec *iov, int count);

    /* 1 to len octets; 0 at the end of the stream; -1 with errno, ETIMEDOUT when `deadline` (clock_ns)
     * came first. */
    ssize_t (*recv)(struct chan *c, void *buf, size_t len, uint64_t deadline);

    /* Ends both directions: whoever waits in send or recv returns. */
    void (*shutdown)(struct chan *c);

    /* Octets a second that the way to the peer carries, as last measured; 0: not known. */
    uint64_t (*rate)(struct chan *c);

    void (*close)(struct chan *c);
};

/* HOST:PORT.  Waits at most timeout_ns for the connection. */
struct chan *tcp_connect(const char *address, uint64_t timeout_ns, struct error *err);

/* A listening socket for HOST:PORT; the caller accepts and closes it.  -1 and err when it is in use. */
int tcp_listen(const char *address, struct error *err);

/* Wraps an accepted socket; owns fd, on failure too. */
struct chan *tcp_accepted(int fd, struct error *err);

/* Two ends that talk to each other, `capacity` octets under way in each direction at most. */
int mem_chan_pair(struct chan *pair[2], size_t capacity);

#endif
