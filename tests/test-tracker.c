/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The dirty trackers, watching a child process that writes.  A page that they miss is a replica that differs (R2);
 * a page too many is pause (R8) and staging buffer (R9) for nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/clock.h"
#include "vm/tracker.h"
#include "vm/vm.h"

#define BIG_PAGES (UINT64_C(8) << 30 >> 12)

enum order { IDLE, WRITE, WRITE_EVERY, READ, RUN, STOP };

/* Shared with the child; it carries out `order` and sets it back to IDLE (RUN: until told STOP). */
struct control {
    _Atomic int order;
    _Atomic uint64_t page;
    _Atomic uint64_t writes;
};

struct child {
    struct control *control;
    pid_t pid;
    int fd, arm_errno;
    uint8_t *memory;
    uint64_t pages;
    struct bitmap dirty;
};

static void child_main(struct child *c)
{
    struct control *ctl = c->control;
    volatile uint64_t *m = (volatile uint64_t *)c->memory;
    uint64_t rng = 1;

    for (;;) {
        int now = ctl->order;
        uint64_t page = ctl->page; /* after the order that it belongs to */

        switch (now) {
        case WRITE:
            m[page * 512 + page % 512]++;
            break;
        case WRITE_EVERY:
            for (uint64_t i = 0; i < c->pages; i += page)
                m[i * 512]++;
            break;
        case READ:
            (void)m[page * 512];
            break;
        case RUN:
            rng = rng * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            page = (rng >> 33) % c->pages;
            m[page * 512 + (rng >> 20) % 512]++;
            ctl->writes++;
            continue;
        case IDLE:
            usleep(20);
            continue;
        }
        ctl->order = IDLE;
    }
}

static void order(struct child *c, enum order o, uint64_t page)
{
    c->control->page = page;
    c->control->order = o;
    while (o != RUN && c->control->order != IDLE)
        usleep(20);
}

static struct child child_new(uint64_t pages, bool arm)
{
    struct child c = {.pages = pages};
    int result[2];

    assert_int_equal(pipe(result), 0);
    c.fd = memfd_create("test-tracker", MFD_CLOEXEC);
    assert_true(c.fd > 0);
    assert_int_equal(ftruncate(c.fd, (off_t)(pages * PAGE_SIZE)), 0);
    c.control = mmap(NULL, sizeof(*c.control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                     -1, 0);
    c.memory = mmap(NULL, pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, c.fd, 0);
    assert_true(c.control != MAP_FAILED && c.memory != MAP_FAILED);
    assert_int_equal(bitmap_init(&c.dirty, pages), 0);
    c.pid = fork();
    assert_true(c.pid >= 0);
    if (c.pid == 0) {
        int e = arm && tracker_arm(c.memory, pages * PAGE_SIZE) ? errno : 0;

        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test must not leave it behind */
        if (write(result[1], &e, sizeof(e)) != sizeof(e))
            _exit(1);
        child_main(&c);
    }
    assert_int_equal(read(result[0], &c.arm_errno, sizeof(c.arm_errno)), sizeof(c.arm_errno));
    close(result[0]);
    close(result[1]);
    return c;
}

static void child_end(struct child *c)
{
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
    munmap(c->memory, c->pages * PAGE_SIZE);
    munmap(c->control, sizeof(*c->control));
    close(c->fd);
    bitmap_free(&c->dirty);
}

static struct tracker *try_tracker(struct child *c, const char *want, struct error *err)
{
    struct tracker_target target = {
        .pid = c->pid,
        .address = c->arm_errno ? 0 : (uintptr_t)c->memory,
        .memory = c->memory,
        .pages = c->pages,
        .fd = c->fd,
    };

    if (strcmp(want, "uffd") == 0 && c->arm_errno) {
        print_message("this kernel cannot arm userfaultfd: %s\n", strerror(c->arm_errno));
        skip();
    }
    return tracker_new(want, &target, err);
}

static struct tracker *tracker_for(struct child *c, const char *want)
{
    struct error err = {""};
    struct tracker *t = try_tracker(c, want, &err);

    if (!t)
        fail_msg("%s: %s", want, err.text);
    return t;
}

static uint64_t scan(struct child *c, struct tracker *t)
{
    struct error err = {""};

    bitmap_clear_all(&c->dirty);
    if (tracker_scan(t, &c->dirty, &err))
        fail_msg("%s", err.text);
    return bitmap_count(&c->dirty);
}

static void copy(struct child *c, struct tracker *t, uint8_t *replica)
{
    for (uint64_t i = 0; (i = bitmap_next(&c->dirty, i)) < c->pages; i++)
        memcpy(replica + i * PAGE_SIZE, tracker_memory(t) + i * PAGE_SIZE, PAGE_SIZE);
}

/* Live scans while the child writes, then one with the child at rest: the copy must be the memory. */
static void none_missed(const char *want)
{
    struct child c = child_new(4096, true);
    struct tracker *t = tracker_for(&c, want);
    uint8_t *replica = calloc(c.pages, PAGE_SIZE);
    uint64_t reported = 0;

    assert_non_null(replica);
    for (int pause = 0; pause < 20; pause++) {
        order(&c, RUN, 0);
        for (uint64_t until = c.control->writes + 20000; c.control->writes < until;) {
            reported += scan(&c, t);
            copy(&c, t, replica);
        }
        order(&c, STOP, 0);
        reported += scan(&c, t);
        copy(&c, t, replica);
        assert_memory_equal(replica, c.memory, c.pages * PAGE_SIZE);
    }
    assert_true(reported > c.pages);
    assert_int_equal(scan(&c, t), 0);
    free(replica);
    tracker_free(t);
    child_end(&c);
}

static void r2_uffd_misses_no_page(void **state)
{
    (void)state;
    none_missed("uffd");
}

static void r2_compare_misses_no_page(void **state)
{
    (void)state;
    none_missed("compare");
}

/* A page that changes after a live scan and then back must not leave the passing state in the replica. */
static void r2_compare_copies_what_it_compares_with(void **state)
{
    struct child c = child_new(16, false);
    struct tracker *t = tracker_for(&c, "compare");
    uint8_t *replica = calloc(c.pages, PAGE_SIZE);

    (void)state;
    assert_non_null(replica);
    c.memory[3 * PAGE_SIZE] = 1;
    assert_int_equal(scan(&c, t), 1);
    c.memory[3 * PAGE_SIZE] = 2;
    copy(&c, t, replica);
    c.memory[3 * PAGE_SIZE] = 1;
    scan(&c, t);
    copy(&c, t, replica);
    assert_memory_equal(replica, c.memory, c.pages * PAGE_SIZE);
    free(replica);
    tracker_free(t);
    child_end(&c);
}

/* Both trackers report exactly the pages that were written, page by page the same. */
static void r8_trackers_agree(void **state)
{
    struct child c = child_new(20000, true);
    struct tracker *uffd = tracker_for(&c, "uffd"), *compare = tracker_for(&c, "compare");
    struct bitmap wrote;

    (void)state;
    assert_int_equal(bitmap_init(&wrote, c.pages), 0);
    scan(&c, uffd);
    scan(&c, compare);
    for (int round = 0; round < 30; round++) {
        bitmap_clear_all(&wrote);
        for (int i = 0; i < 40; i++) {
            uint64_t page = (uint64_t)random() % c.pages;

            order(&c, WRITE, page);
            bitmap_set(&wrote, page);
        }
        assert_int_equal(scan(&c, uffd), bitmap_count(&wrote));
        assert_memory_equal(c.dirty.words, wrote.words, (c.pages + 63) / 64 * 8);
        assert_int_equal(scan(&c, compare), bitmap_count(&wrote));
        assert_memory_equal(c.dirty.words, wrote.words, (c.pages + 63) / 64 * 8);
    }
    bitmap_free(&wrote);
    tracker_free(uffd);
    tracker_free(compare);
    child_end(&c);
}

/* More separate dirty pages than the kernel can name in one answer. */
static void r2_many_pages(void **state)
{
    struct child c = child_new(24000, true);
    struct tracker *t = tracker_for(&c, "uffd");

    (void)state;
    order(&c, WRITE_EVERY, 1);
    assert_int_equal(scan(&c, t), 24000);
    order(&c, WRITE_EVERY, 2);
    assert_int_equal(scan(&c, t), 12000);
    assert_int_equal(scan(&c, t), 0);
    tracker_free(t);
    child_end(&c);
}

/* A daemon that is started again must see all of the memory, though the one before has protected it. */
static void r2_first_scan_reports_all(void **state)
{
    struct child c = child_new(3000, true);

    (void)state;
    order(&c, WRITE_EVERY, 3);
    for (int i = 0; i < 2; i++) {
        struct tracker *t = tracker_for(&c, i == 0 ? "uffd" : "auto");

        assert_int_equal(scan(&c, t), i == 0 ? 1000 : 1002);
        assert_int_equal(scan(&c, t), 0);
        order(&c, WRITE, 1);
        order(&c, WRITE, 2999);
        assert_int_equal(scan(&c, t), 2);
        tracker_free(t);
    }
    child_end(&c);
}

/* A guest that merely reads dirties nothing. */
static void r8_reads_are_not_reported(void **state)
{
    struct child c = child_new(5000, true);
    struct tracker *t;

    (void)state;
    memset(c.memory, 7, c.pages * PAGE_SIZE / 2);
    t = tracker_for(&c, "uffd");
    assert_int_equal(scan(&c, t), 2500);
    for (uint64_t page = 0; page < 2500; page += 50)
        order(&c, READ, page);
    assert_int_equal(scan(&c, t), 0);
    tracker_free(t);
    child_end(&c);
}

/* What an 8 GiB guest has never used is neither reported nor brought to life by looking at it. */
static void r9_holes_cost_nothing(const char *want)
{
    struct child c = child_new(BIG_PAGES, true);
    struct tracker *t = tracker_for(&c, want);
    struct stat st;

    order(&c, WRITE, 5);
    assert_int_equal(scan(&c, t), 1);
    for (uint64_t page = 1000; page < BIG_PAGES; page += BIG_PAGES / 20)
        order(&c, WRITE, page);
    assert_int_equal(scan(&c, t), 20);
    order(&c, WRITE, 1001);
    order(&c, WRITE, BIG_PAGES - 1);
    assert_int_equal(scan(&c, t), 2);
    assert_int_equal(scan(&c, t), 0);
    fstat(c.fd, &st);
    assert_int_equal(st.st_blocks * 512, 23 * PAGE_SIZE);
    tracker_free(t);
    child_end(&c);
}

static void r9_uffd_holes_cost_nothing(void **state)
{
    (void)state;
    r9_holes_cost_nothing("uffd");
}

static void r9_compare_holes_cost_nothing(void **state)
{
    (void)state;
    r9_holes_cost_nothing("compare");
}

/* posix_fallocate(3), as the qemu platform uses it: pages that exist but were never written. */
static void r9_allocated_is_not_written(void **state)
{
    struct child c = child_new(20000, true);
    struct tracker *uffd, *compare;

    (void)state;
    assert_int_equal(posix_fallocate(c.fd, 0, 20000 * PAGE_SIZE), 0);
    uffd = tracker_for(&c, "uffd");
    compare = tracker_for(&c, "compare");
    assert_int_equal(scan(&c, uffd), 0);
    assert_int_equal(scan(&c, compare), 0);
    order(&c, WRITE, 12345);
    assert_int_equal(scan(&c, uffd), 1);
    assert_int_equal(scan(&c, compare), 1);
    order(&c, WRITE, 12346);
    order(&c, WRITE, 1);
    assert_int_equal(scan(&c, uffd), 2);
    assert_int_equal(scan(&c, compare), 2);
    tracker_free(uffd);
    tracker_free(compare);
    child_end(&c);
}

/* Without the file every page counts as data, the first time. */
static void without_a_file(void **state)
{
    struct child c = child_new(100, true);
    struct tracker_target target = {.pid = c.pid, .memory = c.memory, .pages = c.pages};
    struct tracker *t = tracker_new("auto", &target, NULL);

    (void)state;
    assert_non_null(t);
    assert_string_equal(tracker_name(t), "compare");
    assert_int_equal(scan(&c, t), 100);
    order(&c, WRITE, 99);
    assert_int_equal(scan(&c, t), 1);
    tracker_free(t);
    child_end(&c);
}

static void r10_wrong_targets_are_refused(void **state)
{
    struct child c = child_new(100, true), unarmed = child_new(100, false);
    struct error err = {""};
    struct tracker *t;

    (void)state;
    assert_null(try_tracker(&unarmed, "uffd", &err));
    assert_non_null(strstr(err.text, "not armed"));
    t = tracker_for(&unarmed, "auto");
    assert_string_equal(tracker_name(t), "compare");
    tracker_free(t);

    t = tracker_for(&c, "auto");
    assert_string_equal(tracker_name(t), c.arm_errno ? "compare" : "uffd");
    tracker_free(t);

    c.pages = 101; /* more than is mapped, or than the file has */
    assert_null(try_tracker(&c, "uffd", &err));
    assert_non_null(strstr(err.text, "not the guest's memory"));
    assert_int_equal(ftruncate(c.fd, 101 * PAGE_SIZE), 0);
    assert_null(try_tracker(&c, "uffd", &err));
    assert_non_null(strstr(err.text, "PAGEMAP_SCAN") ?: strstr(err.text, "not mapped as told"));
    c.pages = 100;
    child_end(&c);
    child_end(&unarmed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(r2_uffd_misses_no_page),
        cmocka_unit_test(r2_compare_misses_no_page),
        cmocka_unit_test(r2_compare_copies_what_it_compares_with),
        cmocka_unit_test(r8_trackers_agree),
        cmocka_unit_test(r2_many_pages),
        cmocka_unit_test(r2_first_scan_reports_all),
        cmocka_unit_test(r8_reads_are_not_reported),
        cmocka_unit_test(r9_uffd_holes_cost_nothing),
        cmocka_unit_test(r9_compare_holes_cost_nothing),
        cmocka_unit_test(r9_allocated_is_not_written),
        cmocka_unit_test(without_a_file),
        cmocka_unit_test(r10_wrong_targets_are_refused),
    };

    return cmocka_run_group_tests_name("tracker", tests, NULL, NULL);
}
