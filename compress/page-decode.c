/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
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
    const struct page_words_ops *words;
    uint8_t stream[PAGE_STREAM_MAX + PAGE_WORDS_SLACK];
};

/* A section of the stream, read front to back. */
struct span {
    const uint8_t *at, *end;
};

/* One block while it is decoded: what the stream consists of, and where the pages go. */
struct block {
    struct page_decoder *dec;
    struct error *err;
    unsigned n;
    bool first; /* since a fresh start: nothing can be referred to */
    uint64_t guest_pages;
    const uint8_t *memory;
    uint64_t *pfns;
    uint8_t kinds[PAGE_BLOCK_MAX];
    struct span entries, extra, lines, words, bytes, data; /* of the stream, */
    struct span raw;                                       /* and of the block */
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
    dec->words = page_words_named(NULL);
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

int page_decoder_set_vector(struct page_decoder *dec, const char *name)
{
    const struct page_words_ops *words = page_words_named(name);

    if (!words) {
        errno = EINVAL;
        return -1;
    }
    dec->words = words;
    return 0;
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
        return error_set(err,
                         "page block: byte 20: %zu bytes of coding %u do not decode to %zu bytes",
                         coded, header->coding, plain);
    return 0;
}

static size_t left(const struct span *s)
{
    return (size_t)(s->end - s->at);
}

/* Sets the text of a failure at `at` in the stream, in page i. */
#define FAIL(b, place, i, fmt, ...)                                                                \
    error_set((b)->err, "page stream: byte %zu: page %u of %u, pfn %" PRIu64 ": " fmt,             \
              (size_t)((place) - (b)->dec->stream), (i), (b)->n, (b)->pfns[i], __VA_ARGS__)

static int read_entry(struct span *s, uint8_t *kind, uint64_t *gap)
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
        return error_set(err, "page block: byte 2: %u pages, 1 to %d are allowed", n,
                         PAGE_BLOCK_MAX);
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
    if (coded > len - sizeof(*header))
        return error_set(err, "page block: byte 16: %" PRIu32 " bytes announced, %zu are there",
                         coded, len - sizeof(*header));
    return (int)n;
}

/* Reads the entries: kinds and pfns. */
static int read_entries(struct block *b)
{
    uint64_t next = b->dec->next_pfn, gap;

    for (unsigned i = 0; i < b->n; i++) {
        const uint8_t *at = b->entries.at;

        b->pfns[i] = next;
        if (read_entry(&b->entries, &b->kinds[i], &gap) < 0)
            return FAIL(b, at, i, "%s", "entry cut off or overlong");
        if (next >= b->guest_pages || gap >= b->guest_pages - next)
            return FAIL(b, at, i, "%" PRIu64 " further is outside the guest's %" PRIu64 " pages",
                        gap, b->guest_pages);
        b->pfns[i] = next + gap;
        next = b->pfns[i] + 1;
        if (b->kinds[i] >= PAGE_KINDS)
            return FAIL(b, at, i, "unknown kind %u", b->kinds[i]);
        if (b->first && (b->kinds[i] == PAGE_UNCHANGED || b->kinds[i] == PAGE_DELTA ||
                         b->kinds[i] == PAGE_MOVED))
            return FAIL(b, at, i, "kind %u refers to a page that was never sent", b->kinds[i]);
    }
    b->dec->next_pfn = next;
    return 0;
}

static bool has_lines(unsigned kind)
{
    return kind == PAGE_DELTA || kind == PAGE_MOVED || kind == PAGE_SELF;
}

/* Finds where each section ends: a section's length follows from the ones before. */
static int find_sections(struct block *b)
{
    const struct page_words_ops *ops = b->dec->words;
    const uint8_t *end = b->entries.end, *at = b->entries.at;
    size_t lines = 0, words, bytes, data, raw = 0;

    b->extra.at = at;
    for (unsigned i = 0; i < b->n; i++) {
        size_t need = b->kinds[i] == PAGE_SELF || b->kinds[i] == PAGE_MOVED;

        if ((size_t)(end - at) < need)
            return FAIL(b, at, i, "%s", "cut off");
        if (b->kinds[i] == PAGE_MOVED)
            need += (size_t)*at * PAGE_MOVE_BYTES;
        if ((size_t)(end - at) < need)
            return FAIL(b, at, i, "%zu bytes of moves do not fit", need);
        at += need;
        lines += has_lines(b->kinds[i]);
    }
    b->extra.end = b->lines.at = at;
    lines *= 8;
    if ((size_t)(end - at) < lines)
        return FAIL(b, at, b->n - 1, "%zu bytes of lines do not fit", lines);
    b->lines.end = b->words.at = at += lines;
    words = ops->popcount(b->lines.at, lines);
    if ((size_t)(end - at) < words)
        return FAIL(b, at, b->n - 1, "%zu bytes of words do not fit", words);
    b->words.end = b->bytes.at = at += words;
    bytes = ops->popcount(b->words.at, words);
    if ((size_t)(end - at) < bytes)
        return FAIL(b, at, b->n - 1, "%zu bytes of bytes do not fit", bytes);
    b->bytes.end = b->data.at = at += bytes;
    b->data.end = end;
    data = ops->popcount(b->bytes.at, bytes);
    for (unsigned i = 0; i < b->n; i++) {
        data += b->kinds[i] == PAGE_WHOLE ? PAGE_BYTES : 0;
        raw += b->kinds[i] == PAGE_RAW ? PAGE_BYTES : 0;
    }
    if (data != left(&b->data))
        return FAIL(b, at, b->n - 1, "the pages need %zu bytes of data, %zu are there", data,
                    left(&b->data));
    if (raw != left(&b->raw))
        return error_set(b->err, "page block: %zu bytes behind the stream, the raw pages need %zu",
                         left(&b->raw), raw);
    return 0;
}

/* Makes the page that a list of moves predicts. */
static int predict_moved(struct block *b, unsigned i, uint8_t *page)
{
    const uint8_t *at = b->extra.at;
    unsigned count = *at++, to = 0, from, end;
    uint64_t pfn = b->pfns[i], above = (b->guest_pages - pfn + 1) * PAGE_HALVES;

    if (count == 0 || count > PAGE_MOVES_MAX)
        return FAIL(b, at - 1, i, "%u moves, 1 to %d are allowed", count, PAGE_MOVES_MAX);
    b->extra.at = at + count * PAGE_MOVE_BYTES;
    for (; at < b->extra.at; at += PAGE_MOVE_BYTES, to = end) {
        uint32_t move = page_get32(at);

        from = move & 0xffff;
        end = at + PAGE_MOVE_BYTES < b->extra.at ? page_get32(at + PAGE_MOVE_BYTES) >> 16
                                                 : PAGE_WORDS;
        if (move >> 16 != to || end <= to || end > PAGE_WORDS)
            return FAIL(b, at, i, "a move to word %" PRIu32 " out of order", move >> 16);
        if (from + 2 * (end - to) > PAGE_MOVE_SPAN || from + 2 * (end - to) > above ||
            (pfn == 0 && from < PAGE_HALVES))
            return FAIL(b, at, i, "a move from half word %u, %u words long, reaches outside", from,
                        end - to);
        memcpy(page + 8 * to, b->memory + pfn * PAGE_BYTES + 4 * (size_t)from - PAGE_BYTES,
               8 * (size_t)(end - to));
    }
    return 0;
}

/* Makes one page; the sections are known to hold all that the pages ask for. */
static int make_page(struct block *b, unsigned i, uint8_t *page)
{
    const struct page_words_ops *ops = b->dec->words;
    struct page_parts parts = {(uint8_t *)(uintptr_t)b->words.at, (uint8_t *)(uintptr_t)b->bytes.at,
                               (uint8_t *)(uintptr_t)b->data.at};
    uint64_t lines = 0;

    if (has_lines(b->kinds[i])) {
        lines = page_get64(b->lines.at);
        b->lines.at += 8;
    }
    switch (b->kinds[i]) {
    case PAGE_ZERO:
        memset(page, 0, PAGE_BYTES);
        break;
    case PAGE_UNCHANGED:
        memcpy(page, b->memory + b->pfns[i] * PAGE_BYTES, PAGE_BYTES);
        break;
    case PAGE_DELTA:
        ops->put(page, b->memory + b->pfns[i] * PAGE_BYTES, 0, PAGE_LINES, false, lines, &parts);
        break;
    case PAGE_MOVED:
        if (predict_moved(b, i, page) < 0)
            return -1;
        ops->put(page, page, 0, PAGE_LINES, false, lines, &parts);
        break;
    case PAGE_SELF: {
        unsigned stride = *b->extra.at++;
        uint8_t begin[2 * PAGE_LEAD_BYTES] = {0}, *lead = begin + PAGE_LEAD_BYTES;

        if (stride == 0) {
            memset(page, 0, PAGE_BYTES);
            ops->put(page, page, 0, PAGE_LINES, false, lines, &parts);
            break;
        }
        if (stride < PAGE_STRIDE_MIN || stride > PAGE_STRIDE_MAX)
            return FAIL(b, b->extra.at - 1, i, "stride %u, 0 or %d to %d are allowed", stride,
                        PAGE_STRIDE_MIN, PAGE_STRIDE_MAX);
        ops->put(lead, lead - 8 * stride, 0, PAGE_LEAD_LINES, true, lines, &parts);
        memcpy(page, lead, PAGE_LEAD_BYTES);
        ops->put(page, page - 8 * stride, PAGE_LEAD_LINES, PAGE_LINES, true, lines, &parts);
        break;
    }
    case PAGE_WHOLE:
        memcpy(page, parts.data, PAGE_BYTES);
        parts.data += PAGE_BYTES;
        break;
    case PAGE_RAW:
        memcpy(page, b->raw.at, PAGE_BYTES);
        b->raw.at += PAGE_BYTES;
        break;
    }
    b->words.at = parts.words;
    b->bytes.at = parts.bytes;
    b->data.at = parts.data;
    return 0;
}

int page_decode(struct page_decoder *dec, const uint8_t *block, size_t len, uint64_t guest_pages,
                const uint8_t *memory, uint64_t *pfns, uint8_t *pages, struct error *err)
{
    const struct page_block_header *header = (const struct page_block_header *)block;
    struct block b = {
        .dec = dec, .err = err, .guest_pages = guest_pages, .memory = memory, .pfns = pfns};
    int n = check_header(dec, block, len, err);
    size_t plain;

    if (n < 0)
        goto fail;
    b.n = (unsigned)n;
    b.first = page_get32(header->sequence) == 0;
    plain = page_get32(header->plain);
    if (decode_stream(dec, header, plain, err) < 0)
        goto fail;
    b.entries = (struct span){dec->stream, dec->stream + plain};
    b.raw = (struct span){block + sizeof(*header) + page_get32(header->coded), block + len};
    if (read_entries(&b) < 0 || find_sections(&b) < 0)
        goto fail;
    for (unsigned i = 0; i < b.n; i++)
        if (make_page(&b, i, pages + (size_t)i * PAGE_BYTES) < 0)
            goto fail;
    dec->fresh = false;
    dec->generation = page_get32(header->generation);
    dec->sequence = page_get32(header->sequence) + 1;
    return n;
fail:
    page_decoder_reset(dec);
    return -1;
}
