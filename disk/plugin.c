/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk server: an nbdkit plugin that serves the disks of one VM, and tells remusd each change of them.
 *
 *     nbdkit -U SOCKET remus-disk.so queue=FILE queue-size=OCTETS [reads-size=OCTETS] [standby=1] disk=IMAGE disk=IMAGE ...
 *
 * The exports are called 0, 1, ...  Reads run in parallel.  A change holds the queue's lock while it is made and appended
 * (queue.h): it costs the guest one copy more than without.  Flush and FUA go to the image.  In standby the guest's
 * changes are refused until remus-backupd has activated the replica (R5).  What the guest reads is noted for read tracking.
 */
#define NBDKIT_API_VERSION 2
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <nbdkit-plugin.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "queue.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static char *queue_path, *paths[DISKS_MAX];
static uint64_t queue_size, reads_size;
static int standby;
static struct image images[DISKS_MAX];
static uint8_t reread[ENTRY_DATA_MAX]; /* under the queue's lock */
static unsigned count;
static struct queue queue = {.fd = -1};

static int disk_config(const char *key, const char *value)
{
    if (strcmp(key, "queue") == 0)
        return (queue_path = nbdkit_absolute_path(value)) ? 0 : -1;
    if (strcmp(key, "queue-size") == 0)
        return nbdkit_parse_uint64_t("queue-size", value, &queue_size);
    if (strcmp(key, "reads-size") == 0)
        return nbdkit_parse_uint64_t("reads-size", value, &reads_size);
    if (strcmp(key, "standby") == 0)
        return (standby = nbdkit_parse_bool(value)) < 0 ? -1 : 0;
    if (strcmp(key, "disk") == 0) {
        if (count == DISKS_MAX) {
            nbdkit_error("more than %d disks", DISKS_MAX);
            return -1;
        }
        if (!(paths[count] = nbdkit_absolute_path(value)))
            return -1;
        count++;
        return 0;
    }
    nbdkit_error("unknown parameter %s", key);
    return -1;
}

static int disk_config_complete(void)
{
    if (queue_path && queue_size >= 1 << 20 && count)
        return 0;
    nbdkit_error("queue=FILE, queue-size=OCTETS (at least 1 MiB) and disk=IMAGE are needed");
    return -1;
}

static int disk_get_ready(void)
{
    uint64_t generation;
    struct error err;

    if (queue_server(queue_path)) {
        nbdkit_error("%s: another server uses this write queue", queue_path);
        return -1;
    }
    for (unsigned i = 0; i < count; i++) {
        if ((!standby && image_take(paths[i], &err) < 0) || image_open(&images[i], paths[i], true, &err) < 0) {
            nbdkit_error("%s", err.text);
            return -1;
        }
    }
    if (image_begin(paths, images, count, &generation, &err) < 0 ||
        queue_create(&queue, queue_path, queue_size, reads_size, generation, !standby, &err) < 0) {
        nbdkit_error("%s", err.text);
        return -1;
    }
    return 0;
}

static int disk_after_fork(void)
{
    queue_set_server(&queue, getpid());
    return 0;
}

static void *disk_open(int readonly)
{
    const char *name = nbdkit_export_name();
    char *end;
    unsigned long n = strtoul(name ? name : "", &end, 10);

    (void)readonly;
    if (!name || *end || n >= count) { /* no name is disk 0 */
        nbdkit_error("there is no export '%s'", name ? name : "");
        return NULL;
    }
    return &images[n];
}

static int64_t disk_get_size(void *handle)
{
    return (int64_t)((struct image *)handle)->size;
}

static int disk_can_trim(void *handle)
{
    return ((struct image *)handle)->regular; /* what a device reads after a discard is not defined */
}

static int disk_can_fua(void *handle)
{
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

/* The whole blocks among them. */
static void note_reads(const struct image *im, const uint8_t *data, uint64_t offset, uint64_t length)
{
    uint64_t skip = -offset % QUEUE_BLOCK;

    for (; skip + QUEUE_BLOCK <= length; skip += QUEUE_BLOCK)
        queue_note_read(&queue, (unsigned)(im - images), (offset + skip) / QUEUE_BLOCK, data + skip);
}

static int disk_pread(void *handle, void *buf, uint32_t length, uint64_t offset, uint32_t flags)
{
    const uint64_t first = offset;
    const uint8_t *data = buf;
    struct image *im = handle;

    (void)flags;
    while (length) {
        ssize_t n = pread(im->fd, buf, length, (off_t)offset);

        if (n <= 0) {
            nbdkit_set_error(n < 0 ? errno : EIO);
            nbdkit_error("reading %" PRIu32 " octets at %" PRIu64 ": %m", length, offset);
            return -1;
        }
        buf = (uint8_t *)buf + n;
        length -= (uint32_t)n;
        offset += (uint64_t)n;
    }
    note_reads(im, data, first, offset - first);
    return 0;
}

/* Ends a change: the backup gets what is there now, where it can be read. */
static void end_with_content(struct image *im, struct entry *e)
{
    e->data = reread;
    queue_end(&queue, pread(im->fd, reread, e->length, (off_t)e->offset) == (ssize_t)e->length ? e : NULL);
}

/*
 * It failed, perhaps half way.  The guest is told and knows nothing of what is there now; the backup gets the same.  Of a
 * range of any length it takes more than one entry: no whole of it was ever promised.
 */
static void fail_change(struct image *im, struct entry e, int why)
{
    if (why == EOPNOTSUPP) { /* nothing was changed, and nbdkit writes zeros instead */
        queue_end(&queue, NULL);
        return;
    }
    queue_failed(&queue);
    if (e.kind == ENTRY_WRITE) {
        end_with_content(im, &e);
        return;
    }
    queue_end(&queue, NULL);
    e.kind = ENTRY_WRITE;
    for (uint32_t left = e.length; left; left -= e.length, e.offset += e.length) {
        e.length = left < ENTRY_DATA_MAX ? left : ENTRY_DATA_MAX;
        image_stamp(im, e.offset, e.length, queue_begin(&queue, e.kind, e.length));
        end_with_content(im, &e);
    }
}

/* One change of at most ENTRY_DATA_MAX octets of data: stamped, made, queued, in this order. */
static int change(struct image *im, const struct entry *e)
{
    uint64_t generation;
    int rc, why;

    if (!queue_writable(&queue)) {
        nbdkit_set_error(EROFS);
        nbdkit_error("the replica of disk %u is not activated", e->disk);
        return -1;
    }
    generation = queue_begin(&queue, e->kind, e->length);
    image_stamp(im, e->offset, e->length, generation);
    rc = entry_apply(e, im->fd);
    why = errno;
    if (rc == 0)
        queue_end(&queue, e);
    else
        fail_change(im, *e, why);
    if (rc < 0) {
        nbdkit_set_error(why);
        nbdkit_error("disk %u: changing %" PRIu32 " octets at %" PRIu64 ": %s", e->disk, e->length,
                     e->offset, strerror(why));
    }
    return rc;
}

static int flush_image(struct image *im)
{
    if (fdatasync(im->fd) == 0)
        return 0;
    nbdkit_set_error(errno);
    nbdkit_error("flush: %m");
    return -1;
}

static int disk_pwrite(void *handle, const void *buf, uint32_t length, uint64_t offset, uint32_t flags)
{
    struct image *im = handle;
    struct entry e = {.kind = ENTRY_WRITE, .disk = (unsigned)(im - images), .offset = offset, .data = buf};

    for (uint32_t left = length; left; left -= e.length, e.offset += e.length, e.data += e.length) {
        e.length = left < ENTRY_DATA_MAX ? left : ENTRY_DATA_MAX;
        if (change(im, &e) < 0)
            return -1;
    }
    return flags & NBDKIT_FLAG_FUA ? flush_image(im) : 0;
}

static int clear(struct image *im, unsigned kind, uint32_t length, uint64_t offset, uint32_t flags)
{
    struct entry e = {.kind = kind, .disk = (unsigned)(im - images), .length = length, .offset = offset};

    if (length && change(im, &e) < 0)
        return -1;
    return flags & NBDKIT_FLAG_FUA ? flush_image(im) : 0;
}

static int disk_zero(void *handle, uint32_t length, uint64_t offset, uint32_t flags)
{
    struct image *im = handle;
    bool trim = flags & NBDKIT_FLAG_MAY_TRIM && im->regular;

    return clear(im, trim ? ENTRY_TRIM : ENTRY_ZERO, length, offset, flags);
}

static int disk_trim(void *handle, uint32_t length, uint64_t offset, uint32_t flags)
{
    return clear(handle, ENTRY_TRIM, length, offset, flags);
}

static int disk_flush(void *handle, uint32_t flags)
{
    (void)flags;
    return flush_image(handle);
}

static void disk_unload(void)
{
    struct error err;
    bool served = queue.fd >= 0 && queue_writable(&queue);

    for (unsigned i = 0; i < count; i++) {
        if (served && fdatasync(images[i].fd) == 0 && fdatasync(images[i].record_fd) == 0)
            image_release(paths[i], &err);
        image_close(&images[i]);
        free(paths[i]);
    }
    if (queue.fd >= 0)
        unlink(queue_path);
    queue_close(&queue);
    free(queue_path);
}

static struct nbdkit_plugin plugin = {
    .name = "remus-disk",
    .longname = "remusd disk server",
    .description = "Serves the disks of a protected VM and hands each write to remusd.",
    .config = disk_config,
    .config_complete = disk_config_complete,
    .config_help = "queue=FILE        write queue shared with remusd\n"
                   "queue-size=OCTETS its size\n"
                   "reads-size=OCTETS memory for what the guest has read\n"
                   "disk=IMAGE        a disk, as export 0, 1, ...\n"
                   "standby=1         refuse changes until the replica is activated",
    .get_ready = disk_get_ready,
    .after_fork = disk_after_fork,
    .open = disk_open,
    .get_size = disk_get_size,
    .can_trim = disk_can_trim,
    .can_fua = disk_can_fua,
    .pread = disk_pread,
    .pwrite = disk_pwrite,
    .zero = disk_zero,
    .trim = disk_trim,
    .flush = disk_flush,
    .unload = disk_unload,
    .errno_is_preserved = 0,
};

NBDKIT_REGISTER_PLUGIN(plugin)
