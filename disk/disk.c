/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/bitmap.h"
#include "common/cleanup.h"
#include "common/clock.h"
#include "common/hash.h"
#include "disk.h"
#include "image.h"
#include "server.h"

#define MARKS 4u     /* barriers of checkpoints not yet sent, and a margin */
#define WATCH_MS 200u
#define SYNC_BLOCKS 1024u /* looked at in one call: the changes of the guest wait meanwhile */
#define CHECK_BLOCKS 64u  /* read for their checksums in one call of the sync */
#define VERIFY_BLOCKS 16u
#define PACE_MS 10u       /* between two looks while disk-sync-rate holds back */
#define BURST (1u << 20)

#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80 /* linux/fs.h */
#endif

_Static_assert(IMAGE_BLOCK == ENTRY_CHECK_MAX, "a check speaks of a block");

struct mark {
    uint64_t epoch, head, generation, written;
    bool synced; /* all that the backup lacked was sent before */
};

struct disk {
    unsigned count;
    struct image images[DISKS_MAX];
    struct disk_info infos[DISKS_MAX];
    struct queue queue;
    pthread_t watcher;
    bool watching;
    void (*poke)(void *);
    void *poke_arg;
    bool stopped;          /* atomic */

    pthread_mutex_t lock;
    struct mark marks[MARKS];
    uint64_t acked_generation; /* what the backup has of everything, 0: nothing; atomic */
    uint64_t acked_written; /* what the guest had written at the last acknowledged barrier */
    uint64_t base[DISKS_MAX];
    bool compare[DISKS_MAX];  /* the backup has something: checksums first */
    struct disk_sync sync;
    struct disk_verify verify;
    struct bitmap resend[DISKS_MAX];       /* blocks that differ and shall be sent */
    uint64_t resend_count;
    uint64_t checks_sent, checks_answered; /* octets, on this link */
    bool walked;           /* all blocks were looked at */

    /* the ship thread's own: where it walks */
    unsigned at_disk;
    uint64_t at_block;
    uint8_t *blocks;       /* room for VERIFY_BLOCKS */
    uint64_t rate;         /* octets a second, 0: no limit */
};

int disk_open(struct disk **disk, const struct vm_config *cfg, struct error *err)
{
    struct disk *d = calloc(1, sizeof(*d));
    struct image_record rec;
    char path[108];

    if (!d)
        return error_set(err, "no memory");
    pthread_mutex_init(&d->lock, NULL);
    d->queue.fd = -1;
    d->sync.done = true;
    d->acked_written = DISK_UNKNOWN;
    if (disk_queue_path(cfg, path) < 0 || queue_open(&d->queue, path, err) < 0)
        goto fail;
    for (; d->count < cfg->disk_count; d->count++) {
        const char *image = cfg->disks[d->count];

        if (image_open(&d->images[d->count], image, false, err) < 0)
            goto fail;
        if (image_read(image, &rec, err) != 1 || rec.size != d->images[d->count].size) {
            image_close(&d->images[d->count]);
            error_set(err, "disk \"%s\" is not the one that the disk server serves", image);
            goto fail;
        }
        if (bitmap_init(&d->resend[d->count], d->images[d->count].blocks) < 0) {
            image_close(&d->images[d->count]);
            error_set(err, "no memory");
            goto fail;
        }
        d->infos[d->count] = (struct disk_info){rec.size, rec.id};
    }
    d->rate = cfg->disk_sync_rate;
    d->blocks = malloc(VERIFY_BLOCKS * IMAGE_BLOCK);
    if (!d->blocks) {
        error_set(err, "no memory");
        goto fail;
    }
    *disk = d;
    return 0;
fail:
    disk_close(d);
    return -1;
}

void disk_close(struct disk *d)
{
    if (!d)
        return;
    for (unsigned i = 0; i < d->count; i++) {
        image_close(&d->images[i]);
        bitmap_free(&d->resend[i]);
    }
    free(d->blocks);
    queue_close(&d->queue);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

unsigned disk_count(const struct disk *d)
{
    return d->count;
}

const struct disk_info *disk_infos(const struct disk *d)
{
    return d->infos;
}

/* --- the queue --- */

static void *watch(void *arg)
{
    struct disk *d = arg;
    uint32_t seen = 0;

    while (!__atomic_load_n(&d->stopped, __ATOMIC_ACQUIRE)) {
        queue_wait_pressed(&d->queue, &seen, d->rate ? PACE_MS : WATCH_MS);
        if (disk_busy(d))
            d->poke(d->poke_arg);
    }
    return NULL;
}

/* Octets of the blocks of one disk that were written after `base`; without a base, of all of it. */
static uint64_t lacking(const struct disk *d, unsigned i, uint64_t base)
{
    uint64_t octets = 0;

    if (base == 0)
        return d->images[i].size;
    for (uint64_t b = image_next_changed(&d->images[i], 0, base); b < d->images[i].blocks;
         b = image_next_changed(&d->images[i], b + 1, base))
        octets += IMAGE_BLOCK;
    return octets;
}

uint64_t disk_changed_since(const struct disk *d, uint64_t generation)
{
    uint64_t octets = 0;

    for (unsigned i = 0; i < d->count; i++)
        octets += lacking(d, i, generation);
    return octets;
}

/* The lock is held. */
static void end_verify(struct disk *d, const char *why)
{
    d->verify.running = false;
    d->verify.ended = clock_ns();
    snprintf(d->verify.failed, sizeof(d->verify.failed), "%s", why);
}

int disk_start(struct disk *d, const uint64_t *base, void (*poke)(void *), void *arg,
               struct error *err)
{
    int rc;

    pthread_mutex_lock(&d->lock);
    memset(d->marks, 0, sizeof(d->marks));
    __atomic_store_n(&d->acked_generation, 0, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < d->count; i++) {
        d->compare[i] = base[i] == DISK_COMPARE;
        d->base[i] = d->compare[i] ? 0 : base[i];
        bitmap_clear_all(&d->resend[i]);
    }
    d->at_disk = 0;
    d->at_block = 0;
    d->walked = false;
    d->resend_count = d->checks_sent = d->checks_answered = 0;
    d->sync = (struct disk_sync){.began = clock_ns()};
    /* First the queue, then the look at the stamps: no change can fall between the two. */
    queue_start(&d->queue);
    for (unsigned i = 0; i < d->count; i++)
        d->sync.total += lacking(d, i, d->base[i]);
    d->sync.done = d->sync.total == 0;
    pthread_mutex_unlock(&d->lock);
    d->poke = poke;
    d->poke_arg = arg;
    d->stopped = false;
    rc = pthread_create(&d->watcher, NULL, watch, d);
    d->watching = rc == 0;
    if (rc == 0)
        return 0;
    disk_stop(d);
    return error_set(err, "cannot start a thread: %s", strerror(rc));
}

void disk_stop(struct disk *d)
{
    __atomic_store_n(&d->stopped, true, __ATOMIC_RELEASE);
    queue_stop(&d->queue);
    SCOPED_LOCK(&d->lock);
    if (d->verify.running)
        end_verify(d, "the link to the backup ended");
}

void disk_finish(struct disk *d)
{
    if (d->watching)
        pthread_join(d->watcher, NULL);
    d->watching = false;
}

static uint64_t written(const struct disk *d)
{
    struct queue_stats s;

    queue_stats(&d->queue, &s);
    return s.written_bytes;
}

void disk_barrier(struct disk *d, uint64_t epoch)
{
    struct mark *m = &d->marks[epoch % MARKS];
    SCOPED_LOCK(&d->lock);

    m->epoch = epoch;
    m->synced = d->sync.done;
    m->written = written(d); /* a little before the barrier: what it misses counts as behind */
    m->generation = queue_barrier(&d->queue, &m->head);
}

size_t disk_take(struct disk *d, uint64_t epoch, size_t max, const uint8_t **entries)
{
    uint64_t limit;

    pthread_mutex_lock(&d->lock);
    /* Under the lock: as long as the barrier has not come, all that is there is before it. */
    limit = d->marks[epoch % MARKS].epoch == epoch ? d->marks[epoch % MARKS].head
                                                   : queue_head(&d->queue);
    pthread_mutex_unlock(&d->lock);
    return queue_peek(&d->queue, limit, max, entries);
}

size_t disk_take_to(struct disk *d, uint64_t head, size_t max, const uint8_t **entries)
{
    return queue_peek(&d->queue, head, max, entries);
}

void disk_done(struct disk *d, size_t octets)
{
    queue_done(&d->queue, octets);
}

uint64_t disk_end(struct disk *d, uint64_t epoch)
{
    SCOPED_LOCK(&d->lock);

    return d->marks[epoch % MARKS].generation;
}

uint64_t disk_acked(struct disk *d, uint64_t epoch)
{
    const struct mark *m = &d->marks[epoch % MARKS];
    SCOPED_LOCK(&d->lock);

    d->acked_written = m->written;
    if (m->synced)
        __atomic_store_n(&d->acked_generation, m->generation, __ATOMIC_RELEASE);
    return m->generation;
}

uint64_t disk_key(const struct disk *d, const uint8_t *page)
{
    return queue_read_key(&d->queue, page);
}

bool disk_find(struct disk *d, uint64_t key, const uint8_t *page, struct proto_block *found)
{
    uint64_t acked = __atomic_load_n(&d->acked_generation, __ATOMIC_ACQUIRE), block;
    uint8_t content[QUEUE_BLOCK];
    const struct image *im;
    unsigned disk;

    if (!acked || !queue_find_read(&d->queue, key, &disk, &block) || disk >= d->count)
        return false;
    im = &d->images[disk];
    if (block > UINT32_MAX || (block + 1) * QUEUE_BLOCK > im->size || image_stamp_at(im, block * QUEUE_BLOCK) > acked ||
        pread(im->fd, content, sizeof(content), (off_t)(block * QUEUE_BLOCK)) != sizeof(content) ||
        memcmp(content, page, sizeof(content)) != 0)
        return false;
    /* A write sets the stamp first: what was read is older than any write that is not in the stamp now. */
    *found = (struct proto_block){.generation = image_stamp_at(im, block * QUEUE_BLOCK), .disk = disk,
                                  .block = (uint32_t)block, .hash = XXH3_64bits(page, sizeof(content))};
    return found->generation <= acked;
}

uint64_t disk_behind(struct disk *d)
{
    SCOPED_LOCK(&d->lock);

    return d->acked_written == DISK_UNKNOWN ? DISK_UNKNOWN : written(d) - d->acked_written;
}

void disk_stats(const struct disk *d, struct queue_stats *stats)
{
    queue_stats(&d->queue, stats);
}

/* --- sync --- */

static bool is_zero(const uint8_t *p, size_t n)
{
    return n == 0 || (*p == 0 && memcmp(p, p + 1, n - 1) == 0);
}

/* The next block that differs.  False when there is none. */
static bool find_resend(struct disk *d, unsigned *disk, uint64_t *block)
{
    SCOPED_LOCK(&d->lock);

    for (*disk = 0; d->resend_count && *disk < d->count; ++*disk) {
        *block = bitmap_next(&d->resend[*disk], 0);
        if (*block < d->images[*disk].blocks)
            return true;
    }
    return false;
}

static void resent(struct disk *d, unsigned disk, uint64_t block)
{
    SCOPED_LOCK(&d->lock);

    bitmap_clear(&d->resend[disk], block);
    d->resend_count--;
}

static uint32_t block_length(const struct image *im, uint64_t block)
{
    uint64_t left = im->size - block * IMAGE_BLOCK;

    return left < IMAGE_BLOCK ? (uint32_t)left : IMAGE_BLOCK;
}

/*
 * Leaves the host's page cache as it is, where the kernel can (Linux 6.14): what a walk over the disk brings there pushes out what
 * the guest needs, and comes in larger pieces than the guest's writes, which makes each of its flushes slower.
 */
static ssize_t read_past_cache(int fd, void *data, size_t length, uint64_t offset)
{
    struct iovec all = {data, length};
    ssize_t n = preadv2(fd, &all, 1, (off_t)offset, RWF_DONTCACHE);

    return n < 0 && errno == EOPNOTSUPP ? pread(fd, data, length, (off_t)offset) : n;
}

static int read_block(struct disk *d, unsigned disk, uint64_t block, uint8_t *data, struct error *err)
{
    uint32_t length = block_length(&d->images[disk], block);
    uint64_t offset = block * IMAGE_BLOCK;

    if (read_past_cache(d->images[disk].fd, data, length, offset) != (ssize_t)length)
        return error_set(err, "disk %u: reading %" PRIu32 " octets at %" PRIu64 ": %s", disk, length, offset,
                         strerror(errno));
    return 0;
}

static void put_entry(struct buffer *out, const struct entry *e)
{
    entry_put(out->data + out->len, e);
    out->len += entry_size(e->kind, e->length);
}

/* Where add_write wants the data. */
static uint8_t *room(struct buffer *out)
{
    return out->data + out->len + ENTRY_HEAD;
}

/* A block whose data is in room(out), as one entry: what is all zero travels as a number. */
static void add_write(struct disk *d, unsigned disk, uint64_t block, struct buffer *out)
{
    uint32_t length = block_length(&d->images[disk], block);

    put_entry(out, &(struct entry){.kind = is_zero(room(out), length) ? ENTRY_TRIM : ENTRY_WRITE, .disk = disk,
                                   .length = length, .offset = block * IMAGE_BLOCK});
}

/* One block as it is now. */
static int add_block(struct disk *d, unsigned disk, uint64_t block, struct buffer *out, struct error *err)
{
    if (read_block(d, disk, block, room(out), err) < 0)
        return -1;
    add_write(d, disk, block, out);
    return 0;
}

static void add_check(struct disk *d, unsigned disk, uint64_t block, const uint8_t *data, struct buffer *out)
{
    uint32_t length = block_length(&d->images[disk], block);

    put_entry(out, &(struct entry){.kind = ENTRY_CHECK, .disk = disk, .length = length,
                                   .offset = block * IMAGE_BLOCK, .hash = XXH3_64bits(data, length)});
    SCOPED_LOCK(&d->lock);
    d->checks_sent += length;
}

/* disk-sync-rate; the lock is held. */
static bool may_go(const struct disk *d, uint64_t octets, uint64_t began)
{
    return !d->rate || (double)octets <= (double)d->rate * (double)(clock_ns() - began) / 1e9 + BURST;
}

/* The lock is held. */
static bool all_answered(const struct disk *d)
{
    return d->walked && d->checks_answered == d->checks_sent;
}

bool disk_busy(struct disk *d)
{
    const struct disk_verify *v = &d->verify;
    SCOPED_LOCK(&d->lock);
    bool work = !d->walked || d->resend_count || all_answered(d);

    return queue_pressed(&d->queue) || (!d->sync.done && work && may_go(d, d->sync.sent, d->sync.began)) ||
           (v->running && work && may_go(d, v->sent, v->began));
}

static int add_resends(struct disk *d, struct buffer *out, size_t max, uint64_t *octets, struct error *err)
{
    uint64_t block;
    unsigned disk;

    while (out->len + entry_size(ENTRY_WRITE, IMAGE_BLOCK) <= max && find_resend(d, &disk, &block)) {
        resent(d, disk, block); /* before it is read: an answer may come meanwhile */
        if (add_block(d, disk, block, out, err) < 0)
            return -1;
        *octets += IMAGE_BLOCK;
    }
    return 0;
}

/* Goes on from where it walks.  False when all was looked at. */
static bool sync_walk(struct disk *d, struct buffer *out, size_t max, uint64_t *octets, int *rc, struct error *err)
{
    unsigned blocks = 0;

    for (; d->at_disk < d->count; d->at_disk++, d->at_block = 0) {
        struct image *im = &d->images[d->at_disk];
        uint64_t base = d->base[d->at_disk];
        bool compare = d->compare[d->at_disk];

        for (;; d->at_block++) {
            if (base)
                d->at_block = image_next_changed(im, d->at_block, base);
            if (d->at_block >= im->blocks)
                break;
            if (out->len + entry_size(ENTRY_WRITE, IMAGE_BLOCK) > max ||
                blocks++ == (compare ? CHECK_BLOCKS : SYNC_BLOCKS))
                return true;
            if (compare && (*rc = read_block(d, d->at_disk, d->at_block, d->blocks, err)) == 0)
                add_check(d, d->at_disk, d->at_block, d->blocks, out);
            else if (!compare)
                *rc = add_block(d, d->at_disk, d->at_block, out, err);
            if (*rc < 0)
                return true;
            *octets += IMAGE_BLOCK;
        }
    }
    return false;
}

int disk_sync_next(struct disk *d, struct buffer *out, size_t max, struct error *err)
{
    uint64_t octets = 0;
    bool more, go;
    int rc = 0;

    pthread_mutex_lock(&d->lock);
    go = may_go(d, d->sync.sent, d->sync.began);
    pthread_mutex_unlock(&d->lock);
    if (!go)
        return 1;
    if (buffer_reserve(out, max) < 0)
        return error_set(err, "no memory");
    if (add_resends(d, out, max, &octets, err) < 0)
        return -1;
    more = sync_walk(d, out, max, &octets, &rc, err);
    SCOPED_LOCK(&d->lock);
    d->sync.sent += octets;
    d->walked = !more;
    d->sync.done = all_answered(d) && d->resend_count == 0;
    return rc < 0 ? -1 : !d->sync.done;
}

void disk_sync_state(struct disk *d, struct disk_sync *sync)
{
    SCOPED_LOCK(&d->lock);

    *sync = d->sync;
}

/* --- comparing --- */

int disk_verify_start(struct disk *d, bool repair, struct error *err)
{
    SCOPED_LOCK(&d->lock);

    if (d->verify.running)
        return error_set(err, "a comparison is under way already");
    d->verify = (struct disk_verify){.running = true, .repair = repair, .began = clock_ns()};
    for (unsigned i = 0; i < d->count; i++)
        d->verify.total += d->images[i].size;
    d->at_disk = 0;
    d->at_block = 0;
    d->walked = false;
    return 0;
}

void disk_verify_state(struct disk *d, struct disk_verify *verify)
{
    SCOPED_LOCK(&d->lock);

    *verify = d->verify;
}

/*
 * Reads `count` blocks as they are at one point of the order of changes, *head: without the queue's lock, which the guest's
 * writes need, and again, with it, what was changed meanwhile.  1: done; 0: the barrier of the epoch has come, the blocks may hold
 * what belongs to the next one (R5).
 */
static int read_exactly(struct disk *d, uint64_t epoch, unsigned disk, uint64_t block, unsigned count, uint8_t *data,
                        uint64_t *head, struct error *err)
{
    uint64_t before;
    int rc = 0;

    queue_lock(&d->queue, &before);
    queue_unlock(&d->queue);
    for (unsigned i = 0; i < count; i++)
        if (read_block(d, disk, block + i, data + i * IMAGE_BLOCK, err) < 0)
            return -1;
    SCOPED_LOCK(&d->lock);
    queue_lock(&d->queue, head);
    for (unsigned i = 0; rc == 0 && i < count; i++)
        if (queue_touches(&d->queue, before, *head, disk, (block + i) * IMAGE_BLOCK,
                          block_length(&d->images[disk], block + i)))
            rc = read_block(d, disk, block + i, data + i * IMAGE_BLOCK, err);
    queue_unlock(&d->queue);
    return rc < 0 ? -1 : d->marks[epoch % MARKS].epoch != epoch;
}

/* The next blocks of the walk. */
static int verify_walk(struct disk *d, uint64_t epoch, struct buffer *out, uint64_t *head, uint64_t *octets,
                       struct error *err)
{
    uint64_t left = d->images[d->at_disk].blocks - d->at_block;
    unsigned count = left < VERIFY_BLOCKS ? (unsigned)left : VERIFY_BLOCKS;
    int rc = read_exactly(d, epoch, d->at_disk, d->at_block, count, d->blocks, head, err);

    if (rc <= 0)
        return rc;
    for (unsigned i = 0; i < count; i++, *octets += IMAGE_BLOCK)
        add_check(d, d->at_disk, d->at_block + i, d->blocks + i * IMAGE_BLOCK, out);
    d->at_block += count;
    if (d->at_block == d->images[d->at_disk].blocks) {
        d->at_disk++;
        d->at_block = 0;
    }
    return 1;
}

/* A block that differs, again. */
static int verify_repair(struct disk *d, uint64_t epoch, unsigned disk, uint64_t block, struct buffer *out,
                         uint64_t *head, struct error *err)
{
    int rc = read_exactly(d, epoch, disk, block, 1, room(out), head, err);

    if (rc <= 0)
        return rc;
    add_write(d, disk, block, out);
    resent(d, disk, block);
    return 1;
}

int disk_verify_next(struct disk *d, uint64_t epoch, struct buffer *out, uint64_t *head, struct error *err)
{
    struct disk_verify *v = &d->verify;
    uint64_t octets = 0, block;
    unsigned disk;
    int rc;

    pthread_mutex_lock(&d->lock);
    rc = v->running && may_go(d, v->sent, v->began);
    pthread_mutex_unlock(&d->lock);
    if (!rc)
        return 0;
    if (buffer_reserve(out, VERIFY_BLOCKS * entry_size(ENTRY_WRITE, IMAGE_BLOCK)) < 0)
        return error_set(err, "no memory");
    if (find_resend(d, &disk, &block))
        return verify_repair(d, epoch, disk, block, out, head, err);
    rc = d->at_disk < d->count ? verify_walk(d, epoch, out, head, &octets, err) : 0;
    SCOPED_LOCK(&d->lock);
    v->sent += octets;
    d->walked = d->at_disk == d->count;
    if (rc == 0 && v->running && d->resend_count == 0 && all_answered(d))
        end_verify(d, "");
    return rc;
}

/* The lock is held. */
static void note_range(struct disk_verify *v, const struct proto_range *r)
{
    struct proto_range *last = v->range_count ? &v->ranges[v->range_count - 1] : NULL;

    v->differing += r->length;
    if (last && last->disk == r->disk && last->offset + last->length == r->offset &&
        last->length <= UINT32_MAX - r->length)
        last->length += r->length;
    else if (v->range_count < DISK_RANGES)
        v->ranges[v->range_count++] = *r;
}

static int check_range(const struct disk *d, const struct proto_range *r, struct error *err)
{
    if (r->disk < d->count && r->length && r->offset % IMAGE_BLOCK == 0 && r->offset < d->images[r->disk].size &&
        r->length <= d->images[r->disk].size - r->offset)
        return 0;
    return error_set(err, "COMPARED speaks of %" PRIu32 " octets at %" PRIu64 " of disk %" PRIu32, r->length, r->offset,
                     r->disk);
}

int disk_compared(struct disk *d, const struct proto_compared *c, struct error *err)
{
    pthread_mutex_lock(&d->lock);
    if (c->octets > d->checks_sent - d->checks_answered) {
        pthread_mutex_unlock(&d->lock);
        return error_set(err, "COMPARED speaks of more than was sent");
    }
    d->checks_answered += c->octets;
    if (d->verify.running)
        d->verify.compared += c->octets;
    for (unsigned i = 0; i < c->count; i++) {
        const struct proto_range *r = &c->differ[i];

        if (check_range(d, r, err) < 0) {
            pthread_mutex_unlock(&d->lock);
            return -1;
        }
        if (d->verify.running)
            note_range(&d->verify, r);
        for (uint64_t b = r->offset / IMAGE_BLOCK; b <= (r->offset + r->length - 1) / IMAGE_BLOCK; b++)
            if ((!d->sync.done || d->verify.repair) && !bitmap_test(&d->resend[r->disk], b)) {
                bitmap_set(&d->resend[r->disk], b);
                d->resend_count++;
                if (!d->sync.done)
                    d->sync.total += IMAGE_BLOCK;
            }
    }
    pthread_mutex_unlock(&d->lock);
    d->poke(d->poke_arg);
    return 0;
}
