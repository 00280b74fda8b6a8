/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A backup in a thread of the bench: a real receiver at the end of a memory channel, which acknowledges and applies in the daemon's
 * order.  What it is told that makes no sense ends the link, with a line on stderr.
 */
#ifndef REMUS_BENCH_BACKUP_H
#define REMUS_BENCH_BACKUP_H

#include <pthread.h>

#include "backup/receiver.h"
#include "common/error.h"
#include "common/link.h"
#include "disk/journal.h"

struct backup {
    struct link *link;
    struct receiver *receiver; /* NULL: it takes nothing but heartbeats */
    struct journal *journal;   /* NULL: without disks */
    uint8_t *memory;           /* the replica's */
    uint64_t octets;
    pthread_t thread;
};

/* Room for a replica of that many pages; its link and journal are not there yet.  0 or -1. */
int backup_init(struct backup *b, uint64_t pages);

/* *primary: the other end of the link, which is the caller's.  0 or -1. */
int backup_start(struct backup *b, struct chan **primary);

/* After the primary's end is closed; also one that is zeroed, or was not started. */
void backup_free(struct backup *b);

#endif
