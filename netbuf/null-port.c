/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>

#include "port.h"

static int null_barrier(struct port *p, uint64_t epoch, struct buffer *net_state)
{
    (void)p, (void)epoch, (void)net_state;
    return 0;
}

static void null_release(struct port *p, uint64_t epoch)
{
    (void)p, (void)epoch;
}

static void null_mode(struct port *p)
{
    (void)p;
}

static int null_activate(struct port *p, const uint8_t *net_state, size_t len, struct error *err)
{
    (void)p, (void)net_state, (void)len, (void)err;
    return 0;
}

static void null_stats(struct port *p, struct port_stats *stats)
{
    (void)p;
    *stats = (struct port_stats){0};
}

static void null_close(struct port *p)
{
    free(p);
}

static const struct port_ops null_ops = {
    .name = "null",
    .barrier = null_barrier,
    .release = null_release,
    .hold = null_mode,
    .pass = null_mode,
    .activate = null_activate,
    .stats = null_stats,
    .close = null_close,
};

struct port *null_port_new(void)
{
    struct port *p = malloc(sizeof(*p));

    if (p)
        p->ops = &null_ops;
    return p;
}
