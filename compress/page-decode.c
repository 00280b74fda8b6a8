/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <inttypes.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "compress/page-block.h"

struct page_decoder {
    uint32_t generation, sequence; /* the block expected next */
    bool fresh;                    /* only a block with sequence 0 is accepted */
    uint64_t next_pfn;
    ZSTD_DCtx *zstd;
    uint8_t stream[PAGE_STREAM_MAX + PAGE_LINE_BYTES];
};

/* A part of the stream that is read front to back. */
struct span {
    const uint8_t *at, *end;
};

struct page_decoder *page_decoder_new(void)
{
    struct page_decoder *dec = calloc(1, sizeof(*dec));

    if (!dec)
        return NULL;
    dec->zstd = ZSTD_createDCtx();
    if (!dec->zstd) {
        page_decoder_free(dec);
        return NULL;
    }
    page_decoder_reset(dec);
    return dec;
}

void page_decoder_free(struct page_decoder *dec)
{
    if (!dec)
        return;
    ZSTD_freeDCtx(dec->zstd);
    free(dec);
}

void page_decoder_reset(struct page_decoder *dec)
{
    dec->fresh = true;
    dec->next_pfn = 0;
}

void page_decoder_begin(struct page_decoder *dec)
{
    dec->next_pfn = 0;
}

static int decode_stream(struct page_decoder *dec, const struct page_block_header *header,
                         size_t plain, struct error *err)
{
    const uint8_t *in = (const uint8_t *)(header + 1);
    size_t coded = page_get32(header->coded), got = 0;

    switch (header->coding) {
    case PAGE_CODING_STORED:
        if (coded == plain)
            memcpy(dec->stream, in, got = plain);
        break;
    case PAGE_CODING_LZ4: {
        int r = LZ4_decompress_safe((const char *)in, (char *)dec->stream, (int)coded, (int)plain);

        got = r < 0 ? 0 : (size_t)r;
        break;
    }
    case PAGE_CODING_ZSTD:
        got = ZSTD_decompressDCtx(dec->zstd, dec->stream, plain, in, coded);
        break;
    default:
        return error_set(err, "page block: byte 1: unknown coding %u", header->coding);
    }
    if (got != plain)
        return error_set(err, "page block: byte 20: %zu bytes of coding %u do not decode to %zu bytes",
                         coded, header->coding, plain);
    return 0;
}

static int read_entry(struct span *s, unsigned *kind, uint64_t *gap)
{
    unsigned shift = 0;
    uint8_t byte;

    if (s->at == s->end)
        return -1;
    byte = *s->at++;
    *kind = byte & 15;
    *gap = byte >> 4;
    if (*gap != PAGE_GAP_LONG)
        return 0;
    do {
        if (s->at == s->end || shift > 56)
            return -1;
        byte = *s->at++;
        *gap += (uint64_t)(byte & 0x7f) << shift;
        shift += 7;
    } while (byte & 0x80);
    return 0;
}

static size_t span_left(const struct span *s)
{
    return (size_t)(s->end - s->at);
}

/* Checks the header against the decoder's state; the number of pages or -1. */
static int check_header(const struct page_decoder *dec, const uint8_t *block, size_t len,
                        struct error *err)
{
    const struct page_block_header *header = (const struct page_block_header *)block;
    uint32_t generation, sequence, plain, coded;
    unsigned n;

    if (len < sizeof(*header))
        return error_set(err, "page block: byte %zu: cut off inside the header", len);
    if (header->version != PAGE_BLOCK_VERSION)
        return error_set(err, "page block: byte 0: version %u, this side speaks %d",
                         header->version, PAGE_BLOCK_VERSION);
    n = (unsigned)header->pages[0] << 8 | header->pages[1];
    if (n == 0 || n > PAGE_BLOCK_MAX)
        return error_set(err, "page block: byte 2: %u pages, 1 to %d are allowed", n, PAGE_BLOCK_MAX);
    generation = page_get32(header->generation);
    sequence = page_get32(header->sequence);
    if (sequence != 0 &&
        (dec->fresh || generation != dec->generation || sequence != dec->sequence))
        return error_set(err, "page block: byte 4: block %" PRIu32 ".%" PRIu32
                         " does not follow the block received last: the sender must start afresh",
                         generation, sequence);
    plain = page_get32(header->plain);
    if (plain > PAGE_STREAM_MAX)
        return error_set(err, "page block: byte 12: a stream of %" PRIu32 " bytes, at most %d",
                         plain, PAGE_STREAM_MAX);
    coded = page_get32(header->coded);
    if (coded != len - sizeof(*header))
        return error_set(err, "page block: byte 16: %" PRIu32 " bytes announced, %zu are there",
                         coded, len - sizeof(*header));
    return (int)n;
}

static int decode_pages(struct page_decoder *dec, size_t plain, unsigned n, bool first,
                        uint64_t guest_pages, const uint8_t *memory, uint64_t *pfns, uint8_t *pages,
                        struct error *err)
{
    struct span entry = {dec->stream, dec->stream + plain}, lines, masks, words;
    unsigned kinds[PAGE_BLOCK_MAX];
    size_t deltas = 0, mask_bytes = 0;

    for (unsigned i = 0; i < n; i++) {
        size_t at = (size_t)(entry.at - dec->stream);
        uint64_t gap;

        if (read_entry(&entry, &kinds[i], &gap) < 0)
            return error_set(err, "page stream: byte %zu: page %u of %u: cut off or overlong", at, i, n);
        if (dec->next_pfn >= guest_pages || gap >= guest_pages - dec->next_pfn)
            return error_set(err, "page stream: byte %zu: page %u of %u: %" PRIu64 " + %" PRIu64
                             " is outside the guest's %" PRIu64 " pages",
                             at, i, n, dec->next_pfn, gap, guest_pages);
        pfns[i] = dec->next_pfn + gap;
        dec->next_pfn = pfns[i] + 1;
        if (kinds[i] >= PAGE_RAW)
            return error_set(err, "page stream: byte %zu: pfn %" PRIu64 ": unknown kind %u", at,
                             pfns[i], kinds[i]);
        if (first && (kinds[i] == PAGE_DELTA || kinds[i] == PAGE_UNCHANGED))
            return error_set(err, "page stream: byte %zu: pfn %" PRIu64
                             ": refers to a page that was never sent", at, pfns[i]);
        deltas += kinds[i] == PAGE_DELTA;
    }
    lines.at = entry.at;
    if (span_left(&entry) < deltas * 8)
        return error_set(err, "page stream: byte %zu: %zu deltas do not fit", plain, deltas);
    lines.end = masks.at = lines.at + deltas * 8;
    for (const uint8_t *p = lines.at; p < lines.end; p += 4)
        mask_bytes += (size_t)__builtin_popcount(page_get32(p));
    if ((size_t)(entry.end - masks.at) < mask_bytes)
        return error_set(err, "page stream: byte %zu: %zu masks do not fit", plain, mask_bytes);
    masks.end = words.at = masks.at + mask_bytes;
    words.end = dec->stream + plain;

    for (unsigned i = 0; i < n; i++) {
        uint8_t *page = pages + (size_t)i * PAGE_BYTES;
        size_t at = (size_t)(words.at - dec->stream), need = 0;

        switch (kinds[i]) {
        case PAGE_ZERO:
            memset(page, 0, PAGE_BYTES);
            break;
        case PAGE_UNCHANGED:
        case PAGE_DELTA:
            memcpy(page, memory + pfns[i] * PAGE_BYTES, PAGE_BYTES);
            if (kinds[i] == PAGE_DELTA) {
                uint64_t changed = (uint64_t)page_get32(lines.at) << 32 | page_get32(lines.at + 4);
                int count = __builtin_popcountll(changed);

                for (int j = 0; j < count; j++)
                    need += 8 * (size_t)__builtin_popcount(masks.at[j]);
                if (span_left(&words) >= need)
                    page_words_plain.put(page, changed, masks.at, words.at);
                lines.at += 8;
                masks.at += count;
            }
            break;
        case PAGE_WHOLE:
            need = PAGE_BYTES;
            if (span_left(&words) >= need)
                memcpy(page, words.at, PAGE_BYTES);
            break;
        }
        if (span_left(&words) < need)
            return error_set(err, "page stream: byte %zu: pfn %" PRIu64 " needs %zu bytes, %zu are left",
                             at, pfns[i], need, span_left(&words));
        words.at += need;
    }
    if (words.at != words.end)
        return error_set(err, "page stream: byte %zu: %zu bytes too many",
                         (size_t)(words.at - dec->stream), span_left(&words));
    return 0;
}

int page_decode(struct page_decoder *dec, const uint8_t *block, size_t len, uint64_t guest_pages,
                const uint8_t *memory, uint64_t *pfns, uint8_t *pages, struct error *err)
{
    const struct page_block_header *header = (const struct page_block_header *)block;
    int n = check_header(dec, block, len, err);
    size_t plain;
    bool first;

    if (n > 0) {
        plain = page_get32(header->plain);
        first = page_get32(header->sequence) == 0;
        if (decode_stream(dec, header, plain, err) == 0 &&
            decode_pages(dec, plain, (unsigned)n, first, guest_pages, memory, pfns, pages, err) == 0) {
            dec->fresh = false;
            dec->generation = page_get32(header->generation);
            dec->sequence = page_get32(header->sequence) + 1;
            return n;
        }
    }
    page_decoder_reset(dec);
    return -1;
}
