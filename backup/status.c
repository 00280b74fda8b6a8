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

/* What to do, NULL: nothing; remusctl(8) says the same of each state at length. */
static json_t *advice(const struct standby *s, const struct view *v)
{
    const char *vm = s->cfg->name;

    switch (v->state) {
    case DT_WAITING:
        if (v->ended)
            return json_sprintf("unless the VM runs elsewhere by now, start it here, where its disks are: remus-backupd(8), Fail-back");
        return json_sprintf("waits for a primary: remusctl status %s there says whether it tries; if not, remusctl protect %s", vm, vm);
    case DT_READY:
        return v->keeps ? json_sprintf("the primary sends everything anew; should it be lost meanwhile, the checkpoint from before "
                                       "that is taken over")
                        : NULL;
    case DT_SUSPECT:
        if (s->cfg->arbiter[0])
            return json_sprintf("the arbiter has not granted a takeover and is asked again every 2 s; should that stay, look at "
                                "the arbiter: remusd.conf(5)");
        return json_sprintf("bring the primary, its link or its remusd back, and protection goes on; or make certain that the guest does "
                            "not run there (power it off), then: remusctl takeover %s", vm);
    case DT_ASKING:
        return json_sprintf("wait for the arbiter; should that stay, look at the arbiter: remusd.conf(5)");
    case DT_ACTIVE:
        return json_sprintf("see that the old primary stays off, or that its remusd runs; when that host is well, it can be the "
                            "backup: remus-backupd(8), Fail-back");
    case DT_FAILED:
        return json_sprintf("the replica is gone: start the VM from its own means, disk or backup copy");
    default:
        return NULL;
    }
}

json_t *standby_status(struct standby *s)
{
    uint64_t now = clock_ns();
    json_t *todo;
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
    json_object_set_new(o, "advice", todo ? todo : json_null());
    return o;
}
