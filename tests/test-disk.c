/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of disk/: entries, the write queue, the stamps of an image, and the backup's journal, which is killed at
 * each of its steps and must then find its images at a committed epoch (R4, R5).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/clock.h"
#include "common/fault.h"
#include "disk/image.h"
#include "disk/journal.h"
#include "disk/queue.h"
#include "disk/server.h"

#define MIB (1u << 20)
#define DISK_SIZE (4u * MIB)

static char dir[64], paths[2][96], queue_path[96];

/* --- a disk that fails --- */

enum call { WRITES, SYNCS, CLEARS };

static pthread_mutex_t broken_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    const char *path; /* of this file; NULL: none */
    enum call call;
    int error, after; /* so many calls that succeed */
} broken;

static bool breaks(int fd, enum call call)
{
    struct stat st, other;
    bool now;

    pthread_mutex_lock(&broken_lock);
    now = broken.path && broken.call == call && fstat(fd, &st) == 0 && stat(broken.path, &other) == 0 &&
          st.st_ino == other.st_ino && broken.after-- <= 0;
    errno = now ? broken.error : errno;
    pthread_mutex_unlock(&broken_lock);
    return now;
}

static void break_disk(const char *path, enum call call, int error, int after)
{
    pthread_mutex_lock(&broken_lock);
    broken.path = path;
    broken.call = call;
    broken.error = error;
    broken.after = after;
    pthread_mutex_unlock(&broken_lock);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return breaks(fd, WRITES) ? -1 : syscall(SYS_pwrite64, fd, data, length, offset);
}

int fdatasync(int fd)
{
    return breaks(fd, SYNCS) ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return breaks(fd, CLEARS) ? -1 : (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

static int set_up(void **state)
{
    (void)state;
    break_disk(NULL, 0, 0, 0);
    strcpy(dir, "/tmp/test-disk-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(paths[0], sizeof(paths[0]), "%s/a.img", dir);
    snprintf(paths[1], sizeof(paths[1]), "%s/b.img", dir);
    snprintf(queue_path, sizeof(queue_path), "%s/queue", dir);
    return 0;
}

static int tear_down(void **state)
{
    char command[96];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return system(command);
}

/* --- entries --- */

static void test_entries_are_checked_R10(void **state)
{
    static const uint64_t sizes[] = {8192, 100};
    static const struct entry bad[] = {
        {0, 0, 512, 0, NULL, 0},  {5, 0, 512, 0, NULL, 0},    {ENTRY_ZERO, 2, 1, 0, NULL, 0},
        {ENTRY_ZERO, 0, 0, 0, NULL, 0}, {ENTRY_ZERO, 0, 8193, 0, NULL, 0}, {ENTRY_ZERO, 0, 1, 8192, NULL, 0},
        {ENTRY_ZERO, 1, 2, 99, NULL, 0}, {ENTRY_TRIM, 0, UINT32_MAX, UINT64_MAX - 5, NULL, 0},
        {ENTRY_CHECK, 0, 512, 512, NULL, 0}, {ENTRY_CHECK, 2, 512, 0, NULL, 0},
    };
    uint8_t data[1000], out[1200];
    struct entry e = {ENTRY_WRITE, 0, sizeof(data), 4096, data, 0}, got;
    const uint8_t *at = out;
    struct error err;

    (void)state;
    memset(data, 7, sizeof(data));
    memset(out, 0xff, sizeof(out));
    entry_put(out, &e);
    assert_int_equal(entry_size(ENTRY_WRITE, 1000), 16 + 1008);
    assert_int_equal(out[16 + 1007], 0);
    assert_int_equal(entry_get(&got, &at, out + 16 + 1008, sizes, 2, &err), 0);
    assert_ptr_equal(at, out + 16 + 1008);
    assert_int_equal(got.offset, 4096);
    assert_memory_equal(got.data, data, sizeof(data));
    for (size_t n = 0; n < 16 + 1008; n++) {
        at = out;
        assert_int_equal(entry_get(&got, &at, out + n, sizes, 2, &err), -1);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        entry_put(out, &bad[i]);
        at = out;
        assert_int_equal(entry_get(&got, &at, out + 32, sizes, 2, &err), -1);
    }
    e = (struct entry){.kind = ENTRY_CHECK, .disk = 1, .length = 100, .hash = UINT64_C(0x0102030405060708)};
    entry_put(out, &e);
    at = out;
    assert_int_equal(entry_get(&got, &at, out + 32, sizes, 2, &err), 0);
    assert_ptr_equal(at, out + 32);
    assert_true(got.hash == e.hash && got.length == 100);
    at = out;
    assert_int_equal(entry_get(&got, &at, out + 31, sizes, 2, &err), -1);
}

/* The longest and the last are taken, what is one octet longer or further is not; what is not data is zero. */
static void test_entries_at_their_limits_R10(void **state)
{
    static const uint64_t sizes[] = {UINT64_C(1) << 33, UINT64_C(1) << 33};
    static const struct {
        unsigned kind;
        uint32_t length;
        uint64_t offset;
        bool ok;
    } cases[] = {
        {ENTRY_WRITE, ENTRY_DATA_MAX, UINT64_C(1) << 32, true}, {ENTRY_WRITE, ENTRY_DATA_MAX + 1, 0, false},
        {ENTRY_WRITE, 1, (UINT64_C(1) << 33) - 1, true}, {ENTRY_WRITE, 2, (UINT64_C(1) << 33) - 1, false},
        {ENTRY_WRITE, 16, 0, true}, {ENTRY_WRITE, 17, 0, true},
        {ENTRY_ZERO, UINT32_MAX, 4097, true}, {ENTRY_TRIM, UINT32_MAX, 4096, true}, {ENTRY_TRIM, 1, UINT64_C(1) << 33, false},
        {ENTRY_CHECK, ENTRY_CHECK_MAX, ENTRY_CHECK_MAX, true}, {ENTRY_CHECK, ENTRY_CHECK_MAX + 1, 0, false},
        {ENTRY_CHECK, 1, ENTRY_CHECK_MAX - 1, false}, {ENTRY_CHECK, 1, 0, true},
    };
    static uint8_t data[ENTRY_DATA_MAX + 1], out[ENTRY_DATA_MAX + 64], zeros[32];
    struct error err;

    (void)state;
    memset(data, 0x77, sizeof(data));
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        bool write = cases[i].kind == ENTRY_WRITE;
        struct entry e = {cases[i].kind, 1, cases[i].length, cases[i].offset, write ? data : NULL, 0x55}, got;
        size_t size = entry_size(e.kind, e.length), used = ENTRY_HEAD + (write ? e.length : e.kind == ENTRY_CHECK ? 8 : 0);
        const uint8_t *at = out;

        assert_true(size % 16 == 0 && size >= used && size - used < 16);
        memset(out, 0xff, sizeof(out));
        entry_put(out, &e);
        assert_memory_equal(out + 2, zeros, 2);
        assert_memory_equal(out + used, zeros, size - used);
        assert_int_equal(out[size], 0xff);
        assert_int_equal(entry_get(&got, &at, out + sizeof(out), sizes, 2, &err), cases[i].ok ? 0 : -1);
        assert_ptr_equal(at, cases[i].ok ? out + size : out); /* what is refused is not passed over */
        if (!cases[i].ok)
            continue;
        assert_true(got.kind == e.kind && got.disk == 1 && got.length == e.length && got.offset == e.offset);
        assert_true(e.kind != ENTRY_CHECK || got.hash == 0x55);
        assert_int_equal(write ? memcmp(got.data, data, e.length) : 0, 0);
    }
}

/* --- the queue --- */

static void put(struct queue *q, uint64_t number, uint32_t length)
{
    uint8_t *data = malloc(length);
    struct entry e = {ENTRY_WRITE, 0, length, number * 512, data, 0};

    memset(data, (int)number, length);
    queue_begin(q, e.kind, length);
    queue_end(q, &e);
    free(data);
}

/* Takes all entries up to limit and checks that their numbers go on from *next. */
static void take(struct queue *q, uint64_t limit, uint64_t *next)
{
    static const uint64_t sizes[] = {UINT64_MAX / 2};
    const uint8_t *at, *end;
    struct error err;
    struct entry e;
    size_t n;

    while ((n = queue_peek(q, limit, MIB, &at)) > 0) {
        for (end = at + n; at < end;) {
            assert_int_equal(entry_get(&e, &at, end, sizes, 1, &err), 0);
            assert_int_equal(e.offset, *next * 512);
            assert_int_equal(e.data[0], (uint8_t)*next);
            assert_int_equal(e.data[e.length - 1], (uint8_t)*next);
            ++*next;
        }
        queue_done(q, n);
    }
}

static void test_queue_keeps_order_and_barrier_R5(void **state)
{
    struct queue server, reader;
    struct error err;
    uint64_t next = 0, head, number = 0, generation;
    const uint8_t *first[2];
    unsigned seed = 1;

    (void)state;
    assert_int_equal(queue_create(&server, queue_path, MIB, 0, 7, true, &err), 0);
    queue_set_server(&server, getpid());
    assert_int_equal(queue_server(queue_path), getpid());
    assert_int_equal(queue_open(&reader, queue_path, &err), 0);
    put(&server, 99, 512); /* nobody listens yet */
    queue_start(&reader);
    for (unsigned round = 0; round < 400; round++) {
        for (unsigned i = 0; i < 1 + (unsigned)rand_r(&seed) % 4; i++)
            put(&server, number++, 512 + (uint32_t)rand_r(&seed) % 60000);
        generation = queue_barrier(&reader, &head);
        assert_int_equal(generation, 7 + round);
        put(&server, number, 512); /* the next epoch's */
        take(&reader, head, &next);
        assert_int_equal(next, number); /* all before the barrier, none behind it */
        number++;
    }
    take(&reader, queue_head(&reader), &next);
    for (unsigned i = 0; i < 2; i++) {
        put(&server, number++, 512);
        queue_peek(&reader, queue_head(&reader), MIB, &first[i]);
        take(&reader, queue_head(&reader), &next);
    }
    assert_ptr_equal(first[0], first[1]); /* an empty ring is filled from its beginning */
    queue_close(&reader);
    queue_close(&server);
    assert_int_equal(queue_server(queue_path), 0);
}

#define SIXTEENTH (MIB / 16 - ENTRY_HEAD) /* of data: its entry is exactly that of the ring */

/* An entry that ends where the ring does, and one that does not fit there. */
static void test_entries_at_the_end_of_the_ring_R5(void **state)
{
    struct queue server, reader;
    uint64_t next = 0, number = 0, head;
    const uint8_t *entries;
    struct error err;

    (void)state;
    assert_int_equal(queue_create(&server, queue_path, MIB, 0, 1, true, &err), 0);
    assert_int_equal(queue_open(&reader, queue_path, &err), 0);
    queue_start(&reader);
    for (unsigned i = 0; i < 12; i++)
        put(&server, number++, SIXTEENTH);
    assert_int_equal(queue_peek(&reader, queue_head(&reader), MIB / 4, &entries), MIB / 4);
    queue_done(&reader, MIB / 4);
    next += 4;
    for (unsigned i = 0; i < 8; i++)
        put(&server, number++, SIXTEENTH);
    assert_int_equal(queue_peek(&reader, queue_head(&reader), MIB, &entries), MIB / 4 * 3);
    take(&reader, queue_head(&reader), &next);
    assert_int_equal(next, 20);

    for (unsigned i = 0; i < 15; i++)
        put(&server, number++, SIXTEENTH);
    assert_int_equal(queue_peek(&reader, queue_head(&reader), MIB / 4, &entries), MIB / 4);
    queue_done(&reader, MIB / 4);
    next += 4;
    head = queue_head(&reader);
    put(&server, number++, 2 * SIXTEENTH);
    assert_true(queue_touches(&reader, head, queue_head(&reader), 0, (number - 1) * 512, 1));
    assert_false(queue_touches(&reader, head, queue_head(&reader), 0, 0, 512)); /* what is skipped is no change */
    take(&reader, queue_head(&reader), &next);
    assert_int_equal(next, number);
    queue_close(&reader);
    queue_close(&server);
}

static void test_ranges_that_entries_touch_R5(void **state)
{
    struct queue server, reader;
    struct error err;
    uint64_t from, to;

    (void)state;
    assert_int_equal(queue_create(&server, queue_path, MIB, 0, 1, true, &err), 0);
    assert_int_equal(queue_open(&reader, queue_path, &err), 0);
    queue_start(&reader);
    from = queue_head(&reader);
    put(&server, 90, 512);
    put(&server, 4, 1024); /* 2048 to 3072 */
    to = queue_head(&reader);
    put(&server, 50, 512);
    assert_true(queue_touches(&reader, from, to, 0, 2048, 1) && queue_touches(&reader, from, to, 0, 3071, 1));
    assert_true(queue_touches(&reader, from, to, 0, 0, 65536) && queue_touches(&reader, from, to, 0, 2047, 2));
    assert_false(queue_touches(&reader, from, to, 0, 2047, 1) || queue_touches(&reader, from, to, 0, 3072, 512));
    assert_false(queue_touches(&reader, from, to, 1, 2048, 1024)); /* of another disk */
    assert_true(queue_touches(&reader, from, to, 0, 90 * 512, 1));
    assert_false(queue_touches(&reader, from, to, 0, 50 * 512, 512)); /* behind it */
    assert_false(queue_touches(&reader, to, to, 0, 2048, 1024));
    queue_close(&reader);
    queue_close(&server);
}

static void *fill(void *arg)
{
    for (uint64_t i = 0; i < 64; i++)
        put(arg, i, 65536);
    return NULL;
}

static void test_full_queue_waits_but_not_for_the_dead_R9(void **state)
{
    struct queue server, reader;
    struct queue_stats stats;
    struct error err;
    uint64_t next = 0;
    pthread_t thread;
    int status;
    pid_t child;

    (void)state;
    assert_int_equal(queue_create(&server, queue_path, MIB, 0, 1, true, &err), 0);
    assert_int_equal(queue_open(&reader, queue_path, &err), 0);
    queue_start(&reader);
    pthread_create(&thread, NULL, fill, &server);
    do
        queue_stats(&reader, &stats);
    while (stats.used_bytes < MIB - 2 * 65552);
    usleep(250000); /* meanwhile it looks twice whether the reader lives */
    for (uint64_t until = clock_ns() + 30 * NS_PER_S; next < 64 && clock_ns() < until;)
        take(&reader, queue_head(&reader), &next);
    assert_int_equal(next, 64);
    pthread_join(thread, NULL);
    queue_stats(&reader, &stats);
    assert_true(stats.written_bytes == 64 * 65536);
    queue_stop(&reader);
    queue_close(&reader);

    /* A reader that is killed: the writes go on, the lock is free. */
    child = fork();
    if (child == 0) {
        if (queue_open(&reader, queue_path, &err) == 0)
            queue_start(&reader);
        raise(SIGKILL);
    }
    waitpid(child, &status, 0);
    fill(&server);
    queue_stats(&server, &stats);
    assert_true(stats.full_ns > 0);
    queue_close(&server);
}

static void *put_one(void *arg)
{
    put(arg, 1, 512);
    return NULL;
}

/* A server that is killed amid a change leaves no entry, and a lock that is one again. */
static void test_death_with_the_lock_does_no_harm_R5(void **state)
{
    struct queue server, reader;
    uint64_t head, next = 0;
    struct error err;
    pthread_t thread;
    int status;
    pid_t child;

    (void)state;
    assert_int_equal(queue_create(&server, queue_path, MIB, 0, 1, true, &err), 0);
    assert_int_equal(queue_open(&reader, queue_path, &err), 0);
    queue_start(&reader);
    child = fork();
    if (child == 0) {
        queue_begin(&server, ENTRY_WRITE, 512);
        raise(SIGKILL);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    put(&server, 0, 512);
    queue_lock(&reader, &head);
    pthread_create(&thread, NULL, put_one, &server);
    usleep(20000); /* for whoever does not wait */
    assert_true(queue_head(&reader) == head);
    queue_unlock(&reader);
    pthread_join(thread, NULL);
    take(&reader, queue_head(&reader), &next);
    assert_int_equal(next, 2);
    queue_close(&reader);
    queue_close(&server);
}

/* What its sizes say is mapped: they must be those of the file. */
static void test_wrong_queue_file_is_refused_R10(void **state)
{
    static const struct {
        off_t octet, size; /* one of them is changed */
    } cases[] = {{0, -1}, {8, -1}, {15, -1}, {-1, 0}, {-1, 100}, {-1, MIB},
                 {-1, 4096 + MIB + 512 - 1}, {-1, 4096 + MIB + 512 + 1}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct queue server, reader;
        struct queue other;
        struct error err;
        uint8_t octet;
        int fd;

        assert_int_equal(queue_create(&server, queue_path, MIB, 512, 1, true, &err), 0);
        assert_int_equal(queue_open(&reader, queue_path, &err), 0);
        assert_int_equal(queue_open(&other, queue_path, &err), -1);
        assert_non_null(strstr(err.text, "another remusd"));
        queue_close(&reader);
        queue_close(&server);
        fd = open(queue_path, O_RDWR | O_CLOEXEC);
        if (cases[i].octet >= 0) {
            assert_int_equal(pread(fd, &octet, 1, cases[i].octet), 1);
            octet ^= 1;
            assert_int_equal(pwrite(fd, &octet, 1, cases[i].octet), 1);
        } else {
            assert_int_equal(ftruncate(fd, cases[i].size), 0);
        }
        close(fd);
        assert_int_equal(queue_open(&reader, queue_path, &err), -1);
        if (!strstr(err.text, "is no write queue"))
            fail_msg("case %zu: %s", i, err.text);
    }
}

static void nobody(void *arg)
{
    (void)arg;
}

/* A block may stand for a page only while it holds exactly that, and the backup has its last write. */
static void test_page_is_a_block_only_as_the_backup_has_it_R5(void **state)
{
    char *disks[] = {paths[0], NULL};
    struct vm_config cfg = {.name = "t", .run_dir = dir, .disks = disks, .disk_count = 1};
    uint8_t page[4096], other[4096];
    uint64_t base[] = {1};
    struct proto_block b;
    struct queue server;
    struct image im;
    struct error err;
    struct disk *d;
    char path[108];
    int fd = open(paths[0], O_RDWR | O_CREAT, 0600);

    (void)state;
    for (size_t i = 0; i < sizeof(page); i++)
        page[i] = (uint8_t)(i * i >> 7);
    assert_true(fd >= 0 && ftruncate(fd, DISK_SIZE) == 0);
    assert_int_equal(pwrite(fd, page, sizeof(page), 5 * 4096), sizeof(page));
    assert_int_equal(image_take(paths[0], &err), 0);
    assert_int_equal(disk_queue_path(&cfg, path), 0);
    assert_int_equal(queue_create(&server, path, MIB, 4096, 2, true, &err), 0);
    assert_int_equal(disk_open(&d, &cfg, &err), 0);
    assert_int_equal(image_open(&im, paths[0], true, &err), 0);
    assert_int_equal(disk_start(d, base, nobody, NULL, &err), 0);
    queue_note_read(&server, 0, 5, page);
    assert_false(disk_find(d, disk_key(d, page), page, &b)); /* nothing is acknowledged */
    disk_barrier(d, 1);
    disk_barrier(d, 2);
    disk_acked(d, 1);
    assert_true(disk_find(d, disk_key(d, page), page, &b));
    assert_int_equal(b.disk, 0);
    assert_int_equal(b.block, 5);
    assert_true(b.generation == 0 && b.hash == XXH3_64bits(page, sizeof(page)));
    memcpy(other, page, sizeof(page));
    other[100]++; /* in no part that is hashed for the table */
    assert_false(disk_find(d, disk_key(d, other), other, &b));
    /* The guest writes to the block, the same even: not before the backup has that. */
    image_stamp(&im, 5 * 4096, 4096, 4);
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    disk_acked(d, 2);
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    disk_barrier(d, 3); /* ends generation 4 */
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    disk_acked(d, 3);
    assert_true(disk_find(d, disk_key(d, page), page, &b) && b.generation == 4);
    assert_int_equal(pwrite(fd, other, sizeof(other), 5 * 4096), sizeof(other));
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    /* Hints that are wrong do no harm. */
    queue_note_read(&server, 0, DISK_SIZE / 4096, page);
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    queue_note_read(&server, 0, UINT64_C(1) << 52, page);
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    queue_note_read(&server, 7, 5, page);
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    /* A new link: nothing is acknowledged on it. */
    disk_stop(d);
    disk_finish(d);
    assert_int_equal(pwrite(fd, page, sizeof(page), 5 * 4096), sizeof(page));
    queue_note_read(&server, 0, 5, page);
    assert_true(disk_find(d, disk_key(d, page), page, &b));
    assert_int_equal(disk_start(d, base, nobody, NULL, &err), 0);
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    disk_barrier(d, 4); /* the sync is not done: an acknowledgement of it means nothing yet */
    disk_acked(d, 4);
    assert_false(disk_find(d, disk_key(d, page), page, &b));
    disk_stop(d);
    disk_finish(d);
    disk_close(d);
    image_close(&im);
    queue_close(&server);
    close(fd);
}

/* What the engine sees: the changes of an epoch, before and after its barrier, and never one of the next. */
static void test_epoch_ends_at_its_barrier_R5(void **state)
{
    char *disks[] = {paths[0], NULL};
    struct vm_config cfg = {.name = "t", .run_dir = dir, .disks = disks, .disk_count = 1};
    uint64_t base[] = {1}, generation = 0, head;
    struct buffer entries = {0};
    struct disk_verify verify;
    struct queue server;
    struct error err;
    struct disk *d;
    const uint8_t *at;
    char path[108];
    int fd = open(paths[0], O_RDWR | O_CREAT, 0600);

    (void)state;
    assert_true(fd >= 0 && ftruncate(fd, DISK_SIZE) == 0);
    close(fd);
    assert_int_equal(image_take(paths[0], &err), 0);
    assert_int_equal(disk_queue_path(&cfg, path), 0);
    assert_int_equal(queue_create(&server, path, MIB, MIB, 1, true, &err), 0);
    assert_int_equal(disk_open(&d, &cfg, &err), 0);
    assert_int_equal(disk_start(d, base, nobody, NULL, &err), 0);
    for (uint64_t epoch = 1; epoch <= 20; epoch++) {
        put(&server, 0, 512);
        assert_int_equal(disk_take(d, epoch, MIB, &at), 528); /* early */
        disk_done(d, 528);
        put(&server, 1, 512);
        disk_barrier(d, epoch);
        put(&server, 2, 1024);
        disk_barrier(d, epoch + 1); /* two in flight */
        put(&server, 3, 2048);
        assert_int_equal(disk_take(d, epoch, MIB, &at), 528);
        disk_done(d, 528);
        assert_int_equal(disk_take(d, epoch, MIB, &at), 0);
        assert_true(disk_end(d, epoch) > generation);
        generation = disk_end(d, epoch++);
        assert_int_equal(disk_take(d, epoch, MIB, &at), 1040);
        disk_done(d, 1040);
        assert_int_equal(disk_take(d, epoch, MIB, &at), 0);
        assert_int_equal(disk_end(d, epoch), ++generation);
        assert_int_equal(disk_take(d, epoch + 1, MIB, &at), 2064);
        disk_done(d, 2064);
    }
    /* Nor is a block compared or sent as it is behind the barrier. */
    assert_int_equal(disk_verify_start(d, true, &err), 0);
    assert_int_equal(disk_verify_start(d, true, &err), -1);
    disk_barrier(d, 30);
    put(&server, 4, 512);
    assert_int_equal(disk_verify_next(d, 30, &entries, &head, &err), 0);
    assert_int_equal(entries.len, 0);
    assert_int_equal(disk_verify_next(d, 31, &entries, &head, &err), 1);
    assert_int_equal(entries.len, 16 * entry_size(ENTRY_CHECK, IMAGE_BLOCK));
    assert_int_equal(disk_take_to(d, head, MIB, &at), 528);
    assert_int_equal(disk_compared(d, &(struct proto_compared){MIB, 1, {{0, IMAGE_BLOCK, 0}}}, &err), 0);
    assert_int_equal(disk_compared(d, &(struct proto_compared){1, 0, {{0, 0, 0}}}, &err), -1); /* R10: not asked */
    assert_int_equal(disk_compared(d, &(struct proto_compared){0, 1, {{1, IMAGE_BLOCK, 0}}}, &err), -1);
    assert_int_equal(disk_compared(d, &(struct proto_compared){0, 1, {{0, IMAGE_BLOCK, DISK_SIZE}}}, &err), -1);
    buffer_clear(&entries);
    disk_barrier(d, 31);
    assert_int_equal(disk_verify_next(d, 31, &entries, &head, &err), 0);
    assert_int_equal(disk_verify_next(d, 32, &entries, &head, &err), 1); /* what differed, again */
    assert_int_equal(entries.data[0], ENTRY_TRIM);
    buffer_free(&entries);
    disk_stop(d);
    disk_verify_state(d, &verify);
    assert_false(verify.running);
    assert_non_null(strstr(verify.failed, "link"));
    disk_finish(d);
    disk_close(d);
    queue_close(&server);
}

/* --- the image --- */

static void make_image(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT, 0600);

    assert_true(fd >= 0 && ftruncate(fd, DISK_SIZE) == 0);
    close(fd);
}

static uint64_t id_of(const char *path)
{
    struct image_record rec;

    assert_int_equal(image_read(path, &rec, NULL), 1);
    return rec.id;
}

static void test_stamps_tell_what_a_copy_lacks_R5(void **state)
{
    struct image im;
    struct error err;
    uint64_t id;

    (void)state;
    make_image(paths[0]);
    assert_int_equal(image_take(paths[0], &err), 0);
    assert_int_equal(image_open(&im, paths[0], true, &err), 0);
    assert_int_equal(im.blocks, DISK_SIZE / IMAGE_BLOCK);
    image_stamp(&im, IMAGE_BLOCK - 1, 2, 5);
    image_stamp(&im, 10 * IMAGE_BLOCK, 1, 9);
    assert_int_equal(image_next_changed(&im, 0, 0), 0);
    assert_int_equal(image_next_changed(&im, 1, 4), 1);
    assert_int_equal(image_next_changed(&im, 2, 4), 10);
    assert_int_equal(image_next_changed(&im, 0, 5), 10);
    assert_int_equal(image_next_changed(&im, 0, 9), im.blocks);
    assert_int_equal(image_last_generation(&im), 9);
    image_close(&im);

    /* They outlive the server, however it ended; not what happens to the image without it. */
    id = id_of(paths[0]);
    assert_int_equal(image_take(paths[0], &err), 0);
    assert_int_equal(id_of(paths[0]), id);
    assert_int_equal(image_release(paths[0], &err), 0);
    assert_int_equal(image_take(paths[0], &err), 0);
    assert_int_equal(id_of(paths[0]), id);
    assert_int_equal(image_release(paths[0], &err), 0);
    usleep(20000);
    assert_int_equal(truncate(paths[0], DISK_SIZE), 0); /* mtime */
    assert_int_equal(utimensat(AT_FDCWD, paths[0], NULL, 0), 0);
    assert_int_equal(image_take(paths[0], &err), 0);
    assert_true(id_of(paths[0]) != id);
    assert_int_equal(image_open(&im, paths[0], false, &err), 0);
    assert_int_equal(image_next_changed(&im, 0, 0), im.blocks);
    image_close(&im);

    assert_int_equal(image_disown(paths[0], 17, &err), 0);
    assert_int_equal(image_take(paths[0], &err), -1);
    assert_non_null(strstr(err.text, "stale"));
    assert_non_null(strstr(err.text, "17"));
}

/* What is written to an image while nobody stamps it makes it another; its checkpoint stays. */
static void test_image_that_is_not_the_one_it_was_R5(void **state)
{
    static const struct {
        bool clean, grown, rebooted, same;
    } cases[] = {{false, false, false, true}, {true, false, false, true}, {true, false, true, true},
                 {false, false, true, false}, {false, true, false, false}, {true, true, false, false}};
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct image_record rec;
        struct stat before;
        struct image im;

        make_image(paths[0]);
        assert_int_equal(image_take(paths[0], &err), 0);
        assert_int_equal(image_validate(paths[0], 17, &err), 0); /* as after a takeover: the same until its guest has run */
        assert_int_equal(image_read(paths[0], &rec, &err), 1);
        assert_int_equal(image_take(paths[0], &err), 0);
        assert_true(id_of(paths[0]) == rec.id);
        assert_int_equal(image_open(&im, paths[0], true, &err), 0);
        image_stamp(&im, 0, 1, 5);
        image_close(&im);
        if (cases[i].clean)
            assert_int_equal(image_release(paths[0], &err), 0);
        assert_int_equal(image_read(paths[0], &rec, &err), 1);
        assert_true(rec.role == IMAGE_VALID && rec.clean == cases[i].clean);
        if (cases[i].rebooted)
            strcpy(rec.boot, "another");
        assert_int_equal(image_write(paths[0], &rec, &err), 0);
        assert_int_equal(stat(paths[0], &before), 0);
        if (cases[i].grown)
            assert_int_equal(truncate(paths[0], DISK_SIZE + 4096), 0);
        assert_int_equal(utimensat(AT_FDCWD, paths[0], (struct timespec[]){before.st_atim, before.st_mtim}, 0), 0);
        assert_int_equal(image_take(paths[0], &err), 0);
        assert_int_equal(id_of(paths[0]) == rec.id, cases[i].same);
        assert_int_equal(image_read(paths[0], &rec, &err), 1);
        assert_true(rec.epoch == 17 && !rec.clean && strcmp(rec.boot, "another") != 0);
        assert_int_equal(image_open(&im, paths[0], false, &err), 0);
        assert_int_equal(image_last_generation(&im), cases[i].same ? 5 : 0);
        image_close(&im);
    }
}

static void test_images_of_any_size_and_none(void **state)
{
    static char name[PATH_MAX + 8], record[PATH_MAX];
    uint64_t size = 0;
    struct image im;
    struct error err;

    (void)state;
    memset(name, 'x', sizeof(name));
    for (unsigned length = PATH_MAX - 7; length <= PATH_MAX - 6; length++) {
        name[length] = '\0';
        assert_int_equal(image_record_path(name, record), length == PATH_MAX - 7 ? 0 : -1);
        assert_int_equal(image_read(name, &(struct image_record){0}, &err), -1);
        name[length] = 'x';
    }
    assert_int_equal(image_size(paths[0], 0, &size, &err), -1); /* there is none ... */
    assert_int_equal(access(paths[0], F_OK), -1); /* ... and was none made */
    assert_int_equal(image_size(dir, 4096, &size, &err), -1);
    assert_int_equal(image_size(paths[0], 3 * IMAGE_BLOCK + 512, &size, &err), 0);
    assert_int_equal(size, 3 * IMAGE_BLOCK + 512);
    assert_int_equal(image_size(paths[0], 77, &size, &err), 0); /* that is not what it is for */
    assert_int_equal(size, 3 * IMAGE_BLOCK + 512);
    assert_int_equal(image_open(&im, paths[0], true, &err), -1); /* nobody has taken it */
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(i ? image_disown(paths[0], 1, &err) : image_release(paths[0], &err), 0);
        assert_int_equal(image_read(paths[0], &(struct image_record){0}, &err), 0); /* nor does so now */
    }
    assert_int_equal(image_validate(paths[0], 1, &err), -1);
    assert_int_equal(image_take(paths[0], &err), 0);
    assert_int_equal(image_open(&im, paths[0], true, &err), 0);
    assert_true(im.regular && im.blocks == 4 && im.size == size);
    image_stamp(&im, 2 * IMAGE_BLOCK, 0, 9);
    assert_int_equal(image_last_generation(&im), 0);
    image_stamp(&im, 3 * IMAGE_BLOCK + 511, 1, 7);
    image_stamp(&im, IMAGE_BLOCK, IMAGE_BLOCK, 6);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(image_stamp_at(&im, i * IMAGE_BLOCK + 511), i == 3 ? 7 : i == 1 ? 6 : 0);
    image_close(&im);
    assert_int_equal(im.fd, -1);
    image_close(&im); /* of none */
    assert_int_equal(truncate(paths[0], 0), 0);
    assert_int_equal(image_size(paths[0], 0, &size, &err), -1);
    assert_non_null(strstr(err.text, "empty"));
    assert_int_equal(image_open(&im, paths[0], true, &err), -1);
    assert_int_equal(image_size(paths[0], 1024 * IMAGE_BLOCK + 1, &size, &err), 0);
    assert_int_equal(image_open(&im, paths[0], true, &err), 0);
    image_stamp(&im, 1024 * IMAGE_BLOCK, 1, 8); /* behind the first page of them */
    assert_int_equal(image_next_changed(&im, 4, 7), 1024);
    image_close(&im);
}

/* One server after the other, of one disk, of both, of the other: none begins where an earlier one may have counted. */
static void test_generations_grow_over_all_servers_R5(void **state)
{
    static const struct {
        unsigned from, to;
    } disks[] = {{0, 1}, {0, 1}, {0, 2}, {1, 2}};
    uint64_t last = 0, generation;
    struct image images[2];
    struct error err;

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        make_image(paths[i]);
        assert_int_equal(image_take(paths[i], &err), 0);
        assert_int_equal(image_open(&images[i], paths[i], true, &err), 0);
    }
    for (unsigned n = 0; n < sizeof(disks) / sizeof(*disks); n++) {
        unsigned from = disks[n].from;

        assert_int_equal(image_begin((char *[]){paths[from], paths[1]}, images + from, disks[n].to - from, &generation,
                                     &err), 0);
        assert_true(generation > last);
        last = generation + 100000000; /* epochs in which nothing is written */
    }
    image_stamp(&images[1], 0, 1, last + (UINT64_C(1) << 41));
    assert_int_equal(image_begin((char *[]){paths[0], paths[1]}, images, 2, &generation, &err), 0);
    assert_true(generation > last + (UINT64_C(1) << 41));
    for (unsigned i = 0; i < 2; i++)
        image_close(&images[i]);
}

static void test_damaged_record_is_refused_R10(void **state)
{
    char record[PATH_MAX];
    struct error err;
    uint8_t octet;
    int fd;

    (void)state;
    make_image(paths[0]);
    assert_int_equal(image_take(paths[0], &err), 0);
    image_record_path(paths[0], record);
    fd = open(record, O_RDWR);
    assert_int_equal(pread(fd, &octet, 1, 21), 1);
    octet ^= 0x55; /* of the id, which is random */
    assert_int_equal(pwrite(fd, &octet, 1, 21), 1);
    close(fd);
    assert_int_equal(image_take(paths[0], &err), -1);
    assert_non_null(strstr(err.text, record));
}

/* Whole, but not of this version, or impossible: what it says of the size would be mapped. */
static void test_records_that_make_no_sense_R10(void **state)
{
    static const struct image_record good = {.role = IMAGE_VALID, .id = 1, .size = DISK_SIZE, .clean = true, .epoch = 3,
                                             .changed = 4, .first = 5, .boot = "boot"},
                                     largest = {.role = IMAGE_STALE, .id = 1, .size = UINT64_C(1) << 46},
                                     bad[] = {
                                         {.role = 0, .id = 1, .size = 1},
                                         {.role = 4, .id = 1, .size = 1},
                                         {.role = IMAGE_VALID, .id = 0, .size = 1},
                                         {.role = IMAGE_VALID, .id = 1, .size = 0},
                                         {.role = IMAGE_VALID, .id = 1, .size = (UINT64_C(1) << 46) + 1},
                                     };
    struct image_record rec;
    char record[PATH_MAX];
    uint8_t octets[512];
    struct error err;

    (void)state;
    image_record_path(paths[0], record);
    assert_int_equal(image_write(paths[0], &largest, &err), 0);
    for (enum call call = WRITES; call <= SYNCS; call++) { /* it counts when it is durable */
        break_disk(record, call, EIO, 0);
        assert_int_equal(image_write(paths[0], &largest, &err), -1);
    }
    break_disk(NULL, 0, 0, 0);
    assert_int_equal(image_read(paths[0], &rec, &err), 1);
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        assert_int_equal(image_write(paths[0], &bad[i], &err), 0);
        assert_int_equal(image_read(paths[0], &rec, &err), -1);
    }
    for (unsigned at = 7; at <= 15; at += 8) { /* the last octet of its magic, of the size of its blocks */
        int fd = open(record, O_RDWR | O_CLOEXEC);
        uint64_t sum;

        assert_int_equal(image_write(paths[0], &good, &err), 0);
        assert_int_equal(image_read(paths[0], &rec, &err), 1);
        assert_true(rec.clean && rec.epoch == 3 && rec.changed == 4 && rec.first == 5 && strcmp(rec.boot, "boot") == 0);
        assert_int_equal(pread(fd, octets, sizeof(octets), 0), sizeof(octets));
        octets[at]++;
        sum = htobe64(XXH3_64bits(octets, sizeof(octets) - 8));
        memcpy(octets + sizeof(octets) - 8, &sum, 8);
        assert_int_equal(pwrite(fd, octets, sizeof(octets), 0), sizeof(octets));
        assert_int_equal(image_read(paths[0], &rec, &err), -1);
        assert_int_equal(ftruncate(fd, sizeof(octets) - 1), 0);
        assert_int_equal(image_read(paths[0], &rec, &err), -1);
        close(fd);
    }
    assert_non_null(strstr(err.text, record));
}

/* --- the journal --- */

#define EPOCHS 40
static struct disk_info infos[2] = {{DISK_SIZE, 0xa}, {DISK_SIZE, 0xb}};

/* What epoch N does: some random changes, the same at each call. */
static size_t changes(uint64_t epoch, uint8_t *out, uint8_t *model[2])
{
    unsigned seed = (unsigned)epoch * 77, count = 1 + (unsigned)rand_r(&seed) % 12;
    uint8_t *at = out;

    for (unsigned i = 0; i < count; i++) {
        uint32_t length = 512 * (1 + (uint32_t)rand_r(&seed) % 128);
        struct entry e = {ENTRY_WRITE + (unsigned)rand_r(&seed) % 3, (unsigned)rand_r(&seed) % 2, length,
                          (uint64_t)rand_r(&seed) % (DISK_SIZE - length), NULL, 0};
        uint8_t fill_with = e.kind == ENTRY_WRITE ? (uint8_t)(epoch * 16 + i) : 0;

        entry_put(at, &e);
        if (e.kind == ENTRY_WRITE)
            memset(at + ENTRY_HEAD, fill_with, length);
        at += entry_size(e.kind, length);
        if (model)
            memset(model[e.disk] + e.offset, fill_with, length);
    }
    return (size_t)(at - out);
}

static struct journal *open_journal(size_t mib)
{
    char *images[] = {paths[0], paths[1]};
    struct journal *j;
    struct error err;

    if (journal_open(&j, images, infos, 2, mib * MIB, &err) < 0)
        fail_msg("%s", err.text);
    return j;
}

static void send(struct journal *j, uint64_t epoch, uint64_t generation)
{
    static uint8_t buffer[2 * MIB];
    size_t length = changes(epoch, buffer, NULL);
    struct error err;

    if (journal_write(j, epoch, buffer, length, &err) < 0 || journal_end(j, generation, &err) < 0 ||
        journal_commit(j, epoch, &err) < 0)
        fail_msg("%s", err.text);
}

static void run_epochs(void)
{
    struct journal *j = open_journal(16);
    struct error err;

    if (journal_begin(j, infos, START_ANEW, &err) < 0)
        _exit(1);
    for (uint64_t epoch = 1; epoch <= EPOCHS; epoch++)
        send(j, epoch, 1000 + epoch);
    journal_close(j);
}

static bool images_are(uint8_t *model[2])
{
    static uint8_t content[DISK_SIZE];
    bool same = true;

    for (unsigned i = 0; i < 2 && same; i++) {
        int fd = open(paths[i], O_RDONLY);

        assert_int_equal(pread(fd, content, DISK_SIZE, 0), DISK_SIZE);
        close(fd);
        same = memcmp(content, model[i], DISK_SIZE) == 0;
    }
    return same;
}

/* After a crash in epoch `at` the images are at an epoch, and at the one whose generation the journal tells. */
static void check_after_crash(const char *fault, uint64_t at)
{
    uint8_t *model[2] = {calloc(1, DISK_SIZE), calloc(1, DISK_SIZE)};
    static uint8_t buffer[2 * MIB];
    struct journal *j = open_journal(16);
    uint64_t bases[2], epoch = 0;

    journal_bases(j, infos, bases);
    assert_int_equal(bases[0], bases[1]);
    while (bases[0] && epoch < bases[0] - 1000)
        changes(++epoch, buffer, model);
    if (!images_are(model))
        fail_msg("R4, R5: %s@%d: the images are not at epoch %d", fault, (int)at, (int)epoch);
    assert_true(epoch + 1 >= at || strcmp(fault, "disk-amid-apply") == 0);
    journal_close(j);
    free(model[0]);
    free(model[1]);
}

static void test_crash_at_each_step_R4_R5(void **state)
{
    static const char *const faults[] = {"disk-amid-write", "disk-before-commit", "disk-after-commit",
                                         "disk-amid-apply", "disk-before-free",   "disk-after-free"};

    (void)state;
    for (size_t f = 0; f < sizeof(faults) / sizeof(*faults); f++)
        for (uint64_t at = 2; at < EPOCHS; at += 9) {
            char fault[64];
            int status;
            pid_t child = fork();

            if (child == 0) {
                /* The thread frees room at epochs of its own choice: crash at the first of these. */
                snprintf(fault, sizeof(fault), strstr(faults[f], "free") ? "%s" : "%s@%d", faults[f], (int)at);
                fault_set(fault, NULL);
                run_epochs();
                _exit(0);
            }
            waitpid(child, &status, 0);
            assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
            check_after_crash(faults[f], strstr(faults[f], "free") ? 0 : at);
            for (unsigned i = 0; i < 2; i++) {
                char path[PATH_MAX];

                unlink(paths[i]);
                snprintf(path, sizeof(path), "%s.remus-journal", paths[i]);
                unlink(path);
            }
        }
}

static void test_uncommitted_changes_never_reach_the_images_R5(void **state)
{
    uint8_t *model[2] = {calloc(1, DISK_SIZE), calloc(1, DISK_SIZE)};
    static uint8_t buffer[2 * MIB];
    struct journal *j = open_journal(16);
    struct journal_stats stats;
    struct image_record rec;
    struct error err;
    size_t length;

    (void)state;
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    length = changes(100, buffer, model);
    assert_int_equal(journal_write(j, 0, buffer, length, &err), 0); /* synchronising: at once */
    assert_true(images_are(model));
    assert_int_equal(journal_commit(j, 1, &err), -1); /* R2: not without its end */
    assert_int_equal(journal_end(j, 1, &err), 0);
    assert_int_equal(journal_end(j, 1, &err), -1);
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    send(j, 1, 1001);
    changes(1, buffer, model);
    length = changes(2, buffer, NULL);
    assert_int_equal(journal_write(j, 2, buffer, length, &err), 0);
    assert_int_equal(journal_begin(j, infos, START_RESUME, &err), 0);       /* the link broke */
    send(j, 3, 1003);
    changes(3, buffer, model);
    assert_int_equal(journal_activate(j, 2, &err), -1);             /* that is not the memory's checkpoint */
    assert_int_equal(journal_activate(j, 3, &err), 0);
    assert_true(images_are(model));
    journal_stats(j, &stats);
    assert_true(stats.whole);
    journal_close(j);
    assert_int_equal(image_read(paths[0], &rec, &err), 1);
    assert_int_equal(rec.role, IMAGE_VALID);
    assert_int_equal(rec.epoch, 3);
    /* The guest ran from it: nobody makes a replica of it. */
    assert_int_equal(journal_open(&j, (char *[]){paths[0], paths[1]}, infos, 2, 16 * MIB, &err), -1);
    assert_non_null(strstr(err.text, "valid"));
    free(model[0]);
    free(model[1]);
}

/*
 * A page that is a block: read as of the generation meant, however far the images are, or refused.  The epochs write all over
 * the disks, so the block is put where `changes' left something in the last.
 */
static void test_blocks_are_read_as_of_their_generation_R4_R5_R10(void **state)
{
    uint8_t *model[2] = {calloc(1, DISK_SIZE), calloc(1, DISK_SIZE)}, page[PROTO_BLOCK_SIZE];
    struct journal *j = open_journal(16);
    static uint8_t buffer[2 * MIB];
    struct proto_block b = {0};
    struct error err;

    (void)state;
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    b.hash = XXH3_64bits(page, sizeof(page));
    assert_int_equal(journal_read(j, &b, page, &err), -1); /* nothing is whole */
    for (uint64_t epoch = 1; epoch <= EPOCHS; epoch++) {
        send(j, epoch, 1000 + epoch);
        changes(epoch, buffer, model);
        for (unsigned i = 0; i < 20; i++) { /* at once: the thread has not applied it yet */
            b.disk = i % 2;
            b.block = (uint32_t)((epoch * 7 + i * 13) % (DISK_SIZE / PROTO_BLOCK_SIZE));
            b.generation = 1000 + epoch;
            b.hash = XXH3_64bits(model[b.disk] + b.block * PROTO_BLOCK_SIZE, PROTO_BLOCK_SIZE);
            if (journal_read(j, &b, page, &err) < 0)
                fail_msg("%s", err.text);
            assert_memory_equal(page, model[b.disk] + b.block * PROTO_BLOCK_SIZE, PROTO_BLOCK_SIZE);
        }
    }
    b.generation++;
    assert_int_equal(journal_read(j, &b, page, &err), -1); /* of an epoch that is not here */
    assert_non_null(strstr(err.text, "generation"));
    b.generation--;
    b.hash ^= 1;
    assert_int_equal(journal_read(j, &b, page, &err), -1);
    assert_non_null(strstr(err.text, "does not hold"));
    b.hash ^= 1;
    b.disk = 2;
    assert_int_equal(journal_read(j, &b, page, &err), -1);
    b.disk = 0;
    b.block = DISK_SIZE / PROTO_BLOCK_SIZE;
    assert_int_equal(journal_read(j, &b, page, &err), -1);
    b.block = UINT32_MAX;
    assert_int_equal(journal_read(j, &b, page, &err), -1);
    /* A new link that begins with a disk that is not whole: the images are at no generation. */
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    b = (struct proto_block){.generation = 1001};
    assert_int_equal(journal_read(j, &b, page, &err), -1);
    assert_non_null(strstr(err.text, "not here"));
    journal_close(j);
    free(model[0]);
    free(model[1]);
}

/* --- errors of the disk --- */

static void await_failure(struct journal *j, const char *path)
{
    uint64_t until = clock_ns() + 60 * NS_PER_S;
    struct error err = {""};

    while (journal_check(j, &err) == 0 && clock_ns() < until)
        usleep(1000);
    if (!strstr(err.text, path) || !strstr(err.text, strerror(EIO)))
        fail_msg("%s", err.text);
}

static void await_free(struct journal *j)
{
    uint64_t until = clock_ns() + 60 * NS_PER_S;
    struct journal_stats stats;

    do {
        usleep(1000);
        journal_stats(j, &stats);
    } while (stats.used_bytes && clock_ns() < until);
}

/* Nothing is committed, read or activated any more; the next start brings the images to the last epoch that was. */
static void assert_given_up_and_mended(struct journal *j, uint64_t epoch, uint8_t *model[2])
{
    struct proto_block block = {.generation = 1001};
    uint8_t entry[ENTRY_HEAD], page[PROTO_BLOCK_SIZE];
    struct image_record rec;
    uint64_t bases[2];
    struct error err;

    entry_put(entry, &(struct entry){.kind = ENTRY_ZERO, .length = 512});
    assert_int_equal(journal_write(j, 9, entry, ENTRY_HEAD, &err), -1);
    assert_int_equal(journal_end(j, 1009, &err), 0);
    assert_int_equal(journal_commit(j, 9, &err), -1);
    assert_int_equal(journal_read(j, &block, page, &err), -1);
    assert_int_equal(journal_begin(j, infos, START_RESUME, &err), -1);
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), -1);
    assert_int_equal(journal_activate(j, epoch, &err), -1);
    assert_non_null(strstr(err.text, strerror(EIO)));
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(image_read(paths[i], &rec, &err), 1);
        assert_int_equal(rec.role, IMAGE_REPLICA);
    }
    journal_close(j);
    break_disk(NULL, 0, 0, 0);
    j = open_journal(4);
    journal_bases(j, infos, bases);
    assert_true(bases[0] == 1000 + epoch && bases[1] == 1000 + epoch && journal_whole(j));
    assert_true(images_are(model));
    journal_close(j);
}

/* A hole in disk 0, and data on disk 1. */
static size_t both_disks(uint8_t *out, uint8_t *model[2])
{
    struct entry hole = {.kind = ENTRY_TRIM, .length = 9000}, data = {.kind = ENTRY_WRITE, .disk = 1, .length = 4096};

    entry_put(out, &hole);
    entry_put(out + ENTRY_HEAD, &data);
    memset(out + 2 * ENTRY_HEAD, 0xdd, data.length);
    memset(model[0], 0, hole.length);
    memset(model[1], 0xdd, data.length);
    return ENTRY_HEAD + entry_size(data.kind, data.length);
}

static void test_errors_while_applying_end_the_replica_R4_R5(void **state)
{
    uint8_t *model[2] = {calloc(1, DISK_SIZE), calloc(1, DISK_SIZE)};
    static uint8_t buffer[2 * MIB];
    char path[PATH_MAX];
    const struct {
        const char *path;
        enum call call;
        int after;
    } cases[] = {{path, SYNCS, 0}, {paths[1], WRITES, 0}, {paths[0], CLEARS, 0}, {paths[1], SYNCS, 1}, {path, SYNCS, 1}};

    (void)state;
    for (unsigned n = 0; n < sizeof(cases) / sizeof(*cases); n++) {
        bool first = cases[n].after; /* room is given back at once, behind the first epoch only */
        uint64_t at = 1;
        struct journal *j;
        struct error err;

        snprintf(path, sizeof(path), "%s.remus-journal", paths[0]);
        memset(model[0], 0, DISK_SIZE);
        memset(model[1], 0, DISK_SIZE);
        j = open_journal(4);
        assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
        if (!first) {
            changes(at, buffer, model);
            send(j, at++, 1001);
            await_free(j);
        }
        break_disk(cases[n].path, cases[n].call, EIO, cases[n].after);
        if (journal_write(j, at, buffer, both_disks(buffer, model), &err) < 0 ||
            journal_end(j, 1000 + at, &err) < 0 || journal_commit(j, at, &err) < 0)
            fail_msg("%s", err.text);
        await_failure(j, cases[n].path);
        if (n == 0) { /* R5: what is not durable in the journal is in no image */
            memset(model[0], 0, DISK_SIZE);
            memset(model[1], 0, DISK_SIZE);
            changes(1, buffer, model);
            assert_true(images_are(model));
            both_disks(buffer, model);
        }
        assert_given_up_and_mended(j, at, model);
        tear_down(NULL);
        set_up(NULL);
    }
    free(model[0]);
    free(model[1]);
}

/* Before the mark of an epoch, or of none, is written, the images are durable. */
static void test_errors_while_synchronising_are_told_R2_R5(void **state)
{
    static uint8_t buffer[2 * MIB];
    struct journal *j = open_journal(4);
    uint64_t bases[2];
    struct error err;
    size_t length = changes(1, buffer, NULL);

    (void)state;
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    assert_int_equal(journal_write(j, 0, buffer, length, &err), 0);
    assert_int_equal(journal_end(j, 1001, &err), 0);
    break_disk(paths[1], SYNCS, EIO, 0);
    assert_int_equal(journal_commit(j, 1, &err), -1);
    assert_false(journal_whole(j));
    journal_close(j);
    break_disk(NULL, 0, 0, 0);
    j = open_journal(4);
    journal_bases(j, infos, bases);
    assert_true(bases[0] == 0 && !journal_whole(j));
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    break_disk(paths[0], WRITES, ENOSPC, 0);
    entry_put(buffer, &(struct entry){.kind = ENTRY_WRITE, .length = 4096});
    assert_int_equal(journal_write(j, 0, buffer, entry_size(ENTRY_WRITE, 4096), &err), -1);
    assert_non_null(strstr(err.text, strerror(ENOSPC)));
    break_disk(NULL, 0, 0, 0);
    send(j, 1, 1001);
    await_free(j);
    for (unsigned i = 0; i < 2; i++) { /* not of the old epoch any more: not before that is durable */
        char path[PATH_MAX];

        snprintf(path, sizeof(path), "%s%s", paths[0], i ? ".remus-journal" : "");
        break_disk(path, SYNCS, EIO, 0);
        assert_int_equal(journal_begin(j, infos, START_ANEW, &err), -1);
        journal_close(j);
        break_disk(NULL, 0, 0, 0);
        j = open_journal(4);
        journal_bases(j, infos, bases);
        assert_true(i || (bases[0] == 1001 && journal_whole(j)));
    }
    journal_close(j);
}

/* Not every file system makes holes, nor every device zeros of less than its sector. */
static void test_zeros_are_written_where_none_can_be_made_R5(void **state)
{
    uint8_t *model[2] = {calloc(1, DISK_SIZE), calloc(1, DISK_SIZE)};
    static uint8_t buffer[2 * MIB];
    struct journal *j = open_journal(4);
    struct error err;
    struct entry e = {.kind = ENTRY_TRIM, .length = 200000, .offset = 512};

    (void)state;
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    for (unsigned i = 1; i <= 2; i++) {
        break_disk(paths[0], CLEARS, i == 1 ? EOPNOTSUPP : EINVAL, 0);
        changes(i, buffer, model);
        send(j, i, 1000 + i);
    }
    entry_put(buffer, &e);
    memset(model[0] + e.offset, 0, e.length);
    assert_int_equal(journal_write(j, 3, buffer, ENTRY_HEAD, &err), 0);
    assert_int_equal(journal_end(j, 1003, &err), 0);
    assert_int_equal(journal_commit(j, 3, &err), 0);
    journal_close(j);
    assert_true(images_are(model));
    free(model[0]);
    free(model[1]);
}

static void commit_one(void)
{
    struct journal *j = open_journal(4);
    struct error err;

    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    send(j, 1, 1001);
    journal_close(j);
}

/* One image is valid, so all are; with none, none becomes so. */
static void test_activation_that_was_cut_short_is_finished_R5(void **state)
{
    char *images[] = {paths[0], paths[1]};
    struct error err;

    (void)state;
    commit_one();
    for (unsigned valid = 0; valid < 2; valid++) {
        if (valid) {
            assert_int_equal(image_validate(paths[1], 7, &err), 0);
            assert_int_equal(journal_recover(images, 2, false, &err), -1);
        }
        assert_int_equal(journal_recover(images, 2, true, &err), 1);
        for (unsigned i = 0; i < 2; i++) {
            struct image_record rec;

            assert_int_equal(image_read(paths[i], &rec, &err), 1);
            assert_int_equal(rec.role, valid ? IMAGE_VALID : IMAGE_REPLICA);
            assert_int_equal(rec.epoch, valid ? 7 : 0);
        }
    }
}

/* An image that is lost or replaced while nobody looks has nothing of what the journal beside the first knows of it. */
static void test_image_that_is_gone_is_no_base_R5(void **state)
{
    static const struct {
        bool image, record; /* is removed */
        unsigned disk;
    } cases[] = {{false, false, 0}, {true, false, 0}, {false, true, 0}, {true, false, 1}, {false, true, 1}, {true, true, 1}};
    char *images[] = {paths[0], paths[1]};
    struct error err;

    (void)state;
    for (unsigned n = 0; n < sizeof(cases) / sizeof(*cases); n++) {
        bool gone = cases[n].image || cases[n].record;
        const char *path = paths[cases[n].disk];
        char record[PATH_MAX];
        uint64_t bases[2];
        struct journal *j;

        commit_one();
        image_record_path(path, record);
        if ((cases[n].image && unlink(path) < 0) || (cases[n].record && unlink(record) < 0))
            fail();
        assert_int_equal(journal_recover(images, 2, false, &err), gone ? -1 : 1);
        if (gone && !strstr(err.text, path))
            fail_msg("%s", err.text);
        assert_int_equal(access(path, F_OK) == 0, !cases[n].image); /* not made anew */
        if (cases[n].disk == 0 && gone) { /* the first try fails half way */
            struct disk_info other[] = {infos[0], {DISK_SIZE + 512, 0xb}};

            assert_int_equal(journal_open(&j, images, other, 2, 4 * MIB, &err), -1);
        }
        j = open_journal(4);
        journal_bases(j, infos, bases);
        assert_true(bases[0] == (gone ? 0 : 1001) && bases[1] == bases[0]);
        assert_int_equal(journal_whole(j), !gone);
        journal_close(j);
        tear_down(NULL);
        set_up(NULL);
    }
    commit_one();
    assert_int_equal(image_disown(paths[1], 5, &err), 0);
    assert_int_equal(journal_recover(images, 2, false, &err), -1);
    assert_non_null(strstr(err.text, "no replica any more"));
}

/* Synchronising over an epoch that is kept: the images stay at it until the next commit. */
static void test_old_epoch_is_kept_until_the_next_is_whole_R4_R5(void **state)
{
    (void)state;
    for (int end = 0; end < 3; end++) {
        uint8_t *model[2] = {calloc(1, DISK_SIZE), calloc(1, DISK_SIZE)};
        static uint8_t buffer[2 * MIB];
        struct journal *j = open_journal(16);
        uint64_t octets = 0, at = 100, from = at;
        struct error err;

        assert_false(journal_can_keep(j, infos));
        assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
        assert_false(journal_can_keep(j, infos));
        send(j, 7, 1007);
        assert_true(journal_can_keep(j, infos));
        assert_false(journal_can_keep(j, (struct disk_info[]){infos[0], {infos[1].size, infos[1].id + 1}}));
        for (int again = 0; again < 2; again++) { /* the first link breaks */
            assert_int_equal(journal_begin(j, infos, START_KEEP, &err), 0);
            from = at;
            for (octets = 0; octets < (end == 2 ? 9 * MIB : MIB); at++) {
                size_t length = changes(at, buffer, NULL);

                assert_int_equal(journal_write(j, 0, buffer, length, &err), 0);
                octets += length;
            }
            if (end == 2)
                break;
        }
        assert_int_equal(journal_whole(j), end != 2);
        changes(7, buffer, model);
        if (end == 2) /* R9: the journal is too small, the old epoch was given up */
            assert_int_equal(journal_activate(j, 7, &err), -1);
        if (end) {
            if (journal_end(j, 1008, &err) < 0 || journal_commit(j, 1, &err) < 0)
                fail_msg("%s", err.text);
            while (from < at)
                changes(from++, buffer, model);
        }
        assert_int_equal(journal_activate(j, end ? 1 : 7, &err), 0);
        assert_true(images_are(model));
        journal_close(j);
        tear_down(NULL);
        set_up(NULL);
        free(model[0]);
        free(model[1]);
    }
}

/* --- what the loss of the host may leave in the journal --- */

static void file_content(const char *path, uint8_t *content, size_t length, bool put)
{
    int fd = open(path, O_RDWR);

    if (put)
        assert_int_equal(pwrite(fd, content, length, 0), length);
    else
        assert_int_equal(pread(fd, content, length, 0), length);
    close(fd);
}

/* Two records of epoch 2. */
static void two_records(struct journal *j, uint8_t value, uint8_t *out)
{
    struct entry e = {.kind = ENTRY_WRITE, .length = 4096};
    size_t size = entry_size(e.kind, e.length);
    struct error err;

    for (unsigned i = 0; i < 2; i++) {
        e.offset = i * 8192;
        entry_put(out + i * size, &e);
        memset(out + i * size + ENTRY_HEAD, value + (int)i, e.length);
        assert_int_equal(journal_write(j, 2, out + i * size, size, &err), 0);
    }
}

/* Replays this journal over the images of epoch 1. */
static uint64_t replayed(const char *path, uint8_t *content, size_t length, uint8_t *model[2])
{
    uint64_t bases[2];
    struct journal *j;

    file_content(path, content, length, true);
    for (int i = 0; i < 2; i++)
        file_content(paths[i], model[i], DISK_SIZE, true);
    j = open_journal(16);
    journal_bases(j, infos, bases);
    journal_close(j);
    return bases[0];
}

/* A record counts only behind the very one that it was written behind, and whole. */
static void test_torn_end_of_the_journal_never_counts_R4_R5(void **state)
{
    enum { LENGTH = 4096 + 16 * MIB, RECORD = 40 + 16 + 4096 };
    uint8_t *model[2] = {calloc(1, DISK_SIZE), calloc(1, DISK_SIZE)}, entries[2 * (16 + 4096)];
    uint8_t *cut = malloc(LENGTH), *whole = malloc(LENGTH), *mixed = malloc(LENGTH);
    static uint8_t buffer[2 * MIB];
    struct journal *j = open_journal(16);
    struct journal_stats stats;
    struct error err;
    char path[PATH_MAX];
    uint64_t tail = 0;

    (void)state;
    snprintf(path, sizeof(path), "%s.remus-journal", paths[0]);
    changes(1, buffer, model);
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    send(j, 1, 1001);
    do {
        usleep(1000);
        journal_stats(j, &stats);
    } while (stats.used_bytes);
    two_records(j, 0x11, entries);
    file_content(path, cut, LENGTH, false);
    assert_int_equal(journal_begin(j, infos, START_RESUME, &err), 0); /* the link broke */
    two_records(j, 0x22, entries);
    assert_int_equal(journal_end(j, 1002, &err), 0);
    assert_int_equal(journal_commit(j, 2, &err), 0);
    journal_close(j);
    file_content(path, whole, LENGTH, false);
    for (unsigned i = 16; i < 24; i++)
        tail = tail << 8 | whole[i];
    tail += 4096;
    memcpy(mixed, whole, LENGTH);
    memcpy(mixed + tail + RECORD, cut + tail + RECORD, RECORD); /* in place of the second */
    assert_int_equal(replayed(path, mixed, LENGTH, model), 1001);
    assert_true(images_are(model));
    for (unsigned i = 0; i < 2 * RECORD + 48; i += i < 40 ? 8 : 977) {
        memcpy(mixed, whole, LENGTH);
        mixed[tail + i] ^= 0x40;
        assert_int_equal(replayed(path, mixed, LENGTH, model), 1001);
        assert_true(images_are(model));
    }
    for (unsigned i = 20; i < 2 * RECORD + 48; i += RECORD) { /* the file ends in a record */
        assert_int_equal(truncate(path, 0), 0);
        alarm(60);
        assert_int_equal(replayed(path, whole, tail + i, model), 1001);
        alarm(0);
        assert_true(images_are(model));
    }
    assert_int_equal(replayed(path, whole, LENGTH, model), 1002);
    memset(model[0], 0x22, 4096);
    memset(model[0] + 8192, 0x23, 4096);
    assert_true(images_are(model));
    free(cut);
    free(whole);
    free(mixed);
    free(model[0]);
    free(model[1]);
}

static size_t put_block(uint8_t *out, unsigned block, uint8_t value, uint64_t *hash)
{
    struct entry e = {.kind = ENTRY_WRITE, .length = ENTRY_CHECK_MAX, .offset = block * ENTRY_CHECK_MAX};

    entry_put(out, &e);
    memset(out + ENTRY_HEAD, value, e.length);
    *hash = XXH3_64bits(out + ENTRY_HEAD, e.length);
    return entry_size(e.kind, e.length);
}

static size_t put_check(uint8_t *out, unsigned block, uint64_t hash)
{
    struct entry e = {.kind = ENTRY_CHECK, .length = ENTRY_CHECK_MAX, .offset = block * ENTRY_CHECK_MAX, .hash = hash};

    entry_put(out, &e);
    return entry_size(e.kind, e.length);
}

static void await_compared(struct journal *j, struct proto_compared *c, uint64_t octets)
{
    *c = (struct proto_compared){0};
    while (octets) {
        struct proto_compared more;

        if (!journal_compared(j, &more)) {
            usleep(1000);
            continue;
        }
        octets -= more.octets;
        for (unsigned i = 0; i < more.count; i++) { /* a range may come in parts */
            struct proto_range *last = c->count ? &c->differ[c->count - 1] : NULL;

            if (last && last->disk == more.differ[i].disk && last->offset + last->length == more.differ[i].offset)
                last->length += more.differ[i].length;
            else
                c->differ[c->count++] = more.differ[i];
        }
    }
    assert_false(journal_compared(j, c + 1));
}

/* A check means the image between the change before it and the one behind it; of an epoch that is committed. */
static void test_checks_mean_their_place_among_the_changes_R5(void **state)
{
    static uint8_t buffer[2 * MIB];
    struct journal *j = open_journal(16);
    struct proto_compared c[2];
    uint64_t hash, other;
    struct error err;
    size_t n = 0;

    (void)state;
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    for (unsigned round = 0; round < 3; round++) { /* the same block again and again, as it was each time */
        n += put_block(buffer + n, 5, (uint8_t)round, &hash);
        n += put_check(buffer + n, 5, hash);
    }
    n += put_block(buffer + n, 63, 9, &other);
    for (unsigned block = 61; block < 64; block++)
        n += put_check(buffer + n, block, hash);
    assert_int_equal(journal_write(j, 1, buffer, n, &err), 0);
    assert_false(journal_compared(j, &c[0]));
    assert_int_equal(journal_end(j, 7, &err), 0);
    assert_int_equal(journal_commit(j, 1, &err), 0);
    await_compared(j, c, 6 * ENTRY_CHECK_MAX);
    assert_int_equal(c[0].count, 1);
    assert_int_equal(c[0].differ[0].offset, 61 * ENTRY_CHECK_MAX);
    assert_int_equal(c[0].differ[0].length, 3 * ENTRY_CHECK_MAX);
    journal_close(j);
    j = open_journal(16); /* what is applied again is not at that point any more */
    assert_false(journal_compared(j, &c[0]));
    assert_true(journal_may_be_alike(j, 0));
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    n = put_check(buffer, 63, other); /* synchronising: at once */
    n += put_check(buffer + n, 5, other);
    assert_int_equal(journal_write(j, 0, buffer, n, &err), 0);
    await_compared(j, c, 2 * ENTRY_CHECK_MAX);
    assert_int_equal(c[0].count, 1);
    assert_int_equal(c[0].differ[0].offset, 5 * ENTRY_CHECK_MAX);
    journal_close(j);
}

/* Many times round the ring; then one epoch that does not fit. */
static void test_journal_is_bounded_R9(void **state)
{
    static uint8_t buffer[2 * MIB];
    uint8_t *model[2] = {calloc(1, DISK_SIZE), calloc(1, DISK_SIZE)};
    struct journal *j = open_journal(16);
    struct entry e = {ENTRY_WRITE, 0, ENTRY_DATA_MAX, 0, NULL, 0};
    struct journal_stats stats;
    struct error err;
    struct stat st;
    char path[PATH_MAX];
    unsigned n = 0;

    (void)state;
    snprintf(path, sizeof(path), "%s.remus-journal", paths[0]);
    assert_int_equal(journal_begin(j, infos, START_ANEW, &err), 0);
    for (uint64_t epoch = 1; epoch <= 300; epoch++) {
        send(j, epoch, epoch);
        changes(epoch, buffer, model);
        journal_stats(j, &stats);
        assert_true(stats.used_bytes <= stats.max_bytes);
    }
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 4096 + 16 * MIB);
    entry_put(buffer, &e);
    while (journal_write(j, 301, buffer, entry_size(e.kind, e.length), &err) == 0)
        n++;
    assert_in_range(n, 40, 64);
    assert_non_null(strstr(err.text, "disk-journal"));
    assert_int_equal(journal_begin(j, infos, START_RESUME, &err), 0);
    assert_int_equal(journal_activate(j, 300, &err), 0);
    assert_true(images_are(model));
    journal_close(j);
    free(model[0]);
    free(model[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_entries_are_checked_R10, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_entries_at_their_limits_R10, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_queue_keeps_order_and_barrier_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_entries_at_the_end_of_the_ring_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_ranges_that_entries_touch_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_full_queue_waits_but_not_for_the_dead_R9, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_death_with_the_lock_does_no_harm_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_wrong_queue_file_is_refused_R10, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_page_is_a_block_only_as_the_backup_has_it_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_blocks_are_read_as_of_their_generation_R4_R5_R10, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_epoch_ends_at_its_barrier_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stamps_tell_what_a_copy_lacks_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_image_that_is_not_the_one_it_was_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_images_of_any_size_and_none, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_generations_grow_over_all_servers_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_records_that_make_no_sense_R10, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged_record_is_refused_R10, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_crash_at_each_step_R4_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_uncommitted_changes_never_reach_the_images_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_errors_while_applying_end_the_replica_R4_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_errors_while_synchronising_are_told_R2_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_zeros_are_written_where_none_can_be_made_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_activation_that_was_cut_short_is_finished_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_image_that_is_gone_is_no_base_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_old_epoch_is_kept_until_the_next_is_whole_R4_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_torn_end_of_the_journal_never_counts_R4_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_checks_mean_their_place_among_the_changes_R5, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_journal_is_bounded_R9, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
