/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From the staging buffer to the link, while the guest runs. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/hash.h"
#include "common/wire.h"
#include "compress/page-auto.h"
#include "engine.h"

#define SYNC_OCTETS (1u << 20) /* of disk blocks in one record */
#define CHANGES_OCTETS (512u << 10) /* of changes: what is hashed first is still in the processor's cache when it is sent */
#define LAST_WORD_NS (100 * NS_PER_MS) /* what the backup said before it closed is read in this time */

_Static_assert(CHANGES_OCTETS >= ENTRY_HEAD + ENTRY_DATA_MAX, "the longest entry fits");

/* What the next END will say; covers every page since the END before. */
struct digest {
    XXH3_state_t hash;
    uint64_t pages;
    uint64_t epoch; /* of the last block */
};

/* What the next DISK_END will say, likewise. */
struct disk_digest {
    uint64_t digest, length;
    uint64_t next;  /* epoch of the next END */
    bool direct;    /* synchronising: no record of that epoch was sent yet, and the backup holds nothing */
    struct buffer sync;
};

static int send_entries(struct engine *e, struct disk_digest *dd, const void *entries, size_t length)
{
    struct iovec iov = {(void *)entries, length};
    uint64_t checksum;

    if (link_send_summed(e->link, PROTO_DISK, dd->direct ? 0 : dd->next, &iov, 1, &checksum) < 0)
        return -1;
    dd->digest = proto_disk_digest(dd->digest, checksum);
    dd->length += length;
    return 0;
}

/*
 * The changes up to *head; without one up to the barrier of the next epoch, and when that has not come, those that are
 * there.  1: there were any.
 */
static int send_changes(struct engine *e, struct disk_digest *dd, const uint64_t *head)
{
    const uint8_t *entries;
    size_t length;
    int any = 0;

    while ((length = head ? disk_take_to(e->disk, *head, CHANGES_OCTETS, &entries)
                          : disk_take(e->disk, dd->next, CHANGES_OCTETS, &entries)) > 0) {
        if (send_entries(e, dd, entries, length) < 0)
            return -1;
        disk_done(e->disk, length);
        any = 1;
    }
    return any;
}

/* `remusctl verify': checksums, each at its very place among the changes. */
static int send_checks(struct engine *e, struct disk_digest *dd)
{
    uint64_t head;
    struct error err;
    int more;

    buffer_clear(&dd->sync);
    more = disk_verify_next(e->disk, dd->next, &dd->sync, &head, &err);
    if (more < 0) {
        engine_end_link(e, LINK_LOST, "%s", err.text);
        return -1;
    }
    if (more && (send_changes(e, dd, &head) < 0 || send_entries(e, dd, dd->sync.data, dd->sync.len) < 0))
        return -1;
    return more;
}

/*
 * While no checkpoint waits to be sent: changes early, so that the queue does not fill, and blocks to synchronise.
 * 1: there was something, and may be more.
 */
static int send_early(struct engine *e, struct disk_digest *dd)
{
    struct disk_sync sync;
    struct error err;
    int any = send_changes(e, dd, NULL), more;

    disk_sync_state(e->disk, &sync);
    if (any < 0)
        return any;
    if (sync.done)
        return (more = send_checks(e, dd)) < 0 ? -1 : any | more;
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

    if (send_changes(e, dd, NULL) < 0)
        return -1;
    end = (struct proto_disk_end){disk_end(e->disk, dd->next), dd->length, dd->digest};
    iov.iov_len = proto_put_disk_end(body, &end);
    dd->digest = dd->length = 0;
    return link_send(e->link, PROTO_DISK_END, dd->next, &iov, 1);
}

/* Blocks that are encoded at the same time, one a worker. */
struct batch {
    struct engine *engine;
    uint64_t pfns[PAGE_THREADS_MAX * PAGE_BLOCK_MAX];
    const uint8_t *pages[PAGE_THREADS_MAX * PAGE_BLOCK_MAX];
    uint64_t keys[PAGE_THREADS_MAX * PAGE_BLOCK_MAX]; /* disk_key() */
    size_t count;
    ssize_t length[PAGE_THREADS_MAX];
    struct buffer blocks; /* a BLOCKS record */
};

static void add_to_digest(struct digest *d, uint64_t number, const uint8_t *page)
{
    uint8_t pfn[8];
    struct wire_writer w = wire_writer(pfn, sizeof(pfn));

    wire_put_uint(&w, number, 8);
    XXH3_64bits_update(&d->hash, pfn, sizeof(pfn));
    XXH3_64bits_update(&d->hash, page, PAGE_SIZE);
    d->pages++;
}

/* Sends the pages that the backup has on its disks, when it can use that; leaves the others in the batch. */
static int send_blocks(struct engine *e, struct digest *d, struct batch *b, const struct staging_run *run)
{
    bool may = run->epoch && e->disk && e->send_blocks && e->cfg->disk_reads_bytes;
    struct iovec iov;

    b->count = 0;
    buffer_clear(&b->blocks);
    if (may && buffer_reserve(&b->blocks, run->count * PROTO_BLOCK_LEN) < 0)
        return -1;
    for (size_t i = 0; may && i < run->count; i++)
        b->keys[i] = disk_key(e->disk, run->pages + i * PAGE_SIZE);
    for (size_t i = 0; i < run->count; i++) {
        const uint8_t *page = run->pages + i * PAGE_SIZE;
        struct proto_block block;

        if (!may || !disk_find(e->disk, b->keys[i], page, &block)) {
            b->pfns[b->count] = run->pfns[i];
            b->pages[b->count++] = page;
            continue;
        }
        block.pfn = run->pfns[i];
        page_encoder_forget(e->encoder, block.pfn);
        b->blocks.len += proto_put_block(b->blocks.data + b->blocks.len, &block);
        add_to_digest(d, block.pfn, page);
    }
    for (size_t i = 0; i < b->count; i++)
        add_to_digest(d, b->pfns[i], b->pages[i]);
    if (b->blocks.len == 0)
        return 0;
    iov = (struct iovec){b->blocks.data, b->blocks.len};
    if (link_send(e->link, PROTO_BLOCKS, run->epoch, &iov, 1) < 0)
        return -1;
    SCOPED_LOCK(&e->lock);
    e->stats.block_pages += b->blocks.len / PROTO_BLOCK_LEN;
    e->stats.raw[0] += b->blocks.len / PROTO_BLOCK_LEN * PAGE_SIZE;
    e->stats.sent[0] += b->blocks.len + PROTO_HEADER_LEN;
    return 0;
}

static void encode_one(void *arg, unsigned i)
{
    struct batch *b = arg;
    struct engine *e = b->engine;

    b->length[i] = page_encode_planned(e->encoder, i, e->blocks + i * page_block_bound(PAGE_BLOCK_MAX),
                                       page_block_bound(PAGE_BLOCK_MAX));
}

/* At most as many blocks as there are workers. */
static int encode_and_send(struct engine *e, struct batch *b, uint64_t epoch, const uint64_t *pfns,
                           const uint8_t *const *pages, size_t count)
{
    uint64_t began = clock_ns(), sent = 0;
    unsigned blocks = 0;

    for (size_t at = 0; at < count; at += PAGE_BLOCK_MAX) {
        size_t n = count - at < PAGE_BLOCK_MAX ? count - at : PAGE_BLOCK_MAX;

        if (page_plan(e->encoder, blocks++, pfns + at, pages + at, n) < 0)
            return -1;
    }
    workers_run(e->workers, blocks, encode_one, b);
    began = clock_ns() - began;
    for (unsigned i = 0; i < blocks; i++) {
        struct iovec iov = {e->blocks + i * page_block_bound(PAGE_BLOCK_MAX), (size_t)b->length[i]};

        if (b->length[i] < 0 || link_send(e->link, PROTO_PAGES, epoch, &iov, 1) < 0)
            return -1;
        sent += iov.iov_len + PROTO_HEADER_LEN;
    }
    SCOPED_LOCK(&e->lock);
    e->stats.encode_ns += began;
    e->stats.codec = *page_encoder_stats(e->encoder);
    e->stats.raw[epoch == 0] += count * PAGE_SIZE;
    e->stats.sent[epoch == 0] += sent;
    return 0;
}

static int send_pages(struct engine *e, struct digest *d, struct batch *b,
                      const struct staging_run *run)
{
    if (run->epoch != d->epoch)
        page_encoder_begin(e->encoder);
    d->epoch = run->epoch;
    if (send_blocks(e, d, b, run) < 0)
        return -1;
    if (run->epoch != 0)
        return b->count ? encode_and_send(e, b, run->epoch, b->pfns, b->pages, b->count) : 0;

    /* While synchronising the backup applies each block before it decodes the next. */
    for (size_t at = 0; at < run->count; at += PAGE_BLOCK_MAX) {
        size_t n = run->count - at < PAGE_BLOCK_MAX ? run->count - at : PAGE_BLOCK_MAX;

        page_encoder_begin(e->encoder);
        if (encode_and_send(e, b, 0, run->pfns + at, b->pages + at, n) < 0)
            return -1;
    }
    return 0;
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
    SCOPED_LOCK(&e->lock);
    e->stats.sent[0] += blob->len;
    return 0;
}

/* compression = auto: looks at each checkpoint that was shipped and may change the codec for the next. */
static void choose_codec(struct engine *e, struct page_auto *a, struct page_auto_sample *before)
{
    const struct page_stats *s = page_encoder_stats(e->encoder);
    double load = 1, cores = (double)sysconf(_SC_NPROCESSORS_ONLN);
    struct page_auto_sample now = {
        .pages = s->bytes_in / PAGE_SIZE,
        .bytes_out = s->bytes_out,
        .encode_ns = e->stats.encode_ns,
        .link_bps = link_rate(e->link),
    }, delta = now;

    if (strcmp(e->cfg->compression, "auto") != 0)
        return;
    getloadavg(&load, 1);
    delta.pages -= before->pages;
    delta.bytes_out -= before->bytes_out;
    delta.encode_ns -= before->encode_ns;
    delta.cpu_share = load > cores ? cores / load : 1;
    *before = now;
    if (delta.pages)
        page_encoder_set_codec(e->encoder, page_auto_choose(a, &delta));
}

static int send_end(struct engine *e, struct digest *d, const struct checkpoint *ck)
{
    struct proto_end end = {
        .pages = d->pages,
        .state_length = (uint32_t)ck->state.len,
        .net_length = (uint32_t)ck->net.len,
    };
    uint64_t epoch = ck->epoch; /* once its END is sent, ck may become another's */
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
    fault_crash("primary-after-end", epoch);
    return 0;
}

void *engine_ship(void *engine)
{
    struct engine *e = engine;
    struct batch batch = {.engine = e};
    struct digest d = {.pages = 0};
    struct disk_digest dd = {.next = e->taken_before + 1, .direct = e->disk_direct};
    struct page_auto_sample before = {0};
    struct staging_run run;
    struct page_auto choice;

    page_auto_init(&choice);
    XXH3_64bits_reset(&d.hash);
    if (e->disk)
        staging_poke(e->staging);
    while (staging_take(e->staging, e->cfg->compression_threads * PAGE_BLOCK_MAX, &run)) {
        const struct checkpoint *ck = &e->inflight[run.epoch % PACER_IN_FLIGHT];
        int rc, any = 1;

        if (run.epoch)
            dd.direct = false;
        if (run.poked)
            rc = any = send_early(e, &dd);
        else if (run.count)
            rc = send_pages(e, &d, &batch, &run);
        else if (e->disk && send_disk_end(e, &dd) < 0)
            rc = -1;
        else
            rc = send_end(e, &d, ck);
        if (rc == 0 && !run.poked && run.count == 0)
            dd.next = run.epoch + 1;
        if (e->disk && any > 0 && disk_busy(e->disk)) /* else the next END, or the queue, brings us here again */
            staging_poke(e->staging);
        if (rc < 0) {
            int why = errno;

            engine_await_end(e, LAST_WORD_NS); /* it may have said why it closed */
            engine_end_link(e, LINK_LOST, "sending to %s: %s", link_peer(e->link), strerror(why));
            break;
        }
        if (run.count == 0 && !run.poked)
            choose_codec(e, &choice, &before);
        staging_done(e->staging, &run);
    }
    buffer_free(&dd.sync);
    buffer_free(&batch.blocks);
    return NULL;
}
