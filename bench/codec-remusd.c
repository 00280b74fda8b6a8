/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "bench/codec.h"
#include "compress/pagecodec.h"

struct remusd {
    struct page_encoder *enc;
    struct page_decoder *dec;
    uint64_t guest_pages;
};

static void remusd_destroy(void *state)
{
    struct remusd *r = state;

    if (!r)
        return;
    page_encoder_free(r->enc);
    page_decoder_free(r->dec);
    free(r);
}

static void *remusd_create(const struct codec_ops *ops, const struct codec_config *config)
{
    struct page_encoder_config ec = {
        .guest_pages = config->guest_pages,
        .cache_bytes = config->cache_bytes,
        .codec = ops == &codec_remusd_zstd ? PAGE_CODEC_ZSTD : PAGE_CODEC_LZ4,
    };
    struct remusd *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->guest_pages = config->guest_pages;
    r->enc = page_encoder_new(&ec);
    r->dec = page_decoder_new();
    if (!r->enc || !r->dec || page_encoder_set_vector(r->enc, ops->vector) < 0 ||
        page_decoder_set_vector(r->dec, ops->vector) < 0) {
        remusd_destroy(r);
        return NULL;
    }
    return r;
}

/* Blocks, each behind its length. */
static size_t remusd_encode(void *state, const uint64_t *pfns, const uint8_t *const *pages,
                            size_t n, uint8_t *out)
{
    struct remusd *r = state;
    uint8_t *start = out;

    page_encoder_begin(r->enc);
    for (size_t i = 0, some; i < n; i += some) {
        uint32_t len;
        ssize_t got;

        some = n - i < PAGE_BLOCK_MAX ? n - i : PAGE_BLOCK_MAX;
        got = page_encode(r->enc, pfns + i, pages + i, some, out + sizeof(len),
                          page_block_bound(some));
        if (got < 0)
            abort();
        len = (uint32_t)got;
        memcpy(out, &len, sizeof(len));
        out += sizeof(len) + len;
    }
    return (size_t)(out - start);
}

static int remusd_decode(void *state, const uint8_t *in, size_t len, const uint8_t *memory,
                         uint64_t *pfns, uint8_t *pages, size_t n)
{
    struct remusd *r = state;
    const uint8_t *end = in + len;
    size_t done = 0;

    page_decoder_begin(r->dec);
    while (in < end) {
        uint32_t block;
        int got;

        memcpy(&block, in, sizeof(block));
        in += sizeof(block);
        got = page_decode(r->dec, in, block, r->guest_pages, memory, pfns + done,
                          pages + done * PAGE_BYTES, NULL);
        if (got < 0)
            return -1;
        done += (size_t)got;
        in += block;
    }
    return done == n ? 0 : -1;
}

#define REMUSD_OPS                                                                                 \
    .create = remusd_create, .destroy = remusd_destroy, .encode = remusd_encode,                   \
    .decode = remusd_decode

const struct codec_ops codec_remusd = {.name = "remusd", REMUSD_OPS};
const struct codec_ops codec_remusd_zstd = {.name = "remusd-zstd", REMUSD_OPS};
const struct codec_ops codec_remusd_avx2 = {
    .name = "remusd-avx2", .vector = "avx2", REMUSD_OPS};
const struct codec_ops codec_remusd_sse2 = {
    .name = "remusd-sse2", .vector = "sse2", REMUSD_OPS};
const struct codec_ops codec_remusd_plain = {
    .name = "remusd-plain", .vector = "plain", REMUSD_OPS};
