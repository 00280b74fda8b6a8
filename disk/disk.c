/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"
#include "disk.h"
#include "image.h"
#include "server.h"

#define MARKS 4u     /* barriers of checkpoints not yet sent, and a margin */
#define WATCH_MS 200u
#define SYNC_BLOCKS 1024u /* looked at in one call: the changes of the guest wait meanwhile */

struct mark {
    uint64_t epoch, head, generation, written;
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
    uint64_t acked_written; /* what the guest had written at the last acknowledged barrier */
    uint64_t base[DISKS_MAX];
    struct disk_sync sync;
    unsigned sync_disk;    /* the sync's own */
    uint64_t sync_block;
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
        d->infos[d->count] = (struct disk_info){rec.size, rec.id};
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
    for (unsigned i = 0; i < d->count; i++)
        image_close(&d->images[i]);
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
        queue_wait_pressed(&d->queue, &seen, WATCH_MS);
        if (queue_pressed(&d->queue))
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

int disk_start(struct disk *d, const uint64_t *base, void (*poke)(void *), void *arg,
               struct error *err)
{
    int rc;

    pthread_mutex_lock(&d->lock);
    memset(d->marks, 0, sizeof(d->marks));
    memcpy(d->base, base, d->count * sizeof(*base));
    d->sync_disk = 0;
    d->sync_block = 0;
    d->sync = (struct disk_sync){.began = clock_ns()};
    /* First the queue, then the look at the stamps: no change can fall between the two. */
    queue_start(&d->queue);
    for (unsigned i = 0; i < d->count; i++)
        d->sync.total += lacking(d, i, base[i]);
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
    return m->generation;
}

uint64_t disk_behind(struct disk *d)
{
    SCOPED_LOCK(&d->lock);

    return d->acked_written == DISK_UNKNOWN ? DISK_UNKNOWN : written(d) - d->acked_written;
}

bool disk_busy(struct disk *d)
{
    SCOPED_LOCK(&d->lock);

    return !d->sync.done || queue_pressed(&d->queue);
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

/* One block as it is now, as one entry: what is all zero travels as a number. */
static int add_block(struct disk *d, struct buffer *out, struct error *err)
{
    struct image *im = &d->images[d->sync_disk];
    uint64_t offset = d->sync_block * IMAGE_BLOCK;
    uint32_t length = im->size - offset < IMAGE_BLOCK ? (uint32_t)(im->size - offset) : IMAGE_BLOCK;
    struct entry e = {ENTRY_WRITE, d->sync_disk, length, offset, NULL};
    uint8_t *data = out->data + out->len + ENTRY_HEAD;

    if (pread(im->fd, data, length, (off_t)offset) != (ssize_t)length)
        return error_set(err, "disk %u: reading %" PRIu32 " octets at %" PRIu64 ": %s", d->sync_disk,
                         length, offset, strerror(errno));
    if (is_zero(data, length))
        e.kind = ENTRY_TRIM;
    entry_put(out->data + out->len, &e);
    out->len += entry_size(e.kind, length);
    pthread_mutex_lock(&d->lock);
    d->sync.sent += IMAGE_BLOCK;
    pthread_mutex_unlock(&d->lock);
    return 0;
}

int disk_sync_next(struct disk *d, struct buffer *out, size_t max, struct error *err)
{
    size_t most = entry_size(ENTRY_WRITE, IMAGE_BLOCK);
    unsigned blocks = 0;

    if (buffer_reserve(out, max) < 0)
        return error_set(err, "no memory");
    for (; d->sync_disk < d->count; d->sync_disk++, d->sync_block = 0) {
        struct image *im = &d->images[d->sync_disk];
        uint64_t base = d->base[d->sync_disk];

        for (;; d->sync_block++) {
            if (base)
                d->sync_block = image_next_changed(im, d->sync_block, base);
            if (d->sync_block >= im->blocks)
                break;
            if (out->len + most > max || blocks++ == SYNC_BLOCKS)
                return 1;
            if (add_block(d, out, err) < 0)
                return -1;
        }
    }
    SCOPED_LOCK(&d->lock);
    d->sync.done = true;
    return 0;
}

void disk_sync_state(struct disk *d, struct disk_sync *sync)
{
    SCOPED_LOCK(&d->lock);

    *sync = d->sync;
}
