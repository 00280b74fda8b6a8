/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "compress/page-block.h"
#include "compress/page-cache.h"

struct page_encoder {
    uint64_t guest_pages;
    enum page_codec codec;
    int level;
    uint32_t generation, sequence;
    uint64_t next_pfn; /* the lowest that may follow in this checkpoint */
    struct page_cache *cache;
    const struct page_words_ops *words;
    struct page_stats stats;
    void *lz4;
    ZSTD_CCtx *zstd;

    /* The stream of one block: entries, lines and masks are gathered apart, then moved up before the data. */
    uint8_t entries[PAGE_BLOCK_MAX * PAGE_ENTRY_MAX];
    uint8_t lines[PAGE_BLOCK_MAX * 8];
    uint8_t masks[PAGE_BLOCK_MAX * PAGE_LINES];
    uint8_t stream[PAGE_STREAM_MAX + PAGE_LINE_BYTES];
};

uint64_t page_cache_default(uint64_t guest_pages)
{
    const uint64_t mib = 1 << 20;
    uint64_t bytes = guest_pages / 10 * PAGE_BYTES;

    return bytes < 32 * mib ? 32 * mib : bytes > 256 * mib ? 256 * mib : bytes;
}

struct page_encoder *page_encoder_new(const struct page_encoder_config *config)
{
    uint64_t bytes = config->cache_bytes;
    struct page_encoder *enc;

    if (config->guest_pages == 0) {
        errno = EINVAL;
        return NULL;
    }
    if (bytes == 0)
        bytes = page_cache_default(config->guest_pages);
    if (bytes / PAGE_BYTES > config->guest_pages)
        bytes = config->guest_pages * PAGE_BYTES;
    if (bytes < PAGE_BYTES || bytes / PAGE_BYTES > UINT32_MAX / 2) {
        errno = EINVAL;
        return NULL;
    }
    enc = calloc(1, sizeof(*enc));
    if (!enc)
        return NULL;
    enc->guest_pages = config->guest_pages;
    enc->words = &page_words_plain;
    enc->cache = page_cache_new((uint32_t)(bytes / PAGE_BYTES));
    enc->lz4 = malloc((size_t)LZ4_sizeofState());
    enc->zstd = ZSTD_createCCtx();
    if (!enc->cache || !enc->lz4 || !enc->zstd) {
        page_encoder_free(enc);
        errno = ENOMEM;
        return NULL;
    }
    page_encoder_set_codec(enc, config->codec, config->level);
    page_encoder_begin(enc);
    return enc;
}

void page_encoder_free(struct page_encoder *enc)
{
    if (!enc)
        return;
    page_cache_free(enc->cache);
    free(enc->lz4);
    ZSTD_freeCCtx(enc->zstd);
    free(enc);
}

void page_encoder_reset(struct page_encoder *enc)
{
    page_cache_clear(enc->cache);
    enc->generation++;
    enc->sequence = 0;
    page_encoder_begin(enc);
}

void page_encoder_set_codec(struct page_encoder *enc, enum page_codec codec, int level)
{
    enc->codec = codec;
    enc->level = level ? level : 1;
}

void page_encoder_begin(struct page_encoder *enc)
{
    page_cache_begin(enc->cache);
    enc->next_pfn = 0;
}

const struct page_stats *page_encoder_stats(const struct page_encoder *enc)
{
    return &enc->stats;
}

size_t page_encoder_memory(const struct page_encoder *enc)
{
    return sizeof(*enc) + page_cache_memory(enc->cache) + (size_t)LZ4_sizeofState() +
           ZSTD_sizeof_CCtx(enc->zstd);
}

size_t page_block_bound(size_t n)
{
    return sizeof(struct page_block_header) + n * (PAGE_BYTES + PAGE_ENTRY_MAX + 8 + PAGE_LINES);
}

static uint8_t *put_entry(uint8_t *p, enum page_kind kind, uint64_t gap)
{
    if (gap < PAGE_GAP_LONG) {
        *p++ = (uint8_t)(gap << 4 | kind);
        return p;
    }
    *p++ = (uint8_t)(PAGE_GAP_LONG << 4 | kind);
    for (gap -= PAGE_GAP_LONG; gap >= 0x80; gap >>= 7)
        *p++ = (uint8_t)(gap | 0x80);
    *p++ = (uint8_t)gap;
    return p;
}

static bool pfns_valid(const struct page_encoder *enc, const uint64_t *pfns, size_t n)
{
    uint64_t next = enc->next_pfn;

    for (size_t i = 0; i < n; i++) {
        if (pfns[i] < next || pfns[i] >= enc->guest_pages)
            return false;
        next = pfns[i] + 1;
    }
    return true;
}

/* Codes the stream into out; how many bytes, or 0 when it would not get smaller. */
static size_t code_stream(struct page_encoder *enc, const uint8_t *stream, size_t len, uint8_t *out,
                          enum page_coding *coding)
{
    size_t got = 0;

    if (enc->codec == PAGE_CODEC_LZ4) {
        *coding = PAGE_CODING_LZ4;
        got = (size_t)LZ4_compress_fast_extState(enc->lz4, (const char *)stream, (char *)out,
                                                 (int)len, (int)len - 1, 1);
    } else if (enc->codec == PAGE_CODEC_ZSTD) {
        *coding = PAGE_CODING_ZSTD;
        got = ZSTD_compressCCtx(enc->zstd, out, len - 1, stream, len, enc->level);
        if (ZSTD_isError(got))
            got = 0;
    }
    return got;
}

ssize_t page_encode(struct page_encoder *enc, const uint64_t *pfns, const uint8_t *const *pages,
                    size_t n, uint8_t *out, size_t cap)
{
    struct page_block_header *header = (struct page_block_header *)out;
    uint8_t *entry = enc->entries, *lines = enc->lines, *mask = enc->masks;
    uint8_t *data = enc->stream + PAGE_STREAM_HEAD, *stream;
    enum page_coding coding = PAGE_CODING_STORED;
    size_t len, coded;

    if (n == 0 || n > PAGE_BLOCK_MAX || cap < page_block_bound(n) || !pfns_valid(enc, pfns, n)) {
        errno = EINVAL;
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        enum page_kind kind;
        bool found;
        uint8_t *copy = page_cache_get(enc->cache, pfns[i], &found);

        enc->stats.lookups++;
        enc->stats.hits += copy && found;
        if (copy && found) {
            uint64_t changed = enc->words->take(pages[i], copy, &mask, &data);

            kind = changed ? PAGE_DELTA : PAGE_UNCHANGED;
            if (changed) {
                page_put32(lines, (uint32_t)(changed >> 32));
                page_put32(lines + 4, (uint32_t)changed);
                lines += 8;
            }
        } else {
            if (copy)
                memcpy(copy, pages[i], PAGE_BYTES);
            kind = enc->words->is_zero(pages[i]) ? PAGE_ZERO : PAGE_WHOLE;
            if (kind == PAGE_WHOLE) {
                memcpy(data, pages[i], PAGE_BYTES);
                data += PAGE_BYTES;
            }
        }
        entry = put_entry(entry, kind, pfns[i] - enc->next_pfn);
        enc->next_pfn = pfns[i] + 1;
        enc->stats.pages[kind]++;
    }

    stream = enc->stream + PAGE_STREAM_HEAD;
    stream -= mask - enc->masks;
    memcpy(stream, enc->masks, (size_t)(mask - enc->masks));
    stream -= lines - enc->lines;
    memcpy(stream, enc->lines, (size_t)(lines - enc->lines));
    stream -= entry - enc->entries;
    memcpy(stream, enc->entries, (size_t)(entry - enc->entries));
    len = (size_t)(data - stream);

    coded = code_stream(enc, stream, len, out + sizeof(*header), &coding);
    if (coded == 0) {
        coding = PAGE_CODING_STORED;
        coded = len;
        memcpy(out + sizeof(*header), stream, len);
    }
    header->version = PAGE_BLOCK_VERSION;
    header->coding = (uint8_t)coding;
    header->pages[0] = (uint8_t)(n >> 8);
    header->pages[1] = (uint8_t)n;
    page_put32(header->generation, enc->generation);
    page_put32(header->sequence, enc->sequence++);
    page_put32(header->plain, (uint32_t)len);
    page_put32(header->coded, (uint32_t)coded);
    enc->stats.blocks++;
    enc->stats.bytes_in += n * PAGE_BYTES;
    enc->stats.bytes_out += sizeof(*header) + coded;
    return (ssize_t)(sizeof(*header) + coded);
}
