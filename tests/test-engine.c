/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The whole checkpoint path in one process: a fake guest, the primary's engine, a memory channel, and the
 * backup's receiver behind it.  The backup of this test decides when to acknowledge and when to break the link.
 *
 *   R1  a release follows the acknowledgement of that epoch, never precedes it
 *   R2  what is acknowledged is whole: the replica equals the guest, byte for byte
 *   R4  a link that breaks in the middle of a checkpoint leaves the replica at the checkpoint before
 *   R8  the order inside the pause
 *   R5  pages that are blocks of a disk: as of the very version meant, however often they are overwritten; checksums of
 *       blocks: at their very place among the changes
 *   R9  no memory grows over 10,000 epochs; a staging buffer that is too small slows down and loses nothing
 */
#include <setjmp.h>
#include <stdarg.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cmocka.h>

#include "backup/receiver.h"
#include "common/clock.h"
#include "disk/image.h"
#include "disk/journal.h"
#include "disk/server.h"
#include "remusd/engine.h"
#include "vm/fake/fake.h"

#define MEMORY (32u << 20)

/* --- a port that only remembers --- */

struct log_port {
    struct port port;
    _Atomic uint64_t barrier, released;
    _Atomic uint64_t *acked; /* what the backup has acknowledged */
    _Atomic bool early;      /* a release came before its acknowledgement: R1 broken */
    _Atomic bool held;
};

static int log_barrier(struct port *p, uint64_t epoch, struct buffer *net)
{
    struct log_port *l = (struct log_port *)p;

    l->barrier = epoch;
    return buffer_append(net, "net", 3);
}

static void log_release(struct port *p, uint64_t epoch)
{
    struct log_port *l = (struct log_port *)p;

    if (epoch > *l->acked || epoch > l->barrier)
        l->early = true;
    l->released = epoch;
}

static void log_hold(struct port *p)
{
    ((struct log_port *)p)->held = true;
}

static const struct port_ops log_ops = {
    .name = "log", .barrier = log_barrier, .release = log_release, .hold = log_hold};

/* --- a backup --- */

struct backup {
    struct link *link;
    struct receiver *receiver;
    struct journal *journal; /* NULL: no disks */
    pthread_t thread;
    _Atomic uint64_t acked, applied;
    _Atomic uint64_t withhold;      /* acknowledge nothing from this epoch on */
    _Atomic uint64_t break_after;   /* break the link after so many records; 0: never */
    _Atomic bool failed;
    char why[512];
};

static void tell_compared(struct backup *b)
{
    struct proto_compared c;
    uint8_t body[PROTO_SMALL_MAX];
    struct iovec iov = {.iov_base = body};

    while (b->journal && journal_compared(b->journal, &c)) {
        iov.iov_len = proto_put_compared(body, &c);
        link_send(b->link, PROTO_COMPARED, 0, &iov, 1);
    }
}

static void *backup_run(void *arg)
{
    struct backup *b = arg;

    for (;;) {
        struct record rec;
        struct error err;
        enum link_result r = link_recv(b->link, &rec, b->journal ? clock_ns() + NS_PER_MS : TIME_NEVER, &err);

        tell_compared(b);
        if (r != LINK_RECORD && r != LINK_TIMEOUT)
            return NULL;
        if (r == LINK_TIMEOUT || rec.type == PROTO_HEARTBEAT)
            continue;
        if (b->break_after && --b->break_after == 0) {
            link_shutdown(b->link);
            return NULL;
        }
        switch (receiver_record(b->receiver, &rec, &err)) {
        case RECEIVER_WHOLE:
            if (rec.epoch < b->withhold)
                b->acked = rec.epoch;
            receiver_apply(b->receiver);
            b->applied = rec.epoch;
            if (rec.epoch < b->withhold)
                link_send_empty(b->link, PROTO_ACK, rec.epoch);
            break;
        case RECEIVER_MORE:
            break;
        case RECEIVER_ERROR:
            snprintf(b->why, sizeof(b->why), "%s", err.text);
            b->failed = true;
            link_shutdown(b->link);
            return NULL;
        }
    }
}

/* --- both together --- */

struct pair {
    char run_dir[64];
    struct vm_config cfg;
    struct vm *vm;
    struct log_port port;
    struct engine engine;
    struct backup backup;
    uint8_t *replica;
};

/* A test that fails leaves in the middle: its guest must not stay behind. */
static struct vm *running;

static void end_guest(void)
{
    if (running)
        running->ops->destroy(running);
    running = NULL;
}

static void setup(struct pair *p, const char *pattern, unsigned rate, size_t staging)
{
    struct error err = {""};

    memset(p, 0, sizeof(*p));
    snprintf(p->run_dir, sizeof(p->run_dir), "/tmp/remus-test-XXXXXX");
    assert_non_null(mkdtemp(p->run_dir));
    p->cfg = (struct vm_config){
        .name = "fake1",
        .run_dir = p->run_dir,
        .backup = "",
        .interval_ms = 5,
        .heartbeat_ms = 20,
        .timeout_ms = 5000,
        .arbiter = "",
        .compression = "auto",
        .compression_threads = 1,
        .staging_bytes = staging,
        .platform = "fake",
        .memory_bytes = MEMORY,
        .cpus = 1,
        .tracker = "auto",
        .tap = "",
        .mac = "",
        .fake_rate = rate,
        .fake_pattern = (char *)pattern,
    };
    if (vm_platform("fake")->open(&p->vm, &p->cfg, &err) < 0)
        fail_msg("%s", err.text);
    running = p->vm;
    p->port = (struct log_port){.port.ops = &log_ops, .acked = &p->backup.acked};
    engine_init(&p->engine, &p->cfg);
    assert_int_equal(engine_open(&p->engine, p->vm, &p->port.port, &err), 0);
    p->replica = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(p->replica, MAP_FAILED);
    p->backup.receiver = receiver_new(p->replica, MEMORY / PAGE_SIZE, MEMORY);
    p->backup.withhold = UINT64_MAX;
}

/* committed: as WELCOME says it, 0 to send everything. */
static void connect_pair(struct pair *p, uint64_t committed)
{
    struct chan *ends[2];
    struct error err = {""};

    assert_int_equal(mem_chan_pair(ends, 1 << 20), 0);
    receiver_start(p->backup.receiver, committed ? START_RESUME : START_ANEW);
    if (!committed)
        p->backup.applied = 0;
    p->backup.link = link_new(ends[1]);
    assert_non_null(p->backup.link);
    assert_int_equal(link_start_heartbeats(p->backup.link, 20 * NS_PER_MS), 0);
    assert_int_equal(pthread_create(&p->backup.thread, NULL, backup_run, &p->backup), 0);
    assert_int_equal(engine_attach(&p->engine, link_new(ends[0]), committed, &err), 0);
}

static void disconnect_pair(struct pair *p)
{
    engine_detach(&p->engine);
    pthread_join(p->backup.thread, NULL);
    link_free(p->backup.link);
    if (p->backup.failed)
        fail_msg("backup: %s", p->backup.why);
}

static void teardown(struct pair *p)
{
    engine_free(&p->engine);
    end_guest();
    receiver_free(p->backup.receiver);
    munmap(p->replica, MEMORY);
    rmdir(p->run_dir);
}

/* Waits for the acknowledgement of everything taken; false when the link ended. */
static bool settle(struct pair *p)
{
    struct engine *e = &p->engine;
    bool up;

    pthread_mutex_lock(&e->lock);
    while (e->link_end == LINK_UP && e->pacer.acked < e->pacer.taken)
        engine_wait(e, TIME_NEVER);
    up = e->link_end == LINK_UP;
    pthread_mutex_unlock(&e->lock);
    return up;
}

static uint64_t in_flight(struct pair *p)
{
    uint64_t count;

    pthread_mutex_lock(&p->engine.lock);
    count = p->engine.pacer.taken - p->engine.pacer.acked;
    pthread_mutex_unlock(&p->engine.lock);
    return count;
}

static void assert_equal(struct pair *p)
{
    for (uint64_t i = 0; i < p->vm->pages; i++)
        if (memcmp(p->vm->memory + i * PAGE_SIZE, p->replica + i * PAGE_SIZE, PAGE_SIZE) != 0)
            fail_msg("page %lu differs at checkpoint %lu", (unsigned long)i,
                     (unsigned long)p->engine.pacer.taken);
}

static void sync_pair(struct pair *p)
{
    struct error err = {""};

    connect_pair(p, 0);
    assert_int_equal(engine_precopy(&p->engine, &err), 0);
}

/* --- tests --- */

static void test_replica_equals_guest_R2(void **state)
{
    struct pair p;
    struct error err = {""};

    (void)state;
    setup(&p, "random", 50000, 8 << 20);
    sync_pair(&p);
    for (int i = 0; i < 60; i++) {
        assert_int_equal(engine_checkpoint(&p.engine, false, &err), 0);
        assert_true(settle(&p));
        assert_equal(&p);
        assert_int_equal(p.vm->ops->resume(p.vm, &err), 0);
        clock_sleep_until(clock_ns() + 3 * NS_PER_MS);
    }
    assert_false(p.port.early);
    assert_int_equal(p.port.released, p.engine.pacer.taken);
    disconnect_pair(&p);
    teardown(&p);
}

static void test_no_release_without_ack_R1(void **state)
{
    struct pair p;
    struct error err = {""};

    (void)state;
    setup(&p, "random", 20000, 8 << 20);
    sync_pair(&p);
    assert_false(p.port.held); /* before the first checkpoint nothing is held back */
    for (int i = 0; i < 10; i++) {
        assert_int_equal(engine_checkpoint(&p.engine, true, &err), 0);
        assert_true(settle(&p));
    }
    assert_true(p.port.held);
    p.backup.withhold = 11;
    assert_int_equal(engine_checkpoint(&p.engine, true, &err), 0);
    assert_int_equal(engine_checkpoint(&p.engine, true, &err), 0);
    while (p.backup.applied < 12) /* the backup has both, and says nothing */
        clock_sleep_until(clock_ns() + NS_PER_MS);
    clock_sleep_until(clock_ns() + 100 * NS_PER_MS);
    assert_int_equal(p.port.released, 10);
    assert_int_equal(p.port.barrier, 12);
    /* the third must wait */
    assert_true(pacer_due(&p.engine.pacer, clock_ns()) == TIME_NEVER);
    assert_false(p.port.early);
    disconnect_pair(&p);
    assert_int_equal(p.port.released, 10); /* nor does the end of the link release anything */
    teardown(&p);
}

static void test_broken_links_R4(void **state)
{
    struct pair p;
    struct error err = {""};
    unsigned seed = 7;
    uint64_t committed = 0;

    (void)state;
    setup(&p, "random", 30000, 8 << 20);
    for (int round = 0; round < 40; round++) {
        connect_pair(&p, committed);
        p.backup.break_after = (uint64_t)(rand_r(&seed) % 40 + 1) * (round < 3 ? 100 : 1);
        if (!committed && engine_precopy(&p.engine, &err) < 0) {
            disconnect_pair(&p);
            continue;
        }
        for (int i = 0; i < 8 && engine_checkpoint(&p.engine, false, &err) == 0; i++) {
            bool up = settle(&p);
            if (p.backup.applied == p.engine.pacer.taken)
                assert_equal(&p); /* R4: whole, or not at all */
            assert_int_equal(p.vm->ops->resume(p.vm, &err), 0);
            if (!up)
                break;
        }
        committed = p.backup.applied;
        disconnect_pair(&p);
    }
    p.backup.break_after = 0;
    connect_pair(&p, committed);
    if (!committed)
        assert_int_equal(engine_precopy(&p.engine, &err), 0);
    assert_int_equal(engine_checkpoint(&p.engine, false, &err), 0);
    assert_true(settle(&p));
    assert_equal(&p);
    assert_false(p.port.early);
    disconnect_pair(&p);
    teardown(&p);
}

static void test_small_staging_slows_down_R9(void **state)
{
    struct pair p;
    struct error err = {""};
    struct staging_stats stats;

    (void)state;
    setup(&p, "random", 500000, 1 << 20);
    sync_pair(&p);
    for (int i = 0; i < 20; i++) {
        clock_sleep_until(clock_ns() + 10 * NS_PER_MS);
        assert_int_equal(engine_checkpoint(&p.engine, false, &err), 0);
        assert_true(settle(&p));
        assert_equal(&p);
        assert_int_equal(p.vm->ops->resume(p.vm, &err), 0);
    }
    staging_stats(p.engine.staging, &stats);
    assert_int_equal(stats.max_bytes, 1 << 20);
    assert_true(stats.stretched > 0);
    disconnect_pair(&p);
    teardown(&p);
}

/* --- a guest that reads from its disk --- */

#define BLOCKS 1024u
#define JOURNAL (BLOCKS * PAGE_SIZE) /* what synchronises does not go there: it would not fit, with its heads */
#define SOME_BLOCK(d) ((uint64_t)rand_r(&(d)->seed) % 64 * 16) /* few, so that they are often overwritten */

struct disk_pair {
    struct pair p;
    char images[2][80];
    char *paths[2][2];
    uint8_t *guest; /* writable */
    struct queue server;
    struct image image;
    struct journal *journal;
    unsigned seed;
};

/* The image, when the primary reads blocks of it ahead of the guest's own changes. */
static struct {
    struct disk_pair *_Atomic changes; /* ... amid that, each block once, and again as soon as the queue is not locked */
    off_t last, last_locked;
    pthread_t later[BLOCKS * PAGE_SIZE / IMAGE_BLOCK];
    unsigned later_count;
    _Atomic bool fails;
} reads;

static void change_amid_read(off_t offset);
static void *change_later(void *offset);

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    if (reads.fails) {
        errno = EIO;
        return -1;
    }
    if (reads.changes && offset > reads.last)
        change_amid_read(reads.last = offset);
    else if (reads.changes && offset > reads.last_locked)
        pthread_create(&reads.later[reads.later_count++], NULL, change_later, (void *)(reads.last_locked = offset));
    return syscall(SYS_preadv2, fd, iov, count, offset, 0L, flags);
}

static void random_block(struct disk_pair *d, uint8_t *block)
{
    for (size_t i = 0; i < PAGE_SIZE; i++)
        block[i] = (uint8_t)(rand_r(&d->seed) >> 8 & (i % 16 < 8 ? 0xff : 0x03));
}

/* As disk/plugin.c does it. */
static void write_block(struct disk_pair *d, uint64_t block, const uint8_t *data)
{
    struct entry e = {.kind = ENTRY_WRITE, .length = PAGE_SIZE, .offset = block * PAGE_SIZE, .data = data};

    image_stamp(&d->image, e.offset, e.length, queue_begin(&d->server, e.kind, e.length));
    assert_int_equal(entry_apply(&e, d->image.fd), 0);
    queue_end(&d->server, &e);
}

static void change_amid_read(off_t offset)
{
    uint8_t data[PAGE_SIZE];

    random_block(reads.changes, data);
    write_block(reads.changes, (uint64_t)offset / PAGE_SIZE, data);
}

static void *change_later(void *offset)
{
    uint8_t data[PAGE_SIZE];

    memset(data, 0xee, sizeof(data));
    write_block(reads.changes, (uint64_t)offset / PAGE_SIZE, data);
    return NULL;
}

static void change_guest(struct disk_pair *d, uint64_t pfn, const uint8_t *page)
{
    memcpy(d->guest + pfn * PAGE_SIZE, page, PAGE_SIZE);
    bitmap_set(&d->p.engine.dirty, pfn);
    bitmap_set(&d->p.engine.touched, pfn);
}

static void guest_does_something(struct disk_pair *d)
{
    uint64_t pfn = 1 + (uint64_t)rand_r(&d->seed) % 200, block = SOME_BLOCK(d);
    uint8_t data[PAGE_SIZE];

    switch (rand_r(&d->seed) % 8) {
    case 0:
        random_block(d, data);
        write_block(d, block, data);
        break;
    case 1: /* what it has in memory, and the same elsewhere */
        memcpy(data, d->guest + pfn * PAGE_SIZE, PAGE_SIZE);
        write_block(d, block, data);
        break;
    case 2:
        memcpy(data, d->guest + pfn * PAGE_SIZE, PAGE_SIZE);
        data[rand_r(&d->seed) % PAGE_SIZE]++;
        change_guest(d, pfn, data);
        break;
    default:
        assert_int_equal(pread(d->image.fd, data, PAGE_SIZE, (off_t)(block * PAGE_SIZE)), PAGE_SIZE);
        queue_note_read(&d->server, 0, block, data);
        change_guest(d, pfn, data);
    }
}

static void setup_disk(struct disk_pair *d)
{
    struct pair *p = &d->p;
    uint8_t data[PAGE_SIZE];
    struct error err = {""};
    char path[108];
    pid_t pid;
    int fd;

    setup(p, "random", 0, 8 << 20);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/disk%d", p->run_dir, i);
        memcpy(d->images[i], path, sizeof(d->images[i]));
        d->paths[i][0] = d->images[i];
    }
    p->cfg.disks = d->paths[0];
    p->cfg.disk_count = 1;
    p->cfg.disk_reads_bytes = 4096;
    fd = open(d->images[0], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    for (unsigned i = 0; i < BLOCKS; i++) {
        random_block(d, data);
        assert_int_equal(write(fd, data, PAGE_SIZE), PAGE_SIZE);
    }
    close(fd);
    assert_int_equal(image_take(d->images[0], &err), 0);
    assert_int_equal(image_open(&d->image, d->images[0], true, &err), 0);
    assert_int_equal(disk_queue_path(&p->cfg, path), 0);
    assert_int_equal(queue_create(&d->server, path, 4 << 20, p->cfg.disk_reads_bytes, 1, true, &err), 0);
    assert_int_equal(disk_open(&p->engine.disk, &p->cfg, &err), 0);
    assert_int_equal(journal_open(&d->journal, d->paths[1], disk_infos(p->engine.disk), 1, JOURNAL, &err), 0);
    receiver_set_journal(p->backup.receiver, d->journal);
    p->backup.journal = d->journal;
    p->engine.send_blocks = true;
    snprintf(path, sizeof(path), "%s/fake1.fake.pid", p->run_dir);
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &pid), 1);
    fclose(f);
    snprintf(path, sizeof(path), "/proc/%d/fd/3", (int)pid);
    fd = open(path, O_RDWR | O_CLOEXEC);
    d->guest = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(d->guest, MAP_FAILED);
    close(fd);
}

static void connect_disk(struct disk_pair *d, uint64_t committed)
{
    struct pair *p = &d->p;
    struct disk_sync sync;
    struct error err = {""};

    journal_bases(d->journal, disk_infos(p->engine.disk), p->engine.disk_base);
    assert_int_equal(journal_begin(d->journal, disk_infos(p->engine.disk), committed ? START_RESUME : START_ANEW, &err), 0);
    connect_pair(p, committed);
    do {
        clock_sleep_until(clock_ns() + NS_PER_MS);
        disk_sync_state(p->engine.disk, &sync);
    } while (!sync.done);
}

static void teardown_disk(struct disk_pair *d)
{
    char queue[108];

    journal_close(d->journal);
    image_close(&d->image);
    munmap(d->guest, MEMORY);
    for (int i = 0; i < 2; i++) {
        char path[120];

        unlink(d->images[i]);
        snprintf(path, sizeof(path), "%s.remus", d->images[i]);
        unlink(path);
        snprintf(path, sizeof(path), "%s.remus-journal", d->images[i]);
        unlink(path);
    }
    assert_int_equal(disk_queue_path(&d->p.cfg, queue), 0);
    unlink(queue);
    queue_close(&d->server);
    teardown(&d->p);
}

static void test_pages_that_are_blocks_R2_R4_R5(void **state)
{
    struct disk_pair d = {.seed = 3};
    struct pair *p = &d.p;
    struct error err = {""};

    (void)state;
    setup_disk(&d);
    connect_disk(&d, 0);
    assert_int_equal(engine_precopy(&p->engine, &err), 0);
    for (int i = 0; i < 400; i++) {
        for (int n = rand_r(&d.seed) % 40; n > 0; n--)
            guest_does_something(&d);
        assert_int_equal(engine_checkpoint(&p->engine, true, &err), 0);
        for (int n = rand_r(&d.seed) % 4; n > 0; n--) /* while it is being sent */
            write_block(&d, SOME_BLOCK(&d), d.guest + PAGE_SIZE * (1 + (uint64_t)rand_r(&d.seed) % 200));
        if (rand_r(&d.seed) % 2 && i % 100 != 99 && in_flight(p) < PACER_IN_FLIGHT)
            continue;
        if (!settle(p))
            break;
        assert_equal(p);
        if (i % 100 == 99) {
            disconnect_pair(p);
            connect_disk(&d, p->backup.applied);
        }
    }
    disconnect_pair(p);
    assert_true(p->engine.stats.block_pages > 500);
    teardown_disk(&d);
}

/* All checkpoints until the comparison has ended. */
static struct disk_verify verify(struct disk_pair *d, bool repair)
{
    struct pair *p = &d->p;
    struct disk_verify v;
    struct error err;

    reads.last = reads.last_locked = -1;
    assert_int_equal(disk_verify_start(p->engine.disk, repair, &err), 0);
    do {
        assert_int_equal(engine_checkpoint(&p->engine, true, &err), 0);
        assert_true(settle(p));
        clock_sleep_until(clock_ns() + NS_PER_MS);
        disk_verify_state(p->engine.disk, &v);
    } while (v.running);
    while (reads.later_count > 0)
        pthread_join(reads.later[--reads.later_count], NULL);
    assert_string_equal(v.failed, "");
    return v;
}

/* What differs is found, and nothing else, while each block is being changed; and made good. */
static void test_disks_are_compared_R5(void **state)
{
    struct disk_pair d = {.seed = 3};
    struct disk_verify v;

    (void)state;
    setup_disk(&d);
    connect_disk(&d, 0);
    reads.changes = &d;
    v = verify(&d, false);
    assert_int_equal(v.compared, BLOCKS * PAGE_SIZE);
    assert_int_equal(v.differing, 0);
    for (unsigned i = 0; i < 2; i++) {
        int fd = open(d.images[1], O_RDWR | O_CLOEXEC);

        if (i == 0)
            assert_int_equal(pwrite(fd, "damage", 6, 5 * IMAGE_BLOCK + 9 * PAGE_SIZE), 6);
        close(fd);
        v = verify(&d, true);
        assert_int_equal(v.differing, i == 0 ? IMAGE_BLOCK : 0);
        assert_int_equal(v.range_count, i == 0);
        assert_true(i || (v.ranges[0].offset == 5 * IMAGE_BLOCK && v.ranges[0].length == IMAGE_BLOCK));
    }
    reads.changes = NULL;
    disconnect_pair(&d.p);
    teardown_disk(&d);
}

/* Synchronising and comparing end with the link, and say which disk cannot be read. */
static void test_image_that_cannot_be_read_R5(void **state)
{
    struct disk_pair d = {.seed = 3};
    struct engine *e = &d.p.engine;
    struct disk_sync sync;
    struct error err = {""};

    (void)state;
    setup_disk(&d);
    for (unsigned i = 0; i < 2; i++) {
        if (i == 0) {
            reads.fails = true;
            journal_bases(d.journal, disk_infos(e->disk), e->disk_base);
            assert_int_equal(journal_begin(d.journal, disk_infos(e->disk), START_ANEW, &err), 0);
            connect_pair(&d.p, 0);
        } else {
            connect_disk(&d, 0);
            assert_int_equal(disk_verify_start(e->disk, false, &err), 0);
            reads.fails = true;
            engine_checkpoint(e, true, &err);
        }
        while (engine_link_state(e, &err) == LINK_UP)
            clock_sleep_until(clock_ns() + NS_PER_MS);
        assert_non_null(strstr(err.text, "disk 0: reading 65536 octets at 0"));
        disk_sync_state(e->disk, &sync);
        assert_int_equal(sync.done, i);
        disconnect_pair(&d.p);
        reads.fails = false;
    }
    teardown_disk(&d);
}

__attribute__((unused)) static long resident_pages(void)
{
    long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");

    if (f) {
        if (fscanf(f, "%ld %ld", &size, &resident) != 2)
            resident = 0;
        fclose(f);
    }
    return resident;
}

__attribute__((unused)) static void test_no_growth_R9(void **state)
{
    struct pair p;
    struct error err = {""};
    struct fake_guest_stats guest;
    long before = 0;

    (void)state;
    setup(&p, "sequential", 200000, 8 << 20); /* all of memory is written before the count begins */
    sync_pair(&p);
    for (int left = 10000; left > 0;) {
        assert_int_equal(engine_checkpoint(&p.engine, true, &err), 0);
        assert_true(settle(&p));
        if (before)
            left--;
        else if (fake_guest_stats(p.run_dir, "fake1", &guest, &err) == 0 &&
                 guest.writes > 4 * p.vm->pages && p.engine.stats.checkpoints > 2000) {
            /* the largest checkpoint there can be, for all buffers that keep their size */
            bitmap_set_range(&p.engine.dirty, 0, p.vm->pages);
            assert_int_equal(engine_checkpoint(&p.engine, true, &err), 0);
            assert_true(settle(&p));
            before = resident_pages();
        }
    }
    assert_true(before > 0);
    /* the guest's and the replica's memory are resident since the synchronisation */
    if (resident_pages() - before > 256)
        fail_msg("grew by %ld pages in 10000 epochs", resident_pages() - before);
    disconnect_pair(&p);
    teardown(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replica_equals_guest_R2),
        cmocka_unit_test(test_no_release_without_ack_R1),
        cmocka_unit_test(test_broken_links_R4),
        cmocka_unit_test(test_small_staging_slows_down_R9),
        cmocka_unit_test(test_pages_that_are_blocks_R2_R4_R5),
        cmocka_unit_test(test_disks_are_compared_R5),
        cmocka_unit_test(test_image_that_cannot_be_read_R5),
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* their own memory grows */
        cmocka_unit_test(test_no_growth_R9),
#endif
    };

    atexit(end_guest);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
