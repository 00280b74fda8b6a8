/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "engine.h"

#define STATE_RESERVE (256u << 10) /* octets: a machine's state fits, so that no pause allocates */

_Static_assert(PAGE_BYTES == PAGE_SIZE, "codec and platform agree on the page");

void engine_init(struct engine *e, const struct vm_config *cfg)
{
    pthread_condattr_t attr;

    *e = (struct engine){.cfg = cfg};
    pthread_mutex_init(&e->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&e->changed, &attr);
    pthread_condattr_destroy(&attr);
    e->pacer.interval = cfg->interval_ms * NS_PER_MS;
}

int engine_open(struct engine *e, struct vm *vm, struct port *port, struct error *err)
{
    unsigned threads = e->cfg->compression_threads;
    struct page_encoder_config enc = {
        .guest_pages = vm->pages,
        .codec = strcmp(e->cfg->compression, "off") == 0    ? PAGE_CODEC_OFF
                 : strcmp(e->cfg->compression, "zstd") == 0 ? PAGE_CODEC_ZSTD
                                                            : PAGE_CODEC_LZ4,
        .threads = threads,
    };
    bool ok;

    e->vm = vm;
    e->port = port;
    ok = (e->staging = staging_new(e->cfg->staging_bytes)) &&
         (e->encoder = page_encoder_new(&enc)) &&
         (e->workers = workers_new(threads)) &&
         (e->blocks = malloc(threads * page_block_bound(PAGE_BLOCK_MAX))) &&
         bitmap_init(&e->dirty, vm->pages) == 0 && bitmap_init(&e->touched, vm->pages) == 0;
    for (int i = 0; ok && i < PACER_IN_FLIGHT; i++)
        ok = bitmap_init(&e->inflight[i].pages, vm->pages) == 0 &&
             buffer_reserve(&e->inflight[i].state, STATE_RESERVE) == 0 &&
             buffer_reserve(&e->inflight[i].net, STATE_RESERVE) == 0;
    if (!ok)
        return error_set(err, "no memory for a staging buffer of %zu MiB and the page cache",
                         e->cfg->staging_bytes >> 20);
    return 0;
}

void engine_close(struct engine *e)
{
    for (int i = 0; i < PACER_IN_FLIGHT; i++) {
        bitmap_free(&e->inflight[i].pages);
        buffer_free(&e->inflight[i].state);
        buffer_free(&e->inflight[i].net);
    }
    disk_close(e->disk);
    bitmap_free(&e->dirty);
    bitmap_free(&e->touched);
    workers_free(e->workers);
    free(e->blocks);
    page_encoder_free(e->encoder);
    staging_free(e->staging);
    memset(e->inflight, 0, sizeof(e->inflight));
    e->disk = NULL;
    e->workers = NULL;
    e->blocks = NULL;
    e->encoder = NULL;
    e->staging = NULL;
    e->holding = false;
}

void engine_free(struct engine *e)
{
    engine_close(e);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->changed);
}

void engine_wait(struct engine *e, uint64_t when)
{
    struct timespec ts = {(time_t)(when / NS_PER_S), (long)(when % NS_PER_S)};

    if (when == TIME_NEVER)
        pthread_cond_wait(&e->changed, &e->lock);
    else
        pthread_cond_timedwait(&e->changed, &e->lock, &ts);
}

void engine_end_link(struct engine *e, enum link_end end, const char *fmt, ...)
{
    va_list ap;
    SCOPED_LOCK(&e->lock);

    if (e->link_end != LINK_UP)
        return;
    e->link_end = end;
    va_start(ap, fmt);
    vsnprintf(e->link_error.text, sizeof(e->link_error.text), fmt, ap);
    va_end(ap);
    staging_abort(e->staging);
    if (e->disk)
        disk_stop(e->disk);
    link_shutdown(e->link);
    pthread_cond_broadcast(&e->changed);
}

void engine_await_end(struct engine *e, uint64_t ns)
{
    uint64_t deadline = clock_ns() + ns;
    SCOPED_LOCK(&e->lock);

    while (e->link_end == LINK_UP && clock_ns() < deadline)
        engine_wait(e, deadline);
}

enum link_end engine_link_state(struct engine *e, struct error *why)
{
    SCOPED_LOCK(&e->lock);

    if (why)
        *why = e->link_error;
    return e->link_end;
}

static void poke_ship(void *engine)
{
    staging_poke(((struct engine *)engine)->staging);
}

int engine_attach(struct engine *e, struct link *link, uint64_t committed, struct error *err)
{
    int rc;

    if (committed == 0)
        bitmap_or(&e->dirty, &e->touched);
    staging_reset(e->staging);
    page_encoder_reset(e->encoder);
    pthread_mutex_lock(&e->lock);
    e->link = link;
    e->link_end = LINK_UP;
    e->taken_before = e->pacer.taken;
    e->disk_direct = committed == 0;
    e->attached_at = clock_ns();
    e->encode_before = e->stats.encode_ns;
    pacer_start(&e->pacer, e->pacer.taken, e->pacer.interval);
    pthread_mutex_unlock(&e->lock);
    if (e->disk && disk_start(e->disk, e->disk_base, poke_ship, e, err) < 0) {
        e->link = NULL;
        link_free(link);
        return -1;
    }
    rc = pthread_create(&e->ship_thread, NULL, engine_ship, e);
    if (rc == 0) {
        rc = pthread_create(&e->receive_thread, NULL, engine_receive, e);
        if (rc) {
            engine_end_link(e, LINK_LOST, "no thread");
            pthread_join(e->ship_thread, NULL);
        }
    }
    if (rc) {
        if (e->disk) {
            disk_stop(e->disk);
            disk_finish(e->disk);
        }
        e->link = NULL;
        link_free(link);
        return error_set(err, "cannot start a thread: %s", strerror(rc));
    }
    return 0;
}

void engine_detach(struct engine *e)
{
    struct link *link = e->link;

    engine_end_link(e, LINK_LOST, "closed");
    pthread_join(e->ship_thread, NULL);
    pthread_join(e->receive_thread, NULL);
    if (e->disk)
        disk_finish(e->disk);
    pthread_mutex_lock(&e->lock);
    for (uint64_t epoch = e->pacer.acked + 1; epoch <= e->pacer.taken; epoch++) {
        const struct checkpoint *ck = &e->inflight[epoch % PACER_IN_FLIGHT];

        if (ck->epoch == epoch)
            bitmap_or(&e->dirty, &ck->pages);
    }
    e->sync_round = 0;
    e->link = NULL;
    pthread_mutex_unlock(&e->lock);
    link_free(link);
}
