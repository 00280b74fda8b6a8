/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What happens to the guest: live pre-copy, and the pause of a checkpoint. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "engine.h"

#define PRECOPY_ENOUGH 1024 /* pages: few enough for the first pause */
#define PRECOPY_ROUNDS 12   /* a guest that outruns the link is paused all the same */

const char *const phase_names[PHASES] = {
    [PHASE_SUSPEND] = "suspend", [PHASE_BARRIER] = "barrier", [PHASE_STATE] = "state",
    [PHASE_SCAN] = "scan",       [PHASE_COPY] = "copy",       [PHASE_RESUME] = "resume",
    [PHASE_TOTAL] = "total",
};

/* Ships every dirty page once while the guest runs; what it dirties meanwhile is found by the next scan. */
static int precopy_round(struct engine *e)
{
    uint64_t from = 0, next, copied;

    while (from < e->vm->pages) {
        next = staging_put(e->staging, 0, &e->dirty, e->vm->memory, from, e->vm->pages,
                           PAGE_BLOCK_MAX, &copied);
        if (next == UINT64_MAX)
            return -1;
        from = next;
        SCOPED_LOCK(&e->lock);
        e->sync_sent += copied;
    }
    bitmap_or(&e->touched, &e->dirty);
    bitmap_clear_all(&e->dirty);
    return 0;
}

int engine_precopy(struct engine *e, struct error *err)
{
    uint64_t left, before = UINT64_MAX;

    for (unsigned round = 1; round <= PRECOPY_ROUNDS; round++) {
        if (e->vm->ops->scan(e->vm, &e->dirty, err) < 0)
            return -1;
        left = bitmap_count(&e->dirty);
        if (left <= PRECOPY_ENOUGH || left >= before)
            break;
        before = left;
        pthread_mutex_lock(&e->lock);
        if (round == 1)
            e->sync_began = clock_ns();
        e->sync_round = round;
        e->sync_sent = 0;
        e->sync_total = left;
        pthread_mutex_unlock(&e->lock);
        if (precopy_round(e) < 0)
            return error_set(err, "the link ended");
    }
    return 0;
}

/* The pause.  Between suspend and resume only what R8 lists; times[i] is the end of phase i. */
static int capture(struct engine *e, struct checkpoint *ck, bool resume, uint64_t times[PHASES],
                   uint64_t *pages, struct error *err)
{
    struct vm *vm = e->vm;
    struct error ignored;
    int rc = -1;

    if (vm->ops->suspend(vm, err) < 0)
        return -1;
    times[PHASE_SUSPEND] = clock_ns();
    fault_crash("primary-after-suspend", ck->epoch);

    if (!e->holding) {
        e->port->ops->hold(e->port);
        e->holding = true;
    }
    if (e->port->ops->barrier(e->port, ck->epoch, &ck->net) < 0) {
        error_set(err, "the packet port did not close epoch %" PRIu64 ": %s", ck->epoch,
                  strerror(errno));
        goto out;
    }
    if (e->disk)
        disk_barrier(e->disk, ck->epoch);
    times[PHASE_BARRIER] = clock_ns();

    if (vm->ops->save_state(vm, &ck->state, err) < 0)
        goto out;
    times[PHASE_STATE] = clock_ns();

    if (vm->ops->scan(vm, &e->dirty, err) < 0)
        goto out;
    times[PHASE_SCAN] = clock_ns();

    if (staging_put(e->staging, ck->epoch, &e->dirty, vm->memory, 0, vm->pages, UINT64_MAX,
                    pages) == UINT64_MAX) {
        error_set(err, "the link ended during the checkpoint");
        goto out;
    }
    times[PHASE_COPY] = clock_ns();
    rc = 0;
out:
    if ((resume || rc < 0) && vm->ops->resume(vm, rc ? &ignored : err) < 0)
        rc = -1;
    times[PHASE_RESUME] = clock_ns();
    return rc;
}

static void record(struct engine *e, uint64_t began, const uint64_t times[PHASES], uint64_t pages)
{
    uint64_t before = began;

    for (int i = 0; i < PHASE_TOTAL; i++) {
        samples_add(&e->stats.pause[i], times[i] - before);
        before = times[i];
    }
    samples_add(&e->stats.pause[PHASE_TOTAL], before - began);
    samples_add(&e->stats.dirty, pages);
}

int engine_checkpoint(struct engine *e, bool resume, struct error *err)
{
    uint64_t epoch = e->pacer.taken + 1;
    struct checkpoint *ck = &e->inflight[epoch % PACER_IN_FLIGHT];
    struct bitmap empty;
    uint64_t began, pages = 0, times[PHASES] = {0};
    int rc;

    ck->epoch = epoch;
    bitmap_clear_all(&ck->pages);
    buffer_clear(&ck->state);
    buffer_clear(&ck->net);

    fault_crash("primary-before-suspend", epoch);
    began = clock_ns();
    rc = capture(e, ck, resume, times, &pages, err);
    fault_crash("primary-after-resume", epoch);
    bitmap_or(&e->touched, &e->dirty);

    SCOPED_LOCK(&e->lock);
    pacer_taken(&e->pacer, epoch, began); /* a failed one's number is never used again */
    ck->suspended_at = began;
    if (rc < 0)
        return -1;
    empty = ck->pages;
    ck->pages = e->dirty;
    e->dirty = empty;
    record(e, began, times, pages);
    staging_close(e->staging, epoch);
    return 0;
}
