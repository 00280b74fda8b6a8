/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/bitmap.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/hash.h"
#include "common/random.h"
#include "common/wire.h"
#include "image.h"
#include "journal.h"

#define HEADER_MAGIC UINT64_C(0x72656d75736a6e32) /* "remusjn2" */
#define RECORD_MAGIC 0x726a7232u                  /* "rjr2" */
#define HEADER 4096u
#define HEADER_USED 512u
#define RECORD_HEAD 40u
#define BODY_MAX (2u << 20)
#define RANGE_BLOCKS 16384u /* of a COMPARED: its length fits into 32 bits */
#define ZEROS_MAX (1u << 30)
#define WRITE_BACK (16u << 20) /* octets written to images directly before the kernel is told to begin */

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* linux/mman.h, Linux 5.14 */
#endif

enum { RECORD_CHANGES = 1, RECORD_COMMIT = 2 };

/* One thread each. */
enum job { FLUSH, APPLY, FREE, JOBS };

struct ring_record {
    uint32_t type;
    uint64_t at, epoch, length, checksum;
    const uint8_t *body;
};

/* A place between two records. */
struct place {
    uint64_t at;
    uint64_t chain; /* checksum of the record before it, or a number that no older record can know */
};

/* What a commit says. */
struct commit {
    uint64_t epoch, generation;
};

/* What the header says, durably. */
struct header {
    bool whole;       /* the images are at an epoch; else they are being synchronised */
    struct place tail; /* from here the journal must be replayed */
    uint64_t capacity;
    unsigned count;
    uint64_t ids[DISKS_MAX], sizes[DISKS_MAX], generations[DISKS_MAX];
};

struct journal {
    char path[PATH_MAX], *images[DISKS_MAX];
    int fd, image_fds[DISKS_MAX];
    const uint8_t *ring; /* mapped, for reading; NULL: it cannot be */
    struct worker {
        struct journal *journal;
        pthread_t thread;
        bool running, busy;
    } workers[JOBS];
    uint8_t *body;       /* of whoever applies: for a record that goes over the ring's end */

    /* of the epoch that is coming in */
    struct place head;
    uint64_t generation, written_back;
    bool ended, keeping;
    uint64_t sizes[DISKS_MAX], capacity;
    bool alike[DISKS_MAX];
    unsigned count;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct header durable;
    struct place committed;
    uint64_t committed_epoch;
    uint64_t generations[DISKS_MAX];   /* at `committed` */
    struct place flushed;              /* durable in the journal */
    struct place applied;              /* in the images, durable or not */
    struct commit last;                /* at `applied` */
    uint64_t applied_generation;       /* likewise; 0: none since synchronising began */
    uint64_t waited_ns;
    uint64_t checked, differing_blocks; /* not reported yet */
    struct bitmap differing[DISKS_MAX]; /* blocks of the images */
    bool whole, want_room, hurry, activated, stop, failed;
    struct error why;
};

/* For a message: what to do about it, where somebody can.  The primary comes back by itself (remusd/lifecycle.h). */
static const char *way_out(int error)
{
    switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return " (make room on the backup: the primary tries again by itself)";
    case EIO:
        return " (see the kernel's log on the backup: once that is mended, the primary tries again by itself)";
    default:
        return "";
    }
}

/* With errno. */
static int journal_error(const struct journal *j, struct error *err)
{
    return error_set(err, "%s: %s%s", j->path, strerror(errno), way_out(errno));
}

static int image_error(const struct journal *j, unsigned disk, struct error *err)
{
    return error_set(err, "disk \"%s\": %s%s", j->images[disk], strerror(errno), way_out(errno));
}

/* --- the file --- */

static int put_header(struct journal *j, const struct header *h, struct error *err)
{
    uint8_t out[HEADER_USED] = {0};
    struct wire_writer w = wire_writer(out, sizeof(out));

    wire_put_uint(&w, HEADER_MAGIC, 8);
    wire_put_uint(&w, h->whole, 2);
    wire_put_uint(&w, h->count, 2);
    wire_put_uint(&w, 0, 4);
    wire_put_uint(&w, h->tail.at, 8);
    wire_put_uint(&w, h->tail.chain, 8);
    wire_put_uint(&w, h->capacity, 8);
    for (unsigned i = 0; i < h->count; i++) {
        wire_put_uint(&w, h->ids[i], 8);
        wire_put_uint(&w, h->sizes[i], 8);
        wire_put_uint(&w, h->generations[i], 8);
    }
    w = wire_writer(out + sizeof(out) - 8, 8);
    wire_put_uint(&w, XXH3_64bits(out, sizeof(out) - 8), 8);
    /* One sector: there is the old header or the new one. */
    if (pwrite(j->fd, out, sizeof(out), 0) != sizeof(out) || fdatasync(j->fd) < 0)
        return journal_error(j, err);
    return 0;
}

static bool get_header(const struct journal *j, struct header *h)
{
    uint8_t in[HEADER_USED];
    struct wire_reader r = wire_reader(in, sizeof(in)), sum = wire_reader(in + sizeof(in) - 8, 8);

    if (pread(j->fd, in, sizeof(in), 0) != sizeof(in) ||
        wire_get_u64(&sum) != XXH3_64bits(in, sizeof(in) - 8) || wire_get_u64(&r) != HEADER_MAGIC)
        return false;
    h->whole = wire_get_u16(&r);
    h->count = wire_get_u16(&r);
    wire_get_u32(&r);
    h->tail.at = wire_get_u64(&r);
    h->tail.chain = wire_get_u64(&r);
    h->capacity = wire_get_u64(&r);
    if (h->count > DISKS_MAX || h->capacity < BODY_MAX || h->capacity % 4096)
        return false;
    for (unsigned i = 0; i < h->count; i++) {
        h->ids[i] = wire_get_u64(&r);
        h->sizes[i] = wire_get_u64(&r);
        h->generations[i] = wire_get_u64(&r);
    }
    return true;
}

/* Reads (write = false) or writes at a position of the ring, in two pieces when it goes over the end. */
static int ring_io(const struct journal *j, bool write, uint64_t at, void *data, size_t length)
{
    uint8_t *p = data;

    while (length) {
        uint64_t index = at % j->capacity, left = j->capacity - index;
        size_t want = length < left ? length : (size_t)left;
        ssize_t n = write ? pwrite(j->fd, p, want, (off_t)(HEADER + index))
                          : pread(j->fd, p, want, (off_t)(HEADER + index));

        if (n <= 0) {
            errno = n < 0 ? errno : EIO;
            return -1;
        }
        p += n;
        at += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

static uint64_t record_size(uint64_t length)
{
    return RECORD_HEAD + ((length + 7) & ~UINT64_C(7));
}

static uint64_t checksum(uint64_t chain, const uint8_t head[32], const uint8_t *body, size_t length)
{
    uint8_t before[8];
    struct wire_writer w = wire_writer(before, sizeof(before));
    XXH3_state_t x;

    wire_put_uint(&w, chain, 8);
    XXH3_64bits_reset(&x);
    XXH3_64bits_update(&x, before, sizeof(before));
    XXH3_64bits_update(&x, head, 32);
    XXH3_64bits_update(&x, body, length);
    return XXH3_64bits_digest(&x);
}

/* Head and body; in one call, but where the ring ends. */
static int write_record(const struct journal *j, uint64_t at, uint8_t *head, const uint8_t *body, size_t length)
{
    struct iovec iov[] = {{head, RECORD_HEAD}, {(void *)body, length}};
    uint64_t index = at % j->capacity;

    if (RECORD_HEAD + length <= j->capacity - index &&
        pwritev(j->fd, iov, 2, (off_t)(HEADER + index)) == (ssize_t)(RECORD_HEAD + length))
        return 0;
    /* This says why, too, when not all was written. */
    return ring_io(j, true, at, head, RECORD_HEAD) < 0 || ring_io(j, true, at + RECORD_HEAD, (void *)body, length) < 0
               ? -1 : 0;
}

static int put_record(struct journal *j, unsigned type, uint64_t epoch, const uint8_t *body, size_t length)
{
    uint8_t head[RECORD_HEAD];
    struct wire_writer w = wire_writer(head, sizeof(head));
    uint64_t sum;

    wire_put_uint(&w, RECORD_MAGIC, 4);
    wire_put_uint(&w, type, 4);
    wire_put_uint(&w, j->head.at, 8);
    wire_put_uint(&w, epoch, 8);
    wire_put_uint(&w, length, 8);
    sum = checksum(j->head.chain, head, body, length);
    wire_put_uint(&w, sum, 8);
    if (write_record(j, j->head.at, head, body, length) < 0)
        return -1;
    j->head = (struct place){j->head.at + record_size(length), sum};
    return 0;
}

/* Where these octets of the ring are in memory; NULL when they are not there in one piece, or cannot be read. */
static const uint8_t *mapped(const struct journal *j, uint64_t at, uint64_t length)
{
    uint64_t index = at % j->capacity, page = index & ~UINT64_C(4095);

    /* Touching what cannot be read would be SIGBUS, this and read() fail. */
    if (!j->ring || length > j->capacity - index ||
        (madvise((void *)(j->ring + HEADER + page), index - page + length, MADV_POPULATE_READ) < 0 && errno != EINVAL))
        return NULL;
    return j->ring + HEADER + index;
}

/* The record at this place.  False when there is none. */
static bool get_record(const struct journal *j, struct place at, struct ring_record *rec)
{
    uint8_t head[RECORD_HEAD];
    struct wire_reader r = wire_reader(head, sizeof(head));
    uint32_t magic;

    if (ring_io(j, false, at.at, head, sizeof(head)) < 0)
        return false;
    magic = wire_get_u32(&r);
    rec->type = wire_get_u32(&r);
    rec->at = wire_get_u64(&r);
    rec->epoch = wire_get_u64(&r);
    rec->length = wire_get_u64(&r);
    rec->checksum = wire_get_u64(&r);
    if (magic != RECORD_MAGIC || rec->at != at.at || rec->length > BODY_MAX)
        return false;
    rec->body = mapped(j, at.at + RECORD_HEAD, rec->length);
    if (!rec->body) {
        if (ring_io(j, false, at.at + RECORD_HEAD, j->body, rec->length) < 0)
            return false;
        rec->body = j->body;
    }
    return checksum(at.chain, head, rec->body, rec->length) == rec->checksum;
}

/* To behind this record, which is at *at. */
static void pass_record(struct place *at, const struct ring_record *rec, struct commit *last)
{
    struct wire_reader r = wire_reader(rec->body, rec->length);

    *at = (struct place){at->at + record_size(rec->length), rec->checksum};
    if (rec->type == RECORD_COMMIT)
        *last = (struct commit){rec->epoch, wire_get_u64(&r)};
}

/* --- images --- */

/* Is the image what the primary's was at this point?  R10: the entry was checked. */
static int check_image(struct journal *j, const struct entry *e, struct error *err)
{
    uint64_t block = e->offset / ENTRY_CHECK_MAX;
    uint8_t data[ENTRY_CHECK_MAX];
    bool same;

    if (pread(j->image_fds[e->disk], data, e->length, (off_t)e->offset) != (ssize_t)e->length)
        return error_set(err, "disk \"%s\": reading %" PRIu32 " octets at %" PRIu64 ": %s%s", j->images[e->disk],
                         e->length, e->offset, strerror(errno), way_out(errno));
    same = XXH3_64bits(data, e->length) == e->hash;
    SCOPED_LOCK(&j->lock);
    j->checked += e->length;
    if (!same && !bitmap_test(&j->differing[e->disk], block)) {
        bitmap_set(&j->differing[e->disk], block);
        j->differing_blocks++;
    }
    return 0;
}

/* Zeros are written where the file system or the device can make none of this range. */
static int apply_entry(const struct entry *e, int fd)
{
    static const uint8_t zeros[ENTRY_CHECK_MAX];
    struct entry write = {.kind = ENTRY_WRITE, .offset = e->offset, .data = zeros};

    if (entry_apply(e, fd) == 0)
        return 0;
    if (e->kind == ENTRY_WRITE || (errno != EOPNOTSUPP && errno != EINVAL))
        return -1;
    for (uint32_t left = e->length; left; left -= write.length, write.offset += write.length) {
        write.length = left < sizeof(zeros) ? left : sizeof(zeros);
        if (entry_apply(&write, fd) < 0)
            return -1;
    }
    return 0;
}

/* compare: the images are exactly what the entries before left; then CHECKs mean something. */
static int change_images(struct journal *j, const uint8_t *entries, size_t length, bool compare,
                         struct error *err)
{
    const uint8_t *at = entries, *end = entries + length;
    struct entry e;

    while (at < end) {
        if (entry_get(&e, &at, end, j->sizes, j->count, err) < 0)
            return -1;
        if (e.kind == ENTRY_CHECK) {
            if (compare && check_image(j, &e, err) < 0)
                return -1;
            continue;
        }
        if (apply_entry(&e, j->image_fds[e.disk]) < 0)
            return image_error(j, e.disk, err); /* not where: the same fault is to give the same message again */
    }
    return 0;
}

static int sync_images(const struct journal *j, struct error *err)
{
    for (unsigned i = 0; i < j->count; i++)
        if (fdatasync(j->image_fds[i]) < 0)
            return image_error(j, i, err);
    return 0;
}

/* --- the threads: the journal is made durable, then applied, then the images are made durable --- */

/* From *from, which moves, to `target`, which ends with a commit. */
static int apply(struct journal *j, struct place *from, uint64_t target, bool compare, struct commit *last,
                 struct error *err)
{
    struct ring_record rec;

    while (from->at < target) {
        if (!get_record(j, *from, &rec))
            return error_set(err, "%s: cannot read back what was written at %" PRIu64, j->path, from->at);
        if (rec.type == RECORD_CHANGES && change_images(j, rec.body, rec.length, compare, err) < 0)
            return -1;
        fault_crash("disk-amid-apply", rec.epoch);
        pass_record(from, &rec, last);
    }
    return 0;
}

static bool flush_due(const struct journal *j)
{
    return !j->hurry && j->flushed.at != j->committed.at;
}

static int flush(struct journal *j, struct error *err)
{
    struct place target;

    pthread_mutex_lock(&j->lock);
    target = j->committed;
    pthread_mutex_unlock(&j->lock);
    if (fdatasync(j->fd) < 0)
        return journal_error(j, err);
    SCOPED_LOCK(&j->lock);
    j->flushed = target;
    return 0;
}

/*
 * In a takeover the journal need not survive the host: without this host there is nothing to take over, and the
 * primary's image is the valid one until the activation record is durable.
 */
static struct place may_apply(const struct journal *j)
{
    return j->hurry ? j->committed : j->flushed;
}

static bool apply_due(const struct journal *j)
{
    return j->applied.at < may_apply(j).at;
}

static int apply_flushed(struct journal *j, struct error *err)
{
    struct commit last = {0};
    struct place at, target;
    bool compare;

    pthread_mutex_lock(&j->lock);
    at = j->applied;
    target = may_apply(j);
    compare = !j->hurry;
    pthread_mutex_unlock(&j->lock);
    if (apply(j, &at, target.at, compare, &last, err) < 0)
        return -1;
    SCOPED_LOCK(&j->lock);
    j->applied = at;
    j->last = last;
    j->applied_generation = last.generation;
    j->whole = true;
    return 0;
}

/* Space is given back early enough that nobody waits for it, and late enough that what is overwritten often reaches the disk once. */
static bool free_due(const struct journal *j)
{
    uint64_t used = j->applied.at - j->durable.tail.at;

    return j->activated ||
           (!j->hurry && j->whole && used && (j->want_room || !j->durable.whole || used > j->capacity / 4));
}

/* Makes the images durable up to `applied': what is before it in the journal may be overwritten. */
static int free_room(struct journal *j, struct error *err)
{
    struct commit last;
    struct header h;

    pthread_mutex_lock(&j->lock);
    last = j->last;
    h = j->durable;
    h.tail = j->applied;
    h.whole = true;
    for (unsigned i = 0; i < j->count; i++)
        h.generations[i] = last.generation;
    pthread_mutex_unlock(&j->lock);
    if (sync_images(j, err) < 0)
        return -1;
    fault_crash("disk-before-free", last.epoch);
    if (put_header(j, &h, err) < 0)
        return -1;
    fault_crash("disk-after-free", last.epoch);
    SCOPED_LOCK(&j->lock);
    j->durable = h;
    return 0;
}

/*
 * The guest runs from the images.  A flush of its own makes durable what is older, too; should it not flush, this
 * does.
 */
static int free_or_finish(struct journal *j, struct error *err)
{
    bool activated;

    pthread_mutex_lock(&j->lock);
    activated = j->activated;
    j->activated = false;
    pthread_mutex_unlock(&j->lock);
    return activated ? sync_images(j, err) : free_room(j, err);
}

static const struct {
    bool (*due)(const struct journal *j); /* the lock is held */
    int (*run)(struct journal *j, struct error *err);
} jobs[JOBS] = {
    [FLUSH] = {flush_due, flush},
    [APPLY] = {apply_due, apply_flushed},
    [FREE] = {free_due, free_or_finish},
};

/* Nobody does anything, and nobody will before something new comes.  The lock is held. */
static bool idle(const struct journal *j)
{
    for (int i = 0; i < JOBS; i++)
        if (j->workers[i].busy || jobs[i].due(j))
            return false;
    return true;
}

static void *run(void *arg)
{
    struct worker *w = arg;
    struct journal *j = w->journal;
    int job = (int)(w - j->workers);
    struct error err;

    pthread_mutex_lock(&j->lock);
    while (!j->failed) {
        int rc;

        if (!jobs[job].due(j)) {
            if (j->stop && idle(j))
                break;
            pthread_cond_wait(&j->changed, &j->lock);
            continue;
        }
        w->busy = true;
        pthread_mutex_unlock(&j->lock);
        rc = jobs[job].run(j, &err);
        pthread_mutex_lock(&j->lock);
        w->busy = false;
        if (rc < 0 && !j->failed) {
            j->failed = true;
            j->why = err;
        }
        pthread_cond_broadcast(&j->changed);
    }
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

int journal_check(struct journal *j, struct error *err)
{
    SCOPED_LOCK(&j->lock);

    return j->failed ? error_set(err, "%s", j->why.text) : 0;
}

/* Waits until all that is committed is in the images. */
static int drain(struct journal *j, struct error *err)
{
    SCOPED_LOCK(&j->lock);

    while (!j->failed && (j->workers[APPLY].busy || j->applied.at != j->committed.at))
        pthread_cond_wait(&j->changed, &j->lock);
    return j->failed ? error_set(err, "%s", j->why.text) : 0;
}

/* The same, and the threads leave the header alone from then on. */
static int await_idle(struct journal *j, struct error *err)
{
    SCOPED_LOCK(&j->lock);

    while (!j->failed && !idle(j))
        pthread_cond_wait(&j->changed, &j->lock);
    return j->failed ? error_set(err, "%s", j->why.text) : 0;
}

/* --- opening --- */

/* From the durable tail to the last commit that is whole. */
static int replay(struct journal *j, struct error *err)
{
    struct place at = j->durable.tail, from = at;
    uint64_t target = at.at;
    struct commit last;
    struct ring_record rec;

    while (at.at - from.at + RECORD_HEAD <= j->capacity && get_record(j, at, &rec)) {
        pass_record(&at, &rec, &last);
        if (rec.type == RECORD_COMMIT)
            target = at.at;
    }
    if (target != from.at) {
        if (apply(j, &from, target, false, &j->last, err) < 0)
            return -1;
        for (unsigned i = 0; i < j->count; i++)
            j->durable.generations[i] = j->last.generation;
        j->durable.whole = true;
    }
    if (sync_images(j, err) < 0)
        return -1;
    /* What lies behind it was lost in a crash: it must not count when the records before it are written again. */
    j->durable.tail = j->committed = j->flushed = j->applied = j->head = (struct place){target, random_id()};
    j->committed_epoch = j->last.epoch;
    j->whole = j->durable.whole;
    memcpy(j->generations, j->durable.generations, sizeof(j->generations));
    return put_header(j, &j->durable, err);
}

/* A journal's changes are for the images that it was made with: they are replicas, or just became valid. */
static int check_images(char *const images[], unsigned count, const char *journal, struct error *err)
{
    struct image_record rec;

    for (unsigned i = 0; i < count; i++) {
        int found = access(images[i], F_OK) == 0 ? image_read(images[i], &rec, err) : 0;

        if (found < 0)
            return -1;
        if (!found || rec.role == IMAGE_STALE)
            return error_set(err, "disk \"%s\" is gone, or no replica any more, and %s has changes for it: bring it back, "
                             "or remove the journal to synchronise anew", images[i], journal);
    }
    return 0;
}

/* R5: never writes over an image that a guest ran from. */
static int claim_image(const char *image, const struct disk_info *disk, struct error *err)
{
    struct image_record rec = {0};
    uint64_t size;
    int found = image_read(image, &rec, err);

    if (found < 0 || image_size(image, disk->size, &size, err) < 0)
        return -1;
    if (found && rec.role == IMAGE_VALID)
        return error_set(err, "disk \"%s\" is itself a valid image: the VM ran on this host (since checkpoint %" PRIu64
                         "). To give it up for the primary's, remove %s.remus", image, rec.epoch, image);
    if (size != disk->size)
        return error_set(err, "disk \"%s\" has %" PRIu64 " octets, the primary's has %" PRIu64
                         ": make them equal, or remove the one here", image, size, disk->size);
    if (found && rec.role == IMAGE_REPLICA)
        return 0;
    return image_write(image, &(struct image_record){.role = IMAGE_REPLICA, .id = random_id(), .size = size},
                       err);
}

/* It saves copying what is applied. */
static void map_ring(struct journal *j)
{
    void *p = mmap(NULL, HEADER + j->capacity, PROT_READ, MAP_SHARED, j->fd, 0);

    j->ring = p == MAP_FAILED ? NULL : p;
}

/*
 * Once, so that the first lap makes no file system turn what was only reserved into what is written, which halves the
 * speed of each flush.  The rest of a huge journal bears that.
 */
static int write_zeros(struct journal *j)
{
    uint64_t end = j->capacity < ZEROS_MAX ? j->capacity : ZEROS_MAX;

    memset(j->body, 0, BODY_MAX);
    for (uint64_t at = 0; at < end; at += BODY_MAX)
        if (ring_io(j, true, at, j->body, end - at < BODY_MAX ? end - at : BODY_MAX) < 0)
            return -1;
    return 0;
}

static int open_file(struct journal *j, const struct disk_info *disks, size_t capacity, struct error *err)
{
    bool known;
    int rc;

    j->fd = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (j->fd < 0)
        return journal_error(j, err);
    capacity &= ~(size_t)4095;
    known = get_header(j, &j->durable) && j->durable.count == j->count;
    for (unsigned i = 0; known && i < j->count; i++)
        known = j->durable.sizes[i] == disks[i].size;
    j->capacity = j->durable.capacity;
    if (known && replay(j, err) < 0)
        return -1;
    if (known && j->capacity == capacity)
        return 0;
    if (!known) {
        j->durable = (struct header){.count = j->count};
        memcpy(j->durable.sizes, j->sizes, sizeof(j->sizes));
    }
    j->durable.capacity = j->capacity = capacity;
    rc = ftruncate(j->fd, (off_t)(HEADER + capacity)) < 0 ? errno
                                                           : posix_fallocate(j->fd, 0, (off_t)(HEADER + capacity));
    if (rc && ftruncate(j->fd, HEADER) < 0) /* nor stays it full because of this */
        return journal_error(j, err);
    if (rc) /* all of it now: a full disk shows here and not in a commit */
        return error_set(err, "%s: journal of %zu MiB: %s%s", j->path, capacity >> 20, strerror(rc), way_out(rc));
    if (write_zeros(j) < 0)
        return journal_error(j, err);
    return put_header(j, &j->durable, err);
}

int journal_open(struct journal **out, char *const images[], const struct disk_info *disks, unsigned count,
                 size_t capacity, struct error *err)
{
    struct journal *j = calloc(1, sizeof(*j));
    struct stat st;
    int rc;

    if (!j)
        return error_set(err, "no memory");
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->changed, NULL);
    j->fd = -1;
    j->body = malloc(BODY_MAX);
    snprintf(j->path, sizeof(j->path), "%s.remus-journal", images[0]);
    /* Before one is made anew: this may fail half way, and be tried again. */
    if (check_images(images, count, j->path, err) < 0 && unlink(j->path) < 0 && errno != ENOENT) {
        journal_error(j, err);
        goto fail;
    }
    for (; j->count < count; j->count++) {
        unsigned i = j->count;

        j->image_fds[i] = -1;
        j->images[i] = images[i];
        j->sizes[i] = disks[i].size;
        j->alike[i] = stat(images[i], &st) == 0 && (!S_ISREG(st.st_mode) || st.st_blocks > 0);
        if (bitmap_init(&j->differing[i], (disks[i].size + ENTRY_CHECK_MAX - 1) / ENTRY_CHECK_MAX) < 0) {
            error_set(err, "no memory");
            goto fail;
        }
        if (claim_image(images[i], &disks[i], err) < 0)
            goto fail;
        j->image_fds[i] = open(images[i], O_RDWR | O_CLOEXEC);
        if (j->image_fds[i] < 0) {
            error_set(err, "disk \"%s\": %s", images[i], strerror(errno));
            goto fail;
        }
    }
    if (!j->body) {
        error_set(err, "no memory");
        goto fail;
    }
    if (open_file(j, disks, capacity, err) < 0)
        goto fail;
    map_ring(j);
    for (int i = 0; i < JOBS; i++) {
        struct worker *w = &j->workers[i];

        w->journal = j;
        rc = pthread_create(&w->thread, NULL, run, w);
        if (rc) {
            error_set(err, "cannot start a thread: %s", strerror(rc));
            goto fail;
        }
        w->running = true;
    }
    *out = j;
    return 0;
fail:
    journal_close(j);
    return -1;
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    pthread_mutex_lock(&j->lock);
    j->stop = true;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
    for (int i = 0; i < JOBS; i++)
        if (j->workers[i].running)
            pthread_join(j->workers[i].thread, NULL);
    if (j->ring)
        munmap((void *)j->ring, HEADER + j->capacity);
    for (unsigned i = 0; i < DISKS_MAX; i++) {
        bitmap_free(&j->differing[i]);
        if (i < j->count && j->image_fds[i] >= 0)
            close(j->image_fds[i]);
    }
    if (j->fd >= 0)
        close(j->fd);
    free(j->body);
    pthread_mutex_destroy(&j->lock);
    pthread_cond_destroy(&j->changed);
    free(j);
}

static int finish_activation(char *const images[], unsigned count, struct error *err)
{
    struct image_record recs[DISKS_MAX];
    const struct image_record *valid = NULL;

    for (unsigned i = 0; i < count; i++) {
        if (image_read(images[i], &recs[i], err) <= 0)
            return -1;
        if (recs[i].role == IMAGE_VALID)
            valid = &recs[i];
    }
    for (unsigned i = 0; valid && i < count; i++)
        if (recs[i].role == IMAGE_REPLICA && image_validate(images[i], valid->epoch, err) < 0)
            return -1;
    return valid != NULL;
}

int journal_recover(char *const images[], unsigned count, bool activating, struct error *err)
{
    struct disk_info disks[DISKS_MAX];
    struct journal probe = {0}, *j;
    struct header h;
    bool known;
    int rc;

    snprintf(probe.path, sizeof(probe.path), "%s.remus-journal", images[0]);
    probe.fd = open(probe.path, O_RDONLY | O_CLOEXEC);
    if (probe.fd < 0)
        return errno == ENOENT ? 0 : error_set(err, "%s: %s", probe.path, strerror(errno));
    known = get_header(&probe, &h) && h.count == count;
    close(probe.fd);
    if (!known) /* nothing was ever committed */
        return 0;
    if (check_images(images, count, probe.path, err) < 0)
        return -1;
    rc = activating ? finish_activation(images, count, err) : 0;
    if (rc)
        return rc;
    for (unsigned i = 0; i < count; i++)
        disks[i] = (struct disk_info){h.sizes[i], h.ids[i]};
    if (journal_open(&j, images, disks, count, h.capacity, err) < 0)
        return -1;
    journal_close(j);
    return 1;
}

/* --- the link --- */

void journal_bases(struct journal *j, const struct disk_info *disks, uint64_t *bases)
{
    SCOPED_LOCK(&j->lock);

    for (unsigned i = 0; i < j->count; i++)
        bases[i] = j->durable.ids[i] == disks[i].id ? j->generations[i] : 0;
}

bool journal_can_keep(struct journal *j, const struct disk_info *disks)
{
    uint64_t bases[DISKS_MAX];
    bool known = journal_whole(j);

    journal_bases(j, disks, bases);
    for (unsigned i = 0; i < j->count; i++)
        known = known && bases[i];
    return known;
}

bool journal_whole(struct journal *j)
{
    SCOPED_LOCK(&j->lock);

    return j->whole || j->applied.at != j->committed.at;
}

/* The images are no replica from here on, until the next commit. */
static int give_up_epoch(struct journal *j, const uint64_t ids[DISKS_MAX], struct error *err)
{
    struct header h;

    /* Their generation is to be believed after the loss of the host, too. */
    if (await_idle(j, err) < 0 || sync_images(j, err) < 0)
        return -1;
    h = j->durable;
    h.whole = false;
    h.tail = j->committed;
    memcpy(h.ids, ids, sizeof(h.ids));
    memcpy(h.generations, j->generations, sizeof(h.generations));
    if (put_header(j, &h, err) < 0)
        return -1;
    SCOPED_LOCK(&j->lock);
    j->durable = h;
    j->whole = false;
    j->committed_epoch = j->last.epoch = 0;
    return 0;
}

int journal_begin(struct journal *j, const struct disk_info *disks, enum link_start start, struct error *err)
{
    uint64_t ids[DISKS_MAX] = {0};

    j->ended = false;
    j->head = j->committed; /* only this thread commits */
    j->keeping = start == START_KEEP;
    if (start != START_RESUME) {
        SCOPED_LOCK(&j->lock);
        j->applied_generation = 0;
    }
    if (start != START_ANEW)
        return journal_check(j, err);
    if (drain(j, err) < 0)
        return -1;
    journal_bases(j, disks, j->generations);
    for (unsigned i = 0; i < j->count; i++)
        ids[i] = disks[i].id;
    return give_up_epoch(j, ids, err);
}

/* Synchronising over an epoch that was kept takes more than the journal holds: the images get what waits in it. */
static int stop_keeping(struct journal *j, struct error *err)
{
    struct place from = j->committed;
    struct commit none;

    j->keeping = false;
    if (give_up_epoch(j, j->durable.ids, err) < 0 || apply(j, &from, j->head.at, false, &none, err) < 0)
        return -1;
    j->head = j->committed;
    return 0;
}

/* Waits until `size` octets fit (R9): the link stands still meanwhile. */
static int make_room(struct journal *j, uint64_t size, uint64_t epoch, struct error *err)
{
    uint64_t began = clock_ns();
    SCOPED_LOCK(&j->lock);

    while (!j->failed && j->head.at + size - j->durable.tail.at > j->capacity) {
        j->want_room = true;
        if (idle(j))
            return error_set(err, "checkpoint %" PRIu64 " changes more of the disks than the journal of %" PRIu64
                             " MiB holds: raise disk-journal on both hosts", epoch, j->capacity >> 20);
        pthread_cond_broadcast(&j->changed);
        pthread_cond_wait(&j->changed, &j->lock);
        j->waited_ns += clock_ns() - began;
        began = clock_ns();
    }
    j->want_room = false;
    return j->failed ? error_set(err, "%s", j->why.text) : 0;
}

/* Of no epoch.  The kernel begins to write early, so that the first commit waits for little. */
static int change_directly(struct journal *j, const uint8_t *entries, size_t length, struct error *err)
{
    j->written_back += length;
    for (unsigned i = 0; j->written_back >= WRITE_BACK && i < j->count; i++)
        sync_file_range(j->image_fds[i], 0, 0, SYNC_FILE_RANGE_WRITE);
    if (j->written_back >= WRITE_BACK)
        j->written_back = 0;
    return change_images(j, entries, length, true, err);
}

int journal_write(struct journal *j, uint64_t epoch, const uint8_t *entries, size_t length, struct error *err)
{
    const uint8_t *at = entries, *end = entries + length;
    struct entry e;

    if (j->ended || length > BODY_MAX)
        return error_set(err, "disk changes of checkpoint %" PRIu64 " out of order or too long", epoch);
    while (at < end)
        if (entry_get(&e, &at, end, j->sizes, j->count, err) < 0)
            return -1;
    if (epoch == 0 && j->keeping && j->head.at + record_size(length) - j->committed.at > j->capacity / 2 &&
        stop_keeping(j, err) < 0)
        return -1;
    if (epoch == 0 && !j->keeping)
        return change_directly(j, entries, length, err);
    if (make_room(j, record_size(length) + record_size(8), epoch, err) < 0)
        return -1;
    if (put_record(j, RECORD_CHANGES, epoch, entries, length) < 0)
        return journal_error(j, err);
    fault_crash("disk-amid-write", epoch);
    return 0;
}

int journal_end(struct journal *j, uint64_t generation, struct error *err)
{
    if (j->ended)
        return error_set(err, "a second end of the disk changes");
    j->ended = true;
    j->generation = generation;
    return 0;
}

int journal_commit(struct journal *j, uint64_t epoch, struct error *err)
{
    uint8_t body[8];
    struct wire_writer w = wire_writer(body, sizeof(body));

    if (!j->ended)
        return error_set(err, "checkpoint %" PRIu64 " comes without the end of its disk changes", epoch);
    wire_put_uint(&w, j->generation, 8);
    if (make_room(j, record_size(sizeof(body)), epoch, err) < 0)
        return -1;
    /* The mark may be on the disk as soon as it is written; what was synchronised before it must be there already. */
    if (!journal_whole(j) && sync_images(j, err) < 0)
        return -1;
    fault_crash("disk-before-commit", epoch);
    if (put_record(j, RECORD_COMMIT, epoch, body, sizeof(body)) < 0)
        return journal_error(j, err);
    fault_crash("disk-after-commit", epoch);
    j->ended = false;
    j->keeping = false;
    SCOPED_LOCK(&j->lock);
    j->committed = j->head;
    j->committed_epoch = epoch;
    for (unsigned i = 0; i < j->count; i++)
        j->generations[i] = j->generation;
    pthread_cond_broadcast(&j->changed);
    return 0;
}

int journal_read(struct journal *j, const struct proto_block *block, uint8_t *data, struct error *err)
{
    uint64_t offset = (uint64_t)block->block * PROTO_BLOCK_SIZE;
    uint64_t least = block->generation ? block->generation : 1; /* 0: older than the image's first */
    bool here;

    if (block->disk >= j->count || offset + PROTO_BLOCK_SIZE > j->sizes[block->disk])
        return error_set(err, "a page that is block %" PRIu32 " of disk %" PRIu32 ", which is not there", block->block,
                         block->disk);
    pthread_mutex_lock(&j->lock);
    while (!j->failed && j->applied_generation < least &&
           (j->workers[APPLY].busy || j->applied.at != j->committed.at))
        pthread_cond_wait(&j->changed, &j->lock);
    here = j->whole && j->applied_generation >= least;
    pthread_mutex_unlock(&j->lock);
    if (journal_check(j, err) < 0)
        return -1;
    if (!here)
        return error_set(err, "a page that is block %" PRIu32 " of disk %" PRIu32 " as of generation %" PRIu64
                         ", which is not here", block->block, block->disk, block->generation);
    if (pread(j->image_fds[block->disk], data, PROTO_BLOCK_SIZE, (off_t)offset) != PROTO_BLOCK_SIZE)
        return error_set(err, "disk \"%s\": reading at %" PRIu64 ": %s", j->images[block->disk], offset,
                         strerror(errno));
    if (XXH3_64bits(data, PROTO_BLOCK_SIZE) != block->hash)
        return error_set(err, "disk \"%s\" does not hold at %" PRIu64 " what the primary's does: restart remusd with "
                         "disk-reads = 0, then remusctl verify --repair", j->images[block->disk], offset);
    return 0;
}

static void set_hurry(struct journal *j, bool hurry)
{
    SCOPED_LOCK(&j->lock);

    j->hurry = hurry;
    pthread_cond_broadcast(&j->changed);
}

int journal_activate(struct journal *j, uint64_t epoch, struct error *err)
{
    set_hurry(j, true);
    if (drain(j, err) < 0)
        return -1;
    if (!j->whole || j->committed_epoch != epoch) {
        set_hurry(j, false);
        return error_set(err, "the disks are at checkpoint %" PRIu64 ", the memory is at %" PRIu64,
                         j->whole ? j->committed_epoch : 0, epoch);
    }
    fault_crash("disk-before-activate", epoch);
    for (unsigned i = 0; i < j->count; i++) {
        if (image_validate(j->images[i], epoch, err) < 0)
            return -1;
        fault_crash("disk-amid-activate", epoch);
    }
    unlink(j->path);
    SCOPED_LOCK(&j->lock);
    j->activated = true;
    pthread_cond_broadcast(&j->changed);
    return 0;
}

bool journal_may_be_alike(const struct journal *j, unsigned disk)
{
    return j->alike[disk];
}

/* The next run of blocks that differ; no longer noted then.  The lock is held. */
static bool take_differing(struct journal *j, struct proto_range *r)
{
    for (unsigned i = 0; j->differing_blocks && i < j->count; i++) {
        struct bitmap *b = &j->differing[i];
        uint64_t first = bitmap_next(b, 0), block = first;

        if (first == b->bits)
            continue;
        for (; block < b->bits && bitmap_test(b, block) && block - first < RANGE_BLOCKS; block++) {
            bitmap_clear(b, block);
            j->differing_blocks--;
        }
        *r = (struct proto_range){.disk = i, .offset = first * ENTRY_CHECK_MAX};
        r->length = (uint32_t)((block == b->bits ? j->sizes[i] : block * ENTRY_CHECK_MAX) - r->offset);
        return true;
    }
    return false;
}

bool journal_compared(struct journal *j, struct proto_compared *c)
{
    SCOPED_LOCK(&j->lock);

    c->count = 0;
    while (c->count < COMPARED_RANGES && take_differing(j, &c->differ[c->count]))
        c->count++;
    /* What differs is told first: whoever hears that all was compared has heard of it. */
    c->octets = j->differing_blocks ? 0 : j->checked;
    j->checked -= c->octets;
    return c->octets || c->count;
}

void journal_stats(struct journal *j, struct journal_stats *stats)
{
    SCOPED_LOCK(&j->lock);

    *stats = (struct journal_stats){
        .used_bytes = j->committed.at - j->durable.tail.at,
        .max_bytes = j->capacity,
        .applied_epoch = j->last.epoch,
        .committed_epoch = j->committed_epoch,
        .waited_ns = j->waited_ns,
        .whole = j->whole,
    };
}
