/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <string.h>

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

struct gate *port_gate_new(size_t queue_bytes, const char *services, bool open_active, struct error *err)
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

void port_gate_stats(const struct gate *gate, struct port_stats *stats)
{
    struct gate_stats g;

    gate_stats(gate, clock_ns(), &g);
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
    };
    memcpy(stats->by, g.by, sizeof(stats->by));
}

int port_station(const char *mac, struct net_address *a, struct error *err)
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

int takeover_begin(struct takeover *t, struct gate *g, const struct net_address *fallback,
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

uint64_t takeover_reset_due(struct takeover *t, uint64_t now)
{
    uint64_t due = t->reset ? reset_due(t->reset, now) : TIME_NEVER;

    if (due == TIME_NEVER) {
        reset_free(t->reset);
        t->reset = NULL;
    }
    return due;
}
