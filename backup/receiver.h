/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From records to whole checkpoints on the replica's memory.  Knows no socket and no clock, so that tests and the
 * fuzzer drive it directly.
 *
 *     PAGES (epoch 0)   decoded and written to memory at once: synchronising, there is no replica yet, or the pages that
 *                       they replace are kept aside, so that the old one can be had back
 *     PAGES (epoch N)   decoded into the stage
 *     BLOCKS            read from the images of the disks into the stage, checked
 *     STATE, NET        appended
 *     DISK              into the journal of the disks, checked; with epoch 0 into their images at once
 *     DISK_END          the disks' part is whole
 *     END               lengths, count and digest compared: the checkpoint is whole (R2)
 *                       -> RECEIVER_WHOLE; the caller acknowledges, then calls receiver_apply (R4)
 *
 * After any error nothing of the checkpoint is used and the link must end; memory and state are still those of the
 * checkpoint before.
 */
#ifndef REMUS_RECEIVER_H
#define REMUS_RECEIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bitmap.h"
#include "common/error.h"
#include "common/link.h"
#include "disk/journal.h"

struct receiver;

enum receiver_result { RECEIVER_MORE, RECEIVER_WHOLE, RECEIVER_ERROR };

/* The last whole checkpoint: applied, or kept.  State and net belong to the receiver. */
struct receiver_checkpoint {
    uint64_t epoch; /* 0: none */
    const uint8_t *state, *net;
    size_t state_length, net_length;
};

/*
 * memory: the replica's, `pages` long, borrowed.  stage_bytes bounds the pages of one checkpoint
 * that are held apart (R9); address space is reserved, memory only used as needed.
 */
struct receiver *receiver_new(uint8_t *memory, uint64_t pages, size_t stage_bytes);
/* The disks' journal, borrowed; without one DISK records are refused, with one each checkpoint must have a DISK_END. */
void receiver_set_journal(struct receiver *r, struct journal *journal);
/* Gets the bit of each page that is written to memory; borrowed. */
void receiver_set_written(struct receiver *r, struct bitmap *written);
void receiver_free(struct receiver *r);

/*
 * A new link.  START_RESUME: the applied checkpoint stays, and pages of epoch 0 are refused.  START_KEEP: what they replace
 * is kept, up to a quarter of the stage and what the journal holds (R9); beyond that, the old checkpoint is given up.
 */
void receiver_start(struct receiver *r, enum link_start start);

/* Is the checkpoint one from before START_KEEP?  Then receiver_restore makes memory that checkpoint again. */
bool receiver_keeps(const struct receiver *r);
void receiver_restore(struct receiver *r);

/* PAGES, STATE, NET or END. */
enum receiver_result receiver_record(struct receiver *r, const struct record *rec,
                                     struct error *err);

/* After RECEIVER_WHOLE: makes the staged checkpoint the replica, in one step. */
void receiver_apply(struct receiver *r);

/* The number of the staged whole checkpoint. */
uint64_t receiver_staged(const struct receiver *r);

void receiver_checkpoint(const struct receiver *r, struct receiver_checkpoint *ck);

/* Pages received while synchronising and in all. */
uint64_t receiver_pages(const struct receiver *r);

#endif
