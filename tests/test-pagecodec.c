/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page codec: what is decoded is what was encoded (R4), and nothing hostile gets through
 * (R10).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compress/pagecodec.h"

#define GUEST 600

static uint64_t seed = 1;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

/* A guest, its replica, and the codec between them. */
struct pair {
    struct page_encoder *enc;
    struct page_decoder *dec;
    uint8_t *guest, *replica;
    unsigned otherwise; /* one of so many pages is shipped without the codec; 0: none */
};

static struct pair pair_new(enum page_codec codec, uint64_t cache_pages)
{
    struct page_encoder_config config = {
        .guest_pages = GUEST, .cache_bytes = cache_pages * PAGE_BYTES, .codec = codec};
    struct pair p = {page_encoder_new(&config), page_decoder_new(), calloc(GUEST, PAGE_BYTES),
                     calloc(GUEST, PAGE_BYTES), 0};

    assert_non_null(p.enc);
    assert_non_null(p.dec);
    return p;
}

static void pair_free(struct pair *p)
{
    page_encoder_free(p->enc);
    page_decoder_free(p->dec);
    free(p->guest);
    free(p->replica);
}

static size_t encode(struct pair *p, const uint64_t *pfns, size_t n, uint8_t *out)
{
    const uint8_t *pages[PAGE_BLOCK_MAX];
    ssize_t len;

    for (size_t i = 0; i < n; i++)
        pages[i] = p->guest + pfns[i] * PAGE_BYTES;
    len = page_encode(p->enc, pfns, pages, n, out, page_block_bound(n));
    assert_true(len > 0 && (size_t)len <= page_block_bound(n));
    return (size_t)len;
}

/* Ships the pages set in `dirty` as one checkpoint and applies it. */
static void ship(struct pair *p, const uint8_t *dirty)
{
    static uint8_t out[PAGE_BLOCK_MAX * 5000], pages[GUEST * PAGE_BYTES];
    static uint64_t pfns[GUEST], got[GUEST], others[GUEST];
    size_t n = 0, done = 0, other = 0;
    struct error err;

    for (uint64_t i = 0; i < GUEST; i++)
        if (dirty[i])
            pfns[n++] = i;
    page_encoder_begin(p->enc);
    page_decoder_begin(p->dec);
    for (size_t i = 0, all = n; p->otherwise && i < all; i++)
        if (rnd() % p->otherwise == 0) {
            page_encoder_forget(p->enc, pfns[i]);
            others[other++] = pfns[i];
            n--;
        } else {
            pfns[i - other] = pfns[i];
        }
    while (done < n) {
        size_t some = 1 + rnd() % PAGE_BLOCK_MAX, len;

        if (some > n - done)
            some = n - done;
        len = encode(p, pfns + done, some, out);
        if (page_decode(p->dec, out, len, GUEST, p->replica, got + done, pages + done * PAGE_BYTES,
                        &err) != (int)some)
            fail_msg("%s", err.text);
        done += some;
    }
    assert_memory_equal(got, pfns, n * sizeof(*pfns));
    for (size_t i = 0; i < n; i++)
        memcpy(p->replica + got[i] * PAGE_BYTES, pages + i * PAGE_BYTES, PAGE_BYTES);
    for (size_t i = 0; i < other; i++)
        memcpy(p->replica + others[i] * PAGE_BYTES, p->guest + others[i] * PAGE_BYTES, PAGE_BYTES);
    assert_memory_equal(p->replica, p->guest, GUEST * PAGE_BYTES);
}

/* Changes a page the way guests do: a few words, a run, everything, nothing, back to zero. */
static void scribble(uint8_t *page)
{
    size_t at = rnd() % PAGE_BYTES, len = rnd() % (PAGE_BYTES - at + 1);

    switch (rnd() % 9) {
    case 0:
        memset(page, 0, PAGE_BYTES);
        break;
    case 1:
        for (size_t i = 0; i < PAGE_BYTES; i++)
            page[i] = (uint8_t)rnd();
        break;
    case 2:
        memset(page + at, (int)rnd(), len);
        break;
    case 3:
        break;
    case 4: /* rows move */
        memmove(page + at, page + at / 2 / 4 * 4, len / 2);
        break;
    case 5: /* records of one size, with a counter */
        for (size_t i = 0, size = 8 + at % 300; i < PAGE_BYTES; i++)
            page[i] = (uint8_t)(i % size < 4 ? i / size : i % size * 29);
        break;
    default:
        for (int i = (int)(rnd() % 20); i >= 0; i--)
            page[rnd() % PAGE_BYTES] = (uint8_t)rnd();
    }
}

static void run_epochs(struct pair *p, int epochs)
{
    uint8_t dirty[GUEST];

    for (int e = 0; e < epochs; e++) {
        uint64_t share = 1 + rnd() % 8;

        for (size_t i = 0; i < GUEST; i++) {
            dirty[i] = rnd() % share == 0;
            if (dirty[i])
                scribble(p->guest + i * PAGE_BYTES);
        }
        ship(p, dirty);
        if (rnd() % 16 == 0)
            page_encoder_reset(p->enc);
    }
}

/* R4: whatever the cache holds and whatever changes, the replica ends equal to the guest. */
static void test_r4_replica_equals_guest(void **state)
{
    (void)state;
    for (enum page_codec codec = PAGE_CODEC_OFF; codec <= PAGE_CODEC_ZSTD; codec++)
        for (uint64_t cache = 1; cache <= GUEST; cache *= 24) {
            struct pair p = pair_new(codec, cache);

            run_epochs(&p, 60);
            pair_free(&p);
        }
}

/* R4: a page that came some other way is no reference, neither its copy nor its fingerprints. */
static void test_r4_pages_that_came_otherwise(void **state)
{
    (void)state;
    for (uint64_t cache = 1; cache <= GUEST; cache *= 24) {
        struct pair p = pair_new(PAGE_CODEC_LZ4, cache);

        p.otherwise = 4;
        run_epochs(&p, 60);
        pair_free(&p);
    }
}

/*
 * R4: of pages that had to leave the cache the fingerprints tell what the replica has, in place and
 * moved; they are a part of the cache, and no more than it is trusted by a fresh start.
 */
static void test_r4_pages_that_left_the_cache(void **state)
{
    struct pair p = pair_new(PAGE_CODEC_OFF, GUEST / 3);
    uint64_t sizes[5], before = 0;

    (void)state;
    for (int pass = 0; pass < 5; pass++) {
        for (size_t at = 0; at < GUEST; at += GUEST / 10) {
            uint8_t dirty[GUEST] = {0};

            memset(dirty + at, 1, GUEST / 10);
            for (size_t i = at; i < at + GUEST / 10; i++) {
                uint8_t *page = p.guest + i * PAGE_BYTES;

                for (size_t j = 0; pass == 0 && j < PAGE_BYTES; j++)
                    page[j] = rnd() % 2 ? 0xff : (uint8_t)rnd();
                if (pass == 1)
                    page[rnd() % PAGE_BYTES]++;
                if (pass == 2) { /* a row is copied, from where the lines are about to change */
                    memmove(page + 1304, page + 1000, 290);
                    memset(page + 1594, i % 2 ? 0 : 0xff, 60);
                }
                if (pass == 3) /* everything moves */
                    memmove(page + 40, page, PAGE_BYTES - 40);
            }
            ship(&p, dirty);
        }
        sizes[pass] = page_encoder_stats(p.enc)->bytes_out - before;
        before += sizes[pass];
        if (pass == 3)
            page_encoder_reset(p.enc);
    }
    assert_true(sizes[0] > GUEST * 2048);
    assert_true(sizes[1] < GUEST * 120);
    assert_true(sizes[2] < GUEST * 300);
    assert_true(sizes[3] < GUEST * 300);
    assert_true(sizes[4] > GUEST * 2048);
    pair_free(&p);
}

/*
 * R4: pages that are written anew each time go without fingerprints; as soon as something of them
 * stays they have them again.
 */
static void test_r4_pages_written_anew(void **state)
{
    struct pair p = pair_new(PAGE_CODEC_OFF, GUEST / 3);
    uint64_t sizes[6], before = 0, hits = 0;

    (void)state;
    for (int pass = 0; pass < 6; pass++) {
        for (size_t at = 0; at < GUEST; at += GUEST / 10) {
            uint8_t dirty[GUEST] = {0};

            memset(dirty + at, 1, GUEST / 10);
            for (size_t i = at; i < at + GUEST / 10; i++) {
                uint8_t *page = p.guest + i * PAGE_BYTES;

                for (size_t j = 0; pass < 4 && j < PAGE_BYTES; j++)
                    page[j] = rnd() % 2 ? 0xff : (uint8_t)rnd();
                page[rnd() % PAGE_BYTES]++;
            }
            ship(&p, dirty);
        }
        sizes[pass] = page_encoder_stats(p.enc)->bytes_out - before;
        before += sizes[pass];
        if (pass == 2)
            hits = page_encoder_stats(p.enc)->hits;
    }
    assert_true(sizes[3] > GUEST * 2048);
    assert_true(hits < GUEST / 10 * 13); /* not more than one of each run after the first time */
    assert_true(sizes[5] < GUEST * 120);
    pair_free(&p);
}

/*
 * R4: a block of a checkpoint that the receiver does not hold cannot be decoded, nor any after
 * it.
 */
static void test_r4_lost_block_is_noticed(void **state)
{
    struct pair p = pair_new(PAGE_CODEC_LZ4, GUEST);
    uint8_t dirty[GUEST] = {1, 1, 1}, *out = malloc(page_block_bound(1)), page[PAGE_BYTES];
    uint64_t pfn = 1, got[PAGE_BLOCK_MAX];
    struct error err;
    size_t len;

    (void)state;
    ship(&p, dirty);
    for (int i = 0; i < 2; i++) {
        page_encoder_begin(p.enc);
        p.guest[pfn * PAGE_BYTES + 17]++;
        len = encode(&p, &pfn, 1, out);
    }
    page_decoder_begin(p.dec);
    assert_int_equal(page_decode(p.dec, out, len, GUEST, p.replica, got, page, &err), -1);
    assert_non_null(strstr(err.text, "does not follow"));

    page_encoder_reset(p.enc);
    len = encode(&p, &pfn, 1, out);
    page_decoder_begin(p.dec);
    assert_int_equal(page_decode(p.dec, out, len, GUEST, p.replica, got, page, &err), 1);
    assert_memory_equal(page, p.guest + PAGE_BYTES, PAGE_BYTES);
    pair_free(&p);
    free(out);
}

/*
 * R10: every truncation and every flipped bit gives an error with a text, or other pages; never a
 * crash.
 */
static void test_r10_damaged_blocks(void **state)
{
    static uint8_t out[PAGE_BLOCK_MAX * 5000], bad[PAGE_BLOCK_MAX * 4300];
    static uint8_t pages[PAGE_BLOCK_MAX * PAGE_BYTES];
    uint64_t pfns[20], got[PAGE_BLOCK_MAX];
    struct error err;
    size_t len = 0;

    (void)state;
    for (enum page_codec codec = PAGE_CODEC_OFF; codec <= PAGE_CODEC_ZSTD; codec++) {
        struct pair p = pair_new(codec, GUEST);

        for (uint64_t i = 0; i < 20; i++) {
            pfns[i] = 1 + i * 28;
            scribble(p.guest + pfns[i] * PAGE_BYTES);
        }
        len = encode(&p, pfns, 20, out);
        for (size_t cut = 0; cut < len; cut += 1 + cut / 16) {
            err.text[0] = 0;
            assert_int_equal(page_decode(p.dec, out, cut, GUEST, p.replica, got, pages, &err), -1);
            assert_int_not_equal(err.text[0], 0);
        }
        for (int i = 0; i < 20000; i++) {
            size_t bit = i < 8 * 64 ? (size_t)i : rnd() % (8 * len);

            memcpy(bad, out, len);
            bad[bit / 8] ^= (uint8_t)(1u << bit % 8);
            err.text[0] = 0;
            page_decoder_begin(p.dec);
            if (page_decode(p.dec, bad, len, GUEST, p.replica, got, pages, &err) < 0)
                assert_int_not_equal(err.text[0], 0);
        }
        pair_free(&p);
    }
}

/* R9: incompressible pages cost next to nothing. */
static void test_r9_random_pages(void **state)
{
    static uint8_t out[PAGE_BLOCK_MAX * 5000];
    uint64_t pfns[100];

    (void)state;
    for (enum page_codec codec = PAGE_CODEC_OFF; codec <= PAGE_CODEC_ZSTD; codec++) {
        struct pair p = pair_new(codec, GUEST);

        for (int round = 0; round < 2; round++) {
            for (uint64_t i = 0; i < 100; i++) {
                pfns[i] = 2 * i;
                for (size_t j = 0; j < PAGE_BYTES; j++)
                    p.guest[pfns[i] * PAGE_BYTES + j] = (uint8_t)(rnd() >> 24);
            }
            page_encoder_begin(p.enc);
            assert_true(encode(&p, pfns, 100, out) < 100 * PAGE_BYTES * 1.02);
        }
        pair_free(&p);
    }
}

/* Encrypted pages with many small changes are still sent as the changes. */
static void test_edits_of_random_pages(void **state)
{
    static uint8_t out[PAGE_BLOCK_MAX * 5000];
    uint8_t dirty[GUEST] = {0};
    uint64_t pfns[100];
    struct pair p = pair_new(PAGE_CODEC_OFF, GUEST);

    (void)state;
    for (size_t i = 0; i < 100 * PAGE_BYTES; i++)
        p.guest[i] = (uint8_t)(rnd() >> 24);
    memset(dirty, 1, 100);
    ship(&p, dirty);
    for (unsigned words = 32; words <= 256; words *= 2) {
        for (uint64_t i = 0; i < 100; i++) {
            pfns[i] = i;
            for (unsigned k = 0; k < words; k++) {
                uint64_t v = rnd();
                memcpy(p.guest + i * PAGE_BYTES + rnd() % 512 * 8, &v, 8);
            }
        }
        page_encoder_begin(p.enc);
        /* Those words with a byte that tells which of their bytes changed, and what there is for each page. */
        assert_true(encode(&p, pfns, 100, out) < 100 * (words * 9 + 100));
        page_encoder_reset(p.enc);
        ship(&p, dirty);
    }
    pair_free(&p);
}

struct job {
    struct page_encoder *enc;
    unsigned thread;
    uint8_t out[PAGE_BLOCK_MAX * 5000];
    ssize_t len;
};

static void *run_job(void *arg)
{
    struct job *j = arg;

    j->len = page_encode_planned(j->enc, j->thread, j->out, sizeof(j->out));
    return NULL;
}

/*
 * The bytes are the same whatever number of threads works on a checkpoint, also when the cache is
 * too small for it.
 */
static void test_threads_change_nothing(void **state)
{
    enum { THREADS = 3, BLOCK = 40 };
    static struct job jobs[THREADS];
    static uint8_t out[PAGE_BLOCK_MAX * 5000];
    struct page_encoder_config config = {.guest_pages = GUEST, .cache_bytes = 200 * PAGE_BYTES,
                                         .codec = PAGE_CODEC_LZ4, .threads = THREADS};
    struct pair p = pair_new(PAGE_CODEC_LZ4, 200);
    struct page_encoder *many = page_encoder_new(&config);
    const uint8_t *pages[GUEST];
    uint64_t pfns[GUEST];

    (void)state;
    for (uint64_t i = 0; i < GUEST; i++) {
        pages[i] = p.guest + i * PAGE_BYTES;
        pfns[i] = i;
    }
    for (int epoch = 0; epoch < 12; epoch++) {
        size_t n = epoch % 2 ? GUEST : 150;

        for (size_t i = 0; i < n; i++)
            scribble(p.guest + i * PAGE_BYTES);
        page_encoder_begin(p.enc);
        page_encoder_begin(many);
        for (size_t at = 0; at < n; at += THREADS * BLOCK) {
            pthread_t threads[THREADS];
            unsigned used = 0;

            for (size_t i = at; i < n && used < THREADS; i += BLOCK, used++) {
                jobs[used].enc = many;
                jobs[used].thread = used;
                assert_int_equal(page_plan(many, used, pfns + i, pages + i,
                                           n - i < BLOCK ? n - i : BLOCK), 0);
            }
            for (unsigned i = 0; i < used; i++)
                assert_int_equal(pthread_create(&threads[i], NULL, run_job, &jobs[i]), 0);
            for (unsigned i = 0; i < used; i++) {
                size_t from = at + i * BLOCK;
                size_t len = encode(&p, pfns + from, n - from < BLOCK ? n - from : BLOCK, out);

                pthread_join(threads[i], NULL);
                assert_true((size_t)jobs[i].len == len);
                assert_memory_equal(jobs[i].out, out, len);
            }
        }
    }
    assert_memory_equal(page_encoder_stats(many), page_encoder_stats(p.enc),
                        sizeof(struct page_stats));
    page_encoder_free(many);
    pair_free(&p);
}

/*
 * R9: nothing is allocated after the start, and zstd's context is large enough for the largest
 * block.
 */
static void test_r9_no_allocation(void **state)
{
    (void)state;
    for (enum page_codec codec = PAGE_CODEC_LZ4; codec <= PAGE_CODEC_ZSTD; codec++) {
        struct pair p = pair_new(codec, GUEST);
        size_t before = mallinfo2().uordblks;
        const struct page_stats *stats;

        run_epochs(&p, 20);
        assert_true(mallinfo2().uordblks == before);
        stats = page_encoder_stats(p.enc);
        assert_true(stats->bytes_out < stats->bytes_in / 2);
        pair_free(&p);
    }
}

/* R9: the encoder stays within the cache and 5 %. */
static void test_r9_memory(void **state)
{
    struct page_encoder_config config = {.guest_pages = 1 << 15, .codec = PAGE_CODEC_ZSTD};
    struct page_encoder *enc = page_encoder_new(&config);

    (void)state;
    assert_true(page_cache_default(1 << 15) == 32 << 20);
    assert_true(page_encoder_memory(enc) < (32 << 20) * 1.05);
    page_encoder_free(enc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_r4_replica_equals_guest),
        cmocka_unit_test(test_r4_pages_that_came_otherwise),
        cmocka_unit_test(test_r4_pages_that_left_the_cache),
        cmocka_unit_test(test_r4_pages_written_anew),
        cmocka_unit_test(test_r4_lost_block_is_noticed),
        cmocka_unit_test(test_r10_damaged_blocks),
        cmocka_unit_test(test_r9_random_pages),
        cmocka_unit_test(test_edits_of_random_pages),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_r9_no_allocation),
        cmocka_unit_test(test_r9_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
