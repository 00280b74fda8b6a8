/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The plug port: the kernel holds the guest's packets in a queue of kind plug (net/sched/sch_plug.c), as xl remus does.
 *
 *     guest --> vif, ingress: redirected --> ifb-VIF, plug: held --> back to the vif, and on its way to bridge or router
 *     guest <-- vif <-- bridge or router                                                        not touched
 *
 * The filter matches every packet, of any protocol.  The queue counts packets, and knows two epochs:
 *
 *     released | last epoch | current epoch |        BUFFER       current becomes last; what was last is forgotten
 *     ---------+------------+---------------+        RELEASE_ONE  as many as last has leave from the front
 *
 * So while one checkpoint has closed an epoch and is not acknowledged, no other may close one: BUFFER would make the release of
 * the first let out as many as the second has (R1).  What is sent meanwhile stays in the current epoch, together with what
 * comes after: held longer, never shorter.  Of two checkpoints in flight, every other one closes an epoch.
 *
 * Fail closed: queue and filter stay when the daemon is gone; what was held stays held, and what comes is held too, up to the limit,
 * beyond which the kernel drops.  What passed, because nothing was protected, goes on passing.  A new daemon puts a new plug in
 * place of the old one, in one step, with which the packets in the old one are gone.
 *
 * It cannot tell connections apart, so there is no commit protection, and none can be reset.  The gate is here for the epochs only.
 */
#include <errno.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/pkt_cls.h>
#include <linux/rtnetlink.h>
#include <linux/tc_act/tc_mirred.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netlink/netlink.h>
#include <netlink/route/act/mirred.h>
#include <netlink/route/action.h>
#include <netlink/route/classifier.h>
#include <netlink/route/cls/matchall.h>
#include <netlink/route/link.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/qdisc/plug.h>
#include <netlink/route/tc.h>
#include <netlink/socket.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "port-common.h"

#define ANY_PROTOCOL 3 /* ETH_P_ALL */
#define INGRESS TC_HANDLE(0xffff, 0)
#define IFB_QUEUE 1000 /* packets on their way back, before the plug waits */
#define MARK_NEXT UINT64_MAX

struct plug_port {
    struct gate_port g;
    int events;  /* the kernel's announcements of interfaces */
    int raw;     /* to send with */
    int bridge;  /* its index; 0: none */
    char vif[IFNAMSIZ], ifb[IFNAMSIZ];
    int ifb_index;

    /* under g.lock */
    struct nl_sock *nl;
    uint32_t handle; /* of our plug */
    int vif_index;   /* of the interface that is redirected; 0: there was none */
    uint64_t mark;   /* the last epoch is this one's, or an earlier one's; 0: it is empty; or the next one's */
    bool passes;
};

static struct plug_port *of(struct port *p)
{
    return (struct plug_port *)p;
}

/* --- the kernel's side; all return 0, or a negative error of libnl --- */

static int plug_do(struct plug_port *f, int (*what)(struct rtnl_qdisc *q))
{
    struct rtnl_qdisc *q = rtnl_qdisc_alloc();
    int rc = -NLE_NOMEM;

    if (!q)
        return rc;
    rtnl_tc_set_ifindex(TC_CAST(q), f->ifb_index);
    rtnl_tc_set_parent(TC_CAST(q), TC_H_ROOT);
    rtnl_tc_set_handle(TC_CAST(q), f->handle); /* so never to another queue */
    rc = rtnl_tc_set_kind(TC_CAST(q), "plug");
    if (rc == 0 && (rc = what(q)) == 0)
        rc = rtnl_qdisc_add(f->nl, q, 0);
    rtnl_qdisc_put(q);
    return rc;
}

/* The queue at the root of the ifb; NULL: none that we could have made.  Release with rtnl_qdisc_put(). */
static struct rtnl_qdisc *root_queue(struct plug_port *f)
{
    struct nl_cache *all;
    struct rtnl_qdisc *q;

    if (rtnl_qdisc_alloc_cache(f->nl, &all) < 0)
        return NULL;
    q = rtnl_qdisc_get_by_parent(all, f->ifb_index, TC_H_ROOT);
    nl_cache_free(all);
    return q;
}

/* A new plug, which holds from the beginning, takes the place of what is there. */
static int install_plug(struct plug_port *f, size_t limit)
{
    struct rtnl_qdisc *old = root_queue(f), *q = rtnl_qdisc_alloc();
    int rc = q ? 0 : -NLE_NOMEM;

    f->handle = old && rtnl_tc_get_handle(TC_CAST(old)) == TC_HANDLE(1, 0) ? TC_HANDLE(2, 0) : TC_HANDLE(1, 0);
    rtnl_qdisc_put(old);
    if (rc)
        return rc;
    rtnl_tc_set_ifindex(TC_CAST(q), f->ifb_index);
    rtnl_tc_set_parent(TC_CAST(q), TC_H_ROOT);
    rtnl_tc_set_handle(TC_CAST(q), f->handle);
    rc = rtnl_tc_set_kind(TC_CAST(q), "plug");
    if (rc == 0)
        rc = rtnl_qdisc_plug_set_limit(q, limit < INT32_MAX ? (int)limit : INT32_MAX);
    if (rc == 0)
        rc = rtnl_qdisc_add(f->nl, q, NLM_F_CREATE | NLM_F_REPLACE);
    rtnl_qdisc_put(q);
    return rc;
}

static int make_ifb(struct plug_port *f)
{
    struct rtnl_link *link = rtnl_link_alloc(), *there = NULL;
    int rc = link ? 0 : -NLE_NOMEM;

    if (rc)
        return rc;
    rtnl_link_set_name(link, f->ifb);
    rtnl_link_set_flags(link, IFF_UP);
    rtnl_link_set_txqlen(link, IFB_QUEUE);
    rc = rtnl_link_set_type(link, "ifb");
    if (rc == 0)
        rc = rtnl_link_add(f->nl, link, NLM_F_CREATE | NLM_F_EXCL);
    rtnl_link_put(link);
    if (rc && rc != -NLE_EXIST)
        return rc;
    rc = rtnl_link_get_kernel(f->nl, 0, f->ifb, &there);
    if (rc)
        return rc;
    f->ifb_index = rtnl_link_get_ifindex(there);
    if (!rtnl_link_get_type(there) || strcmp(rtnl_link_get_type(there), "ifb") != 0)
        rc = -NLE_EXIST;
    rtnl_link_put(there);
    return rc;
}

static struct rtnl_cls *new_filter(int vif, uint16_t priority)
{
    struct rtnl_cls *c = rtnl_cls_alloc();

    if (!c)
        return NULL;
    rtnl_tc_set_ifindex(TC_CAST(c), vif);
    rtnl_tc_set_parent(TC_CAST(c), INGRESS);
    rtnl_cls_set_prio(c, priority);
    rtnl_cls_set_protocol(c, ANY_PROTOCOL);
    if (rtnl_tc_set_kind(TC_CAST(c), "matchall") == 0)
        return c;
    rtnl_cls_put(c);
    return NULL;
}

static int add_filter(struct plug_port *f, int vif, uint16_t priority)
{
    struct rtnl_cls *c = new_filter(vif, priority);
    struct rtnl_act *a = rtnl_act_alloc();
    int rc = -NLE_NOMEM;

    if (c && a && rtnl_tc_set_kind(TC_CAST(a), "mirred") == 0) {
        rtnl_mirred_set_action(a, TCA_EGRESS_REDIR);
        rtnl_mirred_set_policy(a, TC_ACT_STOLEN);
        rtnl_mirred_set_ifindex(a, (uint32_t)f->ifb_index);
        rc = rtnl_mall_append_action(c, a);
        if (rc == 0)
            rc = rtnl_cls_add(f->nl, c, NLM_F_CREATE | NLM_F_EXCL);
    }
    if (a)
        rtnl_act_put(a);
    if (c)
        rtnl_cls_put(c);
    return rc;
}

static void delete_filter(struct plug_port *f, int vif, uint16_t priority)
{
    struct rtnl_cls *c = new_filter(vif, priority);

    if (c) {
        rtnl_cls_delete(f->nl, c, 0);
        rtnl_cls_put(c);
    }
}

/* One of an earlier daemon may name an ifb that is gone.  Ours takes its place, and there is a filter all the time (R1). */
static int redirect(struct plug_port *f, int vif)
{
    struct rtnl_qdisc *q = rtnl_qdisc_alloc();
    int rc = q ? 0 : -NLE_NOMEM;

    if (rc)
        return rc;
    rtnl_tc_set_ifindex(TC_CAST(q), vif);
    rtnl_tc_set_parent(TC_CAST(q), TC_H_INGRESS);
    rtnl_tc_set_handle(TC_CAST(q), INGRESS);
    rc = rtnl_tc_set_kind(TC_CAST(q), "ingress");
    if (rc == 0)
        rc = rtnl_qdisc_add(f->nl, q, NLM_F_CREATE | NLM_F_EXCL);
    rtnl_qdisc_put(q);
    if (rc && rc != -NLE_EXIST)
        return rc;
    rc = add_filter(f, vif, 1);
    if (rc == -NLE_EXIST) {
        rc = add_filter(f, vif, 2);
        if (rc && rc != -NLE_EXIST)
            return rc;
        delete_filter(f, vif, 1);
        rc = add_filter(f, vif, 1);
    }
    if (rc == 0)
        delete_filter(f, vif, 2);
    return rc;
}

/* Makes what the guest sends go through the plug, if it has its interface. */
static int attach(struct plug_port *f)
{
    int vif = (int)if_nametoindex(f->vif), rc = 0;

    if (vif && vif != f->vif_index)
        rc = redirect(f, vif);
    if (rc == 0)
        f->vif_index = vif;
    return rc;
}

/* --- the thread: interfaces that come, and announcements --- */

static uint64_t announce(struct plug_port *f)
{
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = f->bridge, .sll_halen = 6};
    struct announcer *a = &f->g.takeover.announcer;
    struct iovec v;

    while (announcer_next(a, clock_ns(), &v)) {
        memcpy(to.sll_addr, v.iov_base, 6);
        if (f->bridge && sendto(f->raw, v.iov_base, v.iov_len, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof(to)) < 0)
            break; /* as on a wire: it is said several times */
        announcer_sent(a);
    }
    return announcer_due(a);
}

static void *plug_thread(void *arg)
{
    struct plug_port *f = arg;
    struct pollfd fds[] = {{f->g.wake, POLLIN, 0}, {f->events, POLLIN, 0}};
    uint64_t due = TIME_NEVER, now, wait, counter;
    uint8_t event[8192];
    struct timespec ts;

    while (!f->g.stop) {
        now = clock_ns();
        wait = due > now ? due - now : 0;
        ts = (struct timespec){(time_t)(wait / NS_PER_S), (long)(wait % NS_PER_S)};
        if (ppoll(fds, 2, due == TIME_NEVER ? NULL : &ts, NULL) > 0 && fds[0].revents &&
            read(f->g.wake, &counter, sizeof(counter)) < 0)
            continue;
        while (recv(f->events, event, sizeof(event), MSG_DONTWAIT) > 0)
            ; /* whatever it is: look */
        pthread_mutex_lock(&f->g.lock);
        attach(f); /* the barrier says so when it fails */
        due = announce(f);
        pthread_mutex_unlock(&f->g.lock);
    }
    return NULL;
}

/* --- the seam --- */

static int plug_barrier(struct port *p, uint64_t epoch, struct buffer *net_state)
{
    struct plug_port *f = of(p);
    SCOPED_LOCK(&f->g.lock);

    if (gate_barrier(f->g.gate, epoch, net_state) < 0)
        return -1;
    if (attach(f) < 0 || (f->mark == 0 && plug_do(f, rtnl_qdisc_plug_buffer) < 0)) {
        errno = ENETDOWN;
        return -1;
    }
    if (f->mark == 0 || f->mark == MARK_NEXT)
        f->mark = epoch;
    f->passes = false;
    return 0;
}

static void plug_release(struct port *p, uint64_t epoch)
{
    struct plug_port *f = of(p);
    SCOPED_LOCK(&f->g.lock);

    gate_release(f->g.gate, epoch);
    if (f->mark && epoch >= f->mark && plug_do(f, rtnl_qdisc_plug_release_one) == 0)
        f->mark = 0;
}

/* What the last checkpoint before closed leaves with the first acknowledgement after. */
static void plug_hold(struct port *p)
{
    struct plug_port *f = of(p);
    SCOPED_LOCK(&f->g.lock);

    gate_hold(f->g.gate);
    if (f->passes && plug_do(f, rtnl_qdisc_plug_buffer) == 0) /* else the barrier tries it again, and fails */
        f->passes = false;
    if (f->mark)
        f->mark = MARK_NEXT;
}

static void let_pass(struct plug_port *f)
{
    f->passes = plug_do(f, rtnl_qdisc_plug_release_indefinite) == 0;
    if (f->passes)
        f->mark = 0;
}

static void plug_pass(struct port *p)
{
    struct plug_port *f = of(p);
    SCOPED_LOCK(&f->g.lock);

    gate_pass(f->g.gate);
    let_pass(f);
}

static int plug_activate(struct port *p, const uint8_t *net_state, size_t len, struct error *err)
{
    struct plug_port *f = of(p);
    struct net_state s;

    if (net_state_decode(&s, net_state, len, err) < 0)
        return -1;
    if (s.flows)
        return error_set(err, "%u connections have to be reset, which netbuf = plug cannot: use nfqueue on both hosts", s.flows);
    if (gate_port_activate(p, net_state, len, err) < 0)
        return -1;
    SCOPED_LOCK(&f->g.lock);
    let_pass(f);
    return f->passes ? 0 : error_set(err, "%s: the plug does not open", f->ifb);
}

static void plug_stats(struct port *p, struct port_stats *stats)
{
    struct plug_port *f = of(p);
    struct rtnl_qdisc *q;
    SCOPED_LOCK(&f->g.lock);

    *stats = (struct port_stats){0};
    q = root_queue(f);
    if (!q)
        return;
    stats->held_frames = rtnl_tc_get_stat(TC_CAST(q), RTNL_TC_QLEN);
    stats->held_bytes = rtnl_tc_get_stat(TC_CAST(q), RTNL_TC_BACKLOG);
    stats->frames_out = rtnl_tc_get_stat(TC_CAST(q), RTNL_TC_PACKETS);
    stats->bytes_out = rtnl_tc_get_stat(TC_CAST(q), RTNL_TC_BYTES);
    stats->dropped_out = rtnl_tc_get_stat(TC_CAST(q), RTNL_TC_DROPS);
    rtnl_qdisc_put(q);
}

static void plug_free(struct plug_port *f)
{
    if (f->events >= 0)
        close(f->events);
    if (f->raw >= 0)
        close(f->raw);
    nl_socket_free(f->nl);
    gate_port_fini(&f->g);
    free(f);
}

/* What it still holds is lost. */
static void plug_leave(struct port *p)
{
    struct plug_port *f = of(p);
    struct rtnl_link *link;

    pthread_mutex_lock(&f->g.lock);
    if (f->vif_index)
        delete_filter(f, f->vif_index, 1);
    link = rtnl_link_alloc();
    if (link) {
        rtnl_link_set_name(link, f->ifb);
        rtnl_link_delete(f->nl, link);
        rtnl_link_put(link);
    }
    pthread_mutex_unlock(&f->g.lock);
}

static void plug_close(struct port *p)
{
    struct plug_port *f = of(p);

    gate_port_stop(&f->g);
    plug_free(f);
}

static const struct port_ops plug_ops = {
    .name = "plug",
    .barrier = plug_barrier,
    .release = plug_release,
    .hold = plug_hold,
    .pass = plug_pass,
    .activate = plug_activate,
    .stats = plug_stats,
    .leave = plug_leave,
    .close = plug_close,
};

static int open_sockets(struct plug_port *f, const char *bridge, struct error *err)
{
    struct sockaddr_nl links = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK};
    int rc;

    f->nl = nl_socket_alloc();
    f->events = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    f->raw = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* sends only */
    if (!f->nl || f->events < 0 || f->raw < 0 || bind(f->events, (struct sockaddr *)&links, sizeof(links)) < 0)
        return error_set(err, "plug port: sockets: %s", strerror(errno));
    rc = nl_connect(f->nl, NETLINK_ROUTE);
    if (rc < 0)
        return error_set(err, "plug port: netlink: %s", nl_geterror(rc));
    if (bridge && *bridge && (f->bridge = (int)if_nametoindex(bridge)) == 0)
        return error_set(err, "bridge %s: %s", bridge, strerror(errno));
    return 0;
}

static int set_up(struct plug_port *f, size_t limit, struct error *err)
{
    int rc = make_ifb(f);

    if (rc)
        return error_set(err, "vif %s: cannot make the interface %s: %s; does this kernel have the module ifb?", f->vif,
                         f->ifb, nl_geterror(rc));
    rc = install_plug(f, limit);
    if (rc)
        return error_set(err, "%s: no queue of kind plug: %s; does this kernel have the module sch_plug?", f->ifb,
                         nl_geterror(rc));
    rc = attach(f);
    return rc ? error_set(err, "vif %s: cannot redirect what it sends to %s: %s; does this kernel have the modules "
                          "sch_ingress, cls_matchall and act_mirred?", f->vif, f->ifb, nl_geterror(rc))
              : 0;
}

int plug_port_open(struct port **out, const struct plug_port_config *cfg, struct error *err)
{
    struct plug_port *f = calloc(1, sizeof(*f));

    if (!f)
        return error_set(err, "plug port: %s", strerror(ENOMEM));
    gate_port_init(&f->g, &plug_ops);
    f->events = f->raw = -1;
    if (snprintf(f->vif, sizeof(f->vif), "%s", cfg->vif) >= (int)sizeof(f->vif) ||
        snprintf(f->ifb, sizeof(f->ifb), PLUG_IFB, cfg->vif) >= (int)sizeof(f->ifb)) {
        error_set(err, "vif %s: at most %d characters with netbuf = plug", cfg->vif, PLUG_VIF_MAX);
        goto fail;
    }
    if (gate_port_open(&f->g, cfg->mac, GATE_QUEUE_MIN, NULL, false, err) < 0 ||
        open_sockets(f, cfg->bridge, err) < 0 || set_up(f, cfg->queue_bytes, err) < 0 ||
        gate_port_start(&f->g, plug_thread, err) < 0)
        goto fail;
    *out = &f->g.port;
    return 0;
fail:
    plug_free(f);
    return -1;
}
