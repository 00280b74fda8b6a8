/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The write queue: a ring of disk entries in memory that the disk server (plugin.c, inside nbdkit) and remusd share.
 * One for all disks of a VM, so that the order of writes across disks is kept.
 *
 *          tail                       head
 *           v                          v
 *     ......|==entry==|=entry=|==entry=|.......|pad|       positions only grow
 *            remusd takes here          the server puts here
 *
 * A ring that was emptied is filled from its beginning again: while remusd keeps up, only memory is used that is still in the
 * processor's cache.
 *
 * The server holds the lock over "write to the image, then append": so queue order is the order on the image.  The
 * barrier takes the same lock.  A write is in the epoch before it or after it, never in both, and what
 * the guest saw completed before its suspend was appended before (R5).
 *
 * Bounded (R9): while it is full the guest's writes wait.  They never wait for a remusd that is gone: it holds a lock
 * on the file, which the kernel drops with it.  Without a reader nothing is queued; the stamps of the images
 * (image.h) remember what was written meanwhile.
 *
 * Whoever dies with the lock does no harm: head moves last (robust mutex).
 */
#ifndef REMUS_DISK_QUEUE_H
#define REMUS_DISK_QUEUE_H

#include <stdbool.h>
#include <sys/types.h>

#include "entry.h"

struct queue_shared;
struct queue_read;

struct queue {
    struct queue_shared *shared;
    uint8_t *data;
    size_t capacity;
    struct queue_read *reads; /* behind the ring */
    size_t read_count;
    int fd;
};

struct queue_stats {
    size_t used_bytes, max_bytes;
    uint64_t written_bytes; /* by the guest, since the server started */
    uint64_t full_ns;       /* that the guest's writes waited for room */
    uint64_t errors;        /* of the image */
};

/*
 * Server: makes the file anew.  capacity: at least 1 MiB; reads: octets for what the guest has read.  From here on
 * queue_server() finds this process.
 */
int queue_create(struct queue *q, const char *path, size_t capacity, size_t reads, uint64_t generation,
                 bool writable, struct error *err);
void queue_set_server(struct queue *q, pid_t pid); /* after a fork: who serves */

/* remusd: attaches to the file of a running server; only one reader at a time. */
int queue_open(struct queue *q, const char *path, struct error *err);
void queue_close(struct queue *q);

/* The process that serves, 0 for none; needs no queue_open. */
pid_t queue_server(const char *path);

/* --- server --- */

/* A change is about to be made: waits for room, takes the lock, returns the generation to stamp it with. */
uint64_t queue_begin(struct queue *q, unsigned kind, uint32_t length);
/* It was made (entry), or not (NULL): appends when somebody reads, drops the lock. */
void queue_end(struct queue *q, const struct entry *e);
void queue_failed(struct queue *q); /* before queue_end: counts as an error of the image */
bool queue_writable(const struct queue *q);

/*
 * Read tracking (RemusDB, PVLDB 4(11), 2011, section 5): behind the ring a table that tells where on the disks a content was
 * read, by a hash of parts of it.  It only hints: what it says may be of another content, or overwritten since, and new
 * hints take the place of old ones (R9).  No locks.
 */
#define QUEUE_BLOCK 4096u /* at a multiple of it */

void queue_note_read(struct queue *q, unsigned disk, uint64_t block, const uint8_t *content);
/* What to look a content up by, 0: not at all.  Asking for several keys before the first look-up hides the table's latency. */
uint64_t queue_read_key(const struct queue *q, const uint8_t *content);
bool queue_find_read(const struct queue *q, uint64_t key, unsigned *disk, uint64_t *block);

/* --- remusd --- */

void queue_start(struct queue *q);                 /* empty, and logging from here on */
void queue_stop(struct queue *q);                  /* no more logging; from any thread */
uint64_t queue_barrier(struct queue *q, uint64_t *head); /* ends a generation; returns it and its end */
uint64_t queue_head(struct queue *q);
/* Between the two no change is being made: what is in the images is what the changes up to *head left there. */
void queue_lock(struct queue *q, uint64_t *head);
void queue_unlock(struct queue *q);
/* Does one of the entries between `from`, which is not taken yet, and `to` touch this range? */
bool queue_touches(const struct queue *q, uint64_t from, uint64_t to, unsigned disk, uint64_t offset, uint32_t length);
bool queue_pressed(const struct queue *q);         /* a sixteenth full: take early */
/* Until it became so since the last call with this `seen`, or the time is over. */
void queue_wait_pressed(struct queue *q, uint32_t *seen, unsigned ms);
/* Whole entries between tail and `limit`, contiguous, at most `max` octets (at least one entry fits). 0: none. */
size_t queue_peek(struct queue *q, uint64_t limit, size_t max, const uint8_t **entries);
void queue_done(struct queue *q, size_t octets);
void queue_stats(const struct queue *q, struct queue_stats *stats);

/* --- remus-backupd --- */

/* From here on the guest may write.  Not before activation (R5). */
void queue_let_write(struct queue *q);

#endif
