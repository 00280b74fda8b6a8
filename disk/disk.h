/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disks of a protected VM, as remusd's engine sees them: which changes belong to which epoch, and what
 * a backup lacks.
 *
 *     disk_start        a link is up; from here on every change is queued
 *     disk_sync_next    blocks that the backup lacks, while the guest runs
 *     disk_verify_next  checksums of blocks, to be compared by the backup at the same point in the order of changes
 *     disk_compared     what the backup says of them
 *     disk_barrier      in the pause: the epoch ends here
 *     disk_take, _done  the changes of an epoch, in order; also before its barrier, as they come
 *     disk_end          all of the epoch was taken: its generation
 *     disk_stop         the link has ended
 *
 * One thread calls disk_sync_next, disk_verify_next, disk_take and disk_done, so that a block read for the sync and the changes around it go out
 * in an order that leaves the newest content last: a change is queued after it was made, so a block that was read contains all changes
 * that were taken before, and those that it contains too early are made again.
 */
#ifndef REMUS_DISK_H
#define REMUS_DISK_H

#include "common/buffer.h"
#include "common/config.h"
#include "common/protocol.h"
#include "entry.h"
#include "queue.h"

struct disk;

struct disk_info {
    uint64_t size, id;
};

struct disk_sync {
    uint64_t total, sent; /* octets */
    uint64_t began;       /* clock_ns; 0: never */
    bool done;
};

#define DISK_UNKNOWN UINT64_MAX

/* Attaches to the running disk server. */
int disk_open(struct disk **disk, const struct vm_config *cfg, struct error *err);
void disk_close(struct disk *d);

unsigned disk_count(const struct disk *d);
const struct disk_info *disk_infos(const struct disk *d); /* ids change only when a server starts */

/* One comparison of all disks with the backup's, by block checksums. */
#define DISK_RANGES 16u

struct disk_verify {
    bool running, repair;
    uint64_t began, ended;    /* clock_ns; began 0: never */
    uint64_t total, sent;     /* octets whose checksums are to be, were sent */
    uint64_t compared, differing;
    struct proto_range ranges[DISK_RANGES]; /* the first that differ */
    unsigned range_count;
    char failed[128];         /* why it did not end; "" */
};

/*
 * base[i]: the generation of disk i up to which the backup has it, 0 for nothing, DISK_COMPARE when it has an image that may
 * be alike: then checksums go first, and only blocks that differ.  poke(arg) is called from a thread of
 * the disk's own when the queue has become a sixteenth full and must be taken early.
 */
int disk_start(struct disk *d, const uint64_t *base, void (*poke)(void *), void *arg,
               struct error *err);
void disk_stop(struct disk *d);   /* from any thread, more than once; the guest no longer waits for anybody */
void disk_finish(struct disk *d); /* after disk_stop: ends the thread */

/* R5, R8: one uncontended lock and two numbers. */
void disk_barrier(struct disk *d, uint64_t epoch);

/* The next changes of `epoch`: whole entries, at most `max` octets.  0: none now, or none at all after its barrier. */
size_t disk_take(struct disk *d, uint64_t epoch, size_t max, const uint8_t **entries);
void disk_done(struct disk *d, size_t octets);

/*
 * Read tracking, for a page of an epoch whose barrier has come.  True: the block holds exactly this, and nobody has written
 * to it since `generation`, which the backup has acknowledged.  So until that epoch is applied, too, the backup's image holds
 * it as soon as it holds `generation`.  key: disk_key() of the page, asked for all pages of a batch first.
 */
uint64_t disk_key(const struct disk *d, const uint8_t *page);
bool disk_find(struct disk *d, uint64_t key, const uint8_t *page, struct proto_block *found);

/* After the barrier of `epoch`, and when disk_take has given 0 for it. */
uint64_t disk_end(struct disk *d, uint64_t epoch);

/* The backup holds this epoch: its generation. */
uint64_t disk_acked(struct disk *d, uint64_t epoch);
/* Octets that the guest has written since then; DISK_UNKNOWN before the first. */
uint64_t disk_behind(struct disk *d);

/* Fills `out` with entries of the next blocks to sync, at most `max` octets, at least 1 MiB.  1: more; 0: all done. */
int disk_sync_next(struct disk *d, struct buffer *out, size_t max, struct error *err);

/* Is there something to do for disk_take or disk_sync_next that should not wait for the next checkpoint? */
bool disk_busy(struct disk *d);
void disk_sync_state(struct disk *d, struct disk_sync *sync);

/* From any thread.  repair: blocks that differ are sent again. */
int disk_verify_start(struct disk *d, bool repair, struct error *err);
void disk_verify_state(struct disk *d, struct disk_verify *verify);
/*
 * Fills `out` with entries of `epoch` that belong behind all changes up to *head, of which none is taken beyond it.  0: nothing to do
 * now.  The barrier of `epoch` may come at any time.
 */
int disk_verify_next(struct disk *d, uint64_t epoch, struct buffer *out, uint64_t *head, struct error *err);
/* The changes up to `head`, as disk_take. */
size_t disk_take_to(struct disk *d, uint64_t head, size_t max, const uint8_t **entries);
/* A COMPARED record.  -1 when it makes no sense (R10). */
int disk_compared(struct disk *d, const struct proto_compared *c, struct error *err);

/* Octets that a backup with this base lacks. */
uint64_t disk_changed_since(const struct disk *d, uint64_t generation);
void disk_stats(const struct disk *d, struct queue_stats *stats);

#endif
