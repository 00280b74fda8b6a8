/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What makes a checkpoint whole (R2), and that anything less leaves the replica as it was (R4, R10).  Each bad stream is
 * tried on a replica that holds checkpoint 1; afterwards its memory and its checkpoint must be the same octet
 * for octet, and a new link must be able to bring checkpoint 2.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "backup/receiver.h"
#include "common/wire.h"
#include "netbuf/port.h"
#include "records.h"
#include "vm/vm.h"

#define GUEST 64

struct rig {
    uint8_t *guest, *memory; /* the primary's pages and the replica's */
    struct records out;
    struct receiver *rx;
    /* what must not change */
    uint8_t *kept;
    struct bitmap written; /* since then */
    struct receiver_checkpoint kept_ck;
    uint8_t kept_state[64], kept_net[64];
};

static uint64_t seed = 42;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    return seed ^= seed << 17;
}

static void scribble(uint8_t *page)
{
    for (size_t i = 0, n = 1 + rnd() % 40; i < n; i++)
        page[rnd() % PAGE_SIZE] = (uint8_t)rnd();
}

static enum receiver_result feed(struct rig *g, size_t from, size_t to, struct error *err)
{
    enum receiver_result r = RECEIVER_MORE;

    for (size_t i = from; i < to && r == RECEIVER_MORE; i++)
        r = receiver_record(g->rx, &g->out.list[i], err);
    return r;
}

/* What follows the pages of checkpoint `epoch`: two pieces of state, network state. */
static void end(struct rig *g, uint64_t epoch)
{
    char state[40];

    memset(state, (int)epoch, sizeof(state));
    state[1] = 'S';
    records_blob(&g->out, PROTO_STATE, epoch, state, 30);
    records_blob(&g->out, PROTO_STATE, epoch, state + 30, 10);
    records_blob(&g->out, PROTO_NET, epoch, "net", 3);
    records_end(&g->out, epoch);
}

/* Checkpoint `epoch` of a few changed pages in two blocks. */
static void take(struct rig *g, uint64_t epoch)
{
    uint64_t low[] = {1, 2, 7}, high[] = {20, 63};

    for (size_t i = 0; i < 3; i++)
        scribble(g->guest + low[i] * PAGE_SIZE);
    for (size_t i = 0; i < 2; i++)
        scribble(g->guest + high[i] * PAGE_SIZE);
    records_pages(&g->out, epoch, g->guest, low, 3);
    records_pages(&g->out, epoch, g->guest, high, 2);
    end(g, epoch);
}

#define CHECKPOINT_RECORDS 6

static void assert_holds(struct rig *g, uint64_t epoch)
{
    struct receiver_checkpoint ck;
    uint8_t state[40];

    receiver_checkpoint(g->rx, &ck);
    assert_int_equal(ck.epoch, epoch);
    memset(state, (int)epoch, sizeof(state));
    state[1] = 'S';
    assert_int_equal(ck.state_length, sizeof(state));
    assert_memory_equal(ck.state, state, sizeof(state));
    assert_int_equal(ck.net_length, 3);
    assert_memory_equal(ck.net, "net", 3);
    assert_int_equal(memcmp(g->memory, g->guest, GUEST * PAGE_SIZE), 0);
}

/* Of each page that is another the bit is set: a platform that brings memory elsewhere goes by them. */
static void assert_written(struct rig *g, const uint8_t *before)
{
    for (size_t pfn = 0; pfn < GUEST; pfn++)
        assert_true(bitmap_test(&g->written, pfn) ||
                    memcmp(g->memory + pfn * PAGE_SIZE, before + pfn * PAGE_SIZE, PAGE_SIZE) == 0);
    bitmap_clear_all(&g->written);
}

static void remember(struct rig *g)
{
    assert_written(g, g->kept);
    memcpy(g->kept, g->memory, GUEST * PAGE_SIZE);
    receiver_checkpoint(g->rx, &g->kept_ck);
    assert_true(g->kept_ck.state_length <= sizeof(g->kept_state));
    if (g->kept_ck.state_length)
        memcpy(g->kept_state, g->kept_ck.state, g->kept_ck.state_length);
    if (g->kept_ck.net_length)
        memcpy(g->kept_net, g->kept_ck.net, g->kept_ck.net_length);
}

static void assert_untouched(struct rig *g)
{
    struct receiver_checkpoint ck;

    receiver_apply(g->rx); /* nothing is whole, so this must do nothing */
    receiver_checkpoint(g->rx, &ck);
    assert_int_equal(receiver_staged(g->rx), 0);
    assert_int_equal(ck.epoch, g->kept_ck.epoch);
    assert_int_equal(ck.state_length, g->kept_ck.state_length);
    assert_int_equal(ck.net_length, g->kept_ck.net_length);
    assert_memory_equal(ck.state, g->kept_state, ck.state_length);
    assert_memory_equal(ck.net, g->kept_net, ck.net_length);
    assert_int_equal(memcmp(g->memory, g->kept, GUEST * PAGE_SIZE), 0);
}

static void apply(struct rig *g, uint64_t epoch)
{
    assert_int_equal(receiver_staged(g->rx), epoch);
    assert_int_equal(memcmp(g->memory, g->kept, GUEST * PAGE_SIZE), 0); /* R4: not before it is whole */
    receiver_apply(g->rx);
    assert_int_equal(receiver_staged(g->rx), 0);
    assert_holds(g, epoch);
    remember(g);
}

static void sync_all(struct rig *g)
{
    uint64_t pfns[GUEST], again[] = {0, 3, 40};

    for (uint64_t i = 0; i < GUEST; i++)
        pfns[i] = i;
    records_pages(&g->out, 0, g->guest, pfns, 50);
    records_pages(&g->out, 0, g->guest, pfns + 50, GUEST - 50);
    scribble(g->guest + 3 * PAGE_SIZE);
    records_pages(&g->out, 0, g->guest, again, 3); /* a second round: numbers start anew */
}

/* Ready for checkpoint 2, which is in g->out. */
static struct rig *rig_new(enum page_codec codec)
{
    struct rig *g = calloc(1, sizeof(*g));
    struct error err = {""};

    g->guest = calloc(GUEST, PAGE_SIZE);
    g->memory = malloc(GUEST * PAGE_SIZE);
    g->kept = malloc(GUEST * PAGE_SIZE);
    memset(g->memory, 0xa5, GUEST * PAGE_SIZE);
    memset(g->kept, 0xa5, GUEST * PAGE_SIZE);
    assert_int_equal(bitmap_init(&g->written, GUEST), 0);
    for (size_t i = 0; i < GUEST; i += 2) /* every second page stays zero */
        scribble(g->guest + i * PAGE_SIZE);
    records_init(&g->out, GUEST, codec);
    g->rx = receiver_new(g->memory, GUEST, GUEST * PAGE_SIZE);
    assert_non_null(g->rx);
    receiver_set_written(g->rx, &g->written);
    sync_all(g);
    assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_MORE);
    assert_int_equal(memcmp(g->memory, g->guest, GUEST * PAGE_SIZE), 0);
    remember(g);
    records_blob(&g->out, PROTO_STATE, 1, "\1S", 2);
    records_blob(&g->out, PROTO_STATE, 1, memset((char[38]){0}, 1, 38), 38);
    records_blob(&g->out, PROTO_NET, 1, "net", 3);
    records_end(&g->out, 1); /* its digest covers the pages of the synchronisation */
    assert_int_equal(feed(g, 3, g->out.count, &err), RECEIVER_WHOLE);
    apply(g, 1);
    assert_int_equal(receiver_pages(g->rx), GUEST + 3);
    records_restart(&g->out);
    receiver_start(g->rx, START_RESUME);
    take(g, 2);
    assert_int_equal(g->out.count, CHECKPOINT_RECORDS);
    return g;
}

static void rig_free(struct rig *g)
{
    receiver_free(g->rx);
    records_free(&g->out);
    bitmap_free(&g->written);
    free(g->guest);
    free(g->memory);
    free(g->kept);
    free(g);
}

/* The primary comes back on a new link and sends the same pages again. */
static void assert_recovers(struct rig *g)
{
    struct error err = {""};

    receiver_start(g->rx, START_RESUME);
    assert_untouched(g);
    records_restart(&g->out);
    take(g, 2);
    assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_WHOLE);
    apply(g, 2);
}

/* The stream in g->out must be refused, with `why` in the text. */
static void assert_refused(struct rig *g, const char *why)
{
    struct error err = {""};

    assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_ERROR);
    if (!strstr(err.text, why))
        fail_msg("'%s' does not say '%s'", err.text, why);
    assert_untouched(g);
    assert_recovers(g);
    rig_free(g);
}

static uint8_t *body(struct rig *g, size_t record)
{
    return (uint8_t *)g->out.list[record].body;
}

/* Takes record i out of the list. */
static void drop(struct rig *g, size_t i)
{
    free(body(g, i));
    memmove(&g->out.list[i], &g->out.list[i + 1], (--g->out.count - i) * sizeof(*g->out.list));
}

/* --- what is whole --- */

static void r2_r4_checkpoints_follow_each_other(void **state)
{
    (void)state;
    for (enum page_codec codec = PAGE_CODEC_OFF; codec <= PAGE_CODEC_ZSTD; codec++) {
        struct rig *g = rig_new(codec);
        struct error err = {""};

        for (uint64_t epoch = 2; epoch < 40; epoch += 1 + epoch % 2) { /* a failed one leaves a gap */
            if (epoch > 2) {
                take(g, epoch);
                memmove(g->out.list, g->out.list + g->out.count - CHECKPOINT_RECORDS,
                        CHECKPOINT_RECORDS * sizeof(*g->out.list));
                g->out.count = CHECKPOINT_RECORDS;
            }
            assert_int_equal(feed(g, 0, CHECKPOINT_RECORDS - 1, &err), RECEIVER_MORE);
            assert_int_equal(receiver_staged(g->rx), 0);
            assert_int_equal(feed(g, CHECKPOINT_RECORDS - 1, CHECKPOINT_RECORDS, &err), RECEIVER_WHOLE);
            apply(g, epoch);
            for (size_t i = 0; i < CHECKPOINT_RECORDS; i++)
                free(body(g, i));
            g->out.count = 0;
        }
        rig_free(g);
    }
}

static void r2_checkpoint_without_pages(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);
    struct error err = {""};

    (void)state;
    assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_WHOLE);
    apply(g, 2);
    records_restart(&g->out);
    records_end(&g->out, 3);
    assert_int_equal(feed(g, 0, 1, &err), RECEIVER_WHOLE);
    receiver_apply(g->rx);
    receiver_checkpoint(g->rx, &g->kept_ck);
    assert_true(g->kept_ck.epoch == 3 && g->kept_ck.state_length == 0 && g->kept_ck.net_length == 0);
    assert_int_equal(memcmp(g->memory, g->guest, GUEST * PAGE_SIZE), 0);
    rig_free(g);
}

static void new_session_forgets_the_checkpoint(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);
    struct error err = {""};
    struct receiver_checkpoint ck;

    (void)state;
    receiver_start(g->rx, START_ANEW);
    receiver_checkpoint(g->rx, &ck);
    assert_int_equal(ck.epoch, 0);
    records_restart(&g->out);
    sync_all(g);
    take(g, 1);
    remember(g);
    assert_int_equal(feed(g, 0, 3, &err), RECEIVER_MORE);
    remember(g);
    assert_int_equal(feed(g, 3, g->out.count, &err), RECEIVER_WHOLE);
    apply(g, 1);
    rig_free(g);
}

/* Synchronising over an old checkpoint: until it is whole the old one can be had back. */
static void r4_old_checkpoint_is_kept_until_the_new_one_is_whole(void **state)
{
    (void)state;
    for (int end = 0; end < 3; end++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        struct error err = {""};
        size_t before;

        for (int again = 0; again < 3; again++) { /* links that break */
            receiver_start(g->rx, START_KEEP);
            assert_true(receiver_keeps(g->rx));
            records_restart(&g->out);
            sync_all(g);
            for (uint64_t pfn = 30; end == 2 && pfn < 60; pfn++) {
                scribble(g->guest + pfn * PAGE_SIZE);
                records_pages(&g->out, 0, g->guest, &pfn, 1);
            }
            before = g->out.count;
            take(g, 1); /* numbers may begin anew */
            assert_int_equal(feed(g, 0, g->out.count - 1, &err), RECEIVER_MORE);
            if (end == 2)
                break;
            assert_int_not_equal(memcmp(g->memory, g->kept, GUEST * PAGE_SIZE), 0);
        }
        if (end == 0) {
            receiver_restore(g->rx);
            assert_false(receiver_keeps(g->rx));
            assert_untouched(g);
        } else if (end == 1) {
            remember(g);
            assert_int_equal(feed(g, g->out.count - 1, g->out.count, &err), RECEIVER_WHOLE);
            apply(g, 1);
            assert_false(receiver_keeps(g->rx));
        } else { /* R9: more changed than may be kept */
            struct receiver_checkpoint ck;

            assert_true(before > 30);
            receiver_checkpoint(g->rx, &ck);
            assert_int_equal(ck.epoch, 0);
            assert_false(receiver_keeps(g->rx));
        }
        rig_free(g);
    }
}

/* All anew, and a checkpoint; not whole when `cut`. */
static void again(struct rig *g, uint64_t epoch, bool cut)
{
    struct error err = {""};

    assert_false(receiver_keeps(g->rx));
    receiver_start(g->rx, START_KEEP);
    assert_true(receiver_keeps(g->rx));
    records_restart(&g->out);
    sync_all(g);
    take(g, epoch);
    assert_int_equal(feed(g, 0, g->out.count - 1, &err), RECEIVER_MORE);
    if (cut)
        return;
    remember(g);
    assert_int_equal(feed(g, g->out.count - 1, g->out.count, &err), RECEIVER_WHOLE);
    apply(g, epoch);
}

static void r4_what_is_kept_is_of_the_last_checkpoint(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);
    uint8_t half[GUEST * PAGE_SIZE];
    struct receiver_checkpoint ck;

    (void)state;
    again(g, 1, false);
    again(g, 2, true); /* the same pages change once more */
    memcpy(half, g->memory, sizeof(half));
    bitmap_clear_all(&g->written);
    receiver_restore(g->rx);
    assert_untouched(g);
    assert_written(g, half);
    again(g, 3, true);
    receiver_start(g->rx, START_ANEW);
    assert_false(receiver_keeps(g->rx));
    receiver_checkpoint(g->rx, &ck);
    assert_int_equal(ck.epoch, 0);
    rig_free(g);
}

/* --- what is not --- */

static void r4_stream_ends_after_any_record(void **state)
{
    (void)state;
    for (size_t cut = 0; cut < CHECKPOINT_RECORDS; cut++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        struct error err = {""};

        assert_int_equal(feed(g, 0, cut, &err), RECEIVER_MORE);
        assert_untouched(g);
        assert_recovers(g);
        rig_free(g);
    }
}

static void r2_any_record_missing(void **state)
{
    static const char *const why[] = {"checkpoint 2: page", "3 of 5 pages", "10 of 40 octets of state",
                                      "30 of 40 octets of state", "0 of 3 of network state"};

    (void)state;
    for (size_t i = 0; i < CHECKPOINT_RECORDS - 1; i++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);

        drop(g, i);
        assert_refused(g, why[i]);
    }
}

static void r2_any_record_twice(void **state)
{
    static const char *const why[] = {"checkpoint 2: page", "checkpoint 2: page", "70 of 40 octets",
                                      "50 of 40 octets", "6 of 3 of network"};

    (void)state;
    for (size_t i = 0; i < CHECKPOINT_RECORDS - 1; i++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        struct record rec = g->out.list[i], end = g->out.list[CHECKPOINT_RECORDS - 1];

        records_add(&g->out, rec.type, rec.epoch, rec.body, rec.length);
        g->out.list[CHECKPOINT_RECORDS - 1] = g->out.list[CHECKPOINT_RECORDS];
        g->out.list[CHECKPOINT_RECORDS] = end;
        assert_refused(g, why[i]);
    }
}

static void r2_any_record_cut_short(void **state)
{
    (void)state;
    for (size_t i = 0; i < CHECKPOINT_RECORDS; i++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        size_t len = g->out.list[i].length;

        for (size_t cut = 0; cut < len; cut++) {
            struct error err = {""};

            records_restart(&g->out);
            take(g, 2);
            if (cut >= g->out.list[i].length)
                break;
            g->out.list[i].length = cut;
            assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_ERROR);
            assert_untouched(g);
            receiver_start(g->rx, START_RESUME);
        }
        assert_recovers(g);
        rig_free(g);
    }
}

static void r2_wrong_digest(void **state)
{
    (void)state;
    for (size_t octet = 16; octet < 24; octet++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);

        body(g, CHECKPOINT_RECORDS - 1)[octet] ^= 1;
        assert_refused(g, "digest");
    }
}

/* Lengths and counts are right, one bit of the content is not. */
static void r2_wrong_content(void **state)
{
    (void)state;
    for (size_t i = 0; i < CHECKPOINT_RECORDS - 1; i++) {
        struct rig *g = rig_new(PAGE_CODEC_OFF); /* then a block ends with octets of its last page */

        body(g, i)[g->out.list[i].length - 1] ^= 0x10;
        assert_refused(g, "digest");
    }
}

static void r2_pieces_in_another_order(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);
    struct record first = g->out.list[2];

    (void)state;
    g->out.list[2] = g->out.list[3];
    g->out.list[3] = first;
    assert_refused(g, "digest");
}

static void r2_state_that_poses_as_network_state(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);
    struct wire_writer w;

    (void)state;
    /* the digest sees one row of octets: the lengths in END say where the border is */
    g->out.list[3].type = PROTO_NET;
    assert_refused(g, "30 of 40 octets of state, 13 of 3");

    g = rig_new(PAGE_CODEC_LZ4);
    w = wire_writer(body(g, 5) + 8, 8);
    wire_put_uint(&w, 30, 4);
    wire_put_uint(&w, 13, 4);
    assert_refused(g, "40 of 30 octets of state, 3 of 13");
}

static void r2_wrong_counts(void **state)
{
    (void)state;
    for (size_t octet = 0; octet < 16; octet++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);

        body(g, CHECKPOINT_RECORDS - 1)[octet] ^= 4;
        assert_refused(g, "is not whole");
    }
}

/* The digest of the first checkpoint covers what came while synchronising. */
static void r2_wrong_page_while_synchronising(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_OFF);
    struct error err = {""};

    (void)state;
    for (size_t dropped = 0; dropped < 2; dropped++) {
        receiver_start(g->rx, START_ANEW);
        records_restart(&g->out);
        sync_all(g);
        take(g, 1);
        if (dropped)
            drop(g, 2);
        else
            body(g, 0)[g->out.list[0].length - 1] ^= 1;
        assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_ERROR);
        assert_int_equal(receiver_staged(g->rx), 0);
    }
    rig_free(g);
}

static void r10_page_outside_the_guest(void **state)
{
    uint8_t *larger = calloc(2 * GUEST, PAGE_SIZE);

    (void)state;
    for (uint64_t pfn = GUEST; pfn < 2 * GUEST; pfn += GUEST - 1) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        struct records other;

        records_init(&other, 2 * GUEST, PAGE_CODEC_LZ4);
        records_pages(&other, 2, larger, (uint64_t[]){5, pfn}, 2);
        records_end(&other, 2);
        records_restart(&g->out);
        for (size_t i = 0; i < other.count; i++)
            records_add(&g->out, other.list[i].type, 2, other.list[i].body, other.list[i].length);
        records_free(&other);
        assert_refused(g, "outside the guest");
    }
    free(larger);
}

static void r4_page_numbers_that_fall(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);

    (void)state;
    records_restart(&g->out);
    records_pages(&g->out, 2, g->guest, (uint64_t[]){9}, 1);
    page_encoder_begin(g->out.encoder); /* as if a checkpoint had ended */
    records_pages(&g->out, 2, g->guest, (uint64_t[]){4}, 1);
    records_end(&g->out, 2);
    assert_refused(g, "digest");
}

static void r4_epochs_out_of_order(void **state)
{
    (void)state;
    for (uint64_t epoch = 0; epoch <= 1; epoch++) /* the one that is held, or none */
        for (size_t i = 0; i < CHECKPOINT_RECORDS; i++) {
            struct rig *g = rig_new(PAGE_CODEC_LZ4);
            struct record first = g->out.list[i];

            first.epoch = epoch;
            g->out.list[i] = g->out.list[0];
            g->out.list[0] = first;
            assert_refused(g, epoch == 0 && i < 2 ? "synchronising" : "after checkpoint 1");
        }
}

static void r4_epochs_mixed(void **state)
{
    (void)state;
    for (uint64_t epoch = 1; epoch <= 3; epoch += 2)
        for (size_t i = 1; i < CHECKPOINT_RECORDS; i++) {
            struct rig *g = rig_new(PAGE_CODEC_LZ4);

            g->out.list[i].epoch = epoch;
            assert_refused(g, "inside checkpoint 2");
        }
}

static void r4_synchronising_has_ended(void **state)
{
    (void)state;
    for (size_t at = 0; at < 2; at++) { /* before the checkpoint's first record, and inside it */
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        struct error err = {""};

        records_restart(&g->out);
        if (at)
            records_pages(&g->out, 2, g->guest, (uint64_t[]){1}, 1);
        records_pages(&g->out, 0, g->guest, (uint64_t[]){2}, 1);
        assert_refused(g, "synchronising has ended");

        g = rig_new(PAGE_CODEC_LZ4); /* the same without a new link in between */
        assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_WHOLE);
        apply(g, 2);
        memmove(g->guest, g->memory, GUEST * PAGE_SIZE);
        records_pages(&g->out, 0, g->guest, (uint64_t[]){2}, 1);
        assert_int_equal(feed(g, CHECKPOINT_RECORDS, CHECKPOINT_RECORDS + 1, &err), RECEIVER_ERROR);
        assert_untouched(g);
        rig_free(g);
    }
}

/* The same in the first checkpoint of a session, which nothing was applied before. */
static void r4_synchronising_inside_the_first_checkpoint(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);
    struct error err = {""};

    (void)state;
    receiver_start(g->rx, START_ANEW);
    records_restart(&g->out);
    sync_all(g);
    records_pages(&g->out, 1, g->guest, (uint64_t[]){1}, 1);
    assert_int_equal(feed(g, 0, 4, &err), RECEIVER_MORE);
    remember(g);
    scribble(g->guest + 2 * PAGE_SIZE);
    records_pages(&g->out, 0, g->guest, (uint64_t[]){2}, 1);
    assert_int_equal(feed(g, 4, 5, &err), RECEIVER_ERROR);
    assert_int_equal(memcmp(g->memory, g->kept, GUEST * PAGE_SIZE), 0);
    rig_free(g);
}

/* What the old link's blocks said is not known on the new one. */
static void r4_new_link_starts_the_codec_afresh(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);
    struct error err = {""};

    (void)state;
    assert_int_equal(feed(g, 0, 1, &err), RECEIVER_MORE);
    receiver_start(g->rx, START_RESUME);
    assert_int_equal(feed(g, 1, 2, &err), RECEIVER_ERROR);
    assert_untouched(g);
    assert_recovers(g);
    rig_free(g);
}

/* The codec's key, for which any number is as good as another: this one stands in for the kernel's. */
static bool weak_key;

int getentropy(void *buffer, size_t length)
{
    if (weak_key) {
        memset(buffer, 0, length);
        return 0;
    }
    return getrandom(buffer, length, 0) == (ssize_t)length ? 0 : -1;
}

/*
 * R2, R4: with a key of zeros all lines of words below 2^32 have one fingerprint, so a page that left the
 * cache and changed there is taken for unchanged.  The checkpoint is refused whole, and the fresh start,
 * which has another key, brings what the guest has.
 */
static void r2_r4_false_fingerprint(void **state)
{
    struct page_encoder_config config = {
        .guest_pages = GUEST, .cache_bytes = GUEST / 3 * PAGE_SIZE, .codec = PAGE_CODEC_LZ4};
    uint64_t all[GUEST], one = GUEST - 5;

    (void)state;
    for (uint64_t i = 0; i < GUEST; i++)
        all[i] = i;
    for (int weak = 0; weak < 2; weak++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        struct error err = {""};

        weak_key = weak;
        page_encoder_free(g->out.encoder);
        g->out.encoder = page_encoder_new(&config);
        assert_non_null(g->out.encoder);
        records_restart(&g->out);
        for (size_t i = 0; i < GUEST * PAGE_SIZE; i++)
            g->guest[i] = i % 8 < 4 ? (uint8_t)rnd() : 0;
        records_pages(&g->out, 2, g->guest, all, GUEST);
        end(g, 2);
        assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_WHOLE);
        apply(g, 2);

        g->guest[one * PAGE_SIZE + 800]++;
        records_pages(&g->out, 3, g->guest, &one, 1);
        end(g, 3);
        assert_int_equal(page_encoder_stats(g->out.encoder)->pages[PAGE_UNCHANGED], weak);
        weak_key = false;
        if (weak) {
            assert_int_equal(feed(g, CHECKPOINT_RECORDS - 1, g->out.count, &err), RECEIVER_ERROR);
            assert_non_null(strstr(err.text, "digest"));
            assert_untouched(g);
            records_restart(&g->out);
            receiver_start(g->rx, START_RESUME);
            records_pages(&g->out, 3, g->guest, &one, 1);
            end(g, 3);
            assert_int_equal(feed(g, 0, g->out.count, &err), RECEIVER_WHOLE);
        } else {
            assert_int_equal(feed(g, CHECKPOINT_RECORDS - 1, g->out.count, &err), RECEIVER_WHOLE);
        }
        apply(g, 3);
        rig_free(g);
    }
}

static void r9_stage_is_bounded(void **state)
{
    uint64_t pfns[GUEST];

    (void)state;
    for (uint64_t i = 0; i < GUEST; i++)
        pfns[i] = i;
    for (size_t n = 7; n <= GUEST; n += n < 9 ? 1 : GUEST - 9) { /* 7, 8, 9, 64 */
        uint8_t *memory = calloc(GUEST, PAGE_SIZE), *guest = malloc(GUEST * PAGE_SIZE);
        struct receiver *rx = receiver_new(memory, GUEST, 8 * PAGE_SIZE + 1);
        enum receiver_result r = RECEIVER_MORE;
        struct error err = {""};
        struct records out;

        memset(guest, 3, GUEST * PAGE_SIZE);
        records_init(&out, GUEST, PAGE_CODEC_LZ4);
        records_pages(&out, 0, guest, pfns, GUEST); /* synchronising needs no stage */
        records_pages(&out, 1, guest, pfns, 5);
        memset(guest, 4, GUEST * PAGE_SIZE);
        records_pages(&out, 1, guest, pfns + 5, n - 5);
        records_end(&out, 1);
        for (size_t i = 0; i < out.count && r == RECEIVER_MORE; i++)
            r = receiver_record(rx, &out.list[i], &err);
        assert_int_equal(r, n <= 8 ? RECEIVER_WHOLE : RECEIVER_ERROR);
        if (n > 8)
            assert_non_null(strstr(err.text, "more than the 8 pages"));
        for (size_t i = 0; i < GUEST * PAGE_SIZE; i++)
            if (memory[i] != 3)
                fail_msg("octet %zu was written before the checkpoint was applied", i);
        receiver_free(rx);
        records_free(&out);
        free(memory);
        free(guest);
    }
}

static void r9_blobs_are_bounded(void **state)
{
    static const struct {
        enum proto_type type;
        size_t max;
    } blobs[] = {{PROTO_STATE, VM_STATE_MAX}, {PROTO_NET, NET_STATE_MAX}};
    uint8_t *octets = calloc(1, PROTO_BODY_MAX);

    (void)state;
    for (size_t b = 0; b < 2; b++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        struct error err = {""};

        for (size_t sent = 0; sent < blobs[b].max;) {
            size_t n = blobs[b].max < PROTO_BODY_MAX ? blobs[b].max : PROTO_BODY_MAX;

            assert_int_equal(receiver_record(g->rx, &(struct record){blobs[b].type, 2, octets, n, 0}, &err),
                             RECEIVER_MORE);
            sent += n;
        }
        assert_int_equal(receiver_record(g->rx, &(struct record){blobs[b].type, 2, octets, 1, 0}, &err),
                         RECEIVER_ERROR);
        assert_non_null(strstr(err.text, "is longer than"));
        assert_untouched(g);
        assert_recovers(g);
        rig_free(g);
    }
    free(octets);
}

static void r10_records_that_no_primary_sends(void **state)
{
    static const enum proto_type types[] = {PROTO_HELLO, PROTO_WELCOME, PROTO_REFUSE, PROTO_ACK,
                                            PROTO_ACTIVATED};

    (void)state;
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); i++) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);

        g->out.list[3].type = types[i];
        assert_refused(g, "from a primary");
    }
}

/* What test-disk.c checks against images, and what needs none. */
static void r10_blocks_of_no_disk(void **state)
{
    uint8_t body[PROTO_BLOCK_LEN] = {0};

    (void)state;
    for (uint64_t epoch = 0; epoch <= 2; epoch += 2) {
        struct rig *g = rig_new(PAGE_CODEC_LZ4);
        struct error err = {""};

        assert_int_equal(receiver_record(g->rx, &(struct record){PROTO_BLOCKS, epoch, body, sizeof(body), 0}, &err),
                         RECEIVER_ERROR);
        assert_non_null(strstr(err.text, "without disks"));
        assert_untouched(g);
        assert_recovers(g);
        rig_free(g);
    }
}

/* Whatever one octet does, the replica gets the right checkpoint or none. */
static void r4_any_octet_corrupted(void **state)
{
    struct rig *g = rig_new(PAGE_CODEC_LZ4);
    unsigned refused = 0;

    (void)state;
    for (size_t i = 0; i < CHECKPOINT_RECORDS; i++)
        for (size_t at = 0; at < g->out.list[i].length; at++) {
            uint8_t bit = (uint8_t)(1 << rnd() % 8);
            struct error err = {""};

            body(g, i)[at] ^= bit;
            if (feed(g, 0, g->out.count, &err) == RECEIVER_WHOLE) {
                receiver_apply(g->rx);
                assert_holds(g, 2);
                rig_free(g);
                g = rig_new(PAGE_CODEC_LZ4);
            } else {
                assert_untouched(g);
                receiver_start(g->rx, START_RESUME);
                body(g, i)[at] ^= bit;
                refused++;
            }
        }
    assert_true(refused > 100);
    rig_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(r2_r4_checkpoints_follow_each_other),
        cmocka_unit_test(r2_checkpoint_without_pages),
        cmocka_unit_test(new_session_forgets_the_checkpoint),
        cmocka_unit_test(r4_old_checkpoint_is_kept_until_the_new_one_is_whole),
        cmocka_unit_test(r4_what_is_kept_is_of_the_last_checkpoint),
        cmocka_unit_test(r4_stream_ends_after_any_record),
        cmocka_unit_test(r2_any_record_missing),
        cmocka_unit_test(r2_any_record_twice),
        cmocka_unit_test(r2_any_record_cut_short),
        cmocka_unit_test(r2_wrong_digest),
        cmocka_unit_test(r2_wrong_content),
        cmocka_unit_test(r2_pieces_in_another_order),
        cmocka_unit_test(r2_state_that_poses_as_network_state),
        cmocka_unit_test(r2_wrong_counts),
        cmocka_unit_test(r2_wrong_page_while_synchronising),
        cmocka_unit_test(r10_page_outside_the_guest),
        cmocka_unit_test(r4_page_numbers_that_fall),
        cmocka_unit_test(r4_epochs_out_of_order),
        cmocka_unit_test(r4_epochs_mixed),
        cmocka_unit_test(r4_synchronising_has_ended),
        cmocka_unit_test(r4_synchronising_inside_the_first_checkpoint),
        cmocka_unit_test(r4_new_link_starts_the_codec_afresh),
        cmocka_unit_test(r2_r4_false_fingerprint),
        cmocka_unit_test(r9_stage_is_bounded),
        cmocka_unit_test(r9_blobs_are_bounded),
        cmocka_unit_test(r10_records_that_no_primary_sends),
        cmocka_unit_test(r10_blocks_of_no_disk),
        cmocka_unit_test(r4_any_octet_corrupted),
    };

    return cmocka_run_group_tests_name("receiver", tests, NULL, NULL);
}
