/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The staging buffer: order and content over wrap-around (R4), the bound (R9), what the ship thread
 * sees while the guest is paused (R8). Built with ThreadSanitizer it shows races between the two
 * threads too.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/clock.h"
#include "remusd/staging.h"
#include "vm/vm.h"

#define CAPACITY 256u /* pages in the smallest buffer */
#define GUEST 1000u
#define TAKE_MAX 32

static uint8_t memory[GUEST * PAGE_SIZE];
static struct staging *s;
static struct bitmap dirty;

static int setup(void **state)
{
    (void)state;
    s = staging_new(CAPACITY * PAGE_SIZE);
    return s && bitmap_init(&dirty, GUEST) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    staging_free(s);
    bitmap_free(&dirty);
    return 0;
}

/* Each page says which it is and of which epoch. */
static void write_page(uint64_t pfn, uint64_t epoch)
{
    uint64_t words[2] = {pfn, epoch};

    memcpy(memory + pfn * PAGE_SIZE, words, sizeof(words));
    memcpy(memory + (pfn + 1) * PAGE_SIZE - sizeof(words), words, sizeof(words));
}

/* Not an assertion: it runs in two threads. */
static bool page_is(const uint8_t *page, uint64_t pfn, uint64_t epoch)
{
    uint64_t words[2] = {pfn, epoch};

    return memcmp(page, words, sizeof(words)) == 0 &&
           memcmp(page + PAGE_SIZE - sizeof(words), words, sizeof(words)) == 0;
}

static uint64_t put(uint64_t epoch, uint64_t from, uint64_t count)
{
    uint64_t copied;

    bitmap_clear_all(&dirty);
    bitmap_set_range(&dirty, from, count);
    for (uint64_t pfn = from; pfn < from + count; pfn++)
        write_page(pfn, epoch);
    staging_put(s, epoch, &dirty, memory, 0, GUEST, UINT64_MAX, &copied);
    return copied;
}

static struct staging_stats stats(void)
{
    struct staging_stats st;

    staging_stats(s, &st);
    return st;
}

/* Another thread, of which a test wants to know whether it waits. */
struct other {
    pthread_t thread;
    atomic_bool done;
    bool result;
    uint64_t epoch, from, count; /* to put */
    struct staging_run run;      /* taken */
};

static void *taker(void *arg)
{
    struct other *o = arg;

    o->result = staging_take(s, TAKE_MAX, &o->run);
    atomic_store(&o->done, true);
    return NULL;
}

static void *putter(void *arg)
{
    struct other *o = arg;

    o->result = put(o->epoch, o->from, o->count) == o->count;
    atomic_store(&o->done, true);
    return NULL;
}

static void start(struct other *o, void *(*run)(void *))
{
    atomic_store(&o->done, false);
    assert_int_equal(pthread_create(&o->thread, NULL, run, o), 0);
}

/* A thread that would go on has gone on by then; too short a time only hides a fault. */
static void assert_waits(struct other *o)
{
    clock_sleep_until(clock_ns() + 50 * NS_PER_MS);
    assert_false(atomic_load(&o->done));
}

static void expect_run(uint64_t epoch, uint64_t from, size_t count)
{
    struct staging_run run;

    assert_true(staging_take(s, TAKE_MAX, &run));
    assert_int_equal(run.epoch, epoch);
    assert_int_equal(run.count, count);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(run.pfns[i], from + i);
        assert_true(page_is(run.pages + i * PAGE_SIZE, from + i, epoch));
    }
    staging_done(s, &run);
}

static void put_copies_what_is_dirty_in_range(void **state)
{
    uint64_t copied;

    (void)state;
    bitmap_set_range(&dirty, 10, 20);
    bitmap_set(&dirty, 500);
    bitmap_set(&dirty, GUEST - 1);
    assert_int_equal(staging_put(s, 0, &dirty, memory, 12, GUEST, 5, &copied), 17);
    assert_int_equal(copied, 5);
    assert_int_equal(staging_put(s, 0, &dirty, memory, 17, 25, 100, &copied), 25);
    assert_int_equal(copied, 8);
    assert_int_equal(staging_put(s, 0, &dirty, memory, 30, GUEST, 100, &copied), GUEST);
    assert_int_equal(copied, 2);
    assert_int_equal(staging_put(s, 0, &dirty, memory, 31, 500, 100, &copied), 500);
    assert_int_equal(copied, 0);
    assert_int_equal(stats().used_bytes, 15 * PAGE_SIZE);
}

static void r4_ends_stand_behind_their_pages_and_between_empty_checkpoints(void **state)
{
    (void)state;
    put(0, 0, 3);
    staging_close(s, 1); /* empty, but the pre-copy before it counts to its digest */
    put(2, 10, 40);
    staging_close(s, 2);
    expect_run(0, 0, 3);
    expect_run(1, 0, 0);
    expect_run(2, 10, 32);
    staging_close(s, 3);
    staging_close(s, 4);
    expect_run(2, 42, 8);
    expect_run(2, 0, 0);
    expect_run(3, 0, 0);
    expect_run(4, 0, 0);
    assert_int_equal(stats().used_bytes, 0);
}

static void r8_a_checkpoint_is_shipped_only_after_its_close(void **state)
{
    struct other o = {0};

    (void)state;
    put(1, 0, 20); /* nobody waits in take: what it would find there now counts, too */
    start(&o, taker);
    assert_waits(&o);
    put(1, 20, 20);
    assert_waits(&o);
    staging_close(s, 1);
    pthread_join(o.thread, NULL);
    assert_true(o.result);
    assert_int_equal(o.run.count, TAKE_MAX);
    assert_int_equal(o.run.epoch, 1);
}

static void r8_an_older_checkpoint_is_shipped_meanwhile(void **state)
{
    struct other o = {0};

    (void)state;
    put(1, 0, 20);
    staging_close(s, 1);
    put(2, 100, 20);
    expect_run(1, 0, 20);
    expect_run(1, 0, 0);
    start(&o, taker);
    assert_waits(&o);
    staging_close(s, 2);
    pthread_join(o.thread, NULL);
    assert_int_equal(o.run.epoch, 2);
}

static void precopy_is_shipped_at_once(void **state)
{
    (void)state;
    put(0, 7, 5);
    expect_run(0, 7, 5);
}

static void r9_a_full_buffer_blocks_a_checkpoint_and_counts_it(void **state)
{
    struct other o = {.epoch = 1, .from = 0, .count = CAPACITY + TAKE_MAX};

    (void)state;
    assert_int_equal(stats().max_bytes, CAPACITY * PAGE_SIZE);
    start(&o, putter);
    assert_waits(&o);
    assert_int_equal(stats().used_bytes, CAPACITY * PAGE_SIZE);
    assert_int_equal(stats().stretched, 1);
    for (unsigned i = 0; i < CAPACITY / TAKE_MAX; i++)
        expect_run(1, i * TAKE_MAX, TAKE_MAX); /* visible before its close: the buffer is full */
    pthread_join(o.thread, NULL);
    assert_true(o.result);
    staging_close(s, 1);
    expect_run(1, CAPACITY, TAKE_MAX);
    expect_run(1, 0, 0);
}

static void r9_a_full_buffer_is_no_stretch_when_the_guest_runs(void **state)
{
    struct other o = {.epoch = 0, .from = 0, .count = CAPACITY + 1};

    (void)state;
    start(&o, putter);
    assert_waits(&o);
    assert_int_equal(stats().used_bytes, CAPACITY * PAGE_SIZE);
    expect_run(0, 0, TAKE_MAX);
    pthread_join(o.thread, NULL);
    assert_int_equal(stats().stretched, 0);
}

static void r9_exactly_full_does_not_block(void **state)
{
    (void)state;
    assert_int_equal(put(1, 0, CAPACITY), CAPACITY);
    assert_int_equal(stats().stretched, 0);
    staging_close(s, 1);
}

static void abort_wakes_put(void **state)
{
    struct other o = {.epoch = 1, .from = 0, .count = GUEST};
    struct staging_run run;
    uint64_t copied;

    (void)state;
    start(&o, putter);
    assert_waits(&o);
    staging_abort(s);
    pthread_join(o.thread, NULL);
    assert_false(o.result);
    assert_false(staging_take(s, TAKE_MAX, &run));
    assert_true(staging_put(s, 2, &dirty, memory, 0, 1, 1, &copied) == UINT64_MAX);
}

static void abort_wakes_take(void **state)
{
    struct other o = {0};

    (void)state;
    start(&o, taker);
    assert_waits(&o);
    staging_abort(s);
    pthread_join(o.thread, NULL);
    assert_false(o.result);
}

static void reset_forgets_everything(void **state)
{
    (void)state;
    put(1, 0, 10);
    staging_close(s, 1);
    put(2, 0, 10);
    staging_abort(s);
    staging_reset(s);
    assert_int_equal(stats().used_bytes, 0);
    put(3, 50, 4);
    staging_close(s, 3);
    expect_run(3, 50, 4);
    expect_run(3, 0, 0);
}

static void no_run_holds_two_rounds_of_precopy(void **state)
{
    (void)state;
    put(0, 10, 4);
    put(0, 12, 4);
    expect_run(0, 10, 4);
    expect_run(0, 12, 4);
}

/* Two threads, sizes at random, many times round the ring: what is taken is what was put. */

#define CHECKPOINTS 400
#define IN_FLIGHT 2

struct race {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t shipped;
    struct bitmap sets[IN_FLIGHT + 1]; /* of epoch % (IN_FLIGHT + 1) */
    const char *wrong;
};

static void *ship(void *arg)
{
    struct race *r = arg;
    uint64_t epoch = 1, next = 0;
    unsigned seed = 7;
    struct staging_run run;

    while (!r->wrong && epoch <= CHECKPOINTS &&
           staging_take(s, 1 + (size_t)rand_r(&seed) % 64, &run)) {
        const struct bitmap *set = &r->sets[epoch % (IN_FLIGHT + 1)];

        if (run.epoch != epoch)
            r->wrong = "epoch out of order";
        for (size_t i = 0; i < run.count && !r->wrong; i++) {
            next = bitmap_next(set, next);
            if (run.pfns[i] != next || !page_is(run.pages + i * PAGE_SIZE, next, epoch))
                r->wrong = "page out of order or torn";
            next++;
        }
        if (stats().used_bytes > CAPACITY * PAGE_SIZE)
            r->wrong = "more than the buffer may hold";
        if (run.count == 0) {
            if (bitmap_next(set, next) != GUEST)
                r->wrong = "end before the last page";
            pthread_mutex_lock(&r->lock);
            r->shipped = epoch++;
            pthread_cond_signal(&r->changed);
            pthread_mutex_unlock(&r->lock);
            next = 0;
        }
        staging_done(s, &run);
    }
    pthread_mutex_lock(&r->lock);
    r->shipped = CHECKPOINTS; /* if something is wrong, nobody is to wait for more */
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
    if (r->wrong)
        staging_abort(s);
    return NULL;
}

static void r4_r9_order_and_content_over_many_wraps(void **state)
{
    struct race r = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    unsigned seed = 1;
    pthread_t thread;

    (void)state;
    for (int i = 0; i <= IN_FLIGHT; i++)
        assert_int_equal(bitmap_init(&r.sets[i], GUEST), 0);
    assert_int_equal(pthread_create(&thread, NULL, ship, &r), 0);
    for (uint64_t epoch = 1; epoch <= CHECKPOINTS; epoch++) {
        struct bitmap *set = &r.sets[epoch % (IN_FLIGHT + 1)];
        unsigned one_in = (unsigned)rand_r(&seed) % 40;
        uint64_t copied;

        pthread_mutex_lock(&r.lock);
        while (epoch > r.shipped + IN_FLIGHT)
            pthread_cond_wait(&r.changed, &r.lock);
        pthread_mutex_unlock(&r.lock);
        bitmap_clear_all(set);
        for (uint64_t pfn = 0; pfn < GUEST && one_in; pfn++)
            if ((unsigned)rand_r(&seed) % one_in == 0) {
                bitmap_set(set, pfn);
                write_page(pfn, epoch);
            }
        if (staging_put(s, epoch, set, memory, 0, GUEST, UINT64_MAX, &copied) == UINT64_MAX)
            break;
        assert_int_equal(copied, bitmap_count(set));
        staging_close(s, epoch);
    }
    pthread_join(thread, NULL);
    assert_null(r.wrong);
    for (int i = 0; i <= IN_FLIGHT; i++)
        bitmap_free(&r.sets[i]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(put_copies_what_is_dirty_in_range),
        TEST(r4_ends_stand_behind_their_pages_and_between_empty_checkpoints),
        TEST(r8_a_checkpoint_is_shipped_only_after_its_close),
        TEST(r8_an_older_checkpoint_is_shipped_meanwhile),
        TEST(precopy_is_shipped_at_once),
        TEST(r9_a_full_buffer_blocks_a_checkpoint_and_counts_it),
        TEST(r9_a_full_buffer_is_no_stretch_when_the_guest_runs),
        TEST(r9_exactly_full_does_not_block),
        TEST(abort_wakes_put),
        TEST(abort_wakes_take),
        TEST(reset_forgets_everything),
        TEST(no_run_holds_two_rounds_of_precopy),
        TEST(r4_r9_order_and_content_over_many_wraps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
