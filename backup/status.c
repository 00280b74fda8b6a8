/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "common/clock.h"
#include "standby-impl.h"

static json_t *ms(uint64_t ns)
{
    return json_real((double)(ns / 1000) / 1000);
}

static json_t *takeover_status(const struct view *v)
{
    const struct takeover_times *t = &v->takeover;

    if (!t->running)
        return json_null();
    return json_pack("{s:s, s:o, s:o, s:o, s:I}", "reason", v->reason, "detected_ms",
                     ms(t->suspected - t->last_heard), "activate_ms", ms(t->running - t->decided),
                     "total_ms", ms(t->running - t->suspected), "epoch", (json_int_t)t->epoch);
}

/* in_step: disk and memory could be activated together. */
static json_t *disks_status(const struct view *v)
{
    const struct journal_stats *d = &v->disks;

    if (!v->has_disks)
        return json_null();
    return json_pack("{s:b, s:I, s:I, s:I, s:I, s:o}", "in_step",
                     v->epoch && d->committed_epoch == v->epoch, "committed_epoch",
                     (json_int_t)d->committed_epoch, "applied_epoch", (json_int_t)d->applied_epoch,
                     "journal_bytes", (json_int_t)d->used_bytes, "journal_max_bytes",
                     (json_int_t)d->max_bytes, "full_ms", ms(d->waited_ns));
}

static const char *advice(const struct standby *s, const struct view *v)
{
    switch (v->state) {
    case DT_SUSPECT:
        if (s->cfg->arbiter[0])
            return "the primary is lost and the arbiter has not granted a takeover; it is asked again";
        return "the primary is lost. Make certain that the guest does not run there (power it off), then: "
               "remusctl takeover";
    case DT_FAILED:
        return "the replica could not be activated and is gone; start the VM from its own means";
    case DT_WAITING:
        return "waits for a primary: remusctl protect there";
    case DT_READY:
        return v->keeps ? "the primary sends everything anew; should it be lost meanwhile, the checkpoint from before "
                          "that is taken over"
                        : NULL;
    default:
        return NULL;
    }
}

json_t *standby_status(struct standby *s)
{
    uint64_t now = clock_ns();
    const char *todo;
    struct view v;
    json_t *o;

    pthread_mutex_lock(&s->lock);
    v = s->published;
    pthread_mutex_unlock(&s->lock);
    todo = advice(s, &v);
    o = json_pack("{s:s, s:s, s:s, s:f, s:s, s:s, s:I, s:I, s:I, s:I, s:s}", "vm", s->cfg->name,
                  "role", "backup", "state", detector_name(v.state), "since_s",
                  (double)(now - v.since) / 1e9, "primary", v.primary, "platform",
                  s->cfg->platform, "epoch", (json_int_t)v.epoch, "checkpoints",
                  (json_int_t)v.checkpoints, "bytes_received", (json_int_t)v.bytes, "memory_bytes",
                  (json_int_t)v.memory_bytes, "takeover_policy",
                  s->cfg->takeover == TAKEOVER_AUTOMATIC ? "automatic" : "manual");
    json_object_set_new(o, "last_heard_ms", v.heard ? ms(now - v.heard) : json_null());
    json_object_set_new(o, "takeover", takeover_status(&v));
    json_object_set_new(o, "disks", disks_status(&v));
    json_object_set_new(o, "arbiter",
                        s->cfg->arbiter[0] ? json_sprintf("exec %s", s->cfg->arbiter)
                                           : json_string("none"));
    json_object_set_new(o, "last_error",
                        v.last_error[0] ? json_string(v.last_error) : json_null());
    json_object_set_new(o, "last_error_s",
                        v.last_error[0] ? json_real((double)(now - v.last_error_at) / 1e9)
                                        : json_null());
    json_object_set_new(o, "advice", todo ? json_string(todo) : json_null());
    return o;
}
