/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From the staging buffer to the link, while the guest runs. */
#define XXH_INLINE_ALL
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/wire.h"
#include "engine.h"

#define SYNC_OCTETS (1u << 20) /* of disk blocks in one record */

/* What the next END will say; covers every page since the END before. */
struct digest {
    XXH3_state_t hash;
    uint64_t pages;
    uint64_t epoch; /* of the last block */
};

/* What the next DISK_END will say, likewise. */
struct disk_digest {
    XXH3_state_t hash;
    uint64_t length;
    uint64_t next;  /* epoch of the next END */
    bool direct;    /* synchronising: no record of that epoch was sent yet, and the backup holds nothing */
    struct buffer sync;
};

static int send_entries(struct engine *e, struct disk_digest *dd, const void *entries, size_t length)
{
    struct iovec iov = {(void *)entries, length};

    XXH3_64bits_update(&dd->hash, entries, length);
    dd->length += length;
    return link_send(e->link, PROTO_DISK, dd->direct ? 0 : dd->next, &iov, 1);
}

/* The changes up to the barrier of the next epoch; when that has not come, those that are there.  1: there were any. */
static int send_changes(struct engine *e, struct disk_digest *dd)
{
    const uint8_t *entries;
    size_t length;
    int any = 0;

    while ((length = disk_take(e->disk, dd->next, PROTO_BODY_MAX, &entries)) > 0) {
        if (send_entries(e, dd, entries, length) < 0)
            return -1;
        disk_done(e->disk, length);
        any = 1;
    }
    return any;
}

/*
 * While no checkpoint waits to be sent: changes early, so that the queue does not fill, and blocks to synchronise.
 * 1: there was something, and may be more.
 */
static int send_early(struct engine *e, struct disk_digest *dd)
{
    struct disk_sync sync;
    struct error err;
    int any = send_changes(e, dd), more;

    disk_sync_state(e->disk, &sync);
    if (any < 0 || sync.done)
        return any;
    buffer_clear(&dd->sync);
    more = disk_sync_next(e->disk, &dd->sync, SYNC_OCTETS, &err);
    if (more < 0) {
        engine_end_link(e, LINK_LOST, "%s", err.text);
        return -1;
    }
    if (dd->sync.len && send_entries(e, dd, dd->sync.data, dd->sync.len) < 0)
        return -1;
    if (!more) {
        SCOPED_LOCK(&e->lock);
        pthread_cond_broadcast(&e->changed);
    }
    return 1;
}

static int send_disk_end(struct engine *e, struct disk_digest *dd)
{
    struct proto_disk_end end;
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};

    if (send_changes(e, dd) < 0)
        return -1;
    end = (struct proto_disk_end){disk_end(e->disk, dd->next), dd->length,
                                  XXH3_64bits_digest(&dd->hash)};
    iov.iov_len = proto_put_disk_end(body, &end);
    XXH3_64bits_reset(&dd->hash);
    dd->length = 0;
    return link_send(e->link, PROTO_DISK_END, dd->next, &iov, 1);
}

static int send_pages(struct engine *e, struct digest *d, const struct staging_run *run)
{
    const uint8_t *pages[PAGE_BLOCK_MAX];
    uint64_t began = clock_ns();
    struct iovec iov = {.iov_base = e->block};
    ssize_t len;

    for (size_t i = 0; i < run->count; i++) {
        uint8_t pfn[8];
        struct wire_writer w = wire_writer(pfn, sizeof(pfn));

        wire_put_uint(&w, run->pfns[i], 8);
        pages[i] = run->pages + i * PAGE_SIZE;
        XXH3_64bits_update(&d->hash, pfn, sizeof(pfn));
        XXH3_64bits_update(&d->hash, pages[i], PAGE_SIZE);
    }
    d->pages += run->count;
    if (run->epoch == 0 || run->epoch != d->epoch) /* synchronising, each block is applied at once */
        page_encoder_begin(e->encoder);
    d->epoch = run->epoch;
    len = page_encode(e->encoder, run->pfns, pages, run->count, e->block,
                      page_block_bound(PAGE_BLOCK_MAX));
    if (len < 0)
        return -1;
    iov.iov_len = (size_t)len;
    pthread_mutex_lock(&e->lock);
    e->stats.encode_ns += clock_ns() - began;
    e->stats.codec = *page_encoder_stats(e->encoder);
    pthread_mutex_unlock(&e->lock);
    return link_send(e->link, PROTO_PAGES, run->epoch, &iov, 1);
}

/* State and network state, in pieces of what a record may carry. */
static int send_blob(struct engine *e, enum proto_type type, uint64_t epoch,
                     const struct buffer *blob)
{
    for (size_t at = 0; at < blob->len;) {
        size_t n = blob->len - at < PROTO_BODY_MAX ? blob->len - at : PROTO_BODY_MAX;
        struct iovec iov = {blob->data + at, n};

        if (link_send(e->link, type, epoch, &iov, 1) < 0)
            return -1;
        at += n;
    }
    return 0;
}

static int send_end(struct engine *e, struct digest *d, const struct checkpoint *ck)
{
    struct proto_end end = {
        .pages = d->pages,
        .state_length = (uint32_t)ck->state.len,
        .net_length = (uint32_t)ck->net.len,
    };
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};

    if (send_blob(e, PROTO_STATE, ck->epoch, &ck->state) < 0 ||
        send_blob(e, PROTO_NET, ck->epoch, &ck->net) < 0)
        return -1;
    XXH3_64bits_update(&d->hash, ck->state.data, ck->state.len);
    XXH3_64bits_update(&d->hash, ck->net.data, ck->net.len);
    end.digest = XXH3_64bits_digest(&d->hash);
    iov.iov_len = proto_put_end(body, &end);
    XXH3_64bits_reset(&d->hash);
    d->pages = 0;
    fault_crash("primary-before-end", ck->epoch);
    if (fault_hit("digest-wrong", ck->epoch))
        body[iov.iov_len - 1] ^= 1;
    if (link_send(e->link, PROTO_END, ck->epoch, &iov, 1) < 0)
        return -1;
    fault_crash("primary-after-end", ck->epoch);
    return 0;
}

void *engine_ship(void *engine)
{
    struct engine *e = engine;
    struct digest d = {.pages = 0};
    struct disk_digest dd = {.next = e->taken_before + 1, .direct = e->disk_direct};
    struct staging_run run;

    XXH3_64bits_reset(&d.hash);
    XXH3_64bits_reset(&dd.hash);
    if (e->disk)
        staging_poke(e->staging);
    while (staging_take(e->staging, PAGE_BLOCK_MAX, &run)) {
        const struct checkpoint *ck = &e->inflight[run.epoch % PACER_IN_FLIGHT];
        int rc, any = 1;

        if (run.epoch)
            dd.direct = false;
        if (run.poked)
            rc = any = send_early(e, &dd);
        else if (run.count)
            rc = send_pages(e, &d, &run);
        else if (e->disk && send_disk_end(e, &dd) < 0)
            rc = -1;
        else
            rc = send_end(e, &d, ck);
        if (rc == 0 && !run.poked && run.count == 0)
            dd.next = run.epoch + 1;
        if (e->disk && any > 0 && disk_busy(e->disk)) /* else the next END, or the queue, brings us here again */
            staging_poke(e->staging);
        if (rc < 0) {
            engine_end_link(e, LINK_LOST, "sending to %s: %s", link_peer(e->link),
                            strerror(errno));
            break;
        }
        staging_done(e->staging, &run);
    }
    buffer_free(&dd.sync);
    return NULL;
}
