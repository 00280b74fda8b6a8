/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The staging buffer: where pages are copied while the guest is paused, and from where they are shipped while it
 * runs again.  A ring of pages, written by the epoch thread and read by the ship thread.
 *
 *        tail                     head
 *         v                        v
 *     ....|==checkpoint N==|==N+1==|....      each page with its number and its epoch
 *          ship takes here   copy puts here
 *
 * Bounded (R9): when it is full, staging_put waits for the ship thread.  If that happens inside a pause, the pause
 * gets longer: a guest that dirties more than the buffer holds is slowed down, and `stretched` counts it.
 * All of it is allocated and touched at the start, so that a pause never takes a page fault for it (R8).
 */
#ifndef REMUS_STAGING_H
#define REMUS_STAGING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bitmap.h"

struct staging;

struct staging_stats {
    size_t used_bytes, max_bytes;
    uint64_t stretched; /* times that a pause waited for room */
};

struct staging *staging_new(size_t bytes); /* at least 1 MiB; NULL with errno */
void staging_free(struct staging *s);

/* Forgets everything and forgets staging_abort (a new link). */
void staging_reset(struct staging *s);

/* From any thread: staging_put and staging_take return at once from now on. */
void staging_abort(struct staging *s);

/*
 * Copies the pages whose bit is set in [from, end) of `dirty`, in order, until all are copied or `limit` of
 * them are.  Returns the first page not looked at (`end` when done), *copied counts them.
 * -1 (UINT64_MAX) when aborted: what was copied is worthless then.
 */
uint64_t staging_put(struct staging *s, uint64_t epoch, const struct bitmap *dirty,
                     const uint8_t *memory, uint64_t from, uint64_t end, uint64_t limit,
                     uint64_t *copied);

/*
 * All pages of `epoch` are in: only now does take see them (or when the buffer is full), so that the ship thread does not
 * compete with the pause.  Then take will say that the epoch is complete.
 */
void staging_close(struct staging *s, uint64_t epoch);

/* A run of pages of one epoch at the tail; valid until staging_done. */
struct staging_run {
    uint64_t epoch;
    const uint64_t *pfns; /* ascending: two rounds of live pre-copy never share a run */
    const uint8_t *pages; /* contiguous */
    size_t count;         /* 0: the epoch is complete, send its end */
    bool poked;           /* there is nothing, and staging_poke was called */
};

/* Waits for the next run of at most `max` pages.  False when aborted. */
bool staging_take(struct staging *s, size_t max, struct staging_run *run);
void staging_done(struct staging *s, const struct staging_run *run);

/* From any thread: staging_take returns, even when it has nothing. */
void staging_poke(struct staging *s);

void staging_stats(struct staging *s, struct staging_stats *stats);

#endif
