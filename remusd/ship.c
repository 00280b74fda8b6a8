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

/* What the next END will say; covers every page since the END before. */
struct digest {
    XXH3_state_t hash;
    uint64_t pages;
    uint64_t epoch; /* of the last block */
};

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
    struct staging_run run;

    XXH3_64bits_reset(&d.hash);
    while (staging_take(e->staging, PAGE_BLOCK_MAX, &run)) {
        const struct checkpoint *ck = &e->inflight[run.epoch % PACER_IN_FLIGHT];
        int rc = run.count ? send_pages(e, &d, &run) : send_end(e, &d, ck);

        if (rc < 0) {
            engine_end_link(e, LINK_LOST, "sending to %s: %s", link_peer(e->link),
                            strerror(errno));
            break;
        }
        staging_done(e->staging, &run);
    }
    return NULL;
}
