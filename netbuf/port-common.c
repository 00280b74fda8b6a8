/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/config.h"
#include "port-common.h"

#define LINGER 2u /* with 1, too many transactions of a busy server begin too late (measured) */

static int add_services(struct gate *g, const char *services, struct error *err)
{
    const char *at = services;
    char protocol[16];
    uint16_t value;
    int rc;

    while ((rc = config_next_service(&at, protocol, &value)) > 0) {
        const struct parser *parser = parser_find(protocol);
        if (strcmp(protocol, "dscp") == 0)
            gate_set_mark(g, (uint8_t)value);
        else if (!parser || gate_add_service(g, value, parser) < 0)
            break;
    }
    return rc == 0 ? 0
                   : error_set(err,
                               "services '%s': want at most %d times pgsql:PORT, mysql:PORT or "
                               "dscp:MARK",
                               services, CONFIG_SERVICES_MAX);
}

static struct gate *new_gate(size_t queue_bytes, const char *services, bool open_active, struct error *err)
{
    bool has_services = services && *services;
    struct gate *g = gate_new(queue_bytes, has_services ? NET_FLOWS_MAX : 0);

    if (!g) {
        error_set(err, "packet queue of %zu octets: %s", queue_bytes,
                  errno == EINVAL ? "too small" : strerror(errno));
        return NULL;
    }
    if (has_services && open_active)
        gate_linger(g, LINGER);
    if (has_services && add_services(g, services, err) < 0) {
        gate_free(g);
        return NULL;
    }
    return g;
}

static int station(const char *mac, struct net_address *a, struct error *err)
{
    unsigned v[6];
    char end;

    *a = (struct net_address){0};
    if (!*mac)
        return 0;
    if (sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x%c", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &end) !=
            6 ||
        (v[0] & 1))
        return error_set(err, "mac '%s': six pairs of hexadecimal digits expected, no multicast",
                         mac);
    for (unsigned i = 0; i < 6; i++)
        a->mac[i] = (uint8_t)v[i];
    return 0;
}

static int takeover_begin(struct takeover *t, struct gate *g, const struct net_address *fallback,
                   const uint8_t *net_state, size_t len, struct error *err)
{
    static const struct net_address none;
    struct net_state state;
    struct reset *reset = NULL;

    if (net_state_decode(&state, net_state, len, err) < 0)
        return -1;
    if (state.flows && !(reset = reset_new(&state, clock_ns())))
        return error_set(err, "resetting %u connections: %s", state.flows, strerror(ENOMEM));
    *gate_addresses(g) = state.addresses;
    if (state.addresses.count == 0 && memcmp(fallback, &none, sizeof(none)) != 0)
        state.addresses.entry[state.addresses.count++] = *fallback;
    announcer_start(&t->announcer, &state.addresses, clock_ns());
    reset_free(t->reset);
    t->reset = reset;
    return 0;
}

static struct gate_port *of(struct port *p)
{
    return (struct gate_port *)p;
}

static void wake(struct gate_port *g)
{
    uint64_t one = 1;

    /* Fails only when the counter is at its maximum: then the thread will wake anyway. */
    if (write(g->wake, &one, sizeof(one)) < 0)
        return;
}

void gate_port_init(struct gate_port *g, const struct port_ops *ops)
{
    g->port.ops = ops;
    g->wake = -1;
    pthread_mutex_init(&g->lock, NULL);
}

int gate_port_open(struct gate_port *g, const char *mac, size_t queue_bytes, const char *services,
                   bool open_active, struct error *err)
{
    g->has_services = services && *services;
    g->gate = new_gate(queue_bytes, services, open_active, err);
    if (!g->gate)
        return -1;
    g->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (g->wake < 0)
        return error_set(err, "%s port: eventfd: %s", g->port.ops->name, strerror(errno));
    return station(mac, &g->fallback, err);
}

int gate_port_start(struct gate_port *g, void *(*main)(void *), struct error *err)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&g->thread, NULL, main, g);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc)
        return error_set(err, "thread of the %s port: %s", g->port.ops->name, strerror(rc));
    pthread_setname_np(g->thread, g->port.ops->name);
    return 0;
}

void gate_port_stop(struct gate_port *g)
{
    g->stop = true;
    wake(g);
    pthread_join(g->thread, NULL);
}

void gate_port_fini(struct gate_port *g)
{
    if (g->wake >= 0)
        close(g->wake);
    gate_free(g->gate);
    reset_free(g->takeover.reset);
    pthread_mutex_destroy(&g->lock);
}

void gate_port_release(struct port *p, uint64_t epoch)
{
    struct gate_port *g = of(p);

    pthread_mutex_lock(&g->lock);
    gate_release(g->gate, epoch);
    pthread_mutex_unlock(&g->lock);
    wake(g);
}

bool gate_port_urgent(struct port *p)
{
    struct gate_port *g = of(p);
    SCOPED_LOCK(&g->lock);

    return gate_urgent(g->gate);
}

void gate_port_hold(struct port *p)
{
    struct gate_port *g = of(p);
    SCOPED_LOCK(&g->lock);

    gate_hold(g->gate);
}

void gate_port_pass(struct port *p)
{
    struct gate_port *g = of(p);

    pthread_mutex_lock(&g->lock);
    gate_pass(g->gate);
    pthread_mutex_unlock(&g->lock);
    wake(g);
}

int gate_port_activate(struct port *p, const uint8_t *net_state, size_t len, struct error *err)
{
    struct gate_port *g = of(p);
    int rc;

    pthread_mutex_lock(&g->lock);
    /* Before the gate opens: the guest may have sent something already. */
    rc = takeover_begin(&g->takeover, g->gate, &g->fallback, net_state, len, err);
    if (rc == 0)
        gate_pass(g->gate);
    pthread_mutex_unlock(&g->lock);
    wake(g);
    return rc;
}

void gate_port_stats(struct gate_port *port, struct port_stats *stats)
{
    struct gate_stats g;

    pthread_mutex_lock(&port->lock);
    gate_stats(port->gate, clock_ns(), &g);
    pthread_mutex_unlock(&port->lock);
    *stats = (struct port_stats){
        .held_frames = g.held_frames,
        .held_bytes = g.held_bytes,
        .held_frames_max = g.held_frames_max,
        .frames_out = g.out_frames,
        .bytes_out = g.out_bytes,
        .refused = g.refused,
        .full_ns = g.full_ns,
        .hold_p50_ns = g.hold_p50_ns,
        .hold_p99_ns = g.hold_p99_ns,
        .unprotected = g.unprotected,
        .flows = g.flows,
        .has_flows = port->has_services,
    };
    memcpy(stats->by, g.by, sizeof(stats->by));
}

/* What stands in err, if anything, is why it is no other port. */
static int open_plug(struct port **p, const struct plug_port_config *cfg, struct error *err)
{
#ifdef HAVE_NL
    struct error why;

    if (plug_port_open(p, cfg, &why) == 0)
        return 0;
    return error_set(err, "%s%s%s", err->text, err->text[0] ? "; " : "", why.text);
#else
    (void)p;
    return err->text[0] ? -1 : error_set(err, "vif %s: this build has no netbuf = plug: libnl-route-3 was not there", cfg->vif);
#endif
}

int port_open(struct port **p, const struct vm_config *cfg, const char *guest_path, const char *port_path, bool primary,
              struct error *err)
{
    const char *services = primary ? cfg->services : NULL;
    bool open_active = primary && cfg->open_when == OPEN_ACTIVE;
    struct frames_port_config frames = {
        .guest_path = guest_path,
        .guest_bridge = cfg->guest_bridge,
        .port_path = port_path,
        .tap = cfg->tap,
        .mac = cfg->mac,
        .queue_bytes = cfg->net_queue_bytes,
        .services = services,
        .open_active = open_active,
    };
    struct nfqueue_port_config queue = {
        .queue = (uint16_t)cfg->nfqueue,
        .vif = cfg->vif,
        .bridge = cfg->guest_bridge,
        .mac = cfg->mac,
        .queue_bytes = cfg->net_queue_bytes,
        .services = services,
        .open_active = open_active,
    };

    struct plug_port_config plug = {
        .vif = cfg->vif,
        .bridge = cfg->guest_bridge,
        .mac = cfg->mac,
        .queue_bytes = cfg->net_queue_bytes,
    };

    err->text[0] = '\0';
    if (*cfg->vif && cfg->netbuf != NETBUF_PLUG) {
        if (nfqueue_port_open(p, &queue, err) == 0)
            return 0;
        if (errno != EOPNOTSUPP || cfg->netbuf == NETBUF_NFQUEUE || (services && *services))
            return -1;
    }
    if (*cfg->vif)
        return open_plug(p, &plug, err);
    if (*cfg->tap)
        return frames_port_open(p, &frames, err);
    *p = null_port_new();
    return *p ? 0 : error_set(err, "no memory");
}

uint64_t takeover_reset_due(struct takeover *t, uint64_t now)
{
    uint64_t due = t->reset ? reset_due(t->reset, now) : TIME_NEVER;

    if (due == TIME_NEVER) {
        reset_free(t->reset);
        t->reset = NULL;
    }
    return due;
}
