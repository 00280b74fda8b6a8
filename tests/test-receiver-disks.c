/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A checkpoint with changes of a disk, and with a page that is a block of it: memory and image move to it together or not at
 * all (R2, R4, R5), and what is wrong in its records is refused (R10).  test-receiver.c has the rest of a checkpoint, test-disk.c
 * the journal alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "backup/receiver.h"
#include "disk/entry.h"
#include "disk/journal.h"
#include "records.h"

#define GUEST 16
#define DISK (1u << 20)
#define STAGE 8 /* pages of a checkpoint */

enum { PAGES, BLOCKS, CHANGES, MORE_CHANGES, CHANGES_END, STATE, NET, END, RECORDS };

static char dir[] = "/tmp/test-receiver-disks-XXXXXX", image[64], command[96];
static const struct disk_info info = {DISK, 0xa};

struct rig {
    uint8_t guest[GUEST * PAGE_BYTES], memory[GUEST * PAGE_BYTES], kept[GUEST * PAGE_BYTES];
    uint8_t disk[DISK]; /* what the image should hold */
    struct records out;
    struct receiver *rx;
    struct journal *journal;
    uint64_t changes_length, changes_digest; /* since the last DISK_END */
    struct proto_block block;
};

static struct journal *open_journal(void)
{
    struct journal *j;
    struct error err;

    if (journal_open(&j, (char *[]){image}, &info, 1, 1 << 20, &err) < 0)
        fail_msg("%s", err.text);
    return j;
}

static void write_disk(struct rig *g, uint64_t epoch, uint64_t offset, uint8_t value, uint32_t length)
{
    struct entry e = {ENTRY_WRITE, 0, length, offset, NULL, 0};
    size_t size = entry_size(ENTRY_WRITE, length);
    uint8_t *body = calloc(1, size);

    entry_put(body, &e);
    memset(body + ENTRY_HEAD, value, length);
    memset(g->disk + offset, value, length);
    records_add(&g->out, PROTO_DISK, epoch, body, size);
    g->changes_length += size;
    g->changes_digest = proto_disk_digest(g->changes_digest, g->out.list[g->out.count - 1].checksum);
    free(body);
}

static void end_disk(struct rig *g, uint64_t epoch)
{
    struct proto_disk_end end = {1000 + epoch, g->changes_length, g->changes_digest};
    uint8_t body[PROTO_SMALL_MAX];

    records_add(&g->out, PROTO_DISK_END, epoch, body, proto_put_disk_end(body, &end));
    g->changes_length = g->changes_digest = 0;
}

static void end(struct rig *g, uint64_t epoch)
{
    end_disk(g, epoch);
    records_blob(&g->out, PROTO_STATE, epoch, "state", 5);
    records_blob(&g->out, PROTO_NET, epoch, "net", 3);
    records_end(&g->out, epoch);
}

/* All records, but record `which' so many times. */
static enum receiver_result feed_times(struct rig *g, size_t which, unsigned times, struct error *err)
{
    enum receiver_result r = RECEIVER_MORE;

    for (size_t i = 0; i < g->out.count; i++)
        for (unsigned n = i == which ? times : 1; n > 0 && r == RECEIVER_MORE; n--) {
            g->out.list[i].checksum = records_checksum(&g->out.list[i]); /* a link gives no record whose is wrong */
            r = receiver_record(g->rx, &g->out.list[i], err);
        }
    return r;
}

static enum receiver_result feed(struct rig *g, struct error *err)
{
    return feed_times(g, 0, 1, err);
}

static void restart(struct rig *g, enum link_start start)
{
    struct error err;

    receiver_start(g->rx, start);
    assert_int_equal(journal_begin(g->journal, &info, start, &err), 0);
}

/* Holds checkpoint 1; checkpoint 2 is in g->out, and not in g->disk. */
static struct rig *rig_new(void)
{
    uint64_t all[GUEST], some[] = {1, 9};
    struct rig *g = calloc(1, sizeof(*g));
    uint8_t before[PAGE_BYTES];
    struct error err = {""};

    unlink(image);
    assert_int_equal(system(command), 0);
    records_init(&g->out, GUEST, PAGE_CODEC_LZ4);
    g->journal = open_journal();
    g->rx = receiver_new(g->memory, GUEST, STAGE * PAGE_BYTES);
    receiver_set_journal(g->rx, g->journal);
    restart(g, START_ANEW);
    for (uint64_t i = 0; i < GUEST; i++) {
        all[i] = i;
        memset(g->guest + i * PAGE_BYTES, (int)i, PAGE_BYTES);
    }
    records_pages(&g->out, 0, g->guest, all, GUEST);
    write_disk(g, 0, 3 * PAGE_BYTES, 0x33, PAGE_BYTES);
    end(g, 1);
    if (feed(g, &err) != RECEIVER_WHOLE)
        fail_msg("%s", err.text);
    receiver_apply(g->rx);
    assert_memory_equal(g->memory, g->guest, sizeof(g->guest));
    memcpy(g->kept, g->memory, sizeof(g->kept));
    records_restart(&g->out);
    restart(g, START_RESUME);

    memset(g->guest + PAGE_BYTES, 0x77, 2 * PAGE_BYTES);
    memset(g->guest + 5 * PAGE_BYTES, 0x33, PAGE_BYTES);
    records_pages(&g->out, 2, g->guest, some, 2);
    g->block = (struct proto_block){5, 1001, 0, 3, XXH3_64bits(g->guest + 5 * PAGE_BYTES, PAGE_BYTES)};
    records_block(&g->out, 2, &g->block, g->guest + 5 * PAGE_BYTES);
    memcpy(before, g->disk + 7 * PAGE_BYTES, PAGE_BYTES);
    write_disk(g, 2, 7 * PAGE_BYTES, 0x55, PAGE_BYTES);
    write_disk(g, 2, 7 * PAGE_BYTES, 0x44, PAGE_BYTES);
    memcpy(g->disk + 7 * PAGE_BYTES, before, PAGE_BYTES);
    end(g, 2);
    memset(g->guest + 2 * PAGE_BYTES, 2, PAGE_BYTES); /* not in some[] */
    assert_int_equal(g->out.count, RECORDS);
    return g;
}

/* The image when all that was committed is in it. */
static void assert_image(struct rig *g)
{
    uint8_t *content = malloc(DISK);
    int fd;

    journal_close(g->journal);
    g->journal = open_journal();
    fd = open(image, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, content, DISK, 0), DISK);
    close(fd);
    assert_int_equal(memcmp(content, g->disk, DISK), 0);
    free(content);
}

static void rig_free(struct rig *g)
{
    receiver_free(g->rx);
    journal_close(g->journal);
    records_free(&g->out);
    free(g);
}

static void assert_goes_on(struct rig *g)
{
    struct error err = {""};

    if (feed(g, &err) != RECEIVER_WHOLE)
        fail_msg("%s", err.text);
    assert_memory_equal(g->memory, g->kept, sizeof(g->kept)); /* R4: not before it is whole */
    receiver_apply(g->rx);
    assert_memory_equal(g->memory, g->guest, sizeof(g->guest));
    memset(g->disk + 7 * PAGE_BYTES, 0x44, PAGE_BYTES);
    assert_image(g);
}

static void r4_r5_memory_and_image_together(void **state)
{
    struct rig *g = rig_new();

    (void)state;
    assert_goes_on(g);
    rig_free(g);
}

/* After what is not checkpoint 2 the image is at checkpoint 1, and so is memory. */
static void assert_untouched(struct rig *g)
{
    receiver_apply(g->rx);
    assert_memory_equal(g->memory, g->kept, sizeof(g->kept));
    assert_image(g);
    rig_free(g);
}

static void r2_any_record_missing(void **state)
{
    (void)state;
    for (unsigned without = 0; without < RECORDS; without++) {
        struct rig *g = rig_new();
        struct error err = {""};
        enum receiver_result r = feed_times(g, without, 0, &err);

        if (r == RECEIVER_WHOLE)
            fail_msg("whole without record %u", without);
        assert_int_equal(r, without == END ? RECEIVER_MORE : RECEIVER_ERROR);
        assert_untouched(g);
    }
}

static void r2_any_record_twice(void **state)
{
    (void)state;
    for (unsigned twice = 0; twice < END; twice++) {
        struct rig *g = rig_new();
        struct error err = {""};

        assert_int_equal(feed_times(g, twice, 2, &err), RECEIVER_ERROR);
        assert_untouched(g);
    }
}

static void r2_changes_in_another_order(void **state)
{
    struct rig *g = rig_new();
    struct record first = g->out.list[CHANGES];
    struct error err = {""};

    (void)state;
    g->out.list[CHANGES] = g->out.list[MORE_CHANGES];
    g->out.list[MORE_CHANGES] = first;
    assert_int_equal(feed(g, &err), RECEIVER_ERROR);
    assert_non_null(strstr(err.text, "digest"));
    assert_untouched(g);
}

/* What came on a link that broke does not count on the next. */
static void r2_changes_of_the_link_before(void **state)
{
    struct rig *g = rig_new();
    struct error err = {""};

    (void)state;
    for (unsigned i = 0; i <= CHANGES; i++)
        assert_int_equal(receiver_record(g->rx, &g->out.list[i], &err), RECEIVER_MORE);
    restart(g, START_RESUME);
    assert_goes_on(g);
    rig_free(g);
}

static uint8_t *body(struct rig *g, unsigned i)
{
    return (uint8_t *)(uintptr_t)g->out.list[i].body;
}

static void set_block(struct rig *g, struct proto_block block)
{
    proto_put_block(body(g, BLOCKS), &block);
}

/* Each makes one thing wrong. */
static void no_epoch(struct rig *g, unsigned i)
{
    g->out.list[i].epoch = 0;
}

static void next_epoch(struct rig *g, unsigned i)
{
    g->out.list[i].epoch = 3;
}

static void shorter(struct rig *g, unsigned i)
{
    g->out.list[i].length--;
}

static void empty(struct rig *g, unsigned i)
{
    g->out.list[i].length = 0;
}

static void last_octet(struct rig *g, unsigned i)
{
    body(g, i)[g->out.list[i].length - 1] ^= 1;
}

static void page_outside(struct rig *g, unsigned i)
{
    (void)i;
    g->block.pfn = GUEST;
    set_block(g, g->block);
}

static void other_content(struct rig *g, unsigned i)
{
    (void)i;
    g->block.hash ^= 1;
    set_block(g, g->block);
}

static void later_generation(struct rig *g, unsigned i)
{
    (void)i;
    g->block.generation++;
    set_block(g, g->block);
}

static void beyond_the_disk(struct rig *g, unsigned i)
{
    memset(body(g, i) + 8, 0xff, 8); /* its offset */
}

static void r10_what_is_wrong_is_refused(void **state)
{
    static const struct {
        unsigned record;
        void (*spoil)(struct rig *g, unsigned i);
        const char *says;
    } cases[] = {
        {BLOCKS, no_epoch, "of no checkpoint"},
        {BLOCKS, next_epoch, "BLOCKS of checkpoint 3 inside checkpoint 2"},
        {BLOCKS, shorter, "BLOCKS of 31 octets"},
        {BLOCKS, page_outside, "page 16 of a guest of 16"},
        {BLOCKS, other_content, "does not hold"},
        {BLOCKS, later_generation, "generation"},
        {CHANGES, no_epoch, "after synchronising has ended"},
        {CHANGES, next_epoch, "DISK of checkpoint 3 inside checkpoint 2"},
        {CHANGES, shorter, ""},
        {CHANGES, beyond_the_disk, "disk"},
        {CHANGES, last_octet, "digest"},
        {CHANGES_END, no_epoch, "DISK_END of checkpoint 0"},
        {CHANGES_END, next_epoch, "DISK_END of checkpoint 3 inside checkpoint 2"},
        {CHANGES_END, shorter, "DISK_END"},
        {CHANGES_END, empty, "DISK_END"},
        {CHANGES_END, last_octet, "digest"},
    };

    (void)state;
    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct rig *g = rig_new();
        struct error err = {""};

        cases[i].spoil(g, cases[i].record);
        if (feed(g, &err) != RECEIVER_ERROR || !strstr(err.text, cases[i].says))
            fail_msg("case %u: instead of '%s': %s", i, cases[i].says, err.text);
        assert_untouched(g);
    }
}

static void r4_goes_on_after_a_bad_stream(void **state)
{
    struct rig *g = rig_new();
    struct error err = {""};
    uint64_t hash = g->block.hash;

    (void)state;
    other_content(g, BLOCKS);
    assert_int_equal(feed(g, &err), RECEIVER_ERROR);
    g->block.hash = hash;
    set_block(g, g->block);
    restart(g, START_RESUME);
    assert_goes_on(g);
    rig_free(g);
}

static void r9_blocks_are_staged_within_bounds(void **state)
{
    struct rig *g = rig_new();
    enum receiver_result r = RECEIVER_MORE;
    struct error err = {""};
    unsigned n = 0;

    (void)state;
    for (; n < 2 * STAGE && r == RECEIVER_MORE; n++)
        r = receiver_record(g->rx, &g->out.list[BLOCKS], &err);
    assert_int_equal(r, RECEIVER_ERROR);
    assert_int_equal(n, STAGE + 1);
    assert_non_null(strstr(err.text, "may be staged"));
    assert_untouched(g);
}

/* While all is sent anew the old checkpoint is kept as long as both memory and disk can be. */
static void r4_r5_a_checkpoint_is_kept_with_its_disk_or_not(void **state)
{
    struct rig *g = rig_new();
    enum receiver_result r = RECEIVER_MORE;
    struct receiver_checkpoint ck;
    struct error err = {""};
    unsigned n;

    (void)state;
    restart(g, START_KEEP);
    records_restart(&g->out);
    g->changes_length = g->changes_digest = 0;
    write_disk(g, 0, 0, 0x99, ENTRY_DATA_MAX);
    for (n = 0; n < 1000 && receiver_keeps(g->rx) && r == RECEIVER_MORE; n++)
        r = receiver_record(g->rx, &g->out.list[0], &err);
    if (r != RECEIVER_MORE)
        fail_msg("%s", err.text);
    assert_in_range(n, 2, 999); /* what the journal has room for */
    receiver_checkpoint(g->rx, &ck);
    assert_int_equal(ck.epoch, 0);
    rig_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(r4_r5_memory_and_image_together),
        cmocka_unit_test(r2_any_record_missing),
        cmocka_unit_test(r2_any_record_twice),
        cmocka_unit_test(r2_changes_in_another_order),
        cmocka_unit_test(r2_changes_of_the_link_before),
        cmocka_unit_test(r10_what_is_wrong_is_refused),
        cmocka_unit_test(r4_goes_on_after_a_bad_stream),
        cmocka_unit_test(r9_blocks_are_staged_within_bounds),
        cmocka_unit_test(r4_r5_a_checkpoint_is_kept_with_its_disk_or_not),
    };
    int failed;

    if (!mkdtemp(dir))
        return 1;
    snprintf(image, sizeof(image), "%s/a.img", dir);
    snprintf(command, sizeof(command), "rm -f %s/*", dir);
    failed = cmocka_run_group_tests_name("receiver-disks", tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command) || failed;
}
