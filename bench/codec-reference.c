/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The codecs that the page codec is compared with, written from their published descriptions.  Each
 * has the same cache (LRU, compress/page-cache.h) and the same two fields before a page: kind and
 * pfn as in the page codec's entries, and a u16 length.
 *
 * xbzrle     QEMU's docs/xbzrle.txt: runs of equal and of other bytes, each run's length a
 *            ULEB128, the others followed by the new bytes; a trailing equal run is left out.
 *            A page without a copy, or one that would grow, is sent as it is.
 * remus2011  RemusDB (PVLDB 4(11), 2011, section 4) as Xen carried it until 2019
 *            (xc_compression): runs of changed and of unchanged 32-bit words; a run's header is one
 *            byte, bit 7 for "skip", then up to 127 words.  A page without a copy, or one
 *            that would grow, is sent as it is.
 * lz4        LZ4_compress_default of each page.
 * xorlz4     LZ4_compress_default of new XOR old, of the page itself without a copy.
 */
#include <lz4.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "bench/codec.h"
#include "compress/page-cache.h"

#define PAGE 4096

enum { KIND_RAW, KIND_WHOLE, KIND_DELTA, KIND_SAME };

struct reference {
    const struct codec_ops *ops;
    struct page_cache *cache;
};

static void reference_destroy(void *state)
{
    struct reference *r = state;

    if (!r)
        return;
    page_cache_free(r->cache);
    free(r);
}

static void *reference_create(const struct codec_ops *ops, const struct codec_config *config)
{
    struct reference *r = calloc(1, sizeof(*r));

    if (!r)
        return NULL;
    r->ops = ops;
    r->cache = page_cache_new((uint32_t)(config->cache_bytes / PAGE), PAGE);
    if (!r->cache) {
        reference_destroy(r);
        return NULL;
    }
    return r;
}

static uint8_t *put_varint(uint8_t *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *p++ = (uint8_t)(v | 0x80);
    *p++ = (uint8_t)v;
    return p;
}

static const uint8_t *get_varint(const uint8_t *p, uint64_t *v)
{
    unsigned shift = 0;

    *v = 0;
    do {
        *v |= (uint64_t)(*p & 0x7f) << shift;
        shift += 7;
    } while (*p++ & 0x80);
    return p;
}

static size_t reference_encode(void *state, const uint64_t *pfns, const uint8_t *const *pages,
                               size_t n, uint8_t *out)
{
    struct reference *r = state;
    uint64_t next = 0;
    uint8_t *start = out;

    page_cache_begin(r->cache);
    for (size_t i = 0; i < n; i++) {
        bool found = false;
        uint8_t *copy = r->ops == &codec_lz4 ? NULL : page_cache_get(r->cache, pfns[i], &found, NULL);
        uint8_t *head = put_varint(out, (pfns[i] - next) << 2);
        size_t len;
        int kind = r->ops->page_encode(pages[i], copy && found ? copy : NULL, head + 2, &len);

        put_varint(out, (pfns[i] - next) << 2 | (unsigned)kind);
        head[0] = (uint8_t)len;
        head[1] = (uint8_t)(len >> 8);
        out = head + 2 + len;
        next = pfns[i] + 1;
        if (copy && kind != KIND_SAME)
            memcpy(copy, pages[i], PAGE);
    }
    return (size_t)(out - start);
}

static int reference_decode(void *state, const uint8_t *in, size_t len, const uint8_t *memory,
                            uint64_t *pfns, uint8_t *pages, size_t n)
{
    struct reference *r = state;
    const uint8_t *end = in + len;
    uint64_t next = 0;

    for (size_t i = 0; i < n; i++, pages += PAGE) {
        uint64_t entry;
        size_t size;

        in = get_varint(in, &entry);
        size = (size_t)in[0] | (size_t)in[1] << 8;
        in += 2;
        pfns[i] = next + (entry >> 2);
        next = pfns[i] + 1;
        if ((entry & 3) == KIND_RAW)
            memcpy(pages, in, PAGE);
        else if (r->ops->page_decode(entry & 3, in, size, memory + pfns[i] * PAGE, pages) < 0)
            return -1;
        in += size;
    }
    return in == end ? 0 : -1;
}

static int put_raw(const uint8_t *page, uint8_t *out, size_t *len)
{
    memcpy(out, page, PAGE);
    *len = PAGE;
    return KIND_RAW;
}

/* lz4 and xorlz4 */

static int put_lz4(const uint8_t *data, const uint8_t *page, uint8_t *out, size_t *len, int kind)
{
    int got = LZ4_compress_default((const char *)data, (char *)out, PAGE, PAGE - 1);

    if (got <= 0)
        return put_raw(page, out, len);
    *len = (size_t)got;
    return kind;
}

static int lz4_encode(const uint8_t *page, const uint8_t *old, uint8_t *out, size_t *len)
{
    (void)old;
    return put_lz4(page, page, out, len, KIND_WHOLE);
}

static int lz4_decode(int kind, const uint8_t *in, size_t len, const uint8_t *old, uint8_t *page)
{
    (void)kind;
    (void)old;
    return LZ4_decompress_safe((const char *)in, (char *)page, (int)len, PAGE) == PAGE ? 0 : -1;
}

static inline __attribute__((always_inline)) void
xor_loop(uint8_t *restrict out, const uint8_t *restrict a, const uint8_t *restrict b)
{
    for (int i = 0; i < PAGE; i++)
        out[i] = a[i] ^ b[i];
}

#ifdef __x86_64__
__attribute__((target("avx512f"))) static void xor_avx512(uint8_t *out, const uint8_t *a,
                                                          const uint8_t *b)
{
    xor_loop(out, a, b);
}

__attribute__((target("avx2"))) static void xor_avx2(uint8_t *out, const uint8_t *a,
                                                     const uint8_t *b)
{
    xor_loop(out, a, b);
}
#endif

static void xor_pages(uint8_t *out, const uint8_t *a, const uint8_t *b)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) {
        xor_avx512(out, a, b);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        xor_avx2(out, a, b);
        return;
    }
#endif
    xor_loop(out, a, b);
}

static int xorlz4_encode(const uint8_t *page, const uint8_t *old, uint8_t *out, size_t *len)
{
    uint8_t diff[PAGE];

    if (!old)
        return put_lz4(page, page, out, len, KIND_WHOLE);
    xor_pages(diff, page, old);
    return put_lz4(diff, page, out, len, KIND_DELTA);
}

static int xorlz4_decode(int kind, const uint8_t *in, size_t len, const uint8_t *old, uint8_t *page)
{
    uint8_t diff[PAGE];

    if (kind == KIND_WHOLE)
        return lz4_decode(kind, in, len, old, page);
    if (lz4_decode(kind, in, len, old, diff) < 0)
        return -1;
    xor_pages(page, diff, old);
    return 0;
}

/* xbzrle */

static uint64_t load64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

/* How many bytes from `at` on are equal in both. */
static size_t equal_run(const uint8_t *a, const uint8_t *b, size_t at)
{
    size_t start = at;

    for (; at + 8 <= PAGE; at += 8) {
        uint64_t diff = load64(a + at) ^ load64(b + at);

        if (diff)
            return at - start + (size_t)__builtin_ctzll(diff) / 8;
    }
    while (at < PAGE && a[at] == b[at])
        at++;
    return at - start;
}

/* How many differ: up to the first equal byte, found eight at a time. */
static size_t unequal_run(const uint8_t *a, const uint8_t *b, size_t at)
{
    const uint64_t low = UINT64_C(0x0101010101010101), high = UINT64_C(0x8080808080808080);
    size_t start = at;

    for (; at + 8 <= PAGE; at += 8) {
        uint64_t diff = load64(a + at) ^ load64(b + at), zero = (diff - low) & ~diff & high;

        if (zero)
            return at - start + (size_t)__builtin_ctzll(zero) / 8;
    }
    while (at < PAGE && a[at] != b[at])
        at++;
    return at - start;
}

static int xbzrle_encode(const uint8_t *page, const uint8_t *old, uint8_t *out, size_t *len)
{
    uint8_t *p = out;
    size_t at = 0;

    if (!old)
        return put_raw(page, out, len);
    while (at < PAGE) {
        size_t zrun = equal_run(page, old, at), nzrun;

        at += zrun;
        if (at == PAGE)
            break;
        nzrun = unequal_run(page, old, at);
        if ((size_t)(p - out) + nzrun + 6 > PAGE)
            return put_raw(page, out, len);
        p = put_varint(p, zrun);
        p = put_varint(p, nzrun);
        memcpy(p, page + at, nzrun);
        p += nzrun;
        at += nzrun;
    }
    *len = (size_t)(p - out);
    return *len ? KIND_DELTA : KIND_SAME;
}

static int xbzrle_decode(int kind, const uint8_t *in, size_t len, const uint8_t *old, uint8_t *page)
{
    const uint8_t *end = in + len;
    size_t at = 0;

    (void)kind;
    memcpy(page, old, PAGE);
    while (in < end) {
        uint64_t zrun, nzrun;

        in = get_varint(in, &zrun);
        in = get_varint(in, &nzrun);
        at += zrun;
        if (at + nzrun > PAGE)
            return -1;
        memcpy(page + at, in, nzrun);
        in += nzrun;
        at += nzrun;
    }
    return 0;
}

/* remus2011 */

#define RUN_SKIP 0x80
#define RUN_MAX 0x7f
#define WORDS (PAGE / 4)

static bool same_word(const uint8_t *a, const uint8_t *b, size_t word)
{
    return memcmp(a + 4 * word, b + 4 * word, 4) == 0;
}

static int remus2011_encode(const uint8_t *page, const uint8_t *old, uint8_t *out, size_t *len)
{
    uint8_t *p = out;
    size_t at = 0;

    if (!old)
        return put_raw(page, out, len);
    while (at < WORDS) {
        size_t run = equal_run(page, old, 4 * at) / 4;

        at += run;
        if (at == WORDS && p == out)
            break;
        for (; run; run -= run < RUN_MAX ? run : RUN_MAX) {
            if (p - out >= PAGE)
                return put_raw(page, out, len);
            *p++ = (uint8_t)(RUN_SKIP | (run < RUN_MAX ? run : RUN_MAX));
        }
        while (at + run < WORDS && run < RUN_MAX && !same_word(page, old, at + run))
            run++;
        if (run == 0)
            continue;
        if ((size_t)(p - out) + 1 + 4 * run > PAGE)
            return put_raw(page, out, len);
        *p++ = (uint8_t)run;
        memcpy(p, page + 4 * at, 4 * run);
        p += 4 * run;
        at += run;
    }
    *len = (size_t)(p - out);
    return *len ? KIND_DELTA : KIND_SAME;
}

static int remus2011_decode(int kind, const uint8_t *in, size_t len, const uint8_t *old,
                            uint8_t *page)
{
    const uint8_t *end = in + len;
    size_t at = 0;

    (void)kind;
    memcpy(page, old, PAGE);
    while (in < end) {
        size_t run = *in & RUN_MAX;
        bool skip = *in++ & RUN_SKIP;

        if (at + run > WORDS)
            return -1;
        if (!skip) {
            memcpy(page + 4 * at, in, 4 * run);
            in += 4 * run;
        }
        at += run;
    }
    return 0;
}

#define REFERENCE_OPS                                                                              \
    .create = reference_create, .destroy = reference_destroy, .encode = reference_encode,          \
    .decode = reference_decode

const struct codec_ops codec_xbzrle = {
    .name = "xbzrle", REFERENCE_OPS, .page_encode = xbzrle_encode, .page_decode = xbzrle_decode};
const struct codec_ops codec_remus2011 = {.name = "remus2011", REFERENCE_OPS,
                                          .page_encode = remus2011_encode,
                                          .page_decode = remus2011_decode};
const struct codec_ops codec_lz4 = {
    .name = "lz4", REFERENCE_OPS, .page_encode = lz4_encode, .page_decode = lz4_decode};
const struct codec_ops codec_xorlz4 = {
    .name = "xorlz4", REFERENCE_OPS, .page_encode = xorlz4_encode, .page_decode = xorlz4_decode};
