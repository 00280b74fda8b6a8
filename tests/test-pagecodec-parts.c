/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page codec's parts: the vector code (R10, R4), the cache (R9), the choice of a codec. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compress/page-auto.h"
#include "compress/page-cache.h"
#include "compress/page-words.h"
#include "compress/pagecodec.h"

static uint64_t seed = 7;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

/* What one version makes of one pair of pages. */
struct outcome {
    uint64_t lines;
    size_t lengths[3], bits;
    unsigned stride, likely, place, line;
    struct page_prints prints;
    uint8_t words[PAGE_LINES + PAGE_WORDS_SLACK], bytes[PAGE_WORDS + PAGE_WORDS_SLACK];
    uint8_t data[PAGE_BYTES + PAGE_WORDS_SLACK];
    uint8_t page[PAGE_BYTES];
};

static uint64_t key[PAGE_KEY_WORDS];

static void run(const struct page_words_ops *ops, const uint8_t *page, const uint8_t *old,
                bool difference, struct outcome *o)
{
    struct page_parts parts = {o->words, o->bytes, o->data};
    struct page_print_index index = {.prints = &o->prints};

    memset(o, 0, sizeof(*o));
    o->lines = ops->take(page, old, 0, PAGE_LINES, difference, &parts);
    o->lengths[0] = (size_t)(parts.words - o->words);
    o->lengths[1] = (size_t)(parts.bytes - o->bytes);
    o->lengths[2] = (size_t)(parts.data - o->data);
    memset(o->words + o->lengths[0], 0, sizeof(o->words) - o->lengths[0]);
    memset(o->bytes + o->lengths[1], 0, sizeof(o->bytes) - o->lengths[1]);
    memset(o->data + o->lengths[2], 0, sizeof(o->data) - o->lengths[2]);
    assert_true(ops->popcount(o->words, o->lengths[0]) == o->lengths[1]);
    assert_true(ops->popcount(o->bytes, o->lengths[1]) == o->lengths[2]);
    o->bits = ops->popcount(page, PAGE_BYTES - 5);
    o->stride = ops->stride(page, 0);
    o->likely = ops->stride(page, 16);
    ops->prints(old, 0, PAGE_LINES, key, &o->prints);
    for (unsigned i = 0; i < PAGE_LINES; i += 3)
        index.line[o->prints.high[i] & 0xff] = (uint8_t)(i + 1);
    o->line = 1;
    o->place = ops->find_line(page, 2, PAGE_WORDS - 7, key, &index, &o->line);

    /* In place when the parts hold bytes as they are, from another page in both cases. */
    parts = (struct page_parts){o->words, o->bytes, o->data};
    ops->copy(o->page, old);
    ops->put(o->page, difference ? old : o->page, 0, PAGE_LINES, difference, o->lines, &parts);
    assert_true((size_t)(parts.data - o->data) == o->lengths[2]);
    assert_memory_equal(o->page, page, PAGE_BYTES);
}

static void make_pair(uint8_t *page, uint8_t *old)
{
    unsigned stride = 1 + (unsigned)(rnd() % 64), edits = (unsigned)(rnd() % 400);

    for (int i = 0; i < PAGE_BYTES; i++)
        old[i] = rnd() % 4 ? (uint8_t)(i % (int)(8 * stride) * 37) : (uint8_t)rnd();
    memcpy(page, old, PAGE_BYTES);
    for (unsigned i = 0; i < edits; i++)
        page[rnd() % PAGE_BYTES] = (uint8_t)rnd();
    if (rnd() % 4 == 0)
        memset(page + rnd() % PAGE_BYTES / 2, (int)rnd(), PAGE_BYTES / 2);
}

/* R4: every version of the inner loops writes the same bytes, and undoes what it wrote. */
static void test_r4_vector_code_equals_plain(void **state)
{
    static uint8_t page[PAGE_BYTES], old[PAGE_BYTES];
    static struct outcome plain, vector;
    const struct page_words_ops *const *list = page_words_list();
    unsigned last = 0;

    (void)state;
    while (list[last + 1])
        last++;
    assert_string_equal(list[last]->name, "plain");
    for (int i = 0; i < PAGE_KEY_WORDS; i++)
        key[i] = rnd();
    for (int round = 0; round < 2000; round++) {
        make_pair(page, old);
        for (int difference = 0; difference < 2; difference++) {
            run(list[last], page, old, difference, &plain);
            for (unsigned i = 0; i < last; i++) {
                run(list[i], page, old, difference, &vector);
                if (memcmp(&plain, &vector, sizeof(plain)) != 0)
                    fail_msg("%s differs from plain in round %d", list[i]->name, round);
            }
        }
    }
}

/*
 * R2: a line that differs in any bit has another fingerprint, an equal one the same, wherever it
 * is; another key gives other fingerprints.
 */
static void test_r2_fingerprints(void **state)
{
    static uint8_t page[PAGE_BYTES];
    struct page_prints first = {0}, again = {0};

    (void)state;
    for (int i = 0; i < PAGE_BYTES; i++)
        page[i] = i < PAGE_BYTES / 2 ? (uint8_t)rnd() : page[i - PAGE_BYTES / 2];
    for (const struct page_words_ops *const *ops = page_words_list(); *ops; ops++) {
        for (int i = 0; i < PAGE_KEY_WORDS; i++)
            key[i] = rnd();
        (*ops)->prints(page, 0, PAGE_LINES, key, &first);
        for (int i = 0; i < PAGE_LINES / 2; i++)
            assert_true(first.high[i] == first.high[i + PAGE_LINES / 2] &&
                        first.low[i] == first.low[i + PAGE_LINES / 2]);
        for (unsigned bit = 0; bit < 8 * PAGE_BYTES; bit += 7) {
            unsigned line = bit / 8 / PAGE_LINE_BYTES;

            page[bit / 8] ^= (uint8_t)(1u << bit % 8);
            (*ops)->prints(page, 0, PAGE_LINES, key, &again);
            page[bit / 8] ^= (uint8_t)(1u << bit % 8);
            assert_int_not_equal(first.high[line], again.high[line]);
            again.high[line] = first.high[line];
            again.low[line] = first.low[line];
            assert_memory_equal(&first, &again, sizeof(first));
        }
        key[3]++;
        (*ops)->prints(page, 0, PAGE_LINES, key, &again);
        for (int i = 0; i < PAGE_LINES; i++)
            assert_int_not_equal(first.high[i], again.high[i]);
    }
}

/*
 * R9: the cache is no larger than its slots, forgets what was used longest ago, and keeps what a
 * checkpoint uses.
 */
static void test_r9_cache(void **state)
{
    struct page_cache *c = page_cache_new(3, PAGE_BYTES);
    uint64_t recycled;
    bool found;

    (void)state;
    for (uint64_t pfn = 10; pfn < 13; pfn++) {
        assert_non_null(page_cache_get(c, pfn, &found, NULL));
        assert_false(found);
    }
    assert_null(page_cache_get(c, 13, &found, NULL)); /* all three are in use by this checkpoint */
    page_cache_begin(c);
    assert_non_null(page_cache_get(c, 10, &found, NULL));
    assert_true(found);
    assert_non_null(page_cache_get(c, 13, &found, NULL)); /* takes the place of 11 */
    assert_false(found);
    page_cache_begin(c);
    assert_non_null(page_cache_get(c, 12, &found, NULL));
    assert_true(found);
    assert_non_null(page_cache_get(c, 11, &found, NULL));
    assert_false(found);
    assert_null(page_cache_get(c, 11, &found, NULL)); /* it is being filled */
    assert_false(found);
    page_cache_begin(c);
    assert_non_null(page_cache_get(c, 11, &found, NULL)); /* was not to be filled after all */
    assert_false(found);
    assert_non_null(page_cache_get(c, 14, &found, &recycled)); /* takes the place of 13 */
    assert_true(recycled == UINT64_MAX);
    assert_non_null(page_cache_get(c, 15, &found, &recycled)); /* of 12, which had been found */
    assert_int_equal(recycled, 12);
    page_cache_clear(c);
    page_cache_get(c, 12, &found, &recycled);
    assert_false(found);
    assert_true(recycled == UINT64_MAX);
    page_cache_free(c);

    /* Many pfns through few slots: the table never loses or invents one. */
    c = page_cache_new(50, PAGE_BYTES);
    for (int i = 0; i < 100000; i++) {
        uint64_t pfn = rnd() % 120;
        uint8_t *page;

        page_cache_begin(c);
        page = page_cache_get(c, pfn, &found, NULL);
        if (found)
            assert_true(*page == (uint8_t)pfn);
        *page = (uint8_t)pfn;
    }
    page_cache_free(c);
}

static enum page_codec after(struct page_auto *a, int checkpoints, uint64_t link_bps,
                             double cpu_share)
{
    /* A page costs 600 ns and 400 bytes with LZ4, 960 ns and 288 bytes with zstd. */
    for (int i = 0; i < checkpoints; i++) {
        bool lz4 = a->codec == PAGE_CODEC_LZ4;
        struct page_auto_sample s = {100, lz4 ? 40000 : 28800, lz4 ? 60000 : 96000, link_bps,
                                     cpu_share};

        page_auto_choose(a, &s);
    }
    return a->codec;
}

/*
 * compression = auto: zstd where the link is what is waited for; no change for a moment or a
 * trifle.
 */
static void test_auto_follows_link_and_processor(void **state)
{
    struct page_auto a;

    (void)state;
    page_auto_init(&a);
    assert_int_equal(after(&a, 100, 10000000000, 1),
                     PAGE_CODEC_LZ4); /* 40 ns to send, 600 to encode */
    assert_int_equal(after(&a, 10, 12500000, 1), PAGE_CODEC_LZ4);      /* slow for a moment */
    assert_int_equal(after(&a, 1, 10000000000, 1), PAGE_CODEC_LZ4);
    assert_int_equal(after(&a, 100, 12500000, 1), PAGE_CODEC_ZSTD); /* 100 Mbit/s: 32 us to send */
    assert_int_equal(after(&a, 100, 400000000, 1),
                     PAGE_CODEC_ZSTD); /* 960 against 1000: a trifle */
    assert_int_equal(after(&a, 100, 12500000, 0.01), PAGE_CODEC_LZ4);  /* no processor to spare */
    assert_int_equal(after(&a, 100, 0, 1), PAGE_CODEC_LZ4);            /* link not known */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_r4_vector_code_equals_plain),
        cmocka_unit_test(test_r2_fingerprints),
        cmocka_unit_test(test_r9_cache),
        cmocka_unit_test(test_auto_follows_link_and_processor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
