/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What comes from the backup: acknowledgements, signs of life, the end. */
#include <inttypes.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "engine.h"

static int acknowledged(struct engine *e, uint64_t epoch, struct error *err)
{
    uint64_t now = clock_ns();

    fault_crash("primary-before-release", epoch);
    if (fault_hit("ack-lost", epoch))
        return 0;
    pthread_mutex_lock(&e->lock);
    if (epoch <= e->pacer.acked || epoch > e->pacer.taken) {
        int rc = error_set(err, "acknowledgement of checkpoint %" PRIu64
                           ", but %" PRIu64 " to %" PRIu64 " are in flight",
                           epoch, e->pacer.acked + 1, e->pacer.taken);
        pthread_mutex_unlock(&e->lock);
        return rc;
    }
    samples_add(&e->stats.ack_lag, now - e->inflight[epoch % PACER_IN_FLIGHT].suspended_at);
    e->stats.checkpoints++;
    e->sync_round = 0;
    if (e->disk)
        e->disk_acked = disk_acked(e->disk, epoch);
    pacer_acked(&e->pacer, epoch);
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    e->port->ops->release(e->port, epoch); /* R1: the only place */
    fault_crash("primary-after-release", epoch);
    return 0;
}

static int handle(struct engine *e, const struct record *rec, struct error *err)
{
    struct proto_notice notice;
    struct proto_compared checked;

    switch (rec->type) {
    case PROTO_HEARTBEAT:
        return 0;
    case PROTO_ACK:
        return acknowledged(e, rec->epoch, err);
    case PROTO_COMPARED:
        if (!e->disk)
            return error_set(err, "COMPARED of a VM without disks");
        return proto_get_compared(&checked, rec->body, rec->length, err) < 0 ? -1 : disk_compared(e->disk, &checked, err);
    case PROTO_ACTIVATED:
        engine_end_link(e, LINK_PEER_ACTIVE, "the backup runs the VM since checkpoint %" PRIu64,
                        rec->epoch);
        return 0;
    case PROTO_GOODBYE:
    case PROTO_REFUSE:
        if (proto_get_notice(&notice, rec->body, rec->length, err) < 0)
            return -1;
        engine_end_link(e, rec->type == PROTO_GOODBYE ? LINK_GOODBYE : LINK_LOST, "backup %s: %s",
                        link_peer(e->link), notice.text);
        return 0;
    default:
        return error_set(err, "%s record from a backup", proto_type_name(rec->type));
    }
}

void *engine_receive(void *engine)
{
    struct engine *e = engine;
    uint64_t timeout = e->cfg->timeout_ms * NS_PER_MS;

    for (;;) {
        struct record rec;
        struct error err;
        enum link_result r = link_recv(e->link, &rec, link_last_heard(e->link) + timeout, &err);

        if (r == LINK_RECORD && handle(e, &rec, &err) < 0)
            r = LINK_CORRUPT;
        if (r == LINK_CORRUPT)
            engine_end_link(e, LINK_LOST, "backup %s: %s", link_peer(e->link), err.text);
        else if (r == LINK_CLOSED)
            engine_end_link(e, LINK_LOST, "backup %s closed the connection",
                            link_peer(e->link));
        else if (r == LINK_TIMEOUT && link_last_heard(e->link) + timeout <= clock_ns())
            engine_end_link(e, LINK_LOST, "backup %s was silent for %u ms", link_peer(e->link),
                            e->cfg->timeout_ms);
        if (engine_link_state(e, NULL) != LINK_UP)
            return NULL;
    }
}
