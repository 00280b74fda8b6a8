/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The backup's host dies at any moment (R4, R5): of what was written to journal and images since their last fdatasync, each
 * sector may be on the disk or not, in whatever order.  The calls of disk/ are watched here, files as such a host would find
 * them are made again and again, and replaying must bring each to a committed epoch, the one whose generation it tells.
 *
 * Every sector holds the number of the change that wrote it, so what is in an image tells how far it is.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "disk/image.h"
#include "disk/journal.h"

#define MIB (1u << 20)
#define SECTOR 512u
#define DISK_SIZE MIB
#define SECTORS (DISK_SIZE / SECTOR)
#define CAPACITY (4 * MIB)
#define EPOCHS 80u
#define CRASHES 120u

enum { FILE_A, FILE_B, JOURNAL, FILES };
static const char *const names[FILES] = {"a.img", "b.img", "a.img.remus-journal"};
static const struct disk_info infos[2] = {{DISK_SIZE, 0xa}, {DISK_SIZE, 0xb}};

/* --- the host's disk --- */

struct pending {
    struct pending *next;
    uint64_t order, offset;
    size_t length;
    uint8_t data[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool watching;
static char dir[64];
static unsigned seed, disk_seed, crashes, rarity = 12;
static uint64_t written;
static struct {
    uint8_t durable[CAPACITY + 4096];
    struct pending *first, **end;
} files[FILES];

static void path_of(char path[128], int crash, int file)
{
    if (crash < 0)
        snprintf(path, 128, "%s/%s", dir, names[file]);
    else
        snprintf(path, 128, "%s/%d/%s", dir, crash, names[file]);
}

static int file_of(int fd)
{
    char path[128];
    struct stat st, other;

    for (int i = 0; watching && i < FILES; i++) {
        path_of(path, -1, i);
        if (fstat(fd, &st) == 0 && stat(path, &other) == 0 && st.st_ino == other.st_ino)
            return i;
    }
    return -1;
}

static void put_pending(uint8_t *content, const struct pending *p, unsigned percent)
{
    for (size_t at = 0; at < p->length;) {
        size_t n = SECTOR - (p->offset + at) % SECTOR;

        n = n < p->length - at ? n : p->length - at;
        if ((unsigned)rand_r(&disk_seed) % 100 < percent)
            memcpy(content + p->offset + at, p->data + at, n);
        at += n;
    }
}

static void save(const char *path, const uint8_t *content, size_t length)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || ftruncate(fd, (off_t)length) < 0)
        abort();
    for (size_t at = 0; at < length; at += 4096)
        if ((content[at] || memcmp(content + at, content + at + 1, 4095)) &&
            syscall(SYS_pwrite64, fd, content + at, 4096, at) != 4096)
            abort();
    close(fd);
}

/* What the host would find after a crash now. */
static void make_crash(void)
{
    static const unsigned percents[] = {0, 10, 50, 90, 100};
    static uint8_t content[CAPACITY + 4096];
    char path[128];

    snprintf(path, sizeof(path), "%s/%u", dir, crashes);
    mkdir(path, 0700);
    for (int i = 0; i < FILES; i++) {
        unsigned percent = percents[(unsigned)rand_r(&disk_seed) % 5];

        memcpy(content, files[i].durable, sizeof(content));
        for (const struct pending *p = files[i].first; p; p = p->next)
            put_pending(content, p, percent);
        path_of(path, (int)crashes, i);
        save(path, content, i == JOURNAL ? CAPACITY + 4096 : DISK_SIZE);
    }
    crashes++;
}

/* The lock is held. */
static void perhaps_crash(void)
{
    if (crashes < CRASHES && rand_r(&disk_seed) % rarity == 0)
        make_crash();
}

static void note(int fd, const struct iovec *iov, int count, uint64_t offset)
{
    int file = file_of(fd);

    if (file < 0)
        return;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < count; offset += iov[i++].iov_len) {
        struct pending *p = malloc(sizeof(*p) + iov[i].iov_len);

        *p = (struct pending){NULL, ++written, offset, iov[i].iov_len};
        if (iov[i].iov_base)
            memcpy(p->data, iov[i].iov_base, p->length);
        else
            memset(p->data, 0, p->length);
        *files[file].end = p;
        files[file].end = &p->next;
    }
    perhaps_crash();
    pthread_mutex_unlock(&lock);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    note(fd, &(struct iovec){(void *)data, length}, 1, (uint64_t)offset);
    return syscall(SYS_pwrite64, fd, data, length, offset);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    note(fd, iov, count, (uint64_t)offset);
    return syscall(SYS_pwritev, fd, iov, count, offset, 0);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        note(fd, &(struct iovec){NULL, (size_t)length}, 1, (uint64_t)offset);
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

/* What is written meanwhile need not be there when it returns. */
int fdatasync(int fd)
{
    int file = file_of(fd);
    struct pending *p;
    uint64_t last;

    if (file < 0)
        return 0;
    pthread_mutex_lock(&lock);
    last = written;
    pthread_mutex_unlock(&lock);
    usleep(1500);
    pthread_mutex_lock(&lock);
    perhaps_crash();
    while ((p = files[file].first) && p->order <= last) {
        put_pending(files[file].durable, p, 100);
        files[file].first = p->next;
        if (!p->next)
            files[file].end = &files[file].first;
        free(p);
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

/* --- what the primary sends --- */

static uint64_t now[2][SECTORS], model[EPOCHS + 1][2][SECTORS], number;
static struct journal *j;

static void write_some(uint64_t epoch, unsigned count)
{
    static uint8_t buffer[MIB];
    uint8_t *at = buffer;
    struct error err;

    for (unsigned i = 0; i < count; i++) {
        uint32_t sectors = 1 + (uint32_t)rand_r(&seed) % 100;
        uint64_t from = (uint64_t)rand_r(&seed) % (SECTORS - sectors);
        unsigned disk = (unsigned)rand_r(&seed) % 2;
        bool zero = epoch && rand_r(&seed) % 5 == 0;
        struct entry e = {.kind = zero ? ENTRY_ZERO + (unsigned)rand_r(&seed) % 2 : ENTRY_WRITE, .disk = disk,
                          .length = sectors * SECTOR, .offset = from * SECTOR};

        number++;
        entry_put(at, &e);
        for (uint32_t w = 0; !zero && w < e.length / 8; w++)
            memcpy(at + ENTRY_HEAD + w * 8, &number, 8);
        for (uint32_t s = 0; s < sectors; s++)
            now[disk][from + s] = zero ? 0 : number;
        at += entry_size(e.kind, e.length);
    }
    if (journal_write(j, epoch, buffer, (size_t)(at - buffer), &err) < 0)
        fail_msg("%s", err.text);
}

static void begin(enum link_start start)
{
    struct error err;

    if (journal_begin(j, infos, start, &err) < 0)
        fail_msg("%s", err.text);
}

static void commit(uint64_t epoch)
{
    struct error err;

    memcpy(model[epoch], now, sizeof(now));
    if (journal_end(j, 1000 + epoch, &err) < 0 || journal_commit(j, epoch, &err) < 0)
        fail_msg("%s", err.text);
}

static struct journal *open_in(int crash)
{
    char paths[2][128];
    struct journal *opened;
    struct error err;

    for (int i = 0; i < 2; i++)
        path_of(paths[i], crash, i);
    if (journal_open(&opened, (char *[]){paths[0], paths[1]}, infos, 2, CAPACITY, &err) < 0)
        fail_msg("%s", err.text);
    return opened;
}

/* Four links, one for each way to begin, and one more that is cut in an epoch. */
static void run_links(void)
{
    j = open_in(-1);
    begin(START_ANEW);
    for (uint64_t epoch = 1; epoch <= EPOCHS; epoch++) {
        if (epoch == 20 || epoch == 40) {
            uint64_t before[2][SECTORS];

            memcpy(before, now, sizeof(now));
            write_some(epoch, 6); /* the link is cut */
            memcpy(now, before, sizeof(now));
            begin(START_RESUME);
        }
        if (epoch == 50)
            begin(START_KEEP);
        if (epoch == 65)
            begin(START_ANEW);
        pthread_mutex_lock(&lock);
        rarity = epoch == 65 ? 4 : 12;
        pthread_mutex_unlock(&lock);
        if (epoch == 1 || epoch == 50 || epoch == 65)
            for (int i = 0; i < 4; i++)
                write_some(0, 4);
        for (int i = rand_r(&seed) % 3; i >= 0; i--)
            write_some(epoch, 1 + (unsigned)rand_r(&seed) % 5);
        commit(epoch);
        usleep(500);
    }
    journal_close(j);
    make_crash();
}

/* --- the judge --- */

/* `whole': exactly what the epoch left.  Otherwise at least that, where it is being synchronised over. */
static void check_sector(int crash, uint64_t epoch, bool whole, int disk, uint64_t sector, const uint64_t *words)
{
    uint64_t should = model[epoch][disk][sector];

    for (unsigned i = 0; i < SECTOR / 8; i++)
        if (words[i] != words[0] || (whole ? words[0] != should : words[0] < should))
            fail_msg("R4, R5: crash %d: disk %d, sector %u: change %u, epoch %u left %u", crash, disk, (unsigned)sector,
                     (unsigned)words[i], (unsigned)epoch, (unsigned)should);
}

/* The epoch that the images are at, 0 when they are not at one. */
static uint64_t check(int crash)
{
    static uint64_t content[DISK_SIZE / 8];
    uint64_t bases[2], epoch;
    bool whole;

    for (int i = 0; i < 2; i++) { /* durable before the first change */
        char path[128];
        struct error err;

        path_of(path, crash, i);
        if (image_write(path, &(struct image_record){.role = IMAGE_REPLICA, .id = 1, .size = DISK_SIZE}, &err) < 0)
            fail_msg("%s", err.text);
    }
    j = open_in(crash);
    journal_bases(j, infos, bases);
    whole = journal_whole(j);
    journal_close(j);
    assert_true(bases[0] == bases[1] && (bases[0] > 1000 || !whole));
    epoch = bases[0] ? bases[0] - 1000 : 0;
    for (int i = 0; i < 2; i++) {
        char path[128];
        int fd;

        path_of(path, crash, i);
        fd = open(path, O_RDONLY);
        assert_int_equal(pread(fd, content, DISK_SIZE, 0), DISK_SIZE);
        close(fd);
        for (uint64_t s = 0; s < SECTORS; s++)
            check_sector(crash, epoch, whole, i, s, content + s * SECTOR / 8);
    }
    return whole ? epoch : 0;
}

static void test_host_dies_at_any_moment_R4_R5(void **state)
{
    uint64_t last = 0;
    unsigned whole = 0;

    (void)state;
    for (int i = 0; i < FILES; i++)
        files[i].end = &files[i].first;
    watching = true;
    run_links();
    watching = false;
    assert_in_range(crashes, CRASHES / 4, CRASHES + 1);
    for (unsigned i = 0; i < crashes; i++)
        whole += (last = check((int)i)) > 0;
    assert_true(last == EPOCHS && whole > crashes / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_host_dies_at_any_moment_R4_R5)};
    char command[96];
    int rc;

    seed = disk_seed = (unsigned)time(NULL);
    strcpy(dir, "/tmp/test-host-crash-XXXXXX");
    if (!mkdtemp(dir))
        return 1;
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    snprintf(command, sizeof(command), "rm -rf %s", dir);
    return rc || system(command) != 0;
}
