/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disks of a replica on the backup: a write-ahead journal in front of the images.
 *
 *     DISK records --> journal file (a ring) --commit--> made durable --> images, in order --> made durable, room given back
 *                      caller's thread                   a thread         a thread             a thread
 *
 * The changes of an epoch go to the journal as they arrive; the images are not touched before the epoch is committed
 * (R4, R5).  That file is the bounded log (R9): while there is memory its octets are in the page cache, and are applied
 * from there through a mapping, without a copy; when there is not, they are on the disk already.  A journal of our own
 * in memory would be the same with a second path, and would lose what was acknowledged when the daemon dies.
 *
 * Each thread takes all that the one before it has done by then: the slower the disk, the more epochs share a flush.
 *
 * After a crash at any moment, of the daemon or of the host, the images are at a committed epoch: before an octet of an epoch
 * reaches an image, the epoch and its commit mark are durable in the journal; space is reused only when the images themselves are
 * durable beyond it; what was synchronised is durable in the images before the mark behind it is written.  journal_open()
 * replays, which may write again what was written before, in the same order.
 *
 *     file: header (4096) | ring of records: head (40) and body; positions only grow, index = position % capacity
 *
 *     0   magic u32 "rjr2" | type u32: 1 changes, 2 commit
 *     8   position u64               where the record should be: what an older lap left is no record
 *     16  epoch u64
 *     24  length u64                 of the body, which is padded to 8
 *     32  checksum u64               XXH3-64 of the checksum of the record before, these 32 octets, and the body
 *
 * So a record counts only behind the very one that it was written behind: what a link left that broke amid an epoch, and
 * what lay behind a gap after a crash, never does.  The header has what goes before the first; opening draws a new one.
 *
 * A commit's body is its generation, 8 octets.  IMAGE.remus beside each image says that it is a replica (image.h); activation
 * turns that into a valid image with a lineage of its own.
 *
 * One thread calls all but journal_stats; order: open, begin, then direct (synchronising) and write ... end, commit; at last
 * activate, or close.
 */
#ifndef REMUS_DISK_JOURNAL_H
#define REMUS_DISK_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "disk.h"

struct journal;

struct journal_stats {
    uint64_t used_bytes, max_bytes; /* of the ring: not yet durable in the images */
    uint64_t applied_epoch, committed_epoch;
    uint64_t waited_ns;             /* that the link waited for room */
    bool whole;                     /* the images are at a committed epoch */
};

/*
 * Opens images and journal, makes what is not there (sparse), replays, and starts the thread.  Refuses an image
 * that is valid itself: the guest ran from it.  When one is not here, or was no replica, nothing of any counts as known.
 * capacity: used when the journal is made, or is empty.
 */
int journal_open(struct journal **j, char *const images[], const struct disk_info *disks, unsigned count,
                 size_t capacity, struct error *err);
void journal_close(struct journal *j);

/*
 * After a start of the daemon, without a primary: brings the images to their last committed epoch, when there is a journal.  A
 * takeover that was cut short is finished when `activating`: one image is valid, so all are.  1: done, 0: there is no journal.
 * -1 and nothing touched when an image is gone.
 */
int journal_recover(char *const images[], unsigned count, bool activating, struct error *err);

/* Generation of each disk that is here; 0 for a disk of which nothing is. */
void journal_bases(struct journal *j, const struct disk_info *disks, uint64_t *bases);

/* Is there an epoch of these very disks, that START_KEEP could keep? */
bool journal_can_keep(struct journal *j, const struct disk_info *disks);

/*
 * A new link.  What came after the committed epoch is thrown away.  START_ANEW: the images are about to be written
 * directly, they are no replica until the next commit.  START_KEEP: changes of no epoch wait in the journal, too; when it
 * is full of them it gives the old epoch up and goes on as after START_ANEW.
 */
int journal_begin(struct journal *j, const struct disk_info *disks, enum link_start start, struct error *err);

/* Are the images at a committed epoch, now or as soon as what is committed is applied? */
bool journal_whole(struct journal *j);

/* Entries of the coming epoch, and of none while synchronising: checked, all or nothing. */
int journal_write(struct journal *j, uint64_t epoch, const uint8_t *entries, size_t length, struct error *err);

/* All changes of the coming epoch were written, the caller knows: its generation. */
int journal_end(struct journal *j, uint64_t generation, struct error *err);

/* The epoch is whole. */
int journal_commit(struct journal *j, uint64_t epoch, struct error *err);

/*
 * PROTO_BLOCK_SIZE octets of an image as of the block's generation, for the coming epoch: waits until the image has got so far.
 * The primary vouches that nobody writes to the block after that generation up to the end of the coming epoch (R5);
 * the hash tells whether it is right.
 */
int journal_read(struct journal *j, const struct proto_block *block, uint8_t *data, struct error *err);

/* Did the thread fail?  The images are then at no epoch any more, until the next start replays. */
int journal_check(struct journal *j, struct error *err);

/* Applies all that is committed and makes the images valid: the guest may run from them (R5). */
int journal_activate(struct journal *j, uint64_t epoch, struct error *err);

/* CHECK entries: what was compared since the last call.  False: nothing. */
bool journal_compared(struct journal *j, struct proto_compared *c);

/* Was there an image before this journal was opened, that may be like the primary's? */
bool journal_may_be_alike(const struct journal *j, unsigned disk);

void journal_stats(struct journal *j, struct journal_stats *stats);

#endif
