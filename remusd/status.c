/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What remusctl shows of a protection; the keys are documented in remusctl(8). */
#include "common/cleanup.h"
#include "common/clock.h"
#include "protection-impl.h"

static json_t *ms(uint64_t ns)
{
    return json_real((double)(ns / 1000) / 1000);
}

static json_t *quantiles_ms(const struct samples *s)
{
    struct quantiles q = samples_quantiles(s);

    return json_pack("{s:o, s:o, s:o}", "p50", ms(q.p50), "p99", ms(q.p99), "max", ms(q.max));
}

static json_t *pauses(const struct engine_stats *stats)
{
    json_t *o = json_object();

    for (int i = 0; i < PHASES; i++)
        json_object_set_new(o, phase_names[i], quantiles_ms(&stats->pause[i]));
    return o;
}

static json_t *dirty_pages(const struct engine_stats *stats)
{
    struct quantiles q = samples_quantiles(&stats->dirty);

    return json_pack("{s:I, s:I}", "p50", (json_int_t)q.p50, "p99", (json_int_t)q.p99);
}

static json_t *sync_progress(const struct engine *e, uint64_t now)
{
    double seconds = (double)(now - e->sync_began) / 1e9, rate;

    if (e->sync_round == 0 || !e->link || seconds <= 0)
        return json_null();
    rate = (double)e->sync_sent / seconds;
    return json_pack("{s:f, s:f, s:o, s:i}", "percent",
                     100.0 * (double)e->sync_sent / (double)e->sync_total, "rate_mib_s",
                     (double)link_bytes_sent(e->link) / seconds / 1048576, "eta_s",
                     rate > 0 ? json_real((double)(e->sync_total - e->sync_sent) / rate)
                              : json_null(),
                     "round", (int)e->sync_round);
}

static json_t *flows(const struct port_stats *s)
{
    json_t *lost;

    if (!s->has_flows)
        return json_null();
    lost = json_object();
    for (int i = 0; i < FLOW_LOSSES; i++)
        json_object_set_new(lost, flow_lost_names[i], json_integer((json_int_t)s->flows.lost[i]));
    return json_pack("{s:I, s:I, s:I, s:I, s:o}", "open", (json_int_t)s->flows.open, "held",
                     (json_int_t)s->flows.held, "strict", (json_int_t)s->flows.strict, "untracked",
                     (json_int_t)s->flows.untracked, "lost", lost);
}

static json_t *held(const struct port_stats *s)
{
    json_t *o = json_object();

    for (int i = 0; i < FLOW_VERDICTS; i++)
        if (i != FLOW_OPEN)
            json_object_set_new(o, flow_verdict_names[i], json_integer((json_int_t)s->by[i]));
    return o;
}

static json_t *net(struct port *port)
{
    struct port_stats s = {0};

    if (!port || !port->ops->stats)
        return json_null();
    port->ops->stats(port, &s);
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:{s:o, s:o}, s:o, s:{s:I, s:I}, s:o}", "port",
                     port->ops->name, "dropped_out", (json_int_t)s.dropped_out, "held_frames",
                     (json_int_t)s.held_frames, "held_bytes", (json_int_t)s.held_bytes,
                     "held_max", (json_int_t)s.held_frames_max, "frames_out",
                     (json_int_t)s.frames_out, "frames_in", (json_int_t)s.frames_in, "dropped_in",
                     (json_int_t)s.dropped_in, "full_ms", ms(s.full_ns), "hold_ms", "p50",
                     ms(s.hold_p50_ns), "p99", ms(s.hold_p99_ns), "held", held(&s),
                     "passed", "open", (json_int_t)s.by[FLOW_OPEN], "unprotected",
                     (json_int_t)s.unprotected, "flows", flows(&s));
}

static json_t *staging(const struct protection *p)
{
    struct staging_stats s;

    if (!p->ready)
        return json_null();
    staging_stats(p->engine.staging, &s);
    return json_pack("{s:I, s:I, s:I}", "used_bytes", (json_int_t)s.used_bytes, "max_bytes",
                     (json_int_t)s.max_bytes, "stretched", (json_int_t)s.stretched);
}

/* What the guest writes meanwhile comes on top: the total is not the last word. */
static json_t *disk_progress(const struct disk_sync *s)
{
    double sent = (double)s->sent, total = (double)(s->total > s->sent ? s->total : s->sent);
    double rate = sent / ((double)(clock_ns() - s->began) / 1e9);

    return json_pack("{s:f, s:f, s:o}", "percent", total > 0 ? 100 * sent / total : 0.0, "rate_mib_s",
                     rate / 1048576, "eta_s", rate > 0 ? json_real((total - sent) / rate) : json_null());
}

static json_t *verify_ranges(const struct disk_verify *v)
{
    json_t *a = json_array();

    for (unsigned i = 0; i < v->range_count; i++)
        json_array_append_new(a, json_pack("{s:i, s:I, s:I}", "disk", (int)v->ranges[i].disk, "offset",
                                           (json_int_t)v->ranges[i].offset, "length",
                                           (json_int_t)v->ranges[i].length));
    return a;
}

static json_t *verify_progress(const struct disk_verify *v)
{
    double total = (double)v->total, done = v->sent < v->total ? (double)v->sent : total;
    double rate = done / ((double)((v->running ? clock_ns() : v->ended) - v->began) / 1e9);

    if (!v->began)
        return json_null();
    return json_pack("{s:b, s:b, s:f, s:f, s:f, s:I, s:I, s:o, s:o}", "running", v->running, "repair",
                     v->repair, "percent", 100 * done / total, "rate_mib_s", rate / 1048576, "eta_s",
                     rate > 0 ? (total - done) / rate : 0.0, "compared_bytes", (json_int_t)v->compared,
                     "differing_bytes", (json_int_t)v->differing, "ranges", verify_ranges(v), "failed",
                     v->failed[0] ? json_string(v->failed) : json_null());
}

/* engine.lock is held. */
static json_t *disks(const struct protection *p)
{
    struct disk_sync sync;
    struct disk_verify verify;
    struct queue_stats s;
    uint64_t behind;
    json_t *o;

    if (!p->ready || !p->engine.disk)
        return json_null();
    disk_stats(p->engine.disk, &s);
    disk_sync_state(p->engine.disk, &sync);
    disk_verify_state(p->engine.disk, &verify);
    behind = disk_behind(p->engine.disk);
    o = json_pack("{s:i, s:I, s:I, s:I, s:o, s:I, s:I}", "count", (int)disk_count(p->engine.disk),
                  "written_bytes", (json_int_t)s.written_bytes, "queue_bytes", (json_int_t)s.used_bytes,
                  "queue_max_bytes", (json_int_t)s.max_bytes, "full_ms", ms(s.full_ns), "errors",
                  (json_int_t)s.errors, "pages_by_reference", (json_int_t)p->engine.stats.block_pages);
    json_object_set_new(o, "in_step", json_boolean(p->lc.state == LC_PROTECTED && sync.done));
    json_object_set_new(o, "behind_bytes",
                        behind == DISK_UNKNOWN ? json_null() : json_integer((json_int_t)behind));
    json_object_set_new(o, "verify", verify_progress(&verify));
    json_object_set_new(o, "sync", sync.done || !p->engine.link ? json_null() : disk_progress(&sync));
    return o;
}

static json_t *advice_protected(const struct protection *p)
{
    struct disk_verify verify;
    struct queue_stats s;

    if (!p->engine.disk)
        return NULL;
    disk_verify_state(p->engine.disk, &verify);
    disk_stats(p->engine.disk, &s);
    if (verify.differing && !verify.running && !verify.repair)
        return json_sprintf("the backup's disks differ: remusctl verify --repair %s", p->cfg->name);
    if (s.errors)
        return json_sprintf("writes of the guest have failed on its image here: look at the kernel's log; remusctl switchover %s "
                            "moves it to the backup", p->cfg->name);
    return NULL;
}

static json_t *advice_off(const struct protection *p)
{
    const char *vm = p->cfg->name;

    if (p->ready)
        return json_sprintf("not protected: remusctl protect %s", vm);
    if (!p->last_error[0])
        return json_sprintf("remusd is finding or starting the guest: wait");
    if (p->cfg->protect)
        return json_sprintf("mend what is wrong; the guest is tried again every few seconds");
    return json_sprintf("mend what is wrong, then: remusctl protect %s", vm);
}

/*
 * What to do, NULL: nothing; remusctl(8) says the same of each state at length.
 * engine.lock is held.
 */
static json_t *advice(const struct protection *p)
{
    const char *vm = p->cfg->name;

    switch (p->lc.state) {
    case LC_OFF:
        return advice_off(p);
    case LC_CONNECTING:
        return json_sprintf("the guest runs without protection until the backup takes it: mend what is wrong; remusctl preflight %s "
                            "looks at both hosts", vm);
    case LC_PROTECTED:
        return advice_protected(p);
    case LC_HOLDING:
        if (p->lc.degrade == DEGRADE_RELEASE && p->lc.has_arbiter)
            return json_sprintf("output is held; the arbiter will be asked. Bring the backup back");
        return json_sprintf("output is held. Bring the backup back; or, once it is certain that the backup does not run the VM, "
                            "remusctl unprotect %s lets the guest go on alone%s", vm,
                            p->lc.has_arbiter ? ", when the arbiter grants it" : "");
    case LC_ASKING:
        return json_sprintf("wait for the arbiter; should that stay, look at the arbiter: remusd.conf(5)");
    case LC_UNPROTECTED:
        return json_sprintf("bring the backup back: the guest is protected again as soon as that answers");
    case LC_LOST:
        return json_sprintf("find out why this host or its link was silent; then this host can be the backup: remus-backupd(8), "
                            "Fail-back");
    case LC_HANDED_OVER:
        return json_sprintf("nothing here; to make this host the backup: remus-backupd(8), Fail-back");
    case LC_STOPPED:
        return json_sprintf("the backup holds the last checkpoint: remusctl takeover %s there", vm);
    case LC_SHUT_DOWN:
        return json_sprintf("remusctl protect %s when it is wanted again (Xen: after xl create)", vm);
    default:
        return NULL;
    }
}

/* engine.lock is held. */
static json_t *counters(const struct protection *p)
{
    const struct engine *e = &p->engine;
    const struct engine_stats *s = &e->stats;
    double pages = (double)s->codec.bytes_in / PAGE_SIZE;

    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "epoch",
        (json_int_t)e->pacer.taken, "acked_epoch", (json_int_t)e->pacer.acked, "in_flight",
        (json_int_t)(e->link ? e->pacer.taken - e->pacer.acked : 0), "checkpoints",
        (json_int_t)s->checkpoints, "waited", (json_int_t)e->pacer.waited, "early",
        (json_int_t)e->pacer.early, "bytes_raw",
        (json_int_t)s->raw[0], "bytes_sent", (json_int_t)s->sent[0], "sync_bytes_raw",
        (json_int_t)s->raw[1], "sync_bytes_sent", (json_int_t)s->sent[1], "ratio",
        s->sent[0] ? (double)s->raw[0] / (double)s->sent[0] : 0.0, "cache_hit_rate",
        pages > 0 ? (double)s->codec.hits / pages : 0.0, "encode_us_per_page",
        pages > 0 ? (double)s->encode_ns / pages / 1000 : 0.0);
}

/* engine.lock is held; once its end is decided the guest may be freed at any moment. */
static const struct vm *guest_of(const struct protection *p)
{
    return p->ready && p->lc.state < LC_HANDED_OVER ? p->vm : NULL;
}

json_t *protection_status(struct protection *p)
{
    uint64_t now = clock_ns();
    struct engine *e = &p->engine;
    const struct vm *vm;
    json_t *todo;
    json_t *o;
    SCOPED_LOCK(&e->lock);

    todo = advice(p);
    vm = guest_of(p);
    o = json_pack("{s:s, s:s, s:s, s:f, s:s, s:s*, s:s*, s:s, s:f, s:I}", "vm", p->cfg->name,
                  "role", "primary", "state", lifecycle_name(p->lc.state), "since_s",
                  (double)(now - p->lc.since) / 1e9, "platform", p->cfg->platform, "accelerator",
                  vm ? vm->accelerator : NULL, "tracker", vm ? vm->tracker : NULL, "peer", p->cfg->backup, "interval_ms",
                  (double)e->pacer.interval / 1e6, "memory_bytes",
                  (json_int_t)p->cfg->memory_bytes);
    json_object_update_new(o, counters(p));
    json_object_set_new(o, "sync", sync_progress(e, now));
    json_object_set_new(o, "pause_ms", pauses(&e->stats));
    json_object_set_new(o, "dirty_pages", dirty_pages(&e->stats));
    json_object_set_new(o, "ack_lag_ms", quantiles_ms(&e->stats.ack_lag));
    json_object_set_new(o, "net", net(p->ready ? p->port : NULL));
    json_object_set_new(o, "staging", staging(p));
    json_object_set_new(o, "disks", disks(p));
    json_object_set_new(o, "cpu_share",
                        json_real(e->link && now > e->attached_at
                                      ? (double)(e->stats.encode_ns - e->encode_before) /
                                            (double)(now - e->attached_at)
                                      : 0));
    json_object_set_new(o, "last_error",
                        p->last_error[0] ? json_string(p->last_error) : json_null());
    json_object_set_new(o, "last_error_s",
                        p->last_error[0] ? json_real((double)(now - p->last_error_at) / 1e9)
                                         : json_null());
    json_object_set_new(o, "advice", todo ? todo : json_null());
    return o;
}
